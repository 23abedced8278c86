//! What a pod and a container were asked to be: the shape between a CRI request or a manifest and the OCI spec.
//!
//! Written once, when the object is made, and immutable from then on (in-place resize keeps its own record). Converted from
//! CRI in `cri/convert`, from manifests in `agent/convert`, and to the OCI spec in `engine/oci`; nowhere else.

use crate::id::{ContainerId, Digest};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A pod sandbox as asked for (CRI `PodSandboxConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodConfig {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// How often this pod's sandbox was made before.
    pub attempt: u32,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Empty: the node's name is shown (host network).
    pub hostname: String,
    /// Where log paths of containers start; `None`: output is discarded.
    pub log_directory: Option<PathBuf>,
    /// `None`: a copy of the host's resolv.conf.
    pub dns: Option<Dns>,
    /// Further lines of /etc/hosts.
    pub host_aliases: Vec<HostAlias>,
    pub namespaces: Namespaces,
    /// Dotted names; those of no pod namespace are refused by the engine.
    pub sysctls: BTreeMap<String, String>,
    pub cgroup: PodCgroup,
    /// CRI runtime handler; empty is the built-in one.
    pub runtime_handler: String,
    pub port_mappings: Vec<PortMapping>,
    /// It lives by a `podwright run` that a daemon serves: no other process will supervise it when that daemon has died. Not an
    /// annotation, which anybody may give a pod.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreground: bool,
    /// Of its containers that ask for none of their own.
    #[serde(default, skip_serializing_if = "SelinuxOptions::is_unset")]
    pub selinux: SelinuxOptions,
}

/// Whose cgroup the pod lives in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum PodCgroup {
    /// `<cgroup.root>/pods/<id>`, without limits of its own.
    #[default]
    Default,
    /// A parent that somebody else (the kubelet) made and keeps: an absolute path in the v2 hierarchy.
    Given(String),
    /// The agent's: made with these limits below `<cgroup.root>`, removed with the pod. The path is relative (`burstable/pod<uid>`).
    Own { path: String, resources: Resources },
}

/// resolv.conf(5): at most 3 servers and 32 searches reach the file, as Kubernetes has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// A line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostAlias {
    pub ip: String,
    pub hostnames: Vec<String>,
}

/// CRI `NamespaceOption`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespaces {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    #[serde(default, skip_serializing_if = "UserNamespace::is_host")]
    pub user: UserNamespace,
}

/// Whose users a pod's are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum UserNamespace {
    /// The host's.
    #[default]
    Host,
    /// Those of a namespace of its own, with ids that the engine chooses when it makes the pod. No pod's record has it.
    Any,
    /// Those of a namespace of its own.
    Mapped(IdMap),
}

impl UserNamespace {
    pub fn is_host(&self) -> bool {
        *self == UserNamespace::Host
    }

    /// The ids of a namespace of its own.
    pub fn map(&self) -> Option<IdMap> {
        match self {
            UserNamespace::Mapped(map) => Some(*map),
            UserNamespace::Host | UserNamespace::Any => None,
        }
    }
}

/// user_namespaces(7): which ids of the host the ids of a user namespace are, from 0 on without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdMap {
    pub uids: IdRange,
    pub gids: IdRange,
}

/// `0 host length` of uid_map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    pub host: u32,
    pub length: u32,
}

impl IdRange {
    /// A range of the host's ids; `None` when it is empty, has the host's root, or goes beyond what is an id.
    pub fn new(host: u32, length: u32) -> Option<IdRange> {
        // 2^32-1 is no id.
        let fits = host.checked_add(length).is_some_and(|end| end < u32::MAX);
        (host > 0 && length > 0 && fits).then_some(IdRange { host, length })
    }

    /// The host's id for one of the namespace's; `None` for one that it does not have.
    pub fn to_host(self, id: u32) -> Option<u32> {
        (id < self.length).then(|| self.host + id)
    }

    /// The namespace's id for one of the host's; `None` for one that it does not have.
    pub fn from_host(self, id: u32) -> Option<u32> {
        id.checked_sub(self.host).filter(|id| *id < self.length)
    }

    /// Whether some id is in both.
    pub fn overlaps(self, other: IdRange) -> bool {
        self.host < other.host + other.length && other.host < self.host + self.length
    }
}

/// CRI `NamespaceMode`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One for the pod.
    #[default]
    Pod,
    /// One for each container (pid only).
    Container,
    /// The host's.
    Node,
    /// That of another container of the pod (pid only).
    Target(ContainerId),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    pub protocol: String,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: String,
}

/// A container as asked for (CRI `ContainerConfig`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerConfig {
    pub name: String,
    /// How often this container was made before in the same sandbox.
    pub attempt: u32,
    /// What the user wrote, for people.
    pub image: String,
    /// The image's id: the digest of its config. `None` only before the image was looked up.
    pub image_id: Option<Digest>,
    /// Replaces the image's entrypoint, and its cmd as well.
    pub command: Vec<String>,
    /// Replaces the image's cmd.
    pub args: Vec<String>,
    /// Empty: the image's, else `/`.
    pub working_dir: String,
    /// In the order given; a later one of the same name wins, and all win over the image's.
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Devices of the Container Device Interface, `vendor.com/class=name`, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdi_devices: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Below the pod's log directory; `None`: output is discarded.
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// Put a reaping init before the program.
    pub init: bool,
    pub resources: Resources,
    pub security: Security,
    /// A name or number; `None`: the image's, else SIGTERM.
    pub stop_signal: Option<String>,
}

/// Devices of the host in a container (CRI `Device`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Below /dev.
    pub container_path: String,
    /// A node, or a directory of them.
    pub host_path: PathBuf,
    /// Of r, w and m.
    pub permissions: String,
}

/// A bind mount into a container (CRI `Mount`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    pub container_path: String,
    pub host_path: PathBuf,
    pub readonly: bool,
    /// Needs `readonly` and [`Propagation::Private`].
    pub recursive_readonly: bool,
    pub propagation: Propagation,
    /// Seen through the ids of the pod's user namespace: 0 on the disk is the pod's root. Without one it means nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idmap: bool,
    /// Files of an image instead of the host's: `host_path` is empty, and it is read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolume>,
    /// What is there becomes the container's own by SELinux's labels, for good. Where the host has no SELinux it means nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub selinux_relabel: bool,
}

/// An image whose files are mounted (CRI `Mount.image`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageVolume {
    /// As it was asked for.
    pub image: String,
    /// Which that is; `None`: to be looked up by name.
    pub id: Option<Digest>,
    /// A directory of it; empty: all of it.
    pub sub_path: String,
}

impl Mount {
    /// Puts mounts into the order that lets one stand below another: fewer path components first, otherwise as given.
    pub fn by_depth(mounts: &mut [Mount]) {
        mounts.sort_by_key(|m| m.container_path.split('/').filter(|part| !part.is_empty()).count());
    }
}

/// CRI `MountPropagation`; mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// CRI `LinuxContainerResources`; zero and empty mean "not specified", as there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Microseconds, 1 000 to 1 000 000; 0: 100 000.
    pub cpu_period_us: u64,
    /// Microseconds of each period; 0: not specified; negative: no limit.
    pub cpu_quota_us: i64,
    /// 2 to 262 144, relative.
    pub cpu_shares: u64,
    /// 0: not specified; negative: no limit.
    pub memory_limit_bytes: i64,
    /// Memory and swap together (the meaning of cgroup v1, as in CRI); 0: as much as the memory limit, so no swap.
    pub memory_swap_limit_bytes: i64,
    pub oom_score_adj: i32,
    /// List format of cpuset(7), `0-1,4`.
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// Page size as in the file's name (`2MB`) to bytes.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// 0: not specified; negative: no limit.
    pub pids_limit: i64,
    /// Files of the cgroup and what to write; they win over everything above.
    pub unified: BTreeMap<String, String>,
    /// Those of the files that nobody asked for, and that every container of a pod gets all the same: where the host has no such
    /// file they are left out, and are no reason to refuse the pod.
    pub defaults: BTreeSet<String>,
}

impl Resources {
    /// These with what `change` specifies instead (CRI UpdateContainerResources: a zero leaves what is).
    #[must_use]
    pub fn changed_by(&self, change: &Resources) -> Resources {
        fn either<T: PartialEq + Default + Clone>(change: &T, old: &T) -> T {
            if *change == T::default() { old.clone() } else { change.clone() }
        }
        let mut hugepage_limits = self.hugepage_limits.clone();
        hugepage_limits.extend(change.hugepage_limits.clone());
        let mut unified = self.unified.clone();
        unified.extend(change.unified.clone());
        Resources {
            cpu_period_us: either(&change.cpu_period_us, &self.cpu_period_us),
            cpu_quota_us: either(&change.cpu_quota_us, &self.cpu_quota_us),
            cpu_shares: either(&change.cpu_shares, &self.cpu_shares),
            memory_limit_bytes: either(&change.memory_limit_bytes, &self.memory_limit_bytes),
            memory_swap_limit_bytes: either(&change.memory_swap_limit_bytes, &self.memory_swap_limit_bytes),
            oom_score_adj: either(&change.oom_score_adj, &self.oom_score_adj),
            cpuset_cpus: either(&change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: either(&change.cpuset_mems, &self.cpuset_mems),
            hugepage_limits,
            pids_limit: either(&change.pids_limit, &self.pids_limit),
            unified,
            defaults: self.defaults.iter().filter(|file| !change.unified.contains_key(*file)).cloned().collect(),
        }
    }
}

/// CRI `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    pub privileged: bool,
    /// Wins over `run_as_username`, which wins over the image's user.
    pub run_as_user: Option<u32>,
    /// Needs a user.
    pub run_as_group: Option<u32>,
    pub run_as_username: String,
    /// Refuse to start as uid 0 (Kubernetes' runAsNonRoot).
    pub run_as_non_root: bool,
    pub supplemental_groups: Vec<u32>,
    /// Only `supplemental_groups`, not those of the image's /etc/group.
    pub strict_groups: bool,
    /// Names without `CAP_`, or `ALL`.
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    /// Those that a program keeps which is run as another user than root, capabilities(7): of those that the container has, or `ALL` of
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ambient_capabilities: Vec<String>,
    pub no_new_privs: bool,
    pub readonly_rootfs: bool,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub seccomp: SeccompProfile,
    #[serde(default, skip_serializing_if = "AppArmorProfile::is_unset")]
    pub apparmor: AppArmorProfile,
    /// Instead of the pod's, all of them.
    #[serde(default, skip_serializing_if = "SelinuxOptions::is_unset")]
    pub selinux: SelinuxOptions,
    /// Overrides the pod's pid mode for this container ([`NamespaceMode::Target`]).
    pub pid_target: Option<ContainerId>,
    /// Resource name without `RLIMIT_`, soft, hard (setrlimit(2)).
    pub rlimits: Vec<(String, u64, u64)>,
}

