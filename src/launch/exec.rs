//! A further process in a running container, with exactly the container's confinement.

use super::confine;
use super::plan;
use super::report::{self, At, Failed, Message, Reporter};
use super::spawn::{born, finish, listen, streams};
use super::user;
use super::{Child, ChildStdio, StartError, Step, explain};
use crate::state::record::User;
use crate::sys::clone::CloneFlags;
use crate::sys::ns::{self, NsFlags};
use crate::sys::openat2::{self, Links, Open};
use crate::sys::pidfd;
use crate::wire;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What all execs of a container have in common, decided once: its environment, limits, capabilities and filter of system calls.
#[derive(Debug)]
pub struct Confinement(plan::Process);

/// Decides it from what the container was started with.
///
/// # Errors
/// [`Step::Plan`], naming the field that cannot be honoured.
pub fn confinement(launch: &wire::Launch) -> Result<Confinement, StartError> {
    plan::Process::of_launch(launch).map(Confinement)
}

impl Confinement {
    /// Whether a command can be one, whoever starts it.
    ///
    /// # Errors
    /// [`Step::Plan`], naming what cannot: a string with a NUL, a working directory that is not absolute.
    pub fn check(&self, exec: &wire::Exec) -> Result<(), StartError> {
        self.0.for_exec(exec).map(drop)
    }
}

/// Starts `exec` in a running container: returns when its program runs.
///
/// `user` is whom the container was started as; `init` the pidfd of its first process; `exec_cgroup`
/// the directory `exec-N` below the container's, already made. `stdio` is given: with `exec.tty` it is the slave of a terminal of the
/// container's devpts, three times. [`ChildStdio::Terminal`] is refused, for here none is made.
///
/// # Errors
/// The step that failed; the child is reaped, and `exec_cgroup` as empty as before.
pub fn start(
    exec: &wire::Exec,
    confinement: &Confinement,
    user: &User,
    init: BorrowedFd<'_>,
    exec_cgroup: BorrowedFd<'_>,
    stdio: ChildStdio,
) -> Result<Child, StartError> {
    let doing = format!("exec in container {}", exec.container.short());
    begin(exec, confinement, user, init, exec_cgroup, stdio).map_err(|e| e.context(&doing))
}

fn begin(
    exec: &wire::Exec,
    confinement: &Confinement,
    user: &User,
    init: BorrowedFd<'_>,
    exec_cgroup: BorrowedFd<'_>,
    stdio: ChildStdio,
) -> Result<Child, StartError> {
    let mut process = confinement.0.for_exec(exec)?;
    // The container's root, by its first process: read only when a name or a home is wanted there.
    let mut user = user.clone();
    if exec.user.is_some() || process.wants_home {
        let root = root_of(init)?;
        let choice = exec.user.clone().unwrap_or_else(|| wire::UserChoice::resolved(&user));
        let resolved = user::resolve(root.as_fd(), &choice)?;
        process.set_home(&resolved.home);
        process.check_user(&resolved.user)?;
        user = resolved.user;
    }
    let streams = match &stdio {
        ChildStdio::Fds { stdin, .. } if exec.tty => confine::Streams::Terminal(stdin.as_fd()),
        other => streams(other, None)?,
    };
    let (mut reports, reporter) = report::pipe()?;
    let child = born(CloneFlags::default(), exec_cgroup, Some(init), || {
        let failed = match enter(&process, &user, streams, init, &reporter) {
            Err(failed) => failed,
            Ok(()) => confine::execute(&process),
        };
        reporter.send(Message::Failed(failed));
    })?;
    drop(reporter); // the child's is the only one left, so that its end is seen
    match listen(&mut reports, &mut Vec::new(), |failed| explain::process_error(failed, &process)) {
        Ok(()) => finish(child),
        Err(e) => {
            let _ = pidfd::kill_and_reap(child.pidfd.as_fd()); // it is ours, so there is nothing that could fail
            Err(e)
        }
    }
}

/// In the child: the container's namespaces and confinement, in the order of its own start.
fn enter(
    process: &plan::Process,
    user: &User,
    streams: confine::Streams<'_>,
    init: BorrowedFd<'_>,
    reporter: &Reporter,
) -> Result<(), Failed> {
    confine::leave_the_shim(process, user, streams, true, &[init, reporter.0.as_fd()], reporter)?;
    let all = NsFlags::MOUNT.with(NsFlags::NET).with(NsFlags::IPC).with(NsFlags::UTS).with(NsFlags::CGROUP);
    let all = match process.ids {
        Some(_) => {
            confine::raise_limits(process, reporter)?;
            all.with(NsFlags::USER)
        }
        None => all,
    };
    // All at once, and by pidfd: a pid could be another's by now. Root and working directory become the container's root.
    ns::setns(init, all).at(Step::Setns)?;
    let root = openat2::open_host_path(c"/").at(Step::Setns)?;
    confine::confine(process, user, root.as_fd(), reporter)
}

/// The root directory of the process that a pidfd is for.
pub(super) fn root_of(init: BorrowedFd<'_>) -> Result<OwnedFd, StartError> {
    let os = |e: std::io::Error| StartError::os(Step::User, "root of the container", e.raw_os_error().unwrap_or(0));
    let pid = pidfd::pid_of(init).map_err(os)?;
    let path = CString::new(format!("/proc/{pid}/root")).unwrap_or_default(); // a number has no NUL
    let root = openat2::open_host_path(&path).map_err(os)?;
    // Still the same process, so the pid was its own all the while.
    pidfd::pid_of(init).map_err(os)?;
    openat2::open_beneath(root.as_fd(), c".", Links::Refused, Open::Directory).map_err(os)
}
