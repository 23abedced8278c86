//! What is on disk of images, and who may touch it when.
//!
//! ```text
//! /var/lib/podwright/images/             0700
//!   lock                     flock(2): shared while an image is looked up and its use recorded, exclusive for every change
//!   names.json               NamesRecord   name -> image id; which ids are pinned
//!   images/<id>.json         ImageRecord   all that starting a pod needs; id: sha256 of the config blob
//!   blobs/<digest>           config and manifest, as they came (compressed layers are not kept)
//!   layers/<diff id>/
//!     fs/                    an overlay lower directory
//!     layer.json             LayerRecord   sizes, so that accounting walks no tree
//!   places/                  below the layers of every image: where podwright mounts something ([`places`])
//!   turns/<what>             flock(2)ed by the one process that fetches it ([`turn`])
//!   tmp/<session>/           what a session is making or throwing away
//!     lock                   flock(2)ed by its owner and that owner's workers; free = dead = to be swept
//!     uses/<diff id>         layers the session counts on: nobody collects them
//!     made/<diff id>         those of them that it put there itself: collected with it if no image came of them
//!     <diff id>/             a layer in the making, the shape of one in layers/
//! ```
//! A layer is unpacked in its session, synced, and renamed into `layers/`; an image's blobs, then its record, then its names are each
//! written complete or not at all, and synced. So at any instant what `names.json` reaches is whole, and what it does not reach is
//! either an image without a name or collected by the next sweep. A record that cannot be read makes one image unusable and no other
//! ([`damaged`]). Exclusive locks are held for milliseconds, never while bytes are
//! unpacked or deleted: two processes that unpack the same layer do no harm, and the second finds it there. That they do not fetch it twice is
//! [`turn`]'s.

pub mod damaged;
mod places;
pub mod session;
pub mod turn;

use super::found::sha256;
use super::oci::{Config, MAX_DOCUMENT, Platform};
use super::reference::Reference;
use super::unpack::spawn::Program;
use crate::error::{Context, Error, Result, did_you_mean};
use crate::id::Digest;
use crate::state::paths::Paths;
use crate::state::record::{self, Durability, Record};
use crate::sys;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Names in the store, at most: what keeps `names.json` below the largest record.
const MAX_NAMES: usize = 8192;
/// Hex digits that an abbreviated id has at least.
const MIN_PREFIX: usize = 4;

/// `names.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NamesRecord {
    /// [`Reference::key`] to image.
    pub names: BTreeMap<String, Named>,
    /// Images that `prune` keeps (CRI: `Image.pinned`).
    pub pinned: BTreeSet<Digest>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub image: Digest,
    /// What the name's `@digest` is: of the index or manifest that the name led to. `None` for a docker archive, which has neither.
    pub target: Option<Digest>,
    /// A registry said what it is, and may say something else by now. `false`: somebody of this host said so, by `import`.
    #[serde(default)]
    pub pulled: bool,
}

impl Record for NamesRecord {
    const KIND: &'static str = "names";
}

/// `images/<id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub id: Digest,
    /// `None` for an image of a docker archive.
    pub manifest: Option<Digest>,
    pub platform: Platform,
    /// As the config has it; for people.
    pub created: String,
    pub config: Config,
    /// Lowest first.
    pub layers: Vec<LayerRecord>,
}

impl Record for ImageRecord {
    const KIND: &'static str = "image";
}

/// `layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    pub diff_id: Digest,
    /// The blob it was unpacked from.
    pub blob: Digest,
    pub blob_bytes: u64,
    /// What du(1) would say on a file system of 4 KiB blocks.
    pub unpacked_bytes: u64,
    pub entries: u64,
    /// Nothing below this layer is to be seen.
    pub opaque_root: bool,
}

impl Record for LayerRecord {
    const KIND: &'static str = "layer";
}

/// An image, as its users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of its config.
    pub id: Digest,
    /// `repository:tag`, sorted; may be empty.
    pub names: Vec<String>,
    /// `repository@digest`, sorted; may be empty.
    pub digests: Vec<String>,
    pub platform: Platform,
    pub created: String,
    pub config: Config,
    /// Overlay lower directories, the lowest first; never empty for an image that has files.
    pub layers: Vec<PathBuf>,
    /// What its layers take on disk; those shared with other images count for each.
    pub unpacked_bytes: u64,
    /// What its layers were as blobs.
    pub compressed_bytes: u64,
    pub pinned: bool,
}

