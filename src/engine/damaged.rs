//! A pod whose record cannot be read: who it is as far as anything else tells, so that it is listed, not ready, with the reason, and can
//! be stopped and removed like any other. Nothing is started or changed in it.
//!
//! What tells: the labels that a kubelet gives containers, the cgroup that pause is in or that a container's spec names, the directory's
//! age, pause's parent. The record itself is neither read nor written; it goes with the pod.

use super::{Engine, realtime_ns};
use crate::cgroup::{CgroupPath, slice};
use crate::id::{ContainerId, PodId};
use crate::state::model::{PodCgroup, PodConfig, Resources};
use crate::state::record::{self, ContainerRecord, PodRecord, Process, SandboxRecord};
use crate::sys;
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

/// An annotation of such a pod: why its record cannot be read.
pub const UNREADABLE: &str = "podwright.dev/unreadable";
/// Labels of the kubelet's containers (pkg/kubelet/types/labels.go): what they say of their pod.
const POD_LABELS: [&str; 3] = ["io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid"];
/// No process.
const NOBODY: Process = Process { pid: 0, start_time: 0 };

impl Engine {
    /// What stands in for the record of a pod.
    pub(super) fn stand_in(&self, id: &PodId, why: &str) -> PodRecord {
        let pause = record::read::<SandboxRecord>(&self.paths().sandbox_record(id)).ok().flatten().map(|s| s.pause);
        let pause = pause.filter(|pause| sys::start_time(pause.pid).is_ok_and(|at| at == pause.start_time));
        let containers = self.containers_on_disk(id);
        let cgroup = pause.and_then(|pause| cgroup_of(pause.pid));
        let cgroup = cgroup.and_then(|path| Some(path.strip_suffix(id.as_str())?.strip_suffix('/')?.to_owned()));
        let cgroup = cgroup.or_else(|| containers.iter().find_map(cgroup_in_spec));
        let cgroup = cgroup.unwrap_or_else(|| format!("{}/pods/{id}", self.options().cgroup_root));
        PodRecord {
            id: id.clone(),
            config: PodConfig { cgroup: self.whose(id, &cgroup), ..config(&containers, id, why) },
            created_at_ns: self.directory_made_at_ns(id),
            // Of this boot as far as can be told: what is of another one has no process that it would be taken for.
            boot_id: self.0.boot_id.clone(),
            cgroup,
            selinux: None,    // no container is made in it any more
            networked: false, // nobody knows; what was begun is in its own record
            shim: pause.and_then(|pause| shim_above(pause, id)).unwrap_or(NOBODY),
        }
    }

    fn containers_on_disk(&self, id: &PodId) -> Vec<ContainerRecord> {
        let names = super::recover::list(&self.paths().containers(id)).unwrap_or_default();
        let ids = names.iter().filter_map(|name| name.parse::<ContainerId>().ok());
        ids.filter_map(|c| record::read(&self.paths().container_record(id, &c)).ok().flatten()).collect()
    }

    /// Whose a pod's cgroup is, by where it is: what is ours goes with the pod.
    fn whose(&self, id: &PodId, cgroup: &str) -> PodCgroup {
        if slice::scope_in(cgroup, id.as_str()).is_some() {
            return PodCgroup::Given(cgroup.to_owned()); // and the scope goes with the pod
        }
        let ours = cgroup.strip_prefix(self.options().cgroup_root.as_str()).and_then(|rest| rest.strip_prefix('/'));
        match ours {
            Some(rest) if rest == format!("pods/{id}") => PodCgroup::Default,
            Some(rest) => PodCgroup::Own { path: rest.to_owned(), resources: Resources::default() },
            None => PodCgroup::Given(cgroup.to_owned()),
        }
    }

    fn directory_made_at_ns(&self, id: &PodId) -> i64 {
        let modified = std::fs::metadata(self.paths().etc(id, "hostname")).and_then(|about| about.modified());
        let since = modified.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        since.and_then(|since| i64::try_from(since.as_nanos()).ok()).unwrap_or_else(realtime_ns)
    }
}

/// What containers say of their pod.
fn config(containers: &[ContainerRecord], id: &PodId, why: &str) -> PodConfig {
    let said = |label: &str| containers.iter().find_map(|c| c.config.labels.get(label).cloned());
    let labels: BTreeMap<String, String> =
        POD_LABELS.iter().filter_map(|label| Some(((*label).to_owned(), said(label)?))).collect();
    let [name, namespace, uid] = POD_LABELS.map(|label| labels.get(label).cloned());
    PodConfig {
        name: name.unwrap_or_else(|| format!("unreadable-{}", id.short())),
        namespace: namespace.unwrap_or_else(|| "unknown".to_owned()),
        uid: uid.unwrap_or_else(|| id.to_string()),
        labels,
        annotations: [(UNREADABLE.to_owned(), why.to_owned())].into(),
        ..PodConfig::default()
    }
}

/// A container's cgroup is in its pod's.
fn cgroup_in_spec(container: &ContainerRecord) -> Option<String> {
    let spec = container.spec.value();
    let path = spec["linux"]["cgroupsPath"].as_str()?.strip_suffix(container.id.as_str())?;
    Some(path.strip_suffix('/')?.to_owned())
}

/// The v2 cgroup of a process.
fn cgroup_of(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.parse::<CgroupPath>().ok().map(|path| path.to_string())
}

/// Pause's parent, if that is the pod's shim and not who inherited it.
fn shim_above(pause: Process, pod: &PodId) -> Option<Process> {
    let pid = sys::parent_of(pause.pid).ok()?;
    let start_time = sys::start_time(pid).ok()?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    (words.nth(1)? == b"shim" && words.next()? == pod.as_str().as_bytes()).then_some(Process { pid, start_time })
}
