//! `waitid`, waitid(2): by pidfd for a known child, by looking first for an unknown one, by group.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// How a child ended: `si_code` and `si_status` of waitid(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Its exit code.
    Exited(u8),
    /// The signal that killed it; real-time signals included.
    Signaled(i32),
}

fn waitid(kind: libc::idtype_t, id: libc::id_t, flags: libc::c_int) -> io::Result<Option<(u32, Wait)>> {
    loop {
        // SAFETY: siginfo_t is plain integers, for which all zeroes is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` outlives the call, which writes to nothing else.
        let result = unsafe { libc::waitid(kind, id, &raw mut info, flags | libc::WEXITED) };
        if result < 0 {
            let e = io::Error::last_os_error();
            if e.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(e);
        }
        // SAFETY: waitid filled in the SIGCHLD variant, or left the zeroes when WNOHANG found nothing.
        let pid = unsafe { info.si_pid() };
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        let Ok(pid @ 1..) = u32::try_from(pid) else { return Ok(None) };
        let wait = match info.si_code {
            libc::CLD_EXITED => Wait::Exited(u8::try_from(status & 0xff).unwrap_or(u8::MAX)),
            _ => Wait::Signaled(status),
        };
        return Ok(Some((pid, wait)));
    }
}

/// Reaps the child that `pidfd` is; `None` while it runs.
///
/// # Errors
/// `ECHILD` when it is no child of ours, or was reaped already.
pub fn waitid_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<Option<Wait>> {
    let id = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    Ok(waitid(libc::P_PIDFD, id, libc::WNOHANG)?.map(|(_, wait)| wait))
}

/// Whether `pidfd` is a child of this process, running or to be reaped.
pub fn is_child(pidfd: BorrowedFd<'_>) -> bool {
    libc::id_t::try_from(pidfd.as_raw_fd())
        .is_ok_and(|id| waitid(libc::P_PIDFD, id, libc::WNOHANG | libc::WNOWAIT).is_ok())
}

/// The pid of a child that has ended, left to be reaped; `None` when all run or there are none.
///
/// # Errors
/// None that a caller could cause.
pub fn ended_child() -> io::Result<Option<u32>> {
    match waitid(libc::P_ALL, 0, libc::WNOHANG | libc::WNOWAIT) {
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        found => Ok(found?.map(|(pid, _)| pid)),
    }
}

/// Whether this process has children, running or to be reaped.
pub fn has_children() -> bool {
    !waitid(libc::P_ALL, 0, libc::WNOHANG | libc::WNOWAIT).is_err_and(|e| e.raw_os_error() == Some(libc::ECHILD))
}

/// Reaps the child `pid`, which [`ended_child`] has shown: until then the pid cannot be another's.
///
/// # Errors
/// `ECHILD` when it is no child of ours.
pub fn waitid_pid(pid: u32) -> io::Result<()> {
    waitid(libc::P_PID, pid, libc::WNOHANG).map(|_| ())
}

/// Reaps the children of a process group that have ended; whether there are none left in it.
///
/// # Errors
/// None that a caller could cause.
pub fn reap_group(group: u32) -> io::Result<bool> {
    loop {
        match waitid(libc::P_PGID, group, libc::WNOHANG) {
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(true),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_child_killed_by_a_real_time_signal_is_told_by_its_number() {
        let script = "kill -35 $$";
        let mut child = std::process::Command::new("/bin/bash").args(["-c", script]).spawn().expect("spawn");
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("pidfd");
        let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, None).expect("poll");
        assert_eq!(waitid_pidfd(pidfd.as_fd()).expect("wait"), Some(Wait::Signaled(35)));
        assert!(waitid_pidfd(pidfd.as_fd()).is_err(), "it is reaped once");
        assert!(child.wait().is_err());
    }
}
