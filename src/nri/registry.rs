//! The plugins that are there, in their order, and what is asked of them.
//!
//! A plugin that comes is told of everything there is before it hears of anything new. Whoever makes something holds the gate from before it
//! is told of until it is in the lists ([`Registry::enter`]), so that a plugin is synchronised while nothing is between the two: each
//! container is either in the synchronisation or told as new, and never both. Makers wait meanwhile, for as long as [`Times`] allow.

use super::link::{Asked, Failure, Link, Side};
use super::merge::Merge;
use super::plugin::{Plugin, RUNTIME_SERVICE, Times};
use super::ttrpc;
use crate::error::{Error, Result};
use crate::nriapi::{
    Container, ContainerUpdate, CreateContainerRequest, CreateContainerResponse, Event, LinuxResources, PluginInstance,
    PodSandbox, PostCreateContainerRequest, RunPodSandboxRequest, StopContainerRequest, StopContainerResponse,
    UpdateContainerRequest, UpdateContainerResponse, UpdateContainersRequest, UpdateContainersResponse,
    UpdatePodSandboxRequest, ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};
use prost::Message;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::UnixStream;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, Semaphore, mpsc};

/// Plugins at once, those that have yet to register among them.
pub const MAX_PLUGINS: usize = 64;

/// What plugins are told of and change: the engine, in tests a list.
pub trait World: fmt::Debug + Send + Sync {
    /// Everything there is that has not ended.
    fn everything(&self) -> (Vec<PodSandbox>, Vec<Container>);
    /// Changes limits of containers; those that could not be.
    fn change(&self, updates: Vec<ContainerUpdate>) -> Pin<Box<dyn Future<Output = Vec<ContainerUpdate>> + Send + '_>>;
}

/// The plugins. Cheap to clone; all clones are the same ones.
#[derive(Debug, Clone)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    times: Times,
    plugins: Mutex<Vec<Arc<Plugin>>>,
    gate: Arc<RwLock<()>>,
    room: Semaphore,
}

impl Registry {
    pub fn new(times: Times) -> Registry {
        Registry(Arc::new(Inner {
            times,
            plugins: Mutex::default(),
            gate: Arc::default(),
            room: Semaphore::new(MAX_PLUGINS),
        }))
    }

