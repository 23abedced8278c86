//! A pod in the engine's memory: its record, its shim, and what is known of its sandbox and containers.
//!
//! ```text
//!   (none) --run_pod--> READY --stop_pod, or pause died--> NOTREADY --remove_pod--> (none)
//!
//!   (none) --create--> CREATED --start--> RUNNING --exit--> EXITED --remove--> (none)
//!                         |                  |                 ^
//!                         |                  +-- shim died ----+   Unknown/255
//!                         +----- start failed -----------------+   StartError/128
//! ```
//! Only this file changes a status, and only from an answer or event of the shim or from a record.

use super::Engine;
use super::events::{Event, EventKind};
use super::shim::{Heard, Shim};
use crate::cgroup::Row;
use crate::error::{Error, Kind, Result};
use crate::id::{ContainerId, PodId};
use crate::state::flight::Flight;
use crate::state::model::{PodCgroup, Resources};
use crate::state::record::{self, ContainerRecord, Durability, ExitRecord, ExitStatus, PodRecord, ProcessRecord};
use crate::sys::spawn::Child;
use crate::wire;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{mpsc, watch};

/// A pod.
#[derive(Debug)]
pub struct Pod {
    pub record: Arc<PodRecord>,
    /// Held by the verb that changes this pod.
    pub verb: tokio::sync::Mutex<()>,
    /// `None` when the shim is dead.
    shim: Mutex<Option<Shim>>,
    /// The shim's process when it is a child of this one, to be reaped.
    child: Arc<Mutex<Option<Child>>>,
    facts: Mutex<Facts>,
    /// Counts changes of the facts, for whoever waits for one.
    changed: watch::Sender<u64>,
    flight: Option<Flight>,
}

/// What is known of a pod.
#[derive(Debug, Default)]
pub struct Facts {
    pub sandbox: Option<wire::SandboxState>,
    /// StopPodSandbox has ended.
    pub stopped: bool,
    /// A record of the sandbox is there and cannot be read: what became of it is not known.
    pub unreadable: bool,
    /// The connection to the shim is gone.
    pub hung_up: bool,
    pub containers: BTreeMap<ContainerId, Container>,
    /// The limits of the pod's own cgroup, and what of them could not be enforced and was allowed not to be.
    pub limits: Arc<[Row]>,
    pub warnings: Arc<[String]>,
    /// Duplicates of the pause process's pidfd.
    pub sandbox_fds: Vec<OwnedFd>,
}

/// What is known of a container.
#[derive(Debug)]
pub struct Container {
    pub record: Arc<ContainerRecord>,
    /// What it is to have now: as it was made, or as it was last resized.
    pub resources: Arc<Resources>,
    pub process: Option<ProcessRecord>,
    pub exit: Option<ExitRecord>,
    /// A process below it was killed for memory and it went on.
    pub child_oom: bool,
    /// The limits as asked, written, read back and effective.
    pub limits: Arc<[Row]>,
    /// What could not be enforced and was allowed not to be.
    pub warnings: Arc<[String]>,
    /// Duplicates of its pidfd and of its pipes or terminal: they survive the shim's death.
    pub fds: Vec<OwnedFd>,
}

/// CRI `ContainerState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum State {
    Created,
    Running,
    Exited,
}

impl Container {
    pub fn new(record: Arc<ContainerRecord>) -> Container {
        Container {
            resources: Arc::new(record.config.resources.clone()),
            record,
            process: None,
            exit: None,
            child_oom: false,
            limits: Arc::default(),
            warnings: Arc::default(),
            fds: Vec::new(),
        }
    }

    pub fn state(&self) -> State {
        match (&self.process, &self.exit) {
            (_, Some(_)) => State::Exited,
            (Some(_), None) => State::Running,
            (None, None) => State::Created,
        }
    }
}

impl Pod {
    pub fn new(record: PodRecord, child: Arc<Mutex<Option<Child>>>, flight: Option<Flight>) -> Pod {
        Pod {
            record: Arc::new(record),
            verb: tokio::sync::Mutex::new(()),
            shim: Mutex::new(None),
            child,
            facts: Mutex::new(Facts::default()),
            changed: watch::Sender::new(0),
            flight,
        }
    }

