//! What plugins have made of a container, into its OCI spec and limits (pure). What cannot be honoured fails the container by name.

use super::convert;
use super::merge::{Merge, bare, clean};
use crate::engine::hooks::Draft;
use crate::error::{Error, Result};
use crate::nriapi::{
    ContainerAdjustment, Hooks, LinuxContainerAdjustment, LinuxDevice, LinuxResources, Mount, PosixRlimit,
};
use crate::state::spec::SpecText;
use crate::sys::rlimit::Resource;
use serde_json::{Value, json};

/// Changes `draft` as the plugins of `merge` want it.
///
/// # Errors
/// `Unsupported` and `InvalidArgument`, naming the adjustment.
pub fn apply(merge: &Merge, draft: &mut Draft) -> Result<()> {
    let adjust = &merge.adjust;
    let linux = adjust.linux.clone().unwrap_or_default();
    if *adjust == (ContainerAdjustment { linux: adjust.linux.clone(), ..Default::default() })
        && linux == (LinuxContainerAdjustment { resources: linux.resources.clone(), ..Default::default() })
    {
        return resources(linux.resources.as_ref(), draft);
    }
    supported(adjust, &linux)?;
    let of_kubelet = &draft.record.config.annotations;
    if let Some(key) = adjust.annotations.keys().find_map(|key| of_kubelet.get_key_value(key.strip_prefix('-')?)) {
        return Err(Error::unsupported(format!("annotations: {} is the pod's own and stays", key.0)));
    }
    let mut spec = draft.record.spec.value();
    if !adjust.args.is_empty() {
        spec["process"]["args"] = json!(merge.container.args);
    }
    if !adjust.env.is_empty() {
        let wrong = adjust
            .env
            .iter()
            .find(|e| bare(&e.key).is_empty() || e.key.contains(['=', '\0']) || e.value.contains('\0'));
        if let Some(wrong) = wrong {
            return Err(Error::invalid(format!(
                "env: {:?} is no name of a variable, or its value has a NUL",
                wrong.key
            )));
        }
        spec["process"]["env"] = json!(merge.container.env);
    }
    if !adjust.annotations.is_empty() {
        let shown = &merge.container.annotations;
        let own = shown.iter().filter(|(key, value)| of_kubelet.get(*key) != Some(*value));
        spec["annotations"] =
            own.map(|(key, value)| (key.clone(), json!(value))).collect::<serde_json::Map<_, _>>().into();
    }
    if !adjust.rlimits.is_empty() {
        spec["process"]["rlimits"] = merge.container.rlimits.iter().map(rlimit).collect::<Result<Value>>()?;
    }
    if !adjust.mounts.is_empty() {
        adjust.mounts.iter().filter(|mount| !mount.destination.starts_with('-')).try_for_each(check_mount)?;
        spec["mounts"] = mounts(&merge.container.mounts);
    }
    if !linux.devices.is_empty() {
        devices(&linux.devices, merge, &mut spec)?;
    }
    if let Some(score) = linux.oom_score_adj {
        let value = i32::try_from(score.value).ok().filter(|value| (-1000..=1000).contains(value));
        let value =
            value.ok_or_else(|| Error::invalid(format!("oom_score_adj: {} is not in -1000..1000", score.value)))?;
        spec["process"]["oomScoreAdj"] = value.into();
        draft.resources.oom_score_adj = value;
    }
    draft.record.spec = SpecText::of(&spec)?;
    resources(linux.resources.as_ref(), draft)
}

/// Refuses what nothing here would do.
fn supported(adjust: &ContainerAdjustment, linux: &LinuxContainerAdjustment) -> Result<()> {
    let asked = [
        (adjust.hooks.as_ref().is_some_and(|hooks| *hooks != Hooks::default()), "hooks"),
        (!linux.cgroups_path.is_empty(), "linux.cgroups_path"),
        (linux.io_priority.is_some(), "linux.io_priority"),
        (linux.seccomp_policy.is_some(), "linux.seccomp_policy"),
        (!linux.namespaces.is_empty(), "linux.namespaces"),
        (!linux.sysctl.is_empty(), "linux.sysctl (the pod's are set by its sandbox)"),
        (!linux.net_devices.is_empty(), "linux.net_devices"),
        (linux.scheduler.is_some(), "linux.scheduler"),
        (linux.rdt.as_ref().is_some_and(|rdt| *rdt != crate::nriapi::LinuxRdt::default()), "linux.rdt"),
        (linux.memory_policy.is_some(), "linux.memory_policy"),
    ];
    match asked.iter().find(|(asked, _)| *asked) {
        Some((_, name)) => Err(Error::unsupported(format!("{name}: an adjustment that is not supported"))),
        None => Ok(()),
    }
}

