//! The loop: waits, hands each event to who knows it, and carries out what the machine says.

use super::ShimArgs;
use super::connection::{Connection, Received};
use super::exec::RunningExec;
use super::log::Stream;
use super::machine::{Action, ExecKey, FIRST, Machine, Ticket};
use super::roots::Roots;
use super::stdio::{Buffers, Progress, Streams};
use crate::cgroup::oom::OomCounts;
use crate::error::{Context, Error, Result};
use crate::id::ContainerId;
use crate::launch::{self, devices::Devices, foreign};
use crate::state::flight::Flight;
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::signalfd::ChildSignals;
use crate::wire::{self, Event, Reply, ToEngine};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long buffers stay allocated after the last output: a chatty container keeps them, a quiet pod costs nothing.
const IDLE: Duration = Duration::from_millis(500);
/// How many messages of one connection are served before the others are looked at.
const FRAMES_A_TURN: usize = 16;
/// How many connections are accepted at a time.
const ACCEPTS_A_TURN: usize = 16;

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Exit,
    /// Everything was killed; the rest is to be swept.
    Sweep,
}

/// What a watched descriptor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Signals,
    Listener,
    Connection(u64),
    Pause,
    Container(ContainerId),
    Output(ContainerId, Stream),
    /// A pipe that a container's output is copied into, by its number: its reader has gone.
    Tap(ContainerId, u64),
    /// cgroup.events of a container that is ending.
    ContainerEmpty(ContainerId),
    /// memory.events of a running container.
    Memory(ContainerId),
    Exec(ExecKey),
    /// cgroup.events of an exec whose first process has ended.
    ExecEmpty(ExecKey),
}

/// The epoll instance and what its tokens mean. A token is never used twice, so an event that was on its way when its source
/// went means nothing.
#[derive(Debug)]
pub(super) struct Poll {
    epoll: Epoll,
    sources: BTreeMap<u64, Source>,
    next: u64,
}

impl Poll {
    pub(super) fn add(&mut self, fd: BorrowedFd<'_>, source: Source, interest: Interest) -> Result<u64> {
        let token = self.next;
        self.epoll.add(fd, token, interest).context(|| format!("watch {source:?}"))?;
        self.next += 1;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Before the descriptor is closed: an engine holds duplicates of most, which would keep it watched.
    pub(super) fn remove(&mut self, fd: BorrowedFd<'_>, token: u64) {
        if self.sources.remove(&token).is_some() {
            let _ = self.epoll.delete(fd); // fails only if it was never added
        }
    }

    /// Stops watching whatever is `source`.
    pub(super) fn remove_source(&mut self, fd: BorrowedFd<'_>, source: &Source) {
        let token = self.sources.iter().find(|(_, s)| *s == source).map(|(token, _)| *token);
        if let Some(token) = token {
            self.remove(fd, token);
        }
    }
}

/// Waits for signals and nothing else.
pub(super) fn wait_for(signals: &ChildSignals, at_most: Duration) -> Result<()> {
    let only = Epoll::new().context(|| "epoll_create1")?;
    only.add(signals, 0, Interest::Read).context(|| "watch signals")?;
    only.wait(Some(at_most), &mut Vec::new()).context(|| "epoll_wait")
}

/// A descriptor with its token.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) fd: OwnedFd,
    pub(super) token: u64,
}

/// A process whose end is still to be learned.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) pidfd: Watched,
    /// Ours to be reaped; else it was adopted.
    pub(super) child: bool,
}

/// A container whose end was not told yet.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) cgroup: OwnedFd,
    /// `None` once reaped.
    pub(super) process: Option<Process>,
    pub(super) dir: PathBuf,
    /// The request that started it, as it came: an exec is confined as it says. The text is a fraction of what it is parsed.
    pub(super) launch: Box<[u8]>,
    /// What its execs start from, kept from the first one on: probes come every second, and a filter takes a while to compile.
    pub(super) confinement: Option<launch::exec::Confinement>,
    /// Whose it is; `None`: this shim's.
    pub(super) runtime: Option<crate::wire::Runtime>,
    pub(super) streams: Streams,
    /// Memory counts before it was started.
    pub(super) oom: OomCounts,
    /// Memory counts when a process below it was last seen killed.
    pub(super) oom_seen: OomCounts,
    pub(super) memory: Option<Watched>,
    pub(super) empty: Option<Watched>,
}

#[derive(Debug)]
struct Peer {
    connection: Connection,
    token: u64,
    /// Watched for writing too.
    writing: bool,
    /// Of the protocol; 0 before it was agreed on.
    version: u32,
}

/// Everything a shim holds.
#[derive(Debug)]
pub(super) struct Shim {
    pub(super) args: ShimArgs,
    pub(super) poll: Poll,
    pub(super) machine: Machine,
    pub(super) signals: ChildSignals,
    peers: BTreeMap<u64, Peer>,
    next_peer: u64,
    listener: Option<(UnixListener, u64)>,
    pub(super) pause: Option<Process>,
    /// Device filters loaded for this pod's containers.
    pub(super) devices: Devices,
    /// Of containers that were not started yet.
    pub(super) roots: Roots,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    pub(super) execs: BTreeMap<ExecKey, RunningExec>,
    pub(super) buffers: Buffers,
    pub(super) flight: Option<Flight>,
    /// Something was allocated since memory was last given back.
    pub(super) busy: bool,
    pub(super) outcome: Option<Outcome>,
}

