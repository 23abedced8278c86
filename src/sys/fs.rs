//! Files and directories named relative to a directory's descriptor: openat(2), mkdirat(2), unlinkat(2), getdents64(2), pread(2).
//!
//! For trees whose names podwright chose itself (cgroups, its own directories): one component at a time, symbolic links never
//! followed. Paths inside a container are not resolved here but with openat2(2). No policy, no paths of podwright's own.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// The magic number of a cgroup v2 file system (linux/magic.h, `CGROUP2_SUPER_MAGIC`).
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// The magic number of overlayfs (linux/magic.h, `OVERLAYFS_SUPER_MAGIC`).
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// The magic number of namespaces (linux/magic.h, `NSFS_MAGIC`).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Without creating or truncating it.
    Write,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: OsString,
    pub is_dir: bool,
}

/// A directory as a place to name files from (`O_PATH`): it can be read through only by [`list_dir`], which opens it anew.
///
/// # Errors
/// Those of open(2); `ENOTDIR` for anything else.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The same for `name` in `dir`; a symbolic link is refused.
///
/// # Errors
/// Those of openat(2); `ENOTDIR` for anything else, `EINVAL` for a name that is no single component.
pub fn open_dir_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, component(name)?, flags, Mode::empty())?)
}

/// Opens the directory at a relative path below `dir`, as [`open_dir_at`] does for each of its components; an empty one is `dir`.
///
/// # Errors
/// Those of openat2(2); `EXDEV` for a path that leaves `dir`.
pub fn open_dir_below(dir: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { "." } else { path };
    Ok(rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)?)
}

