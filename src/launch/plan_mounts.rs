//! The spec's mounts and devices as the child carries them out (pure).
//!
//! `/dev/shm` as a tmpfs is the pod's, whatever its options say (with the host's ipc namespace the host's); a bind mount there is
//! taken as it is. `cgroup` and `cgroup2` are both the container's own cgroup2 in a cgroup namespace, else the host's tree.

use super::StartError;
use super::plan::{MAX_LAYERS, is_mapping, not_absolute, refused, text};
use crate::state::model::{IdMap, NamespaceMode, Namespaces};
use crate::sys::mount::{Depth, MountAttr, PropagationType};
use crate::sys::openat2::{Links, NodeKind};
use oci_spec::runtime::{LinuxDeviceType, Spec};
use std::ffi::{CStr, CString};
use std::path::{Component, Path};

/// The most mounts of one container: a kernel namespace has 100 000, sysctl fs.mount-max.
const MAX_MOUNTS: usize = 4096;
/// The most devices of one container.
const MAX_DEVICES: usize = 4096;

/// A mount to make.
#[derive(Debug)]
pub struct Mount {
    /// Relative to the root.
    pub target: CString,
    /// Whether links of the image may lead to the target.
    pub links: Links,
    pub what: What,
}

/// What is mounted.
#[derive(Debug)]
pub enum What {
    /// A tree of the host.
    Bind(Bind),
    /// A new file system, of the child's namespaces where it belongs to one.
    Fs(Fs),
    /// /dev: a tmpfs that gets the devices.
    Dev(Fs),
    /// A devpts of the container's own; its terminal is opened beneath it.
    Devpts(Fs),
    /// The pod's /dev/shm.
    Shm,
    /// Files of an image.
    Image(Image),
}

/// An image volume: `type: overlay` with `lowerdir`, and `X-mount.subdir` for a part of it, as mount(8) has it.
#[derive(Debug)]
pub struct Image {
    /// Absolute, the lowest first.
    pub layers: Vec<CString>,
    /// A directory in there; empty: all of it.
    pub part: CString,
    /// Read-only among others.
    pub set: MountAttr,
    /// SELinux's, of every file in it.
    pub label: Option<CString>,
}

/// A bind mount.
#[derive(Debug)]
pub struct Bind {
    /// Absolute, of the host.
    pub source: CString,
    pub depth: Depth,
    pub set: MountAttr,
    pub clear: MountAttr,
    /// Whether `set` and `clear` reach the mounts below it (recursive read-only).
    pub set_depth: Depth,
    pub propagation: PropagationType,
    /// Seen through the ids of the pod's user namespace.
    pub idmap: bool,
}

/// A new file system: fsopen(2).
#[derive(Debug)]
pub struct Fs {
    pub fs: CString,
    pub parameters: Vec<(CString, Option<CString>)>,
    pub attr: MountAttr,
    /// SELinux's, that its root gets as an attribute.
    pub label: Option<CString>,
}

/// A device or FIFO in /dev.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    /// Relative to /dev.
    pub path: CString,
    pub kind: NodeKind,
    pub numbers: (u32, u32),
    pub mode: u32,
    /// Of the host; `None`: whoever makes the container's files.
    pub owner: Option<(u32, u32)>,
}

/// A path inside the container, relative to its root; `//`, `.` and a final `/` are dropped.
pub(super) fn relative(field: &str, path: &Path) -> Result<CString, StartError> {
    if !path.is_absolute() {
        return Err(not_absolute(field, path));
    }
    let mut names: Vec<&[u8]> = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.as_encoded_bytes()),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused(format!("{field}: {} has a `..`", path.display())));
            }
        }
    }
    text(field, &names.join(&b'/'))
}

