//! What takes away: `rmi`, `prune`, and which layers and blobs something still needs.
//!
//! Deciding and renaming away happen under the exclusive lock, deleting after it. What containers use is asked for under that lock, so a
//! container that was recorded under [`Store::hold`] is always seen.

use super::store::{ImageRecord, NamesRecord, Store, absent, list, remove_file, sync_dir};
use crate::error::{Error, Result};
use crate::fault;
use crate::id::Digest;
use crate::image::reference::Reference;
use crate::state::record;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What containers have in use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InUse {
    pub images: BTreeSet<Digest>,
    /// As [`super::store::Image::layers`] gives them.
    pub layers: BTreeSet<PathBuf>,
    /// [`Reference::key`]s by which pods will look for their images when they start a container again.
    pub names: BTreeSet<String>,
    /// Why it is not known what else is in use: records that cannot be read, a sentence each. Then nothing is taken away.
    pub unknown: Vec<String>,
}

impl InUse {
    /// The same, when nothing else can be in use.
    ///
    /// # Errors
    /// `FailedPrecondition`, naming what cannot be read.
    fn complete(self) -> Result<InUse> {
        if self.unknown.is_empty() {
            return Ok(self);
        }
        let unknown = self.unknown.join("; ");
        Err(Error::precondition(format!(
            "nothing is removed while it is not known what a pod uses: {unknown}; repair what cannot be read, or move it away"
        )))
    }

    fn has(&self, id: &Digest, names: &NamesRecord) -> bool {
        let named = |key: &String| names.names.get(key).is_some_and(|named| named.image == *id);
        self.images.contains(id) || self.names.iter().any(named)
    }
}

/// What was taken away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Names that are gone.
    pub names: Vec<String>,
    /// Images that are gone.
    pub images: Vec<Digest>,
    /// Layers that are gone.
    pub layers: Vec<Digest>,
    /// What they took.
    pub bytes: u64,
}

/// Which images `prune` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// Those without a name.
    Nameless,
    /// All that no container uses.
    Unused,
}

impl Store {
    /// Removes a name, and with its last name the image; an id removes the image with all its names. `in_use` is asked under the lock.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when the image would go and a container uses it, or a pod the name; what `in_use` returns.
    pub fn remove(&self, text: &str, in_use: &dyn Fn() -> Result<InUse>) -> Result<Removed> {
        let session = self.session()?;
        let lock = self.exclusive()?;
        let mut names = self.names()?;
        let id = self.resolve(text, &names)?;
        // One that cannot be read is removed like any other: what it is good for is gone.
        if !self.record(&id).exists() {
            return Err(absent(text, &names));
        }
        let key = text.parse::<Reference>().ok().map(|r| r.key()).filter(|k| names.names.contains_key(k));
        let others = names.names.iter().filter(|(k, n)| n.image == id && Some(*k) != key.as_ref()).count();
        let mut removed = Removed::default();
        if let Some(key) = key
            && others > 0
        {
            if in_use()?.complete()?.names.contains(&key) {
                return Err(used(text));
            }
            names.names.remove(&key);
            self.write_names(&names, &lock)?;
            removed.names.push(key);
            return Ok(removed);
        }
        let in_use = in_use()?.complete()?;
        if in_use.has(&id, &names) {
            return Err(used(text));
        }
        forget(&mut names, &id, &mut removed);
        self.write_names(&names, &lock)?;
        fault::point("image.remove.unnamed");
        self.drop_records(&[id], &mut removed)?;
        self.collect(&in_use, &session, &mut removed)?;
        drop(lock);
        Ok(removed)
    }

    /// What [`Store::prune`] would take away at this moment. Changes nothing.
    ///
    /// # Errors
    /// What `in_use` returns; `Internal`.
    pub fn prunable(&self, which: Prune, in_use: &dyn Fn() -> Result<InUse>) -> Result<Removed> {
        let _lock = self.hold()?;
        let (in_use, names) = (in_use()?.complete()?, self.names()?);
        let (records, unreadable) = self.image_records()?;
        let (goes, stays): (Vec<_>, Vec<_>) = records.into_iter().partition(|r| goes(r, which, &in_use, &names));
        let mut removed = Removed::default();
        for record in &goes {
            forget(&mut names.clone(), &record.id, &mut removed);
            removed.images.push(record.id.clone());
        }
        let mut needed: BTreeSet<String> =
            stays.iter().flat_map(|r| &r.layers).map(|l| l.diff_id.hex().to_owned()).collect();
        match self.layers_of_unreadable(&unreadable) {
            Some(layers) => needed.extend(layers),
            None => return Ok(removed),
        }
        for session in list(&self.tmp())? {
            needed.extend(list(&self.tmp().join(session).join("uses"))?);
        }
        for name in list(&self.layers())?.into_iter().filter(|name| !needed.contains(name)) {
            let dir = self.layers().join(&name);
            let layer = record::read::<super::store::LayerRecord>(&dir.join("layer.json"));
            if let (Ok(Some(layer)), false) = (layer, in_use.layers.contains(&dir.join("fs"))) {
                removed.bytes += layer.unpacked_bytes;
                removed.layers.push(layer.diff_id);
            }
        }
        Ok(removed)
    }

