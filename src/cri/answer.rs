//! What the engine knows -> CRI messages. Pure: the facts are given, nothing is looked up.

use crate::criapi::{
    self, Container, ContainerAttributes, ContainerMetadata, ContainerResources, ContainerState, ContainerUser,
    HugepageLimit, Image, ImageSpec, Int64Value, LinuxContainerResources, LinuxContainerUser, LinuxPodSandboxStatus,
    Namespace, NamespaceMode as Mode, NamespaceOption, PodIp, PodSandbox, PodSandboxAttributes, PodSandboxMetadata,
    PodSandboxNetworkStatus, PodSandboxState, Signal,
};
use crate::engine::pod::State;
use crate::engine::query::{ContainerStatus, PodStatus};
use crate::engine::signal;
use crate::image::store;
use crate::state::model::{IdMap, IdRange, Mount, NamespaceMode, PodConfig, Propagation, Resources};
use crate::state::record::{ContainerRecord, PodRecord};

fn pod_metadata(config: &PodConfig) -> PodSandboxMetadata {
    PodSandboxMetadata {
        name: config.name.clone(),
        uid: config.uid.clone(),
        namespace: config.namespace.clone(),
        attempt: config.attempt,
    }
}

pub(super) fn pod_state(ready: bool) -> PodSandboxState {
    if ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

/// A line of ListPodSandbox; without its state, the default, which is not sent.
pub(super) fn pod(record: &PodRecord, ready: Option<bool>) -> PodSandbox {
    let state = ready.map(|ready| pod_state(ready) as i32).unwrap_or_default();
    PodSandbox {
        id: record.id.to_string(),
        metadata: Some(pod_metadata(&record.config)),
        state,
        created_at: record.created_at_ns,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.config.runtime_handler.clone(),
    }
}

fn mode(mode: &NamespaceMode) -> i32 {
    (match mode {
        NamespaceMode::Pod => Mode::Pod,
        NamespaceMode::Container => Mode::Container,
        NamespaceMode::Node => Mode::Node,
        NamespaceMode::Target(_) => Mode::Target,
    }) as i32
}

fn user_namespace(map: IdMap) -> criapi::UserNamespace {
    let mapping =
        |range: IdRange| vec![criapi::IdMapping { host_id: range.host, container_id: 0, length: range.length }];
    criapi::UserNamespace { mode: Mode::Pod as i32, uids: mapping(map.uids), gids: mapping(map.gids) }
}

/// PodSandboxStatus. A kubelet makes a ready pod anew when its namespaces are not those it asked for.
pub(super) fn pod_status(pod: &PodStatus) -> criapi::PodSandboxStatus {
    let namespaces = &pod.record.config.namespaces;
    let options = NamespaceOption {
        network: mode(&namespaces.network),
        pid: mode(&namespaces.pid),
        ipc: mode(&namespaces.ipc),
        target_id: String::new(),
        userns_options: namespaces.user.map().map(user_namespace),
    };
    criapi::PodSandboxStatus {
        id: pod.record.id.to_string(),
        metadata: Some(pod_metadata(&pod.record.config)),
        state: pod_state(pod.ready) as i32,
        created_at: pod.record.created_at_ns,
        network: Some(network_status(pod)),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(options) }) }),
        labels: pod.record.config.labels.clone(),
        annotations: pod.record.config.annotations.clone(),
        runtime_handler: pod.record.config.runtime_handler.clone(),
    }
}

/// Empty for the host's network, by contract.
fn network_status(pod: &PodStatus) -> PodSandboxNetworkStatus {
    let mut ips = pod.network.iter().flat_map(|network| &network.ips).map(ToString::to_string);
    PodSandboxNetworkStatus { ip: ips.next().unwrap_or_default(), additional_ips: ips.map(|ip| PodIp { ip }).collect() }
}

