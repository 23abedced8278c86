//! The calls that name a file by a directory and one component: mkdirat(2), mknodat(2), symlinkat(2), linkat(2), unlinkat(2),
//! fstatat(2), fchownat(2), utimensat(2); below a directory, openat2(2); and fchown(2), fchmod(2), futimens(3), syncfs(2) on what is open.
//!
//! None but openat2 follows a symlink in the last component.

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

pub use rustix::fs::{CWD, OFlags, ResolveFlags};

/// What stands at a name (inode(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    File,
    Directory,
    Symlink,
    /// With its device number, as makedev(3) encodes it.
    Char(u64),
    Block(u64),
    Fifo,
    Socket,
}

/// A node that mknodat(2) makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

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

/// Opens what an `O_PATH` descriptor is of, whatever has its name by now: open(2) of /proc/self/fd/N. Always close-on-exec.
///
/// # Errors
/// Those of open(2).
pub fn reopen(place: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// `mkdirat`; `mode` is not changed by a umask of 0.
///
/// # Errors
/// Those of mkdirat(2).
pub fn mkdirat(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
}

/// `mknodat`.
///
/// # Errors
/// Those of mknodat(2).
pub fn mknodat(dir: BorrowedFd<'_>, name: &OsStr, node: Special, mode: u32) -> io::Result<()> {
    let (kind, device) = match node {
        Special::Char { major, minor } => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
        Special::Block { major, minor } => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        Special::Fifo => (FileType::Fifo, 0),
    };
    Ok(rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), device)?)
}

/// `symlinkat`.
///
/// # Errors
/// Those of symlinkat(2).
pub fn symlinkat(target: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// `linkat` with no flags: a symlink is linked itself.
///
/// # Errors
/// Those of linkat(2).
pub fn linkat(from: BorrowedFd<'_>, old: &OsStr, to: BorrowedFd<'_>, new: &OsStr) -> io::Result<()> {
    Ok(rustix::fs::linkat(from, old, to, new, AtFlags::empty())?)
}

/// Gives a name to a file that was opened with `O_TMPFILE`; `EEXIST` when the name is taken: `linkat` with `AT_SYMLINK_FOLLOW`, open(2).
///
/// # Errors
/// Those of linkat(2).
pub fn name_open(file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    Ok(rustix::fs::linkat(rustix::fs::CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// `unlinkat`, with `AT_REMOVEDIR` for an empty directory.
///
/// # Errors
/// Those of unlinkat(2).
pub fn unlinkat(dir: BorrowedFd<'_>, name: &OsStr, directory: bool) -> io::Result<()> {
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    Ok(rustix::fs::unlinkat(dir, name, flags)?)
}

/// `fstatat` with `AT_SYMLINK_NOFOLLOW`; `None` when nothing has that name.
///
/// # Errors
/// Those of fstatat(2) but `ENOENT`.
pub fn statat(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Node>> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        stat => stat?,
    };
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Node::Directory,
        FileType::Symlink => Node::Symlink,
        FileType::CharacterDevice => Node::Char(stat.st_rdev),
        FileType::BlockDevice => Node::Block(stat.st_rdev),
        FileType::Fifo => Node::Fifo,
        FileType::Socket => Node::Socket,
        _ => Node::File,
    }))
}

/// `fchownat` with `AT_SYMLINK_NOFOLLOW`.
///
/// # Errors
/// Those of fchownat(2).
pub fn chownat(dir: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// `fchown`.
///
/// # Errors
/// Those of fchown(2).
pub fn fchown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    Ok(rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// `fchmod`; `mode` may hold the set-id and sticky bits.
///
/// # Errors
/// Those of fchmod(2).
pub fn fchmod(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?)
}

fn both(seconds: i64, nanoseconds: u32) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// `futimens`: access and modification time, in seconds and nanoseconds (below 10^9) since the epoch.
///
/// # Errors
/// Those of futimens(3).
pub fn futimens(fd: BorrowedFd<'_>, seconds: i64, nanoseconds: u32) -> io::Result<()> {
    Ok(rustix::fs::futimens(fd, &both(seconds, nanoseconds))?)
}

/// `utimensat` with `AT_SYMLINK_NOFOLLOW`, as [`futimens`].
///
/// # Errors
/// Those of utimensat(2).
pub fn utimensat(dir: BorrowedFd<'_>, name: &OsStr, seconds: i64, nanoseconds: u32) -> io::Result<()> {
    Ok(rustix::fs::utimensat(dir, name, &both(seconds, nanoseconds), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// `syncfs`: everything written to the filesystem that `fd` is on is on the disk when this returns.
///
/// # Errors
/// Those of syncfs(2): `EIO` and `ENOSPC` of writes that were still in the page cache.
pub fn syncfs(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fd)?)
}

/// The names in an open directory (not one opened with `O_PATH`), without `.` and `..`: all of them.
///
/// # Errors
/// Those of getdents64(2); `EOVERFLOW` when there are more than `bound`.
pub fn names(dir: BorrowedFd<'_>, bound: usize) -> io::Result<Vec<OsString>> {
    let names = some_names(dir, bound.saturating_add(1))?;
    if names.len() > bound { Err(rustix::io::Errno::OVERFLOW.into()) } else { Ok(names) }
}

/// The same; not more than `most` of them, for who comes again.
///
/// # Errors
/// Those of getdents64(2).
pub fn some_names(dir: BorrowedFd<'_>, most: usize) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        if names.len() == most {
            break;
        }
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(OsStr::from_bytes(name).as_bytes().to_vec()));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn more_names_than_expected_are_an_error_and_never_cut() {
        let dir = tempfile::tempdir().expect("tempdir");
        for name in ["a", "b", "c"] {
            mkdirat(std::fs::File::open(dir.path()).expect("open").as_fd(), OsStr::new(name), 0o700).expect("mkdir");
        }
        let open = || std::fs::File::open(dir.path()).expect("open");
        assert_eq!(names(open().as_fd(), 3).expect("three").len(), 3);
        assert_eq!(names(open().as_fd(), 2).expect_err("more").raw_os_error(), Some(75)); // EOVERFLOW
        assert_eq!(some_names(open().as_fd(), 2).expect("some").len(), 2);
    }
}
