//! The pod's first process: it owns the pod's namespaces and its tiny mount namespace, is PID 1 of the pod's pid namespace, and is
//! worthless to whoever can ptrace it (a pod with a shared pid namespace and SYS_PTRACE can): no descriptor, no file, no
//! capability, no root's uid, not dumpable. It has no /proc either: files there obey uid 0 without any capability. (In a pod with a
//! user namespace there is one, where that namespace's uid 0 is nobody's.)
//!
//! The tiny namespace is a 4 KiB tmpfs, read-only, with `/root` (where a container's root is attached in its copy), `/shm` (the
//! pod's /dev/shm) and the empty `/proc` and `/sys`.

use super::plan::label;
use super::report::{self, At, Failed, Message, Reporter, wait_for};
use super::spawn::{born, finish};
use super::{Child, StartError, Step, confine, libc_errno};
use crate::state::model::{IdMap, NamespaceMode, UserNamespace};
use crate::sys::clone::{self, CloneFlags};
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::openat2::{self, Links, Open};
use crate::sys::{capability, credentials, exec, ns, pidfd, prctl};
use crate::wire::Sandbox;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Neither root's nor a likely user's: what the pause image of Kubernetes runs as.
const PAUSE_ID: u32 = 65535;
/// The longest host name, HOST_NAME_MAX of linux/limits.h.
const MAX_HOSTNAME_BYTES: usize = 64;
/// How long pause keeps its program mapped, to give it back in a quieter moment.
const SETTLE: Duration = Duration::from_millis(500);
/// Signals that end pause (signal(7)).
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// What is decided before the clone.
struct Plan {
    hostname: CString,
    /// Path below /proc/sys and value.
    sysctls: Vec<Sysctl>,
    shm_size: Option<CString>,
    /// SELinux's, of /dev/shm.
    shm_label: Option<CString>,
    own_network: bool,
    oom_score_adj: i32,
    /// Of its own user namespace.
    ids: Option<IdMap>,
}

/// One file below /proc/sys.
#[derive(Debug, PartialEq, Eq)]
struct Sysctl {
    path: CString,
    name: String,
    value: String,
}

/// Starts pause in `cgroup` (a directory of cgroup v2) and returns when the pod's namespaces are ready: lo up, hostname, sysctls
/// and /dev/shm set. It ends on SIGTERM (or with SIGKILL), and the namespaces with it. Call it before any config or secret is
/// in this process's memory: pause is a fork. `meanwhile` is done here while that sets the namespaces up.
///
/// # Errors
/// The step that failed; nothing is left.
pub fn start(sandbox: &Sandbox, cgroup: BorrowedFd<'_>, meanwhile: impl FnOnce()) -> Result<Child, StartError> {
    let doing = format!("start sandbox {}", sandbox.pod.short());
    begin(sandbox, cgroup, meanwhile).map_err(|e| e.context(&doing))
}

