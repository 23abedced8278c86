//! `podwright port-forward`: ports of this host that lead into a pod, for as long as the command runs.

use super::terminal::Ends;
use super::{Session, find, output};
use crate::engine::Engine;
use crate::error::{Context, Error, Kind, Result};
use crate::id::PodId;
use std::fmt::Write as _;
use std::net::IpAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const EXAMPLES: &str = "\
Examples:
  podwright port-forward web 8080:80            127.0.0.1:8080 leads to port 80 of the pod, until Ctrl-C
  podwright port-forward web 5432 :9090         5432 to 5432, and a free port to 9090
  podwright port-forward web 80:80 --address ::

It connects to localhost in the pod's network namespace, as a program of the pod would: what listens on 127.0.0.1 there is reached as well.";

/// The most ports of one command.
const MAX_PORTS: usize = 64;
/// The most connections at a time; one more waits in its socket's queue.
const MAX_CONNECTIONS: usize = 1024;

/// Forwards ports of this host to ports of a pod, until it is interrupted
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PortForwardArgs {
    /// POD, or the first digits of an id
    target: String,
    /// [LOCAL:]PORT; without LOCAL the same, with an empty one any that is free
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<String>,
    /// Address of this host to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    address: IpAddr,
}

pub(super) fn run(args: &PortForwardArgs, session: &Session) -> Result<u8> {
    let ports = args.ports.iter().map(|text| parse(text)).collect::<Result<Vec<_>>>()?;
    if ports.len() > MAX_PORTS {
        return Err(Error::invalid(format!("{} ports; it is {MAX_PORTS} at most", ports.len())));
    }
    super::require_root("port-forward")?;
    super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let found = match find::target(&all, &args.target)? {
            find::Target::Pod(found) | find::Target::Container(found, _) => found,
        };
        let (engine, pod) = (&found.engine, &found.pod.record.id);
        if !found.pod.ready {
            return Err(Error::precondition(format!("pod {} is not ready", found.name())));
        }
        let mut ends = Ends::new()?;
        let (mut listeners, mut said) = (Vec::new(), String::new());
        for (local, remote) in ports {
            let doing = || format!("listen on {} port {local}", args.address);
            let listener = TcpListener::bind((args.address, local)).await.context(doing)?;
            let address = listener.local_addr().context(doing)?;
            let _ = writeln!(said, "{address} -> {remote}"); // a String takes it
            listeners.push((listener, remote));
        }
        output::print(&said)?;
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = accept(&listeners), if connections.len() < MAX_CONNECTIONS => {
                    let (stream, remote) = accepted?;
                    connections.spawn(forward(engine.clone(), pod.clone(), stream, remote));
                }
                Some(_) = connections.join_next() => {}
                () = engine.until_not_ready(pod) => {
                    return Err(Error::new(Kind::Unavailable, format!("pod {} has ended", found.name())));
                }
                code = ends.next() => return Ok(if code == INTERRUPTED { 0 } else { code }),
            }
        }
    })
}

/// Ctrl-C is how this is ended.
const INTERRUPTED: u8 = 130;

async fn accept(listeners: &[(TcpListener, u16)]) -> Result<(TcpStream, u16)> {
    let waiting = listeners.iter().map(|(listener, remote)| {
        Box::pin(async move { (listener.accept().await.map(|(stream, _)| stream), *remote) })
    });
    let (accepted, remote) = first(waiting.collect()).await;
    Ok((accepted.context(|| "accept a connection")?, remote))
}

/// The first that is ready.
async fn first<T>(mut all: Vec<std::pin::Pin<Box<impl Future<Output = T>>>>) -> T {
    std::future::poll_fn(|context| {
        let ready = all.iter_mut().find_map(|one| match one.as_mut().poll(context) {
            std::task::Poll::Ready(done) => Some(done),
            std::task::Poll::Pending => None,
        });
        ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

/// One connection, until both directions have ended. Why there is none is said before its client sees it.
async fn forward(engine: Engine, pod: PodId, mut ours: TcpStream, port: u16) {
    match engine.connect_to_port(&pod, port).await {
        Ok(mut theirs) => {
            let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await; // one side has cut it, which the other is told
        }
        Err(e) => output::note(&format!("podwright: {e}")),
    }
}

/// `LOCAL:REMOTE`, `REMOTE`, `:REMOTE`.
fn parse(text: &str) -> Result<(u16, u16)> {
    let wrong = || Error::invalid(format!("port {text:?} is not [LOCAL:]PORT, each 1 to 65535"));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    match text.split_once(':') {
        None => number(text).map(|port| (port, port)),
        Some(("", remote)) => Ok((0, number(remote)?)),
        Some((local, remote)) => Ok((number(local)?, number(remote)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_with_kubectl() {
        assert_eq!(parse("80").expect("valid"), (80, 80));
        assert_eq!(parse("8080:80").expect("valid"), (8080, 80));
        assert_eq!(parse(":80").expect("valid"), (0, 80));
        for bad in ["", ":", "0", "80:", "80:0", "65536", "x:80", "1:2:3", "-1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