/// The mounts, shallow before deep.
pub(super) fn mounts(
    spec: &Spec,
    namespaces: &Namespaces,
    private_cgroup: bool,
    label: Option<&CStr>,
) -> Result<Vec<Mount>, StartError> {
    let listed = spec.mounts().as_deref().unwrap_or_default();
    if listed.len() > MAX_MOUNTS {
        return Err(refused(format!("mounts: {} of them, and {MAX_MOUNTS} are allowed", listed.len())));
    }
    let mut mounts = Vec::with_capacity(listed.len());
    for mount in listed {
        let Mount { target, links, what } = one(mount, namespaces, private_cgroup)?;
        let what = match label {
            Some(label) => labelled(what, label, namespaces),
            None => what,
        };
        mounts.push(Mount { target, links, what });
    }
    mounts.sort_by_key(|m| m.target.to_bytes().iter().filter(|b| **b == b'/').count());
    Ok(mounts)
}

/// Gives SELinux's label to what is made for the container alone, as runc does (label.FormatMountLabel). proc, sysfs and cgroup2 show the
/// kernel and keep the policy's; what is bound keeps its own.
fn labelled(what: What, label: &CStr, namespaces: &Namespaces) -> What {
    let context = |mut fs: Fs| {
        if !fs.parameters.iter().any(|(key, _)| key.as_c_str() == c"context") {
            fs.parameters.push((c"context".to_owned(), Some(label.to_owned())));
        }
        fs
    };
    match what {
        What::Dev(fs) => What::Dev(context(fs)),
        What::Devpts(fs) => What::Devpts(context(fs)),
        What::Fs(fs) if fs.fs.as_c_str() == c"tmpfs" => What::Fs(context(fs)),
        // One for the whole ipc namespace, which it was mounted with already: it takes no option any more. Not the host's.
        What::Fs(fs) if fs.fs.as_c_str() == c"mqueue" && namespaces.ipc != NamespaceMode::Node => {
            What::Fs(Fs { label: Some(label.to_owned()), ..fs })
        }
        What::Image(image) => What::Image(Image { label: Some(label.to_owned()), ..image }),
        other => other,
    }
}

fn one(mount: &oci_spec::runtime::Mount, namespaces: &Namespaces, private_cgroup: bool) -> Result<Mount, StartError> {
    let field = format!("mounts: {}", mount.destination().display());
    let target = relative(&field, mount.destination())?;
    if target.is_empty() {
        return Err(refused(format!("{field}: the root itself")));
    }
    let (uids, gids) = (mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref());
    let mapped = match namespaces.user.map() {
        _ if uids.is_none() && gids.is_none() => false,
        Some(map) if is_mapping(uids, map.uids) && is_mapping(gids, map.gids) => true,
        _ => return Err(refused(format!("{field}: id mappings that are not those of the pod's user namespace"))),
    };
    let mut options = Options::default();
    for option in mount.options().iter().flatten() {
        options.add(&field, option)?;
    }
    let kind = match mount.typ().as_deref() {
        None | Some("" | "none") if options.bind => "bind",
        Some(kind) if !options.bind => kind,
        Some("bind" | "none") => "bind",
        kind => return Err(refused(format!("{field}: type {kind:?} with bind or without type"))),
    };
    let shm = target.to_bytes() == b"dev/shm" && kind == "tmpfs";
    let what = match kind {
        "tmpfs" if shm && namespaces.ipc != NamespaceMode::Node => What::Shm,
        "tmpfs" if shm => What::Bind(host_shm()),
        "bind" => What::Bind(Bind { idmap: mapped, ..options.bind(&field, mount.source().as_deref())? }),
        "tmpfs" if target.to_bytes() == b"dev" => What::Dev(options.fs(&field, kind)?),
        "devpts" => What::Devpts(options.fs(&field, kind)?),
        "cgroup" | "cgroup2" if private_cgroup => What::Fs(options.fs(&field, "cgroup2")?),
        "cgroup" | "cgroup2" => What::Bind(options.host_cgroup()),
        "overlay" => What::Image(options.image(&field)?),
        "proc" | "sysfs" | "mqueue" | "tmpfs" => What::Fs(options.fs(&field, kind)?),
        other => return Err(refused(format!("{field}: type {other:?} is not supported"))),
    };
    refuse_inside_proc(&field, &target, &what)?;
    if mapped && !matches!(what, What::Bind(_)) {
        return Err(refused(format!("{field}: only what is bound has id mappings of its own")));
    }
    let what = match namespaces.user.map() {
        Some(map) => in_user_namespace(&field, &target, what, map)?,
        None => what,
    };
    // A link of the image would put a kernel's file system elsewhere and leave its place to the image (CVE-2019-16884,
    // CVE-2023-27561, CVE-2025-31133).
    let kernel = !matches!(what, What::Bind(_) | What::Image(_)) && kind != "tmpfs"
        || matches!(what, What::Dev(_) | What::Shm)
        || matches!(target.to_bytes(), b"proc" | b"sys" | b"dev" | b"dev/shm");
    Ok(Mount { target, links: if kernel { Links::Refused } else { Links::InRoot }, what })
}

