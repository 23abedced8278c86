//! What an engine asks for: each verb's steps, in order, with a fault point after each.

use super::connection::Frame;
use super::event_loop::{Container, Process, Shim, Source, Watched};
use super::log::Stream;
use super::machine::{Accept, Action, Ticket, failed};
use super::reap;
use super::stdio::Streams;
use crate::cgroup::{limits_of_pod, oom};
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::{ContainerId, PodId};
use crate::launch::{self, StartError, seccomp_profile};
use crate::state::flight::{Flight, Source as Writer};
use crate::state::model::NamespaceMode;
use crate::state::record::{self, Durability, ExitRecord, ExitStatus, ProcessRecord, SandboxRecord};
use crate::sys::CommandLine;
use crate::sys::epoll::Interest;
use crate::sys::session::pidfd_send_signal;
use crate::wire::{self, ContainerState, Failure, Launch, Reply, Request, SandboxState, ToShim};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// An answer, and the descriptors that go with it.
pub(super) type Answer = Result<(Reply, Vec<OwnedFd>), Failure>;

/// Nanoseconds since the epoch.
pub(super) fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// The descriptors that a request must carry, in its order.
pub(super) fn carried<const N: usize>(fds: Vec<OwnedFd>) -> Result<([OwnedFd; N], Vec<OwnedFd>)> {
    let mut fds = fds.into_iter();
    let first: Vec<OwnedFd> = fds.by_ref().take(N).collect();
    let missing = |got: Vec<OwnedFd>| Error::invalid(format!("{} descriptors came with it, not {N}", got.len()));
    Ok((first.try_into().map_err(missing)?, fds.collect()))
}

fn done() -> Answer {
    Ok((Reply::Done, Vec::new()))
}

impl Shim {
    /// Serves one message.
    ///
    /// # Errors
    /// The message is none of the protocol: the connection is to be closed.
    pub(super) fn request(&mut self, connection: u64, frame: Frame) -> Result<()> {
        let message: ToShim =
            serde_json::from_slice(&frame.text).map_err(|e| Error::invalid(format!("message: {e}")))?;
        let ticket = Ticket { connection, id: message.id };
        if let Request::Forget { container } = &message.request {
            self.roots.forget(container); // also of a container that the machine knows nothing of
        }
        let answer = match self.machine.accept(connection, &message.request) {
            Err(e) => Some(Ok((failed(&e), Vec::new()))),
            Ok(Accept::Already) => Some(done()),
            Ok(Accept::Do) => self.serve_request(ticket, message.request, frame),
        };
        if let Some(answer) = answer {
            let (reply, fds) = answer.unwrap_or_else(|failure| (Reply::Failed(failure), Vec::new()));
            let actions = self.reply(ticket, reply, fds);
            self.apply(actions);
        }
        Ok(())
    }

