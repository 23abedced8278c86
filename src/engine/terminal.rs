//! Terminals of execs: each is of its container's own devpts, and its master is the engine's alone, so that no shim is in the way of what is
//! typed and shown. ([`Engine::exec_at_terminal`]; another OCI runtime makes it, else it is made here.) The terminal of a container itself is its shim's ([`super::attach`]).

use super::adopt::find_process;
use super::{Engine, blocking};
use crate::error::{Context, Error, Kind, Result};
use crate::id::ContainerId;
use crate::state::record::Process;
use crate::sys::{openat2, pty, session, terminal};
use crate::wire::TerminalSize;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long a container's /dev/pts may take to be opened: it may be a file system that the container itself serves.
const OPEN_WAIT: Duration = Duration::from_secs(10);

/// Of a terminal, in characters. Zero is one that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

impl Size {
    /// As a shim is told it; `None`: it is not known.
    pub(super) fn known(self) -> Option<TerminalSize> {
        let Size { columns, rows } = self;
        (columns > 0 && rows > 0).then_some(TerminalSize { columns, rows })
    }

    /// Makes a terminal, by either end, have this size; one that is not known changes nothing.
    ///
    /// # Errors
    /// `Internal`: it is no terminal.
    pub fn apply(self, fd: BorrowedFd<'_>) -> Result<()> {
        let Some(TerminalSize { columns, rows }) = self.known() else { return Ok(()) };
        terminal::set_size(fd, columns, rows).context(|| "set the size of a terminal")
    }
}

impl Engine {
    /// A terminal for an exec: master, non-blocking, and slave.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` unless the container runs and has a devpts.
    pub(super) async fn open_terminal(&self, id: &ContainerId) -> Result<(OwnedFd, OwnedFd)> {
        let process = self.running_process(id)?;
        let doing = || format!("open a terminal in container {}", id.short());
        match tokio::time::timeout(OPEN_WAIT, blocking(move || open(process))).await {
            Ok(opened) => opened.context(doing),
            Err(_) => Err(Error::new(Kind::DeadlineExceeded, "its /dev/pts does not answer")).context(doing),
        }
    }

    /// The first process of a running container.
    pub(super) fn running_process(&self, id: &ContainerId) -> Result<Process> {
        let pod = self.pod_of(id)?;
        let facts = pod.facts();
        let running = facts.containers.get(id).filter(|c| c.exit.is_none()).and_then(|c| c.process.as_ref());
        let not = || Error::precondition(format!("container {} does not run", id.short()));
        running.map(|process| process.process).ok_or_else(not)
    }

    /// The root of a running container, as its first process sees it: what is below is the container's to change at any moment, so a path
    /// is resolved beneath it by openat2(2) and in no other way.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` unless it runs.
    pub fn root_of(&self, id: &ContainerId) -> Result<OwnedFd> {
        root_of(self.running_process(id)?).context(|| format!("open the root of container {}", id.short()))
    }
}

fn root_of(process: Process) -> Result<OwnedFd> {
    let gone = || Error::precondition("it has ended");
    let pidfd = find_process(process).ok_or_else(gone)?;
    let path = CString::new(format!("/proc/{}/root/.", process.pid)).unwrap_or_default(); // a number has no NUL
    let root = openat2::open_host_path(&path).context(|| "open its root")?;
    // Still the same process, so the pid was its own all the while.
    session::pidfd_send_signal(pidfd.as_fd(), 0).map_err(|_| gone())?;
    Ok(root)
}

fn open(process: Process) -> Result<(OwnedFd, OwnedFd)> {
    let root = root_of(process)?;
    let (master, slave) = pty::open_pty_beneath(root.as_fd()).context(|| "open /dev/pts/ptmx beneath its root")?;
    session::set_nonblocking(master.as_fd()).context(|| "set O_NONBLOCK")?;
    Ok((master, slave))
}
