//! What a process that lives long sets for itself: setsid(2), umask(2), prctl(2) `PR_SET_CHILD_SUBREAPER`, and its descriptors. And signals
//! to others: pidfd_send_signal(2), kill(2) of a group.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A session of its own: `setsid()`. Already leading one is no error.
///
/// # Errors
/// None else.
pub fn setsid() -> io::Result<()> {
    match rustix::process::setsid() {
        Err(rustix::io::Errno::PERM) => Ok(()),
        done => Ok(done.map(|_| ())?),
    }
}

/// `umask(mask)`.
pub fn umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
}

/// `prctl(PR_SET_CHILD_SUBREAPER, 1)`: orphans below become children of this process. Not inherited by children.
///
/// # Errors
/// None that a caller could cause.
pub fn set_child_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Closes every descriptor from 3 on: `close_range(3, ~0, 0)`. Only before anything was opened here.
///
/// # Errors
/// None that a caller could cause.
pub fn close_inherited() -> io::Result<()> {
    super::exec::close_all_but(&[], true)
}

/// Takes what was inherited as descriptor 0, close-on-exec, and leaves /dev/null there.
///
/// # Errors
/// Those of open(2) and dup(2).
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = super::exec::dup_above_standard(io::stdin().as_fd())?;
    super::exec::dup_to_standard(std::fs::File::open("/dev/null")?.as_fd(), 0)?;
    Ok(taken)
}

/// `O_NONBLOCK` of the open file description, ioctl(2) `FIONBIO`.
///
/// # Errors
/// None that a caller could cause.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, true)?)
}

/// `pidfd_send_signal`, pidfd_send_signal(2). Real-time signals included.
///
/// # Errors
/// `ESRCH` when it has been reaped, `EINVAL` for a number that is no signal.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: takes integers and, for the siginfo, null.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this process ignores a signal, as its parent may have asked for (nohup(1)): sigaction(2).
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is set, and the place is one for what is read.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has filled it.
    let action = unsafe { action.assume_init() };
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// Sends SIGKILL to a process group, kill(2). The group must be known to be there: its first process is a child that was not reaped.
///
/// # Errors
/// `ESRCH` when there is no such group.
pub fn kill_group(group: u32) -> io::Result<()> {
    let group = i32::try_from(group).ok().and_then(rustix::process::Pid::from_raw);
    let group = group.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?)
}

/// The directory above `dir` (`O_PATH`).
///
/// # Errors
/// Those of openat(2).
pub fn parent_dir(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::openat(dir, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
