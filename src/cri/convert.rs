//! A CRI request -> what the engine is asked for. Pure. The way back is in `answer`.
//!
//! Whatever is not honoured is refused by its name, never dropped. Some fields are honoured by what is there anyway:
//!
//! | field | why it may be there |
//! |---|---|
//! | the sandbox's run_as_*, supplemental_groups, readonly_rootfs, seccomp, privileged | they confine an image's pause program; ours is no image, has an empty read-only root, no capability and nothing to lose |
//! | the sandbox's resources and overhead | tell runtimes that boot a machine how large it is to be; the pod's cgroup is the kubelet's |
//! | port_mappings on the host's network | the container is on the host's port already |
//! | selinux_options, selinux_relabel | where the host has no SELinux, or pods are to have no labels, there is nothing to label, as for other runtimes |
//! | the sandbox's apparmor | as its seccomp |

use super::security::{container_security, is_idmapped, pod_namespaces, refuse_sandbox_security, selinux};
use crate::cgroup::slice;
use crate::config::CgroupDriver;
use crate::criapi::{self, LinuxContainerResources, PodSandboxMetadata, Protocol, Signal};
use crate::engine::cdi;
use crate::error::{Error, Result};
use crate::id::ContainerId;
use crate::state::model::{
    ContainerConfig, Device, Dns, ImageVolume, Mount, NamespaceMode, PodCgroup, PodConfig, PortMapping, Propagation,
    Resources,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// How annotations begin that name devices of the Container Device Interface.
const CDI_ANNOTATION: &str = "cdi.k8s.io/";

/// Something that this version would have to leave out.
pub(super) fn refuse(field: &str, why: &str) -> Error {
    Error::unsupported(format!("{field}: {why}"))
}

/// A pod's identity and shape. `driver`: who makes cgroups.
pub(super) fn pod(
    config: criapi::PodSandboxConfig,
    runtime_handler: String,
    driver: CgroupDriver,
) -> Result<PodConfig> {
    let PodSandboxMetadata { name, uid, namespace, attempt } =
        config.metadata.ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    if config.windows.is_some() {
        return Err(Error::invalid("config.windows: this is Linux"));
    }
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    refuse_sandbox_security(&security)?;
    let namespaces = pod_namespaces(security.namespace_options.as_ref())?;
    let on_host = namespaces.network == NamespaceMode::Node;
    let port_mappings = if on_host { Vec::new() } else { config.port_mappings };
    Ok(PodConfig {
        name,
        namespace,
        uid,
        attempt,
        labels: config.labels,
        annotations: config.annotations,
        hostname: if on_host { String::new() } else { config.hostname },
        log_directory: path(config.log_directory),
        dns: config.dns_config.and_then(dns),
        host_aliases: Vec::new(),
        namespaces,
        sysctls: linux.sysctls,
        cgroup: cgroup(linux.cgroup_parent, driver)?,
        runtime_handler,
        foreground: false,
        selinux: selinux(security.selinux_options)?,
        port_mappings: port_mappings.into_iter().map(port_mapping).collect::<Result<_>>()?,
    })
}

fn path(text: String) -> Option<PathBuf> {
    if text.is_empty() { None } else { Some(text.into()) }
}

/// One without any entry is the host's, as for containerd: nobody asks for a pod that resolves nothing.
fn dns(config: criapi::DnsConfig) -> Option<Dns> {
    let dns = Dns { servers: config.servers, searches: config.searches, options: config.options };
    if dns == Dns::default() { None } else { Some(dns) }
}

fn cgroup(parent: String, driver: CgroupDriver) -> Result<PodCgroup> {
    let trimmed = parent.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(PodCgroup::Default);
    }
    let is = match (slice::is_slice(&parent), driver) {
        (true, CgroupDriver::Cgroupfs) => "a slice of systemd, and podwright drives cgroupfs",
        (false, CgroupDriver::Systemd) => "no slice, and podwright's cgroups are made by systemd",
        (true, CgroupDriver::Systemd) => {
            let path = slice::path_of(slice::name_of(&parent));
            let path = path.map_err(|e| Error::invalid(format!("config.linux.cgroup_parent: {e}")))?;
            return Ok(PodCgroup::Given(path.to_string()));
        }
        (false, CgroupDriver::Cgroupfs) => return Ok(PodCgroup::Given(format!("/{trimmed}"))),
    };
    let driver = driver.word();
    Err(refuse(
        "config.linux.cgroup_parent",
        &format!(
            "{parent:?} is {is}; set `cgroupDriver: {driver}` in the kubelet's configuration, or cgroup.driver in podwright's"
        ),
    ))
}

