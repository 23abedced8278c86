//! A session: one process's work on the store, that is either committed whole or leaves nothing, whatever happens to the process.

use super::{ImageRecord, LayerRecord, Lock, Named, Store, list, open_lock, remove_file, sync_dir};
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::{Digest, InstanceId};
use crate::image::reference::Reference;
use crate::image::unpack::Unpacked;
use crate::image::unpack::spawn::{self, Blob};
use crate::state::record::{self, Durability};
use crate::sys;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What is told of a layer while it is made; for bars and logs. Called from several threads.
pub trait Progress: Sync {
    fn layer(&self, diff_id: &Digest, event: Event);
}

/// See [`Progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is there already.
    Exists,
    /// Its blob has so many bytes, when that is known.
    Started {
        bytes: Option<u64>,
    },
    /// So many of them were read.
    Read {
        bytes: u64,
    },
    Done,
}

/// For callers without a terminal.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn layer(&self, _: &Digest, _: Event) {}
}

/// An image whose layers are in the store.
#[derive(Debug)]
pub struct NewImage {
    pub record: ImageRecord,
    /// Config and manifest: digest and bytes, verified.
    pub blobs: Vec<(Digest, Vec<u8>)>,
    pub names: Vec<Reference>,
    /// See [`Named::target`].
    pub target: Option<Digest>,
    /// See [`Named::pulled`].
    pub pulled: bool,
}

/// What a layer has to turn out to be.
#[derive(Debug, Clone)]
pub struct Expected {
    pub diff_id: Digest,
    /// The blob's digest, when something says it.
    pub blob: Option<Digest>,
    pub bytes: Option<u64>,
}

/// A session; dropped without [`Session::commit`] it takes back what it made.
#[derive(Debug)]
pub struct Session<'a> {
    store: &'a Store,
    dir: PathBuf,
    lock: File,
}

impl Store {
    /// Starts a session.
    ///
    /// # Errors
    /// `Internal` and `ResourceExhausted`, naming the path.
    pub fn session(&self) -> Result<Session<'_>> {
        let dir = self.tmp().join(InstanceId::random().as_str());
        let session = {
            let _lock = self.exclusive()?; // a sweep must not see the directory before its lock is held
            mkdir(&dir)?;
            let locked = open_lock(&dir.join("lock")).and_then(|lock| {
                sys::flock(lock.as_fd(), true).context(|| format!("flock {}", dir.display()))?;
                Ok(lock)
            });
            Session { store: self, dir, lock: locked? } // an error leaves what the next sweep takes
        };
        mkdir(&session.uses())?;
        mkdir(&session.made())?;
        fault::point("image.session.started");
        Ok(session)
    }
}

fn mkdir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(dir).context(|| format!("mkdir {}", dir.display()))
}

fn touch(path: &Path) -> Result<()> {
    open_lock(path).map(drop)
}

