//! The child's half of a container's start: the plan in its order, from the clone to execve(2).

use super::attach::Where;
use super::confine::{self, Streams};
use super::plan::Plan;
use super::report::{At, Failed, Message, Reporter, wait_for};
use super::trees::Trees;
use super::{Step, attach, reaper};
use crate::state::record::User;
use crate::sys::clone::{self, CloneFlags};
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::ns::{self, NsFlags};
use crate::sys::openat2::Links;
use crate::sys::{credentials, exec, openat2, pidfd, prctl};
use std::os::fd::{AsFd, BorrowedFd};

/// While places that an image lacks are made, with the modes that runc gives them: directories 0755, files 0644.
const PLACES_UMASK: u32 = 0o022;

/// What the child needs beside the plan.
pub(super) struct Inherited<'a> {
    pub plan: &'a Plan,
    pub user: &'a User,
    pub trees: &'a Trees,
    pub streams: Streams<'a>,
    pub pause: BorrowedFd<'a>,
    /// Read once before the root is entered: the parent has done its part by then.
    pub go: BorrowedFd<'a>,
    /// Volumes have propagation: the parent looks at them once they are attached, and may have to start anew.
    pub watched: bool,
    /// The shim's own program, for the container's init.
    pub program: Option<BorrowedFd<'a>>,
    pub reporter: &'a Reporter,
}

impl Inherited<'_> {
    fn keep(&self) -> Vec<BorrowedFd<'_>> {
        let mut keep = vec![self.trees.root.as_fd(), self.pause, self.go, self.reporter.0.as_fd()];
        keep.extend(self.trees.null.iter().map(AsFd::as_fd));
        keep.extend(self.trees.mounts.iter().flatten().map(AsFd::as_fd));
        keep.extend(self.trees.terminal.iter().map(|t| t.slave.as_fd()));
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
        let leads = !plan.has_sibling();
        confine::leave_the_shim(&plan.process, self.user, self.streams, leads, &self.keep(), self.reporter)?;
        // All of the pod's at once; what it shares with the host, pause shares too. Root and working directory become those of
        // pause's tiny mount namespace: from here on nothing of the host's file systems can be named.
        //
        // But not a user namespace: what is mounted by the host's root is locked when that one is entered, and nobody in there can
        // take away a mount or make it writable.
        ns::setns(self.pause, NsFlags::MOUNT.with(NsFlags::NET).with(NsFlags::IPC).with(NsFlags::UTS))
            .at(Step::Setns)?;
        // A copy of the tiny one, so that nothing mounted here is seen by pause or another container.
        ns::unshare(NsFlags::MOUNT).at(Step::Unshare)?;
        if let Some(ids) = plan.ids {
            // Places that are missing are made as the pod's root, whose they are then, and who is somebody in a volume.
            credentials::make_files_as(ids.uids.host, ids.gids.host).at(Step::MakeFilesAs)?;
        }
        // Not the shim's, whose logs are for a group only: a place that is made for a mount, its parents and the working directory are for
        // whoever the container runs as. The process gets its own in `confine`.
        credentials::umask(PLACES_UMASK);
        // First the root: before Linux 6.15 nothing can be attached below a tree that is not attached itself.
        mount::move_mount_path(root, c"/root").at(Step::AttachRoot)?;
        attach::mounts(plan, self.trees)?;
        // After all mounts, for what is mounted over a masked path would be seen; before the root is entered, for after it there is
        // a program's time to come.
        let these = if plan.ids.is_some() { Where::Elsewhere } else { Where::Everywhere };
        if let Some(null) = &self.trees.null {
            attach::masks(plan, root, null.as_fd(), these)?;
        }
        attach::readonly_paths(plan, root, these)?;
        // Made before the root is read-only, entered only after everything else.
        attach::place(root, &plan.process.cwd, Links::InRoot, attach::Kind::Directory).at(Step::Workdir)?;
        if plan.root.readonly {
            mount::mount_setattr(root, Depth::One, MountAttr::RDONLY, MountAttr::NONE, None).at(Step::ReadonlyRoot)?;
        }
        if self.watched {
            self.reporter.send(Message::Ready);
        }
        wait_for(self.go)?;
        exec::fchdir(root).at(Step::PivotRoot)?;
        mount::pivot_root_here().at(Step::PivotRoot)?;
        // The tiny root lies above the new one now, at the working directory.
        mount::detach_here().at(Step::DetachOldRoot)?;
        match plan.ids {
            None => confine::confine(&plan.process, self.user, root, self.reporter),
            Some(_) => self.enter_user_namespace(),
        }
    }

    /// The rest of a start in a pod with a user namespace, where this process has no rights on the host any more.
    fn enter_user_namespace(&self) -> Result<(), Failed> {
        let plan = self.plan;
        confine::raise_limits(&plan.process, self.reporter)?;
        ns::setns(self.pause, NsFlags::USER).at(Step::UserNamespace)?;
        // A copy that belongs to the user namespace: this locks all there is, and makes it a slave of what it was.
        ns::unshare(NsFlags::MOUNT).at(Step::Unshare)?;
        if plan.has_sibling() {
            // A pid namespace belongs to the user namespace it is made in, which is asked for rights on it, and on its /proc.
            let (turn, give_turn) = pidfd::pipe().at(Step::Sibling)?;
            match clone::clone3_sibling(CloneFlags::NEWPID).at(Step::Sibling)? {
                Some(pid) => {
                    // Before the other one can say anything: the parent has to know whose it is.
                    self.reporter.send(Message::Sibling(i32::try_from(pid).unwrap_or(0)));
                    let _ = openat2::write_all_once(give_turn.as_fd(), b"!"); // if that fails the other one ends
                    clone::exit_now(0);
                }
                None => {
                    drop(give_turn);
                    prctl::set_not_dumpable().at(Step::Dumpable)?;
                    wait_for(turn.as_fd())?;
                    confine::lead_a_session(self.streams)?;
                }
            }
        }
        // The pod's root from here on. Groups first, as ever.
        credentials::setgroups(&[]).at(Step::Groups)?;
        credentials::setresgid(0).at(Step::Gid)?;
        credentials::setresuid(0).at(Step::Uid)?;
        // The root that was attached is another mount in this copy.
        let root = openat2::open_host_path(c"/").at(Step::AttachRoot)?;
        let root = root.as_fd();
        attach::proc(plan, root)?;
        let null = attach::null(root).at(Step::Mask)?;
        attach::masks(plan, root, null.as_fd(), Where::InProc)?;
        attach::readonly_paths(plan, root, Where::InProc)?;
        confine::confine(&plan.process, self.user, root, self.reporter)
    }
}
