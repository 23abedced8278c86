//! The seam for whoever sees what the verbs make, and may refuse or change it: plugins of [`crate::nri`]. An engine without hooks does the
//! same, unseen.
//!
//! Hooks are told in the order of the verbs on a pod, for they are told under its lock; only a container's end is told without. Each is
//! bounded in time by who implements it.

use super::Engine;
use super::pod::{Container, Pod, State};
use super::query::{ContainerStatus, PodStatus, container_status, pod_status};
use super::undo::Undo;
use crate::error::{Error, Result};
use crate::id::{ContainerId, PodId};
use crate::state::model::Resources;
use crate::state::record::ContainerRecord;
use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

/// What a hook returns.
pub type Told<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Held from before an object is told of until it is in the lists, and from before it leaves them until that was told: whoever comes new
/// meanwhile waits, and finds each object either in the lists or told.
pub struct Entered(#[allow(dead_code, reason = "held, not read")] pub Box<dyn Any + Send + Sync>);

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entered")
    }
}

/// A container before it is made.
#[derive(Debug)]
pub struct Draft {
    pub record: ContainerRecord,
    /// Its limits; those of the record are what was asked for, by which a retry is known.
    pub resources: Resources,
}

/// Limits of another container that are to change with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub container: ContainerId,
    pub resources: Resources,
    /// Its failure is no failure of the verb.
    pub may_fail: bool,
}

/// What is told of, when. Those that return nothing cannot refuse.
pub trait Hooks: fmt::Debug + Send + Sync {
    /// Before an object enters the lists or leaves them.
    fn enter(&self) -> Told<'_, Entered>;
    /// The sandbox is there, and not in the lists yet.
    fn run_pod<'a>(&'a self, pod: &'a PodStatus) -> Told<'a, Result<()>>;
    /// Its limits, which are the caller's to write, were changed: its overhead, and the sum of its containers'.
    fn update_pod<'a>(
        &'a self,
        pod: &'a PodStatus,
        overhead: &'a Resources,
        resources: &'a Resources,
    ) -> Told<'a, Result<()>>;
    /// Its containers have ended; network and namespaces are there.
    fn stop_pod<'a>(&'a self, pod: &'a PodStatus) -> Told<'a, ()>;
    /// It is gone.
    fn remove_pod<'a>(&'a self, pod: &'a PodStatus) -> Told<'a, ()>;
    /// Nothing of the container is there yet; `draft` may be changed.
    fn create_container<'a>(
        &'a self,
        pod: &'a PodStatus,
        cgroup: &'a str,
        draft: &'a mut Draft,
    ) -> Told<'a, Result<Vec<Change>>>;
    /// It is in the lists.
    fn container_created<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, ()>;
    /// Its process is to be made.
    fn start_container<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, Result<()>>;
    /// Its process runs.
    fn container_started<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, ()>;
    /// Its limits are to be changed; `change` may be.
    fn update_container<'a>(
        &'a self,
        pod: &'a PodStatus,
        container: &'a ContainerStatus,
        change: &'a mut Resources,
    ) -> Told<'a, Result<Vec<Change>>>;
    /// They were.
    fn container_updated<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, ()>;
    /// It has ended, or will never be started. Told once, however often it is called.
    fn container_ended<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, Vec<Change>>;
    /// It is gone.
    fn container_removed<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, ()>;
}

impl Engine {
    /// Has `hooks` told from now on. Once; to be called before the first verb. They hold this engine, and both live as long as the process.
    pub fn set_hooks(&self, hooks: Arc<dyn Hooks>) {
        let _ = self.0.hooks.set(hooks); // the first ones stay
    }

    pub(super) fn hooks(&self) -> Option<&Arc<dyn Hooks>> {
        self.0.hooks.get()
    }

    /// A pod and a container of it as they are told of; `None` when there is nobody to tell, or it is gone.
    fn both(&self, pod: &Pod, id: &ContainerId) -> Option<(&Arc<dyn Hooks>, PodStatus, ContainerStatus)> {
        let hooks = self.hooks()?;
        let facts = pod.facts();
        let container = facts.containers.get(id)?;
        Some((hooks, pod_status(pod, &facts), container_status(pod, container)))
    }

    pub(super) async fn enter(&self) -> Option<Entered> {
        match self.hooks() {
            Some(hooks) => Some(hooks.enter().await),
            None => None,
        }
    }

    /// Tells of a new pod; to be held until it is in the lists.
    pub(super) async fn tell_run_pod(&self, pod: &Arc<Pod>, undo: &mut Undo) -> Result<Option<Entered>> {
        let Some(hooks) = self.hooks().cloned() else { return Ok(None) };
        let entered = hooks.enter().await;
        let status = pod_status(pod, &pod.facts());
        let (untold, gone) = (hooks.clone(), status.clone());
        undo.push(move || async move {
            untold.remove_pod(&gone).await;
            Ok(())
        });
        hooks.run_pod(&status).await?;
        Ok(Some(entered))
    }

    /// UpdatePodSandboxResources: the caller has changed the pod's cgroup, which is its own. Podwright keeps no copy of that.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when a hook refuses.
    pub async fn update_pod(&self, id: &PodId, overhead: &Resources, resources: &Resources) -> Result<()> {
        let pod = self.pod(id)?;
        let _one_at_a_time = pod.verb.lock().await;
        let status = pod_status(&pod, &pod.facts());
        match self.hooks() {
            Some(hooks) => hooks.update_pod(&status, overhead, resources).await,
            None => Ok(()),
        }
    }

