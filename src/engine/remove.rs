//! RemoveContainer and RemovePodSandbox: teardown never stops early, and tells everything that is left.

use super::adopt::find_process;
use super::events::{Event, EventKind};
use super::pod::Pod;
use super::recover::list;
use super::run_pod::remove_tree;
use super::signal::SIGKILL;
use super::stop::tolerate_gone;
use super::{Engine, blocking};
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::{ContainerId, PodId};
use crate::sys::fs::{Access, open_file_at};
use crate::sys::poll::{Interest, poll_until};
use crate::sys::session::pidfd_send_signal;
use crate::wire::Request;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long a shim that was told to go may take.
const SHIM_EXIT_WAIT: Duration = Duration::from_secs(5);

impl Engine {
    /// Removes a container, killing it first if it runs. Logs are not touched.
    ///
    /// # Errors
    /// `NotFound`; everything that is left, together.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<()> {
        self.stop_container(id, Duration::ZERO).await?;
        let pod = self.reachable_of(id).await?;
        let _one_at_a_time = pod.verb.lock().await;
        self.remove_in(&pod, id).await
    }

    async fn remove_in(&self, pod: &Arc<Pod>, id: &ContainerId) -> Result<()> {
        let mut left = Vec::new();
        if let Ok(shim) = pod.shim() {
            match shim.done(Request::Forget { container: id.clone() }, &[]).await {
                Err(e) if !matches!(e.kind(), Kind::NotFound | Kind::Unavailable) => left.push(e),
                _ => {}
            }
        }
        fault::point("engine.remove_container.forgotten");
        left.extend(self.remove_cgroup(&pod.container_cgroup(id)).err());
        fault::point("engine.remove_container.cgroup");
        let (writable, directory) = (self.paths().writable(id), self.paths().container(pod.id(), id));
        left.extend(blocking(move || remove_tree(&writable)).await.err());
        fault::point("engine.remove_container.writable");
        if let Some(e) = Error::collect(left) {
            return Err(e.context(format!("remove container {}", id.short())));
        }
        // The record goes last: what it names is still found when this is killed in the middle. Of its directory it goes first: the
        // other files are a container's only beside it, and half of them would say that it runs.
        let record = self.paths().container_record(pod.id(), id);
        blocking(move || remove_record(&record)).await?;
        fault::point("engine.remove_container.record");
        blocking(move || remove_tree(&directory)).await?;
        fault::point("engine.remove_container.directory");
        self.forget_unreadable(&self.paths().container(pod.id(), id));
        let remove = || {
            pod.change(|facts| {
                facts.containers.remove(id);
                self.announce(Event::of(pod.id(), Some(id), EventKind::Deleted));
            });
        };
        self.tell_removed(pod, id, remove).await;
        pod.note(&format!("engine: container {} removed", id.short()));
        Ok(())
    }

    /// Removes a pod with all its containers, stopping it first if needed.
    ///
    /// Whoever would find what is left after a kill -9 goes last: the record, by which the next daemon finds everything; of a
    /// pod of `run` its shim, which sweeps when its owner is gone ([`super::sweep::release`] ends it).
    ///
    /// # Errors
    /// `NotFound`; everything that is left, together: call it again.
    pub async fn remove_pod(&self, id: &PodId) -> Result<()> {
        let pod = self.reachable(id).await?;
        let _ending = pod.to_be_ended();
        let _one_at_a_time = pod.verb.lock().await;
        let mut left = Vec::new();
        left.extend(self.stop_sandbox(&pod).await.err());
        let ids: Vec<ContainerId> = pod.facts().containers.keys().cloned().collect();
        for container in &ids {
            left.extend(self.remove_in(&pod, container).await.err());
        }
        fault::point("engine.remove_pod.containers");
        let park = self.0.options.owner && pod.shim().is_ok();
        if !park {
            left.extend(self.end_shim(&pod).await.err());
            fault::point("engine.remove_pod.shim");
        }
        for container in self.unrecorded_containers(id)? {
            left.extend(self.remove_cgroup(&pod.container_cgroup(&container)).err());
        }
        left.extend(self.remove_pod_cgroup(&pod).await.err());
        self.end_spare();
        self.prune_cgroups();
        self.forget_orphans_of(&pod);
        fault::point("engine.remove_pod.cgroup");
        let engine = self.clone();
        let unrecorded = id.clone();
        left.extend(blocking(move || engine.remove_data(&unrecorded)).await.err());
        fault::point("engine.remove_pod.data");
        if let Some(e) = Error::collect(left) {
            return Err(e.context(format!("remove pod {}", id.short())));
        }
        let (record, directory) = (self.paths().pod_record(id), self.paths().pod(id));
        blocking(move || remove_record(&record)).await?;
        fault::point("engine.remove_pod.record");
        blocking(move || remove_tree(&directory)).await?;
        fault::point("engine.remove_pod.directory");
        if park {
            self.0.parked.lock().unwrap_or_else(PoisonError::into_inner).push(pod.clone());
        }
        self.forget_unreadable(&self.paths().pod(id));
        let _entered = self.enter().await;
        {
            let mut pods = self.pods_mut();
            pods.remove(id);
            self.announce(Event::of(id, None, EventKind::Deleted));
        }
        self.tell_remove_pod(&pod).await;
        Ok(())
    }

    /// What of a pod is below the root directory, with the writable layers of containers that have a directory and no record: their
    /// maker was killed in the middle.
    pub(super) fn remove_data(&self, id: &PodId) -> Result<()> {
        for container in self.unrecorded_containers(id)? {
            remove_tree(&self.paths().writable(&container))?;
        }
        remove_tree(&self.paths().pod_data(id))
    }

    /// The containers of a pod that still have a directory when those that are known were removed: their records cannot be read.
    fn unrecorded_containers(&self, id: &PodId) -> Result<Vec<ContainerId>> {
        Ok(list(&self.paths().containers(id))?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Ends the shims of removed pods, with podwright's own cgroups: those first, so that there is a shim for as long as there is
    /// anything to be swept.
    pub(super) async fn end_parked(&self) -> Result<()> {
        let parked = std::mem::take(&mut *self.0.parked.lock().unwrap_or_else(PoisonError::into_inner));
        if parked.is_empty() {
            return Ok(());
        }
        let mut left = Vec::new();
        // A scope goes with the last process in it, whoever lives: systemd sees to that.
        if !self.asks_systemd() {
            let outside = self.outside()?;
            let procs = open_file_at(outside.as_fd(), "cgroup.procs", Access::Write)
                .context(|| format!("open cgroup.procs of {}", outside.path()))?;
            for pod in &parked {
                if let Ok(shim) = pod.shim() {
                    left.extend(tolerate_gone(shim.done(Request::Join, &[procs.as_fd()]).await).err());
                }
            }
            self.prune_cgroups();
        }
        fault::point("engine.release.cgroups");
        for pod in &parked {
            left.extend(self.end_shim(pod).await.err());
        }
        Error::collect(left).map_or(Ok(()), Err)
    }

    /// Tells the shim to go and waits for it; one that does not is killed, for it holds nothing any more.
    async fn end_shim(&self, pod: &Arc<Pod>) -> Result<()> {
        let shim = self.stranger(pod);
        if let Ok(shim) = pod.shim() {
            match shim.done(Request::Shutdown, &[]).await {
                // One that does not answer is killed below.
                Err(e) if !matches!(e.kind(), Kind::Unavailable | Kind::DeadlineExceeded) => return Err(e),
                _ => {}
            }
        }
        let gone = pod.wait(|facts| Ok((facts.hung_up || pod.shim().is_err()).then_some(())));
        let left_in_time = tokio::time::timeout(SHIM_EXIT_WAIT, gone).await.is_ok();
        let Some(child) = pod.take_child() else {
            return match shim {
                Some(shim) => blocking(move || wait_for_stranger(&shim)).await,
                None => Ok(()),
            };
        };
        blocking(move || {
            if !left_in_time {
                let _ = child.kill(); // it may have ended in this moment
            }
            child.wait().context(|| "wait for the shim")
        })
        .await
    }

    /// The shim of a pod that an engine before this one made, by its pidfd; `None` when it is gone, and when it is this process, which
    /// sweeps after its owner.
    pub(super) fn stranger(&self, pod: &Pod) -> Option<OwnedFd> {
        let process = pod.shim_process();
        if pod.record.boot_id != self.0.boot_id || process.pid == std::process::id() {
            return None;
        }
        find_process(process)
    }
}

/// Removes the record that makes a directory a pod's or container's; one that is not there is no error.
fn remove_record(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("remove {}", path.display())),
    }
}

/// Waits for the end of a process that is no child of ours; until then its cgroup cannot go. One that takes too long is killed.
fn wait_for_stranger(shim: &OwnedFd) -> Result<()> {
    let ended = || poll_until(shim.as_fd(), Interest::Read, SHIM_EXIT_WAIT).context(|| "wait for the shim");
    if ended()? {
        return Ok(());
    }
    pidfd_send_signal(shim.as_fd(), SIGKILL).context(|| "kill the shim")?;
    ended().map(|_| ())
}