    fn plugins(&self) -> MutexGuard<'_, Vec<Arc<Plugin>>> {
        self.0.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, event: Option<Event>) -> Vec<Arc<Plugin>> {
        let wanted = |p: &&Arc<Plugin>| p.link.closed().is_none() && event.is_none_or(|event| p.wants(event));
        self.plugins().iter().filter(wanted).cloned().collect()
    }

    /// Whether anybody would be told: what to tell is some work to put together.
    pub fn wants(&self, event: Event) -> bool {
        !self.open(Some(event)).is_empty()
    }

    /// To be held from before an object is told of until it is in the lists.
    pub async fn enter(&self) -> OwnedRwLockReadGuard<()> {
        self.0.gate.clone().read_owned().await
    }

    /// Serves one plugin until it goes. To be run as a task of its own.
    pub async fn serve(self, socket: UnixStream, world: Arc<dyn World>) {
        let Ok(_room) = self.0.room.try_acquire() else {
            return tracing::warn!("NRI: {MAX_PLUGINS} plugins are connected; another one is turned away");
        };
        let (link, mut asked) = match Link::new(socket, Side::Runtime) {
            Ok(link) => link,
            Err(e) => return tracing::warn!("NRI: {e}"),
        };
        let plugin = match Plugin::register(link.clone(), &mut asked, self.0.times).await {
            Ok(plugin) => Arc::new(plugin),
            Err(e) => {
                link.close("it did not register");
                return tracing::warn!("NRI: a plugin could not register: {e}");
            }
        };
        let name = plugin.full_name();
        let updates = match self.admit(&plugin, &*world).await {
            Ok(updates) => updates,
            Err(failure) => return tracing::warn!("{}", plugin.error("Synchronize", &failure)),
        };
        tracing::info!("NRI: plugin {name} is synchronised");
        if !updates.is_empty() {
            // Not before its next question: nobody waits for these.
            let world = world.clone();
            let name = name.clone();
            tokio::spawn(async move {
                for failed in world.change(updates).await {
                    tracing::warn!("NRI: plugin {name}: limits of {} could not be changed", failed.container_id);
                }
            });
        }
        tokio::select! {
            _ = plugin.link.until_closed() => {}
            () = answer(&plugin, &mut asked, &*world) => {}
        }
        self.plugins().retain(|known| !Arc::ptr_eq(known, &plugin));
        tracing::warn!("NRI: plugin {name} is gone: {}", plugin.link.closed().unwrap_or_default());
    }

    /// Synchronises a plugin and puts it where its index is, with nothing in the making meanwhile.
    async fn admit(&self, plugin: &Arc<Plugin>, world: &dyn World) -> Result<Vec<ContainerUpdate>, Failure> {
        let _nothing_in_the_making = self.0.gate.write().await;
        let (pods, containers) = world.everything();
        let answer = plugin.synchronize(pods, containers).await?;
        let mut plugins = self.plugins();
        let at = plugins.partition_point(|known| known.index <= plugin.index);
        plugins.insert(at, plugin.clone());
        Ok(answer.update)
    }

    /// Tells of a pod, to all in order until one refuses.
    ///
    /// # Errors
    /// `FailedPrecondition`, with who refused.
    pub async fn tell_of_pod(&self, event: Event, pod: &PodSandbox) -> Result<()> {
        // All of them have the pod as their first field and, of those that are told here, nothing else.
        let question = RunPodSandboxRequest { pod: Some(pod.clone()) };
        self.tell(event, &question, pod, None).await
    }

    /// Tells of a pod's new limits.
    ///
    /// # Errors
    /// As [`Registry::tell_of_pod`].
    pub async fn update_pod(
        &self,
        pod: &PodSandbox,
        overhead: LinuxResources,
        resources: LinuxResources,
    ) -> Result<()> {
        let question = UpdatePodSandboxRequest {
            pod: Some(pod.clone()),
            overhead_linux_resources: Some(overhead),
            linux_resources: Some(resources),
        };
        self.tell(Event::UpdatePodSandbox, &question, pod, None).await
    }

    /// Tells of a container, to all in order until one refuses.
    ///
    /// # Errors
    /// As [`Registry::tell_of_pod`].
    pub async fn tell_of_container(&self, event: Event, pod: &PodSandbox, container: &Container) -> Result<()> {
        // As above: the pod, and the container.
        let question = PostCreateContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        self.tell(event, &question, pod, Some(container)).await
    }

    async fn tell<Q: Message>(
        &self,
        event: Event,
        question: &Q,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<()> {
        for plugin in self.open(Some(event)) {
            unless_lost(&plugin, event, plugin.tell(event, question, pod, container).await)?;
        }
        Ok(())
    }

    /// Has a container adjusted by all plugins in order, and judged by those that validate.
    ///
    /// # Errors
    /// `FailedPrecondition` when one refuses, or two want the same; `InvalidArgument` when one updates it.
    pub async fn create(&self, pod: &PodSandbox, container: Container) -> Result<Merge> {
        let event = Event::CreateContainer;
        let pristine = container.clone();
        let mut merge = Merge::new(container, None);
        for plugin in self.open(Some(event)) {
            let question = CreateContainerRequest { pod: Some(pod.clone()), container: Some(merge.container.clone()) };
            let answer = plugin.ask("CreateContainer", &question).await;
            let answer: Option<CreateContainerResponse> = unless_lost(&plugin, event, answer)?;
            let Some(answer) = answer else { continue };
            let name = plugin.full_name();
            no_eviction(&name, answer.evict.is_empty())?;
            merge.adjust(answer.adjust.unwrap_or_default(), &name)?;
            merge.update(answer.update, &name)?;
        }
        self.validate(pod, pristine, &merge).await?;
        Ok(merge)
    }

    /// Has the adjustments judged. A validator that does not answer lets nothing pass.
    async fn validate(&self, pod: &PodSandbox, container: Container, merge: &Merge) -> Result<()> {
        let event = Event::ValidateContainerAdjustment;
        let validators = self.open(Some(event));
        if validators.is_empty() {
            return Ok(());
        }
        let plugins = self.open(None).into_iter();
        let question = ValidateContainerAdjustmentRequest {
            pod: Some(pod.clone()),
            container: Some(container),
            adjust: Some(merge.adjust.clone()),
            update: merge.updates.values().cloned().collect(),
            owners: Some(merge.owners.0.clone()),
            plugins: plugins.map(|p| PluginInstance { name: p.name.clone(), index: p.index.clone() }).collect(),
        };
        for plugin in validators {
            let answer = plugin.ask("ValidateContainerAdjustment", &question).await;
            let answer: ValidateContainerAdjustmentResponse =
                answer.map_err(|failure| plugin.error("ValidateContainerAdjustment", &failure))?;
            if answer.reject {
                let name = plugin.full_name();
                return Err(Error::precondition(format!(
                    "NRI plugin {name} rejects what others adjusted: {}",
                    answer.reason
                )));
            }
        }
        Ok(())
    }

    /// Has a change of limits changed by all plugins in order.
    ///
    /// # Errors
    /// As [`Registry::create`].
    pub async fn update(&self, pod: &PodSandbox, container: Container, asked: LinuxResources) -> Result<Merge> {
        let event = Event::UpdateContainer;
        let mut merge = Merge::new(container, Some(asked));
        for plugin in self.open(Some(event)) {
            let question = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(merge.container.clone()),
                linux_resources: merge.resources.clone(),
            };
            let answer = plugin.ask("UpdateContainer", &question).await;
            let answer: Option<UpdateContainerResponse> = unless_lost(&plugin, event, answer)?;
            let Some(answer) = answer else { continue };
            no_eviction(&plugin.full_name(), answer.evict.is_empty())?;
            merge.update(answer.update, &plugin.full_name())?;
        }
        Ok(merge)
    }

    /// Tells of a container that has ended; the limits of others that are to change with it. Nobody can refuse it: what one says is logged.
    pub async fn stop(&self, pod: &PodSandbox, container: &Container) -> Vec<ContainerUpdate> {
        let event = Event::StopContainer;
        let mut merge = Merge::default();
        for plugin in self.open(Some(event)) {
            let question = StopContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
            let answer = plugin.ask("StopContainer", &question).await;
            let answer: Result<Option<StopContainerResponse>> = unless_lost(&plugin, event, answer);
            let merged = answer.and_then(|answer| match answer {
                Some(answer) => merge.update(answer.update, &plugin.full_name()),
                None => Ok(()),
            });
            if let Err(e) = merged {
                tracing::warn!("{e}");
            }
        }
        merge.updates.into_values().collect()
    }
}

