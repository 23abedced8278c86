//! What pods and containers there are: from memory, for a kubelet asks every second.

use super::Engine;
use super::kept::Kept;
use super::pod::{Container, Facts, Pod, State};
use crate::cgroup::Row;
use crate::error::{Error, Result};
use crate::id::{ContainerId, PodId};
use crate::network::Attachment;
use crate::state::flight::{Entry, Flight, Source};
use crate::state::model::{PodConfig, Resources};
use crate::state::record::{ContainerRecord, ExitRecord, PodRecord, Process, ProcessRecord};
use crate::wire::SandboxState;
use serde::Serialize;
use std::sync::Arc;

/// A pod as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct PodStatus {
    pub record: Arc<PodRecord>,
    pub ready: bool,
    /// The limits of the pod's own cgroup.
    pub limits: Arc<[Row]>,
    pub warnings: Arc<[String]>,
    pub sandbox: Option<SandboxState>,
    /// What it is connected to; `None` for the host's network, for nothing, and when it is stopped.
    pub network: Option<Arc<Attachment>>,
    pub shim: Process,
    /// The shim died and got no successor; what it held was killed.
    pub shim_lost: bool,
    /// Why its record cannot be read: what `record` says is a guess.
    pub damaged: Option<Arc<str>>,
}

/// A container as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct ContainerStatus {
    pub record: Arc<ContainerRecord>,
    pub state: State,
    /// As it was made, or as it was last resized.
    pub resources: Arc<Resources>,
    pub process: Option<ProcessRecord>,
    pub exit: Option<ExitRecord>,
    pub child_oom: bool,
    /// The limits as asked, written, read back and effective.
    pub limits: Arc<[Row]>,
    pub warnings: Arc<[String]>,
    /// Absolute in the v2 hierarchy.
    pub cgroup: String,
    #[serde(skip)]
    pub kept: Arc<Kept>,
}

/// A pod as lists have it.
#[derive(Debug, Clone)]
pub struct PodLine {
    pub record: Arc<PodRecord>,
    pub ready: bool,
    pub kept: Arc<Kept>,
}

/// A container as lists have it.
#[derive(Debug, Clone)]
pub struct ContainerLine {
    pub record: Arc<ContainerRecord>,
    pub state: State,
    pub kept: Arc<Kept>,
}

/// Whether a pod is READY.
fn is_ready(facts: &Facts) -> bool {
    !facts.stopped
        && !facts.hung_up
        && !facts.unheard
        && facts.foreign.is_none()
        && facts.damaged.is_none()
        && facts.sandbox.as_ref().is_some_and(|s| s.exit.is_none())
}

pub(super) fn pod_status(pod: &Pod, facts: &Facts) -> PodStatus {
    PodStatus {
        record: pod.record.clone(),
        ready: is_ready(facts),
        limits: facts.limits.clone(),
        warnings: facts.warnings.clone(),
        sandbox: facts.sandbox.clone(),
        network: facts.network.clone().filter(|_| !facts.stopped),
        shim: facts.shim.unwrap_or(pod.record.shim),
        shim_lost: facts.hung_up && !facts.stopped,
        damaged: facts.damaged.clone(),
    }
}

pub(super) fn container_status(pod: &Pod, container: &Container) -> ContainerStatus {
    ContainerStatus {
        record: container.record.clone(),
        state: container.state(),
        resources: container.resources.clone(),
        process: container.process.clone(),
        exit: container.exit.clone(),
        child_oom: container.child_oom,
        limits: container.limits.clone(),
        warnings: container.warnings.clone(),
        cgroup: pod.container_cgroup(&container.record.id),
        kept: container.kept.clone(),
    }
}

/// What makes two configs those of one pod (CRI PodSandboxMetadata).
fn identity(config: &PodConfig) -> (&str, &str, &str, u32) {
    (&config.name, &config.namespace, &config.uid, config.attempt)
}

impl Engine {
    /// All pods, the newest first.
    pub fn list_pods(&self) -> Vec<PodStatus> {
        let mut all: Vec<PodStatus> = self.pods_mut().values().map(|p| pod_status(p, &p.facts())).collect();
        all.sort_by_key(|p| std::cmp::Reverse(p.record.created_at_ns));
        all
    }

