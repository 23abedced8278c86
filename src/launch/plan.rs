//! The decisions of a start, made before the clone (pure): an OCI runtime spec and a [`wire::Launch`] become a [`Plan`] that the
//! child carries out in order. Every string is a C string, nothing is parsed later, and names of users are all that is looked up.
//!
//! What cannot be honoured is refused by field. `linux.resources` but its `devices` belongs to the engine, which has applied it; `hostname`,
//! `root.path`, `linux.cgroupsPath` and the paths of `linux.namespaces` describe what the engine and pause have made already;
//! `linux.rootfsPropagation` is met by every volume having its own propagation. How mounts are read is in `plan_mounts`.

use super::plan_mounts::{Mount, Node, device_nodes, mounts, relative};
use super::seccomp::{Machine, Program, compile};
use super::{StartError, Step, devices, seccomp_profile};
use crate::state::model::{AppArmorProfile, IdMap, IdRange, NamespaceMode, UserNamespace};
use crate::state::record::User;
use crate::sys::rlimit::Resource;
use crate::sys::{capability, credentials};
use crate::wire::{self, Exec, Launch, Seccomp};
use oci_spec::runtime::{Capabilities, LinuxDeviceCgroup, LinuxIdMapping, LinuxNamespaceType, Spec};
use std::ffi::CString;
use std::path::Path;

/// Layers of one overlay beside the writable one: what Docker and containerd allow, and 127 descriptors fit a page of options.
pub const MAX_LAYERS: usize = 127;
/// Elements of PATH that are tried; a longer PATH ends here.
const MAX_PROGRAMS: usize = 256;
/// Where a command without a slash is looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The longest label, in bytes: what a parameter of fsconfig(2) takes.
const MAX_LABEL_BYTES: usize = 255;
/// Of containers whose spec names none, as in runc.
const DEFAULT_UMASK: u32 = 0o022;

/// A container's start, without options left.
#[derive(Debug)]
pub struct Plan {
    pub root: Root,
    /// Shallow before deep, so that none hides another; else in the spec's order.
    pub mounts: Vec<Mount>,
    /// Made in /dev when that is a tmpfs of the container's own.
    pub devices: Vec<Node>,
    /// Relative to the root; what is not there is left out.
    pub masked: Vec<CString>,
    pub readonly: Vec<CString>,
    pub pid: PidNamespace,
    pub private_cgroup: bool,
    /// What it may do with devices, for the filter on its cgroup.
    pub device_rules: Vec<LinuxDeviceCgroup>,
    /// The ids of the pod's user namespace, if it has its own.
    pub ids: Option<IdMap>,
    pub process: Process,
}

/// The overlay's directories, as the engine made them.
#[derive(Debug)]
pub struct Root {
    /// The lowest first.
    pub layers: Vec<CString>,
    pub upper: CString,
    pub work: CString,
    pub readonly: bool,
    /// SELinux's, of every file in it.
    pub label: Option<CString>,
}

/// Where the container's first process is born.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespace {
    /// Pause's: it is PID 1 there.
    Pod,
    /// Its own: it is PID 1.
    Own,
    /// That of another container.
    Target,
    /// The shim's, which is the host's.
    Host,
}

/// A program and its confinement: the same for a container's first process and for its execs.
#[derive(Debug, Clone)]
pub struct Process {
    /// What is tried in turn: the path, or one of each element of PATH.
    pub programs: Vec<CString>,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    /// Relative to the root; made when missing.
    pub cwd: CString,
    pub umask: u32,
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: i32,
    /// A refused rlimit or oom_score_adj is a warning.
    pub allow_unenforced: bool,
    /// Sets of capabilities(7), a bit each.
    pub bounding: u64,
    pub permitted: u64,
    pub effective: u64,
    pub ambient: u64,
    pub no_new_privs: bool,
    /// The AppArmor profile that it enters with its program; `None`: unconfined.
    pub apparmor: Option<CString>,
    /// The SELinux label that it has from its program on; `None`: that of whoever starts it.
    pub selinux: Option<CString>,
    /// No instructions: unconfined.
    pub seccomp: Program,
    /// HOME is not in `env`: /etc/passwd says it.
    pub wants_home: bool,
    /// An own init that reaps stands before the program.
    pub init: bool,
    /// As [`Plan::ids`].
    pub ids: Option<IdMap>,
}

