//! Resource usage of pods and containers, read from their cgroups.

use super::Engine;
use super::pod::State;
use super::query::{ContainerStatus, PodStatus};
use crate::cgroup::census::{self, Census};
use crate::cgroup::stats::{self, Depth, Stats};
use crate::error::{Error, Result};

impl Engine {
    /// The usage of a running container. Of one that has a status already, so that a list of all costs what it reads and no more.
    ///
    /// # Errors
    /// `NotFound` when its cgroup is gone; `FailedPrecondition` when it does not run.
    pub fn container_stats(&self, container: &ContainerStatus, depth: Depth) -> Result<Stats> {
        if container.state != State::Running {
            let id = container.record.id.short();
            return Err(Error::precondition(format!("container {id} does not run")));
        }
        self.read_stats(&container.cgroup, depth)
    }

    /// The usage of a whole pod.
    ///
    /// # Errors
    /// `NotFound` when its cgroup is gone.
    pub fn pod_stats(&self, pod: &PodStatus, depth: Depth) -> Result<Stats> {
        self.read_stats(&pod.record.cgroup, depth)
    }

    /// Who is in a container's cgroup. What is gone counts as nothing.
    pub fn census(&self, cgroup: &str) -> Census {
        self.open_cgroup(cgroup).map(|cgroup| census::take(&cgroup)).unwrap_or_default()
    }

    fn read_stats(&self, path: &str, depth: Depth) -> Result<Stats> {
        stats::read(&self.open_cgroup(path)?, depth)
    }
}
