//! The parent's half of a container's start: decide, open, clone, listen.

use super::confine::Streams;
use super::devices::{Attached, Devices};
use super::init::Inherited;
use super::plan::{PidNamespace, Plan, Root};
use super::report::{self, Failed, Message, Reports};
use super::trees::{self, Trees, Watch};
use super::{Child, ChildStdio, StartError, Started, Step, explain, user};
use crate::state::record::{Process, User};
use crate::sys::clone::{self, CloneFlags, Cloned};
use crate::sys::ns::{self, NsFlags};
use crate::sys::{openat2, pidfd, start_time};
use crate::wire;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How often a start begins anew because something was mounted below a volume with propagation in the meantime.
const MAX_ATTEMPTS: u32 = 5;

/// Makes a container's root in advance, for [`start`]. Not for a pod with a user namespace or labels of SELinux.
///
/// # Errors
/// [`Step::Plan`] for a root that could not be, [`Step::Overlay`].
pub fn prepare(root: &wire::Root) -> Result<OwnedFd, StartError> {
    trees::overlay(&Root::new(root)?, None)
}

/// Where a container is started.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The pidfd of the pod's pause.
    pub pause: BorrowedFd<'a>,
    /// That of the container named by `namespaces.pid == NamespaceMode::Target`, else `None`.
    pub pid_target: Option<BorrowedFd<'a>>,
    /// The container's directory of cgroup v2, in which nothing has run.
    pub cgroup: BorrowedFd<'a>,
}

/// Starts a container: returns when its program runs (execve(2) succeeded).
///
/// `prepared` is what [`prepare`] has made of the same root, if it has; `devices` the programs that this process has loaded for other
/// containers. `meanwhile` is done while the child sets up what its program sees; if it says `false` the program never runs. Must be
/// called in the host's mount namespace, by a process with one thread whose descriptors 0 to 2 are open.
///
/// # Errors
/// The step that failed. The child is reaped, and the cgroup is as empty as before.
pub fn start(
    launch: &wire::Launch,
    prepared: Option<OwnedFd>,
    place: Place<'_>,
    devices: &mut Devices,
    stdio: ChildStdio,
    meanwhile: impl FnOnce() -> bool,
) -> Result<Started, StartError> {
    let doing = format!("start container {}", launch.container.short());
    begin(launch, prepared, place, devices, stdio, meanwhile).map_err(|e| e.context(&doing))
}

fn begin(
    launch: &wire::Launch,
    mut prepared: Option<OwnedFd>,
    Place { pause, pid_target, cgroup }: Place<'_>,
    devices: &mut Devices,
    stdio: ChildStdio,
    meanwhile: impl FnOnce() -> bool,
) -> Result<Started, StartError> {
    let mut plan = Plan::new(launch)?;
    let mut meanwhile = Some(meanwhile);
    let pid_of = match (plan.pid, pid_target) {
        (PidNamespace::Pod, _) => Some(pause),
        (PidNamespace::Target, Some(target)) => Some(target),
        (PidNamespace::Target, None) => {
            return Err(StartError::refused(Step::Plan, "namespaces.pid: the target container does not run"));
        }
        (PidNamespace::Own | PidNamespace::Host, _) => None,
    };
    // Before the first process is in there: an open file stays open. It goes with the cgroup.
    devices
        .apply(cgroup, &plan.device_rules, &Attached::default())
        .map_err(|e| StartError::refused(Step::DeviceFilter, e.to_string()))?;
    let namespace = match plan.ids {
        Some(_) => Some(user_namespace(pause)?),
        None => None,
    };
    let namespace = namespace.as_ref().map(AsFd::as_fd);
    for attempt in 1.. {
        let watch = trees::watch(&plan)?;
        // One that was made in advance has neither mapped ids nor a label.
        let root = match prepared.take().filter(|_| namespace.is_none() && plan.root.label.is_none()) {
            Some(root) => root,
            None => trees::overlay(&plan.root, namespace)?,
        };
        let resolved = user::resolve(root.as_fd(), &launch.user)?;
        plan.process.check_user(&resolved.user)?;
        plan.process.set_home(&resolved.home);
        let places = Places { pause, pid_of, cgroup, namespace };
        let meanwhile = || meanwhile.take().is_none_or(|once| once());
        if let Some(started) = attempt_start(&plan, resolved.user, root, &stdio, &places, watch, meanwhile)? {
            return Ok(started);
        }
        if attempt == MAX_ATTEMPTS {
            break;
        }
        trees::forget_volatile(&plan.root);
    }
    let message = format!("mounts below its volumes changed during each of {MAX_ATTEMPTS} starts; try again");
    Err(StartError::refused(Step::Volume, message))
}

