//! `inotify_init1(flags)`, `inotify_add_watch(fd, path, mask)`, inotify(7): only "something changed below this directory".

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

/// Bytes of events taken at a time; what they say is not looked at, so any number does.
const EVENT_BYTES: usize = 4096;

/// Tells that files of one directory were written, made, moved or removed. Non-blocking.
#[derive(Debug)]
pub struct Inotify {
    fd: OwnedFd,
}

impl Inotify {
    /// Watches the directory `path`.
    ///
    /// # Errors
    /// `EMFILE` and `ENOSPC` at fs.inotify.max_user_instances and max_user_watches; `ENOENT`.
    pub fn directory(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::DELETE;
        inotify::add_watch(&fd, path, what | WatchFlags::ONLYDIR)?;
        Ok(Inotify { fd })
    }

    /// Takes all events that are there.
    ///
    /// # Errors
    /// `EAGAIN` when there was none.
    pub fn take(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        reader.next()?;
        loop {
            match reader.next() {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Inotify {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_in_the_directory_is_told_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let watch = Inotify::directory(dir.path()).expect("watch");
        assert_eq!(watch.take().expect_err("nothing yet").kind(), io::ErrorKind::WouldBlock);
        std::fs::OpenOptions::new().create_new(true).write(true).open(dir.path().join("f")).expect("create");
        watch.take().expect("told");
        assert_eq!(watch.take().expect_err("taken").kind(), io::ErrorKind::WouldBlock);
    }
}