impl Session<'_> {
    pub(super) fn uses(&self) -> PathBuf {
        self.dir.join("uses")
    }

    fn made(&self) -> PathBuf {
        self.dir.join("made")
    }

    /// A new directory of this session's, gone with it.
    ///
    /// # Errors
    /// `Internal`, naming the path.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        mkdir(&dir)?;
        Ok(dir)
    }

    /// Where a file of this session's may be made, gone with it.
    pub(in crate::image) fn file(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join("files");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .context(|| format!("mkdir {}", dir.display()))?;
        Ok(dir.join(name))
    }

    /// What a worker holds, so that nobody sweeps under it.
    pub(in crate::image) fn hold(&self) -> &File {
        &self.lock
    }

    pub(in crate::image) fn program(&self) -> &spawn::Program {
        self.store.program()
    }

    /// Has a layer in the store and keeps it there for this session: finds it, or lets `give` give its blob to a worker, which unpacks it; given
    /// another one, a worker begins anew.
    /// Blocks; called from several threads for different layers.
    ///
    /// # Errors
    /// `InvalidArgument` for a digest or size that is another, with both values; those of `give`, the worker's among them;
    /// `ResourceExhausted` for a full disk.
    pub fn layer(
        &self,
        expected: &Expected,
        progress: &dyn Progress,
        give: impl FnOnce(&mut dyn FnMut(Blob) -> Result<Unpacked>) -> Result<Unpacked>,
    ) -> Result<LayerRecord> {
        let id = &expected.diff_id;
        {
            let _lock = self.store.exclusive()?;
            touch(&self.uses().join(id.hex()))?;
            if let Some(found) = record::read(&self.store.layer(id).join("layer.json"))? {
                progress.layer(id, Event::Exists);
                return Ok(found);
            }
        }
        progress.layer(id, Event::Started { bytes: expected.bytes });
        let made = self.make(expected, progress, give).context(|| format!("layer {id}"))?;
        self.publish(id)?;
        progress.layer(id, Event::Done);
        Ok(made)
    }

    fn make(
        &self,
        expected: &Expected,
        progress: &dyn Progress,
        give: impl FnOnce(&mut dyn FnMut(Blob) -> Result<Unpacked>) -> Result<Unpacked>,
    ) -> Result<LayerRecord> {
        let dir = self.scratch(expected.diff_id.hex())?;
        let fs = dir.join("fs");
        let mut read = |bytes| progress.layer(&expected.diff_id, Event::Read { bytes });
        let done = give(&mut |blob| {
            // What was given before turned out to be another blob.
            if fs.exists() {
                std::fs::remove_dir_all(&fs).context(|| format!("remove {}", fs.display()))?;
            }
            std::fs::DirBuilder::new().mode(0o755).create(&fs).context(|| format!("mkdir {}", fs.display()))?;
            spawn::layer(self.store.program(), blob, &fs, &self.lock, &mut read)
        })?;
        fault::point("image.import.unpacked");
        if let Some(wanted) = expected.blob.as_ref().filter(|wanted| **wanted != done.blob) {
            return Err(Error::invalid(format!("its blob's digest is {}, the manifest says {wanted}", done.blob)));
        }
        if done.diff_id != expected.diff_id {
            let (is, says) = (&done.diff_id, &expected.diff_id);
            return Err(Error::invalid(format!(
                "its uncompressed digest (diff id) is {is}, the image's config says {says}"
            )));
        }
        let made = LayerRecord {
            diff_id: done.diff_id,
            blob: done.blob,
            blob_bytes: done.blob_bytes,
            unpacked_bytes: done.unpacked_bytes,
            entries: done.entries,
            opaque_root: done.opaque_root,
        };
        record::write(&dir.join("layer.json"), &made, Durability::Boot)?; // synced with everything else just below
        File::open(&dir).and_then(|d| sys::at::syncfs(d.as_fd())).context(|| format!("syncfs {}", dir.display()))?;
        fault::point("image.import.synced");
        Ok(made)
    }

    /// Renames a made layer into place, unless somebody else was faster.
    fn publish(&self, id: &Digest) -> Result<()> {
        let (from, to) = (self.dir.join(id.hex()), self.store.layer(id));
        let _lock = self.store.exclusive()?;
        if to.join("layer.json").exists() {
            return Ok(()); // ours goes with the session
        }
        touch(&self.made().join(id.hex()))?;
        std::fs::rename(&from, &to).context(|| format!("rename {} to {}", from.display(), to.display()))?;
        fault::point("image.import.renamed");
        sync_dir(&self.store.layers())
    }

    /// Makes images of what is there, and gives them their names. All of them, or none that was not there before.
    ///
    /// # Errors
    /// `ResourceExhausted` for a full disk, `Internal` else; then nothing is left.
    pub fn commit(self, images: &[NewImage]) -> Result<()> {
        let lock = self.store.exclusive()?;
        let mut added = Vec::new();
        let committed = self.write(images, &lock, &mut added);
        if committed.is_err() {
            for path in added.iter().rev() {
                let _ = std::fs::remove_file(path); // the first error is the one to tell; a prune takes the rest
            }
        }
        drop(lock);
        committed
    }

    fn write(&self, images: &[NewImage], lock: &Lock, added: &mut Vec<PathBuf>) -> Result<()> {
        let mut names = self.store.names()?;
        for image in images {
            let blobs = image.blobs.iter().map(|(digest, bytes)| (self.store.blobs().join(digest.hex()), bytes));
            for (path, bytes) in blobs.filter(|(path, _)| !path.exists()) {
                record::write_bytes(&path, bytes, 0o600, Durability::Disk)?;
                added.push(path);
            }
            fault::point("image.import.blobs");
            let path = self.store.record(&image.record.id);
            let new = !path.exists();
            self.store.keep_unreadable(&image.record.id)?;
            record::write(&path, &image.record, Durability::Disk)?;
            if new {
                added.push(path);
            }
            fault::point("image.import.recorded");
            for name in &image.names {
                let (target, pulled) = (image.target.clone(), image.pulled);
                let named = Named { image: image.record.id.clone(), target, pulled };
                names.names.insert(name.key(), named);
            }
        }
        self.store.write_names(&names, lock)?;
        fault::point("image.import.named");
        Ok(())
    }

    /// Moves something of the store's into the session, to go with it.
    pub(in crate::image) fn trash(&self, path: &Path) -> Result<()> {
        let to = self.dir.join(format!("gone-{}", path.file_name().unwrap_or_default().to_string_lossy()));
        match std::fs::rename(path, &to) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            moved => moved.context(|| format!("rename {} to {}", path.display(), to.display())),
        }
    }
}

