//! From a [`Pod`] to what the engine is asked for: [`plan`]. Pure, so that `check`, `run --dry-run` and `run` show and do the same.
//!
//! A plan is made twice: before the sandbox (addresses unknown) to check and to make the pod, and again with its addresses for the
//! containers, whose environment may hold them. Everything else of the two is equal.

use super::etc;
use super::expand::{Environment, Facts, Scope};
use super::fnv::Fnv;
use super::manifest::Manifest;
use super::pod::{Container, MessagePolicy, Pod, PullPolicy, RecursiveReadOnly, RestartPolicy, Seccomp};
use super::problem::{ManifestError, ManifestErrors};
use super::resources::{self, NodeResources, Qos};
use super::volume::{self, VolumePlan};
use crate::state::model::{
    ContainerConfig, HostAlias, Mount, NamespaceMode, Namespaces, PodCgroup, PodConfig, PortMapping, SeccompProfile,
    Security,
};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// procMount Default: paths that tell of or reach the host (pkg/securitycontext/util.go). The thermal files of each cpu come with
/// [`NodeFacts::masked_paths`].
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the plan depends on beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    pub node_name: String,
    /// Makes derived uids differ: `run` gives its instance, so that a file can run twice side by side; the agent its file's path.
    pub uid_salt: String,
    pub host_ips: Vec<String>,
    /// See [`Facts::pod_ips`].
    pub pod_ips: Option<Vec<String>>,
    pub resources: NodeResources,
    /// The host's /etc/resolv.conf.
    pub resolv_conf: String,
    /// The existing /sys/devices/system/cpu/cpu*/thermal_throttle.
    pub masked_paths: Vec<String>,
    /// Where pods' log directories go; `None`: output is discarded.
    pub log_root: Option<PathBuf>,
    /// The pod's own directory, for volumes that live as long as it.
    pub pod_dir: PathBuf,
    /// The same on a tmpfs, for secrets.
    pub secret_dir: PathBuf,
    /// Where Localhost seccomp profiles are.
    pub seccomp_dir: PathBuf,
}

/// A pod as the engine is asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    pub qos: Qos,
    pub config: PodConfig,
    /// To prepare before the first container, in order.
    pub volumes: Vec<VolumePlan>,
    /// Init containers and sidecars in their order, then app containers in theirs.
    pub containers: Vec<ContainerPlan>,
    pub restart_policy: RestartPolicy,
    pub termination_grace_seconds: u32,
    pub active_deadline_seconds: Option<u32>,
}

/// How a container lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs once, in its turn, and must succeed.
    Init,
    /// Starts in its turn and runs on.
    Sidecar,
    App,
}

/// A container as the engine is asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPlan {
    pub role: Role,
    pub pull_policy: PullPolicy,
    pub message_policy: MessagePolicy,
    /// The first attempt; [`ContainerPlan::attempt`] makes the next ones.
    pub config: ContainerConfig,
    /// Where the file of the termination message is, without the attempt.
    message_dir: PathBuf,
    message_path: String,
}

impl ContainerPlan {
    /// The config of the attempt `number`, from 0, with its own log and termination message.
    pub fn attempt(&self, number: u32) -> ContainerConfig {
        let mut config = self.config.clone();
        config.attempt = number;
        config.log_path = config.log_path.map(|p| p.with_file_name(format!("{number}.log")));
        config.mounts.push(Mount {
            container_path: self.message_path.clone(),
            host_path: self.message_file(number),
            ..Mount::default()
        });
        by_depth(&mut config.mounts);
        config
    }

    /// The file of the termination message of an attempt: to be made empty, mode 0666, before the container; at most 4096 bytes of
    /// it count.
    pub fn message_file(&self, number: u32) -> PathBuf {
        self.message_dir.join(number.to_string())
    }
}

/// The uid of a pod: its own, or a hash of what its file says, of the node and of the salt; 32 hex digits.
pub fn uid(pod: &Pod, facts: &NodeFacts) -> String {
    pod.metadata.uid.clone().unwrap_or_else(|| {
        let mut hash = Fnv::default();
        hash.add(&pod.content_hash.to_be_bytes());
        hash.text(b'h', &facts.node_name);
        hash.text(b'f', &facts.uid_salt);
        format!("{:032x}", hash.value())
    })
}

