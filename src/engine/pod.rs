//! A pod in the engine's memory: its record, its shim, and what is known of its sandbox and containers.
//!
//! ```text
//!   (none) --run_pod--> READY --stop_pod, or pause died--> NOTREADY --remove_pod--> (none)
//!
//!   (none) --create--> CREATED --start--> RUNNING --exit--> EXITED --remove--> (none)
//!                         |                  |                 ^
//!                         |                  +- given up ------+   its shim died and it could not be handed over ([`super::adopt`])
//!                         +----- start failed -----------------+   StartError/128
//! ```
//! Only this file changes a status, and only from an answer or event of the shim or from a record.

use super::adopt::Held;
use super::events::{Event, EventKind};
use super::kept::Kept;
use super::shim::{Heard, Shim};
use super::{Engine, blocking, orphans};
use crate::cgroup::{Row, slice};
use crate::error::{Error, Kind, Result};
use crate::id::{ContainerId, PodId};
use crate::network::Attachment;
use crate::state::flight::Flight;
use crate::state::model::{PodCgroup, Resources};
use crate::state::record::{
    self, ContainerRecord, Durability, ExitRecord, ExitStatus, PodRecord, Process, ProcessRecord, StdStream,
};
use crate::sys::spawn::Child;
use crate::wire;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How long a verb waits for a shim that recovery has yet to hear.
const HEARING: Duration = Duration::from_secs(10);
/// How long a verb waits for the successor of a shim that died.
const SHIM_SOON: Duration = Duration::from_secs(20);
/// How many deaths of a pod's shims are remembered; more than [`super::adopt::plan`] asks for.
const MAX_DEATHS: usize = 16;

/// A pod.
#[derive(Debug)]
pub struct Pod {
    pub record: Arc<PodRecord>,
    /// Held by the verb that changes this pod.
    pub verb: tokio::sync::Mutex<()>,
    /// Held by each who is to end this pod as well, from before he waits for the verb: see [`Pod::to_be_ended`].
    ending: Arc<()>,
    /// `None` when the shim is dead.
    shim: Mutex<Option<Shim>>,
    /// The shim's process when it is a child of this one, to be reaped.
    child: Arc<Mutex<Option<Child>>>,
    /// When its last shims died.
    deaths: Mutex<VecDeque<Instant>>,
    facts: Mutex<Facts>,
    /// Counts changes of the facts, for whoever waits for one.
    changed: watch::Sender<u64>,
    pub kept: Arc<Kept>,
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
    /// Why the pod's own record cannot be read: what it is is a guess ([`super::damaged`]), and it is only to be stopped and removed.
    pub damaged: Option<Arc<str>>,
    /// Its shim was found and has not answered yet.
    pub unheard: bool,
    /// The start went on without it: what it would do with the pod then is its own recovery's.
    pub late: bool,
    /// Why its shim cannot be spoken with, though it lives: it is of a podwright of another version. The pod runs on, out of reach.
    pub foreign: Option<String>,
    /// The shim is gone, and no other will come. One whose successor is being made is merely not there.
    pub hung_up: bool,
    /// The shim that took over from the one in the record.
    pub shim: Option<Process>,
    pub containers: BTreeMap<ContainerId, Container>,
    /// The limits of the pod's own cgroup, and what of them could not be enforced and was allowed not to be.
    pub limits: Arc<[Row]>,
    pub warnings: Arc<[String]>,
    /// What it is connected to; `None`: the host's network, or nothing.
    pub network: Option<Arc<Attachment>>,
    /// A duplicate of the pause process's pidfd.
    pub pause: Option<OwnedFd>,
}

