//! Exec and attach, whatever they come over: a client's streams on one side, a process's on the other.
//!
//! An exec ends with its process; what it has written by then is delivered before how it ended is told. When the client goes first, nobody is
//! left who could hear or end it: everything in it is killed, as at its deadline. An attachment ends with its container, or its client.

use super::flow::{Arrival, CHUNK_BYTES, Gone, Incoming, Piece};
use super::negotiate::Version;
use super::{outcome, spdy, websocket};
use crate::engine::Engine;
use crate::engine::attach::{Attached, Wanted};
use crate::engine::exec::{DRAIN_WAIT, ExecConfig, Running, Streams, exec_failure};
use crate::engine::terminal::Size;
use crate::error::{Context, Error, Result};
use crate::id::ContainerId;
use crate::state::record::ExitStatus;
use crate::sys::async_fd::AsyncFile;
use serde::Deserialize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How much is read of a stream after its process has ended, in bytes: what a pipe may hold. More comes from what it has left in the background.
const DRAIN_BYTES: usize = 1 << 20;
/// How long a client may take to read what is left after the end.
const DELIVER_WAIT: Duration = Duration::from_secs(60);
/// How much of a stream of sizes waits to become a whole one, in bytes.
const MAX_SIZE_BYTES: usize = 1 << 10;

/// Our direction of a stream.
#[derive(Debug)]
pub enum Outgoing {
    Spdy(spdy::Outgoing),
    WebSocket(websocket::Outgoing),
}

impl Outgoing {
    /// Waits for a client that does not read.
    pub async fn send(&self, bytes: &[u8]) -> std::result::Result<(), Gone> {
        match self {
            Outgoing::Spdy(stream) => stream.send(bytes).await,
            Outgoing::WebSocket(channel) => channel.send(bytes).await,
        }
    }

    /// There is no more. The channels of a WebSocket end with it.
    pub async fn finish(self) {
        if let Outgoing::Spdy(stream) = self {
            stream.finish().await;
        }
    }
}

/// A client's side of an exec or an attachment.
#[derive(Debug)]
pub struct Client {
    pub stdin: Option<Incoming>,
    pub stdout: Option<Outgoing>,
    pub stderr: Option<Outgoing>,
    pub error: Option<Outgoing>,
    /// Of its terminal: JSON, one after another.
    pub sizes: Option<Incoming>,
    pub version: Version,
    pub gone: watch::Receiver<bool>,
}

/// What is to be run or attached to.
#[derive(Debug, Clone)]
pub enum Command {
    Exec { container: ContainerId, args: Vec<String> },
    Attach { container: ContainerId },
}

impl Command {
    /// Runs until one side has ended, and tells the client how.
    pub async fn run(self, engine: &Engine, client: Client, tty: bool) {
        let Client { stdin, stdout, stderr, error, sizes, version, gone } = client;
        let ends = Ends { stdin, stdout, stderr, sizes, gone };
        let (doing, result) = match self {
            Command::Exec { container, args } => {
                ("error executing command in container", exec(engine, &container, args, ends, tty).await)
            }
            Command::Attach { container } => ("error attaching to container", attach(engine, &container, ends).await),
        };
        if let Some(error) = error {
            let told = async {
                let message = outcome::message(version, doing, &result);
                if !message.is_empty() {
                    let _ = error.send(message.as_bytes()).await; // the client has gone
                }
                error.finish().await;
            };
            let _ = tokio::time::timeout(DELIVER_WAIT, told).await; // it does not read, and is hung up on
        }
    }
}

#[derive(Debug)]
struct Ends {
    stdin: Option<Incoming>,
    stdout: Option<Outgoing>,
    stderr: Option<Outgoing>,
    sizes: Option<Incoming>,
    gone: watch::Receiver<bool>,
}

/// Waits until the client has gone.
async fn until_gone(mut gone: watch::Receiver<bool>) {
    let _ = gone.wait_for(|gone| *gone).await; // an error: what watches it has ended
}

