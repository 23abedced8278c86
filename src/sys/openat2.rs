//! `openat2(dirfd, path, how, size)`, openat2(2): opening below a directory, whoever else renames in it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

pub use rustix::fs::{OFlags, ResolveFlags};

/// Opens `path` below `dir`. `mode` counts only with `O_CREAT` (0 otherwise, or the kernel says `EINVAL`). Always close-on-exec.
///
/// # Errors
/// Those of openat2(2): `EXDEV` for a path that leaves `dir` under `RESOLVE_BENEATH`, `ELOOP` for a forbidden symlink. `EAGAIN`
/// (a rename raced with a `..`) is tried again, 64 times at most.
pub fn openat2(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: u32,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    const TRIES: u32 = 64;
    let mut tries = 0;
    loop {
        tries += 1;
        let mode = rustix::fs::Mode::from_raw_mode(mode);
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if tries < TRIES => {}
            opened => return Ok(opened?),
        }
    }
}