/// What a plugin answered; `None` when it was lost, for those that go on without it.
fn unless_lost<T>(plugin: &Plugin, event: Event, answer: Result<T, Failure>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(failure @ Failure::Refused { .. }) => Err(plugin.error(event.as_str_name(), &failure)),
        // Whoever waits for its end says that it is gone, and why.
        Err(Failure::Lost(_)) => Ok(None),
    }
}

fn no_eviction(plugin: &str, none: bool) -> Result<()> {
    if none {
        return Ok(());
    }
    Err(Error::unsupported(format!("NRI plugin {plugin} wants a container evicted, which is not supported")))
}

/// Answers what a plugin asks, until it asks no more.
async fn answer(plugin: &Plugin, asked: &mut mpsc::Receiver<Asked>, world: &dyn World) {
    while let Some(question) = asked.recv().await {
        let known = question.service == RUNTIME_SERVICE;
        let answer = match question.method.as_str() {
            "UpdateContainers" if known => update_containers(plugin, &question.payload, world).await,
            "RegisterPlugin" if known => Err((ttrpc::UNKNOWN, "it is registered already".to_owned())),
            method => Err((ttrpc::UNIMPLEMENTED, format!("there is no method {method:?} of {:?}", question.service))),
        };
        plugin.link.answer(&question, answer).await;
    }
}

async fn update_containers(plugin: &Plugin, payload: &[u8], world: &dyn World) -> Result<Vec<u8>, (i32, String)> {
    let asked = UpdateContainersRequest::decode(payload).map_err(|e| (ttrpc::UNKNOWN, e.to_string()))?;
    no_eviction(&plugin.full_name(), asked.evict.is_empty()).map_err(|e| (ttrpc::UNIMPLEMENTED, e.to_string()))?;
    let failed = world.change(asked.update).await;
    let kept: Vec<ContainerUpdate> = failed.iter().filter(|update| !update.ignore_failure).cloned().collect();
    if let Some(first) = kept.first() {
        tracing::warn!("NRI: plugin {}: limits of {} could not be changed", plugin.full_name(), first.container_id);
    }
    Ok(UpdateContainersResponse { failed }.encode_to_vec())
}

#[cfg(test)]
mod tests;