/// A limit of setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    pub resource: Resource,
    pub soft: u64,
    pub hard: u64,
}

impl Plan {
    /// The plan of a container's start.
    ///
    /// # Errors
    /// [`Step::Plan`], naming the field that cannot be honoured.
    pub fn new(launch: &Launch) -> Result<Plan, StartError> {
        let spec = parse(launch)?;
        refuse_unsupported(&spec)?;
        let ids = id_map(launch, &spec)?;
        let linux = spec.linux().as_ref();
        let (masked, readonly) = match linux {
            Some(linux) => (
                relatives("linux.maskedPaths", linux.masked_paths())?,
                relatives("linux.readonlyPaths", linux.readonly_paths())?,
            ),
            None => (Vec::new(), Vec::new()),
        };
        let namespaces = linux.and_then(|l| l.namespaces().as_ref());
        let private_cgroup = namespaces
            .is_some_and(|all| all.iter().any(|n| n.typ() == LinuxNamespaceType::Cgroup && n.path().is_none()));
        Ok(Plan {
            root: Root {
                readonly: launch.root.readonly || read_only(&spec),
                label: file_label(&spec)?,
                ..Root::new(&launch.root)?
            },
            mounts: mounts(&spec, &launch.namespaces, private_cgroup, file_label(&spec)?.as_deref())?,
            devices: device_nodes(&spec, ids.as_ref())?,
            ids,
            masked,
            readonly,
            pid: pid_namespace(launch)?,
            private_cgroup,
            device_rules: device_rules(&spec),
            process: Process::of_container(launch, &spec)?,
        })
    }

    /// Whether the process that is cloned makes another one that becomes the program: a pid namespace belongs to the user namespace in which it is
    /// made.
    pub(super) fn has_sibling(&self) -> bool {
        self.ids.is_some() && self.pid == PidNamespace::Own
    }
}

/// The spec's rules; without any, those that every container has.
fn device_rules(spec: &Spec) -> Vec<LinuxDeviceCgroup> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().clone());
    rules.filter(|rules| !rules.is_empty()).unwrap_or_else(devices::default_rules)
}

/// The filter of system calls.
fn seccomp(launch: &Launch, spec: &Spec, bounding: u64) -> Result<Program, StartError> {
    let compiled = match launch.seccomp {
        Seccomp::Unconfined => return Ok(Program { code: Vec::new(), flags: 0 }),
        Seccomp::RuntimeDefault => seccomp_profile::compile_default(bounding),
        Seccomp::Spec => match spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
            Some(profile) => compile(profile, Machine::HOST),
            None => return Err(refused("linux.seccomp: the spec has no profile")),
        },
    };
    compiled.map_err(|e| refused(e.to_string()))
}

/// SELinux's, of what is mounted for the container alone.
fn file_label(spec: &Spec) -> Result<Option<CString>, StartError> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
    self::label("linux.mountLabel", label)
}

fn read_only(spec: &Spec) -> bool {
    spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false)
}

impl Root {
    /// # Errors
    /// [`super::Step::Plan`]: too many layers or none, a path that is not absolute.
    pub(super) fn new(root: &wire::Root) -> Result<Root, StartError> {
        let count = root.layers.len();
        if count == 0 || count > MAX_LAYERS {
            return Err(refused(format!("root.layers: {count} layers, and an overlay has 1 to {MAX_LAYERS}")));
        }
        let absolute = |field: &str, path: &Path| {
            if path.is_absolute() {
                text(field, path.as_os_str().as_encoded_bytes())
            } else {
                Err(not_absolute(field, path))
            }
        };
        Ok(Root {
            layers: root.layers.iter().map(|layer| absolute("root.layers", layer)).collect::<Result<_, _>>()?,
            upper: absolute("root.upper", &root.upper)?,
            work: absolute("root.work", &root.work)?,
            readonly: root.readonly,
            label: None,
        })
    }
}