async fn exec(engine: &Engine, id: &ContainerId, args: Vec<String>, mut ends: Ends, tty: bool) -> Result<i32> {
    let env = match tty && !engine.has_env(id, "TERM") {
        true => vec!["TERM=xterm".to_owned()],
        false => Vec::new(),
    };
    let config = ExecConfig { args, env, ..ExecConfig::default() };
    let (command, ours) = if tty {
        let (command, ours) = terminal(engine, id, config, &mut ends).await?;
        (Ok(command), ours)
    } else {
        let (streams, ours) = pipes(&ends)?;
        (engine.start_exec(id, config, streams).await, ours)
    };
    let (ended, over) = watch::channel(false);
    let mut outputs = JoinSet::new();
    for (from, to) in [(ours.stdout, ends.stdout), (ours.stderr, ends.stderr)] {
        if let (Some(from), Some(to)) = (from, to) {
            outputs.spawn(copy_out(from, to, over.clone()));
        }
    }
    // Ends with this, and so with the process: what the client sends after that is dropped.
    let mut inputs = JoinSet::new();
    match (ours.stdin, ends.stdin) {
        (Some(to), Some(from)) => drop(inputs.spawn(copy_in(from, to))),
        (None, Some(from)) => drop(inputs.spawn(websocket::drain(from))),
        _ => {}
    }
    if let (Some(terminal), Some(sizes)) = (ours.terminal, ends.sizes) {
        inputs.spawn(resize(sizes, terminal));
    }
    let result = match command {
        Ok(command) => command.ended(until_gone(ends.gone.clone())).await,
        Err(e) => Err(e),
    };
    ended.send_replace(true);
    drop(inputs);
    let delivered = async { while outputs.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DELIVER_WAIT, delivered).await; // they end with the set
    result?.map(ExitStatus::code).map_err(exec_failure)
}

/// Our ends of a process's streams.
struct Ours {
    stdin: Option<Arc<AsyncFile>>,
    stdout: Option<Arc<AsyncFile>>,
    stderr: Option<Arc<AsyncFile>>,
    terminal: Option<Arc<AsyncFile>>,
}

fn watched(fd: OwnedFd) -> Result<Arc<AsyncFile>> {
    AsyncFile::new(fd).map(Arc::new).context(|| "watch a stream")
}

async fn terminal(engine: &Engine, id: &ContainerId, config: ExecConfig, ends: &mut Ends) -> Result<(Running, Ours)> {
    // Before the program can ask for it, if it is there.
    let (mut parser, mut size) = (Sizes::default(), None);
    while let Some(piece) = ends.sizes.as_mut().and_then(Incoming::ready) {
        size = parser.last(&piece)?.or(size);
    }
    let (master, command) = engine.exec_at_terminal(id, config, size).await?;
    let master = watched(master)?;
    let ours = Ours {
        stdin: ends.stdin.is_some().then(|| master.clone()),
        stdout: Some(master.clone()),
        stderr: None,
        terminal: Some(master),
    };
    Ok((command, ours))
}

fn pipes(ends: &Ends) -> Result<(Streams, Ours)> {
    let null = |write: bool| {
        let opened = std::fs::OpenOptions::new().read(!write).write(write).open("/dev/null");
        opened.map(OwnedFd::from).context(|| "open /dev/null")
    };
    let output = |wanted: bool| -> Result<(OwnedFd, Option<Arc<AsyncFile>>)> {
        if !wanted {
            return Ok((null(true)?, None));
        }
        let (reader, writer) = std::io::pipe().context(|| "pipe")?;
        Ok((writer.into(), Some(watched(reader.into())?)))
    };
    let (stdin, to_stdin) = match ends.stdin {
        None => (null(false)?, None),
        Some(_) => {
            let (reader, writer) = std::io::pipe().context(|| "pipe")?;
            (reader.into(), Some(watched(writer.into())?))
        }
    };
    let (stdout, from_stdout) = output(ends.stdout.is_some())?;
    let (stderr, from_stderr) = output(ends.stderr.is_some())?;
    let ours = Ours { stdin: to_stdin, stdout: from_stdout, stderr: from_stderr, terminal: None };
    Ok((Streams { stdin, stdout, stderr }, ours))
}

