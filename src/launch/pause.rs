//! The pod's first process: it owns the pod's namespaces and its tiny mount namespace.

use super::{Child, StartError, Step};
use crate::wire;
use std::os::fd::BorrowedFd;

/// Starts pause in `cgroup` (a directory of cgroup v2) and returns when the pod's namespaces are ready: lo up, hostname, sysctls
/// and /dev/shm set. It ends on SIGTERM (or with SIGKILL), and the namespaces with it. Call it before any config or secret is
/// in this process's memory: pause is a fork.
///
/// # Errors
/// The step that failed; nothing is left.
pub fn start(_sandbox: &wire::Sandbox, _cgroup: BorrowedFd<'_>) -> Result<Child, StartError> {
    Err(StartError::refused(Step::Plan, "not written yet"))
}
