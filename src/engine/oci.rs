//! `PodConfig` + `ContainerConfig` + the image's config -> OCI runtime spec. Pure.
//!
//! The spec is the contract between deciding and doing: it is stored, shown by `inspect` and `--dry-run`, compared by
//! `verify`, executed by the built-in launcher and can be given to any other OCI runtime. Its root path exists
//! only inside the pod's mount namespace, for the pod has no mount on the host.

use super::signal;
use crate::error::{Error, Result};
use crate::id::ContainerId;
use crate::image::oci::Config as ImageConfig;
use crate::state::model::{
    ContainerConfig, IdRange, Mount, NamespaceMode, PodConfig, Propagation, SeccompProfile, SelinuxLabels,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What is looked up for containers that set no PATH (the same as in containerd, CRI-O and podman).
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The default capabilities, those of containerd, CRI-O's wider set left out on purpose.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Every capability by its bit, capabilities(7) and linux/capability.h.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Longest argument or environment entry: MAX_ARG_STRLEN of execve(2), 32 pages, less its NUL.
const MAX_STRING_BYTES: usize = 32 * 4096 - 1;
/// Arguments and environment together: a quarter of the default stack limit of 8 MiB, execve(2).
const MAX_STRINGS_BYTES: usize = 2 << 20;
/// The most mounts a container may ask for.
const MAX_MOUNTS: usize = 4096;

/// Limits (setrlimit(2)) of processes that were asked for none, soft and hard alike: names without `RLIMIT_`. Explicit, so that a container
/// has the same by whatever its daemon was started. Files as CRI-O's unit has it (contrib/systemd/crio.service) and containerd's had
/// until 2.0, whose 1024 distributions took back where pods broke; the two others are unlimited in both units, for cgroups limit them.
pub const RLIMITS: [(&str, u64); 3] = [("NOFILE", 1 << 20), ("NPROC", u64::MAX), ("CORE", u64::MAX)];

/// What the host adds to a container: all that is not in the two configs and the image.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// The pod's own files: path in the container to path on the host.
    pub etc: Vec<(&'static str, PathBuf)>,
    /// The container's cgroup, absolute in the v2 hierarchy.
    pub cgroup: String,
    /// The node's name, which a pod on the host's network shows.
    pub node_name: String,
    /// `linux.devices` of a privileged container: (path, type, major, minor, mode).
    pub devices: Vec<(String, char, u32, u32, u32)>,
    /// The AppArmor profile of its processes; `None`: unconfined.
    pub apparmor: Option<String>,
    /// SELinux's labels of its processes and files.
    pub selinux: Option<SelinuxLabels>,
    /// A Localhost seccomp profile, read and parsed.
    pub seccomp: Option<Value>,
    /// Bits of the capabilities that podwright does not have itself and so cannot give, in a container of an outer runtime.
    pub lacking: u64,
    /// [`RLIMITS`], as far as this host can give them.
    pub rlimits: Vec<(&'static str, u64)>,
    /// Of image volumes: the path in the container, and the image's layers, the lowest first.
    pub image_layers: Vec<(String, Vec<PathBuf>)>,
}

/// The OCI runtime spec of a container.
///
/// # Errors
/// `InvalidArgument` naming the field, the value and the remedy.
pub fn spec(
    pod: &PodConfig,
    container: &ContainerConfig,
    id: &ContainerId,
    image: &ImageConfig,
    host: &HostFacts,
) -> Result<Value> {
    let args = args(container, image)?;
    let env = env(pod, container, image, host);
    let bytes: usize = args.iter().chain(&env).map(String::len).sum();
    for text in args.iter().chain(&env) {
        if text.contains('\0') || text.len() > MAX_STRING_BYTES {
            let start: String = text.chars().take(32).collect();
            return Err(Error::invalid(format!(
                "argument or environment entry {start:?}... has a NUL or is longer than {MAX_STRING_BYTES} bytes"
            )));
        }
    }
    if bytes > MAX_STRINGS_BYTES {
        return Err(Error::invalid(format!(
            "arguments and environment have {bytes} bytes; the kernel takes {MAX_STRINGS_BYTES}"
        )));
    }
    let security = &container.security;
    let held = capabilities(container, host.lacking)?;
    let named = |names: &[&str]| names.iter().map(|c| format!("CAP_{c}")).collect::<Vec<_>>();
    let (caps, ambient) = (named(&held), named(&ambient(container, &held)?));
    let asked = |name: &str| security.rlimits.iter().any(|(of, _, _)| of == name);
    let defaults = host.rlimits.iter().filter(|(name, _)| !asked(name)).map(|(name, limit)| (*name, limit, limit));
    let rlimits: Vec<Value> = defaults
        .chain(security.rlimits.iter().map(|(name, soft, hard)| (name.as_str(), soft, hard)))
        .map(|(name, soft, hard)| json!({"type": format!("RLIMIT_{name}"), "soft": soft, "hard": hard}))
        .collect();
    let cwd =
        [&container.working_dir, &image.working_dir].into_iter().find(|d| !d.is_empty()).map_or("/", String::as_str);
    if !cwd.starts_with('/') {
        return Err(Error::invalid(format!("working directory {cwd:?} is not absolute")));
    }
    let mut linux = json!({
        "namespaces": namespaces(pod, container),
        "cgroupsPath": host.cgroup,
        "resources": { "devices": device_rules(security.privileged, &host.devices) },
        "rootfsPropagation": rootfs_propagation(container),
        "maskedPaths": if security.privileged { &[][..] } else { &security.masked_paths },
        "readonlyPaths": if security.privileged { &[][..] } else { &security.readonly_paths },
        "devices": host.devices.iter().map(|(path, kind, major, minor, mode)| {
            json!({"path": path, "type": kind.to_string(), "major": major, "minor": minor, "fileMode": mode})
        }).collect::<Vec<_>>(),
    });
    if let (Some(profile), Some(linux)) = (&host.seccomp, linux.as_object_mut()) {
        linux.insert("seccomp".into(), profile.clone());
    }
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "hostname": pod.hostname,
        "root": { "path": "/root", "readonly": security.readonly_rootfs },
        "process": {
            "terminal": container.tty,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": env,
            "cwd": cwd,
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps, "inheritable": ambient, "ambient": ambient },
            "rlimits": rlimits,
            "noNewPrivileges": security.no_new_privs && !security.privileged,
            "oomScoreAdj": container.resources.oom_score_adj,
        },
        "mounts": mounts(pod, container, host)?,
        "annotations": annotations(pod, container, id),
        "linux": linux,
    });
    if let Some(map) = pod.namespaces.user.map() {
        (spec["linux"]["uidMappings"], spec["linux"]["gidMappings"]) = (mapping(map.uids), mapping(map.gids));
    }
    if let Some(profile) = &host.apparmor {
        spec["process"]["apparmorProfile"] = profile.as_str().into();
    }
    if let Some(labels) = &host.selinux {
        spec["linux"]["mountLabel"] = labels.file.as_str().into();
        if let Some(process) = &labels.process {
            spec["process"]["selinuxLabel"] = process.as_str().into();
        }
    }
    Ok(spec)
}

