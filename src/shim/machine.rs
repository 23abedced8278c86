//! What a pod, its containers and execs are, which request is legal when, and what each event leads to. No I/O: the loop
//! tells what happened and does what [`Action`] says.
//!
//! ```text
//! pod        None --CreateSandbox, Adopt--> Up --StopSandbox--> Stopping --pause has ended--> Down
//!                                    Up --pause has ended-----------------------------> Down
//! container  (unknown) --Start, AdoptContainer--> Running --first process has ended--> Ending --cgroup is empty--> Ended --Forget--> (unknown)
//!            (unknown) --Start fails--> Failed --Forget--> (unknown)
//! exec       (unknown) --Exec--> Running --first process has ended, answered--> Lingering --cgroup is empty--> (unknown)
//!                                Running --its connection is gone, killed-------> Lingering
//!                                Running --its deadline, killed--> Running --first process has ended--> Running --cgroup is empty, answered--> (unknown)
//! ```
//! *Ending* is not told to anybody: the exit is told when the output is in the log and the record on disk. A *lingering* exec has
//! left processes in the background; they live on like any other of the container, as in other runtimes, and their cgroup
//! goes when they do. At its deadline the whole tree of an exec is killed, and the answer, that it was, waits until all of it is gone. It
//! is killed as well when whoever asked for it is gone (Ctrl-C at `podwright exec`), for nobody is left who could hear how it ends, or
//! end it.
//!
//! A signal, a kill or a rotation that comes when the container has ended just then is answered `Done`: what it was to bring
//! about has happened, and the sender cannot know better.

use crate::error::{Error, Kind, Result};
use crate::id::{ContainerId, ExecId};
use crate::state::record::{ExitRecord, ExitStatus, Oom};
use crate::wire::{self, ContainerState, Event, Executed, Failure, Reply, Request, Runtime, SandboxState};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long processes may take to go after SIGKILL before their end is told without them: one in uninterruptible sleep can take
/// any time, and a call must not hang on it.
pub const KILL_GRACE: Duration = Duration::from_secs(10);
/// How long a container may take to end after a process below it was killed for memory until that counts as "it goes on".
pub const OOM_GRACE: Duration = Duration::from_millis(200);

/// A request that is still to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    pub connection: u64,
    pub id: u32,
}

/// An exec: ordinals are per container.
pub type ExecKey = (ContainerId, ExecId);

/// What the loop is to do.
#[derive(Debug)]
pub enum Action {
    /// cgroup.kill.
    KillContainer(ContainerId),
    /// Drain the output, remove the cgroups of its execs, write the record; then [`Machine::recorded`].
    Record(ContainerId, ExitRecord),
    /// cgroup.kill of the exec's own, and why.
    KillExec(ExecKey, &'static str),
    /// Its cgroup is empty: rmdir.
    RemoveExec(ExecKey),
    /// Another runtime made this container, whose end was told: it forgets it. The container's directory.
    Forget(ContainerId, Runtime, PathBuf),
    KillPause,
    Reply(Ticket, Reply),
    Broadcast(Event),
    /// The owner is gone: kill everything and become `podwright sweep`.
    Sweep,
    /// Nobody will ever reach this shim again, or it was told to end.
    Exit,
}

/// Whether a request is to be done or is done already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    Do,
    /// Answer `Done`.
    Already,
}

/// How a first process ended, as it was seen at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub status: ExitStatus,
    pub finished_at_ns: i64,
    pub oom: Option<Oom>,
    /// Other processes of its cgroup are left.
    pub populated: bool,
}

#[derive(Debug)]
enum Phase {
    /// `oom_due`: when a process killed for memory below it is told, unless the container ends first.
    Running {
        oom_due: Option<Instant>,
    },
    Ending {
        end: End,
        until: Instant,
        recording: bool,
    },
    Ended,
    Failed,
}