/// CRI `SELinuxOption`: what of a label is asked for. An empty part is as the policy has it for containers; an empty level is the pod's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelinuxOptions {
    pub user: String,
    pub role: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub level: String,
}

impl SelinuxOptions {
    /// The longest part that is accepted, in bytes; a whole label has to fit into a parameter of fsconfig(2), 255 bytes.
    pub const MAX_PART: usize = 100;

    /// Whether nothing was asked for.
    pub fn is_unset(&self) -> bool {
        *self == SelinuxOptions::default()
    }

    /// The parts by their names in CRI and manifests.
    pub fn parts(&self) -> [(&'static str, &str); 4] {
        [("user", &self.user), ("role", &self.role), ("type", &self.kind), ("level", &self.level)]
    }

    /// Whether a text can be that part of a label: words of the policy's language, and for a level sensitivities and categories. Whether the
    /// policy knows it is the kernel's to say.
    pub fn is_part(name: &str, text: &str) -> bool {
        let level = name == "level";
        let plain =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') || level && matches!(c, ':' | ',');
        text.len() <= Self::MAX_PART && text.chars().all(plain)
    }
}

/// The labels that SELinux knows something of a pod or container by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelinuxLabels {
    /// Of processes; `None`: that of podwright itself, where the policy has none for what is not confined.
    pub process: Option<String>,
    /// Of files.
    pub file: String,
}

