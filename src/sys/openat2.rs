//! Paths inside a root that somebody else writes: `openat2(root, path, how)`, openat2(2); and making and reading what is there
//! with mkdirat(2), mknodat(2), symlinkat(2), readlinkat(2), fstat(2), fstatfs(2).

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How symbolic links in a path are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// As a chroot would, `/` and `..` ending at the root: RESOLVE_IN_ROOT. Those of /proc/PID/fd never.
    InRoot,
    /// Refused wherever they stand: RESOLVE_NO_SYMLINKS (`ELOOP`).
    Refused,
}

/// What is wanted at the end of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// A place (O_PATH), whatever it is. With [`Links::InRoot`] a link at the end is followed.
    Path,
    /// A place that is a directory.
    Directory,
    /// Its content, without waiting for a FIFO's writer and without a terminal becoming ours.
    Read,
    /// To write to it; it must exist.
    Write,
}

/// How often a resolution that raced with a rename is tried again (openat2(2), EAGAIN): a racer that wins so often gets an error.
const RACE_RETRIES: u32 = 128;

/// Opens `path` beneath `root`, never leaving it.
///
/// # Errors
/// Those of openat2(2): `ELOOP` for a link that is not allowed, `EAGAIN` when renames went on for all retries.
pub fn open_beneath(root: BorrowedFd<'_>, path: &CStr, links: Links, open: Open) -> io::Result<OwnedFd> {
    let flags = OFlags::CLOEXEC
        | match open {
            Open::Path => OFlags::PATH,
            Open::Directory => OFlags::PATH | OFlags::DIRECTORY,
            Open::Read => OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
            Open::Write => OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
        };
    let resolve = ResolveFlags::IN_ROOT
        | ResolveFlags::NO_MAGICLINKS
        | match links {
            Links::InRoot => ResolveFlags::empty(),
            Links::Refused => ResolveFlags::NO_SYMLINKS,
        };
    let path = if path.is_empty() { c"." } else { path };
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) if tries < RACE_RETRIES => tries += 1,
            Err(rustix::io::Errno::INTR) => {}
            opened => return Ok(opened?),
        }
    }
}

/// Opens `path` beneath `root` for writing, made if it is not there; what stands there is emptied. A link at its end is refused, one on the
/// way stays inside. A FIFO is not waited for, and a terminal does not become ours.
///
/// # Errors
/// Those of openat2(2): `ELOOP` for a link, `ENXIO` for a FIFO without a reader.
pub fn create_beneath(root: BorrowedFd<'_>, path: &CStr, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::CLOEXEC | OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::from_raw_mode(mode), resolve) {
            Err(rustix::io::Errno::AGAIN) if tries < RACE_RETRIES => tries += 1,
            Err(rustix::io::Errno::INTR) => {}
            opened => return Ok(opened?),
        }
    }
}

/// What stands at a place, by its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub is_dir: bool,
    pub is_file: bool,
    pub is_fifo: bool,
    /// Major and minor number of a character device.
    pub char_device: Option<(u32, u32)>,
    pub uid: u32,
    pub size_bytes: u64,
    /// Bits of chmod(2).
    pub mode: u32,
}

/// `fstat(fd)`, fstat(2).
///
/// # Errors
/// Those of fstat(2).
pub fn fstat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    let stat = rustix::fs::fstat(fd)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let numbers = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(Stat {
        is_dir: kind == FileType::Directory,
        is_file: kind == FileType::RegularFile,
        is_fifo: kind == FileType::Fifo,
        char_device: (kind == FileType::CharacterDevice).then_some(numbers),
        uid: stat.st_uid,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
    })
}

/// Whether a descriptor is in a procfs: fstatfs(2), PROC_SUPER_MAGIC of linux/magic.h.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_procfs(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// `mkdirat(dir, name, mode)`.
///
/// # Errors
/// Those of mkdirat(2).
pub fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
}

/// An empty regular file: `mknodat(dir, name, S_IFREG | mode)`, which never follows and never opens what is there.
///
/// # Errors
/// Those of mknod(2).
pub fn make_file(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mknodat(dir, name, FileType::RegularFile, Mode::from_raw_mode(mode), 0)?)
}

/// What kind of special file is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    Char,
    Block,
    Fifo,
}

/// A device or FIFO with exactly this mode, whatever the umask, and this owner, else this process's: mknodat(2), fchmodat(2), fchownat(2). `dir` must be a
/// directory that nobody else can change yet.
///
/// # Errors
/// Those of the three calls.
pub fn make_node(
    dir: BorrowedFd<'_>,
    name: &CStr,
    kind: NodeKind,
    numbers: (u32, u32),
    mode: u32,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let kind = match kind {
        NodeKind::Char => FileType::CharacterDevice,
        NodeKind::Block => FileType::BlockDevice,
        NodeKind::Fifo => FileType::Fifo,
    };
    let device = rustix::fs::makedev(numbers.0, numbers.1);
    rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), device)?;
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// `symlinkat(target, dir, name)`.
///
/// # Errors
/// Those of symlink(2).
pub fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// `readlinkat(dir, name)`.
///
/// # Errors
/// `EINVAL` when it is no symbolic link; those of readlink(2).
pub fn readlinkat(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<CString> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?)
}

/// Gives an open file to another user: `fchown(fd, uid, -1)`.
///
/// # Errors
/// Those of fchown(2).
pub fn fchown_user(fd: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    Ok(rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None)?)
}

/// A place of the host, by a path of our own: `open(path, O_PATH)`.
///
/// # Errors
/// Those of open(2).
pub fn open_host_path(path: &CStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// A file of a procfs that was checked to be one: for writing, beneath `/proc` of this process's own root. A `/proc` that is
/// something else would take what is meant for the kernel (CVE-2019-16884).
///
/// # Errors
/// `ENODEV` when /proc is no procfs; those of openat2(2).
pub fn open_proc(path: &CStr, open: Open) -> io::Result<OwnedFd> {
    let proc = rustix::fs::open(c"/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if !is_procfs(proc.as_fd())? {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    open_beneath(proc.as_fd(), path, Links::InRoot, open)
}

/// One write(2) of all of `bytes`.
///
/// # Errors
/// Those of write(2); `EIO` for a part.
pub fn write_all_once(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    loop {
        match rustix::io::write(fd, bytes) {
            Ok(n) if n == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// One read(2).
///
/// # Errors
/// Those of read(2).
pub fn read_once(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(dir: &std::path::Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("open root")
    }

    #[test]
    fn a_link_out_of_the_root_ends_inside_it() {
        let temp = tempfile::tempdir().expect("tempdir");
        std::os::unix::fs::symlink("/../../../etc", temp.path().join("out")).expect("symlink");
        let root = root(temp.path());
        let e = open_beneath(root.as_fd(), c"out/passwd", Links::InRoot, Open::Read).expect_err("no etc in there");
        assert_eq!(e.raw_os_error(), Some(libc::ENOENT));
        let e = open_beneath(root.as_fd(), c"out", Links::Refused, Open::Path).expect_err("a link");
        assert_eq!(e.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_magic_link_is_never_followed() {
        let slash = root(std::path::Path::new("/"));
        let e = open_beneath(slash.as_fd(), c"proc/self/cwd", Links::InRoot, Open::Path).expect_err("magic");
        assert_eq!(e.raw_os_error(), Some(libc::ELOOP));
    }
}
