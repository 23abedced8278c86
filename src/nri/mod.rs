//! The Node Resource Interface: plugins on the node that see what is made, adjust it, and change limits later (containerd/nri).
//!
//! * `mux`, `ttrpc`  what goes over a plugin's socket; pure
//! * `link`          the socket: calls both ways, each within its time
//! * `plugin`        one plugin: registration, configuration, synchronisation
//! * `registry`      all of them in their order, and the gate by which none misses a container
//! * `merge`         what several want of one container; `apply` that into its spec; `convert` between the engine's shapes and NRI's; pure
//!
//! Here is where they meet the engine ([`Hooks`]). Three rules:
//!
//! * A plugin that does not answer in time, lies or dies is closed, and the verb goes on without it, as in containerd; one that answers
//!   with an error fails the verb. A validator that does not answer fails it as well.
//! * What cannot be honoured fails the container by name: OCI hooks, cgroup path, scheduling and I/O priority, seccomp policy,
//!   namespaces, sysctls, network devices, RDT, memory policy, evictions. Nothing is dropped.
//! * Plugins connect by themselves. None is started by podwright, and none is told of containers that had ended before it came.

mod apply;
mod convert;
pub mod link;
mod merge;
pub mod mux;
mod plugin;
mod registry;
pub mod ttrpc;

pub use plugin::Times;

use crate::engine::Engine;
use crate::engine::events::EventKind;
use crate::engine::hooks::{Change, Draft, Entered, Hooks, Told};
use crate::engine::pod::State;
use crate::engine::query::{ContainerStatus, PodStatus};
use crate::error::{Context, Result};
use crate::id::ContainerId;
use crate::nriapi::{Container, ContainerUpdate, Event, PodSandbox};
use crate::state::model::Resources;
use registry::{Registry, World};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::broadcast::error::RecvError;

/// How long the daemon waits before it accepts again when it could not: it has no descriptor to spare.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Whether a container's end was told; whoever tells it holds the lock meanwhile.
type Ended = Arc<tokio::sync::Mutex<bool>>;

/// The plugins of an engine.
#[derive(Debug)]
pub struct Nri {
    engine: Engine,
    registry: Registry,
    /// Of those that were told of.
    ended: Mutex<HashMap<ContainerId, Ended>>,
}

impl Nri {
    /// Has `engine` tell plugins from now on, and serves those that connect. To be called before the first verb, after recovery.
    pub fn serve(engine: &Engine, listener: UnixListener, times: Times) {
        let nri = Arc::new(Nri { engine: engine.clone(), registry: Registry::new(times), ended: Mutex::default() });
        // Their ends were told by a daemon before this one, or to nobody.
        for container in engine.list_containers().iter().filter(|container| container.state == State::Exited) {
            nri.ended(&container.record.id, true);
        }
        engine.set_hooks(nri.clone());
        tokio::spawn(nri.clone().watch_ends());
        tokio::spawn(nri.accept(listener)); // both end with the process
    }