/// Whether mappings of a spec are these: one, from 0 on.
pub(super) fn is_mapping(mappings: Option<&Vec<LinuxIdMapping>>, range: IdRange) -> bool {
    matches!(mappings.map(Vec::as_slice), Some([one])
        if (one.container_id(), one.host_id(), one.size()) == (0, range.host, range.length))
}

/// The user namespace is made by pause; the spec describes it.
fn id_map(launch: &Launch, spec: &Spec) -> Result<Option<IdMap>, StartError> {
    let linux = spec.linux().as_ref();
    let (uids, gids) = (linux.and_then(|l| l.uid_mappings().as_ref()), linux.and_then(|l| l.gid_mappings().as_ref()));
    let namespaces = linux.and_then(|l| l.namespaces().as_ref());
    let listed = namespaces.is_some_and(|all| all.iter().any(|n| n.typ() == LinuxNamespaceType::User));
    match &launch.namespaces.user {
        UserNamespace::Host if !listed && uids.is_none_or(Vec::is_empty) && gids.is_none_or(Vec::is_empty) => Ok(None),
        UserNamespace::Host => Err(refused("linux.namespaces: user, linux.uidMappings: the pod has no user namespace")),
        UserNamespace::Any => Err(refused("namespaces.user: no ids were chosen")),
        UserNamespace::Mapped(map) if listed && is_mapping(uids, map.uids) && is_mapping(gids, map.gids) => {
            let namespaces = &launch.namespaces;
            let own = |mode: &NamespaceMode| *mode != NamespaceMode::Node;
            match own(&namespaces.network) && own(&namespaces.ipc) && own(&namespaces.pid) {
                true => Ok(Some(*map)),
                false => Err(refused("namespaces.user: not with the host's network, ipc or pid namespace")),
            }
        }
        UserNamespace::Mapped(_) => Err(refused("linux.uidMappings, linux.gidMappings: not the pod's")),
    }
}

fn pid_namespace(launch: &Launch) -> Result<PidNamespace, StartError> {
    for (field, mode) in [("network", &launch.namespaces.network), ("ipc", &launch.namespaces.ipc)] {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            return Err(refused(format!("namespaces.{field}: only the pod's or the node's")));
        }
    }
    Ok(match launch.namespaces.pid {
        NamespaceMode::Pod => PidNamespace::Pod,
        NamespaceMode::Container => PidNamespace::Own,
        NamespaceMode::Node => PidNamespace::Host,
        NamespaceMode::Target(_) => PidNamespace::Target,
    })
}

impl Process {
    fn of_container(launch: &Launch, spec: &Spec) -> Result<Process, StartError> {
        let process = spec.process().as_ref().ok_or_else(|| refused("process: a container has one"))?;
        let env = process.env().clone().unwrap_or_default();
        let args = process.args().clone().unwrap_or_default();
        let cwd = process.cwd().as_os_str().as_encoded_bytes();
        let caps = match process.capabilities() {
            Some(caps) => Caps::new(caps)?,
            None => Caps::default(),
        };
        let no_new_privs = process.no_new_privileges().unwrap_or(false);
        let (wants_home, env) = environment(&env)?;
        Ok(Process {
            programs: programs(&args, &env)?,
            argv: args.iter().map(|arg| text("process.args", arg.as_bytes())).collect::<Result<_, _>>()?,
            env,
            cwd: workdir("process.cwd", cwd)?,
            umask: process.user().umask().unwrap_or(DEFAULT_UMASK) & 0o777,
            rlimits: rlimits(process)?,
            oom_score_adj: oom_score_adj(process.oom_score_adj().unwrap_or(0))?,
            allow_unenforced: launch.allow_unenforced,
            bounding: caps.bounding,
            permitted: caps.permitted,
            effective: caps.effective,
            ambient: caps.ambient,
            no_new_privs,
            selinux: label("process.selinuxLabel", process.selinux_label().as_deref())?,
            apparmor: apparmor(process.apparmor_profile().as_deref())?,
            seccomp: seccomp(launch, spec, caps.bounding)?,
            wants_home,
            init: launch.init,
            ids: launch.namespaces.user.map(),
        })
    }