/// The plan of the pod `manifest.pods[index]`.
///
/// # Errors
/// What cannot be resolved on this node, with the place in the file: a reference to an address that the pod does not have, another
/// node's name, a value that becomes too long. Also an index beyond the pods.
pub fn plan(manifest: &Manifest, index: usize, facts: &NodeFacts) -> Result<PodPlan, ManifestErrors> {
    let one = |e: ManifestError| ManifestErrors { errors: vec![e], more: 0 };
    let Some(pod) = manifest.pods.get(index) else {
        return Err(one(ManifestError {
            file: "".into(),
            at: Default::default(),
            path: String::new(),
            value: None,
            message: format!("no pod number {index}"),
            remedy: "ask for one that is there".into(),
        }));
    };
    let known = Facts {
        node_name: facts.node_name.clone(),
        uid: uid(pod, facts),
        host_ips: facts.host_ips.clone(),
        pod_ips: facts.pod_ips.clone(),
        node: facts.resources.clone(),
    };
    let scope = Scope { pod, objects: &manifest.objects, facts: &known };
    let mut errors = Vec::new();
    if let Some(node) = pod.spec.node_name.as_ref().filter(|n| n.value != facts.node_name) {
        errors.push(ManifestError {
            file: pod.file.clone(),
            at: node.spot.at,
            path: node.spot.path.clone(),
            value: Some(format!("{:?}", node.value)),
            message: format!("this node is {:?}", facts.node_name),
            remedy: "leave it out, or run the pod there".into(),
        });
    }
    let (volumes, wrong): (Vec<_>, Vec<_>) =
        pod.spec.volumes.iter().map(|v| volume::plan(&scope, v, facts)).partition(Result::is_ok);
    errors.extend(wrong.into_iter().filter_map(Result::err));
    let volumes: Vec<VolumePlan> = volumes.into_iter().filter_map(Result::ok).collect();
    let mut containers = Vec::new();
    let build = Build { scope, facts, qos: resources::qos(&pod.spec), volumes: &volumes };
    let inits = pod.spec.init_containers.iter().map(|c| (if c.is_sidecar() { Role::Sidecar } else { Role::Init }, c));
    for (role, container) in inits.chain(pod.spec.containers.iter().map(|c| (Role::App, c))) {
        match build.container(role, container) {
            Ok(container) => containers.push(container),
            Err(error) => errors.push(error),
        }
    }
    if !errors.is_empty() {
        return Err(ManifestErrors { errors, more: 0 });
    }
    Ok(PodPlan {
        qos: build.qos,
        config: build.pod(),
        restart_policy: pod.spec.restart_policy,
        termination_grace_seconds: pod.spec.termination_grace_seconds,
        active_deadline_seconds: pod.spec.active_deadline_seconds,
        containers,
        volumes,
    })
}

/// Mounts in the order that lets one stand below another: fewer path components first, otherwise as given.
fn by_depth(mounts: &mut [Mount]) {
    mounts.sort_by_key(|m| m.container_path.split('/').filter(|part| !part.is_empty()).count());
}

struct Build<'a> {
    scope: Scope<'a>,
    facts: &'a NodeFacts,
    qos: Qos,
    volumes: &'a [VolumePlan],
}