/// What becomes of a mount in a pod with a user namespace: owners are the namespace's, and what cannot be there is refused.
fn in_user_namespace(field: &str, target: &CString, what: What, map: IdMap) -> Result<What, StartError> {
    let owned = |mut fs: Fs| {
        for (key, value) in &mut fs.parameters {
            let range = match key.to_bytes() {
                b"uid" => map.uids,
                b"gid" => map.gids,
                _ => continue,
            };
            let id = value.as_ref().and_then(|v| v.to_str().ok()?.parse().ok()).and_then(|id| range.to_host(id));
            let id = id.ok_or_else(|| refused(format!("{field}: an owner that the user namespace does not have")))?;
            *value = Some(text(field, id.to_string().as_bytes())?);
        }
        Ok(fs)
    };
    match what {
        What::Bind(_) if target.to_bytes() == b"proc" || target.to_bytes().starts_with(b"proc/") => {
            // The container's /proc is mounted when nothing can be locked any more.
            Err(refused(format!("{field}: nothing can be bound into /proc in a pod with a user namespace")))
        }
        What::Bind(bind) if bind.propagation == PropagationType::Shared => {
            Err(refused(format!("{field}: no mount of a pod with a user namespace can be propagated to the host")))
        }
        What::Fs(fs) => owned(fs).map(What::Fs),
        What::Dev(fs) => owned(fs).map(What::Dev),
        What::Devpts(fs) => owned(fs).map(What::Devpts),
        other => Ok(other),
    }
}

/// What others are known to put over files of /proc (lxcfs and the like), as runc has it; anything else would hide the kernel's
/// answers from whoever asks for confinement (CVE-2019-16884).
const MOUNTABLE_IN_PROC: [&str; 10] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/meminfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "proc/loadavg",
    "proc/slabinfo",
    "proc/net/dev",
    "proc/sys/kernel/ns_last_pid",
];

fn refuse_inside_proc(field: &str, target: &CString, what: &What) -> Result<(), StartError> {
    let path = target.to_string_lossy();
    let allowed = match what {
        What::Fs(fs) if path == "proc" => fs.fs.as_c_str() == c"proc",
        What::Bind(bind) if path == "proc" => bind.source.as_c_str() == c"/proc",
        What::Bind(_) if path.starts_with("proc/") => MOUNTABLE_IN_PROC.contains(&path.as_ref()),
        _ => !path.starts_with("proc/") && path != "proc",
    };
    if allowed { Ok(()) } else { Err(refused(format!("{field}: nothing but procfs may be mounted there"))) }
}

fn host_shm() -> Bind {
    let flags = MountAttr::NOSUID.with(MountAttr::NODEV).with(MountAttr::NOEXEC);
    Bind {
        source: c"/dev/shm".to_owned(),
        depth: Depth::One,
        set: flags,
        clear: MountAttr::NONE,
        set_depth: Depth::One,
        propagation: PropagationType::Private,
        idmap: false,
    }
}

/// The options of one mount, mount(8) and OCI config.md.
#[derive(Default)]
struct Options {
    bind: bool,
    one: bool,
    set: MountAttr,
    clear: MountAttr,
    recursive_readonly: bool,
    propagation: Option<PropagationType>,
    parameters: Vec<(String, Option<String>)>,
}