/// Copies until the end. When the process has ended, what is there is delivered; what others hold open is not waited for.
async fn copy_out(from: Arc<AsyncFile>, to: Outgoing, mut over: watch::Receiver<bool>) {
    let mut left = DRAIN_BYTES;
    loop {
        let chunk = if *over.borrow() {
            tokio::time::timeout(DRAIN_WAIT, from.chunk(CHUNK_BYTES)).await.ok()
        } else {
            tokio::select! {
                chunk = from.chunk(CHUNK_BYTES) => Some(chunk),
                _ = over.changed() => continue,
            }
        };
        // An error is EIO: nobody has the terminal open any more.
        let Some(chunk) = chunk.and_then(|chunk| chunk.ok().filter(|chunk| !chunk.is_empty())) else { break };
        left = left.saturating_sub(if *over.borrow() { chunk.len() } else { 0 });
        if left == 0 || to.send(&chunk).await.is_err() {
            break;
        }
    }
    drop(from);
    to.finish().await;
}

/// Copies until the client sends no more, or the process takes no more; closes what it copies to.
async fn copy_in(mut from: Incoming, to: Arc<AsyncFile>) {
    while let Arrival::Data(piece) = from.next().await {
        if put(&to, &piece.bytes).await.is_err() {
            drop(to);
            return websocket::drain(from).await;
        }
    }
}

