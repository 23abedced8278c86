//! Taking over from a shim that has died: its pause, its containers, their streams. And giving away what is needed for that: duplicates.
//!
//! What was adopted is no child of this process. Its end is seen by its pidfd like any other's; how it ended is told by the kernel
//! ([`crate::sys::orphan`]) or by nobody. All else is as with a container that was started here.

use super::connection::Frame;
use super::event_loop::{Container, Process, Shim, Source, Watched};
use super::requests::{Answer, carried};
use super::stdio::Streams;
use crate::cgroup::limits_of_pod;
use crate::cgroup::oom::{self, OomCounts};
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::ContainerId;
use crate::state::flight::{Flight, Source as Writer};
use crate::sys::epoll::Interest;
use crate::wire::{Adopt, AdoptContainer, ContainerState, Failure, Reply};
use std::os::fd::{AsFd, OwnedFd};

impl Shim {
    /// Pause and the listening socket.
    pub(super) fn adopt(&mut self, adopt: &Adopt, fds: Vec<OwnedFd>) -> Result<(Reply, Vec<OwnedFd>)> {
        if adopt.pod != self.args.pod {
            return Err(Error::invalid("this shim was made for another pod"));
        }
        let ([listener, pidfd], _) = carried::<2>(fds)?;
        // First of all, as with a new sandbox.
        self.listen(listener)?;
        fault::point("shim.adopt.listening");
        self.flight = Flight::open(&adopt.dir.join("flight"), Writer::Shim).ok(); // the pod matters more
        let token = self.poll.add(pidfd.as_fd(), Source::Pause, Interest::Read)?;
        let pid = adopt.sandbox.pause.pid;
        self.pause = Some(Process { pid, pidfd: Watched { fd: pidfd, token }, child: false });
        self.machine.sandbox_started(adopt.sandbox.clone());
        self.note("taken over from a shim that died");
        fault::point("shim.adopt.sandbox");
        Ok((Reply::Done, Vec::new()))
    }

    /// A container; `frame` is the request, which is kept as the one that starts a container is.
    pub(super) fn adopt_container(&mut self, adopt: &AdoptContainer, frame: Frame) -> Answer {
        let failure = |e: Error| Failure::from(&e);
        let launch = &adopt.launch;
        let ([cgroup, pidfd], streams) = carried::<2>(frame.fds).map_err(failure)?;
        if streams.len() != adopt.streams.len() {
            let text = format!("{} streams came with it, not {}", streams.len(), adopt.streams.len());
            return Err(failure(Error::invalid(text)));
        }
        let named = adopt.streams.iter().copied().zip(streams);
        let (streams, logged) = Streams::adopt(&launch.stdio, named).map_err(failure)?;
        self.noted(logged);
        let (token, _) = self.watch_container(&launch.container, pidfd.as_fd(), &streams).map_err(failure)?;
        // Its cgroup was new when it was started, so what it has counted is its own; the pod's count is not.
        let pod = limits_of_pod(cgroup.as_fd()).ok();
        let now = oom::read(cgroup.as_fd(), pod.as_ref().map(AsFd::as_fd)).unwrap_or_default();
        let pid = adopt.process.process.pid;
        let container = Container {
            process: Some(Process { pid, pidfd: Watched { fd: pidfd, token }, child: false }),
            dir: launch.dir.clone(),
            launch: frame.text.into_boxed_slice(),
            confinement: None,
            runtime: launch.runtime.clone(),
            streams,
            oom: OomCounts { container: None, ..now },
            oom_seen: now,
            memory: self.watch_memory(&launch.container, &cgroup),
            empty: None,
            cgroup,
        };
        let id = launch.container.clone();
        self.note(&format!("{} taken over", id.short()));
        self.containers.insert(id.clone(), container);
        self.machine.container_started(ContainerState {
            container: id,
            process: adopt.process.clone(),
            exit: None,
            warnings: adopt.warnings.clone(),
        });
        fault::point("shim.adopt.container");
        Ok((Reply::Done, Vec::new()))
    }

    /// What another shim would need to go on with a container, or with pause.
    pub(super) fn duplicate(&self, container: Option<&ContainerId>) -> Result<(Reply, Vec<OwnedFd>)> {
        let gone = || Error::precondition("it has ended");
        let (process, streams) = match container {
            None => (self.pause.as_ref(), Vec::new()),
            Some(id) => {
                let container = self.containers.get(id).ok_or_else(gone)?;
                (container.process.as_ref(), container.streams.duplicates()?)
            }
        };
        let pidfd = process.ok_or_else(gone)?.pidfd.fd.try_clone().context(|| "dup a pidfd")?;
        let (streams, mut fds): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
        fds.insert(0, pidfd);
        Ok((Reply::Duplicates { streams }, fds))
    }
}