/// Where the child is born.
struct Places<'a> {
    pause: BorrowedFd<'a>,
    pid_of: Option<BorrowedFd<'a>>,
    cgroup: BorrowedFd<'a>,
    /// The pod's user namespace.
    namespace: Option<BorrowedFd<'a>>,
}

/// The user namespace of the pod.
fn user_namespace(pause: BorrowedFd<'_>) -> Result<OwnedFd, StartError> {
    ns::user_namespace_of(pause)
        .map_err(|e| StartError::os(Step::UserNamespace, "of pause", e.raw_os_error().unwrap_or(0)))
}

/// One attempt; `None` when what was mounted meanwhile asks for another.
fn attempt_start(
    plan: &Plan,
    user: User,
    root: OwnedFd,
    stdio: &ChildStdio,
    places: &Places<'_>,
    watch: Option<Watch>,
    meanwhile: impl FnOnce() -> bool,
) -> Result<Option<Started>, StartError> {
    let trees = trees::open(plan, root, matches!(stdio, ChildStdio::Terminal), places.namespace)?;
    let streams = streams(stdio, trees.terminal.as_ref().map(|t| t.slave.as_fd()))?;
    let os = |step, e: io::Error| StartError::os(step, "", e.raw_os_error().unwrap_or(0));
    let (mut reports, reporter) = report::pipe()?;
    let (reader, go) = pidfd::pipe().map_err(|e| os(Step::Clone, e))?;
    let program = match plan.process.init {
        true => Some(openat2::open_host_path(c"/proc/self/exe").map_err(|e| os(Step::Clone, e))?),
        false => None,
    };
    let flags = CloneFlags::default()
        .with_if(plan.private_cgroup, CloneFlags::NEWCGROUP)
        // In a user namespace it is made in there: see `init`.
        .with_if(plan.pid == PidNamespace::Own && plan.ids.is_none(), CloneFlags::NEWPID);
    let inherited = Inherited {
        plan,
        user: &user,
        trees: &trees,
        streams,
        pause: places.pause,
        go: reader.as_fd(),
        watched: watch.is_some(),
        program: program.as_ref().map(AsFd::as_fd),
        reporter: &reporter,
    };
    let mut child = born(flags, places.cgroup, places.pid_of, || {
        let failed = inherited.run();
        reporter.send(Message::Failed(failed));
    })?;
    drop(reporter); // the child's is the only one left, so that its end is seen
    // All that can be done before the program runs is done while the child is at work, on another processor.
    let Trees { root, mounts, null, terminal } = trees;
    drop((root, mounts, null, reader));
    let mut warnings = Vec::new();
    let describe = |failed: Failed| explain::start_error(failed, plan, &plan.process);
    let mut first = None;
    let listened = (|| {
        first = Some(process_of(child.pid)?);
        if !meanwhile() {
            return Err(StartError::refused(Step::Report, "the shim's own part has failed"));
        }
        if let Some(watch) = &watch {
            listen_for_ready(&mut reports, &mut warnings, describe)?;
            if watch.changed()? {
                return Ok(false);
            }
        }
        // A child that has failed by now does not read it: why it has is in its report.
        let _ = openat2::write_all_once(go.as_fd(), b"!");
        listen_in_turn(&mut reports, &mut warnings, &mut child, plan.has_sibling(), describe).map(|()| true)
    })();
    match listened {
        Ok(true) => {
            let terminal = terminal.map(|t| t.master);
            let child = match first.filter(|first| first.pid == child.pid) {
                Some(process) => Child { process, pidfd: child.pidfd },
                None => finish(child)?, // another one has taken its place
            };
            Ok(Some(Started { child, user, terminal, warnings }))
        }
        other => {
            let _ = pidfd::kill_and_reap(child.pidfd.as_fd()); // it is ours, so there is nothing that could fail
            other.map(|_| None)
        }
    }
}

/// The streams as the child gets them.
pub(super) fn streams<'a>(stdio: &'a ChildStdio, terminal: Option<BorrowedFd<'a>>) -> Result<Streams<'a>, StartError> {
    match (stdio, terminal) {
        (ChildStdio::Fds { stdin, stdout, stderr }, _) => {
            Ok(Streams::Fds([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]))
        }
        (ChildStdio::Terminal, Some(slave)) => Ok(Streams::Terminal(slave)),
        (ChildStdio::Terminal, None) => Err(StartError::refused(Step::Terminal, "there is no terminal")),
    }
}

