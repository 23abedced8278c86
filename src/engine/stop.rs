//! StopContainer and StopPodSandbox. Both are idempotent, and answer only when the end has been recorded.

use super::Engine;
use super::pod::{Facts, Pod, State, bury, exited, sandbox_exited};
use super::signal::SIGKILL;
use crate::error::{Error, Kind, Result};
use crate::fault;
use crate::id::{ContainerId, PodId};
use crate::state::model::PodCgroup;
use crate::state::record::{self, Durability, ExitRecord, ExitStatus, StoppedRecord};
use crate::sys::session::pidfd_send_signal;
use crate::wire::Request;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// How long a process may take to die of SIGKILL before the verb gives up: it hangs in the kernel (a dead NFS server).
const KILL_WAIT: Duration = Duration::from_secs(10);

/// Whether the caller holds the pod's lock, without which nobody gives the pod a new shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    Free,
    Held,
}

impl Engine {
    /// Asks a container to stop with its own signal, waits for `grace`, then kills all of it. Zero kills at once.
    ///
    /// # Errors
    /// `NotFound`; `DeadlineExceeded` when even SIGKILL did not end it in time.
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        let pod = self.reachable_of(id).await?;
        self.stop_in(&pod, id, grace).await?;
        self.tell_ended(&pod, id).await;
        Ok(())
    }

    /// Waits until a container has ended.
    ///
    /// # Errors
    /// `NotFound` when there is none, or it was removed.
    pub async fn wait_container(&self, id: &ContainerId) -> Result<ExitRecord> {
        exit_of(&*self.pod_of(id)?, id).await
    }

    /// Waits until a pod's sandbox has ended without having been asked to; returns why.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn wait_lost(&self, id: &PodId) -> Result<&'static str> {
        let why = |facts: &Facts| match (&facts.sandbox, facts.hung_up) {
            _ if facts.stopped => None,
            (_, true) => Some("its shim is gone"),
            (Some(sandbox), _) if sandbox.exit.is_some() => Some("its pause process has died"),
            _ => None,
        };
        self.pod(id)?.wait(|facts| Ok(why(facts))).await
    }

    /// Stops without the pod's lock: other verbs go on during the grace period.
    async fn stop_in(&self, pod: &Arc<Pod>, id: &ContainerId, grace: Duration) -> Result<()> {
        let signal = {
            let facts = pod.facts();
            match facts.containers.get(id) {
                Some(c) if c.state() == State::Running => c.record.stop_signal,
                _ => return Ok(()),
            }
        };
        if !grace.is_zero() && signal != SIGKILL {
            pod.note(&format!("engine: signal {signal} to {}", id.short()));
            self.signal(pod, id, signal).await?;
            fault::point("engine.stop_container.signalled");
            if let Ok(exit) = tokio::time::timeout(grace, exit_of(pod, id)).await {
                return exit.map(|_| ());
            }
        }
        self.kill(pod, id, Lock::Free).await
    }

    async fn signal(&self, pod: &Pod, id: &ContainerId, signal: i32) -> Result<()> {
        let send =
            || async { pod.shim_soon().await?.done(Request::Signal { container: id.clone(), signal }, &[]).await };
        match send().await {
            // The shim has died just now; the next one delivers it.
            Err(e) if e.kind() == Kind::Unavailable => tolerate_gone(send().await),
            sent => tolerate_gone(sent),
        }
    }

    /// Kills all of a container and waits for its end.
    async fn kill(&self, pod: &Arc<Pod>, id: &ContainerId, lock: Lock) -> Result<()> {
        pod.note(&format!("engine: kill {}", id.short()));
        match tokio::time::timeout(KILL_WAIT, self.kill_until_ended(pod, id, lock)).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(
                Kind::DeadlineExceeded,
                format!(
                    "container {} has not died of SIGKILL within {} s; a process of it hangs in the kernel",
                    id.short(),
                    KILL_WAIT.as_secs()
                ),
            )),
        }
    }

    /// Once with each shim that the pod gets meanwhile.
    async fn kill_until_ended(&self, pod: &Arc<Pod>, id: &ContainerId, lock: Lock) -> Result<()> {
        loop {
            let shim = match lock {
                Lock::Free => pod.shim_soon().await,
                Lock::Held => {
                    self.ensure_shim(pod).await;
                    pod.shim()
                }
            };
            match shim {
                Ok(shim) => tolerate_gone(shim.done(Request::Kill { container: id.clone() }, &[]).await)?,
                Err(e) => {
                    let exit = bury(self, pod, id, &e.to_string()).await;
                    exited(self, pod, id, exit);
                }
            }
            fault::point("engine.stop_container.killed");
            let news = pod.wait(|facts| match facts.containers.get(id) {
                Some(container) if container.exit.is_none() => Ok(pod.shim().is_err().then_some(false)),
                _ => Ok(Some(true)),
            });
            if news.await? {
                return Ok(());
            }
        }
    }

    /// Kills everything in the pod and ends its sandbox. The pod stays listed, not ready.
    ///
    /// # Errors
    /// `NotFound`; everything that could not be ended, together.
    pub async fn stop_pod(&self, id: &PodId) -> Result<()> {
        let pod = self.reachable(id).await?;
        let _ending = pod.to_be_ended();
        let _one_at_a_time = pod.verb.lock().await;
        self.stop_sandbox(&pod).await
    }

    /// As [`Engine::stop_pod`], by a caller that holds the pod's lock.
    pub(super) async fn stop_sandbox(&self, pod: &Arc<Pod>) -> Result<()> {
        if pod.facts().stopped {
            return Ok(());
        }
        self.ensure_shim(pod).await;
        let mut left = Vec::new();
        let ids: Vec<ContainerId> = pod.facts().containers.keys().cloned().collect();
        if let PodCgroup::Own { .. } = &pod.record.config.cgroup {
            self.kill_together(pod, &ids);
        }
        for id in &ids {
            let running = || pod.facts().containers.get(id).is_some_and(|c| c.state() == State::Running);
            if !running() {
                continue;
            }
            let mut killed = self.kill(pod, id, Lock::Held).await;
            if is_late(&killed) && self.end_stuck_shim(pod).await && running() {
                killed = self.kill(pod, id, Lock::Held).await;
            }
            left.extend(killed.err());
        }
        fault::point("engine.stop_pod.containers");
        self.tell_stop_pod(pod).await;
        // While the namespace is there: a plugin may want to see it. What is left of the network is left, and the rest goes on.
        left.extend(self.detach_network(pod).await.err());
        fault::point("engine.stop_pod.network");
        match pod.shim() {
            Ok(shim) => {
                let stopped = shim.done(Request::StopSandbox, &[]).await;
                let died = stopped.as_ref().is_err_and(|e| e.kind() == Kind::Unavailable);
                if died || (is_late(&stopped) && self.end_stuck_shim(pod).await) {
                    // Without another one, for all that is left is pause.
                    left.extend(self.remove_cgroup(&pod.sandbox_cgroup()).err());
                } else {
                    left.extend(tolerate_gone(stopped).err());
                }
            }
            Err(_) => left.extend(self.remove_cgroup(&pod.sandbox_cgroup()).err()),
        }
        fault::point("engine.stop_pod.sandbox");
        self.sandbox_ended(pod).await;
        if let Some(e) = Error::collect(left) {
            return Err(e.context(format!("stop pod {}", pod.id().short())));
        }
        let stopped = StoppedRecord { stopped_at_ns: self.now_ns() };
        record::write(&self.paths().stopped_record(pod.id()), &stopped, Durability::Boot)?;
        fault::point("engine.stop_pod.record");
        pod.note("engine: pod stopped");
        pod.change(|facts| facts.stopped = true);
        Ok(())
    }

    /// Its shim tells how pause has ended, before it answers: waits until that is heard. Without a shim nobody knows.
    async fn sandbox_ended(&self, pod: &Pod) {
        let told = pod.wait(|facts| {
            let told = facts.sandbox.as_ref().is_none_or(|sandbox| sandbox.exit.is_some());
            Ok((told || pod.shim().is_err()).then_some(()))
        });
        let _ = tokio::time::timeout(KILL_WAIT, told).await; // then it is as without one
        sandbox_exited(self, pod, ExitStatus::Unknown);
    }

    /// Kills the shim of a pod that is to end anyway, if it does not answer: what it holds is ended without it. Whether it is gone.
    async fn end_stuck_shim(&self, pod: &Arc<Pod>) -> bool {
        let Ok(shim) = pod.shim() else { return true };
        if shim.answers().await {
            return false;
        }
        tracing::warn!("pod {}: its shim does not answer and is killed, for the pod is to end", pod.id().short());
        if let Some(stuck) = self.stranger(pod) {
            let _ = pidfd_send_signal(stuck.as_fd(), SIGKILL); // ESRCH: it has ended in this moment
        }
        // Not for another one: that is for a caller who needs it, and holds the lock.
        let gone = pod.wait(|_| Ok(pod.shim().is_err().then_some(())));
        tokio::time::timeout(KILL_WAIT, gone).await.is_ok()
    }

    /// Kills the containers of a pod whose cgroup is ours, so that its quota can be lifted: one after the other they would wait for it
    /// on their way out. Nothing of them runs any more, and how they ended is learned from the shim as ever.
    fn kill_together(&self, pod: &Pod, ids: &[ContainerId]) {
        let killed = |id: &ContainerId| match self.open_cgroup(&pod.container_cgroup(id)) {
            Err(e) => e.kind() == Kind::NotFound,
            Ok(cgroup) => cgroup.kill().is_ok(),
        };
        let alive = ids.iter().filter(|id| !killed(id)).count();
        // Why one could not be killed is told by the stop that follows; it keeps its quota.
        if alive == 0
            && let Ok(own) = self.open_cgroup(&pod.record.cgroup)
        {
            own.unthrottle();
        }
    }
}

/// Whether somebody did not answer in time.
fn is_late<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(|e| e.kind() == Kind::DeadlineExceeded)
}

/// A process or shim that is gone already is what a stop wants.
pub(super) fn tolerate_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Unavailable | Kind::FailedPrecondition) => Ok(()),
        other => other,
    }
}

async fn exit_of(pod: &Pod, id: &ContainerId) -> Result<ExitRecord> {
    pod.wait(|facts| match facts.containers.get(id) {
        Some(container) => Ok(container.exit.clone()),
        None => Err(Error::not_found(format!("container {} was removed", id.short()))),
    })
    .await
}
