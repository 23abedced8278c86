//! Images whose record cannot be read: shown, in nobody's way, and kept. What is whole is none of this file's.
//!
//! Such an image cannot be run, and everything else goes on: others are listed, run, removed and pruned. Nothing of it is taken away
//! but by `rmi`: its layers are told from its config blob, and where that cannot be read either no layer at all is collected. Importing the
//! image again makes it whole; the record that could not be read is then set aside as `images/<id>.json.damaged`, for whoever wants to know.

use super::{ImageRecord, Store};
use crate::error::{Context, Error, Result};
use crate::id::Digest;
use crate::image::oci;
use crate::state::record::{self, Durability};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What to do about one.
pub(in crate::image) const REMEDY: &str = "import it again, or remove it with `podwright rmi`";

/// An image whose record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    pub id: Digest,
    /// `repository:tag` or `repository@digest`, sorted; may be empty.
    pub names: Vec<String>,
    /// What is wrong with which file, and the remedy.
    pub why: String,
}

/// An image whose record cannot be read, and why.
pub(in crate::image) type Unreadable = (Digest, Error);

impl Store {
    /// The images whose records cannot be read, by id.
    ///
    /// # Errors
    /// `Internal` when the names cannot be read.
    pub fn damaged(&self) -> Result<Vec<Damaged>> {
        let _held = self.hold()?;
        let names = self.names()?;
        let damaged = |(id, e): Unreadable| Damaged {
            names: names.names.iter().filter(|(_, named)| named.image == id).map(|(name, _)| name.clone()).collect(),
            why: format!("{e}; {REMEDY}"),
            id,
        };
        Ok(self.image_records()?.1.into_iter().map(damaged).collect())
    }

    /// The hex digits of the layers of images whose records cannot be read; `None` when their configs do not say it either.
    pub(in crate::image) fn layers_of_unreadable(&self, unreadable: &[Unreadable]) -> Option<BTreeSet<String>> {
        let mut layers = BTreeSet::new();
        for (id, _) in unreadable {
            let blob = std::fs::read(self.blobs().join(id.hex())).ok()?;
            let whole = Digest::from_sha256(&Sha256::digest(&blob).into()) == *id;
            let config = oci::config(&blob).ok().filter(|_| whole)?;
            layers.extend(config.diff_ids.iter().map(|l| l.hex().to_owned()));
        }
        Some(layers)
    }

    /// Where a record that could not be read is kept once another has taken its place.
    pub(in crate::image) fn set_aside(&self, id: &Digest) -> PathBuf {
        self.records().join(format!("{}.json.damaged", id.hex()))
    }

    /// Keeps a record that cannot be read and is about to be replaced.
    pub(super) fn keep_unreadable(&self, id: &Digest) -> Result<()> {
        let path = self.record(id);
        if record::read::<ImageRecord>(&path).is_ok() {
            return Ok(());
        }
        // A copy: until the new one is there, this one must be found as damaged.
        let bytes = std::fs::read(&path).context(|| format!("read {}", path.display()))?;
        record::write_bytes(&self.set_aside(id), &bytes, 0o600, Durability::Disk)
    }
}
