//! Port-forward: each pair of a client's streams, or of channels, is one TCP connection in the pod's network namespace.

use super::flow::{Arrival, CHUNK_BYTES, Gone, Incoming};
use super::session::Outgoing;
use super::spdy::header_block::Headers;
use super::{outcome, spdy, websocket};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::id::PodId;
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long the second stream of a pair may be behind the first (k8s.io/cri-streaming, portforward/httpstream.go).
const PAIR_WAIT: Duration = Duration::from_secs(30);
/// How many pairs wait for their second stream.
const MAX_HALVES: usize = 256;
/// The most ports of one WebSocket: its channels are numbered by a byte, or by one digit.
const MAX_PORTS: usize = 127;

/// A stream of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Error,
}

/// A pair that is not complete.
struct Half {
    part: Part,
    port: u16,
    opened: spdy::Opened,
    out: spdy::Outgoing,
    until: Instant,
}

/// Serves a SPDY connection until its client has gone.
pub async fn serve(engine: &Engine, pod: &PodId, mut connection: spdy::Connection) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let due = halves.values().map(|half| half.until).min();
        let opened = tokio::select! {
            opened = connection.opened() => opened,
            Some(_) = forwards.join_next() => continue,
            () = until(due) => {
                let now = Instant::now();
                for half in halves.extract_if(|_, half| half.until <= now).map(|(_, half)| half) {
                    forwards.spawn(give_up(half));
                }
                continue;
            }
        };
        let Some(opened) = opened else { return };
        let Ok((part, port, key)) = place(&opened) else {
            connection.refuse(opened.id);
            continue;
        };
        if let Some(first) = halves.remove(&key) {
            if first.part == part || first.port != port {
                connection.refuse(opened.id);
                continue;
            }
            let second = (connection.accept(opened.id), opened);
            let first = (first.out, first.opened);
            let (data, error) = if part == Part::Data { (second, first) } else { (first, second) };
            forwards.spawn(pair(engine.clone(), pod.clone(), port, data, error));
        } else if halves.len() < MAX_HALVES {
            let out = connection.accept(opened.id);
            halves.insert(key, Half { part, port, opened, out, until: Instant::now() + PAIR_WAIT });
        } else {
            connection.refuse(opened.id);
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What a stream is for: its part, its port, and what the two of a pair have in common.
fn place(opened: &spdy::Opened) -> Result<(Part, u16, String)> {
    let headers: &Headers = &opened.headers;
    let part = match headers.get("streamtype") {
        Some("data") => Part::Data,
        Some("error") => Part::Error,
        other => return Err(Error::invalid(format!("stream type {other:?}"))),
    };
    let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0);
    let port = port.ok_or_else(|| Error::invalid("no port"))?;
    // Old clients number nothing, and open the error stream right before the other.
    let key = match (headers.get("requestid"), part) {
        (Some(id), _) => format!("request {id}"),
        (None, Part::Error) => format!("stream {}", opened.id),
        (None, Part::Data) => format!("stream {}", opened.id.wrapping_sub(2)),
    };
    Ok((part, port, key))
}

async fn give_up(half: Half) {
    if half.part == Part::Error {
        let _ = half.out.send(b"the data stream of this connection did not come within 30 s").await; // it has gone
        half.out.finish().await;
    }
}

async fn pair(
    engine: Engine,
    pod: PodId,
    port: u16,
    (data_out, data): (spdy::Outgoing, spdy::Opened),
    (error_out, error): (spdy::Outgoing, spdy::Opened),
) {
    drop(error.incoming); // a client ends it at once
    match forward(&engine, &pod, port, data.incoming, Outgoing::Spdy(data_out)).await {
        Ok(()) => error_out.finish().await,
        Err(e) => {
            let _ = error_out.send(outcome::forward(port, pod.as_str(), &e).as_bytes()).await; // it has gone
            error_out.finish().await;
        }
    }
}

/// One connection, until both sides have ended, or one has gone.
async fn forward(engine: &Engine, pod: &PodId, port: u16, mut from: Incoming, to: Outgoing) -> Result<()> {
    let stream = tokio::select! {
        stream = engine.connect_to_port(pod, port) => stream?,
        () = engine.until_not_ready(pod) => return Err(Error::precondition("the pod has ended")),
    };
    let _ = stream.set_nodelay(true); // it is faster with it, and works without
    let (from_app, mut to_app) = stream.into_split();
    let inwards = async {
        loop {
            match from.next().await {
                Arrival::Data(piece) => {
                    if to_app.write_all(&piece.bytes).await.is_err() {
                        return spdy::taken_back(&mut from).await; // the application reads no more; it may write still
                    }
                }
                Arrival::End => {
                    let _ = to_app.shutdown().await; // it has closed already
                    return spdy::taken_back(&mut from).await;
                }
                Arrival::Gone => return,
            }
        }
    };
    tokio::select! {
        () = inwards => Ok(()), // the client has taken it back
        sent = outwards(from_app, to) => {
            let _ = sent; // the client has gone, or the application has sent all
            Ok(())
        }
    }
}

async fn outwards(mut from: OwnedReadHalf, to: Outgoing) -> std::result::Result<(), Gone> {
    loop {
        if from.readable().await.is_err() {
            break;
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        match from.read(&mut chunk).await {
            Ok(n) if n > 0 => to.send(&chunk[..n]).await?,
            _ => break,
        }
    }
    to.finish().await;
    Ok(())
}

/// Serves the channels of a WebSocket: two for each port, connected at once. Old clients of Kubernetes' API do so.
pub async fn serve_channels(
    engine: &Engine,
    pod: &PodId,
    ports: &[u16],
    connection: &websocket::Connection,
    channels: Vec<Incoming>,
) {
    let mut forwards = JoinSet::new();
    for ((number, port), incoming) in (0_u8..).step_by(2).zip(ports).zip(channels) {
        let (data, error) = (connection.outgoing(number), connection.outgoing(number + 1));
        let (engine, pod, port) = (engine.clone(), pod.clone(), *port);
        forwards.spawn(async move {
            for channel in [&data, &error] {
                if channel.send(&port.to_le_bytes()).await.is_err() {
                    return;
                }
            }
            if let Err(e) = forward(&engine, &pod, port, incoming, Outgoing::WebSocket(data)).await {
                let _ = error.send(outcome::forward(port, pod.as_str(), &e).as_bytes()).await; // it has gone
            }
        });
    }
    let mut gone = connection.gone();
    tokio::select! {
        _ = gone.wait_for(|gone| *gone) => {}
        () = async { while forwards.join_next().await.is_some() {} } => {}
    }
}

/// The data channels of so many ports.
///
/// # Errors
/// `InvalidArgument` for none, or more than channels can be numbered.
pub fn channels(ports: &[u16], base64: bool) -> Result<Vec<u8>> {
    let most = if base64 { 5 } else { MAX_PORTS };
    if ports.is_empty() || ports.len() > most {
        return Err(Error::invalid(format!("{} ports; over this protocol it is 1 to {most}", ports.len())));
    }
    Ok((0_u8..).step_by(2).take(ports.len()).collect())
}