    async fn accept(self: Arc<Nri>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => drop(tokio::spawn(self.registry.clone().serve(socket, self.clone()))),
                Err(e) => {
                    tracing::warn!("NRI: accept: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Tells of containers that end by themselves.
    async fn watch_ends(self: Arc<Nri>) {
        let mut events = self.engine.subscribe();
        loop {
            match events.recv().await {
                Ok(event) if event.kind == EventKind::Stopped => {
                    if let Some(container) = &event.container {
                        self.engine.tell_end_of(container).await;
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    for container in self.engine.list_containers() {
                        self.engine.tell_end_of(&container.record.id).await;
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn ended(&self, id: &ContainerId, told: bool) -> Ended {
        let mut all = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(id.clone()).or_insert_with(|| Arc::new(tokio::sync::Mutex::new(told))).clone()
    }

    async fn tell_of_pod(&self, event: Event, pod: &PodStatus) -> Result<()> {
        if !self.registry.wants(event) {
            return Ok(());
        }
        self.registry.tell_of_pod(event, &convert::pod(pod)).await
    }

    async fn tell_of_container(&self, event: Event, pod: &PodStatus, container: &ContainerStatus) -> Result<()> {
        if !self.registry.wants(event) {
            return Ok(());
        }
        self.registry.tell_of_container(event, &convert::pod(pod), &convert::container(pod, container)).await
    }
}

/// Logs what an event that cannot be refused was answered with.
fn log(told: Result<()>) {
    if let Err(e) = told {
        tracing::warn!("{e}");
    }
}

/// Updates as the engine makes them. Of those that cannot be, those that may fail are logged.
fn changes(updates: impl IntoIterator<Item = ContainerUpdate>) -> Result<Vec<Change>> {
    let one = |update: ContainerUpdate| -> Result<Change> {
        let asked = update.linux.and_then(|linux| linux.resources).unwrap_or_default();
        let resources = convert::resources(&asked).context(|| format!("update container {}", update.container_id))?;
        Ok(Change { container: update.container_id.parse()?, resources, may_fail: update.ignore_failure })
    };
    let mut all = Vec::new();
    for update in updates {
        let may_fail = update.ignore_failure;
        match one(update) {
            Err(e) if may_fail => tracing::warn!("NRI: {e}"),
            change => all.push(change?),
        }
    }
    Ok(all)
}

impl World for Nri {
    fn everything(&self) -> (Vec<PodSandbox>, Vec<Container>) {
        let pods = self.engine.list_pods();
        let mut containers = Vec::new();
        for pod in &pods {
            let of_pod = self.engine.containers_of(&pod.record.id);
            let alive = of_pod.iter().filter(|container| container.state != State::Exited);
            containers.extend(alive.map(|container| convert::container(pod, container)));
        }
        (pods.iter().filter(|pod| pod.damaged.is_none()).map(convert::pod).collect(), containers)
    }

    fn change(&self, updates: Vec<ContainerUpdate>) -> Pin<Box<dyn Future<Output = Vec<ContainerUpdate>> + Send + '_>> {
        Box::pin(async move {
            let mut failed = Vec::new();
            for update in updates {
                let changed = match changes([ContainerUpdate { ignore_failure: false, ..update.clone() }]) {
                    Ok(changes) => self.engine.apply_changes(changes).await,
                    Err(e) => Err(e),
                };
                if let Err(e) = changed {
                    tracing::warn!("NRI: {e}");
                    failed.push(update);
                }
            }
            failed
        })
    }
}

impl Hooks for Nri {
    fn enter(&self) -> Told<'_, Entered> {
        Box::pin(async { Entered(Box::new(self.registry.enter().await)) })
    }

    fn run_pod<'a>(&'a self, pod: &'a PodStatus) -> Told<'a, Result<()>> {
        Box::pin(self.tell_of_pod(Event::RunPodSandbox, pod))
    }

    fn update_pod<'a>(
        &'a self,
        pod: &'a PodStatus,
        overhead: &'a Resources,
        resources: &'a Resources,
    ) -> Told<'a, Result<()>> {
        Box::pin(async {
            if self.registry.wants(Event::UpdatePodSandbox) {
                let (overhead, resources) = (convert::limits(overhead), convert::limits(resources));
                self.registry.update_pod(&convert::pod(pod), overhead, resources).await?;
            }
            log(self.tell_of_pod(Event::PostUpdatePodSandbox, pod).await);
            Ok(())
        })
    }

    fn stop_pod<'a>(&'a self, pod: &'a PodStatus) -> Told<'a, ()> {
        Box::pin(async { log(self.tell_of_pod(Event::StopPodSandbox, pod).await) })
    }

    fn remove_pod<'a>(&'a self, pod: &'a PodStatus) -> Told<'a, ()> {
        Box::pin(async { log(self.tell_of_pod(Event::RemovePodSandbox, pod).await) })
    }

    fn create_container<'a>(
        &'a self,
        pod: &'a PodStatus,
        cgroup: &'a str,
        draft: &'a mut Draft,
    ) -> Told<'a, Result<Vec<Change>>> {
        Box::pin(async move {
            if !self.registry.wants(Event::CreateContainer) && !self.registry.wants(Event::ValidateContainerAdjustment)
            {
                return Ok(Vec::new());
            }
            let shown = convert::drafted(pod, &draft.record, &draft.resources, cgroup);
            let merge = self.registry.create(&convert::pod(pod), shown).await?;
            apply::apply(&merge, draft)?;
            let devices: Vec<String> = merge.adjust.cdi_devices.iter().map(|device| device.name.clone()).collect();
            if !devices.is_empty() {
                self.engine.add_cdi_devices(&devices, draft)?;
            }
            changes(merge.updates.into_values())
        })
    }

    fn container_created<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, ()> {
        Box::pin(async { log(self.tell_of_container(Event::PostCreateContainer, pod, container).await) })
    }

    fn start_container<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, Result<()>> {
        Box::pin(self.tell_of_container(Event::StartContainer, pod, container))
    }

    fn container_started<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, ()> {
        Box::pin(async {
            let ended = self.ended(&container.record.id, false);
            let told = ended.lock().await;
            // It was stopped in the meantime, and that is the last that is told of it.
            if !*told {
                log(self.tell_of_container(Event::PostStartContainer, pod, container).await);
            }
        })
    }

    fn update_container<'a>(
        &'a self,
        pod: &'a PodStatus,
        container: &'a ContainerStatus,
        change: &'a mut Resources,
    ) -> Told<'a, Result<Vec<Change>>> {
        Box::pin(async move {
            if !self.registry.wants(Event::UpdateContainer) {
                return Ok(Vec::new());
            }
            let shown = convert::container(pod, container);
            let asked = convert::limits(change);
            let merge = self.registry.update(&convert::pod(pod), shown, asked.clone()).await?;
            if let Some(changed) = merge.resources.filter(|resources| *resources != asked) {
                *change = change.changed_by(&convert::resources(&changed)?);
            }
            changes(merge.updates.into_values())
        })
    }

    fn container_updated<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, ()> {
        Box::pin(async { log(self.tell_of_container(Event::PostUpdateContainer, pod, container).await) })
    }

    fn container_ended<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, Vec<Change>> {
        Box::pin(async {
            let ended = self.ended(&container.record.id, false);
            let mut told = ended.lock().await;
            // It was removed since whoever calls has looked, and this lock is a new one.
            if container.state == State::Exited && self.engine.container_status(&container.record.id).is_err() {
                self.ended.lock().unwrap_or_else(PoisonError::into_inner).remove(&container.record.id);
                return Vec::new();
            }
            if std::mem::replace(&mut *told, true) {
                return Vec::new();
            }
            if !self.registry.wants(Event::StopContainer) {
                return Vec::new();
            }
            let updates = self.registry.stop(&convert::pod(pod), &convert::container(pod, container)).await;
            changes(updates).unwrap_or_else(|e| {
                tracing::warn!("{e}");
                Vec::new()
            })
        })
    }

    fn container_removed<'a>(&'a self, pod: &'a PodStatus, container: &'a ContainerStatus) -> Told<'a, ()> {
        Box::pin(async {
            log(self.tell_of_container(Event::RemoveContainer, pod, container).await);
            self.ended.lock().unwrap_or_else(PoisonError::into_inner).remove(&container.record.id);
        })
    }
}