fn begin(sandbox: &Sandbox, cgroup: BorrowedFd<'_>, meanwhile: impl FnOnce()) -> Result<Child, StartError> {
    let plan = Plan::new(sandbox)?;
    let own = |mode: &NamespaceMode| *mode != NamespaceMode::Node;
    let namespaces = &sandbox.namespaces;
    let flags = CloneFlags::NEWNS
        .with_if(own(&namespaces.network), CloneFlags::NEWNET.with(CloneFlags::NEWUTS))
        .with_if(own(&namespaces.ipc), CloneFlags::NEWIPC)
        .with_if(own(&namespaces.pid), CloneFlags::NEWPID)
        // All the others are its own then. So is a pid namespace in any case, whose /proc makes its containers' possible.
        .with_if(plan.ids.is_some(), CloneFlags::NEWUSER.with(CloneFlags::NEWPID));
    let (mut reports, reporter) = report::pipe()?;
    let go = match plan.ids {
        Some(_) => Some(pidfd::pipe().map_err(|e| StartError::os(Step::Clone, "", e.raw_os_error().unwrap_or(0)))?),
        None => None,
    };
    let mapped = go.as_ref().map(|(reader, _)| reader.as_fd());
    let child = born(flags, cgroup, None, || match plan.set_up(&reporter, mapped) {
        Err(failed) => reporter.send(Message::Failed(failed)),
        Ok(()) => wait_for_the_end(&reporter),
    })?;
    drop(reporter); // the child's is the only one left
    if let (Some(ids), Some((_, go))) = (&plan.ids, &go)
        && let Err(e) = plan.map_ids(child.pid, ids, go.as_fd())
    {
        let _ = pidfd::kill_and_reap(child.pidfd.as_fd()); // it is ours, so there is nothing that could fail
        return Err(plan.explain(e));
    }
    meanwhile();
    let answer = reports.next().map_err(|failed| plan.explain(failed)).and_then(|message| match message {
        Some(Message::Ready) => Ok(()),
        Some(Message::Failed(failed) | Message::Warning(failed)) => Err(plan.explain(failed)),
        Some(Message::Sibling(_)) => Err(StartError::refused(Step::Report, "pause makes no other process")),
        None => Err(StartError::refused(Step::Report, "pause was killed before it was ready")),
    });
    match answer {
        Ok(()) => finish(child),
        Err(e) => {
            let _ = pidfd::kill_and_reap(child.pidfd.as_fd()); // it is ours, so there is nothing that could fail
            Err(e)
        }
    }
}

impl Plan {
    fn new(sandbox: &Sandbox) -> Result<Plan, StartError> {
        let refused = |message: String| StartError::refused(Step::Plan, message);
        let hostname = if sandbox.own_network() { sandbox.hostname.as_str() } else { "" };
        if hostname.len() > MAX_HOSTNAME_BYTES {
            return Err(refused(format!("hostname {hostname:?} is longer than {MAX_HOSTNAME_BYTES} bytes")));
        }
        let own_ipc = sandbox.namespaces.ipc != NamespaceMode::Node;
        let ids = id_map(sandbox)?;
        let mut sysctls = Vec::new();
        // As containerd has them: a pod's processes may ping and bind low ports without capabilities. All groups that there are.
        let groups = ids.map_or("0 2147483647".to_owned(), |ids| format!("0 {}", ids.gids.length - 1));
        let defaults = [("net.ipv4.ping_group_range", groups.as_str()), ("net.ipv4.ip_unprivileged_port_start", "0")];
        let given = |name: &str| sandbox.sysctls.iter().any(|(known, _)| known.replace('/', ".") == name);
        for (name, value) in defaults.iter().filter(|(name, _)| sandbox.own_network() && !given(name)) {
            sysctls.push(Sysctl::new(name, value, true, own_ipc)?);
        }
        for (name, value) in &sandbox.sysctls {
            sysctls.push(Sysctl::new(name, value, sandbox.own_network(), own_ipc)?);
        }
        Ok(Plan {
            hostname: CString::new(hostname).map_err(|_| refused(format!("hostname {hostname:?} has a NUL byte")))?,
            sysctls,
            shm_size: own_ipc.then(|| CString::new(sandbox.shm_bytes.to_string()).unwrap_or_default()), // digits
            shm_label: label("file_label", sandbox.file_label.as_deref())?,
            own_network: sandbox.own_network(),
            oom_score_adj: sandbox.oom_score_adj,
            ids,
        })
    }

    /// In the parent, which alone may: the ids of the child's user namespace, and what it could not set itself any more.
    fn map_ids(&self, pid: u32, ids: &IdMap, go: BorrowedFd<'_>) -> Result<(), Failed> {
        let write = |file: &str, text: String| {
            let path = CString::new(format!("{pid}/{file}"))?;
            openat2::open_proc(&path, Open::Write)
                .and_then(|file| openat2::write_all_once(file.as_fd(), text.as_bytes()))
        };
        for (file, range) in [("uid_map", ids.uids), ("gid_map", ids.gids)] {
            write(file, format!("0 {} {}", range.host, range.length)).at(Step::IdMaps)?;
        }
        tolerate_refusal(write("oom_score_adj", self.oom_score_adj.to_string()).at(Step::OomScoreAdj))?;
        openat2::write_all_once(go, b"!").at(Step::Report)
    }