impl Store {
    /// Finds an image as [`Store::lookup`], and keeps its layers for a session; with all its names.
    ///
    /// # Errors
    /// As [`Store::lookup`].
    pub(in crate::image) fn keep(&self, text: &str, session: &Session<'_>) -> Result<(ImageRecord, Vec<String>)> {
        let _lock = self.exclusive()?;
        let image = self.lookup(text)?;
        let record: Option<ImageRecord> = record::read(&self.record(&image.id))?;
        let record = record.ok_or_else(|| Error::internal(format!("image {} was just there", image.id)))?;
        record.layers.iter().try_for_each(|layer| touch(&session.uses().join(layer.diff_id.hex())))?;
        Ok((record, image.names))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // What fails here is left in a directory whose lock is free from now on: the next open sweeps it.
        let _ = self.store.end_session(&self.dir);
    }
}

impl Store {
    /// Ends a session whose lock this process holds: collects the layers that it made and nothing refers to, then removes its directory.
    ///
    /// # Errors
    /// `Internal`; what is left is swept later.
    fn end_session(&self, dir: &Path) -> Result<()> {
        let lock = self.exclusive()?;
        let made = list(&dir.join("made"))?;
        // `None`: nobody knows which layers a damaged image needs, and they stay.
        if !made.is_empty()
            && let Ok(Some(referenced)) = self.referenced(Some(dir))
        {
            for name in made.iter().filter(|name| !referenced.contains(*name)) {
                let _ = std::fs::rename(self.layers().join(name), dir.join(format!("gone-{name}"))); // absent: never published
            }
        }
        drop(lock);
        // The lock goes last, so that what is left by a kill here is still told as dead.
        for name in list(dir)?.iter().filter(|name| *name != "lock") {
            let path = dir.join(name);
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.context(|| format!("remove {}", path.display()))?;
        }
        let _lock = self.exclusive()?; // a sweep that has seen the directory opens the lock in it, and would make it anew
        remove_file(&dir.join("lock"))?;
        std::fs::remove_dir(dir).context(|| format!("rmdir {}", dir.display()))
    }

    /// Ends the sessions of dead processes.
    ///
    /// # Errors
    /// `Internal`, naming what cannot be removed.
    pub(super) fn sweep(&self) -> Result<()> {
        for name in list(&self.tmp())? {
            let dir = self.tmp().join(name);
            let owned = {
                let _lock = self.exclusive()?;
                // Gone since the listing: another process swept it. Without a lock: it was killed while starting or ending.
                if !dir.exists() {
                    continue;
                }
                let lock = open_lock(&dir.join("lock"))?;
                sys::try_flock(lock.as_fd()).context(|| format!("flock {}", dir.display()))?.then_some(lock)
            };
            if owned.is_some() {
                self.end_session(&dir)?;
            }
        }
        Ok(())
    }
}