fn port_mapping(mapping: criapi::PortMapping) -> Result<PortMapping> {
    let protocol = match Protocol::try_from(mapping.protocol) {
        Ok(Protocol::Tcp) => "TCP",
        Ok(Protocol::Udp) => "UDP",
        Ok(Protocol::Sctp) => "SCTP",
        Err(_) => return Err(Error::invalid(format!("port_mappings.protocol: {} is none", mapping.protocol))),
    };
    let port = |field: &str, number: i32| {
        u16::try_from(number).map_err(|_| Error::invalid(format!("port_mappings.{field}: {number} is no port")))
    };
    Ok(PortMapping {
        protocol: protocol.to_owned(),
        container_port: port("container_port", mapping.container_port)?,
        host_port: port("host_port", mapping.host_port)?,
        host_ip: mapping.host_ip,
    })
}

/// A container as asked for, and the image to look up; its `image` is what people call it.
pub(super) fn container(config: criapi::ContainerConfig, pod: &PodConfig) -> Result<(ContainerConfig, String)> {
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name is empty"));
    }
    let image = config.image.unwrap_or_default();
    if image.image.is_empty() {
        return Err(Error::invalid("config.image.image is empty"));
    }
    // The image is unpacked the same way for all of them.
    if !image.runtime_handler.is_empty() && image.runtime_handler != pod.runtime_handler {
        return Err(refuse(
            "config.image.runtime_handler",
            &format!("{:?} is not the pod's, which is {:?}", image.runtime_handler, pod.runtime_handler),
        ));
    }
    if config.windows.is_some() {
        return Err(Error::invalid("config.windows: this is Linux"));
    }
    let cdi_devices = cdi_devices(&config.cdi_devices, &config.annotations)?;
    let linux = config.linux.unwrap_or_default();
    let mut mounts = config.mounts.into_iter().map(|m| mount(m, pod)).collect::<Result<Vec<_>>>()?;
    Mount::by_depth(&mut mounts);
    let converted = ContainerConfig {
        name: metadata.name,
        attempt: metadata.attempt,
        image: if image.user_specified_image.is_empty() { image.image.clone() } else { image.user_specified_image },
        image_id: None,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        env: config.envs.into_iter().map(env).collect::<Result<_>>()?,
        mounts,
        devices: config.devices.into_iter().map(device).collect::<Result<_>>()?,
        cdi_devices,
        labels: config.labels,
        annotations: config.annotations,
        log_path: path(config.log_path),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        init: false,
        resources: resources(linux.resources.unwrap_or_default())?,
        security: container_security(linux.security_context.unwrap_or_default(), pod)?,
        stop_signal: stop_signal(config.stop_signal)?,
    };
    Ok((converted, image.image))
}

/// A privileged container is only for a pod that said it would have one.
pub(super) fn check_privilege(config: &ContainerConfig, sandbox: Option<&criapi::PodSandboxConfig>) -> Result<()> {
    let Some(sandbox) = sandbox.filter(|_| config.security.privileged) else { return Ok(()) };
    let security = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if security.is_some_and(|context| context.privileged) {
        return Ok(());
    }
    Err(Error::invalid(format!("container {:?} is privileged and its pod is not", config.name)))
}

fn env(entry: criapi::KeyValue) -> Result<(String, String)> {
    let wrong = |what: &str| Error::invalid(format!("config.envs: {:?} {what}", entry.key));
    if entry.key.is_empty() || entry.key.contains(['=', '\0']) {
        return Err(wrong("is no name of a variable"));
    }
    // The OCI runtime spec is JSON, which holds text.
    let value = String::from_utf8(entry.value.clone()).map_err(|_| wrong("has a value that is not UTF-8"))?;
    Ok((entry.key, value))
}

