//! `podwright import`: an OCI layout or a docker archive becomes images, all of them or none.
//!
//! An archive that is both (`docker save` since 25) is read as a layout, which has digests for everything. Nothing is believed: every
//! manifest, config and layer is compared with the digest and size of what points to it, and every layer's tar stream with the
//! config's diff id. A layer that the store has by that diff id is not read again.

use super::archive::Archive;
use super::found::{self, Found, Search, Source, Unpack, What, blob_path, sha256, suits, unsuitable};
use super::oci::{self, Descriptor, Document, Platform};
use super::reference::Reference;
use super::store::Store;
use super::store::session::{Expected, Progress};
use super::unpack::Unpacked;
use super::unpack::spawn::Blob;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::Digest;
use std::collections::BTreeMap;
use std::path::PathBuf;

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
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    let layers = found::layers(&session, &archive, &found, workers, progress)?;
    let images = found.into_iter().map(|f| found::new_image(f, &layers, false)).collect::<Result<Vec<_>>>()?;
    session.commit(&images)?;
    Ok(images.into_iter().map(|image| Imported { id: image.record.id, names: image.names }).collect())
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

impl Source for Archive {
    fn document(&self, descriptor: &Descriptor, what: What) -> Result<Vec<u8>> {
        pointed(self, descriptor, what)
    }

    fn unpack(&self, expected: &Expected, path: &str, unpack: Unpack<'_>) -> Result<Unpacked> {
        unpack(layer_blob(self, expected, path)?)
    }
}

/// Reads the document that `descriptor` points to, and compares size and digest.
fn pointed(archive: &Archive, descriptor: &Descriptor, what: What) -> Result<Vec<u8>> {
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
        let name = name.map(Reference::of_docker).transpose()?;
        let Some(mut found) = Search::new(archive, platform).best(&group)? else {
            return Err(unsuitable(platform, &oci::platforms(&group)));
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
        return Err(unsuitable(platform, &config.platform.to_string()));
    }
    if config.diff_ids.len() != image.layers.len() {
        let (ids, layers) = (config.diff_ids.len(), image.layers.len());
        return Err(Error::invalid(format!("config {} has {ids} diff ids, the image {layers} layers", image.config)));
    }
    let names = image.repo_tags.iter().map(|tag| Reference::of_docker(tag)).collect::<Result<Vec<Reference>>>()?;
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
