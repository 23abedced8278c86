//! A file descriptor in tokio's epoll(7) set, for the daemon's side of things; the shim has its own ([`super::epoll`]).

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a non-blocking descriptor for input. To be called within a tokio runtime.
///
/// # Errors
/// Those of epoll_ctl(2): `EPERM` for a regular file.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open file for as long as it lives, and it lives in the AsyncFd.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(|e| io::Error::other(e.to_string()))
}