#[derive(Debug)]
struct Container {
    phase: Phase,
    /// `None` only for [`Phase::Failed`].
    state: Option<ContainerState>,
}

#[derive(Debug)]
enum Exec {
    Running {
        ticket: Ticket,
        deadline: Option<Instant>,
        killed: bool,
        /// How its first process ended: it was killed, and others of it are still to go before that is told.
        ended: Option<ExitStatus>,
    },
    /// Answered. `reaped`: its first process as well.
    Lingering { reaped: bool },
}

#[derive(Debug, Default)]
struct Peer {
    greeted: bool,
    owner: bool,
}

/// The state of a shim.
#[derive(Debug)]
pub struct Machine {
    /// The shim belongs to an instance of `run`: it can be swept.
    instance: bool,
    sandbox: Option<SandboxState>,
    stopping: bool,
    stoppers: Vec<Ticket>,
    /// Further connections can come.
    listening: bool,
    peers: BTreeMap<u64, Peer>,
    containers: BTreeMap<ContainerId, Container>,
    execs: BTreeMap<ExecKey, Exec>,
}

/// The number of the connection that the shim was born with.
pub const FIRST: u64 = 0;

impl Machine {
    /// A shim with its first connection and nothing else.
    pub fn new(instance: bool) -> Self {
        Machine {
            instance,
            sandbox: None,
            stopping: false,
            stoppers: Vec::new(),
            listening: false,
            peers: BTreeMap::from([(FIRST, Peer::default())]),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
        }
    }

    // Connections.

    /// Another connection was made.
    pub fn connected(&mut self, connection: u64) {
        self.peers.insert(connection, Peer::default());
    }

    /// `Hello` was answered.
    pub fn greeted(&mut self, connection: u64, owner: bool) {
        self.peers.insert(connection, Peer { greeted: true, owner });
    }

    /// The listening socket is here.
    pub fn listening(&mut self) {
        self.listening = true;
    }

    /// A connection is gone, from either side.
    pub fn closed(&mut self, connection: u64) -> Vec<Action> {
        let Some(peer) = self.peers.remove(&connection) else { return Vec::new() };
        self.stoppers.retain(|ticket| ticket.connection != connection);
        let unborn = connection == FIRST && !peer.greeted && self.instance;
        if peer.owner || unborn {
            return vec![Action::Sweep];
        }
        let mut actions = self.abandon_execs(connection);
        if self.peers.is_empty() && !self.listening {
            actions.push(Action::Exit);
        }
        actions
    }

    /// Nobody will hear of the execs that this connection asked for.
    fn abandon_execs(&mut self, connection: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        for (key, exec) in &mut self.execs {
            if let Exec::Running { ticket, ended, .. } = exec
                && ticket.connection == connection
            {
                *exec = Exec::Lingering { reaped: ended.is_some() };
                actions.push(Action::KillExec(key.clone(), "killed, for whoever asked for it is gone"));
            }
        }
        actions
    }

    // Requests.

