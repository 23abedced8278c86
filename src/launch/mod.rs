//! What an OCI runtime does: from a spec to a process, inside the pod's namespaces, with nothing of the host in it.
//!
//! One thread, no async: this runs in the shim, which clones. The way of a container, top to bottom:
//!
//! * `plan`   decides (pure): spec -> [`plan::Plan`], every string a C string, nothing left to look up but users
//! * `user`   who it runs as: the image's /etc/passwd and /etc/group, read beneath the root, bounded
//! * `trees`  the trees, made in the host's mount namespace and never mounted there: overlay, volumes, devpts; `image_volume` files of images
//! * `spawn`  the parent's half: one clone3 into the container's cgroup, then waits for the child's report
//! * `init`   the child's half: the plan in its order, each step with the reason for its place; `attach` its mounts, `confine`
//!   what it may not do any more, which execs have in common; `report` and `explain` what it tells
//! * `seccomp`, `devices`  filters of system calls and of devices, compiled here
//! * `foreign`  the same by another OCI runtime's program; `foreign_oci` what that is given, `foreign_mounts` with what in place,
//!   `foreign_label` whether its programs have their label
//! * `exec`   a further process in a running container; `pause` the pod's first; `reaper` an own init before the app
//!
//! Cgroups are made elsewhere ([`crate::cgroup`]); here a directory fd is cloned into. What a container may be asked to be is
//! decided in `engine`; what cannot be honoured here is refused by field, never ignored.

mod attach;
mod confine;
pub mod devices;
pub mod exec;
mod explain;
pub mod foreign;
mod foreign_label;
mod foreign_mounts;
mod foreign_oci;
mod image_volume;
mod init;
pub mod pause;
pub mod plan;
pub mod plan_mounts;
pub mod reaper;
mod report;
pub mod seccomp;
pub mod seccomp_abi;
pub mod seccomp_profile;
mod seccomp_program;
pub mod spawn;
mod step;
mod trees;
pub mod user;

pub use step::Step;

use crate::error::{Error, Kind, describe_errno};
use crate::state::record::{Process, User};
use crate::wire;
use std::fmt;
use std::os::fd::OwnedFd;

/// A child of this process, running (pause) or past its execve(2) (containers, execs). To be reaped by the caller: waitid(P_PIDFD).
#[derive(Debug)]
pub struct Child {
    /// Its pid in the shim's pid namespace, and its start time.
    pub process: Process,
    /// O_CLOEXEC; readable when it has ended.
    pub pidfd: OwnedFd,
}

/// A container's first process, and what was decided on the way.
#[derive(Debug)]
pub struct Started {
    pub child: Child,
    /// Who it runs as, every name looked up: for `process.json`, and for its execs.
    pub user: User,
    /// The master of its terminal, with [`ChildStdio::Terminal`]: O_CLOEXEC, blocking.
    pub terminal: Option<OwnedFd>,
    /// What the host refused and `allow_unenforced` let pass, a sentence each.
    pub warnings: Vec<String>,
}

/// The child's standard streams. Given away: closed here when the child has its own, so that end-of-file reaches the shim.
#[derive(Debug)]
pub enum ChildStdio {
    /// Pipes (or /dev/null). They are given to the container's user (fchown(2)), so that it may open /dev/stdout again.
    Fds { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    /// A new pseudo terminal of the container's own devpts, its controlling terminal; see [`Started::terminal`].
    Terminal,
}

/// Why there is no process: nothing of it is left (the child reaped, its mounts gone with it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    pub step: Step,
    /// 0 when no system call was refused ([`Step::Plan`], [`Step::User`]). After [`Step::Exec`]: ENOENT is "not found", EACCES
    /// "not executable".
    pub errno: i32,
    /// For people, one line: the step, its object and the errno.
    pub message: String,
}

impl StartError {
    /// A step that was refused by a rule of ours, not by the kernel.
    pub(crate) fn refused(step: Step, message: impl Into<String>) -> Self {
        StartError { step, errno: 0, message: message.into() }
    }

    /// A step that the kernel refused. `object` says on what; empty when the step's name says it all.
    pub(crate) fn os(step: Step, object: &str, errno: i32) -> Self {
        let space = if object.is_empty() { "" } else { " " };
        StartError { step, errno, message: format!("{step}{space}{object}: {}", describe_errno(errno)) }
    }

    /// What went wrong, for a caller to branch on.
    pub fn kind(&self) -> Kind {
        match (self.step, self.errno) {
            (Step::Plan | Step::User | Step::Workdir | Step::Exec, _) => Kind::InvalidArgument,
            // A value that the kernel does not take, and a path that cannot be one: they were asked for.
            (Step::Sysctl, libc_errno::EINVAL | libc_errno::ERANGE) | (_, libc_errno::ENAMETOOLONG) => {
                Kind::InvalidArgument
            }
            (_, libc_errno::ENOSPC | libc_errno::EDQUOT | libc_errno::ENOMEM) => Kind::ResourceExhausted,
            _ => Kind::Internal,
        }
    }

    /// The same error, told as part of what the caller was doing: `start container c1: `...
    #[must_use]
    pub fn context(mut self, doing: &str) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

/// Numbers of asm-generic/errno-base.h that are branched on; the same on every architecture of ours.
pub(crate) mod libc_errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const ENOMEM: i32 = 12;
    pub const EACCES: i32 = 13;
    pub const EBUSY: i32 = 16;
    pub const EXDEV: i32 = 18;
    pub const ENODEV: i32 = 19;
    pub const ENOTDIR: i32 = 20;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const EPIPE: i32 = 32;
    pub const ERANGE: i32 = 34;
    pub const ENAMETOOLONG: i32 = 36;
    pub const ENOSYS: i32 = 38;
    pub const ELOOP: i32 = 40;
    pub const ETIMEDOUT: i32 = 110;
    pub const EDQUOT: i32 = 122;
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StartError {}

impl From<StartError> for Error {
    fn from(e: StartError) -> Error {
        Error::new(e.kind(), e.message)
    }
}

impl From<StartError> for wire::Failure {
    fn from(e: StartError) -> wire::Failure {
        let errno = e.errno;
        wire::Failure { errno, ..wire::Failure::from(&Error::from(e)) }
    }
}