/// CRI `SecurityProfile` for seccomp.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SeccompProfile {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// A file of the host, absolute.
    Localhost(PathBuf),
}

/// CRI `SecurityProfile` for AppArmor. A privileged container is unconfined, unless it names a profile of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AppArmorProfile {
    /// Nothing was asked for: podwright's own profile where it is loaded.
    #[default]
    Unset,
    Unconfined,
    /// podwright's own, or no container.
    RuntimeDefault,
    /// One that the host's administrator has loaded, by its name in the kernel.
    Localhost(String),
}

impl AppArmorProfile {
    /// The longest name that is accepted, in bytes.
    pub const MAX_NAME: usize = 255;

    /// Whether nothing was asked for.
    pub fn is_unset(&self) -> bool {
        *self == AppArmorProfile::Unset
    }

    /// Whether a text can be the name of one: a single line that the kernel reads as no more than a name.
    pub fn is_name(text: &str) -> bool {
        let plain = |c: char| !c.is_control() && c != '\u{7f}';
        (1..=Self::MAX_NAME).contains(&text.len()) && text.trim() == text && text.chars().all(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_label_has_no_room_for_another_one() {
        for (name, text, good) in [
            ("type", "container_t", true),
            ("user", "system_u", true),
            ("level", "s0-s0:c0.c1023,c5", true),
            ("type", "a:b", false),
            ("level", "s0 c1", false),
            ("level", "s0\"", false),
            ("role", "r\0", false),
            ("type", "", true),
        ] {
            assert_eq!(SelinuxOptions::is_part(name, text), good, "{name} {text:?}");
        }
        assert!(!SelinuxOptions::is_part("type", &"x".repeat(SelinuxOptions::MAX_PART + 1)));
    }

    #[test]
    fn a_profiles_name_is_one_line_without_edges() {
        for (name, good) in [
            ("podwright-default", true),
            ("/usr/bin/with space//child", true),
            ("", false),
            ("a\nb", false),
            ("a\0", false),
            (" a", false),
        ] {
            assert_eq!(AppArmorProfile::is_name(name), good, "{name:?}");
        }
        assert!(!AppArmorProfile::is_name(&"x".repeat(AppArmorProfile::MAX_NAME + 1)));
    }

    #[test]
    fn ranges_of_ids_keep_to_themselves() {
        let range = |host, length| IdRange::new(host, length).expect("a range");
        assert_eq!(range(1000, 10).to_host(9), Some(1009));
        assert_eq!(range(1000, 10).to_host(10), None);
        let found = [999, 1000, 1009, 1010, 0, u32::MAX].map(|id| range(1000, 10).from_host(id));
        assert_eq!(found, [None, Some(0), Some(9), None, None, None]);
        assert!(range(1000, 10).overlaps(range(1009, 1)) && !range(1000, 10).overlaps(range(1010, 5)));
        for (host, length) in [(0, 5), (5, 0), (u32::MAX, 1), (u32::MAX - 1, 1), (1, u32::MAX)] {
            assert_eq!(IdRange::new(host, length), None, "{host} {length}");
        }
    }

    #[test]
    fn a_change_of_one_limit_leaves_the_others() {
        let before = Resources {
            cpu_quota_us: 50_000,
            memory_limit_bytes: 1 << 20,
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        };
        let change = Resources { cpuset_cpus: "0".to_owned(), cpu_quota_us: -1, ..Resources::default() };
        let after = before.changed_by(&change);
        assert_eq!((after.cpu_quota_us, after.memory_limit_bytes, after.cpuset_cpus.as_str()), (-1, 1 << 20, "0"));
        assert_eq!(after.unified, before.unified);
    }
}
