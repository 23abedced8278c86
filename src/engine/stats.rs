//! Resource usage of pods and containers, read from their cgroups; what a pod received and sent, from its network namespace.

use super::Engine;
use super::pod::State;
use super::query::{ContainerStatus, PodStatus};
use crate::cgroup::census::{self, Census};
use crate::cgroup::stats::{self, Depth, Stats};
use crate::error::{Error, Result};
use crate::state::model::NamespaceMode;

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

/// Columns of /proc/PID/net/dev, proc_pid_net(5): bytes, packets, errs and drop, received and then sent.
pub const RECEIVED: [usize; 4] = [0, 1, 2, 3];
pub const SENT: [usize; 4] = [8, 9, 10, 11];

/// The interfaces of a network namespace but for its loopback, each with its columns.
pub fn counters(text: &str) -> Vec<(&str, Vec<u64>)> {
    let parse = |line| {
        let (name, numbers) = str::split_once(line, ':')?;
        let numbers = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        (name.trim() != "lo").then(|| (name.trim(), numbers))
    };
    text.lines().filter_map(parse).collect()
}

/// /proc/PID/net/dev of a pod with a network of its own, seen by its pause process.
pub fn net_dev(pod: &PodStatus) -> Option<String> {
    let pause = pod.sandbox.as_ref()?.pause.pid;
    if pod.record.config.namespaces.network == NamespaceMode::Node {
        return None;
    }
    std::fs::read_to_string(format!("/proc/{pause}/net/dev")).ok()
}