    /// Removes images that nothing uses and no pin keeps, and every layer and blob that no image, container or session needs.
    ///
    /// # Errors
    /// What `in_use` returns; `Internal`.
    pub fn prune(&self, which: Prune, in_use: &dyn Fn() -> Result<InUse>) -> Result<Removed> {
        let session = self.session()?;
        let lock = self.exclusive()?;
        let in_use = in_use()?.complete()?;
        let mut names = self.names()?;
        let (mut records, _) = self.image_records()?;
        records.retain(|r| goes(r, which, &in_use, &names));
        let mut removed = Removed::default();
        if !records.is_empty() {
            records.iter().for_each(|r| forget(&mut names, &r.id, &mut removed));
            self.write_names(&names, &lock)?;
        }
        fault::point("image.prune.unnamed");
        let ids: Vec<Digest> = records.into_iter().map(|r| r.id).collect();
        self.drop_records(&ids, &mut removed)?;
        self.collect(&in_use, &session, &mut removed)?;
        drop(lock);
        Ok(removed)
    }

    /// Finishes what somebody who was killed had begun: takes away layers and blobs that no image, container or session needs. Images stay.
    ///
    /// # Errors
    /// What `in_use` returns; `Internal`.
    pub fn collect_unneeded(&self, in_use: &dyn Fn() -> Result<InUse>) -> Result<Removed> {
        let session = self.session()?;
        let lock = self.exclusive()?;
        let mut removed = Removed::default();
        self.collect(&in_use()?.complete()?, &session, &mut removed)?;
        drop(lock);
        Ok(removed)
    }

    fn drop_records(&self, ids: &[Digest], removed: &mut Removed) -> Result<()> {
        for id in ids {
            remove_file(&self.record(id))?;
            remove_file(&self.set_aside(id))?;
            removed.images.push(id.clone());
        }
        // Layers may only go once it is certain that no record will come back to name them.
        sync_dir(&self.records())
    }

    /// The hex digits of the layers that images and sessions need, but for the session in `except`. `None`: nobody knows, for a record
    /// cannot be read, and neither can its image's config.
    pub(super) fn referenced(&self, except: Option<&Path>) -> Result<Option<BTreeSet<String>>> {
        let (records, unreadable) = self.image_records()?;
        let Some(mut needed) = self.layers_of_unreadable(&unreadable) else { return Ok(None) };
        needed.extend(records.iter().flat_map(|r| &r.layers).map(|l| l.diff_id.hex().to_owned()));
        for name in list(&self.tmp())? {
            let dir = self.tmp().join(name);
            if Some(dir.as_path()) != except {
                needed.extend(list(&dir.join("uses"))?);
            }
        }
        Ok(Some(needed))
    }

    fn collect(
        &self,
        in_use: &InUse,
        session: &super::store::session::Session<'_>,
        removed: &mut Removed,
    ) -> Result<()> {
        // While nobody knows what a damaged image needs, everything stays.
        let Some(needed) = self.referenced(None)? else { return Ok(()) };
        for name in list(&self.layers())?.into_iter().filter(|name| !needed.contains(name)) {
            let dir = self.layers().join(&name);
            if in_use.layers.contains(&dir.join("fs")) {
                continue;
            }
            if let Ok(Some(layer)) = record::read::<super::store::LayerRecord>(&dir.join("layer.json")) {
                removed.bytes += layer.unpacked_bytes;
                removed.layers.push(layer.diff_id);
            }
            session.trash(&dir)?;
            fault::point("image.collect.layer");
        }
        let mut blobs = BTreeSet::new();
        let (records, unreadable) = self.image_records()?;
        if !unreadable.is_empty() {
            return Ok(()); // which manifest is theirs stands in the record only; they are small
        }
        for record in records {
            blobs.extend([Some(record.id), record.manifest].into_iter().flatten().map(|d| d.hex().to_owned()));
        }
        for name in list(&self.blobs())?.into_iter().filter(|name| !blobs.contains(name)) {
            remove_file(&self.blobs().join(name))?;
        }
        Ok(())
    }
}

/// Whether an image is one that `prune` takes.
fn goes(image: &ImageRecord, which: Prune, in_use: &InUse, names: &NamesRecord) -> bool {
    let kept = in_use.has(&image.id, names) || names.pinned.contains(&image.id);
    !kept && (which == Prune::Unused || !names.names.values().any(|n| n.image == image.id))
}

fn used(text: &str) -> Error {
    Error::precondition(format!("image {text} is used by a container; stop its pod first"))
}

fn forget(names: &mut NamesRecord, id: &Digest, removed: &mut Removed) {
    names.pinned.remove(id);
    names.names.retain(|name, named| {
        let keep = named.image != *id;
        if !keep {
            removed.names.push(name.clone());
        }
        keep
    });
}