/// What is known of a container.
#[derive(Debug)]
pub struct Container {
    pub record: Arc<ContainerRecord>,
    /// Its start was asked for and is not answered yet: its end is told after that.
    pub starting: bool,
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
    /// Duplicates of its pidfd and of its pipes or terminal, while it runs.
    pub held: Option<Held>,
    pub kept: Arc<Kept>,
    /// Its input has been closed for good.
    pub input_closed: bool,
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
            starting: false,
            process: None,
            exit: None,
            child_oom: false,
            limits: Arc::default(),
            warnings: Arc::default(),
            held: None,
            kept: Arc::default(),
            input_closed: false,
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

impl Facts {
    /// Whether more may be done with the pod than to stop and remove it.
    ///
    /// # Errors
    /// `FailedPrecondition`, with what cannot be read.
    pub(super) fn whole(&self) -> Result<()> {
        match &self.damaged {
            None => Ok(()),
            Some(why) => Err(Error::precondition(format!("the pod can only be stopped and removed: {why}"))),
        }
    }

    /// A container has ended; what is to be told of it now.
    pub(super) fn ended(&mut self, id: &ContainerId, exit: ExitRecord) -> Option<EventKind> {
        let container = self.containers.get_mut(id).filter(|c| c.exit.is_none())?;
        container.exit = Some(exit);
        if let Some(held) = container.held.take() {
            orphans::reaped(held.pidfd.as_fd());
        }
        (!container.starting).then_some(EventKind::Stopped)
    }

    /// The start of a container was answered; what is to be told of it, in this order. Its end may have been heard before.
    pub(super) fn start_answered(&mut self, id: &ContainerId, runs: bool) -> impl Iterator<Item = EventKind> + use<> {
        let ended = self.containers.get_mut(id).is_some_and(|container| {
            container.starting = false;
            container.exit.is_some()
        });
        let started = runs.then_some(EventKind::Started);
        started.into_iter().chain(ended.then_some(EventKind::Stopped))
    }
}

impl Pod {
    pub fn new(record: PodRecord, child: Arc<Mutex<Option<Child>>>, flight: Option<Flight>) -> Pod {
        Pod {
            record: Arc::new(record),
            verb: tokio::sync::Mutex::new(()),
            ending: Arc::default(),
            shim: Mutex::new(None),
            child,
            deaths: Mutex::default(),
            facts: Mutex::new(Facts::default()),
            changed: watch::Sender::new(0),
            kept: Arc::default(),
            flight,
        }
    }

    pub fn id(&self) -> &PodId {
        &self.record.id
    }

    /// Says that this pod is to end, for as long as what is returned lives: a verb that takes long and leaves nothing half done gives up.
    #[must_use]
    pub fn to_be_ended(&self) -> Arc<()> {
        let ending = self.ending.clone();
        self.note("engine: to be ended");
        ending
    }

    /// Asks whether somebody waits to end it, from any thread.
    pub fn is_to_be_ended(&self) -> impl Fn() -> bool + Send + use<> {
        let ending = Arc::downgrade(&self.ending);
        // Beside the pod's own; a pod that is gone has none.
        move || ending.strong_count() != 1
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

    /// Waits until something becomes known of it.
    pub async fn next_change(&self) {
        let _ = self.changed.subscribe().changed().await; // `self` holds the sender
    }

    /// The connection to the shim.
    ///
    /// # Errors
    /// `Unavailable` when the shim is dead.
    pub fn shim(&self) -> Result<Shim> {
        let shim = self.shim.lock().unwrap_or_else(PoisonError::into_inner).clone();
        shim.ok_or_else(|| Error::new(Kind::Unavailable, format!("the shim of pod {} is gone", self.id().short())))
    }

    /// Waits until the shim that recovery has found was heard, or was given up.
    ///
    /// # Errors
    /// `Unavailable` when it takes too long; `FailedPrecondition`, with the remedy, when it speaks no version of the protocol that this
    /// engine does.
    pub async fn heard(&self) -> Result<()> {
        let heard = self.wait(|facts| Ok((!facts.unheard).then(|| facts.foreign.clone())));
        let (name, shim) = (self.id().short(), self.shim_process().pid);
        match tokio::time::timeout(HEARING, heard).await {
            Err(_) => Err(Error::new(
                Kind::Unavailable,
                format!("the shim of pod {name}, process {shim}, does not answer yet"),
            )),
            Ok(Err(e)) => Err(e),
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(why))) => Err(Error::precondition(format!(
                "pod {name} runs on, out of reach: {why}; use the podwright that made it, or kill its shim, process {shim}, which ends the pod"
            ))),
        }
    }

