//! `inotify_init1(flags)`, `inotify_add_watch(fd, path, mask)`, inotify(7): only "something changed in this directory".

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Bytes of events taken at a time; what they say is not looked at, so any number does.
const EVENT_BYTES: usize = 4096;

/// Watches the directory `path`: its files written, made, moved, removed. Non-blocking.
///
/// # Errors
/// `EMFILE` and `ENOSPC` at fs.inotify.max_user_instances and max_user_watches; `ENOENT`.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::DELETE;
    inotify::add_watch(&fd, path, what | WatchFlags::ONLYDIR)?;
    Ok(fd)
}

/// Takes all events that are there.
///
/// # Errors
/// `EAGAIN` when there was none.
pub fn take(watch: impl AsFd) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
    let mut reader = inotify::Reader::new(watch.as_fd(), &mut buffer);
    reader.next()?;
    loop {
        match reader.next() {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_in_the_directory_is_told_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let watch = directory(dir.path()).expect("watch");
        assert_eq!(take(&watch).expect_err("nothing yet").kind(), io::ErrorKind::WouldBlock);
        std::fs::OpenOptions::new().create_new(true).write(true).open(dir.path().join("f")).expect("create");
        take(&watch).expect("told");
        assert_eq!(take(&watch).expect_err("taken").kind(), io::ErrorKind::WouldBlock);
    }
}
