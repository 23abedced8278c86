//! The child's half of a container's start: the plan in its order, from the clone to execve(2).

use super::confine::{self, Streams};
use super::plan::Plan;
use super::report::{At, Failed, Message, Reporter};
use super::trees::Trees;
use super::{Step, attach, libc_errno, reaper};
use crate::state::record::User;
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::ns::{self, NsFlags};
use crate::sys::openat2::Links;
use crate::sys::{exec, pidfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// What the child needs beside the plan.
pub(super) struct Inherited<'a> {
    pub plan: &'a Plan,
    pub user: &'a User,
    pub trees: &'a Trees,
    pub streams: Streams<'a>,
    pub pause: BorrowedFd<'a>,
    /// Read once before the root is entered, when volumes have propagation: the parent may have to start anew.
    pub go: Option<BorrowedFd<'a>>,
    /// The shim's own program, for the container's init.
    pub program: Option<BorrowedFd<'a>>,
    pub reporter: &'a Reporter,
}

impl Inherited<'_> {
    fn keep(&self) -> Vec<BorrowedFd<'_>> {
        let mut keep = vec![self.trees.root.as_fd(), self.trees.null.as_fd(), self.pause, self.reporter.0.as_fd()];
        keep.extend(self.trees.mounts.iter().flatten().map(AsFd::as_fd));
        keep.extend(self.trees.terminal.iter().map(|t| t.slave.as_fd()));
        keep.extend(self.go);
        keep.extend(self.program);
        keep
    }

    /// Becomes the container's program; returns only what went wrong.
    pub(super) fn run(&self) -> Failed {
        match self.prepare() {
            Err(failed) => failed,
            Ok(()) => match self.program {
                Some(program) => reaper::execute(program, &self.plan.process, self.reporter),
                None => confine::execute(&self.plan.process),
            },
        }
    }

    fn prepare(&self) -> Result<(), Failed> {
        let (plan, root) = (self.plan, self.trees.root.as_fd());
        confine::leave_the_shim(&plan.process, self.user, self.streams, &self.keep(), self.reporter)?;
        // All of the pod's at once; what it shares with the host, pause shares too. Root and working directory become those of
        // pause's tiny mount namespace: from here on nothing of the host's file systems can be named.
        ns::setns(self.pause, NsFlags::MOUNT.with(NsFlags::NET).with(NsFlags::IPC).with(NsFlags::UTS))
            .at(Step::Setns)?;
        // A copy of the tiny one, so that nothing mounted here is seen by pause or another container.
        ns::unshare(NsFlags::MOUNT).at(Step::Unshare)?;
        // First the root: before Linux 6.15 nothing can be attached below a tree that is not attached itself.
        mount::move_mount_path(root, c"/root").at(Step::AttachRoot)?;
        attach::mounts(plan, self.trees)?;
        // After all mounts, for what is mounted over a masked path would be seen; before the root is entered, for after it there is
        // a program's time to come.
        attach::masks(plan, self.trees)?;
        attach::readonly_paths(plan, root)?;
        // Made before the root is read-only, entered only after everything else.
        attach::place(root, &plan.process.cwd, Links::InRoot, attach::Kind::Directory).at(Step::Workdir)?;
        if plan.root.readonly {
            mount::mount_setattr(root, Depth::One, MountAttr::RDONLY, MountAttr::NONE, None).at(Step::ReadonlyRoot)?;
        }
        if let Some(go) = self.go {
            self.reporter.send(Message::Ready);
            wait_for(go)?;
        }
        exec::fchdir(root).at(Step::PivotRoot)?;
        mount::pivot_root_here().at(Step::PivotRoot)?;
        // The tiny root lies above the new one now, at the working directory.
        mount::detach_here().at(Step::DetachOldRoot)?;
        confine::confine(&plan.process, self.user, root, self.reporter)
    }
}

/// The parent's one byte; its end means that the parent has given up.
fn wait_for(go: BorrowedFd<'_>) -> Result<(), Failed> {
    let end = std::time::Instant::now() + super::report::START_TIMEOUT;
    match pidfd::read_until(go, &mut [0], end).at(Step::Report)? {
        1 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc_errno::EPIPE)).at(Step::Report),
    }
}