fn device(device: criapi::Device) -> Result<Device> {
    let wrong = |why: &str| Error::invalid(format!("config.devices: {:?}: {why}", device.container_path));
    if !device.host_path.starts_with('/') || device.host_path.contains('\0') {
        return Err(wrong(&format!("host_path {:?} is not absolute", device.host_path)));
    }
    if device.permissions.is_empty() || !device.permissions.chars().all(|c| "rwm".contains(c)) {
        return Err(wrong(&format!("permissions {:?} are not of r, w and m", device.permissions)));
    }
    let path = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
    // A relative path in the container is below its root, as for mounts.
    let container_path = format!("/{}", path.trim_start_matches('/'));
    if !container_path.starts_with("/dev/") && container_path != "/dev" {
        return Err(wrong("devices are made below /dev"));
    }
    Ok(Device { container_path, host_path: device.host_path.into(), permissions: device.permissions })
}

/// By the field, and by the annotations that device plugins used before there was one (kubernetes/kubernetes KEP-4009): the kubelet fills
/// both. Each once.
fn cdi_devices(asked: &[criapi::CdiDevice], annotations: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let annotated =
        annotations.iter().filter(|(key, _)| key.starts_with(CDI_ANNOTATION)).flat_map(|(_, names)| names.split(','));
    let mut all: Vec<String> = Vec::new();
    for name in asked.iter().map(|device| device.name.as_str()).chain(annotated) {
        if !cdi::is_name(name) {
            return Err(Error::invalid(format!("config.CDI_devices: {name:?} is not VENDOR/CLASS=NAME")));
        }
        if !all.iter().any(|known| known == name) {
            all.push(name.to_owned());
        }
        if all.len() > cdi::MAX_NAMES {
            return Err(Error::invalid(format!("config.CDI_devices: more than {}", cdi::MAX_NAMES)));
        }
    }
    Ok(all)
}