    /// Whether `request` is legal now.
    ///
    /// # Errors
    /// `FailedPrecondition`, `NotFound`, `AlreadyExists`, `ResourceExhausted`, `InvalidArgument`: the answer to the sender.
    pub fn accept(&self, connection: u64, request: &Request) -> Result<Accept> {
        let greeted = self.peers.get(&connection).is_some_and(|peer| peer.greeted);
        match request {
            Request::Hello { .. } if greeted => Err(Error::precondition("the first message only is Hello")),
            Request::Hello { .. } => Ok(Accept::Do),
            _ if !greeted => Err(Error::precondition("the first message must be Hello")),
            Request::Join | Request::List => Ok(Accept::Do),
            Request::CreateSandbox(_) | Request::Adopt(_) if self.sandbox.is_some() => {
                Err(Error::new(Kind::AlreadyExists, "this shim has its sandbox"))
            }
            Request::CreateSandbox(_) | Request::Adopt(_) if self.stopping => {
                Err(Error::precondition("the sandbox was stopped"))
            }
            Request::CreateSandbox(_) | Request::Adopt(_) => Ok(Accept::Do),
            Request::Prepare { container, .. } => self.accept_container(container),
            Request::Start(launch) => self.accept_start(launch),
            Request::AdoptContainer(adopt) => self.accept_container(&adopt.launch.container),
            Request::Duplicate { container } => self.accept_duplicate(container.as_ref()),
            Request::Exec(exec) => self.accept_exec(exec),
            Request::Signal { signal, .. } if !(1..=64).contains(signal) => {
                Err(Error::invalid(format!("signal {signal} is not one of 1 to 64")))
            }
            Request::Signal { container, .. }
            | Request::ReopenLog { container }
            | Request::Kill { container }
            | Request::CloseInput { container } => self.accept_while_running(container),
            Request::Attach { container, .. } => self.accept_duplicate(Some(container)),
            Request::Forget { container } => match self.containers.get(container).map(|c| &c.phase) {
                None => Ok(Accept::Already),
                Some(Phase::Ended | Phase::Failed) => Ok(Accept::Do),
                Some(_) => Err(Error::precondition(format!("container {} runs; stop it first", container.short()))),
            },
            Request::StopSandbox | Request::CancelExec { .. } => Ok(Accept::Do),
            Request::Shutdown => self.accept_shutdown(),
        }
    }

    fn accept_start(&self, launch: &wire::Launch) -> Result<Accept> {
        let name = launch.container.short();
        self.accept_container(&launch.container)?;
        if let crate::state::model::NamespaceMode::Target(target) = &launch.namespaces.pid
            && !self.is_running(target)
        {
            let text = format!("container {}, whose processes {name} is to see, does not run", target.short());
            return Err(Error::precondition(text));
        }
        Ok(Accept::Do)
    }

    /// One more container, started here or elsewhere.
    fn accept_container(&self, container: &ContainerId) -> Result<Accept> {
        let name = container.short();
        self.up()?;
        if self.containers.contains_key(container) {
            return Err(Error::new(Kind::AlreadyExists, format!("container {name} was started before")));
        }
        if self.containers.len() >= wire::MAX_CONTAINERS {
            return Err(Error::exhausted(format!("the pod has {} containers already", wire::MAX_CONTAINERS)));
        }
        Ok(Accept::Do)
    }

    fn accept_duplicate(&self, container: Option<&ContainerId>) -> Result<Accept> {
        match container {
            None => self.up().map(|()| Accept::Do),
            Some(id) => match self.accept_while_running(id)? {
                Accept::Do => Ok(Accept::Do),
                Accept::Already => Err(Error::precondition(format!("container {} has ended", id.short()))),
            },
        }
    }

    fn accept_exec(&self, exec: &wire::Exec) -> Result<Accept> {
        let name = exec.container.short();
        if !self.containers.contains_key(&exec.container) {
            return Err(Error::not_found(format!("this pod runs no container {name}")));
        }
        if !self.is_running(&exec.container) {
            return Err(Error::precondition(format!("container {name} has ended")));
        }
        if self.execs.contains_key(&(exec.container.clone(), exec.exec)) {
            return Err(Error::new(Kind::AlreadyExists, format!("container {name} has {} already", exec.exec)));
        }
        if self.execs.len() >= wire::MAX_EXECS {
            return Err(Error::exhausted(format!("the pod has {} execs already", wire::MAX_EXECS)));
        }
        Ok(Accept::Do)
    }

    fn accept_while_running(&self, container: &ContainerId) -> Result<Accept> {
        match self.containers.get(container).map(|c| &c.phase) {
            None => Err(Error::not_found(format!("this pod runs no container {}", container.short()))),
            Some(Phase::Running { .. }) => Ok(Accept::Do),
            Some(_) => Ok(Accept::Already),
        }
    }