impl Build<'_> {
    fn pod(&self) -> PodConfig {
        let pod = self.scope.pod;
        let (metadata, spec) = (&pod.metadata, &pod.spec);
        let uid = &self.scope.facts.uid;
        let mode = |host| if host { NamespaceMode::Node } else { NamespaceMode::Pod };
        let pid = match (spec.host_pid, spec.share_process_namespace) {
            (true, _) => NamespaceMode::Node,
            (false, true) => NamespaceMode::Pod,
            (false, false) => NamespaceMode::Container,
        };
        let logs = |root: &PathBuf| root.join(format!("{}_{}_{uid}", metadata.namespace, metadata.name));
        PodConfig {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: uid.clone(),
            attempt: 0,
            labels: self.labels(metadata.labels.clone()),
            annotations: metadata.annotations.clone(),
            hostname: etc::hostname(spec, &metadata.name),
            log_directory: self.facts.log_root.as_ref().map(logs),
            dns: etc::dns(spec, &self.facts.resolv_conf),
            host_aliases: spec
                .host_aliases
                .iter()
                .map(|(ip, hostnames)| HostAlias { ip: ip.clone(), hostnames: hostnames.clone() })
                .collect(),
            namespaces: Namespaces { network: mode(spec.host_network), pid, ipc: mode(spec.host_ipc) },
            sysctls: spec.security.sysctls.iter().map(|(n, v)| (n.value.clone(), v.clone())).collect(),
            cgroup: PodCgroup::Own {
                path: resources::cgroup_path(self.qos, uid),
                resources: resources::pod(spec, self.qos, &self.facts.resources),
            },
            runtime_handler: String::new(),
            port_mappings: self.port_mappings(),
        }
    }

    /// The labels by which the kubelet, and who reads CRI, knows whose an object is (pkg/kubelet/kuberuntime/labels.go).
    fn labels(&self, mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let metadata = &self.scope.pod.metadata;
        labels.insert("io.kubernetes.pod.name".into(), metadata.name.clone());
        labels.insert("io.kubernetes.pod.namespace".into(), metadata.namespace.clone());
        labels.insert("io.kubernetes.pod.uid".into(), self.scope.facts.uid.clone());
        labels
    }

    /// Of app containers only, as the kubelet has it; on the host's network there is nothing to map.
    fn port_mappings(&self) -> Vec<PortMapping> {
        let spec = &self.scope.pod.spec;
        let ports = spec.containers.iter().flat_map(|c| &c.ports);
        ports
            .filter(|p| p.host_port != 0 && !spec.host_network)
            .map(|p| PortMapping {
                protocol: p.protocol.to_owned(),
                container_port: p.container_port,
                host_port: p.host_port,
                host_ip: p.host_ip.clone(),
            })
            .collect()
    }

    fn container(&self, role: Role, container: &Container) -> Result<ContainerPlan, ManifestError> {
        let spec = &self.scope.pod.spec;
        let env = self.scope.environment(container)?;
        let mut labels = self.labels(BTreeMap::new());
        labels.insert("io.kubernetes.container.name".into(), container.name.clone());
        let config = ContainerConfig {
            name: container.name.clone(),
            attempt: 0,
            image: container.image.value.clone(),
            image_id: None,
            command: self.scope.words(&container.command, &env, &container.spot.below("command"))?,
            args: self.scope.words(&container.args, &env, &container.spot.below("args"))?,
            working_dir: container.working_dir.clone(),
            mounts: self.mounts(container, &env)?,
            env,
            labels,
            annotations: BTreeMap::new(),
            log_path: self.facts.log_root.as_ref().map(|_| PathBuf::from(&container.name).join("0.log")),
            stdin: container.stdin,
            stdin_once: container.stdin_once,
            tty: container.tty,
            init: false,
            resources: resources::container(spec, self.qos, container, &self.facts.resources),
            security: self.security(container),
            stop_signal: None,
        };
        Ok(ContainerPlan {
            role,
            pull_policy: container.pull_policy,
            message_policy: container.termination_message_policy,
            config,
            message_dir: self.facts.pod_dir.join("containers").join(&container.name),
            message_path: container.termination_message_path.clone(),
        })
    }

    fn mounts(&self, container: &Container, env: &Environment) -> Result<Vec<Mount>, ManifestError> {
        let mut mounts = Vec::new();
        for mount in &container.mounts {
            // A mount of no volume was refused when the file was read.
            let Some(volume) = self.volumes.iter().find(|v| v.name == mount.name.value) else { continue };
            let sub_path = match &mount.sub_path {
                Some(sub) if sub.expand => {
                    Some(self.scope.sub_path(&sub.text, env, &mount.spot.below("subPathExpr"))?)
                }
                other => other.as_ref().map(|sub| sub.text.clone()),
            };
            let readonly = mount.read_only || volume.is_readonly();
            mounts.push(Mount {
                container_path: mount.mount_path.clone(),
                host_path: volume.source(sub_path.as_deref()).map_err(|(message, remedy)| ManifestError {
                    file: self.scope.pod.file.clone(),
                    at: mount.spot.at,
                    path: mount.spot.below("subPath").path,
                    value: sub_path.as_ref().map(|s| format!("{s:?}")),
                    message,
                    remedy,
                })?,
                readonly,
                recursive_readonly: readonly && mount.recursive_read_only != RecursiveReadOnly::Disabled,
                propagation: mount.propagation,
            });
        }
        by_depth(&mut mounts);
        Ok(mounts)
    }

    /// The container's own fields win over the pod's, one by one.
    fn security(&self, container: &Container) -> Security {
        let (own, pod) = (&container.security, &self.scope.pod.spec.security);
        let paths = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        let (mut masked_paths, mut readonly_paths) = (Vec::new(), Vec::new());
        if !own.privileged {
            masked_paths = paths(&MASKED_PATHS);
            masked_paths.extend(self.facts.masked_paths.iter().cloned());
            readonly_paths = paths(&READONLY_PATHS);
        }
        let seccomp = match own.seccomp.as_ref().or(pod.seccomp.as_ref()) {
            _ if own.privileged => SeccompProfile::Unconfined,
            Some(Seccomp::Unconfined) => SeccompProfile::Unconfined,
            Some(Seccomp::Localhost(path)) => SeccompProfile::Localhost(self.facts.seccomp_dir.join(path)),
            Some(Seccomp::RuntimeDefault) | None => SeccompProfile::RuntimeDefault,
        };
        Security {
            privileged: own.privileged,
            run_as_user: own.run_as.user.as_ref().or(pod.run_as.user.as_ref()).map(|u| u.value),
            run_as_group: own.run_as.group.as_ref().or(pod.run_as.group.as_ref()).map(|g| g.value),
            run_as_username: String::new(),
            run_as_non_root: own.run_as.non_root.or(pod.run_as.non_root).unwrap_or(false),
            supplemental_groups: pod.fs_group.iter().chain(&pod.supplemental_groups).copied().collect(),
            strict_groups: pod.strict_groups,
            add_capabilities: own.add.clone(),
            drop_capabilities: own.drop.clone(),
            no_new_privs: own.allow_privilege_escalation == Some(false),
            readonly_rootfs: own.read_only_root,
            masked_paths,
            readonly_paths,
            seccomp,
            pid_target: None,
            rlimits: Vec::new(),
        }
    }
}
