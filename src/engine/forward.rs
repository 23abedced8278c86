//! Port-forward: a connection to a port in a pod, from where its own processes would make it.

use super::adopt::find_process;
use super::{Engine, blocking};
use crate::error::{Context, Error, Kind, Result};
use crate::id::PodId;
use crate::sys::ns;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};

/// How long a connection within one network namespace may take to be made: a listener whose queue is full does not answer at all.
const CONNECT_WAIT: Duration = Duration::from_secs(30);

impl Engine {
    /// Connects to `localhost:port` in the pod's network namespace: 127.0.0.1, then ::1.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` unless the pod is ready, `Unavailable` when nobody listens.
    pub async fn connect_to_port(&self, pod: &PodId, port: u16) -> Result<TcpStream> {
        let mut refused = None;
        for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), (Ipv6Addr::LOCALHOST, port).into()] {
            match self.connect_to(pod, address).await {
                Err(e) if e.kind() == Kind::Unavailable => refused = refused.or(Some(e)),
                done => return done,
            }
        }
        Err(refused.unwrap_or_else(|| Error::internal("no address"))) // there are two
    }

    async fn connect_to(&self, pod: &PodId, address: SocketAddr) -> Result<TcpStream> {
        let pause = self.pause_of(pod)?;
        let doing = || format!("connect to {address} in pod {}", pod.short());
        let make = move || ns::tcp_socket_in(pause.as_fd(), address.is_ipv6()).context(|| "make a socket");
        let socket = match blocking(make).await {
            // A kernel without IPv6.
            Err(e) if address.is_ipv6() => return Err(e.with_kind(Kind::Unavailable)).context(doing),
            socket => socket.context(doing)?,
        };
        let socket = TcpSocket::from_std_stream(socket.into());
        match tokio::time::timeout(CONNECT_WAIT, socket.connect(address)).await {
            Ok(connected) => connected.context(doing).map_err(|e| e.with_kind(Kind::Unavailable)),
            Err(_) => Err(Error::new(Kind::Unavailable, "nobody answers")).context(doing),
        }
    }

    /// Waits until a pod is not ready any more.
    pub async fn until_not_ready(&self, id: &PodId) {
        let Ok(pod) = self.pod(id) else { return };
        let ended = pod.wait(|facts| {
            let ready = facts.sandbox.as_ref().is_some_and(|sandbox| sandbox.exit.is_none()) && !facts.stopped;
            Ok((!ready).then_some(()))
        });
        let _ = ended.await; // an error: it is gone
    }

    /// The pidfd of a pod's pause, whose network namespace is the pod's.
    fn pause_of(&self, id: &PodId) -> Result<OwnedFd> {
        let pod = self.pod(id)?;
        let facts = pod.facts();
        let not_ready = || Error::precondition(format!("pod {} is not ready", id.short()));
        let running = facts.sandbox.as_ref().filter(|sandbox| sandbox.exit.is_none() && !facts.stopped);
        let pause = running.ok_or_else(not_ready)?.pause;
        find_process(pause).ok_or_else(not_ready)
    }
}