    fn explain(&self, failed: Failed) -> StartError {
        let object = match failed.step {
            Step::Sysctl => self.sysctls.get(usize::from(failed.object)).map(|s| format!("{}={}", s.name, s.value)),
            Step::Hostname => Some(self.hostname.to_string_lossy().into_owned()),
            Step::OomScoreAdj => Some(self.oom_score_adj.to_string()),
            Step::IdMaps => self.ids.map(|ids| {
                format!("0 {} {} and 0 {} {}", ids.uids.host, ids.uids.length, ids.gids.host, ids.gids.length)
            }),
            _ => None,
        };
        StartError::os(failed.step, &object.unwrap_or_default(), failed.errno)
    }

    /// In the child: everything up to the wait.
    fn set_up(&self, reporter: &Reporter, mapped: Option<BorrowedFd<'_>>) -> Result<(), Failed> {
        // Before anything else: from the clone on, the pod's namespace may have others in it one day.
        prctl::set_not_dumpable().at(Step::Dumpable)?;
        confine::leave_the_quota();
        credentials::setsid().at(Step::Session)?;
        // Nothing of the shim's, not even the standard three.
        let keep: Vec<_> = [reporter.0.as_fd()].into_iter().chain(mapped).collect();
        exec::close_all_but(&keep, false).at(Step::CloseInherited)?;
        match mapped {
            Some(mapped) => wait_for(mapped)?, // who writes the maps has set the rest
            None => self.oom_score_adj()?,
        }
        // While the host's mounts are still here, and before capabilities go; in a user namespace of its own as the host's root still, whose
        // the files of sysctls are.
        self.namespaces()?;
        if self.ids.is_some() {
            credentials::setgroups(&[]).at(Step::Groups)?;
            credentials::setresgid(0).at(Step::Gid)?;
            credentials::setresuid(0).at(Step::Uid)?;
            prctl::set_not_dumpable().at(Step::Dumpable)?;
        }
        self.tiny_root()?;
        confine::under_the_quota()?;
        // Worthless from here on. Bounding set first, it takes CAP_SETPCAP; the uid takes the other sets with it.
        prctl::set_no_new_privs().at(Step::NoNewPrivs)?;
        capability::limit_bounding_set(0).at(Step::BoundingSet)?;
        credentials::setgroups(&[]).at(Step::Groups)?;
        let highest = self.ids.map_or(PAUSE_ID, |ids| ids.uids.length.min(ids.gids.length) - 1);
        credentials::setresgid(PAUSE_ID.min(highest)).at(Step::Gid)?;
        credentials::setresuid(PAUSE_ID.min(highest)).at(Step::Uid)?;
        capability::set_ambient(0).at(Step::Ambient)?;
        capability::capset(0, 0, 0).at(Step::Capabilities)?;
        // Again: a change of uid sets it to what fs.suid_dumpable says.
        prctl::set_not_dumpable().at(Step::Dumpable)?;
        prctl::set_name(c"pause").at(Step::Dumpable)?;
        exec::reset_signals().at(Step::Signals)?;
        // As PID 1 it inherits every orphan of the pod: the kernel reaps them, without waking anybody.
        exec::let_kernel_reap().at(Step::Signals)?;
        exec::block_signals().at(Step::Signals)
    }

    fn oom_score_adj(&self) -> Result<(), Failed> {
        let written = openat2::open_proc(c"self/oom_score_adj", Open::Write)
            .and_then(|file| openat2::write_all_once(file.as_fd(), self.oom_score_adj.to_string().as_bytes()));
        tolerate_refusal(written.at(Step::OomScoreAdj))
    }

    /// Hostname, lo and sysctls of the new namespaces.
    fn namespaces(&self) -> Result<(), Failed> {
        if !self.hostname.is_empty() {
            ns::sethostname(self.hostname.to_bytes()).at(Step::Hostname)?;
        }
        if self.own_network {
            ns::loopback_up().at(Step::Loopback)?;
        }
        if self.sysctls.is_empty() {
            return Ok(());
        }
        // A procfs of our own, attached nowhere: nobody can have put anything over its files.
        let proc = mount::new_fs(c"proc", &[], MountAttr::NONE).at(Step::Sysctl)?;
        for (index, sysctl) in self.sysctls.iter().enumerate() {
            openat2::open_beneath(proc.as_fd(), &sysctl.path, Links::Refused, Open::Write)
                .and_then(|file| openat2::write_all_once(file.as_fd(), sysctl.value.as_bytes()))
                .on(Step::Sysctl, index)?;
        }
        Ok(())
    }

