//! A pseudo terminal of a devpts of one's own, pty(7): ptmx is opened beneath its mount, the peer by TIOCGPTPEER (ioctl_tty(2)),
//! so that no path of /dev is ever believed (CVE-2025-52565).

use super::openat2::{self, Links, Open};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// linux/magic.h
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// The same of the devpts at /dev/pts beneath a root that somebody else writes.
///
/// # Errors
/// `ENODEV` when there is no devpts; those of [`open_pty`] and openat2(2).
pub fn open_pty_beneath(root: BorrowedFd<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    let devpts = openat2::open_beneath(root, c"dev/pts", Links::Refused, Open::Directory)?;
    if rustix::fs::fstatfs(&devpts)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    open_pty(devpts.as_fd())
}

/// The two ends, O_CLOEXEC and of nobody's session: master, then slave.
///
/// # Errors
/// Those of openat(2) and ioctl(2); `ENOSPC` when the devpts has no more.
pub fn open_pty(devpts: BorrowedFd<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(devpts, c"ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((master, slave))
}
