//! What writable layers take on disk: walked, and remembered for a while, for a kubelet asks every ten seconds.

use crate::engine::Engine;
use crate::id::ContainerId;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a walk's result is good for.
const FRESH: Duration = Duration::from_secs(10);
/// Files that one walk looks at, at most: of a larger layer the size is too small, and the walk still ends.
const MAX_FILES: u64 = 4 << 20;
/// Bytes of a block as stat(2) counts them.
const BLOCK_BYTES: u64 = 512;

/// Bytes and inodes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Used {
    pub bytes: u64,
    pub inodes: u64,
}

/// What was walked last, and when.
#[derive(Debug, Clone, Default)]
pub(super) struct Cache(Arc<Mutex<HashMap<ContainerId, (Instant, Used)>>>);

impl Cache {
    fn known(&self) -> MutexGuard<'_, HashMap<ContainerId, (Instant, Used)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a container has written. Blocks.
    pub(super) fn of(&self, engine: &Engine, id: &ContainerId) -> Used {
        let known = self.known().get(id).copied();
        if let Some((_, used)) = known.filter(|(at, _)| at.elapsed() < FRESH) {
            return used;
        }
        let used = walk(&engine.paths().writable(id).join("upper"));
        self.known().insert(id.clone(), (Instant::now(), used));
        used
    }

    /// Something was removed: what is too old to be believed goes, the removed with it. Not by its name, for a walk of it may end later.
    pub(super) fn prune(&self) {
        self.known().retain(|_, (at, _)| at.elapsed() < FRESH);
    }
}

/// As du(1) and `df -i` would say it; what goes meanwhile counts or does not.
fn walk(top: &Path) -> Used {
    let mut used = Used::default();
    let mut open: Vec<PathBuf> = vec![top.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            used.inodes += 1;
            used.bytes += metadata.blocks() * BLOCK_BYTES;
            if used.inodes >= MAX_FILES {
                return used;
            }
            if metadata.is_dir() {
                open.push(entry.path());
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_takes_what_its_files_take() {
        let temp = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(temp.path().join("d")).expect("mkdir");
        std::fs::write(temp.path().join("d/f"), vec![1; 10_000]).expect("write");
        let used = walk(temp.path());
        assert_eq!(used.inodes, 2);
        assert!(used.bytes >= 10_000, "{used:?}");
        assert_eq!(walk(&temp.path().join("gone")), Used::default());
    }
}