/// An id mapping of the OCI spec.
fn mapping(range: IdRange) -> Value {
    json!([{"containerID": 0, "hostID": range.host, "size": range.length}])
}

fn annotations(pod: &PodConfig, container: &ContainerConfig, id: &ContainerId) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("io.kubernetes.cri.container-type", "container".to_owned()),
        ("io.kubernetes.cri.container-name", container.name.clone()),
        ("io.kubernetes.cri.image-name", container.image.clone()),
        ("io.kubernetes.cri.sandbox-name", pod.name.clone()),
        ("io.kubernetes.cri.sandbox-namespace", pod.namespace.clone()),
        ("io.kubernetes.cri.sandbox-uid", pod.uid.clone()),
        ("podwright.dev/container-id", id.to_string()),
    ])
}

/// The command line: `command` replaces entrypoint and cmd, `args` only cmd (CRI, ContainerConfig.command).
fn args(container: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>> {
    let (command, args) = if !container.command.is_empty() {
        (&container.command, &container.args)
    } else if !container.args.is_empty() {
        (&image.entrypoint, &container.args)
    } else {
        (&image.entrypoint, &image.cmd)
    };
    let args: Vec<String> = command.iter().chain(args).cloned().collect();
    match args.first() {
        None => Err(Error::invalid(format!(
            "container {:?}: no command: the image {:?} has neither entrypoint nor cmd; give `command`",
            container.name, container.image
        ))),
        Some(program) if program.is_empty() => {
            Err(Error::invalid(format!("container {:?}: the command's first word is empty", container.name)))
        }
        Some(_) => Ok(args),
    }
}

/// HOSTNAME, then the image's, then the container's own; of two with one name the later wins, in the earlier's place.
fn env(pod: &PodConfig, container: &ContainerConfig, image: &ImageConfig, host: &HostFacts) -> Vec<String> {
    let hostname = if pod.hostname.is_empty() { &host.node_name } else { &pod.hostname };
    let mut all: Vec<String> = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if container.tty {
        all.push("TERM=xterm".to_owned());
    }
    let own = container.env.iter().map(|(name, value)| format!("{name}={value}"));
    for entry in image.env.iter().cloned().chain(own) {
        let name_end = entry.find('=').map_or(entry.len(), |at| at + 1);
        match all.iter_mut().find(|old| old.as_bytes().get(..name_end) == Some(&entry.as_bytes()[..name_end])) {
            Some(old) => *old = entry,
            None => all.push(entry),
        }
    }
    all
}

/// The capabilities a container gets, in the kernel's order. All of them are all that podwright has, as in containerd.
///
/// # Errors
/// `InvalidArgument` for a name the kernel does not have, `Unsupported` for one in `lacking`.
pub fn capabilities(container: &ContainerConfig, lacking: u64) -> Result<Vec<&'static str>> {
    let security = &container.security;
    let every = std::array::from_fn(|at| lacking & (1 << at) == 0);
    let names = |held: [bool; CAPABILITIES.len()]| {
        CAPABILITIES.iter().zip(held).filter(|(_, held)| *held).map(|(name, _)| *name).collect()
    };
    if security.privileged {
        return Ok(names(every));
    }
    let known = |name: &str| bit(container, name);
    let all = |names: &[String]| names.iter().any(|n| n.eq_ignore_ascii_case("ALL"));
    let mut held = CAPABILITIES.map(|c| DEFAULT_CAPABILITIES.contains(&c));
    if all(&security.add_capabilities) {
        held = every;
    }
    if all(&security.drop_capabilities) {
        held.fill(false);
    }
    let single = |names: &[String]| {
        names.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")).map(|n| known(n)).collect::<Result<Vec<_>>>()
    };
    for at in single(&security.add_capabilities)? {
        if lacking & (1 << at) != 0 {
            return Err(Error::unsupported(format!(
                "container {:?}: capability {:?} is not podwright's to give: it runs without it itself",
                container.name, CAPABILITIES[at]
            )));
        }
        held[at] = true;
    }
    for at in single(&security.drop_capabilities)? {
        held[at] = false;
    }
    Ok(names(held))
}

