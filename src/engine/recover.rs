//! Recovery: memory is rebuilt from records and shims. Nothing that cannot be read is deleted.

use super::Engine;
use super::pod::{Container, Pod, State, listen};
use super::quarantine::Found;
use super::run_pod::remove_tree;
use super::shim::{Shim, connect, unexpected};
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::{ContainerId, PodId};
use crate::network::Attachment;
use crate::state::flight::{Flight, Source};
use crate::state::record::{
    ContainerRecord, ExitRecord, ExitStatus, PodRecord, ProcessRecord, ResourcesRecord, SandboxRecord, ShimRecord,
    StoppedRecord,
};
use crate::wire::{Reply, Request, SandboxState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long one shim may take to answer until it is given up.
pub(super) const SHIM_WAIT: Duration = Duration::from_secs(10);
/// How long the start waits for shims: a stuck one holds up neither that nor any other pod.
const START_WAIT: Duration = Duration::from_secs(2);

impl Engine {
    /// Finds the pods that are there, speaks with their shims, and returns what could not be read, a sentence each.
    ///
    /// # Errors
    /// `Internal` when the directory of pods cannot be listed.
    pub async fn recover(&self) -> Result<Vec<Error>> {
        let patience = if self.is_observer() { SHIM_WAIT } else { START_WAIT };
        let mut wrong = self.recover_within(patience).await?;
        wrong.extend(self.unreadable().into_iter().map(|unreadable| Error::internal(unreadable.why)));
        Ok(wrong)
    }

    /// The same, but for what is in quarantine. Shims that take longer than `patience` are heard later.
    pub(super) async fn recover_within(&self, patience: Duration) -> Result<Vec<Error>> {
        let mut wrong = Vec::new();
        let mut waiting = tokio::task::JoinSet::new();
        for name in list(&self.paths().pods())? {
            match name.parse::<PodId>() {
                Ok(id) => {
                    let engine = self.clone();
                    waiting.spawn(async move { engine.recover_pod(id).await });
                }
                Err(e) => self.set_apart(&self.paths().pods().join(&name), &e),
            }
        }
        let all = async {
            while let Some(recovered) = waiting.join_next().await {
                if let Ok(Err(e)) = recovered {
                    wrong.push(e);
                }
            }
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("{} shims have not answered yet: their pods are not ready meanwhile", waiting.len());
            waiting.detach_all();
        }
        Ok(wrong)
    }

    /// As [`Engine::recover`], for a command that looks at the pods of another, living engine: nothing is killed or recorded because a shim
    /// does not answer, for that is the other's to do, and a pod that is being made at this moment has no socket yet.
    ///
    /// # Errors
    /// As [`Engine::recover`].
    pub async fn observe(&self) -> Result<Vec<Error>> {
        self.0.observer.store(true, std::sync::atomic::Ordering::Relaxed);
        self.recover().await
    }

    /// Takes away what an engine that was killed had begun and told nobody of: pods without a sandbox, and those of another boot, whose
    /// processes ended with it. To be called after [`Engine::recover`]; returns what is left, a sentence each.
    ///
    /// # Errors
    /// `Internal` when the directory of pods cannot be listed.
    pub async fn sweep_unfinished(&self) -> Result<Vec<Error>> {
        let mut left = Vec::new();
        for name in list(&self.paths().pods())? {
            let Ok(id) = name.parse::<PodId>() else { continue };
            match self.pod(&id) {
                Ok(pod) => {
                    let heard = pod.change(|facts| {
                        facts.late = facts.unheard;
                        !facts.late
                    });
                    if heard {
                        left.extend(self.sweep_pod(&pod).await.err());
                    }
                }
                Err(_) if !self.paths().pod_record(&id).exists() => left.extend(self.remove_unrecorded(&id).err()),
                Err(_) => {} // what was found of it could not be read at all, as recovery has said: it stays
            }
        }
        Ok(left)
    }

    /// As [`Engine::sweep_unfinished`], of one pod.
    async fn sweep_pod(&self, pod: &Arc<Pod>) -> Result<()> {
        let begun = {
            let facts = pod.facts();
            facts.sandbox.is_some() || facts.unreadable || facts.damaged.is_some() || facts.foreign.is_some()
        };
        let finished = begun && pod.record.boot_id == self.0.boot_id && self.is_connected(pod);
        if finished { self.remove_unfinished_containers(pod) } else { self.remove_pod(pod.id()).await }
    }

    /// Takes away what CreateContainer had made of a container, or RemoveContainer has left of one, when their daemon was killed.
    fn remove_unfinished_containers(&self, pod: &Pod) -> Result<()> {
        for name in list(&self.paths().containers(pod.id()))? {
            let Ok(id) = name.parse::<ContainerId>() else { continue };
            if !self.paths().container_record(pod.id(), &id).exists() {
                remove_tree(&self.paths().writable(&id))?;
                fault::point("engine.recover.writable");
                remove_tree(&self.paths().container(pod.id(), &id))?;
                fault::point("engine.recover.container");
            }
        }
        Ok(())
    }

    async fn recover_pod(&self, id: PodId) -> Result<()> {
        let path = self.paths().pod_record(&id);
        let (record, damaged) = match self.find::<PodRecord>(&path) {
            Found::Record(record) => (record, None),
            // It is being made, or its maker was killed before there was anything but the directory.
            Found::Nothing => return Ok(()),
            Found::Unreadable => {
                let why = self.why_unreadable(&path);
                (self.stand_in(&id, &why), Some(why))
            }
        };
        let pod =
            Arc::new(Pod::new(record, Arc::default(), Flight::open(&self.paths().flight(&id), Source::Engine).ok()));
        pod.change(|facts| facts.damaged = damaged.map(Arc::from));
        self.read_records(&pod)?;
        fault::point("engine.recover.read");
        // Listed at once, and not ready; whoever is to change it waits until its shim was heard.
        let one_at_a_time = pod.verb.lock().await;
        pod.change(|facts| facts.unheard = true);
        self.pods_mut().insert(id, pod.clone());
        self.hear(&pod).await;
        let late = pod.change(|facts| {
            facts.unheard = false;
            facts.late
        });
        fault::point("engine.recover.pod");
        drop(one_at_a_time);
        if late {
            tracing::info!("pod {}: its shim was heard after the start, or given up", pod.id().short());
            if let Err(e) = self.sweep_pod(&pod).await {
                tracing::warn!("{e}"); // nobody waits for this any more
            }
        }
        Ok(())
    }

    /// Speaks with the pod's shim, or finds that there is none to speak with.
    async fn hear(&self, pod: &Arc<Pod>) {
        match self.connect(pod).await {
            Ok(()) => {}
            Err(e) if e.kind() == Kind::Unsupported => {
                tracing::error!("pod {} runs on, out of reach: {e}", pod.id().short());
                pod.change(|facts| facts.foreign = Some(e.to_string()));
            }
            Err(_) if self.is_observer() => {}
            Err(_) => {
                if self.is_sweeper() {
                    self.bury_pod(pod, "it is to be removed").await;
                } else {
                    self.replace_shim(pod, false).await;
                }
                fault::point("engine.recover.buried");
            }
        }
    }

    /// What the records say: complete when the shim is dead, a start when it lives.
    fn read_records(&self, pod: &Arc<Pod>) -> Result<()> {
        let paths = self.paths();
        let id = pod.id().clone();
        let sandbox = self.find::<SandboxRecord>(&paths.sandbox_record(&id));
        let shim = self.find::<ShimRecord>(&paths.shim_record(&id)).record();
        let stopped = self.find::<StoppedRecord>(&paths.stopped_record(&id)).is_there();
        let network = self.find::<Attachment>(&paths.attachment_record(&id)).record();
        let mut containers = Vec::new();
        for name in list(&paths.containers(&id))? {
            let Ok(container) = name.parse::<ContainerId>() else { continue };
            // No record: the daemon died in CreateContainer before it answered, or in RemoveContainer after all else had gone.
            let path = paths.container_record(&id, &container);
            let Some(record) = self.find::<ContainerRecord>(&path).record() else { continue };
            containers.push((container, self.read_container(record)));
        }
        let unreadable = matches!(sandbox, Found::Unreadable);
        let sandbox = sandbox.record();
        if !self.is_observer() {
            let pause = sandbox.as_ref().map(|sandbox| sandbox.pause);
            containers.iter().for_each(|(container, _)| self.forget_checkpoint(pod, pause, container));
        }
        pod.change(|facts| {
            facts.unreadable = unreadable;
            facts.sandbox =
                sandbox.map(|s| SandboxState { pause: s.pause, started_at_ns: s.started_at_ns, exit: None });
            facts.stopped = stopped;
            facts.network = network.map(Arc::new);
            facts.shim = shim.map(|record| record.shim);
            facts.containers.extend(containers);
        });
        Ok(())
    }

    fn read_container(&self, record: ContainerRecord) -> Container {
        let (paths, pod, id) = (self.paths(), record.pod.clone(), record.id.clone());
        let mut known = Container::new(Arc::new(record));
        let process = self.find::<ProcessRecord>(&paths.process_record(&pod, &id));
        let exit = self.find::<ExitRecord>(&paths.exit_record(&pod, &id));
        // What cannot be read is there: it has run, or ended, and how is not known unless the shim knows.
        let lost = matches!(exit, Found::Unreadable) || (matches!(process, Found::Unreadable) && !exit.is_there());
        known.process = process.record();
        known.exit = exit.record().or_else(|| {
            let message = "its record cannot be read".to_owned();
            let finished_at_ns = self.now_ns();
            lost.then_some(ExitRecord { status: ExitStatus::Unknown, finished_at_ns, oom: None, message })
        });
        if let Found::Record(resized) = self.find::<ResourcesRecord>(&paths.resources_record(&pod, &id)) {
            known.resources = Arc::new(resized.resources);
        }
        known
    }

    /// Speaks with the shim that is there.
    pub(super) async fn connect(&self, pod: &Arc<Pod>) -> Result<()> {
        let socket = connect(&self.paths().shim_socket(pod.id()))?;
        let (sender, heard) = mpsc::unbounded_channel();
        let shim = Shim::new(socket, sender)?;
        let asked = async {
            shim.hello(false).await?;
            shim.call(Request::List, &[]).await
        };
        let late = |_| Error::new(crate::error::Kind::Unavailable, "the shim does not answer");
        let (sandbox, containers) = match tokio::time::timeout(SHIM_WAIT, asked).await.map_err(late)?? {
            (Reply::List { sandbox, containers }, _) => (sandbox, containers),
            (other, _) => return Err(unexpected(&other)),
        };
        let known: Vec<ContainerId> = containers.iter().map(|state| state.container.clone()).collect();
        pod.change(|facts| {
            facts.sandbox = sandbox.or(facts.sandbox.take());
            for state in containers {
                if let Some(known) = facts.containers.get_mut(&state.container) {
                    known.process = Some(state.process);
                    // One that runs has no record of its end, but perhaps one of its start that cannot be read.
                    known.exit = state.exit;
                    known.warnings = state.warnings.into();
                }
            }
        });
        if !self.is_observer() && !self.is_sweeper() {
            tokio::time::timeout(SHIM_WAIT, self.share(pod, &shim, &known)).await.map_err(late)??;
        }
        self.read_failed_starts(pod);
        pod.set_shim(Some(shim.clone()));
        tokio::spawn(listen(self.clone(), Arc::downgrade(pod), shim, heard));
        Ok(())
    }

    /// A shim lists what it started, not what it could not start: of that there is a record, which it may have written after the records
    /// were read and before it answered, while it still served a daemon that was dead by then.
    fn read_failed_starts(&self, pod: &Pod) {
        let created: Vec<ContainerId> = {
            let facts = pod.facts();
            facts.containers.values().filter(|c| c.state() == State::Created).map(|c| c.record.id.clone()).collect()
        };
        for id in created {
            let exit = self.find::<ExitRecord>(&self.paths().exit_record(pod.id(), &id)).record();
            pod.change(|facts| facts.containers.get_mut(&id).map(|container| container.exit = exit));
        }
    }
}

/// The names in a directory; none when it is not there.
pub(super) fn list(directory: &std::path::Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(|| format!("list {}", directory.display()))?,
    };
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    Ok(names.collect())
}