    /// The plan of a container's first process.
    ///
    /// # Errors
    /// [`Step::Plan`], naming the field that cannot be honoured.
    pub fn of_launch(launch: &Launch) -> Result<Process, StartError> {
        Process::of_container(launch, &parse(launch)?)
    }

    /// The plan of a further process in the container whose first this is: its confinement, another program.
    ///
    /// # Errors
    /// [`Step::Plan`], naming the field that cannot be honoured.
    pub fn for_exec(&self, exec: &Exec) -> Result<Process, StartError> {
        let mut process = self.clone();
        let mut env: Vec<String> =
            process.env.iter().map(|line| line.to_string_lossy().into_owned()).collect::<Vec<_>>();
        for line in &exec.env {
            let name = line.split('=').next().unwrap_or_default();
            env.retain(|known| known.split('=').next() != Some(name));
            env.push(line.clone());
        }
        (process.wants_home, process.env) = environment(&env)?;
        process.programs = programs(&exec.args, &process.env)?;
        process.argv = exec.args.iter().map(|arg| text("exec.args", arg.as_bytes())).collect::<Result<_, _>>()?;
        if !exec.cwd.is_empty() {
            process.cwd = workdir("exec.cwd", exec.cwd.as_bytes())?;
        }
        process.init = false;
        Ok(process)
    }

    /// Adds HOME when the environment lacks it; `home` is the user's in /etc/passwd, or `/`.
    pub fn set_home(&mut self, home: &str) {
        if self.wants_home {
            self.env.extend(CString::new(format!("HOME={home}")));
            self.wants_home = false;
        }
    }

    /// Whether a user can be in the pod's user namespace.
    ///
    /// # Errors
    /// [`Step::User`]: one that the user namespace does not have.
    pub fn check_user(&self, user: &User) -> Result<(), StartError> {
        let Some(ids) = &self.ids else { return Ok(()) };
        let outside = |what: &str, id: u32, length: u32| {
            let message = format!("{what} {id} is not among the {length} ids of the pod's user namespace");
            Err(StartError::refused(Step::User, message))
        };
        if ids.uids.to_host(user.uid).is_none() {
            return outside("uid", user.uid, ids.uids.length);
        }
        match [user.gid].iter().chain(&user.groups).find(|gid| ids.gids.to_host(**gid).is_none()) {
            Some(gid) => outside("gid", *gid, ids.gids.length),
            None => Ok(()),
        }
    }

    /// The host's uid of a user that was checked.
    pub(super) fn host_uid(&self, uid: u32) -> u32 {
        self.ids.and_then(|ids| ids.uids.to_host(uid)).unwrap_or(uid)
    }
}

/// The spec, typed.
fn parse(launch: &Launch) -> Result<Spec, StartError> {
    launch.spec.parse().map_err(|e| refused(e.to_string()))
}

/// An error of [`Step::Plan`].
pub(super) fn refused(message: impl Into<String>) -> StartError {
    StartError::refused(Step::Plan, message)
}

/// A value as a C string.
pub(super) fn text(field: &str, bytes: &[u8]) -> Result<CString, StartError> {
    CString::new(bytes).map_err(|_| refused(format!("{field}: {:?} has a NUL byte", String::from_utf8_lossy(bytes))))
}

pub(super) fn not_absolute(field: &str, path: &Path) -> StartError {
    refused(format!("{field}: {} is not an absolute path", path.display()))
}

fn relatives(field: &str, paths: &Option<Vec<String>>) -> Result<Vec<CString>, StartError> {
    paths.iter().flatten().map(|path| relative(field, Path::new(path))).collect()
}

