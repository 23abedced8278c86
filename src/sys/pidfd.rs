//! Children by descriptor: waiting for one with waitid(2) and poll(2), pidfd_send_signal(2); and a pipe, pipe(2), to hear from it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a process may take to die of SIGKILL: one that hangs in the kernel, on a dead NFS server say, may take for ever.
const DEATH_WAIT: Duration = Duration::from_secs(10);

/// Kills a child and reaps it, so that nothing of it is left.
///
/// # Errors
/// `ECHILD` when it is no child of ours; `ETIMEDOUT` when it has not died within [`DEATH_WAIT`]: who reaps strays gets it.
pub fn kill_and_reap(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL); // ESRCH: it has ended by itself
    if !super::poll::poll_until(pidfd, super::poll::Interest::Read, DEATH_WAIT)? {
        return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
    }
    loop {
        match rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd), rustix::process::WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done.map(|_| ())?),
        }
    }
}

/// Reaps a child that is about to end by itself. One that does not within [`DEATH_WAIT`] is killed.
///
/// # Errors
/// As [`kill_and_reap`].
pub fn let_end_and_reap(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    super::poll::poll_until(pidfd, super::poll::Interest::Read, DEATH_WAIT)?;
    kill_and_reap(pidfd)
}

/// `pidfd_open(pid, 0)`, pidfd_open(2). The pid may by now be another process's: compare the start time afterwards.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// The pid that a pidfd of a living process is for, in this process's pid namespace: `Pid:` of /proc/self/fdinfo, pidfd_open(2).
///
/// # Errors
/// `ESRCH` when it is gone; those of reading the file.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|pid| pid.trim().parse().ok()).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// A pipe, both ends O_CLOEXEC and above the standard three: reader, writer.
///
/// # Errors
/// Those of pipe(2) and fcntl(2).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((super::exec::dup_above_standard(reader.as_fd())?, super::exec::dup_above_standard(writer.as_fd())?))
}

/// Reads until `buf` is full or the writers are gone, at most until `end`; how much was read.
///
/// # Errors
/// `ETIMEDOUT`; those of poll(2) and read(2).
pub fn read_until(fd: BorrowedFd<'_>, buf: &mut [u8], end: Instant) -> io::Result<usize> {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let mut filled = 0;
    while filled < buf.len() {
        let left = end.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&left)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        match rustix::io::read(fd, &mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(filled)
}

/// Reaps a child that has ended, whichever: its pid and its exit code (128+n for signal n); `None` when all run.
///
/// # Errors
/// `ECHILD` when there are none.
pub fn reap_any() -> io::Result<Option<(u32, i32)>> {
    waitpid(-1, libc::WNOHANG)
}

fn waitpid(pid: libc::pid_t, flags: libc::c_int) -> io::Result<Option<(u32, i32)>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call, which writes to nothing else.
    let pid = unsafe { libc::waitpid(pid, &raw mut status, flags) };
    match u32::try_from(pid) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(None),
        Ok(pid) if libc::WIFEXITED(status) => Ok(Some((pid, libc::WEXITSTATUS(status)))),
        Ok(pid) => Ok(Some((pid, 128 + libc::WTERMSIG(status)))),
    }
}

/// Waits for the child `pid`: its pid and its exit code (128+n for signal n).
///
/// # Errors
/// `ECHILD` when it is no child of ours.
pub fn reap(pid: u32) -> io::Result<(u32, i32)> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ECHILD))?;
    waitpid(pid, 0)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
}
