//! A further process in a container: its cgroup `exec-N` below the container's, its deadline, its end.
//!
//! Its streams are the engine's, so a process in the background that holds them holds up nobody here: the answer comes when
//! the first process has ended. What it leaves in the background lives on as part of the container, as in other runtimes, and
//! `exec-N` goes when that does. At the deadline, or when whoever asked for it hangs up first, all of it is killed; that the deadline
//! has come is answered when `exec-N` is empty.

use super::event_loop::{Container, Process, Shim, Source, Watched};
use super::machine::{Action, ExecKey, Ticket};
use super::reap::{is_populated, kill_cgroup, reap, still_populated, watch_changes};
use super::requests::carried;
use crate::error::{Context, Error};
use crate::fault;
use crate::id::ContainerId;
use crate::launch::{self, Child, ChildStdio, libc_errno};
use crate::state::record::User;
use crate::sys::epoll::Interest;
use crate::sys::{fs, socket};
use crate::wire::{self, Failure, Launch, Request, ToShim};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Permission bits of a cgroup's directory.
const CGROUP_MODE: u32 = 0o755;

/// An exec whose cgroup is still there.
#[derive(Debug)]
pub(super) struct RunningExec {
    pub(super) cgroup: OwnedFd,
    /// `None` once reaped.
    pub(super) process: Option<Process>,
    empty: Option<Watched>,
}

/// The request that started a container, or handed it over, read again.
fn launch_of(text: &[u8]) -> Result<Box<Launch>, Failure> {
    match serde_json::from_slice(text) {
        Ok(ToShim { request: Request::Start(launch), .. }) => Ok(launch),
        Ok(ToShim { request: Request::AdoptContainer(adopt), .. }) => Ok(Box::new(adopt.launch)),
        _ => Err(Failure::from(&Error::internal("the request that started the container is not readable any more"))),
    }
}

impl Container {
    /// Starts it in its cgroup, with what came with the request.
    fn start_exec(
        &mut self,
        exec: &wire::Exec,
        user: &User,
        cgroup: BorrowedFd<'_>,
        fds: Vec<OwnedFd>,
    ) -> Result<Child, Failure> {
        let failure = |e: Error| Failure::from(&e);
        let Some(process) = &self.process else { return Err(failure(Error::precondition("the container has ended"))) };
        let init = process.pidfd.fd.as_fd();
        let confinement = match &mut self.confinement {
            Some(confinement) => confinement,
            none => none.insert(launch::exec::confinement(&*launch_of(&self.launch)?).map_err(Failure::from)?),
        };
        let Some(runtime) = &self.runtime else {
            let ([stdin, stdout, stderr], _) = carried::<3>(fds).map_err(failure)?;
            let stdio = ChildStdio::Fds { stdin, stdout, stderr };
            return launch::exec::start(exec, confinement, user, init, cgroup, stdio).map_err(Failure::from);
        };
        confinement.check(exec).map_err(Failure::from)?;
        let launch = launch_of(&self.launch)?;
        if !exec.tty {
            let ([stdin, stdout, stderr], _) = carried::<3>(fds).map_err(failure)?;
            let stdio = ChildStdio::Fds { stdin, stdout, stderr };
            return launch::foreign::exec(exec, &launch, runtime, user, init, stdio)
                .map(|(child, _)| child)
                .map_err(Failure::from);
        }
        let ([socket], _) = carried::<1>(fds).map_err(failure)?;
        let (child, master) = launch::foreign::exec(exec, &launch, runtime, user, init, ChildStdio::Terminal)?;
        if let Some(master) = master {
            // Who is not there to take it has hung up, and so has the terminal then.
            let _ = socket::sendmsg(&socket, b"t", &[master.as_fd()]);
        }
        Ok(child)
    }
}

impl Shim {
    /// Starts it. Answered at its end.
    pub(super) fn exec(&mut self, ticket: Ticket, exec: &wire::Exec, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let failure = |e: Error| Failure::from(&e);
        let began = Instant::now();
        let key = (exec.container.clone(), exec.exec);
        let user = self.machine.user_of(&exec.container).map_err(failure)?.clone();
        let container = self.containers.get_mut(&exec.container);
        let container = container.ok_or_else(|| failure(Error::precondition("the container has ended")))?;
        let name = exec.exec.to_string();
        let parent = container.cgroup.as_fd();
        let made = fs::mkdir_at(parent, &name, CGROUP_MODE).and_then(|()| fs::open_dir_at(parent, &name));
        let cgroup = made.context(|| format!("make cgroup {name}")).map_err(failure)?;
        fault::point("shim.exec.cgroup");
        let child = match container.start_exec(exec, &user, cgroup.as_fd(), fds) {
            Ok(child) => child,
            Err(e) => {
                let over = exec.timeout_ns > 0 && began.elapsed() >= Duration::from_nanos(exec.timeout_ns);
                let late = over && e.errno == libc_errno::ETIMEDOUT;
                return self.exec_failed(key, ticket, cgroup, e, late);
            }
        };
        fault::point("shim.exec.cloned");
        let token = match self.poll.add(child.pidfd.as_fd(), Source::Exec(key.clone()), Interest::Read) {
            Ok(token) => token,
            Err(e) => {
                let _ = kill_cgroup(cgroup.as_fd()); // its first process is killed in any case
                super::reap::now(child.pidfd.as_fd());
                return Err(failure(e));
            }
        };
        let process = Process { pid: child.process.pid, pidfd: Watched { fd: child.pidfd, token }, child: true };
        self.execs.insert(key.clone(), RunningExec { cgroup, process: Some(process), empty: None });
        let deadline = (exec.timeout_ns > 0).then(|| began.checked_add(Duration::from_nanos(exec.timeout_ns)));
        self.machine.exec_started(key, ticket, deadline.flatten());
        if let Some(flight) = &self.flight {
            flight.note_timed(&format!("{name} in {}", exec.container.short()), began.elapsed());
        }
        Ok(())
    }

