//! A Pod as its file says it, defaults filled in: typed, with the places of what later checks may refuse.
//!
//! Only what podwright honours has a field here. Made in `decode`; defaults are those of pkg/apis/core/v1/defaults.go.

use super::problem::{At, Spot};
use super::quantity::Quantity;
use crate::state::model::{AppArmorProfile, SelinuxOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// metadata of any object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    pub name: String,
    /// `default` if the file says none.
    pub namespace: String,
    pub uid: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The file it comes from, as the user named it.
    pub file: Arc<str>,
    pub spot: Spot,
    pub metadata: Metadata,
    /// A hash of what the file says (not of how it is indented); part of the uid that a pod without one gets.
    pub content_hash: u128,
    pub spec: PodSpec,
}

/// spec of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodSpec {
    pub containers: Vec<Container>,
    /// Sidecars among them, in the order they start.
    pub init_containers: Vec<Container>,
    pub volumes: Vec<Volume>,
    pub restart_policy: RestartPolicy,
    pub termination_grace_seconds: u32,
    pub active_deadline_seconds: Option<u32>,
    pub host_network: bool,
    /// hostUsers false: a user namespace of its own.
    pub own_users: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    pub hostname: Option<String>,
    pub hostname_override: Option<String>,
    pub host_aliases: Vec<(String, Vec<String>)>,
    pub dns_policy: DnsPolicy,
    pub dns_config: DnsConfig,
    pub security: PodSecurity,
    pub node_name: Option<At<String>>,
    /// Names of Secrets, which need not be there.
    pub image_pull_secrets: Vec<At<String>>,
    pub service_account: String,
    /// The name of a runtime handler.
    pub runtime_class: Option<At<String>>,
    /// What the runtime itself needs beside the containers.
    pub overhead: ResourceList,
}

/// When an ended container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsPolicy {
    #[default]
    ClusterFirst,
    ClusterFirstWithHostNet,
    Default,
    None,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    /// `ndots:5`, as in resolv.conf(5).
    pub options: Vec<(String, Option<String>)>,
}

/// securityContext of a pod. `runAs...`, `seccomp`, `apparmor` and `selinux` are what containers inherit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodSecurity {
    pub run_as: RunAs,
    pub seccomp: Option<Seccomp>,
    pub apparmor: Option<AppArmorProfile>,
    pub selinux: Option<SelinuxOptions>,
    pub fs_group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    pub strict_groups: bool,
    /// Dotted names.
    pub sysctls: Vec<(At<String>, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunAs {
    pub user: Option<At<u32>>,
    pub group: Option<At<u32>>,
    pub non_root: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    Unconfined,
    RuntimeDefault,
    /// Relative to the agent's seccomp directory.
    Localhost(String),
}

/// A container, init container or sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Container {
    pub spot: Spot,
    pub name: String,
    pub image: At<String>,
    pub pull_policy: PullPolicy,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    pub env_from: Vec<EnvFrom>,
    pub env: Vec<Env>,
    pub ports: Vec<Port>,
    pub requests: ResourceList,
    pub limits: ResourceList,
    /// Its own; `None`: the pod's. `Some(Always)` on an init container makes it a sidecar.
    pub restart_policy: Option<RestartPolicy>,
    pub security: ContainerSecurity,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub mounts: Vec<VolumeMount>,
    pub termination_message_path: String,
    pub termination_message_policy: MessagePolicy,
}

/// Quantities by the resource's name.
pub type ResourceList = BTreeMap<String, At<Quantity>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MessagePolicy {
    #[default]
    File,
    FallbackToLogsOnError,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    pub name: String,
    pub value: EnvValue,
    pub spot: Spot,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// With `$(VAR)` in it.
    Literal(String),
    ConfigMap(KeyRef),
    Secret(KeyRef),
    Field(FieldRef),
    Resource(ResourceRef),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRef {
    pub name: String,
    pub key: String,
    pub optional: bool,
}

/// What fieldRef may name (pkg/fieldpath/fieldpath.go).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldRef {
    Name,
    Namespace,
    Uid,
    Label(String),
    Annotation(String),
    /// All of them, in a volume only.
    Labels,
    Annotations,
    NodeName,
    ServiceAccountName,
    HostIp,
    HostIps,
    PodIp,
    PodIps,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceRef {
    /// `None`: the container itself.
    pub container: Option<String>,
    pub limit: bool,
    /// `cpu`, `memory`.
    pub resource: String,
    pub divisor: Quantity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvFrom {
    pub prefix: String,
    pub secret: bool,
    pub name: String,
    pub optional: bool,
    pub spot: Spot,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub spot: Spot,
    pub name: Option<String>,
    pub container_port: u16,
    /// 0: none.
    pub host_port: u16,
    pub protocol: &'static str,
    pub host_ip: String,
}

/// securityContext of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerSecurity {
    pub spot: Spot,
    pub run_as: RunAs,
    pub seccomp: Option<Seccomp>,
    pub apparmor: Option<AppArmorProfile>,
    /// Instead of the pod's, all of them.
    pub selinux: Option<SelinuxOptions>,
    /// procMount Unmasked: nothing of /proc is masked or read-only.
    pub proc_unmasked: bool,
    pub privileged: bool,
    pub allow_privilege_escalation: Option<bool>,
    pub read_only_root: bool,
    /// Names without `CAP_`.
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    pub spot: Spot,
    pub name: At<String>,
    pub mount_path: String,
    pub read_only: bool,
    pub recursive_read_only: RecursiveReadOnly,
    pub propagation: crate::state::model::Propagation,
    pub sub_path: Option<SubPath>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecursiveReadOnly {
    #[default]
    Disabled,
    IfPossible,
    Enabled,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubPath {
    pub text: String,
    /// subPathExpr: `$(VAR)` is expanded.
    pub expand: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub spot: Spot,
    pub name: String,
    pub source: VolumeSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// On the disk of the pod's directory.
    EmptyDir,
    HostPath {
        path: String,
        check: HostPathType,
    },
    /// Files of an image, read-only.
    Image {
        reference: At<String>,
        pull_policy: PullPolicy,
    },
    /// configMap, secret, downwardAPI and projected: files made from these sources, a later one wins.
    Files {
        sources: Vec<FileSource>,
        default_mode: u32,
        secret: bool,
    },
}

impl Volume {
    /// The image that it is, and when that is pulled.
    pub fn image(&self) -> Option<(&At<String>, PullPolicy)> {
        match &self.source {
            VolumeSource::Image { reference, pull_policy } => Some((reference, *pull_policy)),
            _ => None,
        }
    }
}

/// hostPath.type: what must be there (pkg/volume/hostpath/host_path.go).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostPathType {
    #[default]
    Unchecked,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// Where files of a volume come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSource {
    pub spot: Spot,
    pub from: FilesFrom,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesFrom {
    /// Keys of a ConfigMap or Secret: `items` of them, or all if there are none.
    Keys {
        secret: bool,
        name: String,
        optional: bool,
        items: Vec<KeyToPath>,
    },
    Downward(Vec<DownwardFile>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyToPath {
    pub key: String,
    pub path: String,
    pub mode: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownwardFile {
    pub path: String,
    pub mode: Option<u32>,
    pub value: DownwardValue,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DownwardValue {
    Field(FieldRef),
    Resource(ResourceRef),
}

impl Container {
    /// Whether this init container is a sidecar: started in turn, then kept running.
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy == Some(RestartPolicy::Always)
    }
}