/// What the store takes on disk (CRI `ImageFsInfo`), layers counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// The store.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    program: Program,
}

/// A hold on the store's lock, until dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "closing it is what unlocks")] File);

impl Store {
    /// Opens the store below `paths`, making it if need be, and sweeps what dead sessions left.
    ///
    /// # Errors
    /// `Internal` naming the path; `FailedPrecondition` with a remedy where only root may.
    pub fn open(paths: &Paths) -> Result<Store> {
        Self::open_with(paths, Program::own())
    }

    /// As [`Store::open`], with another program for the `unpack` role.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(paths: &Paths, program: Program) -> Result<Store> {
        let store = Store { root: paths.images(), program };
        for dir in [store.root.clone(), store.records(), store.blobs(), store.layers(), store.tmp(), store.turns()] {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.context(|| format!("mkdir {}", dir.display()))?;
        }
        places::make(&store.places())?;
        store.sweep()?;
        store.sweep_turns()?;
        Ok(store)
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    pub(super) fn records(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(super) fn record(&self, id: &Digest) -> PathBuf {
        self.records().join(format!("{}.json", id.hex()))
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(super) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The lowest layer of every container: where podwright mounts something in all of them.
    pub fn places(&self) -> PathBuf {
        self.root.join("places")
    }

    fn turns(&self) -> PathBuf {
        self.root.join("turns")
    }

    fn names_file(&self) -> PathBuf {
        self.root.join("names.json")
    }

    fn lock(&self, exclusive: bool) -> Result<Lock> {
        let path = self.root.join("lock");
        let file = open_lock(&path)?;
        sys::flock(file.as_fd(), exclusive).context(|| format!("flock {}", path.display()))?;
        Ok(Lock(file))
    }

    /// Keeps images from going away: hold it from [`Store::lookup`] until the container's record names the layers.
    ///
    /// # Errors
    /// `Internal` naming the lock.
    pub fn hold(&self) -> Result<Lock> {
        self.lock(false)
    }

    pub(super) fn exclusive(&self) -> Result<Lock> {
        self.lock(true)
    }

    pub(super) fn names(&self) -> Result<NamesRecord> {
        Ok(record::read(&self.names_file())?.unwrap_or_default())
    }

    /// Replaces the names; under the exclusive lock.
    pub(super) fn write_names(&self, names: &NamesRecord, _: &Lock) -> Result<()> {
        if names.names.len() > MAX_NAMES {
            return Err(Error::exhausted(format!("more than {MAX_NAMES} image names; remove some with podwright rmi")));
        }
        record::write(&self.names_file(), names, Durability::Disk)
    }

    /// Finds an image by name, by id (`sha256:` and 64 digits, or the digits), by `repository@digest`, or by the first digits of an id (4 or
    /// more, when they are no name). Two small files are read.
    ///
    /// # Errors
    /// `NotFound` with the remedy; `InvalidArgument` for what is no name, or digits that several images have.
    pub fn lookup(&self, text: &str) -> Result<Image> {
        let names = self.names()?;
        let id = self.resolve(text, &names)?;
        let found = record::read::<ImageRecord>(&self.record(&id));
        match found.context(|| format!("image {text:?} is damaged: {}", damaged::REMEDY))? {
            Some(found) => Ok(self.image(found, &names)),
            None => Err(absent(text, &names)),
        }
    }

    /// What a name was given to, if the image is there and can be used.
    ///
    /// # Errors
    /// `Internal` when the names cannot be read.
    pub fn named(&self, name: &Reference) -> Result<Option<Named>> {
        let named = self.names()?.names.remove(&name.key());
        let usable = |named: &Named| matches!(record::read::<ImageRecord>(&self.record(&named.image)), Ok(Some(_)));
        Ok(named.filter(usable))
    }

    /// A manifest or config that an image brought, if it is there and as it should be.
    pub fn document(&self, digest: &Digest) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.blobs().join(digest.hex())).ok()?;
        file.take(MAX_DOCUMENT).read_to_end(&mut bytes).ok()?;
        (sha256(&bytes) == *digest).then_some(bytes)
    }

