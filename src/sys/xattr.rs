//! `fsetxattr(fd, name, value, size, 0)`, `fgetxattr` and `flistxattr`, and `setxattr` and `getxattr` by /proc/self/fd, xattr(7).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// Sets or replaces one attribute of an open file or directory (not one opened with `O_PATH`).
///
/// # Errors
/// Those of fsetxattr(2): `EOPNOTSUPP` when the filesystem has no attributes of that namespace.
pub fn fsetxattr(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(fd, name, value, rustix::fs::XattrFlags::empty())?)
}

/// `setxattr("/proc/self/fd/N", name, value)`: of whatever `fd` is, a symbolic link too, and one opened with `O_PATH` too.
///
/// # Errors
/// Those of setxattr(2); `ENOENT` where /proc is not mounted.
pub fn setxattr_of(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::setxattr(proc_path(fd), name, value, rustix::fs::XattrFlags::empty())?)
}

/// `getxattr("/proc/self/fd/N", name)`: as [`fgetxattr`], and as [`setxattr_of`] of anything.
///
/// # Errors
/// Those of getxattr(2) but `ENODATA`; `ENOENT` where /proc is not mounted.
pub fn getxattr_of(fd: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; 64 << 10];
    match rustix::fs::getxattr(proc_path(fd), name, value.as_mut_slice()) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Reads one attribute of an open file; `None` when it has none of that name.
///
/// # Errors
/// Those of fgetxattr(2) but `ENODATA`; `ERANGE` for a value above 64 KiB, the kernel's XATTR_SIZE_MAX.
pub fn fgetxattr(fd: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; 64 << 10];
    match rustix::fs::fgetxattr(fd, name, value.as_mut_slice()) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The names of an open file's attributes.
///
/// # Errors
/// Those of flistxattr(2); `ERANGE` for names of more than 64 KiB, the kernel's XATTR_LIST_MAX.
pub fn flistxattr(fd: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut names = vec![0u8; 64 << 10];
    let len = rustix::fs::flistxattr(fd, names.as_mut_slice())?;
    let names = names[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
}
