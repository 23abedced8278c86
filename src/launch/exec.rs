//! A further process in a running container, with exactly the container's confinement.

use super::{Child, ChildStdio, StartError, Step};
use crate::state::record::User;
use crate::wire;
use std::os::fd::BorrowedFd;

/// Starts `exec` in a running container: returns when its program runs.
///
/// `launch` and `user` are what the container was started with and as; `init` the pidfd of its first process; `exec_cgroup`
/// the directory `exec-N` below the container's, already made. [`ChildStdio::Terminal`] is refused: an exec's terminal is
/// not written yet.
///
/// # Errors
/// The step that failed; the child is reaped, and `exec_cgroup` as empty as before.
pub fn start(
    _exec: &wire::Exec,
    _launch: &wire::Launch,
    _user: &User,
    _init: BorrowedFd<'_>,
    _exec_cgroup: BorrowedFd<'_>,
    _stdio: ChildStdio,
) -> Result<Child, StartError> {
    Err(StartError::refused(Step::Plan, "not written yet"))
}