    pub fn id(&self) -> &PodId {
        &self.record.id
    }

    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the facts and wakes whoever waits for a change.
    pub fn change<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        let result = change(&mut self.facts());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Waits until `look` finds what it looks for.
    ///
    /// # Errors
    /// What `look` returns as one.
    pub async fn wait<T>(&self, mut look: impl FnMut(&Facts) -> Result<Option<T>>) -> Result<T> {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = look(&self.facts())? {
                return Ok(found);
            }
            if changed.changed().await.is_err() {
                return Err(Error::internal("the pod is gone")); // cannot be: `self` holds the sender
            }
        }
    }

    /// The connection to the shim.
    ///
    /// # Errors
    /// `Unavailable` when the shim is dead.
    pub fn shim(&self) -> Result<Shim> {
        let shim = self.shim.lock().unwrap_or_else(PoisonError::into_inner).clone();
        shim.ok_or_else(|| Error::new(Kind::Unavailable, format!("the shim of pod {} is gone", self.id().short())))
    }

    pub fn set_shim(&self, shim: Option<Shim>) {
        *self.shim.lock().unwrap_or_else(PoisonError::into_inner) = shim;
    }

    /// The shim's process, for the one who reaps it.
    pub fn take_child(&self) -> Option<Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Notes a step in the pod's flight recorder.
    pub fn note(&self, step: &str) {
        if let Some(flight) = &self.flight {
            flight.note(step);
        }
    }

    /// The container's cgroup, absolute in the v2 hierarchy.
    pub fn container_cgroup(&self, container: &ContainerId) -> String {
        format!("{}/{container}", self.record.cgroup)
    }

    /// The highest cgroup that is the pod's and goes with it.
    pub fn own_cgroup(&self) -> String {
        match &self.record.config.cgroup {
            PodCgroup::Given(_) => self.sandbox_cgroup(),
            PodCgroup::Default | PodCgroup::Own { .. } => self.record.cgroup.clone(),
        }
    }

    /// The pause process's cgroup.
    pub fn sandbox_cgroup(&self) -> String {
        format!("{}/{}", self.record.cgroup, self.record.id)
    }
}

/// Listens to a pod's shim until it hangs up. Ends by itself when the pod was removed.
pub async fn listen(engine: Engine, pod: Weak<Pod>, mut heard: mpsc::UnboundedReceiver<Heard>) {
    while let Some(news) = heard.recv().await {
        let Some(pod) = pod.upgrade() else { return };
        match news {
            Heard::Event(wire::Event::ContainerExited { container, exit }) => exited(&engine, &pod, &container, exit),
            Heard::Event(wire::Event::SandboxExited { status }) => sandbox_exited(&engine, &pod, status),
            Heard::Event(wire::Event::ChildOom { container }) => pod.change(|facts| {
                if let Some(container) = facts.containers.get_mut(&container) {
                    container.child_oom = true;
                }
            }),
            Heard::HungUp => return hung_up(&engine, &pod),
        }
    }
}

fn exited(engine: &Engine, pod: &Pod, id: &ContainerId, exit: ExitRecord) {
    let news = pod.change(|facts| {
        let container = facts.containers.get_mut(id)?;
        if container.exit.is_some() {
            return None;
        }
        container.exit = Some(exit);
        container.fds.clear();
        Some(())
    });
    if news.is_some() {
        engine.announce(Event::of(pod.id(), Some(id), EventKind::Stopped));
    }
}

fn sandbox_exited(engine: &Engine, pod: &Pod, status: ExitStatus) {
    pod.change(|facts| {
        if let Some(sandbox) = &mut facts.sandbox {
            sandbox.exit = Some(status);
        }
        facts.sandbox_fds.clear();
    });
    engine.announce(Event::of(pod.id(), None, EventKind::Stopped));
}

/// The shim is gone. Nothing may stay unmanaged: what it held is killed through its cgroup, and what it did not record is
/// recorded here as unknown.
fn hung_up(engine: &Engine, pod: &Arc<Pod>) {
    pod.set_shim(None);
    if pod.facts().hung_up {
        return;
    }
    if engine.is_observer() {
        return pod.change(|facts| facts.hung_up = true);
    }
    let running: Vec<ContainerId> = pod.change(|facts| {
        facts.hung_up = true;
        facts.containers.values().filter(|c| c.state() == State::Running).map(|c| c.record.id.clone()).collect()
    });
    for id in running {
        let exit = bury(engine, pod, &id);
        exited(engine, pod, &id, exit);
    }
    let paused = pod.facts().sandbox.as_ref().is_some_and(|s| s.exit.is_none());
    if paused {
        kill_cgroup(engine, &pod.sandbox_cgroup());
        sandbox_exited(engine, pod, ExitStatus::Unknown);
    }
}

/// Ends a container that has no shim, and finds or makes its exit record.
pub fn bury(engine: &Engine, pod: &Pod, id: &ContainerId) -> ExitRecord {
    kill_cgroup(engine, &pod.container_cgroup(id));
    let path = engine.paths().exit_record(pod.id(), id);
    if let Ok(Some(exit)) = record::read::<ExitRecord>(&path) {
        return exit;
    }
    let exit = ExitRecord {
        status: ExitStatus::Unknown,
        finished_at_ns: engine.now_ns(),
        oom: None,
        message: "its shim died, and with it the way to its exit code".to_owned(),
    };
    if let Err(e) = record::write(&path, &exit, Durability::Boot) {
        tracing::warn!("container {}: {e}", id.short());
    }
    exit
}

fn kill_cgroup(engine: &Engine, path: &str) {
    if let Err(e) = engine.open_cgroup(path).and_then(|c| c.kill())
        && e.kind() != Kind::NotFound
    {
        tracing::warn!("{e}");
    }
}