/// A child that has not been heard of yet.
pub(super) struct Born {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

/// Clones a child into `cgroup` and into the pid namespace of `pid_of` (else of `flags`). `child` runs in it, and it ends after.
///
/// This process's own children are born in the host's pid namespace again when it returns.
pub(super) fn born(
    flags: CloneFlags,
    cgroup: BorrowedFd<'_>,
    pid_of: Option<BorrowedFd<'_>>,
    child: impl FnOnce(),
) -> Result<Born, StartError> {
    let os = |step, e: io::Error| StartError::os(step, "", e.raw_os_error().unwrap_or(0));
    let own = match pid_of {
        Some(_) => Some(ns::pid_for_children().map_err(|e| os(Step::Namespace, e))?),
        None => None,
    };
    if let Some(pid_of) = pid_of {
        ns::setns(pid_of, NsFlags::PID).map_err(|e| os(Step::Namespace, e))?;
    }
    let cloned = clone::clone3(flags, cgroup);
    if matches!(cloned, Ok(Cloned::Child)) {
        child();
        clone::exit_now(CHILD_FAILED);
    }
    let back = match &own {
        Some(own) => ns::setns(own.as_fd(), NsFlags::PID),
        None => Ok(()),
    };
    match (cloned, back) {
        (Ok(Cloned::Parent { pid, pidfd }), Ok(())) => Ok(Born { pid, pidfd }),
        (Ok(Cloned::Parent { pidfd, .. }), Err(e)) => {
            let _ = pidfd::kill_and_reap(pidfd.as_fd()); // it is ours, so there is nothing that could fail
            Err(os(Step::Namespace, e))
        }
        (Err(e), _) => Err(os(Step::Clone, e)),
        (Ok(Cloned::Child), _) => clone::exit_now(CHILD_FAILED),
    }
}

/// The exit code of a child that never ran its program; nobody is shown it.
const CHILD_FAILED: i32 = 128;

/// As [`listen`]; a child that has made another one in its place ends, and `child` is the other one then. `due`: it makes one.
fn listen_in_turn(
    reports: &mut Reports,
    warnings: &mut Vec<String>,
    child: &mut Born,
    mut due: bool,
    describe: impl Fn(Failed) -> StartError,
) -> Result<(), StartError> {
    loop {
        match reports.next().map_err(&describe)? {
            None if due => {
                return Err(StartError::refused(Step::Report, "the child was killed before its program ran"));
            }
            None => return Ok(()),
            Some(Message::Failed(failed)) => return Err(describe(failed)),
            Some(Message::Warning(failed)) => warnings.push(describe(failed).message),
            Some(Message::Ready) => {}
            Some(Message::Sibling(pid)) => {
                due = false;
                let os = |e: io::Error| StartError::os(Step::Sibling, "", e.raw_os_error().unwrap_or(0));
                let pid = u32::try_from(pid).unwrap_or(0);
                // It is this process's child, so its number stays its own until it is reaped here.
                let pidfd = pidfd::pidfd_open(pid).map_err(os)?;
                let first = std::mem::replace(child, Born { pid, pidfd });
                // It has yet to tell the other one that it is heard of; killed before that the other one ends as well. It is ours.
                let _ = pidfd::let_end_and_reap(first.pidfd.as_fd());
            }
        }
    }
}

/// Listens until the pipe ends: the program runs.
pub(super) fn listen(
    reports: &mut Reports,
    warnings: &mut Vec<String>,
    describe: impl Fn(Failed) -> StartError,
) -> Result<(), StartError> {
    loop {
        match reports.next().map_err(&describe)? {
            None => return Ok(()),
            Some(Message::Failed(failed)) => return Err(describe(failed)),
            Some(Message::Warning(failed)) => warnings.push(describe(failed).message),
            Some(Message::Ready | Message::Sibling(_)) => {}
        }
    }
}

/// Listens until the child says that it waits.
fn listen_for_ready(
    reports: &mut Reports,
    warnings: &mut Vec<String>,
    describe: impl Fn(Failed) -> StartError,
) -> Result<(), StartError> {
    loop {
        match reports.next().map_err(&describe)? {
            None => return Err(StartError::refused(Step::Report, "the child was killed before its program ran")),
            Some(Message::Failed(failed)) => return Err(describe(failed)),
            Some(Message::Warning(failed)) => warnings.push(describe(failed).message),
            Some(Message::Ready) => return Ok(()),
            Some(Message::Sibling(_)) => {} // it comes after that
        }
    }
}

/// A child as callers know it.
pub(super) fn finish(born: Born) -> Result<Child, StartError> {
    Ok(Child { process: process_of(born.pid)?, pidfd: born.pidfd })
}

/// A child that was not reaped: a zombie still has a start time.
fn process_of(pid: u32) -> Result<Process, StartError> {
    let start_time =
        start_time(pid).map_err(|e| StartError::os(Step::Report, "start time", e.raw_os_error().unwrap_or(0)))?;
    Ok(Process { pid, start_time })
}
