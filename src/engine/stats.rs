//! Resource usage of pods and containers, read from their cgroups.

use super::Engine;
use super::pod::State;
use crate::cgroup::stats::{Depth, Reader, Stats};
use crate::error::{Error, Result};
use crate::id::{ContainerId, PodId};

impl Engine {
    /// The usage of a running container.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when it does not run.
    pub fn container_stats(&self, id: &ContainerId) -> Result<Stats> {
        let pod = self.pod_of(id)?;
        if pod.facts().containers.get(id).map(|c| c.state()) != Some(State::Running) {
            return Err(Error::precondition(format!("container {} does not run", id.short())));
        }
        self.read_stats(&pod.container_cgroup(id))
    }

    /// The usage of a whole pod.
    ///
    /// # Errors
    /// `NotFound`, also for a pod whose cgroup is gone.
    pub fn pod_stats(&self, id: &PodId) -> Result<Stats> {
        self.read_stats(&self.pod(id)?.record.cgroup)
    }

    fn read_stats(&self, path: &str) -> Result<Stats> {
        Reader::open(&self.open_cgroup(path)?, Depth::Full)?.read()
    }
}