    fn accept_shutdown(&self) -> Result<Accept> {
        if self.sandbox.as_ref().is_some_and(|sandbox| sandbox.exit.is_none()) {
            return Err(Error::precondition("the sandbox runs; stop it first"));
        }
        if let Some(id) = self.live().next() {
            return Err(Error::precondition(format!("container {} runs; stop it first", id.short())));
        }
        let runs = |exec: &&Exec| !matches!(exec, Exec::Lingering { reaped: true });
        match self.execs.values().filter(runs).count() {
            0 => Ok(Accept::Do),
            n => Err(Error::precondition(format!("{n} execs run"))),
        }
    }

    fn up(&self) -> Result<()> {
        match &self.sandbox {
            None => Err(Error::precondition("the sandbox was not made yet")),
            Some(_) if self.stopping => Err(Error::precondition("the sandbox is being stopped")),
            Some(sandbox) if sandbox.exit.is_some() => Err(Error::precondition("the sandbox has ended")),
            Some(_) => Ok(()),
        }
    }

    /// Whether its first process runs.
    pub fn is_running(&self, container: &ContainerId) -> bool {
        self.containers.get(container).is_some_and(|c| matches!(c.phase, Phase::Running { .. }))
    }

    /// Who a container runs as.
    ///
    /// # Errors
    /// `NotFound` for one that was never started.
    pub fn user_of(&self, container: &ContainerId) -> Result<&crate::state::record::User> {
        let state = self.containers.get(container).and_then(|c| c.state.as_ref());
        let state =
            state.ok_or_else(|| Error::not_found(format!("this pod runs no container {}", container.short())))?;
        Ok(&state.process.user)
    }

    /// Containers whose end was not told yet.
    fn live(&self) -> impl Iterator<Item = &ContainerId> {
        let live = |c: &Container| matches!(c.phase, Phase::Running { .. } | Phase::Ending { .. });
        self.containers.iter().filter(move |(_, c)| live(c)).map(|(id, _)| id)
    }

    /// The answer to `List`.
    pub fn list(&self) -> Reply {
        let containers = self.containers.values().filter_map(|c| c.state.clone()).collect();
        Reply::List { sandbox: self.sandbox.clone(), containers }
    }

    /// Pause runs.
    pub fn sandbox_started(&mut self, state: SandboxState) {
        self.sandbox = Some(state);
    }

    /// A container's first process runs.
    pub fn container_started(&mut self, state: ContainerState) {
        let phase = Phase::Running { oom_due: None };
        self.containers.insert(state.container.clone(), Container { phase, state: Some(state) });
    }

    /// A container could not be started, which its record says.
    pub fn container_failed(&mut self, container: ContainerId) {
        self.containers.insert(container, Container { phase: Phase::Failed, state: None });
    }

    /// An exec's first process runs.
    pub fn exec_started(&mut self, key: ExecKey, ticket: Ticket, deadline: Option<Instant>) {
        self.execs.insert(key, Exec::Running { ticket, deadline, killed: false, ended: None });
    }

    /// An exec whose program does not run; others may be left in its cgroup, and were killed. `timed_out`: to be answered, as that, when they
    /// are gone.
    pub fn exec_failed(&mut self, key: ExecKey, ticket: Ticket, timed_out: bool, now: Instant) {
        let ended = Some(ExitStatus::Unknown);
        let exec = match timed_out {
            true => Exec::Running { ticket, deadline: Some(now + KILL_GRACE), killed: true, ended },
            false => Exec::Lingering { reaped: true },
        };
        self.execs.insert(key, exec);
    }

    /// A container that has ended may be forgotten. Only after [`Machine::accept`].
    pub fn forget(&mut self, container: &ContainerId) {
        self.containers.remove(container);
    }

    /// `StopSandbox`: containers first, then pause; answered when both are gone.
    pub fn stop(&mut self, ticket: Ticket) -> Vec<Action> {
        let first = !self.stopping;
        self.stopping = true;
        self.stoppers.push(ticket);
        let mut actions: Vec<Action> = Vec::new();
        if first {
            actions.extend(self.live().cloned().map(Action::KillContainer));
        }
        actions.extend(self.stop_further(first));
        actions
    }