    /// What `text` stands for; the record may be missing.
    pub(super) fn resolve(&self, text: &str, names: &NamesRecord) -> Result<Digest> {
        let prefixed = if text.starts_with("sha256:") { text.to_owned() } else { format!("sha256:{text}") };
        if let Ok(id) = prefixed.parse::<Digest>() {
            return Ok(id);
        }
        let parsed = text.parse::<Reference>();
        if let Ok(reference) = &parsed
            && let Some(id) = named(reference, names)
        {
            return Ok(id);
        }
        let digits = prefixed.trim_start_matches("sha256:");
        let hex = digits.len() >= MIN_PREFIX && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let ids = if hex { self.ids_with(digits)? } else { Vec::new() };
        match (ids.as_slice(), parsed) {
            ([id], _) => Ok(id.clone()),
            ([], Err(e)) => Err(e),
            ([], Ok(_)) => Err(absent(text, names)),
            (several, _) => Err(Error::invalid(format!("{} images have ids that start with {digits}", several.len()))),
        }
    }

    pub(super) fn ids_with(&self, digits: &str) -> Result<Vec<Digest>> {
        let ids = list(&self.records())?.into_iter().filter(|name| name.starts_with(digits));
        Ok(ids.filter_map(|name| format!("sha256:{}", name.strip_suffix(".json")?).parse().ok()).collect())
    }

    fn image(&self, record: ImageRecord, names: &NamesRecord) -> Image {
        let ours = || names.names.iter().filter(|(_, named)| named.image == record.id);
        let digests: BTreeSet<String> = ours()
            .filter_map(|(name, named)| Some(format!("{}@{}", repository(name), named.target.as_ref()?)))
            .collect();
        let top = record.layers.iter().rposition(|l| l.opaque_root).unwrap_or(0);
        Image {
            names: ours().map(|(name, _)| name.clone()).filter(|name| !name.contains('@')).collect(),
            digests: digests.into_iter().collect(),
            layers: record.layers[top..].iter().map(|l| self.layer(&l.diff_id).join("fs")).collect(),
            unpacked_bytes: record.layers.iter().map(|l| l.unpacked_bytes).sum(),
            compressed_bytes: record.layers.iter().map(|l| l.blob_bytes).sum(),
            pinned: names.pinned.contains(&record.id),
            id: record.id,
            platform: record.platform,
            created: record.created,
            config: record.config,
        }
    }

    /// Every image whose record can be read, by id; the others are [`Store::damaged`].
    ///
    /// # Errors
    /// `Internal` when the names cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        let _held = self.hold()?;
        let names = self.names()?;
        Ok(self.image_records()?.0.into_iter().map(|r| self.image(r, &names)).collect())
    }

    /// The records, and those that cannot be read, with why.
    pub(super) fn image_records(&self) -> Result<(Vec<ImageRecord>, Vec<damaged::Unreadable>)> {
        let mut ids = self.ids_with("")?;
        ids.sort();
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for id in ids {
            match record::read(&self.record(&id)) {
                Ok(found) => records.extend(found), // None: removed since the listing
                Err(e) => unreadable.push((id, e)),
            }
        }
        Ok((records, unreadable))
    }

    /// What all layers take, from their records.
    ///
    /// # Errors
    /// `Internal` for a record that cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for name in list(&self.layers())? {
            // A layer that is collected at this moment counts no more.
            if let Some(layer) = record::read::<LayerRecord>(&self.layers().join(name).join("layer.json"))? {
                usage.bytes += layer.unpacked_bytes;
                usage.inodes += layer.entries;
            }
        }
        Ok(usage)
    }

    /// Gives an image one more name; the name moves if another image has it.
    ///
    /// # Errors
    /// Those of [`Store::lookup`].
    pub fn tag(&self, image: &str, name: &Reference) -> Result<()> {
        let lock = self.exclusive()?;
        let mut names = self.names()?;
        let id = self.resolve(image, &names)?;
        if record::read::<ImageRecord>(&self.record(&id))?.is_none() {
            return Err(absent(image, &names));
        }
        let target = names.names.values().find(|n| n.image == id).and_then(|n| n.target.clone());
        names.names.insert(name.key(), Named { image: id, target, pulled: false });
        self.write_names(&names, &lock)
    }

    /// Pins an image, or takes the pin away.
    ///
    /// # Errors
    /// Those of [`Store::lookup`].
    pub fn pin(&self, image: &str, pinned: bool) -> Result<()> {
        let lock = self.exclusive()?;
        let mut names = self.names()?;
        let id = self.resolve(image, &names)?;
        if record::read::<ImageRecord>(&self.record(&id))?.is_none() {
            return Err(absent(image, &names));
        }
        let changed = if pinned { names.pinned.insert(id) } else { names.pinned.remove(&id) };
        if changed { self.write_names(&names, &lock) } else { Ok(()) }
    }
}

