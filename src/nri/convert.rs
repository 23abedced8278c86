//! The engine's pods and containers as plugins see them, and limits in both directions (pure).

use crate::engine::pod::State;
use crate::engine::query::{ContainerStatus, PodStatus};
use crate::error::{Error, Result};
use crate::nriapi::{
    Container, ContainerState, HugepageLimit, LinuxContainer, LinuxCpu, LinuxDevice, LinuxMemory, LinuxNamespace,
    LinuxPids, LinuxPodSandbox, LinuxResources, Mount, OptionalFileMode, OptionalInt, OptionalInt64, OptionalUInt32,
    OptionalUInt64, PodSandbox, PosixRlimit, SecurityProfile, User, security_profile::ProfileType,
};
use crate::state::model::{PodCgroup, Resources, SeccompProfile};
use crate::state::record::ContainerRecord;
use serde_json::Value;

/// A pod.
pub fn pod(status: &PodStatus) -> PodSandbox {
    let (record, config) = (&status.record, &status.record.config);
    let pid = pause(status);
    let parent = match &config.cgroup {
        PodCgroup::Given(parent) => parent.clone(),
        PodCgroup::Default | PodCgroup::Own { .. } => record.cgroup.clone(),
    };
    let own = match &config.cgroup {
        PodCgroup::Own { resources, .. } => Some(limits(resources)),
        PodCgroup::Default | PodCgroup::Given(_) => None,
    };
    let namespace = |kind: &str, file: &str| LinuxNamespace {
        r#type: kind.to_owned(),
        path: if pid == 0 { String::new() } else { format!("/proc/{pid}/ns/{file}") },
    };
    PodSandbox {
        id: record.id.to_string(),
        name: config.name.clone(),
        uid: config.uid.clone(),
        namespace: config.namespace.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: config.runtime_handler.clone(),
        linux: Some(LinuxPodSandbox {
            pod_overhead: None,
            pod_resources: own.clone(),
            cgroup_parent: parent,
            cgroups_path: format!("{}/{}", record.cgroup, record.id),
            namespaces: [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")]
                .map(|(kind, file)| namespace(kind, file))
                .to_vec(),
            resources: own,
        }),
        pid,
        ips: status.network.iter().flat_map(|network| network.ips.iter().map(ToString::to_string)).collect(),
    }
}

/// The pause process; 0 when it has ended.
fn pause(status: &PodStatus) -> u32 {
    status.sandbox.as_ref().filter(|sandbox| sandbox.exit.is_none()).map_or(0, |sandbox| sandbox.pause.pid)
}

/// A container.
pub fn container(pod: &PodStatus, status: &ContainerStatus) -> Container {
    let exit = status.exit.as_ref();
    let process = status.process.as_ref();
    let state = match status.state {
        State::Created => ContainerState::ContainerCreated,
        State::Running => ContainerState::ContainerRunning,
        State::Exited => ContainerState::ContainerStopped,
    };
    let mut shown = drafted(pod, &status.record, &status.resources, &status.cgroup);
    shown.state = state.into();
    shown.pid = process.filter(|_| exit.is_none()).map_or(0, |process| process.process.pid);
    shown.started_at = process.map_or(0, |process| process.started_at_ns);
    shown.finished_at = exit.map_or(0, |exit| exit.finished_at_ns);
    shown.exit_code = exit.map_or(0, |exit| exit.status.code());
    shown.status_reason = exit.map_or_else(String::new, |exit| exit.status.reason(exit.oom).to_owned());
    shown.status_message = exit.map_or_else(String::new, |exit| exit.message.clone());
    if let Some(process) = process {
        let user = &process.user;
        shown.user = Some(User { uid: user.uid, gid: user.gid, additional_gids: user.groups.clone() });
    }
    shown
}

/// A container that is to be made.
pub fn drafted(pod: &PodStatus, record: &ContainerRecord, resources: &Resources, cgroup: &str) -> Container {
    let (config, spec) = (&record.config, record.spec.value());
    let process = &spec["process"];
    // The kubelet's, and what the OCI spec says beside them.
    let mut annotations = config.annotations.clone();
    let of_spec = spec["annotations"].as_object().into_iter().flatten();
    annotations.extend(of_spec.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))));
    let security = &config.security;
    Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.pod.to_string(),
        name: config.name.clone(),
        state: ContainerState::ContainerCreated.into(),
        labels: config.labels.clone(),
        annotations,
        args: texts(&process["args"]),
        env: texts(&process["env"]),
        mounts: items(&spec["mounts"]).map(mount).collect(),
        hooks: None,
        linux: Some(LinuxContainer {
            namespaces: items(&spec["linux"]["namespaces"]).map(|of| namespace(pod, of)).collect(),
            devices: items(&spec["linux"]["devices"]).map(device).collect(),
            resources: Some(limits(resources)),
            oom_score_adj: process["oomScoreAdj"].as_i64().map(|value| OptionalInt { value }),
            cgroups_path: cgroup.to_owned(),
            seccomp_profile: Some(seccomp(&security.seccomp)),
            ..LinuxContainer::default()
        }),
        pid: 0,
        rlimits: items(&process["rlimits"]).map(rlimit).collect(),
        created_at: record.created_at_ns,
        user: Some(User {
            uid: security.run_as_user.unwrap_or(0),
            gid: security.run_as_group.unwrap_or(0),
            additional_gids: security.supplemental_groups.clone(),
        }),
        ..Container::default()
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    items(value).map(text).collect()
}