    /// Tells of the end of every container that has ended, and then of the pod's.
    pub(super) async fn tell_stop_pod(&self, pod: &Arc<Pod>) {
        let Some(hooks) = self.hooks() else { return };
        let ids: Vec<ContainerId> = pod.facts().containers.keys().cloned().collect();
        for id in &ids {
            self.tell_ended(pod, id).await;
        }
        let status = pod_status(pod, &pod.facts());
        hooks.stop_pod(&status).await;
    }

    pub(super) async fn tell_remove_pod(&self, pod: &Pod) {
        if let Some(hooks) = self.hooks() {
            let status = pod_status(pod, &pod.facts());
            hooks.remove_pod(&status).await;
        }
    }

    /// Tells of a container that is to be made; what was changed of it, and of others.
    pub(super) async fn tell_create(
        &self,
        pod: &Arc<Pod>,
        record: ContainerRecord,
        undo: &mut Undo,
    ) -> Result<(Draft, Vec<Change>, Option<Entered>)> {
        let mut draft = Draft { resources: record.config.resources.clone(), record };
        let Some(hooks) = self.hooks().cloned() else { return Ok((draft, Vec::new(), None)) };
        let entered = hooks.enter().await;
        let status = pod_status(pod, &pod.facts());
        let gone = container_status(pod, &Container::new(Arc::new(draft.record.clone())));
        let (cgroup, untold, of) = (gone.cgroup.clone(), hooks.clone(), status.clone());
        undo.push(move || async move {
            let _ = untold.container_ended(&of, &gone).await; // for a container that never was, nobody else changes
            untold.container_removed(&of, &gone).await;
            Ok(())
        });
        let changes = hooks.create_container(&status, &cgroup, &mut draft).await?;
        if draft.resources != draft.record.config.resources {
            self.settings(&draft.resources)?;
        }
        Ok((draft, changes, Some(entered)))
    }

    pub(super) async fn tell_created(&self, pod: &Pod, id: &ContainerId) {
        if let Some((hooks, pod, container)) = self.both(pod, id) {
            hooks.container_created(&pod, &container).await;
        }
    }

    pub(super) async fn tell_start(&self, pod: &Pod, id: &ContainerId) -> Result<()> {
        match self.both(pod, id) {
            Some((hooks, pod, container)) => hooks.start_container(&pod, &container).await,
            None => Ok(()),
        }
    }

    pub(super) async fn tell_started(&self, pod: &Pod, id: &ContainerId) {
        if let Some((hooks, pod, container)) = self.both(pod, id) {
            hooks.container_started(&pod, &container).await;
        }
    }

    pub(super) async fn tell_update(&self, pod: &Pod, id: &ContainerId, change: &mut Resources) -> Result<Vec<Change>> {
        match self.both(pod, id) {
            Some((hooks, pod, container)) if container.state != State::Exited => {
                hooks.update_container(&pod, &container, change).await
            }
            _ => Ok(Vec::new()),
        }
    }

    pub(super) async fn tell_updated(&self, pod: &Pod, id: &ContainerId) {
        if let Some((hooks, pod, container)) = self.both(pod, id) {
            hooks.container_updated(&pod, &container).await;
        }
    }

    /// Tells of a container's end, if it has ended and nobody was told. What others are to get then they get later: they may be of a pod
    /// whose lock somebody holds who waits for this.
    pub(super) async fn tell_ended(&self, pod: &Pod, id: &ContainerId) {
        let told = self.both(pod, id).filter(|(_, _, container)| container.state == State::Exited);
        let Some((hooks, pod, container)) = told else { return };
        self.change_later(hooks.container_ended(&pod, &container).await);
    }

    /// The same by whoever was told of it as an event.
    pub async fn tell_end_of(&self, id: &ContainerId) {
        if let Ok(pod) = self.pod_of(id) {
            self.tell_ended(&pod, id).await;
        }
    }

    /// Takes a container out of the lists, and tells that. One that was never started is ended by that.
    pub(super) async fn tell_removed(&self, pod: &Pod, id: &ContainerId, remove: impl FnOnce()) {
        let Some((hooks, status, container)) = self.both(pod, id) else { return remove() };
        self.change_later(hooks.container_ended(&status, &container).await);
        let _entered = hooks.enter().await;
        remove();
        hooks.container_removed(&status, &container).await;
    }

    fn change_later(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let engine = self.clone();
        tokio::spawn(async move {
            if let Err(e) = engine.apply_changes(changes).await {
                tracing::warn!("{e}"); // nobody waits for it
            }
        });
    }

    /// Changes limits of containers, in this order and without asking the hooks; all of them, whatever fails. Not by one who holds a pod's
    /// lock.
    ///
    /// # Errors
    /// Of those that may not fail, together.
    pub async fn apply_changes(&self, changes: Vec<Change>) -> Result<()> {
        let mut failed = Vec::new();
        for Change { container, resources, may_fail } in changes {
            match self.change_limits(&container, resources).await {
                Err(e) if may_fail => tracing::warn!("{e}"),
                Err(e) => failed.push(e),
                Ok(()) => {}
            }
        }
        Error::collect(failed).map_or(Ok(()), Err)
    }
}
