//! `flock(fd, operation)`, flock(2): a lock that belongs to the open file, so it outlives neither its holder nor a power cut.

use rustix::fs::FlockOperation;
use std::io;
use std::os::fd::BorrowedFd;

/// Waits for the lock: shared, or exclusive.
///
/// # Errors
/// Those of flock(2) but `EINTR`.
pub fn flock(fd: BorrowedFd<'_>, exclusive: bool) -> io::Result<()> {
    let operation = if exclusive { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
    loop {
        match rustix::fs::flock(fd, operation) {
            Err(rustix::io::Errno::INTR) => {}
            locked => return Ok(locked?),
        }
    }
}

/// Takes the exclusive lock if nobody holds it; whether it was taken.
///
/// # Errors
/// Those of flock(2) but `EWOULDBLOCK`.
pub fn try_flock(fd: BorrowedFd<'_>) -> io::Result<bool> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
