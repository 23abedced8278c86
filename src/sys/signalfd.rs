//! `signalfd`, signalfd(2), for the signals that a parent of processes gets; `sigprocmask`, sigprocmask(2).

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// SIGCHLD as a readable descriptor; SIGHUP, SIGINT and SIGTERM are blocked with it and have no other effect.
#[derive(Debug)]
pub struct ChildSignals(SignalFd);

impl ChildSignals {
    /// Blocks the signals and opens the descriptor, close-on-exec and non-blocking. The mask is inherited by children: whoever
    /// clones clears it in the child.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
            set.add(signal);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        Ok(ChildSignals(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Takes every signal that is pending, so that the descriptor is readable again only for a later one.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn clear(&self) -> io::Result<()> {
        while self.0.read_signal()?.is_some() {}
        Ok(())
    }

    /// Undoes the blocking, before an execve(2): the mask survives it.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn unblock() -> io::Result<()> {
        Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
    }
}

impl AsFd for ChildSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