    /// `None`: answered later, or already.
    fn serve_request(&mut self, ticket: Ticket, request: Request, frame: Frame) -> Option<Answer> {
        let failure = |e: Error| Failure::from(&e);
        Some(match request {
            Request::Hello { versions, owner } => self.hello(ticket.connection, versions, owner).map_err(failure),
            Request::Join => join(frame.fds).map_err(failure),
            Request::CreateSandbox(sandbox) => self.create_sandbox(&sandbox, frame.fds),
            Request::Prepare { container, root } => {
                let made = self.roots.make(ticket.connection, container, root);
                fault::point("shim.prepare.made");
                made.map(|()| (Reply::Done, Vec::new())).map_err(Failure::from)
            }
            Request::Start(launch) => self.start(&launch, frame),
            Request::Exec(exec) => match self.exec(ticket, &exec, frame.fds) {
                Ok(()) => return None,
                Err(failure) => Err(failure),
            },
            Request::Signal { container, signal } => self.signal(&container, signal).map_err(failure),
            Request::Kill { container } => {
                self.note(&format!("kill {}", container.short()));
                let actions = self.kill_container(&container);
                self.apply(actions);
                fault::point("shim.kill.killed");
                done()
            }
            Request::ReopenLog { container } => self.reopen_log(&container).map_err(failure),
            Request::Forget { container } => {
                self.machine.forget(&container);
                fault::point("shim.forget.forgotten");
                done()
            }
            Request::StopSandbox => {
                self.note("stop sandbox");
                let actions = self.machine.stop(ticket);
                self.apply(actions);
                return None;
            }
            Request::CancelExec { container, exec } => {
                let actions = self.machine.cancel_exec(&(container, exec), Instant::now());
                self.apply(actions);
                done()
            }
            Request::List => Ok((self.machine.list(), Vec::new())),
            Request::Duplicate { container } => self.duplicate(container.as_ref()).map_err(failure),
            Request::Adopt(adopt) => self.adopt(&adopt, frame.fds).map_err(failure),
            Request::AdoptContainer(adopt) => self.adopt_container(&adopt, frame),
            Request::Attach { container, outputs } => self.attach(&container, &outputs, frame.fds).map_err(failure),
            Request::CloseInput { container } => {
                self.close_input(&container);
                done()
            }
            Request::Shutdown => {
                self.note("shut down");
                let mut actions = self.reply(ticket, Reply::Done, Vec::new());
                fault::point("shim.shutdown.answered");
                actions.push(Action::Exit);
                self.apply(actions);
                return None;
            }
        })
    }

    fn hello(&mut self, connection: u64, versions: (u32, u32), owner: bool) -> Result<(Reply, Vec<OwnedFd>)> {
        let version = wire::negotiate(versions)?;
        if owner && self.args.instance.is_none() {
            return Err(Error::invalid("a shim of the daemon has no owner: it is not swept"));
        }
        self.machine.greeted(connection, owner);
        self.agreed(connection, version);
        fault::point("shim.hello.greeted");
        let pod = Some(self.args.pod.clone()).filter(|pod| !pod.is_none());
        Ok((Reply::Hello { version, pod }, Vec::new()))
    }

    // The sandbox.

    fn create_sandbox(&mut self, sandbox: &wire::Sandbox, fds: Vec<OwnedFd>) -> Answer {
        let started = Instant::now();
        let state = self.try_create_sandbox(sandbox, fds)?;
        if let Some(flight) = &self.flight {
            flight.note_timed("start pause", started.elapsed());
        }
        let pidfd = self.pause.as_ref().map(|pause| pause.pidfd.fd.try_clone());
        let pidfd = pidfd.transpose().context(|| "dup the pidfd of pause").map_err(|e| Failure::from(&e))?;
        fault::point("shim.create_sandbox.answered");
        Ok((Reply::Sandbox(state), pidfd.into_iter().collect()))
    }

    fn try_create_sandbox(&mut self, sandbox: &wire::Sandbox, fds: Vec<OwnedFd>) -> Result<SandboxState, Failure> {
        let failure = |e: Error| Failure::from(&e);
        let spare = self.args.pod.is_none();
        if spare {
            self.args.pod = sandbox.pod.clone();
        }
        if sandbox.pod != self.args.pod {
            return Err(failure(Error::invalid("this shim was made for another pod")));
        }
        let ([cgroup, listener], _) = carried::<2>(fds).map_err(failure)?;
        // First of all, so that an engine that comes after the one that dies here finds this shim.
        self.listen(listener).map_err(failure)?;
        fault::point("shim.create_sandbox.listening");
        // The verifier takes as long with the device filter as pause with a third of its namespaces.
        let devices = &mut self.devices;
        let meanwhile = || {
            devices.prepare();
            let _ = seccomp_profile::compile_default(seccomp_profile::USUAL); // it is kept for the container that will need it
            if spare && let Ok(mut line) = CommandLine::own() {
                line.replace(PodId::none().as_str(), sandbox.pod.as_str()); // for people; nothing goes by it
            }
        };
        let child = launch::pause::start(sandbox, cgroup.as_fd(), meanwhile).map_err(Failure::from)?;
        fault::point("shim.create_sandbox.cloned");
        // The engine may do without one: an error says so in no place that would matter more than the pod.
        self.flight = Flight::open(&sandbox.dir.join("flight"), Writer::Shim).ok();
        let started_at_ns = now_ns();
        let pause = child.process;
        let written =
            record::write(&sandbox.dir.join("sandbox.json"), &SandboxRecord { pause, started_at_ns }, Durability::Boot);
        let watched = written.and_then(|()| self.poll.add(child.pidfd.as_fd(), Source::Pause, Interest::Read));
        let token = match watched {
            Ok(token) => token,
            Err(e) => {
                reap::now(child.pidfd.as_fd());
                return Err(failure(e));
            }
        };
        fault::point("shim.create_sandbox.recorded");
        self.pause = Some(Process { pid: pause.pid, pidfd: Watched { fd: child.pidfd, token }, child: true });
        let state = SandboxState { pause, started_at_ns, exit: None };
        self.machine.sandbox_started(state.clone());
        Ok(state)
    }