fn mount(mount: criapi::Mount, pod: &PodConfig) -> Result<Mount> {
    let idmap = is_idmapped(&mount, pod)?;
    let at = |field: &str| format!("mount {:?}: {field}", mount.container_path);
    let image = match (mount.image, mount.image_sub_path) {
        (Some(image), sub_path) if !image.image.is_empty() => {
            Some(ImageVolume { image: image.image, id: None, sub_path })
        }
        (_, sub_path) if !sub_path.is_empty() => {
            return Err(Error::invalid(format!("{}: there is no image", at("image_sub_path"))));
        }
        _ => None,
    };
    if image.is_some() && !(mount.readonly && mount.host_path.is_empty()) {
        let why = "an image is mounted with readonly, and has no host_path";
        return Err(Error::invalid(format!("{}: {why}", at("image"))));
    }
    if !mount.mount_options.is_empty() {
        return Err(refuse(&at("mount_options"), "not in this version, as its runtime features say"));
    }
    if mount.container_path.is_empty() || image.is_none() && !mount.host_path.starts_with('/') {
        return Err(Error::invalid(format!("{}: {:?} is not absolute", at("host_path"), mount.host_path)));
    }
    let propagation = match criapi::MountPropagation::try_from(mount.propagation) {
        Ok(criapi::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(criapi::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(criapi::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => return Err(Error::invalid(format!("{}: {} is none", at("propagation"), mount.propagation))),
    };
    if mount.recursive_read_only && !(mount.readonly && propagation == Propagation::Private) {
        return Err(Error::invalid(format!("{} needs readonly and private propagation", at("recursive_read_only"))));
    }
    // A relative path in the container is below its root, as for other runtimes.
    let container_path = format!("/{}", mount.container_path.trim_start_matches('/'));
    Ok(Mount {
        container_path,
        host_path: mount.host_path.into(),
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_read_only,
        propagation,
        idmap,
        image,
        selinux_relabel: mount.selinux_relabel,
    })
}

/// Zero and empty stay "not specified".
pub(super) fn resources(asked: LinuxContainerResources) -> Result<Resources> {
    let unsigned = |field: &str, value: i64| {
        u64::try_from(value).map_err(|_| Error::invalid(format!("resources.{field}: {value} is negative")))
    };
    Ok(Resources {
        cpu_period_us: unsigned("cpu_period", asked.cpu_period)?,
        cpu_quota_us: asked.cpu_quota,
        cpu_shares: unsigned("cpu_shares", asked.cpu_shares)?,
        memory_limit_bytes: asked.memory_limit_in_bytes,
        memory_swap_limit_bytes: asked.memory_swap_limit_in_bytes,
        oom_score_adj: i32::try_from(asked.oom_score_adj).ok().filter(|adj| (-1000..=1000).contains(adj)).ok_or_else(
            || Error::invalid(format!("resources.oom_score_adj: {} is not within -1000 and 1000", asked.oom_score_adj)),
        )?,
        cpuset_cpus: asked.cpuset_cpus,
        cpuset_mems: asked.cpuset_mems,
        hugepage_limits: asked.hugepage_limits.into_iter().map(|l| (l.page_size, l.limit)).collect(),
        pids_limit: 0,
        unified: asked.unified,
        defaults: BTreeSet::new(),
    })
}

/// `SIGNAL_SIGRTMINPLUS3` -> `RTMIN+3`, which the engine knows.
fn stop_signal(number: i32) -> Result<Option<String>> {
    let signal =
        Signal::try_from(number).map_err(|_| Error::invalid(format!("config.stop_signal: {number} is none")))?;
    Ok(match signal {
        Signal::RuntimeDefault => None,
        Signal::Sigcld => Some("CHLD".to_owned()),
        other => {
            let name = other.as_str_name().trim_start_matches("SIGNAL_SIG");
            Some(name.replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-"))
        }
    })
}

/// The ids of a selector that must all be there, and be the same.
pub(super) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The container whose pid namespace is to be shared.
pub(super) fn target(id: &str) -> Result<ContainerId> {
    id.parse().map_err(|e: Error| e.context("namespace_options.target_id"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criapi::{
        Capability, ImageSpec, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
        LinuxSandboxSecurityContext, NamespaceOption, SecurityProfile, UserNamespace,
    };
    use crate::error::Kind;
    use crate::state::model::SeccompProfile;

    fn sandbox() -> criapi::PodSandboxConfig {
        let metadata =
            PodSandboxMetadata { name: "web".into(), uid: "u".into(), namespace: "default".into(), attempt: 2 };
        criapi::PodSandboxConfig { metadata: Some(metadata), hostname: "web".into(), ..Default::default() }
    }

    fn asked() -> criapi::ContainerConfig {
        criapi::ContainerConfig {
            metadata: Some(criapi::ContainerMetadata { name: "c".into(), attempt: 1 }),
            image: Some(ImageSpec {
                image: "sha256:0".into(),
                user_specified_image: "nginx".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn security(context: LinuxContainerSecurityContext) -> criapi::ContainerConfig {
        let linux = LinuxContainerConfig { resources: None, security_context: Some(context) };
        criapi::ContainerConfig { linux: Some(linux), ..asked() }
    }

    fn refused(config: criapi::ContainerConfig) -> String {
        let pod = PodConfig::default();
        let e = container(config, &pod).expect_err("it is not honoured");
        assert!([Kind::Unsupported, Kind::InvalidArgument].contains(&e.kind()), "{e:?}");
        e.to_string()
    }

    #[test]
    fn a_pod_keeps_what_the_kubelet_says_of_it() {
        let mut config = sandbox();
        config.labels.insert("a".into(), "b".into());
        config.log_directory = "/var/log/pods/p".into();
        config.linux = Some(LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/burstable/podu/".into(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption { pid: 1, ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        });
        let pod = pod(config, String::new(), CgroupDriver::default()).expect("valid");
        assert_eq!((pod.name.as_str(), pod.attempt, pod.labels["a"].as_str()), ("web", 2, "b"));
        assert_eq!(pod.cgroup, PodCgroup::Given("/kubepods/burstable/podu".into()));
        assert_eq!(pod.namespaces.pid, NamespaceMode::Container);
        assert_eq!(pod.log_directory, Some("/var/log/pods/p".into()));
        assert_eq!(pod.dns, None);
    }

    #[test]
    fn a_pod_on_the_hosts_network_has_no_name_and_no_ports_of_its_own() {
        let mut config = sandbox();
        config.port_mappings = vec![criapi::PortMapping { host_port: 80, container_port: 80, ..Default::default() }];
        config.linux = Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption { network: 2, ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        });
        let pod = pod(config, String::new(), CgroupDriver::default()).expect("valid");
        assert_eq!((pod.hostname.as_str(), pod.port_mappings.len()), ("", 0));
    }

    #[test]
    fn a_pod_that_needs_what_there_is_not_is_refused_by_name() {
        let with = |change: &dyn Fn(&mut LinuxSandboxSecurityContext, &mut LinuxPodSandboxConfig), driver| {
            let (mut context, mut linux) = (LinuxSandboxSecurityContext::default(), LinuxPodSandboxConfig::default());
            change(&mut context, &mut linux);
            linux.security_context = Some(context);
            let config = criapi::PodSandboxConfig { linux: Some(linux), ..sandbox() };
            pod(config, String::new(), driver).map_or_else(|e| e.to_string(), |_| String::new())
        };
        let plain = CgroupDriver::Cgroupfs;
        let userns = |mode| NamespaceOption {
            userns_options: Some(UserNamespace { mode, ..Default::default() }),
            ..Default::default()
        };
        assert!(with(&|c, _| c.namespace_options = Some(userns(0)), plain).contains("userns_options"));
        assert_eq!(with(&|c, _| c.namespace_options = Some(userns(2)), plain), "");
        assert!(with(&|_, l| l.cgroup_parent = "a-b.slice".into(), plain).contains("cgroupDriver: cgroupfs"));
        let systemd = CgroupDriver::Systemd;
        assert!(with(&|_, l| l.cgroup_parent = "/kubepods/podu".into(), systemd).contains("cgroupDriver: systemd"));
        assert!(with(&|_, l| l.cgroup_parent = "a--b.slice".into(), systemd).contains("cgroup_parent: slice"));
        assert_eq!(with(&|_, l| l.cgroup_parent = "a-b.slice".into(), systemd), "");
        let label = |c: &mut LinuxSandboxSecurityContext| {
            c.selinux_options = Some(criapi::SeLinuxOption { level: "s0".into(), ..Default::default() });
        };
        assert_eq!(with(&|c, _| label(c), plain), "");
        let two = |c: &mut LinuxSandboxSecurityContext| {
            c.selinux_options = Some(criapi::SeLinuxOption { r#type: "a_t:s0".into(), ..Default::default() });
        };
        assert!(with(&|c, _| two(c), plain).contains("selinux_options.type: \"a_t:s0\""));
        assert!(
            with(&|c, _| c.run_as_group = Some(criapi::Int64Value { value: 5 }), plain).contains("needs run_as_user")
        );
        assert!(pod(Default::default(), String::new(), plain).is_err());
    }

    #[test]
    fn a_container_becomes_what_the_engine_knows() {
        let mut config = security(LinuxContainerSecurityContext {
            run_as_user: Some(criapi::Int64Value { value: 1000 }),
            supplemental_groups: vec![5],
            supplemental_groups_policy: 1,
            no_new_privs: true,
            masked_paths: vec!["/proc/kcore".into()],
            seccomp: Some(SecurityProfile::default()),
            capabilities: Some(Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() }),
            ..Default::default()
        });
        config.envs = vec![KeyValue { key: "A".into(), value: b"b=c".to_vec() }];
        config.stop_signal = Signal::Sigrtminplus3 as i32;
        config.mounts = ["/a/b", "/a"]
            .map(|at| criapi::Mount { container_path: at.into(), host_path: "/h".into(), ..Default::default() })
            .to_vec();
        let (container, image) = container(config, &PodConfig::default()).expect("valid");
        assert_eq!((image.as_str(), container.image.as_str()), ("sha256:0", "nginx"));
        assert_eq!(container.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(container.stop_signal.as_deref(), Some("RTMIN+3"));
        assert_eq!(container.mounts.iter().map(|m| m.container_path.as_str()).collect::<Vec<_>>(), ["/a", "/a/b"]);
        let security = container.security;
        assert_eq!((security.run_as_user, security.strict_groups), (Some(1000), true));
        assert_eq!((security.seccomp, security.add_capabilities.len()), (SeccompProfile::RuntimeDefault, 1));
        assert_eq!(security.masked_paths, ["/proc/kcore"]);
    }

    #[test]
    fn every_signal_of_the_interface_is_one_that_the_engine_knows() {
        for number in 1..=65 {
            let name = stop_signal(number).expect("a signal").expect("a name");
            assert!(crate::engine::signal::number(&name).is_some(), "{name}");
        }
        assert_eq!(stop_signal(0).expect("the default"), None);
        assert!(stop_signal(66).is_err());
    }

    #[test]
    fn devices_of_field_and_annotations_are_given_once() {
        let named = |name: &str| criapi::CdiDevice { name: name.into() };
        let config = criapi::ContainerConfig {
            devices: vec![criapi::Device {
                host_path: "/dev/fuse".into(),
                permissions: "rw".into(),
                ..Default::default()
            }],
            cdi_devices: vec![named("vendor.com/gpu=1"), named("vendor.com/gpu=0")],
            annotations: [("cdi.k8s.io/plugin_x".to_owned(), "vendor.com/gpu=0,vendor.com/net=eth0".to_owned())].into(),
            ..asked()
        };
        let (container, _) = container(config, &PodConfig::default()).expect("valid");
        assert_eq!(container.cdi_devices, ["vendor.com/gpu=1", "vendor.com/gpu=0", "vendor.com/net=eth0"]);
        assert_eq!(container.devices[0].container_path, "/dev/fuse");
    }

    #[test]
    fn what_is_not_honoured_of_a_container_is_refused_by_name() {
        let mount = |change: &dyn Fn(&mut criapi::Mount)| {
            let mut mount = criapi::Mount { container_path: "/m".into(), host_path: "/h".into(), ..Default::default() };
            change(&mut mount);
            refused(criapi::ContainerConfig { mounts: vec![mount], ..asked() })
        };
        let image = || Some(ImageSpec { image: "a".into(), ..ImageSpec::default() });
        assert!(mount(&|m| m.image = image()).contains("readonly"), "and a host_path as well");
        assert!(mount(&|m| m.image_sub_path = "a".into()).contains("there is no image"));
        assert!(mount(&|m| m.mount_options = vec!["x".into()]).contains("mount_options"));
        assert!(mount(&|m| m.uid_mappings = vec![Default::default()]).contains("uidMappings"));
        assert!(mount(&|m| m.recursive_read_only = true).contains("recursive_read_only"));
        assert!(mount(&|m| m.host_path = "relative".into()).contains("absolute"));
        let context = |change: &dyn Fn(&mut LinuxContainerSecurityContext)| {
            let mut context = LinuxContainerSecurityContext::default();
            change(&mut context);
            refused(security(context))
        };
        assert!(context(&|c| c.run_as_user = Some(criapi::Int64Value { value: -1 })).contains("run_as_user"));
        let localhost = SecurityProfile { profile_type: 2, localhost_ref: "p".into() };
        let evil = SecurityProfile { profile_type: 2, localhost_ref: "localhost/a\nb".into() };
        assert!(context(&|c| c.apparmor = Some(evil.clone())).contains("apparmor"));
        #[allow(deprecated, reason = "older clients fill only this")]
        let old = |c: &mut LinuxContainerSecurityContext| c.apparmor_profile = "localhost".into();
        assert!(context(&old).contains("apparmor_profile"));
        assert!(context(&|c| c.seccomp = Some(localhost.clone())).contains("absolute"));
        let device = |container: &str, host: &str, permissions: &str| {
            let device = criapi::Device {
                container_path: container.into(),
                host_path: host.into(),
                permissions: permissions.into(),
            };
            refused(criapi::ContainerConfig { devices: vec![device], ..asked() })
        };
        assert!(device("/dev/a", "dev/a", "rw").contains("not absolute"));
        assert!(device("/dev/a", "/dev/a", "rx").contains("of r, w and m"));
        assert!(device("/etc/a", "/dev/a", "r").contains("below /dev"));
        let cdi = criapi::ContainerConfig { cdi_devices: vec![Default::default()], ..asked() };
        assert!(refused(cdi).contains("CDI"));
        let annotations = [("cdi.k8s.io/x".to_owned(), "vendor.com/a=b,c".to_owned())].into();
        assert!(refused(criapi::ContainerConfig { annotations, ..asked() }).contains("\"c\""));
        let env = criapi::ContainerConfig { envs: vec![KeyValue { key: "A".into(), value: vec![0xff] }], ..asked() };
        assert!(refused(env).contains("UTF-8"));
        let adj = LinuxContainerResources { oom_score_adj: 2000, ..Default::default() };
        assert!(resources(adj).expect_err("too much").to_string().contains("oom_score_adj"));
    }
}