/// The bit of a capability by its name, in any case and with or without `CAP_`.
fn bit(container: &ContainerConfig, name: &str) -> Result<usize> {
    let bare = name.to_ascii_uppercase();
    let bare = bare.strip_prefix("CAP_").unwrap_or(&bare);
    CAPABILITIES.iter().position(|c| *c == bare).ok_or_else(|| {
        Error::invalid(format!(
            "container {:?}: capability {name:?} is unknown; capabilities(7) has the names, or ALL",
            container.name
        ))
    })
}

/// The ambient capabilities, in the kernel's order. The kernel has none that is not permitted: one that the container does not get is refused,
/// for a program that was promised it would fail much later.
fn ambient(container: &ContainerConfig, held: &[&'static str]) -> Result<Vec<&'static str>> {
    let asked = &container.security.ambient_capabilities;
    if asked.iter().any(|name| name.eq_ignore_ascii_case("ALL")) {
        return Ok(held.to_vec());
    }
    let mut wanted = [false; CAPABILITIES.len()];
    for name in asked {
        let at = bit(container, name)?;
        if !held.contains(&CAPABILITIES[at]) {
            return Err(Error::invalid(format!(
                "container {:?}: ambient capability {:?} is not among those that the container has: add it as well",
                container.name, CAPABILITIES[at]
            )));
        }
        wanted[at] = true;
    }
    Ok(CAPABILITIES.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(name, _)| *name).collect())
}

fn namespaces(pod: &PodConfig, container: &ContainerConfig) -> Value {
    let mut list = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    if pod.namespaces.network != NamespaceMode::Node {
        list.push(json!({"type": "network", "path": "podwright:pod"}));
        list.push(json!({"type": "uts", "path": "podwright:pod"}));
    }
    if pod.namespaces.ipc != NamespaceMode::Node {
        list.push(json!({"type": "ipc", "path": "podwright:pod"}));
    }
    if !pod.namespaces.user.is_host() {
        list.push(json!({"type": "user", "path": "podwright:pod"}));
    }
    match (&container.security.pid_target, &pod.namespaces.pid) {
        (Some(target), _) | (None, NamespaceMode::Target(target)) => {
            list.push(json!({"type": "pid", "path": format!("podwright:container:{target}")}));
        }
        (None, NamespaceMode::Pod) => list.push(json!({"type": "pid", "path": "podwright:pod"})),
        (None, NamespaceMode::Container) => list.push(json!({"type": "pid"})),
        (None, NamespaceMode::Node) => {}
    }
    if container.security.privileged {
        list.retain(|n| n["type"] != "cgroup");
    }
    Value::Array(list)
}

fn rootfs_propagation(container: &ContainerConfig) -> &'static str {
    match container.mounts.iter().map(|m| m.propagation).fold(Propagation::Private, strongest) {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    }
}

