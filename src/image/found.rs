//! From documents to images, wherever the documents are: choosing by platform, verifying, and having all layers made in parallel.
//!
//! Not here: where bytes come from, which is a [`Source`]'s ([`super::import`], [`super::pull`]).

use super::oci::{self, Descriptor, Document, ImageConfig, Platform};
use super::reference::Reference;
use super::store::session::{Event, Expected, NewImage, Progress, Session};
use super::store::turn::Turn;
use super::store::{ImageRecord, LayerRecord};
use super::unpack::Unpacked;
use super::unpack::spawn::Blob;
use crate::error::{Context, Error, Result};
use crate::id::Digest;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use tokio::sync::OwnedMutexGuard;

/// Indexes in indexes, at most.
const MAX_INDEX_DEPTH: u32 = 3;
/// Documents that are looked at for one image, at most: indexes may lead to each other in more ways than there are atoms.
const MAX_DOCUMENTS: u32 = 64;

/// What a document is that something points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A manifest or an index.
    Manifest,
    Config,
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            What::Manifest => "manifest",
            What::Config => "config",
        })
    }
}

/// Unpacks what it is given.
pub type Unpack<'a> = &'a mut dyn FnMut(Blob) -> Result<Unpacked>;

/// Where documents and layers are.
pub trait Source: Sync {
    /// Reads a document, which has the size and digest of what points to it.
    ///
    /// # Errors
    /// Those of reading; `InvalidArgument` for another size or digest.
    fn document(&self, descriptor: &Descriptor, what: What) -> Result<Vec<u8>>;

    /// Has a layer unpacked, its blob being at `path`.
    ///
    /// # Errors
    /// Those of reading, else those of `unpack`.
    fn unpack(&self, expected: &Expected, path: &str, unpack: Unpack<'_>) -> Result<Unpacked>;

    /// Waits until nobody else makes the layer; so it is until the answer is dropped.
    ///
    /// # Errors
    /// `Unavailable` when waiting was given up.
    fn turn(&self, _: &Digest) -> Result<Option<Held>> {
        Ok(None)
    }

    /// A layer has failed: the others need not go on.
    fn abandon(&self) {}
}

/// A turn at making something.
#[derive(Debug)]
pub struct Held {
    /// Among the threads of this process.
    pub here: OwnedMutexGuard<()>,
    /// Among the processes of this host; `None`: another one has it, and shows no life.
    pub there: Option<Turn>,
}

/// Progress that is life for those who wait as well.
pub(super) struct Beating<'a> {
    pub progress: &'a dyn Progress,
    pub held: Option<&'a Held>,
}

impl Progress for Beating<'_> {
    fn layer(&self, diff_id: &Digest, event: Event) {
        if let Some(turn) = self.held.and_then(|held| held.there.as_ref()) {
            turn.beat();
        }
        self.progress.layer(diff_id, event);
    }
}

/// An image that was found, its documents verified and its layers not yet.
#[derive(Debug)]
pub struct Found {
    pub names: Vec<Reference>,
    pub target: Option<Digest>,
    pub manifest: Option<Digest>,
    pub id: Digest,
    pub config: ImageConfig,
    pub blobs: Vec<(Digest, Vec<u8>)>,
    /// Each with the path of its blob.
    pub layers: Vec<(Expected, String)>,
}

pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// Where an OCI layout has a blob.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Whether an image runs where `wanted` is asked for, as far as os and processor go.
pub fn suits(has: &Platform, wanted: &Platform) -> bool {
    has.os == wanted.os && has.architecture == wanted.architecture
}

/// The error for an image of other platforms.
pub fn unsuitable(wanted: &Platform, has: &str) -> Error {
    Error::not_found(format!("no image for {wanted}; it has: {has}; choose with --platform"))
}

/// Looks for the image of one platform.
pub struct Search<'a> {
    source: &'a dyn Source,
    platform: &'a Platform,
    documents: AtomicU32,
}

impl std::fmt::Debug for Search<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search").field("platform", &self.platform).finish_non_exhaustive()
    }
}