/// A working directory, relative to the root. What lies beneath a process's descriptors is refused here by name, and by the kernel
/// whatever links lead there (CVE-2024-21626).
fn workdir(field: &str, path: &[u8]) -> Result<CString, StartError> {
    let shown = String::from_utf8_lossy(path);
    let path = Path::new(std::ffi::OsStr::new(shown.as_ref()));
    if path.as_os_str().is_empty() {
        return Ok(CString::default());
    }
    if !path.is_absolute() {
        return Err(not_absolute(field, path));
    }
    let mut names = path.components().filter_map(|c| match c {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    });
    if names.next().is_some_and(|first| first == "proc") && path.components().any(|c| c.as_os_str() == "fd") {
        return Err(refused(format!("{field}: {shown} is a descriptor of a process and no place in the container")));
    }
    text(field, shown.trim_start_matches('/').as_bytes())
}

/// The profile, which stays one word of one line wherever it is written.
fn apparmor(profile: Option<&str>) -> Result<Option<CString>, StartError> {
    match profile {
        None | Some("" | "unconfined") => Ok(None),
        Some(name) if AppArmorProfile::is_name(name) => text("process.apparmorProfile", name.as_bytes()).map(Some),
        Some(name) => Err(refused(format!("process.apparmorProfile: {name:?} is no name of a profile"))),
    }
}

/// A label of SELinux: the kernel's to judge, but for what would be more than a label among the options of mount(2).
pub(super) fn label(field: &str, label: Option<&str>) -> Result<Option<CString>, StartError> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\');
    match label {
        None | Some("") => Ok(None),
        Some(label) if label.len() <= MAX_LABEL_BYTES && label.chars().all(plain) => {
            text(field, label.as_bytes()).map(Some)
        }
        Some(label) => Err(refused(format!("{field}: {label:?} is no label"))),
    }
}

fn oom_score_adj(value: i32) -> Result<i32, StartError> {
    // proc_pid_oom_score_adj(5)
    if (-1000..=1000).contains(&value) {
        return Ok(value);
    }
    Err(refused(format!("process.oomScoreAdj: {value} is not between -1000 and 1000")))
}

/// Whether HOME is missing, and the lines.
fn environment(env: &[String]) -> Result<(bool, Vec<CString>), StartError> {
    let mut lines = Vec::with_capacity(env.len() + 1);
    for line in env {
        match line.split_once('=') {
            Some((name, _)) if !name.is_empty() => lines.push(text("process.env", line.as_bytes())?),
            _ => return Err(refused(format!("process.env: {line:?} is not NAME=VALUE"))),
        }
    }
    Ok((!env.iter().any(|line| line.starts_with("HOME=")), lines))
}

/// What execve(2) is tried with, in turn.
pub(super) fn programs(args: &[String], env: &[CString]) -> Result<Vec<CString>, StartError> {
    let Some(command) = args.first().filter(|command| !command.is_empty()) else {
        return Err(refused("process.args: no command to run"));
    };
    if command.contains('/') {
        return Ok(vec![text("process.args", command.as_bytes())?]);
    }
    let path = env.iter().rev().find_map(|line| line.to_bytes().strip_prefix(b"PATH="));
    let path = path.unwrap_or(DEFAULT_PATH.as_bytes());
    // An element that is empty or relative is the working directory, which an image may not choose as a place of programs.
    let elements = path.split(|b| *b == b':').filter(|element| element.starts_with(b"/"));
    elements.take(MAX_PROGRAMS).map(|dir| text("process.args", &[dir, b"/", command.as_bytes()].concat())).collect()
}