fn strongest(a: Propagation, b: Propagation) -> Propagation {
    match (a, b) {
        (Propagation::Bidirectional, _) | (_, Propagation::Bidirectional) => Propagation::Bidirectional,
        (Propagation::HostToContainer, _) | (_, Propagation::HostToContainer) => Propagation::HostToContainer,
        _ => Propagation::Private,
    }
}

/// Deny all, then what every container has (the list of runc and containerd); everything for a privileged one.
fn device_rules(privileged: bool, devices: &[(String, char, u32, u32, u32)]) -> Value {
    if privileged {
        return json!([{"allow": true, "access": "rwm"}]);
    }
    let allow = |kind: char, major: Option<u32>, minor: Option<u32>, access: &str| {
        let mut rule = json!({"allow": true, "type": kind.to_string(), "access": access});
        if let Some(major) = major {
            rule["major"] = major.into();
        }
        if let Some(minor) = minor {
            rule["minor"] = minor.into();
        }
        rule
    };
    let mut rules =
        vec![json!({"allow": false, "access": "rwm"}), allow('c', None, None, "m"), allow('b', None, None, "m")];
    // null, zero, full, random, urandom, tty; ptmx, and the pseudo terminals (Documentation/admin-guide/devices.txt). Not 5:1: a
    // container's console is a pseudo terminal, and the 5:1 that it may make itself is the host's console.
    for (major, minor) in
        [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)]
    {
        rules.push(allow('c', Some(major), minor, "rwm"));
    }
    rules.extend(devices.iter().map(|(_, kind, major, minor, _)| allow(*kind, Some(*major), Some(*minor), "rwm")));
    Value::Array(rules)
}

