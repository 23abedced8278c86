//! What is in memory beside an object and goes with it: what a list says of it, made once, and the size of a container's writable layer,
//! walked and remembered for a while, for a kubelet asks every ten seconds.
//!
//! Kept by the object itself and not by its id elsewhere: a walk that ends after the object has gone has nothing to come back to.

use super::Engine;
use super::query::ContainerStatus;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a walk's result is good for.
const FRESH: Duration = Duration::from_secs(10);
/// Files that one walk looks at, at most: of a larger layer the size is too small, and the walk still ends.
const MAX_FILES: u64 = 4 << 20;
/// Bytes of a block as stat(2) counts them.
const BLOCK_BYTES: u64 = 512;

/// Bytes and inodes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    pub bytes: u64,
    pub inodes: u64,
}

/// What goes with a pod or container.
#[derive(Default)]
pub struct Kept {
    line: OnceLock<Box<[u8]>>,
    layer: Mutex<Option<(Instant, Used)>>,
}

impl Kept {
    /// What a list says of the object in the words of whoever serves it, but for what changes. Made from its record by the first who asks.
    pub fn line(&self, make: impl FnOnce() -> Vec<u8>) -> &[u8] {
        self.line.get_or_init(|| make().into())
    }

    fn layer(&self) -> MutexGuard<'_, Option<(Instant, Used)>> {
        self.layer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the line, which is for machines.
impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("layer", &self.layer).finish_non_exhaustive()
    }
}

impl Engine {
    /// What a container has written. Blocks.
    pub fn layer_of(&self, container: &ContainerStatus) -> Used {
        let known = *container.kept.layer();
        if let Some((_, used)) = known.filter(|(at, _)| at.elapsed() < FRESH) {
            return used;
        }
        let used = walk(&self.paths().writable(&container.record.id).join("upper"));
        *container.kept.layer() = Some((Instant::now(), used));
        used
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
