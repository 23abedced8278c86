//! From a [`Pod`] to what the engine is asked for: [`plan`]. Pure, so that `check`, `run --dry-run` and `run` show and do the same.
//!
//! A plan is made twice: before the sandbox (addresses unknown) to check and to make the pod, and again with its addresses for the
//! containers, whose environment may hold them. Everything else of the two is equal.

use super::etc;
use super::expand::{Environment, Facts, NO_ADDRESS_YET, Scope};
use super::fnv::Fnv;
use super::manifest::Manifest;
use super::pod::{Container, MessagePolicy, Pod, PullPolicy, RecursiveReadOnly, RestartPolicy, Seccomp};
use super::problem::{At, ManifestError, ManifestErrors, Spot, did_you_mean};
use super::resources::{self, NodeResources, Qos};
use super::volume::{self, Content, VolumePlan};
use crate::state::model::{
    ContainerConfig, HostAlias, ImageVolume, Mount, NamespaceMode, Namespaces, PodCgroup, PodConfig, PortMapping,
    SeccompProfile, Security, UserNamespace,
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
/// Annotations that a pod's record gets: `NAME=init|sidecar|app` of each container, in the order of the file and separated by commas;
/// its restart policy; seconds of its grace period. They are podwright's own and no part of the metadata that containers see.
pub const ROLES: &str = "podwright.dev/containers";
pub const RESTART_POLICY: &str = "podwright.dev/restart-policy";
pub use crate::engine::in_use::IMAGES;
pub const GRACE_SECONDS: &str = "podwright.dev/grace-seconds";

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
    /// The runtime handlers there are beside the built-in one.
    pub runtimes: Vec<String>,
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
    /// What its containers are made from anew when its address is known; `None` when they do not ask for it.
    pub unaddressed: Option<Box<Unaddressed>>,
}

/// What a plan was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unaddressed {
    pub manifest: Manifest,
    pub index: usize,
    pub facts: NodeFacts,
}

impl PodPlan {
    /// Whether something in a container is the pod's address, which is not known yet.
    pub fn asks_for_address(&self) -> bool {
        let asks = |text: &String| text.contains(NO_ADDRESS_YET);
        self.containers.iter().any(|c| {
            c.config.command.iter().chain(&c.config.args).any(asks) || c.config.env.iter().any(|(_, value)| asks(value))
        })
    }

    /// The same with its address; only the containers differ.
    ///
    /// # Errors
    /// As [`plan`], of what is too long with it.
    pub fn addressed(&self, ips: Vec<String>) -> Result<PodPlan, ManifestErrors> {
        let Some(from) = &self.unaddressed else { return Ok(self.clone()) };
        let facts = NodeFacts { pod_ips: Some(ips), ..from.facts.clone() };
        let PodPlan { containers, .. } = plan(&from.manifest, from.index, &facts)?;
        Ok(PodPlan { containers, unaddressed: None, ..self.clone() })
    }
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
    /// What the host gives it is seen through the ids of the pod's user namespace.
    idmap: bool,
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
            idmap: self.idmap,
            selinux_relabel: true,
            ..Mount::default()
        });
        Mount::by_depth(&mut config.mounts);
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
        let message = format!("no pod number {index}");
        return Err(one(ManifestError::new("".into(), &Spot::default(), None, message, "ask for one that is there")));
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
        let message = format!("this node is {:?}", facts.node_name);
        let remedy = "leave it out, or run the pod there";
        errors.push(ManifestError::new(pod.file.clone(), &node.spot, Some(&node.value), message, remedy));
    }
    errors.extend(pod.spec.runtime_class.as_ref().and_then(|class| unknown_runtime(pod, class, &facts.runtimes)));
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
        unaddressed: None,
    })
}