fn resources(asked: Option<&LinuxResources>, draft: &mut Draft) -> Result<()> {
    let Some(asked) = asked else { return Ok(()) };
    let change = convert::resources(asked)?;
    draft.resources = draft.resources.changed_by(&change);
    Ok(())
}

fn rlimit(limit: &PosixRlimit) -> Result<Value> {
    if Resource::from_name(&limit.r#type).is_none() {
        return Err(Error::invalid(format!("rlimits: {:?} is no resource of Linux", limit.r#type)));
    }
    if limit.soft > limit.hard {
        return Err(Error::invalid(format!(
            "rlimits: {}: soft {} is above hard {}",
            limit.r#type, limit.soft, limit.hard
        )));
    }
    Ok(json!({"type": limit.r#type, "soft": limit.soft, "hard": limit.hard}))
}

fn check_mount(mount: &Mount) -> Result<()> {
    let at = |problem: &str| Err(Error::invalid(format!("mounts: {:?}: {problem}", mount.destination)));
    let path = &mount.destination;
    if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return at("the path in the container must be absolute and without '..'");
    }
    if clean(path) == "/" {
        return at("the root cannot be replaced");
    }
    let bind = matches!(mount.r#type.as_str(), "" | "none" | "bind");
    if bind && (!mount.source.starts_with('/') || mount.source.contains('\0')) {
        return at("the path on the host must be absolute");
    }
    // Those that the launcher knows, for a plugin; overlays are images' own.
    if !bind
        && !matches!(mount.r#type.as_str(), "tmpfs" | "proc" | "sysfs" | "mqueue" | "devpts" | "cgroup" | "cgroup2")
    {
        return at(&format!("type {:?} is not supported", mount.r#type));
    }
    Ok(())
}

/// In the order in which they are made: what is above before what is below it.
fn mounts(all: &[Mount]) -> Value {
    let mut sorted: Vec<&Mount> = all.iter().collect();
    sorted.sort_by_key(|mount| clean(&mount.destination).matches('/').count());
    let one = |mount: &&Mount| {
        let kind = if mount.r#type.is_empty() || mount.r#type == "none" { "bind" } else { &mount.r#type };
        json!({"destination": clean(&mount.destination), "type": kind, "source": mount.source, "options": mount.options})
    };
    sorted.iter().map(one).collect()
}

/// The nodes, and for each that is added a rule that lets it be used.
fn devices(asked: &[LinuxDevice], merge: &Merge, spec: &mut Value) -> Result<()> {
    for device in asked.iter().filter(|device| !device.path.starts_with('-')) {
        if !device.path.starts_with("/dev/") || device.path.contains('\0') || device.path.split('/').any(|p| p == "..")
        {
            return Err(Error::unsupported(format!("linux.devices: {:?}: devices are made below /dev", device.path)));
        }
        if !matches!(device.r#type.as_str(), "c" | "b" | "u" | "p") {
            return Err(Error::invalid(format!("linux.devices: {}: type {:?} is none", device.path, device.r#type)));
        }
        let number = |n: i64| u32::try_from(n).is_ok();
        if !number(device.major) || !number(device.minor) {
            return Err(Error::invalid(format!("linux.devices: {}: no device number", device.path)));
        }
        if device.r#type == "p" {
            continue;
        }
        let kind = if device.r#type == "b" { "b" } else { "c" };
        let rule = json!({"allow": true, "type": kind, "major": device.major, "minor": device.minor, "access": "rwm"});
        if let Some(rules) = spec["linux"]["resources"]["devices"].as_array_mut() {
            rules.push(rule);
        }
    }
    let shown = merge.container.linux.as_ref().map(|linux| linux.devices.as_slice()).unwrap_or_default();
    spec["linux"]["devices"] = shown.iter().map(node).collect();
    Ok(())
}

fn node(device: &LinuxDevice) -> Value {
    let mut node = json!({"path": device.path, "type": device.r#type, "major": device.major, "minor": device.minor});
    if let Some(mode) = device.file_mode {
        node["fileMode"] = mode.value.into();
    }
    for (name, id) in [("uid", device.uid), ("gid", device.gid)] {
        if let Some(id) = id {
            node[name] = id.value.into();
        }
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ContainerId, PodId};
    use crate::nriapi::{Container, KeyValue, LinuxContainer, LinuxMemory, OptionalInt, OptionalInt64};
    use crate::state::model::{ContainerConfig, Resources};
    use crate::state::record::ContainerRecord;

    fn draft() -> Draft {
        let spec = json!({
            "process": {"args": ["sh"], "env": ["A=1"], "rlimits": []},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": []}],
            "annotations": {"io.kubernetes.cri.container-name": "c"},
            "linux": {"devices": [], "resources": {"devices": [{"allow": false, "access": "rwm"}]}},
        });
        let annotations = [("note".to_owned(), "1".to_owned())].into();
        let record = ContainerRecord {
            id: ContainerId::random(),
            pod: PodId::random(),
            config: ContainerConfig { annotations, ..ContainerConfig::default() },
            created_at_ns: 1,
            spec: SpecText::of(&spec).expect("JSON"),
            layers: vec![],
            stop_signal: 15,
            log: None,
            image_user: String::new(),
            image_ref: String::new(),
            groups: vec![],
        };
        Draft { record, resources: Resources { cpu_shares: 2, ..Resources::default() } }
    }

    /// The draft with what one plugin asks.
    fn with(adjust: ContainerAdjustment) -> Result<Draft> {
        let mut draft = draft();
        let shown = Container {
            id: "c1".into(),
            args: vec!["sh".into()],
            env: vec!["A=1".into()],
            mounts: vec![Mount { destination: "/proc".into(), r#type: "proc".into(), ..Mount::default() }],
            annotations: draft.record.config.annotations.clone(),
            linux: Some(LinuxContainer::default()),
            ..Container::default()
        };
        let mut merge = Merge::new(shown, None);
        merge.adjust(adjust, "00-a")?;
        apply(&merge, &mut draft).map(|()| draft)
    }

    #[test]
    fn what_is_adjusted_is_in_the_spec_and_the_rest_is_as_it_was() {
        let device =
            LinuxDevice { path: "/dev/x".into(), r#type: "c".into(), major: 1, minor: 3, ..Default::default() };
        let memory = LinuxMemory { limit: Some(OptionalInt64 { value: 1 << 20 }), ..LinuxMemory::default() };
        let draft = with(ContainerAdjustment {
            args: vec!["true".into()],
            env: vec![KeyValue { key: "B".into(), value: "2".into() }],
            annotations: [("by".to_owned(), "nri".to_owned())].into(),
            mounts: vec![Mount { destination: "/data".into(), source: "/srv".into(), ..Mount::default() }],
            rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 9, soft: 8 }],
            linux: Some(LinuxContainerAdjustment {
                devices: vec![device],
                oom_score_adj: Some(OptionalInt { value: 500 }),
                resources: Some(LinuxResources { memory: Some(memory), ..LinuxResources::default() }),
                ..LinuxContainerAdjustment::default()
            }),
            ..ContainerAdjustment::default()
        });
        let draft = draft.expect("supported");
        let spec = draft.record.spec.value();
        assert_eq!(spec["process"]["args"], json!(["true"]));
        assert_eq!(spec["process"]["env"], json!(["A=1", "B=2"]));
        assert_eq!(spec["process"]["rlimits"], json!([{"type": "RLIMIT_NOFILE", "soft": 8, "hard": 9}]));
        assert_eq!(spec["process"]["oomScoreAdj"], 500);
        assert_eq!(spec["annotations"]["by"], "nri");
        assert_eq!(spec["mounts"][1]["destination"], "/data");
        assert_eq!(spec["mounts"][1]["type"], "bind");
        assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/x");
        assert_eq!(spec["linux"]["resources"]["devices"][1]["minor"], 3);
        assert_eq!((draft.resources.memory_limit_bytes, draft.resources.cpu_shares), (1 << 20, 2));
        assert_eq!(draft.record.config.resources, Resources::default(), "what was asked for stays what was asked for");
    }

    #[test]
    fn what_nothing_would_do_fails_by_name() {
        let linux = |linux| ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() };
        let mount = |destination: &str, kind: &str, source: &str| ContainerAdjustment {
            mounts: vec![Mount {
                destination: destination.into(),
                r#type: kind.into(),
                source: source.into(),
                options: vec![],
            }],
            ..ContainerAdjustment::default()
        };
        let refused = [
            (linux(LinuxContainerAdjustment { cgroups_path: "/x".into(), ..Default::default() }), "cgroups_path"),
            (
                linux(LinuxContainerAdjustment {
                    sysctl: [("a.b".to_owned(), "1".to_owned())].into(),
                    ..Default::default()
                }),
                "sysctl",
            ),
            (
                linux(LinuxContainerAdjustment {
                    oom_score_adj: Some(OptionalInt { value: 1001 }),
                    ..Default::default()
                }),
                "oom",
            ),
            (
                ContainerAdjustment {
                    annotations: [("-note".to_owned(), String::new())].into(),
                    ..ContainerAdjustment::default()
                },
                "note",
            ),
            (mount("/a/../b", "tmpfs", ""), "without '..'"),
            (mount("/", "tmpfs", ""), "root"),
            (mount("/a", "bind", "srv"), "absolute"),
            (mount("/a", "overlay", ""), "overlay"),
        ];
        for (adjust, word) in refused {
            let e = with(adjust).expect_err(word).to_string();
            assert!(e.contains(word), "{e}");
        }
    }
}