    /// The next step of a stop, if there is one now. `kill`: pause was not killed yet.
    fn stop_further(&mut self, kill: bool) -> Vec<Action> {
        if !self.stopping || self.live().next().is_some() {
            return Vec::new();
        }
        match &self.sandbox {
            Some(sandbox) if sandbox.exit.is_none() => {
                if kill {
                    vec![Action::KillPause]
                } else {
                    Vec::new()
                }
            }
            _ => self.stoppers.drain(..).map(|ticket| Action::Reply(ticket, Reply::Done)).collect(),
        }
    }

    // Events.

    /// Pause has ended, whoever ended it.
    pub fn pause_ended(&mut self, status: ExitStatus) -> Vec<Action> {
        match &mut self.sandbox {
            Some(sandbox) if sandbox.exit.is_none() => sandbox.exit = Some(status),
            _ => return Vec::new(),
        }
        let mut actions = vec![Action::Broadcast(Event::SandboxExited { status })];
        actions.extend(self.stop_further(false));
        actions
    }

    /// A container's first process has ended and was reaped.
    pub fn container_ended(&mut self, container: &ContainerId, end: End, now: Instant) -> Vec<Action> {
        let Some(Container { phase, .. }) = self.containers.get_mut(container) else { return Vec::new() };
        if !matches!(phase, Phase::Running { .. }) {
            return Vec::new();
        }
        *phase = Phase::Ending { end, until: now + KILL_GRACE, recording: false };
        if end.populated { vec![Action::KillContainer(container.clone())] } else { self.record(container, "") }
    }

    /// Nothing is left in a container's cgroup.
    pub fn container_empty(&mut self, container: &ContainerId) -> Vec<Action> {
        self.record(container, "")
    }

    fn record(&mut self, container: &ContainerId, message: &str) -> Vec<Action> {
        let Some(Phase::Ending { end, recording, .. }) = self.containers.get_mut(container).map(|c| &mut c.phase)
        else {
            return Vec::new();
        };
        if std::mem::replace(recording, true) {
            return Vec::new();
        }
        let record = ExitRecord {
            status: end.status,
            finished_at_ns: end.finished_at_ns,
            oom: end.oom,
            message: message.to_owned(),
        };
        vec![Action::Record(container.clone(), record)]
    }

    /// The exit is on disk (or could not be written, which changes nothing here).
    pub fn recorded(&mut self, container: &ContainerId, exit: ExitRecord) -> Vec<Action> {
        let Some(Container { phase, state: Some(state) }) = self.containers.get_mut(container) else {
            return Vec::new();
        };
        *phase = Phase::Ended;
        state.exit = Some(exit.clone());
        let mut actions = vec![Action::Broadcast(Event::ContainerExited { container: container.clone(), exit })];
        actions.extend(self.stop_further(true));
        actions
    }

    /// The kernel killed a process somewhere in the container for memory.
    pub fn memory_killed(&mut self, container: &ContainerId, now: Instant) {
        if let Some(Phase::Running { oom_due }) = self.containers.get_mut(container).map(|c| &mut c.phase) {
            oom_due.get_or_insert(now + OOM_GRACE);
        }
    }

    /// An exec's first process has ended and was reaped. `populated`: others of its cgroup are left.
    pub fn exec_ended(&mut self, key: &ExecKey, status: ExitStatus, populated: bool) -> Vec<Action> {
        let Some(exec) = self.execs.get_mut(key) else { return Vec::new() };
        let mut actions = Vec::new();
        match exec {
            // Whoever hears that it was killed may count on that.
            Exec::Running { killed: true, ended, .. } if populated => *ended = Some(status),
            Exec::Running { ticket, killed, .. } => {
                actions.push(executed(*ticket, status, *killed));
                *exec = Exec::Lingering { reaped: true };
            }
            Exec::Lingering { reaped } => *reaped = true,
        }
        if !populated {
            actions.push(Action::RemoveExec(key.clone()));
        }
        actions
    }

