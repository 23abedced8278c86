//! The child's steps that make it no more than its program may be, the same for a container's first process and for its execs.
//! Each says why it stands where it stands.

use super::plan::Process;
use super::report::{At, Failed, Message, Reporter};
use super::{Step, libc_errno};
use crate::state::record::User;
use crate::sys::openat2::{self, Links, Open};
use crate::sys::sched::{self, Policy};
use crate::sys::{capability, credentials, exec, install_seccomp, prctl, rlimit};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The child's standard streams, borrowed from what the parent was given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Streams<'a> {
    Fds([BorrowedFd<'a>; 3]),
    /// The terminal's slave.
    Terminal(BorrowedFd<'a>),
}

/// The first steps: nothing of the shim's is kept but what `keep` names. `leads`: this process becomes the program itself, and leads its session;
/// else the one that does has to.
pub(super) fn leave_the_shim(
    process: &Process,
    user: &User,
    streams: Streams<'_>,
    leads: bool,
    keep: &[BorrowedFd<'_>],
    reporter: &Reporter,
) -> Result<(), Failed> {
    // First of all: from the clone on, a process of the pid namespace sees this one, and must not be able to read the shim's memory in
    // it, or to become it (CVE-2016-9962). It is born so, for the shim is. Ends at execve.
    //
    // Whoever has CAP_SYS_PTRACE can all the same (ptrace(2), PTRACE_MODE_ATTACH), as with runc: the user namespace of this memory is the
    // host's, and so is that capability's. For the milliseconds until `confine` it would then have root's rights on the host. That is
    // a container with SYS_PTRACE added, looking at an exec in itself or, in a pod that shares its pid namespace, at any start; to be
    // closed by user namespaces, or by a last clone into the pid namespace after all of `confine`, which costs each exec another fork.
    prctl::set_not_dumpable().at(Step::Dumpable)?;
    leave_the_quota();
    if leads {
        lead_a_session(streams)?;
    }
    // Before the shim's descriptors go, for ours are among them; they are duplicates from here on.
    let fds = match streams {
        Streams::Fds(fds) => fds,
        Streams::Terminal(slave) => [slave; 3],
    };
    for (fd, to) in fds.into_iter().zip(0..) {
        give(fd, process.host_uid(user.uid)).at(Step::Stdio)?;
        exec::dup_to_standard(fd, to).at(Step::Stdio)?;
    }
    // Before anything of the container is entered: sockets, pipes and cgroups of the shim must not be there to be stolen
    // (CVE-2024-21626 and CVE-2019-5736 lived on what was left open).
    exec::close_all_but(keep, true).at(Step::CloseInherited)?;
    // The keyring is made with the label of whose it will be.
    let keys = label_attribute(process, KEYCREATE)?;
    // A new session keyring: the shim's would be shared by all containers (CVE-2019-5736's neighbour, K of our list).
    match credentials::join_session_keyring() {
        Err(e) if matches!(e.raw_os_error(), Some(libc_errno::ENOSYS | libc_errno::EDQUOT)) => {} // no keyrings: none shared
        joined => joined.at(Step::Keyring)?,
    }
    if keys {
        // What follows makes no keys, and nothing of it outlives execve(2).
        openat2::open_proc(KEYCREATE, Open::Write)
            .and_then(|file| openat2::write_all_once(file.as_fd(), b"\n"))
            .at(Step::Selinux)?;
    }
    // Through the host's /proc, before the container's is entered, which may be anything (CVE-2019-16884).
    enter_apparmor(process)?;
    label_attribute(process, EXEC)?;
    oom_score_adj(process, reporter)
}

/// Begins a session, whose terminal is the container's. Only in the process that becomes the program: a terminal is taken from a session whose
/// first process ends, and a session that began outside of a pid namespace is none inside.
pub(super) fn lead_a_session(streams: Streams<'_>) -> Result<(), Failed> {
    credentials::setsid().at(Step::Session)?;
    match streams {
        Streams::Terminal(slave) => credentials::tiocsctty(slave).at(Step::Stdio),
        Streams::Fds(_) => Ok(()),
    }
}

/// Where this process names the SELinux labels that its next program has, and keys that it makes (proc_pid_attr(5)). It has one thread.
const EXEC: &CStr = c"self/attr/exec";
const KEYCREATE: &CStr = c"self/attr/keycreate";

/// Writes the label, and reads it back; whether there is one. As with a profile: it comes with the program, whatever happens in between.
fn label_attribute(process: &Process, path: &CStr) -> Result<bool, Failed> {
    let Some(label) = &process.selinux else { return Ok(false) };
    openat2::open_proc(path, Open::Write)
        .and_then(|file| openat2::write_all_once(file.as_fd(), label.to_bytes()))
        .at(Step::Selinux)?;
    let mut said = vec![0; MAX_LABEL];
    let file = openat2::open_proc(path, Open::Read).at(Step::Selinux)?;
    let length = openat2::read_once(file.as_fd(), &mut said).at(Step::Selinux)?;
    match said[..length].strip_prefix(label.to_bytes()) {
        Some([] | [b'\0' | b'\n', ..]) => Ok(true),
        _ => Err(io::Error::from_raw_os_error(libc_errno::EPERM)).at(Step::Selinux),
    }
}

/// Where this process names the profile that its next program is to run in, and reads it back; the second before Linux 5.8, and only
/// there, for where several security modules are it is another one's (Documentation/admin-guide/LSM/index.rst).
const APPARMOR: [&CStr; 2] = [c"self/attr/apparmor/exec", c"self/attr/exec"];
/// The longest answer there: a name and its mode.
const MAX_LABEL: usize = 4096;

/// The kernel changes the profile with the program, whatever happens in between: neither a change of user nor one of namespaces loses it, and
/// from an unconfined process no_new_privs allows it.
fn enter_apparmor(process: &Process) -> Result<(), Failed> {
    let Some(profile) = &process.apparmor else { return Ok(()) };
    let profile = profile.to_bytes();
    let path = if openat2::open_proc(APPARMOR[0], Open::Path).is_ok() { APPARMOR[0] } else { APPARMOR[1] };
    openat2::open_proc(path, Open::Write)
        .and_then(|file| openat2::write_all_once(file.as_fd(), &[b"exec ".as_slice(), profile].concat()))
        .at(Step::AppArmor)?;
    // Not the word of the write: what is written to something else would have been taken as well.
    let mut said = vec![0; MAX_LABEL];
    let file = openat2::open_proc(path, Open::Read).at(Step::AppArmor)?;
    let length = openat2::read_once(file.as_fd(), &mut said).at(Step::AppArmor)?;
    match said[..length].strip_prefix(profile) {
        Some([] | [b' ' | b'\n', ..]) => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc_errno::EPERM)).at(Step::AppArmor),
    }
}

/// The way to the program is ours, not the container's, and takes locks of the whole host (mounts, namespaces): before Linux 6.18 one
/// that is out of its quota there keeps them until its next slice, and a start under 1m takes half a minute of a slow machine.
///
/// By its policy and not by lifting `cpu.max`: what was written and read back stays as it is, at every level, and whatever
/// becomes of shim and engine, this process comes [`under_the_quota`] before it can run anything of the container's, or ends.
pub(super) fn leave_the_quota() {
    let _ = sched::set_policy(Policy::Unthrottled); // where that is not allowed, it starts as slowly as its quota says
}

/// From here on `cpu.max` applies.
pub(super) fn under_the_quota() -> Result<(), Failed> {
    sched::set_policy(Policy::Ordinary).at(Step::Policy)
}

fn oom_score_adj(process: &Process, reporter: &Reporter) -> Result<(), Failed> {
    let value = process.oom_score_adj.to_string();
    let written = openat2::open_proc(c"self/oom_score_adj", Open::Write)
        .and_then(|file| openat2::write_all_once(file.as_fd(), value.as_bytes()));
    match written.at(Step::OomScoreAdj) {
        Err(failed) if failed.errno == libc_errno::EACCES && process.allow_unenforced => {
            reporter.send(Message::Warning(failed));
            Ok(())
        }
        written => written,
    }
}

/// Pipes and terminals belong to the container's user, so that it may open /dev/stdout again. Not /dev/null, which is everybody's.
fn give(fd: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    let stat = openat2::fstat(fd)?;
    let terminal = matches!(stat.char_device, Some((136..=143, _))); // Documentation/admin-guide/devices.txt: Unix98 slaves
    if stat.uid != uid && (stat.is_fifo || terminal) { openat2::fchown_user(fd, uid) } else { Ok(()) }
}

/// To be called before the user namespace is entered: to raise a limit takes a capability that nobody has in there.
pub(super) fn raise_limits(process: &Process, reporter: &Reporter) -> Result<(), Failed> {
    for (index, limit) in process.rlimits.iter().enumerate() {
        match rlimit::raise_to(limit.resource, limit.soft, limit.hard).on(Step::Rlimit, index) {
            Err(failed) if failed.errno == libc_errno::EPERM && process.allow_unenforced => {
                reporter.send(Message::Warning(failed));
            }
            set => set?,
        }
    }
    Ok(())
}

/// The steps between being inside the root and the program. `root` is the container's root directory.
pub(super) fn confine(process: &Process, user: &User, root: BorrowedFd<'_>, reporter: &Reporter) -> Result<(), Failed> {
    // While root of the host still: raising a limit takes CAP_SYS_RESOURCE. In a user namespace they were raised before it.
    for (index, limit) in process.rlimits.iter().enumerate() {
        match rlimit::setrlimit(limit.resource, limit.soft, limit.hard).on(Step::Rlimit, index) {
            Err(failed) if failed.errno == libc_errno::EPERM && process.allow_unenforced => {
                if process.ids.is_none() {
                    reporter.send(Message::Warning(failed)); // else it was, when it could not be raised
                }
            }
            set => set?,
        }
    }
    workdir(process, root)?;
    credentials::umask(process.umask);
    exec::reset_signals().at(Step::Signals)?;
    // From here on no descriptor but 0 to 2 outlives the program; the report pipe closes with it, which is the good news.
    exec::cloexec_from_3().at(Step::CloseFiles)?;
    if process.no_new_privs {
        prctl::set_no_new_privs().at(Step::NoNewPrivs)?;
    }
    // Before the uid changes: takes CAP_SETPCAP.
    capability::limit_bounding_set(process.bounding).at(Step::BoundingSet)?;
    // The permitted set must outlive the change of uid.
    prctl::set_keepcaps(true).at(Step::Capabilities)?;
    // Groups, then gid, then uid: each takes what the next one gives up. Groups always, on every path (CVE-2022-2995).
    credentials::setgroups(&user.groups).at(Step::Groups)?;
    credentials::setresgid(user.gid).at(Step::Gid)?;
    credentials::setresuid(user.uid).at(Step::Uid)?;
    prctl::set_keepcaps(false).at(Step::Capabilities)?;
    // Without no_new_privs a filter takes CAP_SYS_ADMIN, which goes right after it.
    let filtered = !process.seccomp.code.is_empty();
    let extra = if filtered && !process.no_new_privs { capability::SYS_ADMIN } else { 0 };
    let (permitted, effective) = (process.permitted | extra, process.effective | extra);
    // Inheritable is what is ambient and nothing more (CVE-2022-24769).
    capability::capset(permitted, effective, process.ambient).at(Step::Capabilities)?;
    capability::set_ambient(process.ambient).at(Step::Ambient)?;
    // Before the filter, which may not allow it.
    under_the_quota()?;
    // As late as can be: every call above would else have to be allowed by the container's profile. After it: capset where it was
    // needed for the filter, execve, and write for bad news.
    if filtered {
        install_seccomp(&process.seccomp.code, process.seccomp.flags).at(Step::Seccomp)?;
    }
    if extra != 0 {
        capability::capset(process.permitted, process.effective, process.ambient).at(Step::Capabilities)?;
    }
    Ok(())
}

/// After the mounts, so that what is read-only or masked is so for a process standing in it; and checked to be inside the root
/// (CVE-2024-21626). As root, like runc: a directory that its user may not enter is an image's choice.
fn workdir(process: &Process, root: BorrowedFd<'_>) -> Result<(), Failed> {
    let dir = openat2::open_beneath(root, &process.cwd, Links::InRoot, Open::Directory).at(Step::Workdir)?;
    exec::fchdir(dir.as_fd()).at(Step::Workdir)?;
    let cwd = exec::getcwd().at(Step::Workdir)?;
    if cwd.to_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(Failed { step: Step::Workdir, object: 0, errno: libc_errno::EXDEV }) // "(unreachable)"
}

/// Becomes the program, trying each of the plan's places; returns only what went wrong.
pub(super) fn execute(process: &Process) -> Failed {
    execute_in(&process.programs, &process.argv, &process.env)
}

/// The same for an init, which has no plan.
pub(super) fn execute_in(programs: &[CString], argv: &[CString], env: &[CString]) -> Failed {
    let mut refused = None;
    for (index, program) in programs.iter().enumerate() {
        let errno = exec::execve(program, argv, env).raw_os_error().unwrap_or(0);
        let failed = Failed { step: Step::Exec, object: u16::try_from(index).unwrap_or(u16::MAX), errno };
        match errno {
            libc_errno::ENOENT | libc_errno::ENOTDIR => {}
            libc_errno::EACCES => refused = refused.or(Some(failed)), // execvp(3): later ones may be better
            _ => return failed,
        }
    }
    refused.unwrap_or(Failed { step: Step::Exec, object: 0, errno: libc_errno::ENOENT })
}