impl<'a> Search<'a> {
    pub fn new(source: &'a dyn Source, platform: &'a Platform) -> Search<'a> {
        Search { source, platform, documents: AtomicU32::new(0) }
    }

    /// The best image that these descriptors lead to.
    ///
    /// # Errors
    /// Those of the source; `InvalidArgument` for a document that is wrong, `ResourceExhausted` for too many.
    pub fn best(&self, descriptors: &[Descriptor]) -> Result<Option<Found>> {
        self.below(descriptors, 0)
    }

    fn below(&self, descriptors: &[Descriptor], depth: u32) -> Result<Option<Found>> {
        for descriptor in oci::choose(descriptors, self.platform) {
            if self.documents.fetch_add(1, Ordering::Relaxed) == MAX_DOCUMENTS {
                let digest = &descriptor.digest;
                return Err(Error::exhausted(format!(
                    "manifest {digest}: more than {MAX_DOCUMENTS} documents on the way to it"
                )));
            }
            let bytes = self.source.document(descriptor, What::Manifest)?;
            if let Some(found) = self.lead(descriptor, bytes, depth)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The image that one document is or leads to.
    ///
    /// # Errors
    /// As [`Search::best`].
    pub fn from(&self, descriptor: &Descriptor, bytes: Vec<u8>) -> Result<Option<Found>> {
        self.lead(descriptor, bytes, 0)
    }

    fn lead(&self, descriptor: &Descriptor, bytes: Vec<u8>, depth: u32) -> Result<Option<Found>> {
        let what = format!("manifest {}", descriptor.digest);
        let found = match oci::document(&bytes, &descriptor.media_type).context(|| what.clone())? {
            Document::Index(_) if depth == MAX_INDEX_DEPTH => {
                return Err(Error::exhausted(format!("{what}: more than {MAX_INDEX_DEPTH} indexes in each other")));
            }
            Document::Index(inner) => self.below(&inner, depth + 1)?,
            Document::Manifest(manifest) => {
                let found = self.image(descriptor, bytes, &manifest).context(|| what)?;
                Some(found).filter(|f| descriptor.platform.is_some() || suits(&f.config.platform, self.platform))
            }
        };
        Ok(found.map(|found| Found { target: Some(descriptor.digest.clone()), ..found }))
    }

    fn image(&self, descriptor: &Descriptor, bytes: Vec<u8>, manifest: &oci::Manifest) -> Result<Found> {
        let config_bytes = self.source.document(&manifest.config, What::Config)?;
        let config = oci::config(&config_bytes).context(|| format!("config {}", manifest.config.digest))?;
        if config.diff_ids.len() != manifest.layers.len() {
            let (ids, layers) = (config.diff_ids.len(), manifest.layers.len());
            return Err(Error::invalid(format!("its config has {ids} diff ids, it has {layers} layers")));
        }
        let layers = config.diff_ids.iter().zip(&manifest.layers).map(|(diff_id, layer)| {
            let expected =
                Expected { diff_id: diff_id.clone(), blob: Some(layer.digest.clone()), bytes: Some(layer.size) };
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
}

/// Has all layers of all images in the store, `parallel` at a time, each once.
///
/// # Errors
/// The first; the others stop after what they are at.
pub fn layers(
    session: &Session<'_>,
    source: &dyn Source,
    found: &[Found],
    parallel: usize,
    progress: &dyn Progress,
) -> Result<BTreeMap<Digest, LayerRecord>> {
    let mut wanted: Vec<&(Expected, String)> = Vec::new();
    for layer in found.iter().flat_map(|f| &f.layers) {
        if wanted.iter().all(|other| other.0.diff_id != layer.0.diff_id) {
            wanted.push(layer);
        }
    }
    let (next, made, errors) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let work = || {
        while let Some((expected, path)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let layer = source.turn(&expected.diff_id).and_then(|held| {
                let progress = Beating { progress, held: held.as_ref() };
                session.layer(expected, &progress, |unpack| source.unpack(expected, path, unpack))
            });
            match layer {
                Ok(record) => drop(lock(&made).insert(expected.diff_id.clone(), record)),
                Err(e) => {
                    next.store(wanted.len(), Ordering::Relaxed);
                    lock(&errors).push(e);
                    source.abandon();
                }
            }
        }
    };
    std::thread::scope(|scope| (0..parallel.min(wanted.len())).for_each(|_| drop(scope.spawn(work))));
    match lock(&errors).drain(..).next() {
        Some(first) => Err(first),
        None => Ok(std::mem::take(&mut *lock(&made))),
    }
}

/// A lock whose holders do not panic while holding it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The image as the store takes it, once its layers are made.
///
/// # Errors
/// `Internal` for a layer that is not among them.
pub fn new_image(found: Found, layers: &BTreeMap<Digest, LayerRecord>, pulled: bool) -> Result<NewImage> {
    let records: Option<Vec<LayerRecord>> = found.config.diff_ids.iter().map(|id| layers.get(id).cloned()).collect();
    let record = ImageRecord {
        id: found.id,
        manifest: found.manifest,
        platform: found.config.platform,
        created: found.config.created,
        config: found.config.config,
        layers: records.ok_or_else(|| Error::internal("a layer was neither found nor made"))?,
    };
    Ok(NewImage { record, blobs: found.blobs, names: found.names, target: found.target, pulled })
}