fn mount(value: &Value) -> Mount {
    Mount {
        destination: text(&value["destination"]),
        r#type: text(&value["type"]),
        source: text(&value["source"]),
        options: texts(&value["options"]),
    }
}

/// With the path by which others can open it, for ours means something to the shim alone.
fn namespace(pod: &PodStatus, value: &Value) -> LinuxNamespace {
    let kind = text(&value["type"]);
    let file = if kind == "network" { "net" } else { &kind };
    let path = match (value["path"].as_str(), pause(pod)) {
        (Some("podwright:pod"), pid) if pid != 0 => format!("/proc/{pid}/ns/{file}"),
        _ => String::new(),
    };
    LinuxNamespace { r#type: kind, path }
}

fn device(value: &Value) -> LinuxDevice {
    let number = |field: &str| value[field].as_u64().and_then(|n| u32::try_from(n).ok());
    LinuxDevice {
        path: text(&value["path"]),
        r#type: text(&value["type"]),
        major: value["major"].as_i64().unwrap_or(0),
        minor: value["minor"].as_i64().unwrap_or(0),
        file_mode: number("fileMode").map(|value| OptionalFileMode { value }),
        uid: number("uid").map(|value| OptionalUInt32 { value }),
        gid: number("gid").map(|value| OptionalUInt32 { value }),
    }
}

fn rlimit(value: &Value) -> PosixRlimit {
    let number = |field: &str| value[field].as_u64().unwrap_or(0);
    PosixRlimit { r#type: text(&value["type"]), hard: number("hard"), soft: number("soft") }
}

fn seccomp(profile: &SeccompProfile) -> SecurityProfile {
    let (kind, localhost_ref) = match profile {
        SeccompProfile::Unconfined => (ProfileType::Unconfined, String::new()),
        SeccompProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        SeccompProfile::Localhost(path) => (ProfileType::Localhost, path.to_string_lossy().into_owned()),
    };
    SecurityProfile { profile_type: kind.into(), localhost_ref }
}

/// Limits as plugins see them: what is not specified is absent.
pub fn limits(resources: &Resources) -> LinuxResources {
    let signed = |value: i64| (value != 0).then_some(OptionalInt64 { value });
    let unsigned = |value: u64| (value != 0).then_some(OptionalUInt64 { value });
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: signed(resources.memory_limit_bytes),
            swap: signed(resources.memory_swap_limit_bytes),
            ..LinuxMemory::default()
        }),
        cpu: Some(LinuxCpu {
            shares: unsigned(resources.cpu_shares),
            quota: signed(resources.cpu_quota_us),
            period: unsigned(resources.cpu_period_us),
            cpus: resources.cpuset_cpus.clone(),
            mems: resources.cpuset_mems.clone(),
            ..LinuxCpu::default()
        }),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: resources.unified.clone(),
        pids: (resources.pids_limit != 0).then_some(LinuxPids { limit: resources.pids_limit }),
        ..LinuxResources::default()
    }
}