    /// Leaves the host's mounts for the tiny root.
    fn tiny_root(&self) -> Result<(), Failed> {
        // Before anything is attached or detached: what is still shared with the host's mounts would happen to them.
        mount::make_all_private().at(Step::PivotRoot)?;
        let parameters = [(c"size", Some(c"4k")), (c"nr_inodes", Some(c"8")), (c"mode", Some(c"755"))];
        let attr = MountAttr::NOSUID.with(MountAttr::NODEV).with(MountAttr::NOEXEC);
        let root = mount::new_fs(c"tmpfs", &parameters, attr).at(Step::AttachRoot)?;
        mount::move_mount_path(root.as_fd(), c"/proc/fs").at(Step::AttachRoot)?;
        for dir in [c"proc", c"sys", c"root", c"shm"] {
            openat2::mkdirat(root.as_fd(), dir, 0o755).at(Step::AttachRoot)?;
        }
        if self.ids.is_some() {
            // Of pause's own pid namespace. Without one to be seen in its mount namespace no process of the user namespace may mount another.
            let proc = mount::new_fs(c"proc", &[], attr).at(Step::Mount)?;
            let place =
                openat2::open_beneath(root.as_fd(), c"proc", Links::Refused, Open::Directory).at(Step::Mount)?;
            mount::move_mount(proc.as_fd(), place.as_fd()).at(Step::Mount)?;
        }
        if let Some(size) = &self.shm_size {
            let mut parameters = vec![(c"size", Some(size.as_c_str())), (c"mode", Some(c"1777"))];
            parameters.extend(self.shm_label.as_ref().map(|label| (c"context", Some(label.as_c_str()))));
            let shm = mount::new_fs(c"tmpfs", &parameters, attr).at(Step::Shm)?;
            let place = openat2::open_beneath(root.as_fd(), c"shm", Links::Refused, Open::Directory).at(Step::Shm)?;
            mount::move_mount(shm.as_fd(), place.as_fd()).at(Step::Shm)?;
        }
        mount::mount_setattr(root.as_fd(), Depth::One, MountAttr::RDONLY, MountAttr::NONE, None)
            .at(Step::ReadonlyRoot)?;
        exec::fchdir(root.as_fd()).at(Step::PivotRoot)?;
        mount::pivot_root_here().at(Step::PivotRoot)?;
        mount::detach_here().at(Step::DetachOldRoot)?;
        // The working directory was the place in the old tree; now it is the root.
        exec::fchdir(root.as_fd()).at(Step::Workdir)
    }
}

/// To lower oom_score_adj takes CAP_SYS_RESOURCE, which `doctor` tells. It is ours, not something that the pod asked for: no reason to refuse
/// it.
fn tolerate_refusal(written: Result<(), Failed>) -> Result<(), Failed> {
    match written {
        Err(failed) if failed.errno == libc_errno::EACCES => Ok(()),
        written => written,
    }
}

/// The user namespace's ids; refused beside namespaces of the host, which it would have no rights on.
fn id_map(sandbox: &Sandbox) -> Result<Option<IdMap>, StartError> {
    let refused = |message: &str| Err(StartError::refused(Step::Plan, message));
    let namespaces = &sandbox.namespaces;
    let own = [&namespaces.network, &namespaces.ipc, &namespaces.pid].iter().all(|mode| **mode != NamespaceMode::Node);
    match &namespaces.user {
        UserNamespace::Host => Ok(None),
        UserNamespace::Mapped(ids) if own => Ok(Some(*ids)),
        UserNamespace::Mapped(_) => refused("namespaces.user: not with the host's network, ipc or pid namespace"),
        UserNamespace::Any => refused("namespaces.user: no ids were chosen"),
    }
}