    // Containers.

    fn start(&mut self, launch: &Launch, frame: Frame) -> Answer {
        let began = Instant::now();
        let id = &launch.container;
        match self.try_start(launch, frame) {
            Ok(answer) => {
                if let Some(flight) = &self.flight {
                    flight.note_timed(&format!("start {}", id.short()), began.elapsed());
                }
                fault::point("shim.start.answered");
                Ok(answer)
            }
            Err(failure) => {
                self.note(&format!("start {}: {}", id.short(), failure.message));
                // The record first: whoever hears of the failure finds it.
                let record = ExitRecord {
                    status: ExitStatus::StartFailed { errno: failure.errno },
                    finished_at_ns: now_ns(),
                    oom: None,
                    message: failure.message.clone(),
                };
                let written = record::write(&launch.dir.join("exit.json"), &record, Durability::Boot);
                self.noted(written);
                self.machine.container_failed(id.clone());
                fault::point("shim.start.failed");
                Err(failure)
            }
        }
    }

    fn try_start(&mut self, launch: &Launch, frame: Frame) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let failure = |e: Error| Failure::from(&e);
        let ([cgroup], _) = carried::<1>(frame.fds).map_err(failure)?;
        let pause = self.pause.as_ref().ok_or_else(|| failure(Error::precondition("pause has ended")))?;
        let target = match &launch.namespaces.pid {
            NamespaceMode::Target(of) => self.containers.get(of).and_then(|c| c.process.as_ref()),
            _ => None,
        };
        let (stdio, mut streams) = Streams::open(&launch.stdio).map_err(failure)?;
        let pod = limits_of_pod(cgroup.as_fd()).ok();
        let counts = oom::read(cgroup.as_fd(), pod.as_ref().map(AsFd::as_fd)).unwrap_or_default();
        fault::point("shim.start.prepared");
        let pid_target = target.map(|process| process.pidfd.fd.as_fd());
        let place = launch::spawn::Place { pause: pause.pidfd.fd.as_fd(), pid_target, cgroup: cgroup.as_fd() };
        let root = self.roots.take(&launch.container, &launch.root);
        let started = match &launch.runtime {
            None => {
                let mut logged = Ok(());
                let meanwhile = || {
                    logged = streams.open_log(&launch.stdio);
                    logged.is_ok()
                };
                let started = launch::spawn::start(launch, root, place, &mut self.devices, stdio, meanwhile);
                logged.map_err(failure)?;
                started
            }
            Some(runtime) => {
                streams.open_log(&launch.stdio).map_err(failure)?;
                launch::foreign::start(launch, runtime, place.pause, place.pid_target, place.cgroup, stdio)
            }
        };
        let started = started.map_err(|e: StartError| Failure::from(e))?;
        fault::point("shim.start.cloned");
        let (process, user) = (started.child.process, started.user);
        let process = ProcessRecord { process, started_at_ns: now_ns(), user, pipes: streams.pipes() };
        let written = record::write(&launch.dir.join("process.json"), &process, Durability::Boot);
        let ready = written
            .and_then(|()| started.terminal.map_or(Ok(()), |master| streams.terminal(master)))
            .and_then(|()| self.watch_container(&launch.container, started.child.pidfd.as_fd(), &streams));
        let (token, fds) = match ready {
            Ok(ready) => ready,
            Err(e) => {
                let _ = reap::kill_cgroup(cgroup.as_fd()); // the first process is killed in any case
                reap::now(started.child.pidfd.as_fd());
                return Err(failure(e));
            }
        };
        fault::point("shim.start.recorded");
        let pidfd = Watched { fd: started.child.pidfd, token };
        let container = Container {
            process: Some(Process { pid: process.process.pid, pidfd, child: true }),
            dir: launch.dir.clone(),
            launch: frame.text.into_boxed_slice(),
            confinement: None,
            runtime: launch.runtime.clone(),
            streams,
            oom: counts,
            oom_seen: counts,
            memory: self.watch_memory(&launch.container, &cgroup),
            empty: None,
            cgroup,
        };
        self.containers.insert(launch.container.clone(), container);
        let id = launch.container.clone();
        let state = ContainerState { container: id, process, exit: None, warnings: started.warnings };
        self.machine.container_started(state.clone());
        Ok((Reply::Started(state), fds))
    }

    /// Watches the pidfd and the streams; gives duplicates of them all for the engine, pidfd first.
    pub(super) fn watch_container(
        &mut self,
        id: &ContainerId,
        pidfd: std::os::fd::BorrowedFd<'_>,
        streams: &Streams,
    ) -> Result<(u64, Vec<OwnedFd>)> {
        let mut fds = vec![pidfd.try_clone_to_owned().context(|| "dup a pidfd")?];
        fds.extend(streams.duplicates()?.into_iter().map(|(_, fd)| fd));
        let token = self.poll.add(pidfd, Source::Container(id.clone()), Interest::Read)?;
        let mut watched: Vec<(Stream, u64)> = Vec::new();
        for (stream, fd) in streams.fds() {
            match self.poll.add(fd, Source::Output(id.clone(), stream), Interest::Read) {
                Ok(token) => watched.push((stream, token)),
                Err(e) => {
                    self.poll.remove(pidfd, token);
                    for ((_, fd), (_, token)) in streams.fds().zip(watched) {
                        self.poll.remove(fd, token);
                    }
                    return Err(e);
                }
            }
        }
        Ok((token, fds))
    }

    fn signal(&mut self, id: &ContainerId, signal: i32) -> Result<(Reply, Vec<OwnedFd>)> {
        self.note(&format!("signal {signal} to {}", id.short()));
        let process = self.containers.get(id).and_then(|container| container.process.as_ref());
        if let Some(process) = process {
            match pidfd_send_signal(process.pidfd.fd.as_fd(), signal) {
                // Ended, and about to be reaped: as good as delivered.
                Err(e) if e.raw_os_error() == Some(3) => {}
                sent => sent.context(|| format!("signal {signal} to container {}", id.short()))?,
            }
        }
        fault::point("shim.signal.sent");
        Ok((Reply::Done, Vec::new()))
    }

    fn reopen_log(&mut self, id: &ContainerId) -> Result<(Reply, Vec<OwnedFd>)> {
        if let Some(container) = self.containers.get_mut(id) {
            container.streams.reopen_log()?;
        }
        fault::point("shim.reopen_log.reopened");
        Ok((Reply::Done, Vec::new()))
    }
}

/// Moves this process into the shims' cgroup.
fn join(fds: Vec<OwnedFd>) -> Result<(Reply, Vec<OwnedFd>)> {
    let ([procs], _) = carried::<1>(fds)?;
    std::io::Write::write_all(&mut std::fs::File::from(procs), b"0").context(|| "write cgroup.procs of the shims")?;
    fault::point("shim.join.joined");
    Ok((Reply::Done, Vec::new()))
}
