//! What a cloned child tells its parent: fixed-size messages over a pipe that execve(2) closes.
//!
//! | kind      | when                                                                    | then                            |
//! |-----------|-------------------------------------------------------------------------|---------------------------------|
//! | `Failed`  | a step failed                                                           | the child exits                 |
//! | `Warning` | a step failed that may                                                  | it goes on                      |
//! | `Sibling` | the child has made another one, in the user namespace, which goes on | it exits                        |
//! | `Ready`   | pause: all is set up. A container: volumes with propagation are attached | a container waits for one byte  |
//!
//! The end of the pipe without `Failed`: the program runs (a child that was killed leaves its end to be seen by its pidfd).
//! No strings cross: the parent knows the plan, and names the step's object by its index.

use super::{StartError, Step, libc_errno};
use crate::sys::pidfd;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a child may take from its birth to its program: a network file system that hangs must not hang the pod's other
/// containers, which this process serves as well.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A message's bytes: kind, step, object (u16), errno (i32), in native order.
const MESSAGE_BYTES: usize = 8;
/// The most messages of one child: each rlimit may warn.
const MAX_MESSAGES: usize = 64;

/// Why a child stopped: the step, which of its objects (0 when there is one), and the errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed {
    pub step: Step,
    pub object: u16,
    pub errno: i32,
}

/// Names the step, on the line that did it.
pub(super) trait At<T> {
    /// The step failed.
    fn at(self, step: Step) -> Result<T, Failed>;
    /// The step failed on its object number `index`.
    fn on(self, step: Step, index: usize) -> Result<T, Failed>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: Step) -> Result<T, Failed> {
        self.on(step, 0)
    }

    fn on(self, step: Step, index: usize) -> Result<T, Failed> {
        self.map_err(|e| Failed {
            step,
            object: u16::try_from(index).unwrap_or(u16::MAX),
            errno: e.raw_os_error().unwrap_or(0),
        })
    }
}

/// What one message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    Failed(Failed),
    Warning(Failed),
    Ready,
    /// Its pid, as the host has it.
    Sibling(i32),
}

impl Message {
    fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, failed) = match self {
            Message::Failed(failed) => (0, failed),
            Message::Warning(failed) => (1, failed),
            Message::Ready => (2, Failed { step: Step::Report, object: 0, errno: 0 }),
            Message::Sibling(pid) => (3, Failed { step: Step::Sibling, object: 0, errno: pid }),
        };
        let (object, errno) = (failed.object.to_ne_bytes(), failed.errno.to_ne_bytes());
        [kind, failed.step.number(), object[0], object[1], errno[0], errno[1], errno[2], errno[3]]
    }

    fn decode(bytes: [u8; MESSAGE_BYTES]) -> Option<Message> {
        let [kind, step, o0, o1, e0, e1, e2, e3] = bytes;
        let failed = Failed {
            step: Step::from_number(step)?,
            object: u16::from_ne_bytes([o0, o1]),
            errno: i32::from_ne_bytes([e0, e1, e2, e3]),
        };
        match kind {
            0 => Some(Message::Failed(failed)),
            1 => Some(Message::Warning(failed)),
            2 => Some(Message::Ready),
            3 => Some(Message::Sibling(failed.errno)),
            _ => None,
        }
    }
}

/// The child's end.
#[derive(Debug)]
pub(super) struct Reporter(pub OwnedFd);

impl Reporter {
    pub(super) fn send(&self, message: Message) {
        // A parent that is gone hears nothing, and the pidfd tells the next one that the child has ended.
        let _ = crate::sys::openat2::write_all_once(self.0.as_fd(), &message.encode());
    }
}

/// The parent's end.
#[derive(Debug)]
pub(super) struct Reports {
    reader: OwnedFd,
    end: Instant,
    left: usize,
}

/// In a child: the parent's one byte, for which it waits; its end means that the parent has given up.
pub(super) fn wait_for(go: BorrowedFd<'_>) -> Result<(), Failed> {
    match pidfd::read_until(go, &mut [0], Instant::now() + START_TIMEOUT).at(Step::Report)? {
        1 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc_errno::EPIPE)).at(Step::Report),
    }
}

/// A pipe for one child, whose program is to run within [`START_TIMEOUT`].
pub(super) fn pipe() -> Result<(Reports, Reporter), StartError> {
    pipe_until(Instant::now() + START_TIMEOUT)
}

/// A pipe for one child, whose program is to run at `end`.
pub(super) fn pipe_until(end: Instant) -> Result<(Reports, Reporter), StartError> {
    let (reader, writer) =
        pidfd::pipe().map_err(|e| StartError::os(Step::Clone, "report pipe", e.raw_os_error().unwrap_or(0)))?;
    Ok((Reports { reader, end, left: MAX_MESSAGES }, Reporter(writer)))
}

impl Reports {
    /// The next message; `None` at the end of the pipe.
    ///
    /// # Errors
    /// [`Step::Report`]: the time is over, or the message is none of ours.
    pub(super) fn next(&mut self) -> Result<Option<Message>, Failed> {
        let mut bytes = [0; MESSAGE_BYTES];
        let n = pidfd::read_until(self.reader.as_fd(), &mut bytes, self.end).at(Step::Report)?;
        if n == 0 {
            return Ok(None);
        }
        self.left = self.left.saturating_sub(1);
        match Message::decode(bytes) {
            Some(message) if n == MESSAGE_BYTES && self.left > 0 => Ok(Some(message)),
            _ => Err(Failed { step: Step::Report, object: 0, errno: 0 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cross_the_pipe_and_its_end_is_none() {
        let (mut reports, reporter) = pipe().expect("pipe");
        let failed = Failed { step: Step::Mount, object: 300, errno: 22 };
        for message in [Message::Ready, Message::Warning(failed), Message::Failed(failed), Message::Sibling(1 << 20)] {
            reporter.send(message);
            assert_eq!(reports.next(), Ok(Some(message)));
        }
        drop(reporter);
        assert_eq!(reports.next(), Ok(None));
    }

    #[test]
    fn a_child_that_writes_garbage_or_for_ever_is_not_believed() {
        let (mut reports, reporter) = pipe().expect("pipe");
        crate::sys::openat2::write_all_once(reporter.0.as_fd(), &[9; MESSAGE_BYTES]).expect("write");
        assert!(reports.next().is_err());
        for _ in 0..MAX_MESSAGES {
            reporter.send(Message::Ready);
        }
        assert!((0..MAX_MESSAGES).any(|_| reports.next().is_err()));
    }
}