    /// The same; while another shim is being made for one that died, the caller waits for it. Not by one who holds the pod's lock, which
    /// is needed for that ([`Engine::ensure_shim`]).
    ///
    /// # Errors
    /// `Unavailable` when the shim is dead and no other will come.
    pub async fn shim_soon(&self) -> Result<Shim> {
        let soon = self.wait(|facts| match self.shim() {
            Err(e) if facts.hung_up => Err(e),
            shim => Ok(shim.ok()),
        });
        match tokio::time::timeout(SHIM_SOON, soon).await {
            Ok(shim) => shim,
            Err(_) => self.shim(),
        }
    }

    pub fn set_shim(&self, shim: Option<Shim>) {
        *self.shim.lock().unwrap_or_else(PoisonError::into_inner) = shim;
        self.changed.send_modify(|n| *n += 1);
    }

    /// The connection `shim` is gone; another one may be there already.
    pub fn lose_shim(&self, shim: &Shim) {
        self.shim.lock().unwrap_or_else(PoisonError::into_inner).take_if(|current| current.is(shim));
        self.changed.send_modify(|n| *n += 1);
    }

    /// The shim's process, for the one who reaps it.
    pub fn take_child(&self) -> Option<Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn set_child(&self, child: Option<Child>) {
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = child;
    }

    /// The shim's process on disk.
    pub fn shim_process(&self) -> Process {
        self.facts().shim.unwrap_or(self.record.shim)
    }

    /// Notes that a shim has died; when the last ones did, this one included.
    pub fn shim_died(&self) -> Vec<Instant> {
        let mut deaths = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        deaths.push_back(Instant::now());
        let more = deaths.len().saturating_sub(MAX_DEATHS);
        deaths.drain(..more);
        deaths.iter().copied().collect()
    }

    /// The containers that run, as far as is known.
    pub fn running(&self) -> Vec<ContainerId> {
        let facts = self.facts();
        facts.containers.values().filter(|c| c.state() == State::Running).map(|c| c.record.id.clone()).collect()
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
        if let Some(scope) = self.scope() {
            return scope.to_owned();
        }
        match &self.record.config.cgroup {
            PodCgroup::Given(_) => self.sandbox_cgroup(),
            PodCgroup::Default | PodCgroup::Own { .. } => self.record.cgroup.clone(),
        }
    }

    /// The scope of systemd's that its cgroup is in, if one is.
    pub fn scope(&self) -> Option<&str> {
        slice::scope_in(&self.record.cgroup, self.record.id.as_str())
    }

    /// The pause process's cgroup.
    pub fn sandbox_cgroup(&self) -> String {
        format!("{}/{}", self.record.cgroup, self.record.id)
    }
}

/// Listens to a pod's shim until it hangs up, and then sees to another one. Ends by itself when the pod was removed.
pub async fn listen(engine: Engine, pod: Weak<Pod>, shim: Shim, mut heard: mpsc::UnboundedReceiver<Heard>) {
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
            Heard::Event(wire::Event::InputClosed { container }) => input_closed(&pod, &container),
            Heard::HungUp => return engine.shim_hung_up(pod, shim).await,
        }
    }
}

/// Nobody will write to a container's input again: not until the last duplicate is gone does it see that.
fn input_closed(pod: &Pod, id: &ContainerId) {
    pod.change(|facts| {
        let Some(container) = facts.containers.get_mut(id) else { return };
        container.input_closed = true;
        if let Some(held) = &mut container.held {
            held.streams.retain(|(stream, _)| *stream != StdStream::Stdin);
        }
    });
}

/// A container has ended; tells whoever listens, once, and not before it was told that it was started.
pub(super) fn exited(engine: &Engine, pod: &Pod, id: &ContainerId, exit: ExitRecord) {
    pod.change(|facts| {
        if let Some(kind) = facts.ended(id, exit) {
            engine.announce(Event::of(pod.id(), Some(id), kind));
        }
    });
}

