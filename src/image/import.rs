//! `podwright import`: an OCI layout or a docker archive becomes images, all of them or none.
//!
//! An archive that is both (`docker save` since 25) is read as a layout, which has digests for everything. Nothing is believed: every
//! manifest, config and layer is compared with the digest and size of what points to it, and every layer's tar stream with the
//! config's diff id. A layer that the store has by that diff id is not read again.

use super::archive::Archive;
use super::oci::{self, Descriptor, Document, ImageConfig, Platform};
use super::reference::Reference;
use super::store::session::{Expected, NewImage, Progress, Session};
use super::store::{ImageRecord, LayerRecord, Store};
use super::unpack::spawn::Blob;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::Digest;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Indexes in indexes, at most.
const MAX_INDEX_DEPTH: u32 = 3;
/// Images in one archive, at most.
const MAX_IMAGES: usize = 256;
/// Workers at once, at most; fewer on a machine with fewer cores.
const MAX_WORKERS: usize = 8;

/// What to import.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: PathBuf,
    /// The name to give instead of the archive's.
    pub name: Option<Reference>,
    pub platform: Platform,
}

/// An image that was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub id: Digest,
    pub names: Vec<Reference>,
}

/// An image that was found in the archive, its documents verified and its layers not yet.
#[derive(Debug)]
struct Found {
    names: Vec<Reference>,
    target: Option<Digest>,
    manifest: Option<Digest>,
    id: Digest,
    config: ImageConfig,
    blobs: Vec<(Digest, Vec<u8>)>,
    layers: Vec<(Expected, String)>,
}

/// Imports every image of an archive that suits the platform. Blocks.
///
/// # Errors
/// `InvalidArgument` for whatever is wrong in the archive, `NotFound` for a path or platform that is not there, `ResourceExhausted` for a
/// bound or a full disk. Nothing of the archive is in the store then.
pub fn import(store: &Store, request: &Request, progress: &dyn Progress) -> Result<Vec<Imported>> {
    run(store, request, progress).context(|| format!("import {}", request.path.display()))
}

fn run(store: &Store, request: &Request, progress: &dyn Progress) -> Result<Vec<Imported>> {
    let session = store.session()?;
    let archive = Archive::open(&request.path, &session)?;
    let mut found = find(&archive, &request.platform)?;
    if let Some(name) = &request.name {
        let [only] = found.as_mut_slice() else {
            let names: Vec<String> = found.iter().flat_map(|f| &f.names).map(Reference::to_string).collect();
            let why =
                format!("--name needs an archive of one image, this one has {}: {}", found.len(), names.join(", "));
            return Err(Error::invalid(why));
        };
        only.names = vec![name.clone()];
    }
    fault::point("image.import.found");
    let layers = layers(&session, &archive, &found, progress)?;
    let images = found.into_iter().map(|f| new_image(f, &layers)).collect::<Result<Vec<_>>>()?;
    session.commit(&images)?;
    Ok(images.into_iter().map(|image| Imported { id: image.record.id, names: image.names }).collect())
}

fn new_image(found: Found, layers: &BTreeMap<Digest, LayerRecord>) -> Result<NewImage> {
    let records: Option<Vec<LayerRecord>> = found.config.diff_ids.iter().map(|id| layers.get(id).cloned()).collect();
    let record = ImageRecord {
        id: found.id,
        manifest: found.manifest,
        platform: found.config.platform,
        created: found.config.created,
        config: found.config.config,
        layers: records.ok_or_else(|| Error::internal("a layer was neither found nor made"))?,
    };
    Ok(NewImage { record, blobs: found.blobs, names: found.names, target: found.target })
}

/// Has all layers of all images in the store, several at a time, each once.
fn layers(
    session: &Session<'_>,
    archive: &Archive,
    found: &[Found],
    progress: &dyn Progress,
) -> Result<BTreeMap<Digest, LayerRecord>> {
    let mut wanted: BTreeMap<&Digest, &(Expected, String)> = BTreeMap::new();
    for layer in found.iter().flat_map(|f| &f.layers) {
        wanted.entry(&layer.0.diff_id).or_insert(layer);
    }
    let wanted: Vec<_> = wanted.into_values().collect();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS).min(wanted.len());
    let (next, made, errors) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let work = || {
        while let Some((expected, path)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            match session.layer(expected, progress, || layer_blob(archive, expected, path)) {
                Ok(record) => drop(lock(&made).insert(expected.diff_id.clone(), record)),
                Err(e) => {
                    next.store(wanted.len(), Ordering::Relaxed); // the others stop after what they are at
                    lock(&errors).push(e);
                }
            }
        }
    };
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    match lock(&errors).drain(..).next() {
        Some(first) => Err(first),
        None => Ok(std::mem::take(&mut *lock(&made))),
    }
}

