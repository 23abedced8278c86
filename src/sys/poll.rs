//! `poll(fds, nfds, timeout)` for one descriptor, poll(2). Loops that watch several use epoll(7), elsewhere.

use rustix::event::{PollFd, PollFlags, Timespec};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// `POLLIN`.
    Read,
    /// `POLLPRI`: a file of cgroup v2 was changed since it was last read through this descriptor.
    Priority,
}

/// Waits until the descriptor is ready, has an error or was hung up, at most `timeout`; `false` when the time is over.
/// Signals do not end it. A timeout beyond the clock's end is none.
///
/// # Errors
/// Those of ppoll(2) but `EINTR`.
pub fn poll_until(fd: BorrowedFd<'_>, interest: Interest, timeout: Duration) -> io::Result<bool> {
    let flags = match interest {
        Interest::Read => PollFlags::IN,
        Interest::Priority => PollFlags::PRI,
    };
    let end = Instant::now().checked_add(timeout);
    loop {
        let left = end.map(|end| {
            let left = end.saturating_duration_since(Instant::now());
            let tv_sec = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            Timespec { tv_sec, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, flags)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn a_pipe_is_ready_when_written_to_and_not_before() {
        let (reader, mut writer) = io::pipe().expect("pipe");
        assert!(!poll_until(reader.as_fd(), Interest::Read, Duration::ZERO).expect("poll"));
        writer.write_all(b"x").expect("write");
        assert!(poll_until(reader.as_fd(), Interest::Read, Duration::from_secs(10)).expect("poll"));
    }
}