fn rlimits(process: &oci_spec::runtime::Process) -> Result<Vec<Rlimit>, StartError> {
    let mut limits: Vec<Rlimit> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let name =
            serde_json::to_value(limit.typ()).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let field = format!("process.rlimits: {name}");
        let resource = Resource::from_name(&name).ok_or_else(|| refused(format!("{field} is no resource of Linux")))?;
        if limits.iter().any(|known| known.resource == resource) {
            return Err(refused(format!("{field} stands there twice")));
        }
        if limit.soft() > limit.hard() {
            return Err(refused(format!("{field}: soft {} is above hard {}", limit.soft(), limit.hard())));
        }
        limits.push(Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(limits)
}

/// The sets of capabilities(7), a bit each.
#[derive(Debug, Clone, Copy, Default)]
struct Caps {
    bounding: u64,
    permitted: u64,
    effective: u64,
    ambient: u64,
}

impl Caps {
    fn new(caps: &oci_spec::runtime::LinuxCapabilities) -> Result<Caps, StartError> {
        let bits = |field: &str, set: &Option<Capabilities>| -> Result<u64, StartError> {
            let mut bits = 0;
            for cap in set.iter().flatten() {
                let name =
                    serde_json::to_value(cap).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
                let bit = capability::bit(&name);
                bits |= bit.ok_or_else(|| refused(format!("process.capabilities.{field}: {name} is unknown")))?;
            }
            Ok(bits)
        };
        let sets = Caps {
            bounding: bits("bounding", caps.bounding())?,
            permitted: bits("permitted", caps.permitted())?,
            effective: bits("effective", caps.effective())?,
            ambient: bits("ambient", caps.ambient())?,
        };
        // Inheritable capabilities come back through files that have them, for users that should have none (CVE-2022-24769).
        if bits("inheritable", caps.inheritable())? & !sets.ambient != 0 {
            return Err(refused("process.capabilities.inheritable: only what is in ambient as well"));
        }
        for (field, inner, outer) in [
            ("effective", sets.effective, sets.permitted),
            ("permitted", sets.permitted, sets.bounding),
            ("ambient", sets.ambient, sets.permitted),
        ] {
            if inner & !outer != 0 {
                let message = "more than bounding, permitted and effective allow in this order";
                return Err(refused(format!("process.capabilities.{field}: {message}")));
            }
        }
        Ok(sets)
    }
}

/// Refuses what is in the spec and not done here.
fn refuse_unsupported(spec: &Spec) -> Result<(), StartError> {
    let mut present: Vec<&str> = Vec::new();
    let mut note = |yes: bool, field: &'static str| present.extend(yes.then_some(field));
    let named = |value: &Option<String>| value.as_deref().is_some_and(|v| !v.is_empty());
    note(spec.hooks().as_ref().is_some_and(|h| *h != oci_spec::runtime::Hooks::default()), "hooks");
    note(named(spec.domainname()), "domainname");
    note(
        spec.windows().is_some() || spec.solaris().is_some() || spec.zos().is_some() || spec.vm().is_some(),
        "platform",
    );
    if let Some(process) = spec.process() {
        note(process.scheduler().is_some(), "process.scheduler");
        note(process.io_priority().is_some(), "process.ioPriority");
        note(process.exec_cpu_affinity().is_some(), "process.execCPUAffinity");
    }
    if let Some(linux) = spec.linux() {
        let some = |map: bool| map;
        note(linux.sysctl().as_ref().is_some_and(|m| !m.is_empty()), "linux.sysctl (the pod's are set by its sandbox)");
        note(linux.net_devices().as_ref().is_some_and(|m| !m.is_empty()), "linux.netDevices");
        note(some(linux.intel_rdt().is_some()), "linux.intelRdt");
        note(some(linux.memory_policy().is_some()), "linux.memoryPolicy");
        note(some(linux.personality().is_some()), "linux.personality");
        note(linux.time_offsets().as_ref().is_some_and(|m| !m.is_empty()), "linux.timeOffsets");
        let kinds = linux.namespaces().iter().flatten().map(|n| n.typ());
        for kind in kinds {
            note(kind == LinuxNamespaceType::Time, "linux.namespaces: time");
        }
    }
    match present.first() {
        None => Ok(()),
        Some(field) => Err(refused(format!("{field}: not supported"))),
    }
}

/// Whether a user or group id is one that is accepted; the bound is in `sys`.
pub(super) fn id_in_range(id: u32) -> bool {
    id <= credentials::ID_MAX
}

#[cfg(test)]
mod tests {
    use super::super::plan_mounts::What;
    use super::*;
    use crate::id::{ContainerId, ExecId};
    use crate::state::model::Namespaces;
    use crate::wire::{Stdio, UserChoice};
    use serde_json::{Value, json};

    fn launch(edit: impl FnOnce(&mut Value)) -> Launch {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"], "env": ["PATH=/a::rel:/b", "A=1"]},
            "mounts": [], "linux": {"namespaces": [{"type": "cgroup"}]},
        });
        edit(&mut spec);
        Launch {
            container: ContainerId::random(),
            dir: "/run/x".into(),
            spec: crate::state::spec::SpecText::of(&spec).expect("JSON"),
            root: wire::Root { layers: vec!["/l".into()], upper: "/u".into(), work: "/w".into(), readonly: false },
            user: UserChoice::default(),
            namespaces: Namespaces::default(),
            seccomp: Seccomp::Unconfined,
            stdio: Stdio { tty: false, stdin: false, stdin_once: false, log: None },
            init: false,
            allow_unenforced: false,
            runtime: None,
        }
    }

    fn plan(edit: impl FnOnce(&mut Value)) -> Result<Plan, String> {
        Plan::new(&launch(edit)).map_err(|e| e.to_string())
    }

    fn texts(strings: &[CString]) -> Vec<String> {
        strings.iter().map(|s| s.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_bare_command_is_tried_in_each_absolute_element_of_path() {
        let process = plan(|_| {}).expect("plan").process;
        assert_eq!(texts(&process.programs), ["/a/sh", "/b/sh"]);
        let process = plan(|s| s["process"]["args"] = json!(["./sh"])).expect("plan").process;
        assert_eq!(texts(&process.programs), ["./sh"]);
        let process = plan(|s| s["process"]["env"] = json!([])).expect("plan").process;
        assert_eq!(process.programs.len(), 6, "the default PATH");
    }

    #[test]
    fn home_is_added_only_where_it_is_missing() {
        let mut process = plan(|_| {}).expect("plan").process;
        process.set_home("/root");
        assert_eq!(texts(&process.env).last().map(String::as_str), Some("HOME=/root"));
        let mut process = plan(|s| s["process"]["env"] = json!(["HOME=/x"])).expect("plan").process;
        process.set_home("/root");
        assert_eq!(texts(&process.env), ["HOME=/x"]);
    }

    #[test]
    fn an_exec_has_the_containers_confinement_and_its_own_program() {
        let caps = json!(["CAP_KILL"]);
        let launch = launch(|s| {
            s["process"]["capabilities"] = json!({"bounding": caps, "permitted": caps, "effective": caps});
            s["process"]["noNewPrivileges"] = true.into();
            s["process"]["oomScoreAdj"] = 7.into();
        });
        let exec = Exec {
            container: launch.container.clone(),
            exec: ExecId(1),
            args: vec!["/x".into(), "y".into()],
            env: vec!["A=2".into(), "B=3".into()],
            cwd: "/tmp".into(),
            user: None,
            timeout_ns: 0,
            tty: false,
            size: None,
        };
        let process = Process::of_launch(&launch).expect("plan").for_exec(&exec).expect("plan");
        assert_eq!(texts(&process.env), ["PATH=/a::rel:/b", "A=2", "B=3"]);
        assert_eq!((texts(&process.argv), process.cwd.clone()), (vec!["/x".into(), "y".into()], c"tmp".to_owned()));
        let kill = capability::bit("CAP_KILL").expect("known");
        assert_eq!((process.bounding, process.effective, process.no_new_privs), (kill, kill, true));
        assert_eq!(process.oom_score_adj, 7);
    }

    #[test]
    fn working_directories_that_are_descriptors_are_refused() {
        for cwd in ["/proc/self/fd/7", "//proc/./1/fd/3/..", "relative"] {
            assert!(plan(|s| s["process"]["cwd"] = cwd.into()).is_err(), "{cwd}");
        }
        assert!(plan(|s| s["process"]["cwd"] = "/fd/proc".into()).is_ok());
    }

    #[test]
    fn mounts_stand_shallow_before_deep_and_else_as_listed() {
        let mount = |at: &str| json!({"destination": at, "type": "bind", "source": "/s", "options": ["rbind"]});
        let plan =
            plan(|s| s["mounts"] = json!([mount("/a/b/c"), mount("/z"), mount("/a//b/"), mount("/a")])).expect("plan");
        let targets: Vec<_> = plan.mounts.iter().map(|m| m.target.to_string_lossy().into_owned()).collect();
        assert_eq!(targets, ["z", "a", "a/b", "a/b/c"]);
    }

    #[test]
    fn mounts_that_would_hide_or_leak_are_refused() {
        let one = |at: &str, kind: &str, options: Value| {
            plan(|s| s["mounts"] = json!([{"destination": at, "type": kind, "source": "/s", "options": options}]))
                .map(|_| ())
        };
        for (at, kind, options) in [
            ("/", "bind", json!(["rbind"])),
            ("/proc", "bind", json!(["rbind"])),
            ("/proc/sys", "tmpfs", json!([])),
            ("/proc/../proc", "proc", json!([])),
            ("/x", "bind", json!(["rbind", "rro", "rslave"])),
            ("/x", "bind", json!(["rbind", "uid=0"])),
            ("/x", "bind", json!(["rbind", "idmap"])),
            ("/x", "ext4", json!([])),
        ] {
            assert!(one(at, kind, options.clone()).is_err(), "{at} {kind} {options}");
        }
        assert_eq!(one("/proc/uptime", "bind", json!(["bind", "ro"])), Ok(()));
        assert_eq!(one("/proc", "proc", json!(["nosuid"])), Ok(()));
    }

    #[test]
    fn an_apparmor_profile_is_a_name_or_none() {
        let of = |name: &str| plan(|s| s["process"]["apparmorProfile"] = name.into()).map(|p| p.process.apparmor);
        assert_eq!(of("podwright-default"), Ok(Some(c"podwright-default".to_owned())));
        assert_eq!((of(""), of("unconfined")), (Ok(None), Ok(None)));
        assert!(of("a\nchangehat b").is_err());
    }

    #[test]
    fn a_label_of_files_is_that_of_what_is_mounted_for_the_container_alone() {
        let (process, file) = ("u:r:container_t:s0:c1,c2", "u:o:container_file_t:s0:c1,c2");
        let labelled = |s: &mut Value| {
            s["process"]["selinuxLabel"] = process.into();
            s["linux"]["mountLabel"] = file.into();
            s["mounts"] = json!([
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
                {"destination": "/own", "type": "tmpfs", "source": "tmpfs", "options": ["context=theirs"]},
                {"destination": "/v", "type": "bind", "source": "/srv", "options": ["rbind"]},
            ]);
        };
        let plan = plan(labelled).expect("plan");
        let file = CString::new(file).expect("text");
        assert_eq!(plan.process.selinux.as_deref().map(|l| l.to_str()), Some(Ok(process)));
        assert_eq!(plan.root.label.as_ref(), Some(&file));
        for mount in &plan.mounts {
            let fs = match &mount.what {
                What::Fs(fs) | What::Dev(fs) | What::Devpts(fs) => fs,
                _ => continue,
            };
            let context = fs.parameters.iter().find(|(key, _)| key.as_c_str() == c"context");
            let context = context.and_then(|(_, value)| value.clone());
            match mount.target.to_bytes() {
                b"dev" | b"dev/pts" => assert_eq!(context.as_ref(), Some(&file)),
                b"own" => assert_eq!(context, Some(c"theirs".to_owned())),
                b"dev/mqueue" => assert_eq!((context, fs.label.as_ref()), (None, Some(&file))),
                _ => assert_eq!((context, &fs.label), (None, &None), "{:?}", mount.target),
            }
        }
        let of = |label: &str| super::label("f", Some(label));
        assert_eq!(of(""), Ok(None));
        for bad in ["a b", "a\"b", "a\n", &"x".repeat(MAX_LABEL_BYTES + 1)] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn layers_beyond_the_bound_are_refused() {
        let mut launch = launch(|_| {});
        for (count, good) in [(0, false), (1, true), (MAX_LAYERS, true), (MAX_LAYERS + 1, false)] {
            launch.root.layers = vec!["/l".into(); count];
            assert_eq!(Plan::new(&launch).is_ok(), good, "{count}");
        }
    }

    #[test]
    fn a_spec_without_device_rules_has_those_of_every_container() {
        assert_eq!(plan(|_| {}).expect("plan").device_rules, devices::default_rules());
    }
}