    /// Nobody waits for an exec any more: it ends as at its deadline.
    pub fn cancel_exec(&mut self, key: &ExecKey, now: Instant) -> Vec<Action> {
        let Some(Exec::Running { deadline, killed: killed @ false, .. }) = self.execs.get_mut(key) else {
            return Vec::new();
        };
        (*killed, *deadline) = (true, Some(now + KILL_GRACE));
        vec![Action::KillExec(key.clone(), "cancelled")]
    }

    /// Nothing is left in an exec's cgroup.
    pub fn exec_empty(&mut self, key: &ExecKey) -> Vec<Action> {
        match self.execs.get(key) {
            Some(Exec::Lingering { reaped: true } | Exec::Running { ended: Some(_), .. }) => {
                vec![Action::RemoveExec(key.clone())]
            }
            _ => Vec::new(), // its first process is about to be reaped
        }
    }

    /// An exec's cgroup is gone (or left to the engine, which removes a container's with all below).
    pub fn exec_removed(&mut self, key: &ExecKey) -> Vec<Action> {
        match self.execs.remove(key) {
            Some(Exec::Running { ticket, ended: Some(status), .. }) => vec![executed(ticket, status, true)],
            _ => Vec::new(),
        }
    }

    /// The execs of a container, in whatever phase.
    pub fn execs_of(&self, container: &ContainerId) -> Vec<ExecKey> {
        self.execs.keys().filter(|(of, _)| of == container).cloned().collect()
    }

    /// When [`Machine::tick`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let containers = self.containers.values().filter_map(|c| match &c.phase {
            Phase::Running { oom_due } => *oom_due,
            Phase::Ending { until, recording: false, .. } => Some(*until),
            _ => None,
        });
        let execs = self.execs.values().filter_map(|exec| match exec {
            Exec::Running { deadline, .. } => *deadline,
            Exec::Lingering { .. } => None,
        });
        containers.chain(execs).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut stuck = BTreeSet::new();
        for (id, container) in &mut self.containers {
            match &mut container.phase {
                Phase::Running { oom_due } if oom_due.is_some_and(|due| due <= now) => {
                    *oom_due = None;
                    actions.push(Action::Broadcast(Event::ChildOom { container: id.clone() }));
                }
                Phase::Ending { until, recording: false, .. } if *until <= now => {
                    stuck.insert(id.clone());
                }
                _ => {}
            }
        }
        for id in stuck {
            actions.extend(self.record(&id, "processes of it are left that SIGKILL did not end in 10 s"));
        }
        for (key, exec) in &mut self.execs {
            let Exec::Running { ticket, deadline, killed, ended } = exec else { continue };
            if deadline.is_none_or(|due| due > now) {
                continue;
            }
            if std::mem::replace(killed, true) {
                let message = "killed at its deadline, and did not end in 10 s".to_owned();
                let executed = Executed { status: ended.unwrap_or(ExitStatus::Unknown), timed_out: true, message };
                actions.push(Action::Reply(*ticket, Reply::Executed(executed)));
                *exec = Exec::Lingering { reaped: ended.is_some() };
            } else {
                *deadline = Some(now + KILL_GRACE);
                actions.push(Action::KillExec(key.clone(), "killed at its deadline"));
            }
        }
        actions
    }
}

fn executed(ticket: Ticket, status: ExitStatus, timed_out: bool) -> Action {
    let message = if timed_out { "killed at its deadline".to_owned() } else { String::new() };
    Action::Reply(ticket, Reply::Executed(Executed { status, timed_out, message }))
}

/// The answer that an error makes.
pub fn failed(error: &Error) -> Reply {
    Reply::Failed(Failure::from(error))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