impl Shim {
    pub(super) fn new(args: ShimArgs, first: UnixStream) -> Result<Self> {
        let mut poll = Poll { epoll: Epoll::new().context(|| "epoll_create1")?, sources: BTreeMap::new(), next: 0 };
        let signals = ChildSignals::block().context(|| "signalfd")?;
        poll.add(signals.as_fd(), Source::Signals, Interest::Read)?;
        let machine = Machine::new(args.instance.is_some());
        let mut shim = Shim {
            args,
            poll,
            machine,
            signals,
            peers: BTreeMap::new(),
            next_peer: FIRST,
            listener: None,
            pause: None,
            devices: Devices::default(),
            roots: Roots::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            buffers: Buffers::default(),
            flight: None,
            busy: true,
            outcome: None,
        };
        shim.connect(first)?;
        Ok(shim)
    }

    /// Serves until the machine says exit or sweep.
    pub(super) fn run(&mut self) -> Result<Outcome> {
        let mut ready = Vec::new();
        let mut forget = false;
        loop {
            let timeout = self.timeout();
            // At the very last: whatever runs after it is mapped again, 64 KiB at a time.
            if std::mem::take(&mut forget) {
                crate::sys::forget_program();
            }
            self.poll.epoll.wait(timeout, &mut ready).context(|| "epoll_wait")?;
            if ready.is_empty() && self.busy {
                self.release();
                forget = true;
            }
            for event in &ready {
                self.dispatch(*event);
                if let Some(outcome) = self.outcome {
                    return Ok(outcome);
                }
            }
            let actions = self.machine.tick(Instant::now());
            self.apply(actions);
            if let Some(outcome) = self.outcome {
                return Ok(outcome);
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let due = self.machine.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        // A due time that is over before the idle one comes first, and then the idle one starts anew.
        if self.busy { Some(due.map_or(IDLE, |due| due.min(IDLE))) } else { due }
    }

    /// Gives memory back to the kernel: nothing came for a while.
    fn release(&mut self) {
        self.busy = false;
        self.buffers.release();
        for container in self.containers.values_mut() {
            container.streams.release();
        }
        crate::sys::malloc_trim();
    }

    fn dispatch(&mut self, ready: Ready) {
        let Some(source) = self.poll.sources.get(&ready.token).cloned() else { return };
        match source {
            Source::Signals => self.reap_children(),
            Source::Listener => self.accept(),
            Source::Connection(number) => self.serve(number, ready),
            Source::Pause => self.reap_pause(),
            Source::Container(id) => self.reap_container(&id),
            Source::Output(id, stream) => self.output(&id, stream),
            Source::Tap(id, number) => self.detach(&id, number),
            Source::ContainerEmpty(id) => self.container_may_be_empty(&id),
            Source::Memory(id) => self.memory_changed(&id),
            Source::Exec(key) => self.reap_exec(&key),
            Source::ExecEmpty(key) => self.exec_may_be_empty(&key),
        }
    }

    /// Does what the machine said, and what follows from that.
    pub(super) fn apply(&mut self, actions: Vec<Action>) {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            let further = match action {
                Action::KillContainer(id) => self.kill_container(&id),
                Action::Record(id, record) => self.record(&id, record),
                Action::KillExec(key, why) => self.kill_exec(&key, why),
                Action::RemoveExec(key) => self.remove_exec(&key),
                Action::Forget(id, runtime, dir) => {
                    let deleted = foreign::delete(&runtime, &dir, id.as_str());
                    self.noted(deleted.map_err(Error::from));
                    Vec::new()
                }
                Action::KillPause => self.kill_pause(),
                Action::Reply(ticket, reply) => self.reply(ticket, reply, Vec::new()),
                Action::Broadcast(event) => self.broadcast(&event),
                Action::Sweep => {
                    self.note("owner is gone: kill everything");
                    self.kill_everything();
                    self.end(Outcome::Sweep)
                }
                Action::Exit => self.end(Outcome::Exit),
            };
            queue.extend(further);
        }
    }

    fn end(&mut self, outcome: Outcome) -> Vec<Action> {
        self.outcome.get_or_insert(outcome);
        Vec::new()
    }

    /// A line in the flight recorder; without one there is nobody to tell.
    pub(super) fn note(&self, step: &str) {
        if let Some(flight) = &self.flight {
            flight.note(step);
        }
    }

    /// An error that has no request to answer: noted, for there is no other place for it.
    pub(super) fn noted(&self, result: Result<()>) {
        if let Err(e) = result {
            self.note(&e.to_string());
        }
    }

    // Output.

    fn output(&mut self, id: &ContainerId, stream: Stream) {
        self.busy = true;
        let Some(container) = self.containers.get_mut(id) else { return };
        let (progress, logged) = container.streams.read(stream, &mut self.buffers);
        self.noted(logged);
        if progress == Progress::Ended {
            self.end_output(id, stream);
        }
    }

    fn end_output(&mut self, id: &ContainerId, stream: Stream) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some((_, fd)) = container.streams.fds().find(|(s, _)| *s == stream) {
            self.poll.remove_source(fd, &Source::Output(id.clone(), stream));
        }
        let logged = container.streams.end(stream, &mut self.buffers);
        self.noted(logged);
    }

