//! UpdateContainerResources: limits of a running (or created) container, changed all or not at all.

use super::Engine;
use super::pod::State;
use crate::cgroup::apply;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::ContainerId;
use crate::state::model::Resources;
use crate::state::record::{self, Durability, ResourcesRecord};

impl Engine {
    /// Changes a container's limits to `resources`; on failure the earlier ones are restored.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` when it has ended, `InvalidArgument` for a limit below what is in use or that the kernel
    /// did not take as asked.
    pub async fn update_container(&self, id: &ContainerId, resources: Resources) -> Result<()> {
        let pod = self.pod_of(id)?;
        let _one_at_a_time = pod.verb.lock().await;
        let state = pod.facts().containers.get(id).map(|c| c.state());
        if state != Some(State::Running) {
            return Err(Error::precondition(format!(
                "container {} does not run; its limits cannot be changed",
                id.short()
            )));
        }
        let settings = self.settings(&resources)?;
        let group = self.open_cgroup(&pod.container_cgroup(id))?;
        let report = apply::update(self.hierarchy(), &group, &settings, self.0.options.allow_unenforced)
            .context(|| format!("update container {}", id.short()))?;
        fault::point("engine.update_container.limits");
        record::write(&self.paths().resources_record(pod.id(), id), &ResourcesRecord { resources }, Durability::Boot)?;
        fault::point("engine.update_container.record");
        pod.note(&format!("engine: limits of {} changed", id.short()));
        pod.change(|facts| {
            if let Some(container) = facts.containers.get_mut(id) {
                container.limits = report.rows;
                container.warnings = report.warnings;
            }
        });
        Ok(())
    }
}