/// What is wrong with a handler's name.
fn unknown_runtime(pod: &Pod, class: &At<String>, runtimes: &[String]) -> Option<ManifestError> {
    let name = &class.value;
    if runtimes.contains(name) {
        return None;
    }
    let remedy = match did_you_mean(name, runtimes.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("leave it out for the built-in runtime, or set runtimes.{name}.path in the configuration file"),
    };
    let message = "no runtime handler of this name is configured";
    Some(ManifestError::new(pod.file.clone(), &class.spot, Some(name), message, remedy))
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
            annotations: self.annotations(metadata.annotations.clone()),
            hostname: etc::hostname(spec, &metadata.name),
            log_directory: self.facts.log_root.as_ref().map(logs),
            dns: etc::dns(spec, &self.facts.resolv_conf),
            host_aliases: spec
                .host_aliases
                .iter()
                .map(|(ip, hostnames)| HostAlias { ip: ip.clone(), hostnames: hostnames.clone() })
                .collect(),
            namespaces: Namespaces {
                network: mode(spec.host_network),
                pid,
                ipc: mode(spec.host_ipc),
                user: if spec.own_users { UserNamespace::Any } else { UserNamespace::Host },
            },
            sysctls: spec.security.sysctls.iter().map(|(n, v)| (n.value.clone(), v.clone())).collect(),
            cgroup: PodCgroup::Own {
                path: resources::cgroup_path(self.qos, uid),
                resources: resources::pod(spec, self.qos, &self.facts.resources),
            },
            runtime_handler: spec.runtime_class.as_ref().map(|class| class.value.clone()).unwrap_or_default(),
            foreground: false,
            selinux: spec.security.selinux.clone().unwrap_or_default(),
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

    /// What the pod's record has to say beside the CRI's fields, for commands that see only records.
    fn annotations(&self, mut annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let spec = &self.scope.pod.spec;
        let inits = spec.init_containers.iter().map(|c| (&c.name, if c.is_sidecar() { "sidecar" } else { "init" }));
        let all = inits.chain(spec.containers.iter().map(|c| (&c.name, "app")));
        let roles: Vec<String> = all.map(|(name, role)| format!("{name}={role}")).collect();
        annotations.insert(ROLES.into(), roles.join(","));
        let images = spec.init_containers.iter().chain(&spec.containers).map(|c| c.image.value.as_str());
        let images = images.chain(spec.volumes.iter().filter_map(|v| Some(v.image()?.0.value.as_str())));
        annotations.insert(IMAGES.into(), images.collect::<Vec<_>>().join(" "));
        annotations.insert(RESTART_POLICY.into(), format!("{:?}", spec.restart_policy));
        annotations.insert(GRACE_SECONDS.into(), spec.termination_grace_seconds.to_string());
        annotations
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
            devices: Vec::new(), // a manifest names none: device plugins are a kubelet's
            cdi_devices: Vec::new(),
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
            idmap: spec.own_users,
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
            if let Content::Image(name) = &volume.content {
                let sub_path = sub_path.unwrap_or_default().trim_matches('/').to_owned();
                mounts.push(Mount {
                    container_path: mount.mount_path.clone(),
                    readonly: true,
                    image: Some(ImageVolume { image: name.clone(), id: None, sub_path }),
                    ..Mount::default()
                });
                continue;
            }
            let readonly = mount.read_only || volume.is_readonly();
            mounts.push(Mount {
                container_path: mount.mount_path.clone(),
                host_path: volume.source(sub_path.as_deref()).map_err(|(message, remedy)| {
                    let spot = mount.spot.below("subPath");
                    ManifestError::new(self.scope.pod.file.clone(), &spot, sub_path.as_deref(), message, remedy)
                })?,
                readonly,
                recursive_readonly: readonly && mount.recursive_read_only != RecursiveReadOnly::Disabled,
                propagation: mount.propagation,
                idmap: self.scope.pod.spec.own_users,
                image: None,
                selinux_relabel: volume.is_pods_own(),
            });
        }
        Mount::by_depth(&mut mounts);
        Ok(mounts)
    }

    /// The container's own fields win over the pod's, one by one.
    fn security(&self, container: &Container) -> Security {
        let (own, pod) = (&container.security, &self.scope.pod.spec.security);
        let paths = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        let (mut masked_paths, mut readonly_paths) = (Vec::new(), Vec::new());
        if !own.privileged && !own.proc_unmasked {
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
            ambient_capabilities: Vec::new(), // a manifest has no word for them
            no_new_privs: own.allow_privilege_escalation == Some(false),
            readonly_rootfs: own.read_only_root,
            masked_paths,
            readonly_paths,
            seccomp,
            apparmor: own.apparmor.as_ref().or(pod.apparmor.as_ref()).cloned().unwrap_or_default(),
            selinux: own.selinux.clone().unwrap_or_default(),
            pid_target: None,
            rlimits: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::manifest::load;
    use crate::agent::volume::Content;
    use crate::state::model::Propagation;

    fn facts() -> NodeFacts {
        NodeFacts {
            node_name: "node-1".into(),
            host_ips: vec!["192.0.2.1".into()],
            resources: NodeResources { cpu_millis: 4000, memory_bytes: 4 << 30, hugepage_bytes: vec![] },
            resolv_conf: "nameserver 10.0.0.1\n".into(),
            log_root: Some("/var/log/pods".into()),
            pod_dir: "/pods/p".into(),
            secret_dir: "/run/pods/p".into(),
            seccomp_dir: "/seccomp".into(),
            ..NodeFacts::default()
        }
    }

    fn planned(text: &str, facts: &NodeFacts) -> PodPlan {
        plan(&load(text.as_bytes(), "f").unwrap_or_else(|e| panic!("{e}")), 0, facts).unwrap_or_else(|e| panic!("{e}"))
    }

    const EVERYTHING: &str = include_str!("../../tests/manifests/everything.yaml");

    #[test]
    fn the_documentation_example_becomes_two_limited_containers() {
        let plan = planned(include_str!("../../tests/manifests/frontend.yaml"), &facts());
        assert_eq!(
            (plan.qos, plan.restart_policy, plan.termination_grace_seconds),
            (Qos::Burstable, RestartPolicy::Always, 30)
        );
        let PodCgroup::Own { path, resources } = &plan.config.cgroup else { panic!("the agent's own") };
        assert_eq!(path, &format!("burstable/pod{}", plan.config.uid));
        assert_eq!((resources.cpu_quota_us, resources.memory_limit_bytes), (100_000, 256 << 20));
        for container in &plan.containers {
            let resources = &container.config.resources;
            assert_eq!((resources.cpu_shares, resources.cpu_quota_us), (256, 50_000));
            assert_eq!((resources.memory_limit_bytes, container.role), (128 << 20, Role::App));
            assert_eq!(container.config.security.seccomp, SeccompProfile::RuntimeDefault);
        }
        assert_eq!(plan.config.hostname, "frontend");
        assert_eq!(plan.config.namespaces.pid, NamespaceMode::Container);
    }

    #[test]
    fn the_web_pod_has_its_init_containers_first_and_one_shared_directory() {
        let plan = planned(include_str!("../../tests/manifests/web.yaml"), &facts());
        let names: Vec<_> = plan.containers.iter().map(|c| (c.config.name.as_str(), c.role)).collect();
        let expected =
            [("make-page", Role::Init), ("check-page", Role::Init), ("nginx", Role::App), ("client", Role::App)];
        assert_eq!(names, expected);
        let [volume] = plan.volumes.as_slice() else { panic!("one volume") };
        assert_eq!((&volume.path, &volume.content), (&PathBuf::from("/pods/p/volumes/work"), &Content::EmptyDir));
        for container in &plan.containers {
            assert_eq!(container.config.mounts[0].host_path, volume.path, "an alias of a list mounts the same");
        }
        assert!(plan.containers[0].config.args[0].contains("hello from web"), "$(POD_NAME) is expanded in args");
    }

    #[test]
    fn every_honoured_field_arrives() {
        let plan = planned(EVERYTHING, &facts());
        let config = &plan.config;
        assert_eq!((config.uid.as_str(), config.hostname.as_str()), ("6a2f41a3-c54c-fce8-32d2-0324e1c32e22", "host-1"));
        assert_eq!(config.log_directory, Some(format!("/var/log/pods/test_everything_{}", config.uid).into()));
        assert_eq!(config.namespaces.pid, NamespaceMode::Pod);
        assert_eq!(config.sysctls.get("net.ipv4.ip_unprivileged_port_start").map(String::as_str), Some("0"));
        assert_eq!(config.dns.as_ref().map(|d| d.servers.join(" ")), Some("10.0.0.1 10.1.1.1".into()));
        assert_eq!(config.host_aliases[0].hostnames, ["db", "db.example"]);
        assert_eq!((plan.active_deadline_seconds, plan.termination_grace_seconds), (Some(600), 5));
        assert_eq!(plan.containers[0].role, Role::Sidecar);
        let main = &plan.containers[1];
        assert_eq!((main.pull_policy, main.message_policy), (PullPolicy::Never, MessagePolicy::FallbackToLogsOnError));
        let security = &main.config.security;
        assert_eq!((security.run_as_user, security.run_as_group), (Some(1002), Some(1001)), "its own, then the pod's");
        assert_eq!((&security.supplemental_groups, security.strict_groups), (&vec![2000, 3000], true));
        assert!(security.run_as_non_root && security.no_new_privs && security.readonly_rootfs);
        assert_eq!(security.seccomp, SeccompProfile::Localhost("/seccomp/p/main.json".into()));
        assert!(security.masked_paths.contains(&"/proc/kcore".to_owned()) && security.readonly_paths.len() == 5);
        assert_eq!(
            (&security.add_capabilities[..], &security.drop_capabilities[..]),
            (&["NET_BIND_SERVICE".into()][..], &["ALL".into()][..])
        );
    }

    #[test]
    fn variables_come_in_the_kubelets_order_and_are_expanded_backwards_only() {
        let main = planned(EVERYTHING, &facts()).containers.remove(1).config;
        let get = |name: &str| main.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("GREETING"), Some("hello everything, $(LATER)"));
        assert_eq!((get("CFG_color"), get("password"), get("user")), (Some("blue"), Some("hunter2"), Some("root")));
        assert_eq!(get("CFG_logo.bin"), None, "binaryData is for files");
        assert_eq!((get("ABSENT"), get("CPUS"), get("MEMORY"), get("TIER")), (None, Some("2"), Some("64"), Some("1")));
        assert_eq!(main.command, ["/bin/main", "--color=blue", "$(KEPT)", "$(UNKNOWN)"]);
        assert_eq!(main.args, ["hello everything, $(LATER)"]);
    }

    #[test]
    fn projected_files_have_their_modes_and_are_mounted_read_only() {
        let plan = planned(EVERYTHING, &facts());
        let etc = plan.volumes.iter().find(|v| v.name == "etc").expect("there");
        assert_eq!(
            (etc.path.to_str(), etc.fs_group),
            (Some("/run/pods/p/volumes/etc"), Some(2000)),
            "secrets on tmpfs"
        );
        let Content::Files(files) = &etc.content else { panic!("files") };
        let shown: Vec<_> = files.iter().map(|(path, f)| (path.as_str(), f.mode, f.bytes.len())).collect();
        let labels = "app.kubernetes.io/name=\"every\"\ntier=\"1\"".len();
        let expected = [
            ("blue.txt", 0o400, 4),
            ("cpu", 0o440, 4),
            ("labels", 0o440, labels),
            ("password", 0o440, 7),
            ("sub/page.html", 0o440, 13),
            ("user", 0o440, 4),
        ];
        assert_eq!(shown, expected);
        let mounts = &plan.containers[1].config.mounts;
        let etc: Vec<_> = mounts.iter().filter(|m| m.container_path.starts_with("/etc")).collect();
        assert!(etc.iter().all(|m| m.readonly));
        assert_eq!(
            etc.iter().map(|m| m.host_path.to_str().expect("text")).collect::<Vec<_>>(),
            ["/run/pods/p/volumes/etc/sub/page.html", "/run/pods/p/volumes/etc/blue.txt", "/run/pods/p/volumes/etc",]
        );
        let host = mounts.iter().find(|m| m.container_path == "/host").expect("there");
        assert_eq!((host.propagation, host.readonly), (Propagation::HostToContainer, false));
    }

    #[test]
    fn each_attempt_has_its_log_and_message() {
        let main = planned(EVERYTHING, &facts()).containers.remove(1);
        let third = main.attempt(2);
        assert_eq!((third.attempt, third.log_path), (2, Some("main/2.log".into())));
        let message = third.mounts.iter().find(|m| m.container_path == "/tmp/message").expect("mounted");
        assert_eq!((&message.host_path, message.readonly), (&PathBuf::from("/pods/p/containers/main/2"), false));
        assert_eq!(message.host_path, main.message_file(2));
    }

    #[test]
    fn a_uid_follows_content_node_and_salt() {
        let text = include_str!("../../tests/manifests/frontend.yaml");
        let uid = |text: &str, salt: &str| planned(text, &NodeFacts { uid_salt: salt.into(), ..facts() }).config.uid;
        let first = uid(text, "");
        assert_eq!((first.len(), first.clone()), (32, uid(&text.replace("\"64Mi\"", "64Mi  # same"), "")));
        assert_ne!(first, uid(&text.replace("64Mi", "65Mi"), ""));
        assert_ne!(first, uid(text, "instance"), "a file can run twice");
    }

    #[test]
    fn a_runtime_class_is_a_handler_of_the_configuration() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  runtimeClassName: runc\n  overhead: {memory: 64Mi}\n  \
            containers: [{name: c, image: i, resources: {limits: {cpu: 1, memory: 1Gi}}}]\n";
        let known = NodeFacts { runtimes: vec!["crun".into(), "runc".into()], ..facts() };
        let config = planned(text, &known).config;
        assert_eq!(config.runtime_handler, "runc");
        let PodCgroup::Own { resources, .. } = config.cgroup else { panic!("a cgroup of its own") };
        assert_eq!(resources.memory_limit_bytes, (1 << 30) + (64 << 20));
        let refused = |text: &str, facts: &NodeFacts| match load(text.as_bytes(), "f") {
            Ok(manifest) => plan(&manifest, 0, facts).expect_err("refused").to_string(),
            Err(errors) => errors.to_string(),
        };
        let unknown = refused(text, &facts());
        assert!(unknown.contains("f:5:") && unknown.contains("spec.runtimeClassName"), "{unknown}");
        assert!(unknown.contains("set runtimes.runc.path in the configuration file"), "{unknown}");
        assert!(refused(&text.replace("runc", "runk"), &known).contains("did you mean runc?"));
        let alone = refused(&text.replace("  runtimeClassName: runc\n", ""), &known);
        assert!(alone.contains("spec.overhead") && alone.contains("give spec.runtimeClassName"), "{alone}");
    }

    #[test]
    fn what_this_node_cannot_give_is_refused_at_its_place() {
        let elsewhere = NodeFacts { node_name: "node-2".into(), ..facts() };
        let manifest = load(EVERYTHING.as_bytes(), "f").expect("good");
        let error = plan(&manifest, 0, &elsewhere).expect_err("another node").to_string();
        assert!(error.contains("items[2].spec.nodeName = \"node-1\": this node is \"node-2\""), "{error}");
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: c\n    image: i\n    \
                    env:\n    - name: IP\n      valueFrom: {fieldRef: {fieldPath: status.podIP}}\n";
        let manifest = load(text.as_bytes(), "f").expect("good");
        let with = |pod_ips: Option<Vec<String>>| plan(&manifest, 0, &NodeFacts { pod_ips, ..facts() });
        assert_eq!(with(None).expect("a placeholder").containers[0].config.env[0].1, "<the pod's address>");
        assert_eq!(with(Some(vec!["10.0.0.9".into()])).expect("known").containers[0].config.env[0].1, "10.0.0.9");
        let error = with(Some(vec![])).expect_err("none").to_string();
        assert!(
            error.starts_with("f:10:29: spec.containers[0].env[0].valueFrom.fieldRef: the pod has no address"),
            "{error}"
        );
        assert!(plan(&manifest, 1, &facts()).is_err());
    }

    #[test]
    fn a_sub_path_where_a_container_may_write_is_refused() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: c\n    image: i\n    \
                    volumeMounts: [{name: v, mountPath: /a, subPath: b}]\n  volumes: [{name: v, emptyDir: {}}]\n";
        let manifest = load(text.as_bytes(), "f").expect("good");
        let error = plan(&manifest, 0, &facts()).expect_err("refused").to_string();
        assert!(
            error.contains("volumeMounts[0].subPath = \"b\": subPath of a volume that containers write"),
            "{error}"
        );
    }

    #[test]
    fn a_containers_label_is_instead_of_the_pods_and_volumes_of_the_pods_own_are_relabelled() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  \
                    securityContext: {seLinuxOptions: {type: a_t, level: 's0:c1,c2'}, seLinuxChangePolicy: Recursive}\n  \
                    volumes: [{name: e, emptyDir: {}}, {name: h, hostPath: {path: /srv}}]\n  containers:\n  \
                    - {name: c, image: i, securityContext: {seLinuxOptions: {user: b_u}}, \
                    volumeMounts: [{name: e, mountPath: /e}, {name: h, mountPath: /h}]}\n";
        let plan = planned(text, &facts());
        assert_eq!((plan.config.selinux.kind.as_str(), plan.config.selinux.level.as_str()), ("a_t", "s0:c1,c2"));
        let config = plan.containers[0].attempt(0);
        let options = &config.security.selinux;
        assert_eq!((options.user.as_str(), options.kind.as_str(), options.level.as_str()), ("b_u", "", ""));
        let relabelled = config.mounts.iter().filter(|mount| mount.selinux_relabel);
        let paths: Vec<_> = relabelled.map(|mount| mount.container_path.as_str()).collect();
        assert_eq!(paths, ["/e", "/dev/termination-log"]);
        let wrong = text.replace("a_t", "'a_t:s0'").replace("Recursive", "Always");
        let errors = load(wrong.as_bytes(), "f").expect_err("refused").to_string();
        assert!(errors.contains("seLinuxOptions.type") && errors.contains("seLinuxChangePolicy"), "{errors}");
    }

    #[test]
    fn a_privileged_container_has_no_masks_and_no_filter() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  hostNetwork: true\n  hostPID: true\n  hostIPC: true\n  \
                    containers: [{name: c, image: i, securityContext: {privileged: true}}]\n";
        let plan = planned(text, &facts());
        let security = &plan.containers[0].config.security;
        assert!(security.masked_paths.is_empty() && security.readonly_paths.is_empty());
        assert_eq!(security.seccomp, SeccompProfile::Unconfined);
        let node = Namespaces {
            network: NamespaceMode::Node,
            pid: NamespaceMode::Node,
            ipc: NamespaceMode::Node,
            user: UserNamespace::Host,
        };
        assert_eq!((plan.config.namespaces, plan.config.hostname.as_str()), (node, ""));
        let PodCgroup::Own { path, .. } = &plan.config.cgroup else { panic!("the agent's own") };
        assert!(path.starts_with("besteffort/pod"));
    }
}
