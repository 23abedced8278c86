//! A pod's network namespace at a path of its own, as `ip netns` and other runtimes have them: `/run/netns/podwright-POD`.
//!
//! The one mount that podwright makes on the host, and for pods on CNI only. Agents in pods of their own open that path, and the namespace
//! outlives its pause process until the DEL is done: plugins find by the interface inside what is outside of it (Debian's bridge, its
//! rules for masquerading), and without it those would stay. A reboot takes it along, with all that.

use crate::error::{Context, Result};
use crate::id::PodId;
use crate::sys;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where a pod's namespace is bound.
pub fn path(directory: &Path, pod: &PodId) -> PathBuf {
    directory.join(format!("podwright-{pod}"))
}

/// Binds a namespace at a path; one that is bound there stays.
///
/// # Errors
/// Those of mount(2), naming the path.
pub fn pin(netns: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let doing = || format!("bind the pod's network namespace at {}", path.display());
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).context(doing)?;
    }
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o444).open(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => drop(made.context(doing)?),
    }
    if is_pinned(path) { Ok(()) } else { sys::mount::bind(netns, path).context(doing) }
}

/// Whether a namespace is bound there.
pub fn is_pinned(path: &Path) -> bool {
    sys::fs::is_namespace(path)
}

/// Takes the binding and its file away; what is not there is no error.
///
/// # Errors
/// Those of umount(2) and unlink(2), naming the path.
pub fn unpin(path: &Path) -> Result<()> {
    if is_pinned(path) {
        sys::mount::unmount(path).context(|| format!("unmount {}", path.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("remove {}", path.display())),
    }
}
