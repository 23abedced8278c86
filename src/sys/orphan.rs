//! How a process ended that is no child of this one: `PIDFD_GET_INFO`, ioctl_pidfd(2), and the zombie in /proc/pid/stat, proc_pid_stat(5).

use super::pidfd::pid_of;
use super::poll::{Interest, poll_until};
use super::wait::Wait;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// linux/pidfd.h: `struct pidfd_info` as it was first; longer ones of newer kernels begin with it.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    /// pid, tgid, ppid and eight ids.
    ids: [u32; 11],
    /// As of wait(2).
    exit_code: i32,
}

/// linux/pidfd.h.
const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`, linux/pidfd.h.
const PIDFD_GET_INFO: libc::Ioctl = 0xC040_FF0B_u32 as libc::Ioctl;

/// Whether the process has ended, reaped or not.
///
/// # Errors
/// Those of poll(2).
pub fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    poll_until(pidfd, Interest::Read, Duration::ZERO)
}

/// How the process ended: from the kernel's own note once it was reaped (Linux 6.15), before that from its zombie. `None` while it runs;
/// and for ever, when it was reaped on an older kernel. The pidfd must have been opened before the reaping.
pub fn how_it_ended(pidfd: BorrowedFd<'_>) -> Option<Wait> {
    if !has_ended(pidfd).unwrap_or(false) {
        return None;
    }
    // It may be reaped between one look and the next; what was reaped stays so.
    exit_info(pidfd).ok().or_else(|| zombie(pidfd)).or_else(|| exit_info(pidfd).ok())
}

/// `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`: there from the reaping on, for as long as the pidfd is open.
///
/// # Errors
/// `ENOTTY` or `EINVAL` before Linux 6.13; `ENODATA` before 6.15, which has the call but keeps no status, and for a process that was not
/// reaped; `ESRCH` when it was before the pidfd was opened.
pub(super) fn exit_info(pidfd: BorrowedFd<'_>) -> io::Result<Wait> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the number says how long the struct is that the kernel may write to, which is this one's size; it outlives the call.
    if unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let told = info.mask & PIDFD_INFO_EXIT != 0;
    if told { Ok(decode(info.exit_code)) } else { Err(io::Error::from_raw_os_error(libc::ENODATA)) }
}

/// The last field of /proc/pid/stat of a process that nobody has reaped yet.
fn zombie(pidfd: BorrowedFd<'_>) -> Option<Wait> {
    let pid = pid_of(pidfd).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // A pid is not another's until its process is reaped: so it was this one's.
    (pid_of(pidfd).ok()? == pid).then_some(())?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let exit_code = fields.next_back()?.parse().ok()?;
    (state == "Z").then(|| decode(exit_code))
}

/// A status as wait(2) has it.
fn decode(status: i32) -> Wait {
    match status & 0x7f {
        0 => Wait::Exited(u8::try_from((status >> 8) & 0xff).unwrap_or(u8::MAX)),
        signal => Wait::Signaled(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pidfd::pidfd_open;
    use std::os::fd::AsFd;

    #[test]
    fn a_zombie_tells_how_it_ended_and_a_reaped_one_does_where_the_kernel_keeps_it() {
        for (script, expected) in [("exit 42", Wait::Exited(42)), ("kill -9 $$", Wait::Signaled(9))] {
            let mut child = std::process::Command::new("/bin/sh").args(["-c", script]).spawn().expect("spawn");
            let pidfd = pidfd_open(child.id()).expect("pidfd");
            assert!(poll_until(pidfd.as_fd(), Interest::Read, Duration::from_secs(10)).expect("poll"));
            assert_eq!(how_it_ended(pidfd.as_fd()), Some(expected), "not reaped");
            child.wait().expect("reap");
            let kept = how_it_ended(pidfd.as_fd());
            assert!(kept.is_none_or(|kept| kept == expected), "{kept:?}");
        }
    }

    #[test]
    fn a_process_that_runs_has_not_ended() {
        let own = pidfd_open(std::process::id()).expect("pidfd");
        assert_eq!(how_it_ended(own.as_fd()), None);
    }
}