pub(super) fn pod_attributes(pod: &PodStatus) -> PodSandboxAttributes {
    let config = &pod.record.config;
    PodSandboxAttributes {
        id: pod.record.id.to_string(),
        metadata: Some(pod_metadata(config)),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

pub(super) fn container_state(state: State) -> ContainerState {
    match state {
        State::Created => ContainerState::ContainerCreated,
        State::Running => ContainerState::ContainerRunning,
        State::Exited => ContainerState::ContainerExited,
    }
}

fn container_metadata(record: &ContainerRecord) -> Option<ContainerMetadata> {
    let config = &record.config;
    Some(ContainerMetadata { name: config.name.clone(), attempt: config.attempt })
}

fn image_spec(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: name.to_owned(), user_specified_image: name.to_owned(), ..ImageSpec::default() })
}

/// The one id of an image: Image.id, PullImageResponse.image_ref, Container.image_id.
fn image_id(record: &ContainerRecord) -> String {
    record.config.image_id.as_ref().map(ToString::to_string).unwrap_or_default()
}

/// Records of the first days have none.
fn image_ref(record: &ContainerRecord) -> String {
    let known = &record.image_ref;
    if known.is_empty() { image_id(record) } else { known.clone() }
}

/// A line of ListContainers; without its state, the default, which is not sent.
pub(super) fn container(record: &ContainerRecord, state: Option<State>) -> Container {
    let config = &record.config;
    Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.pod.to_string(),
        metadata: container_metadata(record),
        image: image_spec(&config.image),
        image_ref: image_ref(record),
        state: state.map(|state| container_state(state) as i32).unwrap_or_default(),
        created_at: record.created_at_ns,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: image_id(record),
    }
}

/// ContainerStatus.
pub(super) fn container_status(container: &ContainerStatus) -> criapi::ContainerStatus {
    let record = &container.record;
    let (process, exit) = (container.process.as_ref(), container.exit.as_ref());
    let user = process.map(|p| LinuxContainerUser {
        uid: p.user.uid.into(),
        gid: p.user.gid.into(),
        supplemental_groups: p.user.groups.iter().map(|group| i64::from(*group)).collect(),
    });
    criapi::ContainerStatus {
        id: record.id.to_string(),
        metadata: container_metadata(record),
        state: container_state(container.state) as i32,
        created_at: record.created_at_ns,
        started_at: process.map_or(0, |p| p.started_at_ns),
        finished_at: exit.map_or(0, |e| e.finished_at_ns),
        exit_code: exit.map_or(0, |e| e.status.code()),
        image: image_spec(&record.config.image),
        image_ref: image_ref(record),
        reason: exit.map_or("", |e| e.status.reason(e.oom)).to_owned(),
        message: exit.map(|e| e.message.clone()).unwrap_or_default(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: record.config.mounts.iter().map(mount).collect(),
        log_path: record.log.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        resources: Some(ContainerResources { linux: Some(resources(&container.resources)), windows: None }),
        image_id: image_id(record),
        user: user.map(|linux| ContainerUser { linux: Some(linux) }),
        stop_signal: stop_signal(record.stop_signal) as i32,
    }
}

/// Those that were asked for, and none of podwright's own.
fn mount(mount: &Mount) -> criapi::Mount {
    criapi::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.to_string_lossy().into_owned(),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_readonly,
        propagation: (match mount.propagation {
            Propagation::Private => criapi::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => criapi::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => criapi::MountPropagation::PropagationBidirectional,
        }) as i32,
        image: mount.image.as_ref().map(|volume| criapi::ImageSpec {
            image: volume.image.clone(),
            // As PullImage calls it.
            image_ref: volume.id.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..criapi::ImageSpec::default()
        }),
        image_sub_path: mount.image.as_ref().map(|volume| volume.sub_path.clone()).unwrap_or_default(),
        selinux_relabel: mount.selinux_relabel,
        ..criapi::Mount::default()
    }
}

fn resources(resources: &Resources) -> LinuxContainerResources {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    LinuxContainerResources {
        cpu_period: signed(resources.cpu_period_us),
        cpu_quota: resources.cpu_quota_us,
        cpu_shares: signed(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory_limit_bytes,
        oom_score_adj: resources.oom_score_adj.into(),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(size, limit)| HugepageLimit { page_size: size.clone(), limit: *limit })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
    }
}