    // Connections.

    fn connect(&mut self, socket: UnixStream) -> Result<()> {
        let number = self.next_peer;
        let token = self.poll.add(socket.as_fd(), Source::Connection(number), Interest::Read)?;
        self.next_peer += 1;
        self.peers.insert(number, Peer { connection: Connection::new(socket), token, writing: false, version: 0 });
        self.machine.connected(number);
        Ok(())
    }

    /// Serves further connections from this socket.
    pub(super) fn listen(&mut self, socket: OwnedFd) -> Result<()> {
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true).context(|| "set O_NONBLOCK")?;
        let token = self.poll.add(listener.as_fd(), Source::Listener, Interest::Read)?;
        if let Some((old, token)) = self.listener.replace((listener, token)) {
            self.poll.remove(old.as_fd(), token);
        }
        self.machine.listening();
        Ok(())
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_A_TURN {
            let Some((listener, _)) = &self.listener else { return };
            match listener.accept() {
                // One too many is closed at once.
                Ok((socket, _)) if self.peers.len() < wire::MAX_CONNECTIONS => {
                    let connected = self.connect(socket);
                    self.noted(connected);
                }
                Ok(_) => {}
                Err(_) => return, // nothing more, or no descriptor: the next event tries again
            }
        }
    }

    fn serve(&mut self, number: u64, ready: Ready) {
        self.busy = true;
        for _ in 0..FRAMES_A_TURN {
            let Some(peer) = self.peers.get_mut(&number) else { return };
            if ready.writable && peer.connection.flush().is_err() {
                return self.hang_up(number);
            }
            if !ready.readable {
                break;
            }
            match peer.connection.receive() {
                Ok(Received::Frame(frame)) => {
                    if let Err(e) = self.request(number, frame) {
                        self.note(&format!("hang up on a peer: {e}"));
                        return self.hang_up(number);
                    }
                }
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => return self.hang_up(number),
                Err(e) => {
                    self.note(&format!("hang up on a peer: {e}"));
                    return self.hang_up(number);
                }
            }
            if self.outcome.is_some() {
                return;
            }
        }
        self.watch_writing(number);
    }

    fn watch_writing(&mut self, number: u64) {
        let Some(peer) = self.peers.get_mut(&number) else { return };
        let wants = peer.connection.wants_write();
        if wants != peer.writing {
            peer.writing = wants;
            let interest = if wants { Interest::ReadWrite } else { Interest::Read };
            let _ = self.poll.epoll.modify(&peer.connection, peer.token, interest); // it is watched until it is closed
        }
    }

    pub(super) fn hang_up(&mut self, number: u64) {
        if let Some(peer) = self.peers.remove(&number) {
            self.poll.remove(peer.connection.as_fd(), peer.token);
        }
        let actions = self.closed(number);
        self.apply(actions);
    }

    /// Answers a request; a peer that is gone or does not read is hung up on.
    pub(super) fn reply(&mut self, ticket: Ticket, reply: Reply, fds: Vec<OwnedFd>) -> Vec<Action> {
        self.send(ticket.connection, &ToEngine::Reply { id: ticket.id, reply }, fds)
    }

    /// From here on this peer is told what that version has.
    pub(super) fn agreed(&mut self, connection: u64, version: u32) {
        if let Some(peer) = self.peers.get_mut(&connection) {
            peer.version = version;
        }
    }

    fn broadcast(&mut self, event: &Event) -> Vec<Action> {
        let message = ToEngine::Event(event.clone());
        let old = |peer: &Peer| peer.version != 0 && peer.version < event.since();
        let peers: Vec<u64> = self.peers.iter().filter(|(_, peer)| !old(peer)).map(|(number, _)| *number).collect();
        peers.into_iter().flat_map(|number| self.send(number, &message, Vec::new())).collect()
    }

    fn send(&mut self, number: u64, message: &ToEngine, fds: Vec<OwnedFd>) -> Vec<Action> {
        self.busy = true;
        let Some(peer) = self.peers.get_mut(&number) else { return Vec::new() };
        if peer.connection.send(message, fds).is_ok() {
            self.watch_writing(number);
            return Vec::new();
        }
        if let Some(peer) = self.peers.remove(&number) {
            self.poll.remove(peer.connection.as_fd(), peer.token);
        }
        self.closed(number)
    }

    fn closed(&mut self, number: u64) -> Vec<Action> {
        self.roots.forget_connection(number);
        self.machine.closed(number)
    }
}