/// The mounts every container has, without those that the container replaces by its own; then its own, by depth.
fn mounts(pod: &PodConfig, container: &ContainerConfig, host: &HostFacts) -> Result<Vec<Value>> {
    if container.mounts.len() > MAX_MOUNTS {
        return Err(Error::invalid(format!(
            "container {:?} has {} mounts; at most {MAX_MOUNTS}",
            container.name,
            container.mounts.len()
        )));
    }
    let ids = pod.namespaces.user.map();
    let mapped = |mut mount: Value, idmap: bool| {
        if let Some(ids) = ids.filter(|_| idmap) {
            (mount["uidMappings"], mount["gidMappings"]) = (mapping(ids.uids), mapping(ids.gids));
        }
        mount
    };
    let mut own = Vec::with_capacity(container.mounts.len());
    for mount in &container.mounts {
        if mount.propagation == Propagation::Bidirectional && !pod.namespaces.user.is_host() {
            return Err(Error::invalid(format!(
                "container {:?}: mount {:?}: no mount of a pod with a user namespace can be propagated to the host",
                container.name, mount.container_path
            )));
        }
        own.push(mapped(own_mount(container, mount, host)?, mount.idmap));
    }
    let privileged = container.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", access]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", access]}),
        // The launcher mounts the pod's own (or the host's) there: one tmpfs for all containers of the pod.
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"]}),
    ];
    for (path, file) in &host.etc {
        let access = if container.security.readonly_rootfs { "ro" } else { "rw" };
        let file =
            json!({"destination": path, "type": "bind", "source": file, "options": ["bind", "rprivate", access]});
        all.push(mapped(file, true));
    }
    let hidden_by = |path: &str, own: &Value| {
        own["destination"].as_str().is_some_and(|d| path == d || (d == "/dev" && path.starts_with("/dev/")))
    };
    all.retain(|m| !own.iter().any(|own| hidden_by(m["destination"].as_str().unwrap_or_default(), own)));
    all.extend(own);
    // Parents before children, and otherwise in the order given: a stable sort by depth, as in containerd.
    all.sort_by_key(|m| m["destination"].as_str().unwrap_or_default().split('/').filter(|c| !c.is_empty()).count());
    Ok(all)
}

/// The read-only overlay of an image's layers, or of a part of it.
fn image_mount(clean: &str, sub_path: &str, mount: &Mount, host: &HostFacts) -> Result<Value, String> {
    if sub_path.starts_with('/') || sub_path.contains('\0') || sub_path.split('/').any(|part| part == "..") {
        return Err(format!("the part {sub_path:?} of the image must be relative and without '..'"));
    }
    let known = host.image_layers.iter().find(|(path, _)| *path == mount.container_path);
    // None: a plan, before the image is looked up.
    let layers = known.map(|(_, layers)| layers.as_slice()).unwrap_or_default();
    let escaped = layers.iter().rev().map(|dir| dir.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:"));
    let mut options = vec!["ro".to_owned(), "nosuid".to_owned(), "nodev".to_owned()];
    options.push(format!("lowerdir={}", escaped.collect::<Vec<_>>().join(":")));
    if !sub_path.is_empty() {
        options.push(format!("X-mount.subdir={sub_path}"));
    }
    Ok(json!({"destination": clean, "type": "overlay", "source": "overlay", "options": options}))
}

fn own_mount(container: &ContainerConfig, mount: &Mount, host: &HostFacts) -> Result<Value> {
    let at = |problem: &str| {
        Error::invalid(format!("container {:?}: mount {:?}: {problem}", container.name, mount.container_path))
    };
    let path = &mount.container_path;
    if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|c| c == "..") {
        return Err(at("the path in the container must be absolute and without '..'"));
    }
    let clean = format!("/{}", path.split('/').filter(|c| !c.is_empty() && *c != ".").collect::<Vec<_>>().join("/"));
    if clean == "/" {
        return Err(at("the root cannot be replaced"));
    }
    if let Some(volume) = &mount.image {
        if !mount.readonly || mount.propagation != Propagation::Private || !mount.host_path.as_os_str().is_empty() {
            return Err(at("an image is mounted read-only, without propagation and without a host path"));
        }
        return image_mount(&clean, &volume.sub_path, mount, host).map_err(|problem| at(&problem));
    }
    if !mount.host_path.is_absolute() {
        return Err(at(&format!("the host path {:?} must be absolute", mount.host_path)));
    }
    if mount.recursive_readonly && (!mount.readonly || mount.propagation != Propagation::Private) {
        return Err(at("recursive read-only needs a read-only mount without propagation"));
    }
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (mount.readonly, mount.recursive_readonly) {
        (_, true) => "rro",
        (true, _) => "ro",
        _ => "rw",
    };
    Ok(
        json!({"destination": clean, "type": "bind", "source": mount.host_path, "options": ["rbind", propagation, access]}),
    )
}