    /// All containers, the newest first.
    pub fn list_containers(&self) -> Vec<ContainerStatus> {
        let pods: Vec<Arc<Pod>> = self.pods_mut().values().cloned().collect();
        let of = |pod: &Arc<Pod>| pod.facts().containers.values().map(|c| container_status(pod, c)).collect::<Vec<_>>();
        let mut all: Vec<ContainerStatus> = pods.iter().flat_map(of).collect();
        all.sort_by_key(|c| std::cmp::Reverse(c.record.created_at_ns));
        all
    }

    /// All pods, the newest first, with no more than a list has: it takes no memory but its own.
    pub fn pod_lines(&self) -> Vec<PodLine> {
        let line = |pod: &Arc<Pod>| PodLine {
            record: pod.record.clone(),
            ready: is_ready(&pod.facts()),
            kept: pod.kept.clone(),
        };
        let mut all: Vec<PodLine> = self.pods_mut().values().map(line).collect();
        all.sort_by_key(|p| std::cmp::Reverse(p.record.created_at_ns));
        all
    }

    /// All containers, the newest first; the same.
    pub fn container_lines(&self) -> Vec<ContainerLine> {
        let pods: Vec<Arc<Pod>> = self.pods_mut().values().cloned().collect();
        let mut all = Vec::with_capacity(pods.len());
        for pod in pods {
            let facts = pod.facts();
            all.extend(facts.containers.values().map(|container| ContainerLine {
                record: container.record.clone(),
                state: container.state(),
                kept: container.kept.clone(),
            }));
        }
        all.sort_by_key(|c| std::cmp::Reverse(c.record.created_at_ns));
        all
    }

    /// The containers of one pod, in no order; none for a pod that is gone.
    pub fn containers_of(&self, id: &PodId) -> Vec<ContainerStatus> {
        let Ok(pod) = self.pod(id) else { return Vec::new() };
        let facts = pod.facts();
        facts.containers.values().map(|c| container_status(&pod, c)).collect()
    }

    /// The ids of the pods that start with `digits`.
    pub fn pods_with(&self, digits: &str) -> Vec<PodId> {
        self.pods_mut().keys().filter(|id| id.as_str().starts_with(digits)).cloned().collect()
    }

    /// The ids of the containers that start with `digits`.
    pub fn containers_with(&self, digits: &str) -> Vec<ContainerId> {
        let pods: Vec<Arc<Pod>> = self.pods_mut().values().cloned().collect();
        let of = |pod: &Arc<Pod>| pod.facts().containers.keys().cloned().collect::<Vec<_>>();
        pods.iter().flat_map(of).filter(|id| id.as_str().starts_with(digits)).collect()
    }

    /// The pod of the same identity: name, namespace, uid and attempt.
    pub fn pod_like(&self, config: &PodConfig) -> Option<PodStatus> {
        let same = |p: &&Arc<Pod>| identity(&p.record.config) == identity(config) && p.facts().damaged.is_none();
        let found = self.pods_mut().values().find(same).cloned()?;
        let facts = found.facts();
        Some(pod_status(&found, &facts))
    }

    /// One pod.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn pod_status(&self, id: &PodId) -> Result<PodStatus> {
        let pod = self.pod(id)?;
        let facts = pod.facts();
        Ok(pod_status(&pod, &facts))
    }

    /// One container.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus> {
        let pod = self.pod_of(id)?;
        let facts = pod.facts();
        let container =
            facts.containers.get(id).ok_or_else(|| Error::not_found(format!("no container {}", id.short())))?;
        Ok(container_status(&pod, container))
    }

    /// The pod's flight recorder: its last steps with their times.
    ///
    /// # Errors
    /// `NotFound` for the pod, `Internal` when the recorder cannot be read.
    pub fn flight(&self, id: &PodId) -> Result<Vec<Entry>> {
        self.pod(id)?;
        Flight::open(&self.paths().flight(id), Source::Engine)?.read()
    }
}
