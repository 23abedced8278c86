//! Records that cannot be read: shown, left where they are, and no obstacle to any other. They are neither deleted nor written over, for
//! they may have been written by a newer podwright, or be repaired; the next recovery reads them again.

use super::Engine;
use crate::error::{Context, Error, Result};
use crate::state::record::{self, Record};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

/// Characters of an id that people are shown.
const SHORT: usize = 12;

/// A record that cannot be read.
#[derive(Debug, Clone, Serialize)]
pub struct Unreadable {
    pub path: PathBuf,
    pub why: String,
}

/// What was found where a record may be.
#[derive(Debug)]
pub(super) enum Found<T> {
    Record(T),
    Nothing,
    /// There is one, and it is in quarantine now.
    Unreadable,
}

impl<T> Found<T> {
    /// Whether there is one, readable or not.
    pub(super) fn is_there(&self) -> bool {
        !matches!(self, Found::Nothing)
    }

    pub(super) fn record(self) -> Option<T> {
        match self {
            Found::Record(record) => Some(record),
            Found::Nothing | Found::Unreadable => None,
        }
    }
}

impl Engine {
    /// What cannot be read, by its path.
    pub fn unreadable(&self) -> Vec<Unreadable> {
        self.quarantine().iter().map(|(path, why)| Unreadable { path: path.clone(), why: why.clone() }).collect()
    }

    fn quarantine(&self) -> MutexGuard<'_, BTreeMap<PathBuf, String>> {
        self.0.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a record, or puts it into quarantine.
    pub(super) fn find<T: Record>(&self, path: &Path) -> Found<T> {
        match record::read::<T>(path) {
            Ok(Some(record)) => Found::Record(record),
            Ok(None) => Found::Nothing,
            Err(e) => {
                self.set_apart(path, &e);
                Found::Unreadable
            }
        }
    }

    /// Why what is there cannot be read.
    pub(super) fn why_unreadable(&self, path: &Path) -> String {
        self.quarantine().get(path).cloned().unwrap_or_default()
    }

    pub(super) fn set_apart(&self, path: &Path, why: &Error) {
        self.quarantine().insert(path.to_owned(), why.to_string());
    }

    /// Makes room for a record that is to be written: one in quarantine is renamed aside.
    pub(super) fn set_aside(&self, path: &Path) -> Result<()> {
        if !self.quarantine().contains_key(path) {
            return Ok(());
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(".unreadable");
        std::fs::rename(path, &aside).context(|| format!("rename {} aside", path.display()))?;
        self.quarantine().remove(path);
        Ok(())
    }

    /// What is removed is no longer shown.
    pub(super) fn forget_unreadable(&self, below: &Path) {
        self.quarantine().retain(|path, _| !path.starts_with(below));
    }

    /// Why a pod or container of that id is not known: there is none, or its record cannot be read.
    pub(super) fn unknown(&self, what: &str, id: &str) -> Error {
        let named = |path: &Path| path.parent().and_then(Path::file_name).is_some_and(|name| name == id);
        let short = id.get(..SHORT).unwrap_or(id);
        match self.quarantine().iter().find(|(path, _)| named(path)) {
            None => Error::not_found(format!("no {what} {short}")),
            Some((path, why)) => Error::internal(format!(
                "{what} {short} is there and cannot be used: {why}; repair it and restart the daemon, or end its shim and remove {}",
                path.parent().unwrap_or(path).display()
            )),
        }
    }
}
