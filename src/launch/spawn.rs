//! The parent's half of a container's start.

use super::{ChildStdio, StartError, Started, Step};
use crate::wire;
use std::os::fd::BorrowedFd;

/// Starts a container: returns when its program runs (execve(2) succeeded).
///
/// `pause` is the pidfd of the pod's pause; `pid_target` that of the container named by `namespaces.pid ==
/// NamespaceMode::Target`, else `None`; `cgroup` the container's directory of cgroup v2. Must be called in the host's mount
/// namespace by a process with one thread.
///
/// # Errors
/// The step that failed. The child is reaped, and the cgroup is as empty as before.
pub fn start(
    _launch: &wire::Launch,
    _pause: BorrowedFd<'_>,
    _pid_target: Option<BorrowedFd<'_>>,
    _cgroup: BorrowedFd<'_>,
    _stdio: ChildStdio,
) -> Result<Started, StartError> {
    Err(StartError::refused(Step::Plan, "not written yet"))
}