/// The sandbox has ended; tells whoever listens, once.
pub(super) fn sandbox_exited(engine: &Engine, pod: &Pod, status: ExitStatus) {
    pod.change(|facts| {
        if let Some(pause) = facts.pause.take() {
            orphans::reaped(pause.as_fd());
        }
        if let Some(exit @ None) = facts.sandbox.as_mut().map(|sandbox| &mut sandbox.exit) {
            *exit = Some(status);
            engine.announce(Event::of(pod.id(), None, EventKind::Stopped));
        }
    });
}

/// Ends a container that has no shim, and finds or makes its exit record. `why` it has none.
pub async fn bury(engine: &Engine, pod: &Pod, id: &ContainerId, why: &str) -> ExitRecord {
    engine.kill_cgroup(&pod.container_cgroup(id));
    let path = engine.paths().exit_record(pod.id(), id);
    let there = record::read::<ExitRecord>(&path);
    if let Ok(Some(exit)) = there {
        return exit;
    }
    let pidfd = pod.facts().containers.get(id).and_then(|c| c.held.as_ref()?.pidfd.try_clone().ok());
    let status = match pidfd {
        Some(pidfd) => blocking(move || Ok(orphans::end_of_killed(&pidfd))).await.ok().flatten(),
        None => None,
    };
    let exit = ExitRecord {
        status: status.unwrap_or(ExitStatus::Unknown),
        finished_at_ns: engine.now_ns(),
        oom: None,
        message: format!("its shim died, and it was not handed over to another one: {why}"),
    };
    // One that cannot be read stays as it is.
    if there.is_ok()
        && let Err(e) = record::write(&path, &exit, Durability::Boot)
    {
        tracing::warn!("container {}: {e}", id.short());
    }
    exit
}

impl Engine {
    /// SIGKILL to everything in a cgroup; one that is gone is no error.
    pub(super) fn kill_cgroup(&self, path: &str) {
        if let Err(e) = self.open_cgroup(path).and_then(|c| c.kill())
            && e.kind() != Kind::NotFound
        {
            tracing::warn!("{e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::model::ContainerConfig;

    fn made() -> (Facts, ContainerId) {
        let id = ContainerId::random();
        let record = ContainerRecord {
            id: id.clone(),
            pod: PodId::random(),
            config: ContainerConfig::default(),
            created_at_ns: 1,
            spec: crate::state::spec::SpecText::of(&()).expect("null"),
            layers: vec![],
            stop_signal: 15,
            log: None,
            image_user: String::new(),
            image_ref: String::new(),
            groups: vec![],
        };
        let mut facts = Facts::default();
        facts.containers.insert(id.clone(), Container::new(Arc::new(record)));
        (facts, id)
    }

    fn exit() -> ExitRecord {
        ExitRecord { status: ExitStatus::Exited(0), finished_at_ns: 2, oom: None, message: String::new() }
    }

    #[test]
    fn an_end_that_is_heard_before_the_start_was_answered_is_told_after_it() {
        use EventKind::{Started, Stopped};
        let starting = || {
            let (mut facts, id) = made();
            facts.containers.get_mut(&id).expect("made").starting = true;
            (facts, id)
        };
        let (mut facts, id) = starting();
        assert_eq!(facts.ended(&id, exit()), None);
        assert_eq!(facts.containers[&id].state(), State::Exited, "it is no secret");
        assert_eq!(facts.start_answered(&id, true).collect::<Vec<_>>(), [Started, Stopped]);
        assert_eq!(facts.ended(&id, exit()), None, "once");

        let (mut facts, id) = starting();
        assert_eq!(facts.start_answered(&id, true).collect::<Vec<_>>(), [Started]);
        assert_eq!(facts.ended(&id, exit()), Some(Stopped));

        let (mut facts, id) = starting();
        facts.containers.get_mut(&id).expect("made").exit = Some(exit());
        assert_eq!(facts.start_answered(&id, false).collect::<Vec<_>>(), [Stopped], "it was never started");
    }
}