/// The number of the signal that asks a container to stop: the container's, else the image's, else SIGTERM.
///
/// # Errors
/// `InvalidArgument` for a name or number that is no signal.
pub fn stop_signal(container: &ContainerConfig, image: &ImageConfig) -> Result<i32> {
    let text = container.stop_signal.as_deref().filter(|s| !s.is_empty()).unwrap_or(&image.stop_signal);
    if text.is_empty() {
        return Ok(signal::SIGTERM);
    }
    signal::number(text).ok_or_else(|| {
        Error::invalid(format!(
            "container {:?}: stop signal {text:?} is neither a name as in signal(7) nor 1 to 64",
            container.name
        ))
    })
}

/// Which filter the launcher installs.
pub fn seccomp(container: &ContainerConfig) -> crate::wire::Seccomp {
    match (container.security.privileged, &container.security.seccomp) {
        (true, _) | (_, SeccompProfile::Unconfined) => crate::wire::Seccomp::Unconfined,
        (_, SeccompProfile::RuntimeDefault) => crate::wire::Seccomp::RuntimeDefault,
        (_, SeccompProfile::Localhost(_)) => crate::wire::Seccomp::Spec,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::model::Security;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["a".into()],
            env: vec!["PATH=/image".into(), "A=1".into()],
            ..ImageConfig::default()
        }
    }

    fn make(container: &ContainerConfig) -> Result<Value> {
        spec(
            &PodConfig { hostname: "h".into(), ..PodConfig::default() },
            container,
            &ContainerId::random(),
            &image(),
            &HostFacts::default(),
        )
    }

    #[test]
    fn the_default_capabilities_are_those_whose_filter_shims_keep() {
        let bits = CAPABILITIES.iter().enumerate().filter(|(_, name)| DEFAULT_CAPABILITIES.contains(name));
        assert_eq!(bits.fold(0_u64, |all, (bit, _)| all | 1 << bit), 0xa804_25fb, "launch::seccomp_profile::USUAL");
    }

    #[test]
    fn the_spec_is_one_that_the_oci_types_accept() {
        let container = ContainerConfig {
            mounts: vec![Mount { container_path: "/data".into(), host_path: "/srv".into(), ..Mount::default() }],
            ..ContainerConfig::default()
        };
        let spec: oci_spec::runtime::Spec = serde_json::from_value(make(&container).expect("valid")).expect("OCI");
        assert_eq!(spec.process().as_ref().and_then(|p| p.args().clone()).expect("args"), ["/entry", "a"]);
    }

    #[test]
    fn command_replaces_entrypoint_and_cmd_but_args_only_cmd() {
        let with = |command: &[&str], own: &[&str]| {
            let to = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect();
            args(&ContainerConfig { command: to(command), args: to(own), ..ContainerConfig::default() }, &image())
                .expect("valid")
        };
        assert_eq!(with(&[], &[]), ["/entry", "a"]);
        assert_eq!(with(&[], &["x"]), ["/entry", "x"]);
        assert_eq!(with(&["c"], &[]), ["c"]);
        assert_eq!(with(&["c"], &["x"]), ["c", "x"]);
        assert!(args(&ContainerConfig::default(), &ImageConfig::default()).is_err());
    }

    #[test]
    fn of_two_variables_with_one_name_the_later_wins() {
        let container = ContainerConfig {
            env: vec![("A".into(), "2".into()), ("AB".into(), "3".into())],
            ..ContainerConfig::default()
        };
        let pod = PodConfig { hostname: "h".into(), ..PodConfig::default() };
        assert_eq!(
            env(&pod, &container, &image(), &HostFacts::default()),
            ["PATH=/image", "HOSTNAME=h", "A=2", "AB=3"]
        );
    }

    #[test]
    fn all_is_taken_before_single_capabilities() {
        let with = |add: &[&str], drop: &[&str]| {
            let to = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect();
            let security = Security { add_capabilities: to(add), drop_capabilities: to(drop), ..Security::default() };
            capabilities(&ContainerConfig { security, ..ContainerConfig::default() }, 0)
        };
        assert_eq!(with(&["NET_ADMIN"], &["ALL"]).expect("valid"), ["NET_ADMIN"]);
        assert_eq!(with(&["ALL"], &["CAP_SYS_ADMIN"]).expect("valid").len(), CAPABILITIES.len() - 1);
        assert_eq!(with(&[], &[]).expect("valid").len(), DEFAULT_CAPABILITIES.len());
        assert!(with(&["NET_ADMINN"], &[]).expect_err("unknown").to_string().contains("NET_ADMINN"));
    }

    #[test]
    fn an_ambient_capability_is_one_that_the_container_has() {
        let with = |ambient: &[&str], privileged| {
            let names = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect();
            let security = Security {
                ambient_capabilities: names(ambient),
                add_capabilities: names(&["NET_ADMIN"]),
                drop_capabilities: names(&["KILL"]),
                privileged,
                ..Security::default()
            };
            make(&ContainerConfig { security, ..ContainerConfig::default() })
                .map(|spec| spec["process"]["capabilities"].clone())
        };
        let caps = with(&["cap_net_admin", "CHOWN", "NET_ADMIN"], false).expect("valid");
        assert_eq!(caps["ambient"], json!(["CAP_CHOWN", "CAP_NET_ADMIN"]));
        assert_eq!(caps["inheritable"], caps["ambient"]);
        let caps = with(&["ALL"], false).expect("valid");
        assert_eq!(caps["ambient"], caps["bounding"]);
        let e = with(&["KILL"], false).expect_err("it was dropped").to_string();
        assert!(e.contains("KILL") && e.contains("add it as well"), "{e}");
        assert!(with(&["KILL"], true).is_ok());
        assert!(with(&["NOTHING"], false).expect_err("unknown").to_string().contains("NOTHING"));
    }

    #[test]
    fn what_podwright_lacks_itself_is_in_no_all_and_refused_by_name() {
        let without = |security| {
            let at = CAPABILITIES.iter().position(|name| *name == "SYS_RESOURCE").expect("a name");
            capabilities(&ContainerConfig { security, ..ContainerConfig::default() }, 1 << at)
        };
        let names = |name: &str| vec![name.to_owned()];
        let all = CAPABILITIES.len() - 1;
        assert_eq!(without(Security { privileged: true, ..Security::default() }).expect("valid").len(), all);
        assert_eq!(
            without(Security { add_capabilities: names("ALL"), ..Security::default() }).expect("valid").len(),
            all
        );
        let e = without(Security { add_capabilities: names("SYS_RESOURCE"), ..Security::default() });
        assert!(e.expect_err("lacking").to_string().contains("SYS_RESOURCE"));
    }

    #[test]
    fn a_mount_at_dev_hides_the_default_ones_below_it() {
        let container = ContainerConfig {
            mounts: vec![Mount { container_path: "/dev/".into(), host_path: "/dev".into(), ..Mount::default() }],
            ..ContainerConfig::default()
        };
        let value = make(&container).expect("valid");
        let paths: Vec<&str> =
            value["mounts"].as_array().expect("array").iter().filter_map(|m| m["destination"].as_str()).collect();
        assert_eq!(paths, ["/proc", "/sys", "/dev", "/sys/fs/cgroup"]);
    }

    #[test]
    fn a_mount_that_could_leave_its_place_is_refused() {
        for bad in ["relative", "/a/../b", "/", "//"] {
            let container = ContainerConfig {
                mounts: vec![Mount { container_path: bad.into(), host_path: "/srv".into(), ..Mount::default() }],
                ..ContainerConfig::default()
            };
            assert!(make(&container).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_stop_signal_is_the_containers_then_the_images_then_term() {
        let image = ImageConfig { stop_signal: "SIGQUIT".into(), ..ImageConfig::default() };
        let own = ContainerConfig { stop_signal: Some("RTMIN+3".into()), ..ContainerConfig::default() };
        assert_eq!(stop_signal(&own, &image).expect("valid"), 37);
        assert_eq!(stop_signal(&ContainerConfig::default(), &image).expect("valid"), 3);
        assert_eq!(stop_signal(&ContainerConfig::default(), &ImageConfig::default()).expect("valid"), 15);
    }
}
