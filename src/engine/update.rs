//! UpdateContainerResources: limits of a running (or created) container, changed all or not at all.

use super::Engine;
use super::pod::{Pod, State};
use crate::cgroup::apply;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::ContainerId;
use crate::state::model::Resources;
use crate::state::record::{self, Durability, ResourcesRecord};
use std::sync::Arc;

impl Engine {
    /// Changes what `change` specifies of a container's limits and leaves the rest; on failure the earlier ones are restored. One that
    /// is created gets them when it starts. Its oom_score_adj is that of its processes and stays.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when it has ended, or for a limit below what is in use; `InvalidArgument` for one that the kernel
    /// did not take as asked.
    pub async fn update_container(&self, id: &ContainerId, mut change: Resources) -> Result<()> {
        let pod = self.reachable_of(id).await?;
        let one_at_a_time = pod.verb.lock().await;
        let others = self.tell_update(&pod, id, &mut change).await?;
        self.change_limits_in(&pod, id, change).await?;
        self.tell_updated(&pod, id).await;
        drop(one_at_a_time);
        self.apply_changes(others).await
    }

    /// The same, told to nobody.
    pub(super) async fn change_limits(&self, id: &ContainerId, change: Resources) -> Result<()> {
        let pod = self.reachable_of(id).await?;
        let _one_at_a_time = pod.verb.lock().await;
        self.change_limits_in(&pod, id, change).await
    }

    async fn change_limits_in(&self, pod: &Pod, id: &ContainerId, change: Resources) -> Result<()> {
        pod.facts().whole()?;
        let known = pod.facts().containers.get(id).map(|c| (c.state(), c.resources.clone()));
        let (state, before) = known.ok_or_else(|| Error::not_found(format!("no container {}", id.short())))?;
        let resources = before.changed_by(&Resources { oom_score_adj: 0, ..change });
        let settings = self.settings(&resources)?;
        let report = match state {
            State::Created => None,
            State::Running => {
                // It is there; a limit of a kind that it has none of yet (the kubelet's CPU manager gives CPUs to one that runs) may
                // need a controller that nobody has passed on to it.
                let group = self.make_cgroup(pod, &pod.container_cgroup(id), &settings)?;
                let report = apply::update(self.hierarchy(), &group, &settings, self.0.options.allow_unenforced);
                Some(report.context(|| format!("update container {}", id.short()))?)
            }
            State::Exited => {
                return Err(Error::precondition(format!(
                    "container {} has ended; its limits cannot be changed",
                    id.short()
                )));
            }
        };
        fault::point("engine.update_container.limits");
        let record = ResourcesRecord { resources: resources.clone() };
        let path = self.paths().resources_record(pod.id(), id);
        self.set_aside(&path)?;
        record::write(&path, &record, Durability::Boot)?;
        fault::point("engine.update_container.record");
        pod.note(&format!("engine: limits of {} changed", id.short()));
        pod.change(|facts| {
            if let Some(container) = facts.containers.get_mut(id) {
                container.resources = Arc::new(resources);
                if let Some(report) = report {
                    container.limits = report.rows.into();
                    container.warnings = report.warnings.into();
                }
            }
        });
        Ok(())
    }
}
