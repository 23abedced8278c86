//! The holes of a file: `lseek(fd, SEEK_DATA | SEEK_HOLE)`, lseek(2). A file system that knows of none has one at the end alone.

use rustix::fs::{SeekFrom, seek};
use std::io;
use std::os::fd::BorrowedFd;

/// The first byte from `offset` on that is in no hole; `None` when there is none any more.
///
/// # Errors
/// Those of lseek(2) but `ENXIO`.
pub fn seek_data(fd: BorrowedFd<'_>, offset: u64) -> io::Result<Option<u64>> {
    match seek(fd, SeekFrom::Data(offset)) {
        Err(rustix::io::Errno::NXIO) => Ok(None),
        found => Ok(Some(found?)),
    }
}

/// The first byte from `offset` on that is in a hole, the one behind the file's last if need be.
///
/// # Errors
/// Those of lseek(2); `ENXIO` for an offset behind the file.
pub fn seek_hole(fd: BorrowedFd<'_>, offset: u64) -> io::Result<u64> {
    Ok(seek(fd, SeekFrom::Hole(offset))?)
}
