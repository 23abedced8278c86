//! Turns: what several processes of this host want is made by one of them, while the others wait and then find it.
//!
//! A turn is a file below `turns/`, flock(2)ed by who has it. Its end takes the file away; a kill leaves a file that nobody holds, for the next
//! one or the sweep. Whoever has it touches it while bytes come. One that shows no life for as long as a registry may be silent is waited for no
//! longer: then both make the thing, and who is second finds it there when it publishes. So a turn saves work, and nothing rests on it.

use super::{Store, list, open_lock, remove_file};
use crate::error::{Context, Error, Result};
use crate::sys;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Others that are waited for, one after the other, at most.
const MAX_BEFORE: u32 = 64;

/// See the module. Over when dropped.
#[derive(Debug)]
pub struct Turn {
    path: PathBuf,
    file: File,
}

impl Turn {
    /// Shows that whoever has it goes on.
    pub fn beat(&self) {
        let _ = self.file.set_modified(SystemTime::now()); // at worst somebody makes the same
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = remove_file(&self.path); // a file that nobody holds stands in nobody's way
    }
}

impl Store {
    /// Waits for a turn; `None` when whoever has it shows no life for `patience`. To be called within a tokio runtime.
    ///
    /// # Errors
    /// `Internal`, naming the file.
    pub async fn turn(&self, name: &str, patience: Duration) -> Result<Option<Turn>> {
        let path = self.turns().join(name);
        for _ in 0..MAX_BEFORE {
            let mut file = open_lock(&path)?;
            if !sys::try_flock(file.as_fd()).context(|| format!("flock {}", path.display()))? {
                let Some(ours) = wait(file, &path, patience).await? else { return Ok(None) };
                file = ours;
            }
            // Its last holder has taken it away, unless that one was killed.
            if is_at(&file, &path) {
                let turn = Turn { path, file };
                turn.beat(); // it may be a file of somebody killed long ago
                return Ok(Some(turn));
            }
        }
        Ok(None)
    }

    /// Takes away the files of those that were killed.
    pub(super) fn sweep_turns(&self) -> Result<()> {
        for name in list(&self.turns())? {
            let path = self.turns().join(name);
            let file = open_lock(&path)?;
            if sys::try_flock(file.as_fd()).context(|| format!("flock {}", path.display()))? && is_at(&file, &path) {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), path.metadata()) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Waits for the lock, on a thread of its own: nothing but the lock tells when it is free. Given up, that thread ends with the holder's turn.
async fn wait(file: File, path: &Path, patience: Duration) -> Result<Option<File>> {
    let seen = file.try_clone().context(|| format!("duplicate {}", path.display()))?;
    let mut waiting = spawn_blocking(move || sys::flock(file.as_fd(), true).map(|()| file));
    loop {
        match timeout(patience, &mut waiting).await {
            Ok(Ok(locked)) => return locked.context(|| format!("flock {}", path.display())).map(Some),
            Ok(Err(e)) => return Err(Error::internal(format!("the thread that waits for {}: {e}", path.display()))),
            Err(_) => {
                let touched = seen.metadata().and_then(|metadata| metadata.modified());
                let touched = touched.context(|| format!("stat {}", path.display()))?;
                // A clock that was set back counts as no life.
                if SystemTime::now().duration_since(touched).is_ok_and(|idle| idle < patience) {
                    continue;
                }
                tracing::warn!("{}: whoever makes it shows no life; it is made here as well", path.display());
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::unpack::spawn::Program;
    use crate::state::paths::Paths;

    fn store(dir: &Path) -> Store {
        let paths = Paths { root: dir.join("root"), state: dir.join("state"), instance: None };
        Store::open_with(&paths, Program::own()).expect("a store")
    }

    #[test]
    fn a_turn_is_had_by_one_and_then_by_the_next_and_leaves_no_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        // Two stores are as two processes: a lock belongs to an open file.
        let (ours, theirs) = (store(dir.path()), store(dir.path()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let long = Duration::from_secs(60);
            let first = ours.turn("a", long).await.expect("a turn").expect("nobody has it");
            assert!(theirs.turn("b", long).await.expect("another").is_some());
            assert!(
                theirs.turn("a", Duration::from_millis(50)).await.expect("waits").is_none(),
                "no life, no patience"
            );
            let next = tokio::spawn(async move { theirs.turn("a", long).await });
            tokio::task::yield_now().await;
            assert!(!next.is_finished());
            drop(first);
            drop(next.await.expect("joined").expect("a turn").expect("it is the next one's"));
            assert_eq!(list(&ours.turns()).expect("list"), [""; 0]);
        });
        drop(open_lock(&ours.turns().join("killed")).expect("left"));
        assert!(!store(dir.path()).turns().join("killed").exists());
    }
}