async fn put(to: &AsyncFile, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = to.write(bytes).await?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// A stream of sizes, as it comes in pieces.
#[derive(Debug, Default)]
struct Sizes(Vec<u8>);

#[derive(Debug, Deserialize)]
struct SizeText {
    #[serde(alias = "Width")]
    width: u16,
    #[serde(alias = "Height")]
    height: u16,
}

impl Sizes {
    /// The last whole one that is known, after this piece.
    fn last(&mut self, piece: &Piece) -> Result<Option<Size>> {
        self.take(&piece.bytes)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Option<Size>> {
        self.0.extend_from_slice(bytes);
        let mut texts = serde_json::Deserializer::from_slice(&self.0).into_iter::<SizeText>();
        let mut last = None;
        let used = loop {
            let at = texts.byte_offset();
            match texts.next() {
                Some(Ok(SizeText { width: columns @ 1.., height: rows @ 1.. })) => last = Some(Size { columns, rows }),
                Some(Ok(_)) => {} // a client that does not know its own
                Some(Err(e)) if e.is_eof() => break at,
                Some(Err(e)) => return Err(Error::invalid(format!("size of a terminal: {e}"))),
                None => break self.0.len(),
            }
        };
        self.0.drain(..used);
        if self.0.len() > MAX_SIZE_BYTES {
            return Err(Error::invalid("size of a terminal: it does not end"));
        }
        Ok(last)
    }
}

async fn resize(mut from: Incoming, terminal: Arc<AsyncFile>) {
    let mut sizes = Sizes::default();
    while let Arrival::Data(piece) = from.next().await {
        let applied = sizes.last(&piece).and_then(|size| size.map_or(Ok(()), |size| size.apply(terminal.as_fd())));
        if let Err(e) = applied {
            tracing::debug!("a streaming client: {e}"); // it goes on with the size that it has
            return websocket::drain(from).await;
        }
    }
}

async fn attach(engine: &Engine, id: &ContainerId, ends: Ends) -> Result<i32> {
    let Ends { stdin, stdout, stderr, sizes, gone } = ends;
    let wanted = Wanted { stdin: stdin.is_some(), stdout: stdout.is_some(), stderr: stderr.is_some() };
    let mut attached = engine.attach(id, wanted).await?;
    let mut inputs = JoinSet::new();
    match (attached.stdin.take(), stdin) {
        (Some(to), Some(from)) => drop(inputs.spawn(input(engine.clone(), id.clone(), from, watched(to)?))),
        (None, Some(from)) => drop(inputs.spawn(websocket::drain(from))),
        _ => {}
    }
    match (attached.terminal.take(), sizes) {
        (Some(terminal), Some(sizes)) => drop(inputs.spawn(resize(sizes, watched(terminal)?))),
        (None, Some(sizes)) => drop(inputs.spawn(websocket::drain(sizes))),
        _ => {}
    }
    let shown = async {
        let mut next = Some(attached);
        while let Some(Attached { stdout: out, stderr: err, .. }) = next.take() {
            let (out, err) = (out.map(watched).transpose()?, err.map(watched).transpose()?);
            if let (Err(Gone), _) | (_, Err(Gone)) =
                tokio::join!(show(out, stdout.as_ref()), show(err, stderr.as_ref()))
            {
                break;
            }
            // Its shim may have died, and there is another one.
            next = engine.attach_again(id, wanted).await?;
        }
        Ok(())
    };
    let result = tokio::select! {
        shown = shown => shown,
        () = until_gone(gone.clone()) => Ok(()),
    };
    if *gone.borrow() {
        // What it had sent is delivered, and its end seen.
        let all_sent = async { while inputs.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_WAIT, all_sent).await; // they end with the set
        engine.input_ended(id).await;
    }
    drop(inputs);
    for output in [stdout, stderr].into_iter().flatten() {
        output.finish().await;
    }
    result.map(|()| 0)
}

/// Copies until the end of the output, or of the client.
async fn show(from: Option<Arc<AsyncFile>>, to: Option<&Outgoing>) -> std::result::Result<(), Gone> {
    let Some(from) = from else { return Ok(()) };
    while let Ok(chunk) = from.chunk(CHUNK_BYTES).await {
        if chunk.is_empty() {
            break;
        }
        if let Some(to) = to {
            to.send(&chunk).await?;
        }
    }
    Ok(())
}

/// Copies what the client types; when it ends, so does the input of a container that is to have one client only.
async fn input(engine: Engine, id: ContainerId, mut from: Incoming, to: Arc<AsyncFile>) {
    loop {
        let arrival = tokio::select! {
            biased;
            () = engine.input_closed(&id) => break,
            arrival = from.next() => arrival,
        };
        let Arrival::Data(piece) = arrival else {
            drop(to);
            return engine.input_ended(&id).await;
        };
        let written = tokio::select! {
            biased;
            () = engine.input_closed(&id) => break,
            written = put(&to, &piece.bytes) => written,
        };
        if written.is_err() {
            break;
        }
    }
    drop(to);
    websocket::drain(from).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_one_after_another_and_in_pieces() {
        let mut sizes = Sizes::default();
        let size = |columns, rows| Some(Size { columns, rows });
        assert_eq!(sizes.take(b"{\"Width\":80,\"Hei").expect("a part"), None);
        assert_eq!(sizes.take(b"ght\":24}\n").expect("whole"), size(80, 24));
        assert_eq!(sizes.take(b"{\"width\":1,\"height\":2}{\"Width\":3,\"Height\":4}").expect("two"), size(3, 4));
        assert_eq!(sizes.take(b"\n{\"Width\":0,\"Height\":0}").expect("nothing"), None);
        assert_eq!(sizes.take(b"{\"Width\":5,\"Height\":6}\n{\"Width\":0,\"Height\":0}").expect("one"), size(5, 6));
        assert!(sizes.take(b"{\"Width\":99999999,\"Height\":4}").is_err());
        assert!(Sizes::default().take(&[b' '; MAX_SIZE_BYTES + 1]).is_ok());
        assert!(Sizes::default().take(format!("{{\"x\":\"{}", "y".repeat(MAX_SIZE_BYTES)).as_bytes()).is_err());
    }
}
