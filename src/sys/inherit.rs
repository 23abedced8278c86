//! What a spawned program has without knowing it, by a call between fork and exec: an open file, fcntl(2) `F_SETFD`; a signal that is
//! ignored, signal(2).

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Keeps `fd` open in the program of `command`: what hangs on the open file (a flock(2)) lasts as long as the program does. In this process
/// it stays close-on-exec, so that a program spawned at the same time by another thread does not get it.
pub fn inherit_fd(command: &mut Command, fd: OwnedFd) {
    let child = move || {
        // SAFETY: `fd` is owned by this closure, so its number is open; F_SETFD changes one flag of it and is async-signal-safe.
        match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure allocates nothing and takes no lock: it makes one system call on a value it owns.
    unsafe { command.pre_exec(child) };
}

/// Has the program of `command` ignore SIGXFSZ: what it writes beyond RLIMIT_FSIZE fails with `EFBIG` then, and does not end it (setrlimit(2)).
pub fn ignore_file_size_signal(command: &mut Command) {
    // SAFETY: takes two integers, and SIG_IGN is no function; signal(2) is async-signal-safe.
    let child = || match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: the closure makes one system call and touches nothing of this process's memory.
    unsafe { command.pre_exec(child) };
}