impl Options {
    fn add(&mut self, field: &str, option: &str) -> Result<(), StartError> {
        use MountAttr as A;
        let mut attr = |yes: bool, attr: MountAttr| {
            self.set = if yes { self.set.with(attr) } else { self.set.without(attr) };
            self.clear = if yes { self.clear.without(attr) } else { self.clear.with(attr) };
        };
        match option {
            "ro" => attr(true, A::RDONLY),
            "rw" => attr(false, A::RDONLY),
            "nosuid" => attr(true, A::NOSUID),
            "suid" => attr(false, A::NOSUID),
            "nodev" => attr(true, A::NODEV),
            "dev" => attr(false, A::NODEV),
            "noexec" => attr(true, A::NOEXEC),
            "exec" => attr(false, A::NOEXEC),
            "noatime" => attr(true, A::NOATIME),
            "strictatime" => attr(true, A::STRICTATIME),
            "nodiratime" => attr(true, A::NODIRATIME),
            "nosymfollow" => attr(true, A::NOSYMFOLLOW),
            "atime" | "relatime" | "diratime" | "defaults" | "async" | "newinstance" => {} // what is done anyway
            "bind" => (self.bind, self.one) = (true, true),
            "rbind" => self.bind = true,
            "rro" => {
                attr(true, A::RDONLY);
                self.recursive_readonly = true;
            }
            "private" | "rprivate" => self.propagation = Some(PropagationType::Private),
            "slave" | "rslave" => self.propagation = Some(PropagationType::Slave),
            "shared" | "rshared" => self.propagation = Some(PropagationType::Shared),
            "sync" | "dirsync" | "mand" | "lazytime" | "tmpcopyup" | "idmap" | "ridmap" | "unbindable"
            | "runbindable" => {
                return Err(refused(format!("{field}: option {option} is not supported")));
            }
            other => {
                let (key, value) = other.split_once('=').map_or((other, None), |(key, value)| (key, Some(value)));
                self.parameters.push((key.to_owned(), value.map(str::to_owned)));
            }
        }
        Ok(())
    }

    fn bind(self, field: &str, source: Option<&Path>) -> Result<Bind, StartError> {
        if let Some((unknown, _)) = self.parameters.first() {
            return Err(refused(format!("{field}: option {unknown} means nothing to a bind mount")));
        }
        let source = source.ok_or_else(|| refused(format!("{field}: a bind mount has a source")))?;
        if !source.is_absolute() {
            return Err(not_absolute(field, source));
        }
        let propagation = self.propagation.unwrap_or(PropagationType::Private);
        if self.recursive_readonly && propagation != PropagationType::Private {
            return Err(refused(format!("{field}: recursive read-only needs private propagation")));
        }
        Ok(Bind {
            source: text(field, source.as_os_str().as_encoded_bytes())?,
            depth: if self.one { Depth::One } else { Depth::Recursive },
            set: self.set,
            clear: self.clear,
            set_depth: if self.recursive_readonly { Depth::Recursive } else { Depth::One },
            propagation,
            idmap: false,
        })
    }

    /// An overlay that nobody can write to.
    fn image(self, field: &str) -> Result<Image, StartError> {
        let set = self.set.with(MountAttr::RDONLY);
        let mut image = Image { layers: Vec::new(), part: CString::default(), set, label: None };
        for (key, value) in &self.parameters {
            match (key.as_str(), value) {
                ("lowerdir", Some(value)) => {
                    for path in lower_directories(value) {
                        if !path.starts_with('/') {
                            return Err(not_absolute(field, Path::new(&path)));
                        }
                        image.layers.insert(0, text(field, path.as_bytes())?);
                    }
                }
                ("X-mount.subdir", Some(value)) => image.part = text(field, value.as_bytes())?,
                (other, _) => return Err(refused(format!("{field}: option {other} is not supported for an overlay"))),
            }
        }
        match image.layers.len() {
            0 => Err(refused(format!("{field}: an overlay needs a lowerdir"))),
            count if count > MAX_LAYERS => {
                Err(refused(format!("{field}: {count} directories, and an overlay has at most {MAX_LAYERS}")))
            }
            _ => Ok(image),
        }
    }

