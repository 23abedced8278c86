//! `epoll_create1`, `epoll_ctl`, `epoll_wait`, epoll(7).

use rustix::event::epoll::{self, EventData, EventFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How many events one wait returns at most; the rest comes with the next.
const BATCH: usize = 64;

/// What a read would show.
const SHOWN: EventFlags =
    EventFlags::IN.union(EventFlags::PRI).union(EventFlags::HUP).union(EventFlags::ERR).union(EventFlags::RDHUP);

/// What to wait for, always level-triggered. `EPOLLERR` and `EPOLLHUP` come unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// `EPOLLIN`.
    Read,
    /// `EPOLLIN | EPOLLOUT`.
    ReadWrite,
    /// `EPOLLPRI`: files of cgroupfs that changed.
    Changed,
    /// `EPOLLRDHUP`: only that the other side has gone.
    HungUp,
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    pub token: u64,
    /// `EPOLLIN`, or an end or error that a read would show.
    pub readable: bool,
    /// `EPOLLOUT`.
    pub writable: bool,
    /// `EPOLLHUP`: both directions are closed.
    pub hung_up: bool,
}

/// An epoll instance, close-on-exec.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl From<Epoll> for OwnedFd {
    fn from(epoll: Epoll) -> OwnedFd {
        epoll.0
    }
}

impl Epoll {
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> io::Result<Self> {
        Ok(Epoll(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches `fd`; events carry `token`.
    ///
    /// # Errors
    /// `EEXIST`, `ENOMEM`, `ENOSPC`, `EPERM` (a regular file).
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(token), flags(interest))?)
    }

    /// Changes what `fd` is watched for.
    ///
    /// # Errors
    /// `ENOENT` when it is not watched.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(token), flags(interest))?)
    }

    /// Stops watching. Needed before a close when the open file description has other holders: they would keep it watched.
    ///
    /// # Errors
    /// `ENOENT` when it is not watched.
    pub fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }

    /// Waits; an empty answer when the time is over or a signal came. `None` waits forever.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let timeout = timeout.map(|t| rustix::event::Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; BATCH];
        let n = match epoll::wait(&self.0, &mut events[..], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => 0,
            n => n?,
        };
        ready.extend(events[..n].iter().map(|event| {
            let flags = event.flags;
            Ready {
                token: event.data.u64(),
                readable: flags.intersects(SHOWN),
                writable: flags.contains(EventFlags::OUT),
                hung_up: flags.contains(EventFlags::HUP),
            }
        }));
        Ok(())
    }
}

fn flags(interest: Interest) -> EventFlags {
    match interest {
        Interest::Read => EventFlags::IN,
        Interest::ReadWrite => EventFlags::IN | EventFlags::OUT,
        Interest::Changed => EventFlags::PRI,
        Interest::HungUp => EventFlags::RDHUP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_pipe_is_ready_when_written_and_at_its_end_and_a_timeout_is_empty() {
        let (reader, mut writer) = std::io::pipe().expect("pipe");
        let (epoll, mut ready) = (Epoll::new().expect("epoll"), Vec::new());
        epoll.add(&reader, 7, Interest::Read).expect("add");
        epoll.wait(Some(Duration::from_millis(1)), &mut ready).expect("wait");
        assert!(ready.is_empty());
        writer.write_all(b"x").expect("write");
        epoll.wait(None, &mut ready).expect("wait");
        assert_eq!(ready, [Ready { token: 7, readable: true, writable: false, hung_up: false }]);
        drop(writer);
        epoll.wait(None, &mut ready).expect("wait");
        assert!(ready[0].readable && ready[0].hung_up);
    }
}
