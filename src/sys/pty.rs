//! A pseudo terminal of a devpts of one's own, pty(7): ptmx is opened beneath its mount, the peer by TIOCGPTPEER (ioctl_tty(2)),
//! so that no path of /dev is ever believed (CVE-2025-52565).

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

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