/// The interface's name for a number.
fn stop_signal(number: i32) -> Signal {
    let known = (1..=65).filter_map(|n| Signal::try_from(n).ok()).find(|candidate| {
        let name = candidate.as_str_name().trim_start_matches("SIGNAL_SIG");
        signal::number(&name.replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-")) == Some(number)
    });
    known.unwrap_or(Signal::RuntimeDefault)
}

pub(super) fn container_attributes(container: &ContainerStatus) -> ContainerAttributes {
    ContainerAttributes {
        id: container.record.id.to_string(),
        metadata: container_metadata(&container.record),
        labels: container.record.config.labels.clone(),
        annotations: container.record.config.annotations.clone(),
    }
}

/// An image, with the user that its config asks for: a number, or a name.
pub(super) fn image(image: store::Image) -> Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<u32>().ok();
    Image {
        id: image.id.to_string(),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        uid: uid.map(|uid| Int64Value { value: uid.into() }),
        repo_tags: image.names,
        repo_digests: image.digests,
        // A kubelet takes an image without a size for no image.
        size: image.unpacked_bytes.max(1),
        spec: Some(ImageSpec { image: image.id.to_string(), ..ImageSpec::default() }),
        pinned: image.pinned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ContainerId, PodId};
    use crate::state::model::ContainerConfig;
    use crate::state::record::{ExitRecord, ExitStatus, Oom, Process, ProcessRecord, User};
    use std::sync::Arc;

    fn status(exit: Option<ExitRecord>) -> ContainerStatus {
        let config = ContainerConfig { name: "c".into(), image: "nginx".into(), ..ContainerConfig::default() };
        ContainerStatus {
            resources: Arc::new(config.resources.clone()),
            record: Arc::new(ContainerRecord {
                id: ContainerId::random(),
                pod: PodId::random(),
                config,
                created_at_ns: 1,
                spec: crate::state::spec::SpecText::of(&()).expect("null"),
                layers: vec![],
                stop_signal: 37,
                log: Some("/logs/c/0.log".into()),
                image_user: String::new(),
                image_ref: "nginx@sha256:0".into(),
                groups: vec![],
            }),
            state: if exit.is_some() { State::Exited } else { State::Running },
            process: Some(ProcessRecord {
                process: Process { pid: 7, start_time: 1 },
                started_at_ns: 2,
                user: User { uid: 5, gid: 6, groups: vec![7] },
                pipes: vec![],
            }),
            exit,
            child_oom: false,
            limits: Arc::default(),
            warnings: Arc::default(),
            cgroup: String::new(),
            kept: Arc::default(),
        }
    }

    #[test]
    fn a_running_container_says_when_it_started_as_whom_and_where_it_logs() {
        let status = container_status(&status(None));
        assert_eq!((status.created_at, status.started_at, status.finished_at, status.exit_code), (1, 2, 0, 0));
        assert_eq!((status.log_path.as_str(), status.image_ref.as_str()), ("/logs/c/0.log", "nginx@sha256:0"));
        assert_eq!(status.stop_signal, Signal::Sigrtminplus3 as i32);
        let user = status.user.and_then(|u| u.linux).expect("known");
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (5, 6, vec![7]));
    }

    #[test]
    fn an_exit_has_the_code_and_reason_that_a_kubelet_reads() {
        let ended = |exit_status, oom| {
            let exit = ExitRecord { status: exit_status, finished_at_ns: 3, oom, message: "m".into() };
            let status = container_status(&status(Some(exit)));
            (status.exit_code, status.reason)
        };
        assert_eq!(ended(ExitStatus::Exited(0), None), (0, "Completed".to_owned()));
        assert_eq!(ended(ExitStatus::Exited(3), None), (3, "Error".to_owned()));
        assert_eq!(ended(ExitStatus::Signaled(9), Some(Oom::Container)), (137, "OOMKilled".to_owned()));
        assert_eq!(ended(ExitStatus::StartFailed { errno: 2 }, None), (128, "StartError".to_owned()));
        assert_eq!(ended(ExitStatus::Unknown, None).0, 255);
    }
}