fn named(reference: &Reference, names: &NamesRecord) -> Option<Digest> {
    if let Some(named) = names.names.get(&reference.key()) {
        return Some(named.image.clone());
    }
    let digest = reference.digest()?;
    let of_repository = |name: &str| repository(name) == reference.repository();
    let mut all = names.names.iter();
    all.find(|(name, n)| n.target.as_ref() == Some(digest) && of_repository(name)).map(|(_, n)| n.image.clone())
}

/// The repository of a key.
fn repository(key: &str) -> &str {
    match key.split_once('@') {
        Some((repository, _)) => repository,
        None => key.rsplit_once(':').map_or(key, |(repository, _)| repository),
    }
}

/// The error for an image that is not there: the names it may have been meant to be, and the remedy.
pub(super) fn absent(text: &str, names: &NamesRecord) -> Error {
    let near = near(text, names.names.keys().map(String::as_str));
    let meant = if near.is_empty() { String::new() } else { format!(" (did you mean {}?)", near.join(" or ")) };
    Error::not_found(format!(
        "image {text:?} is not in the store{meant}; `podwright pull` or `podwright import FILE` brings it, `podwright images` shows what is there"
    ))
}

/// The names that `text` may have been meant to be: those of the same repository or of the same last part, else one that is spelled nearly so.
fn near<'a>(text: &str, names: impl Iterator<Item = &'a str> + Clone) -> Vec<&'a str> {
    /// More would be the table of images.
    const MAX_NEAR: usize = 3;
    let Ok(wanted) = text.parse::<Reference>() else { return Vec::new() };
    // Only the last part is compared: long equal beginnings would make all names look alike.
    let last = |repository: &str| repository.rsplit('/').next().unwrap_or_default().to_owned();
    let wanted = last(&wanted.repository());
    let parts: Vec<String> = names.clone().map(|name| last(repository(name))).collect();
    let meant = did_you_mean(&wanted, parts.iter().map(String::as_str));
    names.filter(|name| Some(last(repository(name)).as_str()) == meant).take(MAX_NEAR).collect()
}

pub(super) fn open_lock(path: &Path) -> Result<File> {
    let mut open = std::fs::OpenOptions::new();
    open.read(true).write(true).create(true).truncate(false).mode(0o600);
    open.open(path).context(|| format!("open {}", path.display()))
}

/// The names in a directory of ours; none when it is gone.
pub(super) fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(|| format!("list {}", dir.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("list {}", dir.display()))?;
        names.extend(entry.file_name().into_string().ok()); // all names of ours are ASCII
    }
    Ok(names)
}

pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).context(|| format!("fsync {}", dir.display()))
}

/// Removes a file; that it is gone already is what was wanted.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn an_absent_image_is_told_with_the_names_it_may_have_been_meant_to_be() {
        let names = ["docker.io/library/busybox:1.36", "docker.io/library/nginx:1.27", "registry.k8s.io/pause:3.10"];
        let near = |text: &str| near(text, names.into_iter());
        assert_eq!(near("busybox"), ["docker.io/library/busybox:1.36"], "another tag");
        assert_eq!(near("pause:3.10"), ["registry.k8s.io/pause:3.10"], "another registry");
        assert_eq!(near("ngnix"), ["docker.io/library/nginx:1.27"], "a slip");
        assert_eq!(near("postgres"), [""; 0]);
        assert_eq!(near("Not A Name"), [""; 0]);
    }
}