    fn fs(self, field: &str, fs: &str) -> Result<Fs, StartError> {
        let c = |text_: &str| text(field, text_.as_bytes());
        let parameters = self.parameters.iter();
        Ok(Fs {
            fs: c(fs)?,
            parameters: parameters
                .map(|(key, value)| Ok((c(key)?, value.as_deref().map(c).transpose()?)))
                .collect::<Result<_, StartError>>()?,
            attr: self.set,
            label: None,
        })
    }

    /// A new cgroup2 made in the host's cgroup namespace would reset the options of the host's own (nsdelegate), so it is copied.
    fn host_cgroup(self) -> Bind {
        Bind {
            source: CString::default(),
            depth: Depth::One,
            set: self.set,
            clear: self.clear,
            set_depth: Depth::One,
            propagation: PropagationType::Private,
            idmap: false,
        }
    }
}

/// The directories of a `lowerdir`, the uppermost first: a backslash takes its meaning from what follows it (overlayfs).
fn lower_directories(value: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        let (plain, letter) = if letter == '\\' { (true, letters.next().unwrap_or('\\')) } else { (false, letter) };
        match (letter, all.last_mut()) {
            (':', _) if !plain => all.push(String::new()),
            (letter, Some(last)) => last.push(letter),
            (_, None) => {}
        }
    }
    all
}

/// The devices every container has (OCI config-linux.md, default devices): name and minor; the majors are of linux/major.h.
const DEFAULT_DEVICES: [(&str, (u32, u32)); 6] =
    [("null", (1, 3)), ("zero", (1, 5)), ("full", (1, 7)), ("random", (1, 8)), ("urandom", (1, 9)), ("tty", (5, 0))];

/// What the launcher makes itself: the container's own terminal, and the way to its own pseudo terminals. A privileged container's
/// list of the host's devices has the host's, which runc passes over as well (rootfs_linux.go, createDevices).
const NOT_DEVICES: [&[u8]; 2] = [b"console", b"ptmx"];

/// The nodes of /dev: those of the spec, and the default ones that it does not name.
pub(super) fn device_nodes(spec: &Spec, ids: Option<&IdMap>) -> Result<Vec<Node>, StartError> {
    let listed = spec.linux().as_ref().and_then(|l| l.devices().as_deref()).unwrap_or_default();
    if listed.len() > MAX_DEVICES {
        return Err(refused(format!("linux.devices: {} of them, and {MAX_DEVICES} are allowed", listed.len())));
    }
    let mut nodes: Vec<Node> = Vec::new();
    for device in listed {
        let field = format!("linux.devices: {}", device.path().display());
        let path = relative(&field, device.path())?;
        let Some(path) = path.to_bytes().strip_prefix(b"dev/") else {
            return Err(refused(format!("{field}: devices are made below /dev only")));
        };
        if NOT_DEVICES.contains(&path) {
            continue;
        }
        let number = |n: i64| u32::try_from(n).map_err(|_| refused(format!("{field}: {n} is no device number")));
        let (kind, mode) = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => (NodeKind::Char, 0o666),
            LinuxDeviceType::B => (NodeKind::Block, 0o660),
            LinuxDeviceType::P => (NodeKind::Fifo, 0o666),
            LinuxDeviceType::A => return Err(refused(format!("{field}: type `a` is for rules, not for devices"))),
        };
        let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        let owner = match ids {
            None => (uid, gid),
            // As it is seen in there: /dev has no mapped ids.
            Some(map) => map.uids.to_host(uid).zip(map.gids.to_host(gid)).ok_or_else(|| {
                refused(format!("{field}: its owner {uid}:{gid} is nobody in the pod's user namespace"))
            })?,
        };
        let node = Node {
            path: text(&field, path)?,
            kind,
            numbers: (number(device.major())?, number(device.minor())?),
            mode: device.file_mode().unwrap_or(mode) & 0o7777,
            owner: Some(owner),
        };
        nodes.retain(|known| known.path != node.path);
        nodes.push(node);
    }
    for (name, numbers) in DEFAULT_DEVICES {
        if nodes.iter().all(|node| node.path.to_bytes() != name.as_bytes()) {
            let path = text("linux.devices", name.as_bytes())?;
            nodes.push(Node { path, kind: NodeKind::Char, numbers, mode: 0o666, owner: None });
        }
    }
    Ok(nodes)
}