/// Says that all is ready, closes the last descriptor, and waits for SIGTERM or SIGINT.
fn wait_for_the_end(reporter: &Reporter) {
    reporter.send(Message::Ready);
    if exec::close_all_but(&[], false).is_err() {
        clone::exit_now(1);
    }
    // Not at once: the pod's first container wants this CPU now.
    let mut settle = Some(SETTLE);
    while let Ok(signal) = exec::wait_signal(settle) {
        match signal {
            Some(SIGINT | SIGTERM) => clone::exit_now(0),
            Some(_) => {}
            None => {
                settle = None;
                crate::sys::forget_program();
            }
        }
    }
    clone::exit_now(1);
}

impl Sysctl {
    /// Of the namespaces that the pod has of its own, by the list that Kubernetes and runc have; a value that reached another
    /// namespace would change the host (CVE-2022-0811 was a sysctl nobody had looked at).
    fn new(name: &str, value: &str, own_network: bool, own_ipc: bool) -> Result<Sysctl, StartError> {
        let refused = |why: &str| StartError::refused(Step::Plan, format!("sysctl {name}: {why}"));
        // sysctl(8): the first separator says which of the two the name uses; the other one is then part of a name (eth0.1).
        let path: String = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
            Some(b'/') => name.to_owned(),
            _ => name
                .chars()
                .map(|c| {
                    if c == '.' {
                        '/'
                    } else if c == '/' {
                        '.'
                    } else {
                        c
                    }
                })
                .collect(),
        };
        let good = |segment: &str| {
            let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(ok)
        };
        if !path.split('/').all(good) {
            return Err(refused("not a name of letters, digits, `_`, `-` and separators"));
        }
        if value.is_empty() || value.contains(['\0', '\n']) {
            return Err(refused("the value must be one line"));
        }
        let ipc =
            ["kernel/shm", "kernel/msg", "fs/mqueue/"].iter().any(|p| path.starts_with(p)) || path == "kernel/sem";
        if path.starts_with("net/") {
            if !own_network {
                return Err(refused("it is the host's, whose network the pod has"));
            }
        } else if !ipc {
            return Err(refused("it belongs to no namespace of a pod, and would change the host"));
        } else if !own_ipc {
            return Err(refused("it is the host's, whose ipc namespace the pod has"));
        }
        let path = CString::new(format!("sys/{path}")).map_err(|_| refused("it has a NUL byte"))?;
        Ok(Sysctl { path, name: name.to_owned(), value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str, net: bool, ipc: bool) -> Result<String, String> {
        Sysctl::new(name, "1", net, ipc).map(|s| s.path.to_string_lossy().into_owned()).map_err(|e| e.to_string())
    }

    #[test]
    fn sysctls_become_files_of_the_pods_own_namespaces() {
        assert_eq!(path("net.ipv4.ip_forward", true, true).as_deref(), Ok("sys/net/ipv4/ip_forward"));
        assert_eq!(
            path("net/ipv4/conf/eth0.1/forwarding", true, true).as_deref(),
            Ok("sys/net/ipv4/conf/eth0.1/forwarding")
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/1.forwarding", true, true).as_deref(),
            Ok("sys/net/ipv4/conf/eth0.1/forwarding")
        );
        assert_eq!(path("kernel.shm_rmid_forced", false, true).as_deref(), Ok("sys/kernel/shm_rmid_forced"));
    }

    #[test]
    fn sysctls_of_the_host_are_refused() {
        for (name, net, ipc) in [
            ("kernel.core_pattern", true, true),
            ("vm.swappiness", true, true),
            ("kernel.hostname", true, true),
            ("net.ipv4.ip_forward", false, true),
            ("kernel.sem", true, false),
            ("net/../kernel/core_pattern", true, true),
            ("net.ipv4.a+b=c", true, true),
            ("", true, true),
            ("net..x", true, true),
            ("kernel/shm/../core_pattern", true, true),
        ] {
            assert!(path(name, net, ipc).is_err(), "{name}");
        }
        assert!(Sysctl::new("net.ipv4.ip_forward", "1\n2", true, true).is_err());
    }
}
