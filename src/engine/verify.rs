//! Limits of live pods and containers, read again and compared with what was asked. Writes nothing.

use super::Engine;
use crate::cgroup::{Report, apply};
use crate::error::{Error, Result};
use crate::id::{ContainerId, PodId};
use crate::state::model::{PodCgroup, Resources};
use crate::state::record::{self, ResourcesRecord};

impl Engine {
    /// The limits of a container: those it was made with, or of its last in-place resize.
    ///
    /// # Errors
    /// `NotFound`, also when its cgroup is gone because it has ended.
    pub fn verify_container(&self, id: &ContainerId) -> Result<Report> {
        let pod = self.pod_of(id)?;
        let made = pod.facts().containers.get(id).map(|c| c.record.config.resources.clone());
        let made = made.ok_or_else(|| Error::not_found(format!("no container {}", id.short())))?;
        let resized = record::read::<ResourcesRecord>(&self.paths().resources_record(pod.id(), id))?;
        self.verify(&pod.container_cgroup(id), &resized.map_or(made, |r| r.resources))
    }

    /// The limits of a pod's own cgroup; none where that is the kubelet's.
    ///
    /// # Errors
    /// `NotFound`, also when its cgroup is gone because it was stopped.
    pub fn verify_pod(&self, id: &PodId) -> Result<Report> {
        let pod = self.pod(id)?;
        match &pod.record.config.cgroup {
            PodCgroup::Own { resources, .. } => self.verify(&pod.record.cgroup, resources),
            PodCgroup::Default | PodCgroup::Given(_) => self.verify(&pod.record.cgroup, &Resources::default()),
        }
    }

    fn verify(&self, path: &str, resources: &Resources) -> Result<Report> {
        apply::verify(self.hierarchy(), &self.open_cgroup(path)?, &self.settings(resources)?)
    }
}