    /// Another runtime may have made the process, and not told it: it is killed, and its cgroup goes when it does. `late`: its time was over.
    fn exec_failed(
        &mut self,
        key: ExecKey,
        ticket: Ticket,
        cgroup: OwnedFd,
        failure: Failure,
        late: bool,
    ) -> Result<(), Failure> {
        let killed = kill_cgroup(cgroup.as_fd());
        self.noted(killed);
        let container = self.containers.get(&key.0);
        let removed = container.map(|container| fs::remove_dir_at(container.cgroup.as_fd(), &key.1.to_string()));
        if !late && matches!(removed, Some(Ok(()))) {
            return Err(failure); // as a rule
        }
        let source = Source::ExecEmpty(key.clone());
        let empty = watch_changes(&mut self.poll, cgroup.as_fd(), "cgroup.events", source);
        self.execs.insert(key.clone(), RunningExec { cgroup, process: None, empty });
        self.machine.exec_failed(key.clone(), ticket, late, Instant::now());
        self.exec_may_be_empty(&key);
        if late { Ok(()) } else { Err(failure) }
    }

    pub(super) fn kill_exec(&mut self, key: &ExecKey, why: &str) -> Vec<Action> {
        self.note(&format!("{} in {}: {why}", key.1, key.0.short()));
        if let Some(exec) = self.execs.get(key) {
            let killed = kill_cgroup(exec.cgroup.as_fd());
            fault::point("shim.exec.killed");
            self.noted(killed);
        }
        Vec::new()
    }

    pub(super) fn reap_exec(&mut self, key: &ExecKey) {
        let actions = self.exec_ended(key);
        self.apply(actions);
        self.exec_may_be_empty(key);
    }

    fn exec_ended(&mut self, key: &ExecKey) -> Vec<Action> {
        let Some(exec) = self.execs.get_mut(key) else { return Vec::new() };
        let Some(status) = exec.process.as_ref().and_then(reap) else {
            return Vec::new();
        };
        if let Some(process) = exec.process.take() {
            self.poll.remove(process.pidfd.fd.as_fd(), process.pidfd.token);
        }
        let populated = is_populated(exec.cgroup.as_fd());
        if populated {
            let source = Source::ExecEmpty(key.clone());
            exec.empty = watch_changes(&mut self.poll, exec.cgroup.as_fd(), "cgroup.events", source);
        }
        fault::point("shim.exec.reaped");
        self.machine.exec_ended(key, status, populated)
    }

    pub(super) fn exec_may_be_empty(&mut self, key: &ExecKey) {
        let Some(exec) = self.execs.get(key) else { return };
        let populated = match &exec.empty {
            Some(events) => still_populated(events.fd.as_fd()),
            None => is_populated(exec.cgroup.as_fd()),
        };
        if !populated {
            let actions = self.machine.exec_empty(key);
            self.apply(actions);
        }
    }

    pub(super) fn remove_exec(&mut self, key: &ExecKey) -> Vec<Action> {
        if let Some(exec) = self.execs.remove(key) {
            if let Some(empty) = &exec.empty {
                self.poll.remove(empty.fd.as_fd(), empty.token);
            }
            if let Some(container) = self.containers.get(&key.0) {
                // EBUSY: it made cgroups of its own in there. The engine removes the container's with all below.
                let _ = fs::remove_dir_at(container.cgroup.as_fd(), &key.1.to_string());
            }
        }
        self.machine.exec_removed(key)
    }

    /// The container has ended and nothing of it runs: its execs are answered and their cgroups removed.
    pub(super) fn end_execs(&mut self, container: &ContainerId) -> Vec<Action> {
        let mut actions = Vec::new();
        for key in self.machine.execs_of(container) {
            actions.extend(self.exec_ended(&key));
            if self.execs.get(&key).is_some_and(|exec| exec.process.is_none()) {
                actions.extend(self.remove_exec(&key));
            }
        }
        actions
    }
}