/// Limits as the engine has them: what is absent is not specified, and neither is a zero.
///
/// # Errors
/// `Unsupported`, naming what cgroup v2 or this version does not have.
pub fn resources(asked: &LinuxResources) -> Result<Resources> {
    let refuse = |field: &str| Err(Error::unsupported(format!("resources.{field} is not supported")));
    let memory = asked.memory.unwrap_or_default();
    let cpu = asked.cpu.clone().unwrap_or_default();
    let set = |value: Option<OptionalInt64>| value.is_some_and(|v| v.value != 0);
    let on = |value: Option<crate::nriapi::OptionalBool>| value.is_some_and(|v| v.value);
    let named = |value: &Option<crate::nriapi::OptionalString>| value.as_ref().is_some_and(|v| !v.value.is_empty());
    for (asked, field) in [
        (set(memory.kernel), "memory.kernel"),
        (set(memory.kernel_tcp), "memory.kernel_tcp"),
        (memory.swappiness.is_some(), "memory.swappiness"),
        (on(memory.disable_oom_killer), "memory.disable_oom_killer"),
        (set(cpu.realtime_runtime), "cpu.realtime_runtime"),
        (cpu.realtime_period.is_some_and(|v| v.value != 0), "cpu.realtime_period"),
        (named(&asked.blockio_class), "blockio_class"),
        (named(&asked.rdt_class), "rdt_class"),
        (!asked.devices.is_empty(), "devices"),
    ] {
        if asked {
            return refuse(field);
        }
    }
    let mut unified = asked.unified.clone();
    // As runc has it for cgroup v2.
    if let Some(OptionalInt64 { value }) = memory.reservation.filter(|v| v.value != 0) {
        let text = if value < 0 { "max".to_owned() } else { value.to_string() };
        unified.entry("memory.low".to_owned()).or_insert(text);
    }
    let limit = |value: Option<OptionalInt64>| value.map_or(0, |v| v.value);
    let count = |value: Option<OptionalUInt64>| value.map_or(0, |v| v.value);
    Ok(Resources {
        cpu_period_us: count(cpu.period),
        cpu_quota_us: limit(cpu.quota),
        cpu_shares: count(cpu.shares),
        memory_limit_bytes: limit(memory.limit),
        memory_swap_limit_bytes: limit(memory.swap),
        oom_score_adj: 0,
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: asked.hugepage_limits.iter().map(|l| (l.page_size.clone(), l.limit)).collect(),
        pids_limit: asked.pids.map_or(0, |pids| pids.limit),
        unified,
        ..Resources::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_survive_both_ways() {
        let ours = Resources {
            cpu_period_us: 100_000,
            cpu_quota_us: -1,
            cpu_shares: 512,
            memory_limit_bytes: 1 << 20,
            memory_swap_limit_bytes: 2 << 20,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: [("2MB".to_owned(), 4)].into(),
            pids_limit: 9,
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Resources::default()
        };
        assert_eq!(resources(&limits(&ours)).expect("all supported"), ours);
        assert_eq!(resources(&LinuxResources::default()).expect("nothing"), Resources::default());
    }

    #[test]
    fn what_cgroup_v2_does_not_have_is_refused_by_name() {
        let memory = LinuxMemory { kernel: Some(OptionalInt64 { value: 1 }), ..LinuxMemory::default() };
        let asked = LinuxResources { memory: Some(memory), ..LinuxResources::default() };
        assert_eq!(resources(&asked).expect_err("v1").to_string(), "resources.memory.kernel is not supported");
        let memory = LinuxMemory { reservation: Some(OptionalInt64 { value: 7 }), ..LinuxMemory::default() };
        let asked = LinuxResources { memory: Some(memory), ..LinuxResources::default() };
        assert_eq!(resources(&asked).expect("as memory.low").unified["memory.low"], "7");
    }
}
