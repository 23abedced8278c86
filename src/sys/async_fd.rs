//! A file descriptor in tokio's epoll(7) set, for the daemon's side of things; the shim has its own ([`super::epoll`]).

use super::epoll::{Epoll, Interest as Watched};
use super::session::set_nonblocking;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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

/// An end of a pipe, or a terminal.
#[derive(Debug)]
pub struct AsyncFile(AsyncFd<File>);

impl AsyncFile {
    /// Makes it non-blocking, for all who share the open file description.
    ///
    /// # Errors
    /// Those of epoll_ctl(2): `EPERM` for a regular file.
    pub fn new(fd: OwnedFd) -> io::Result<AsyncFile> {
        set_nonblocking(fd.as_fd())?;
        // SAFETY: a File names the same open file for as long as it lives, and it lives in the AsyncFd.
        let registered =
            unsafe { AsyncFd::register_with_interest(File::from(fd), Interest::READABLE | Interest::WRITABLE) };
        registered.map(AsyncFile).map_err(|e| io::Error::other(e.to_string()))
    }

    /// What is there to read, at most so many bytes, when there is something; empty at its end. Memory is taken for what comes, not for
    /// waiting. Nothing is lost when this is dropped.
    ///
    /// # Errors
    /// Those of read(2); `EIO` from the master of a terminal that nobody has open.
    pub async fn chunk(&self, at_most: usize) -> io::Result<Vec<u8>> {
        loop {
            let mut guard = self.0.readable().await?;
            let mut chunk = vec![0; at_most];
            match guard.try_io(|file| file.get_ref().read(&mut chunk)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => {
                    chunk.truncate(read?);
                    return Ok(chunk);
                }
                Err(_) => {} // it was read meanwhile
            }
        }
    }

    /// write(2), when there is room.
    ///
    /// # Errors
    /// Those of write(2).
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |mut file| file.write(bytes)).await
    }
}

impl AsFd for AsyncFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Whether a socket's peer has gone, told also while nobody reads what came before that: `EPOLLRDHUP`, epoll_ctl(2).
#[derive(Debug)]
pub struct HangUp(AsyncFd<OwnedFd>);

impl HangUp {
    /// Watches a connected socket. When that is closed here first, the wait never ends.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<HangUp> {
        let epoll = Epoll::new()?;
        epoll.add(socket, 0, Watched::HungUp)?;
        readable(epoll.into()).map(HangUp)
    }

    /// Waits for that.
    pub async fn wait(&self) {
        if let Ok(mut guard) = self.0.readable().await {
            guard.retain_ready();
        }
    }
}