/// Opens an existing file in `dir`; a symbolic link is refused (`ELOOP`).
///
/// # Errors
/// Those of openat(2); `EINVAL` for a name that is no single component.
pub fn open_file_at(dir: BorrowedFd<'_>, name: &str, access: Access) -> io::Result<OwnedFd> {
    let mode = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
    };
    Ok(rustix::fs::openat(dir, component(name)?, mode | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// The whole of a file in `dir`.
///
/// # Errors
/// Those of openat(2) and read(2); `EFBIG` when it has more than `max_bytes`.
pub fn read_file_at(dir: BorrowedFd<'_>, name: &str, max_bytes: usize) -> io::Result<Vec<u8>> {
    let file = open_file_at(dir, name, Access::Read)?;
    let mut bytes = Vec::new();
    read_from_start(file.as_fd(), &mut bytes, max_bytes)?;
    Ok(bytes)
}

/// The whole of an open file from its first byte, wherever its offset is; `bytes` is overwritten and keeps its capacity.
///
/// # Errors
/// Those of pread(2); `EFBIG` when it has more than `max_bytes`.
pub fn read_from_start(file: BorrowedFd<'_>, bytes: &mut Vec<u8>, max_bytes: usize) -> io::Result<()> {
    /// A page: kernel files are mostly shorter.
    const STEP_BYTES: usize = 4096;
    bytes.clear();
    loop {
        let filled = bytes.len();
        bytes.resize(filled + STEP_BYTES, 0);
        let n = loop {
            match rustix::io::pread(file, &mut bytes[filled..], filled as u64) {
                Err(rustix::io::Errno::INTR) => {}
                done => break done,
            }
        };
        bytes.truncate(filled + *n.as_ref().unwrap_or(&0));
        if n? == 0 {
            return Ok(());
        }
        if bytes.len() > max_bytes {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
    }
}

/// As [`read_from_start`] for a file that the kernel makes as one record (seq_file with a single show: those of cgroups with
/// numbers): a read that does not fill `buffer` has all of it, and is not followed by one that says so. `buffer` grows when it must.
///
/// # Errors
/// As [`read_from_start`].
pub fn read_record<'a>(file: BorrowedFd<'_>, buffer: &'a mut Vec<u8>, max_bytes: usize) -> io::Result<&'a [u8]> {
    let n = loop {
        match rustix::io::pread(file, &mut *buffer, 0) {
            Err(rustix::io::Errno::INTR) => {}
            done => break done?,
        }
    };
    if n < buffer.len() {
        return Ok(&buffer[..n]);
    }
    read_from_start(file, buffer, max_bytes)?;
    Ok(buffer)
}

/// Writes `bytes` to an existing file in `dir` with one write(2), as kernel files want it.
///
/// # Errors
/// Those of openat(2) and write(2); `EIO` when the kernel took only a part.
pub fn write_file_at(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let file = open_file_at(dir, name, Access::Write)?;
    loop {
        match rustix::io::write(&file, bytes) {
            Ok(n) if n == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Makes a directory in `dir` with permission bits `mode` (less the umask).
///
/// # Errors
/// Those of mkdirat(2); `EINVAL` for a name that is no single component.
pub fn mkdir_at(dir: BorrowedFd<'_>, name: &str, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, component(name)?, Mode::from_raw_mode(mode))?)
}

/// Removes an empty directory in `dir`: `unlinkat(dir, name, AT_REMOVEDIR)`.
///
/// # Errors
/// Those of unlinkat(2); `EINVAL` for a name that is no single component.
pub fn remove_dir_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    Ok(rustix::fs::unlinkat(dir, component(name)?, AtFlags::REMOVEDIR)?)
}

/// What is in `dir`, without `.` and `..`, in the order of the file system.
///
/// # Errors
/// Those of openat(2) and getdents64(2); `EFBIG` when there are more than `max_entries`.
pub fn list_dir(dir: BorrowedFd<'_>, max_entries: usize) -> io::Result<Vec<Entry>> {
    // An O_PATH descriptor cannot be read, and one that can has an offset that its duplicates share: so open it anew.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut entries = Vec::new();
    for entry in Dir::new(rustix::fs::openat(dir, ".", flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if entries.len() == max_entries {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let is_dir = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            known => known == FileType::Directory,
        };
        entries.push(Entry { name: OsString::from_vec(name.to_vec()), is_dir });
    }
    Ok(entries)
}

/// Whether this is a directory or file of cgroup v2: fstatfs(2).
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_cgroup2(file: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type == CGROUP2_MAGIC)
}

/// Whether a path is a namespace that is bound there: statfs(2).
pub fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}

/// Whether a directory is on overlayfs, which holds no other overlay's writable layer: statfs(2).
///
/// # Errors
/// Those of statfs(2).
pub fn is_overlay(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statfs(path)?.f_type == OVERLAYFS_MAGIC)
}

/// What the file system of a path has: bytes, inodes, and how many of those are free. statvfs(3).
///
/// # Errors
/// Those of statvfs(3).
pub fn capacity(path: &Path) -> io::Result<(u64, u64, u64)> {
    let fs = rustix::fs::statvfs(path)?;
    Ok((fs.f_blocks.saturating_mul(fs.f_frsize), fs.f_files, fs.f_ffree))
}

/// `name`, if it is one component of a path.
fn component(name: &str) -> io::Result<&str> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_and_read_below_its_directory_and_a_long_one_is_refused() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = open_dir(temp.path()).expect("open");
        mkdir_at(dir.as_fd(), "d", 0o700).expect("mkdir");
        let d = open_dir_at(dir.as_fd(), "d").expect("open d");
        assert!(write_file_at(d.as_fd(), "f", b"x").is_err(), "nothing is created");
        std::fs::OpenOptions::new().create_new(true).write(true).open(temp.path().join("d/f")).expect("create");
        write_file_at(d.as_fd(), "f", &[b'x'; 5000]).expect("write");
        assert_eq!(read_file_at(d.as_fd(), "f", 5000).expect("read").len(), 5000);
        assert_eq!(read_file_at(d.as_fd(), "f", 4999).expect_err("too long").raw_os_error(), Some(libc::EFBIG));
        assert_eq!(list_dir(dir.as_fd(), 1).expect("list"), vec![Entry { name: "d".into(), is_dir: true }]);
        assert!(remove_dir_at(dir.as_fd(), "d").is_err(), "not empty");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let temp = tempfile::tempdir().expect("tempdir");
        std::os::unix::fs::symlink("/etc", temp.path().join("link")).expect("symlink");
        let dir = open_dir(temp.path()).expect("open");
        for name in ["", ".", "..", "a/b", "/etc", "link"] {
            assert!(open_dir_at(dir.as_fd(), name).is_err(), "{name:?}");
        }
        assert!(open_file_at(dir.as_fd(), "link", Access::Read).is_err());
    }

    #[test]
    fn a_directory_with_more_entries_than_the_bound_is_refused() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = open_dir(temp.path()).expect("open");
        for name in ["a", "b"] {
            mkdir_at(dir.as_fd(), name, 0o700).expect("mkdir");
        }
        assert_eq!(list_dir(dir.as_fd(), 1).expect_err("two").raw_os_error(), Some(libc::EFBIG));
    }
}