/// A lock whose holders do not panic while holding it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn layer_blob(archive: &Archive, expected: &Expected, path: &str) -> Result<Blob> {
    let missing = || Error::invalid(format!("layer {}: {path} is not in the archive", expected.diff_id));
    let blob = archive.blob(path)?.ok_or_else(missing)?;
    match (&blob, expected.bytes) {
        (Blob::File { len: Some(len), .. }, Some(wanted)) if *len != wanted => Err(Error::invalid(format!(
            "layer {}: {path} has {len} bytes, the manifest says {wanted}",
            expected.diff_id
        ))),
        _ => Ok(blob),
    }
}

fn find(archive: &Archive, platform: &Platform) -> Result<Vec<Found>> {
    if let Some(index) = archive.read("index.json", oci::MAX_DOCUMENT)? {
        return layout(archive, &index, platform).context(|| "index.json");
    }
    if let Some(manifest) = archive.read("manifest.json", oci::MAX_DOCUMENT)? {
        return docker(archive, &manifest, platform).context(|| "manifest.json");
    }
    Err(Error::invalid("it has neither index.json nor manifest.json: not an OCI layout and not a docker archive"))
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads the document that `descriptor` points to, and compares size and digest.
fn pointed(archive: &Archive, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>> {
    let path = blob_path(&descriptor.digest);
    let missing = || Error::invalid(format!("{what} {} is not in the archive", descriptor.digest));
    let bytes = archive.read(&path, oci::MAX_DOCUMENT)?.ok_or_else(missing)?;
    if bytes.len() as u64 != descriptor.size {
        let (is, says) = (bytes.len(), descriptor.size);
        return Err(Error::invalid(format!(
            "{what} {}: it has {is} bytes, what points to it says {says}",
            descriptor.digest
        )));
    }
    let is = sha256(&bytes);
    if is != descriptor.digest {
        return Err(Error::invalid(format!(
            "{what}: its digest is {is}, what points to it says {}",
            descriptor.digest
        )));
    }
    Ok(bytes)
}

/// The images of an OCI layout: the descriptors of its index, grouped by name, since writers put the platforms of one image side by side.
fn layout(archive: &Archive, index: &[u8], platform: &Platform) -> Result<Vec<Found>> {
    let Document::Index(descriptors) = oci::document(index, "")? else {
        return Err(Error::invalid("it is a manifest, not an index"));
    };
    let mut groups: BTreeMap<Option<&str>, Vec<Descriptor>> = BTreeMap::new();
    for descriptor in &descriptors {
        groups.entry(descriptor.name()).or_default().push(descriptor.clone());
    }
    if groups.len() > MAX_IMAGES {
        return Err(Error::exhausted(format!("{} images in one archive, at most {MAX_IMAGES}", groups.len())));
    }
    let mut images: Vec<Found> = Vec::new();
    for (name, group) in groups {
        let name = name.map(str::parse::<Reference>).transpose()?;
        let Some(mut found) = best(archive, &group, platform, 0)? else {
            let have = oci::platforms(&group);
            return Err(Error::not_found(format!("no image for {platform}; it has: {have}; choose with --platform")));
        };
        found.names = name.into_iter().collect();
        match images.iter_mut().find(|image| image.id == found.id && image.target == found.target) {
            Some(same) => same.names.append(&mut found.names),
            None => images.push(found),
        }
    }
    if images.is_empty() {
        return Err(Error::invalid("the index is empty: there is no image in the archive"));
    }
    Ok(images)
}

/// The best image for `platform` that these descriptors lead to.
fn best(archive: &Archive, descriptors: &[Descriptor], platform: &Platform, depth: u32) -> Result<Option<Found>> {
    for descriptor in oci::choose(descriptors, platform) {
        let what = format!("manifest {}", descriptor.digest);
        let bytes = pointed(archive, descriptor, "manifest")?;
        let found = match oci::document(&bytes, &descriptor.media_type).context(|| what.clone())? {
            Document::Index(_) if depth == MAX_INDEX_DEPTH => {
                return Err(Error::exhausted(format!("{what}: more than {MAX_INDEX_DEPTH} indexes in each other")));
            }
            Document::Index(inner) => best(archive, &inner, platform, depth + 1)?,
            Document::Manifest(manifest) => {
                let found = image(archive, descriptor, bytes, &manifest).context(|| what)?;
                Some(found).filter(|f| descriptor.platform.is_some() || suits(&f.config.platform, platform))
            }
        };
        if let Some(mut found) = found {
            found.target = Some(descriptor.digest.clone());
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn suits(has: &Platform, wanted: &Platform) -> bool {
    has.os == wanted.os && has.architecture == wanted.architecture
}

fn image(archive: &Archive, descriptor: &Descriptor, bytes: Vec<u8>, manifest: &oci::Manifest) -> Result<Found> {
    let config_bytes = pointed(archive, &manifest.config, "config")?;
    let config = oci::config(&config_bytes).context(|| format!("config {}", manifest.config.digest))?;
    if config.diff_ids.len() != manifest.layers.len() {
        let (ids, layers) = (config.diff_ids.len(), manifest.layers.len());
        return Err(Error::invalid(format!("its config has {ids} diff ids, it has {layers} layers")));
    }
    let layers = config.diff_ids.iter().zip(&manifest.layers).map(|(diff_id, layer)| {
        let expected = Expected { diff_id: diff_id.clone(), blob: Some(layer.digest.clone()), bytes: Some(layer.size) };
        (expected, blob_path(&layer.digest))
    });
    Ok(Found {
        names: Vec::new(),
        target: None,
        manifest: Some(descriptor.digest.clone()),
        id: manifest.config.digest.clone(),
        layers: layers.collect(),
        blobs: vec![(manifest.config.digest.clone(), config_bytes), (descriptor.digest.clone(), bytes)],
        config,
    })
}

/// The images of a docker archive.
fn docker(archive: &Archive, manifest: &[u8], platform: &Platform) -> Result<Vec<Found>> {
    let images = oci::docker_manifest(manifest)?;
    if images.is_empty() || images.len() > MAX_IMAGES {
        return Err(Error::invalid(format!("{} images in one archive, 1 to {MAX_IMAGES} are accepted", images.len())));
    }
    images.iter().map(|image| docker_image(archive, image, platform)).collect()
}

fn docker_image(archive: &Archive, image: &oci::DockerImage, platform: &Platform) -> Result<Found> {
    let missing = || Error::invalid(format!("config {} is not in the archive", image.config));
    let bytes = archive.read(&image.config, oci::MAX_DOCUMENT)?.ok_or_else(missing)?;
    let id = sha256(&bytes);
    if let Some(says) = oci::digest_in_path(&image.config).filter(|says| *says != id) {
        return Err(Error::invalid(format!("config {}: its digest is {id}, its name says {says}", image.config)));
    }
    let config = oci::config(&bytes).context(|| format!("config {}", image.config))?;
    if !suits(&config.platform, platform) {
        let has = &config.platform;
        return Err(Error::not_found(format!("no image for {platform}; it has: {has}; choose with --platform")));
    }
    if config.diff_ids.len() != image.layers.len() {
        let (ids, layers) = (config.diff_ids.len(), image.layers.len());
        return Err(Error::invalid(format!("config {} has {ids} diff ids, the image {layers} layers", image.config)));
    }
    let names = image.repo_tags.iter().map(|tag| tag.parse()).collect::<Result<Vec<Reference>>>()?;
    let layers = config.diff_ids.iter().zip(&image.layers).map(|(diff_id, path)| {
        let blob = path.strip_prefix("blobs/").and_then(|_| oci::digest_in_path(path));
        (Expected { diff_id: diff_id.clone(), blob, bytes: None }, path.clone())
    });
    Ok(Found {
        names,
        target: None,
        manifest: None,
        layers: layers.collect(),
        blobs: vec![(id.clone(), bytes)],
        id,
        config,
    })
}
