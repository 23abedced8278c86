//! The server's side of a WebSocket (RFC 6455) after its handshake: what Kubernetes' clients multiplex over one, or tunnel through it.
//!
//! Messages begin with the number of their channel (`channel.k8s.io`: a byte; `base64.channel.k8s.io`: a digit, and the rest in base64);
//! in a tunnel they are slices of one stream of bytes and nothing else. Bounds are those of [`super::flow`]; a message is bounded as a whole.

pub mod frame;

use super::flow::{self, Arrival, CHUNK_BYTES, Gone, IDLE, Incoming, Room, Sender, Writer};
use super::io::{HungUp, Io};
use crate::error::{Context, Error, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use frame::{Head, Kind};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// In a message of two bytes, `v5.channel.k8s.io`: the client sends no more on the channel that the second names.
const HALF_CLOSE: u8 = 255;
/// How long a client may take, after the end of it all, to read what it has not read and close.
const LINGER: Duration = Duration::from_secs(60);
/// RFC 6455 section 7.4.1: normal closure.
const NORMAL: [u8; 2] = 1000_u16.to_be_bytes();

/// How messages are to be read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    pub base64: bool,
    /// A client may end a channel: from `v5` on.
    pub half_close: bool,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Connection {
    writer: Writer,
    channels: Channels,
    gone: watch::Receiver<bool>,
    tasks: [JoinHandle<()>; 2],
}

impl Connection {
    /// Channels of a client: those of `wanted` can be read, by their places in the answer; what comes on others is dropped. Within a
    /// runtime.
    pub fn new(io: Io, hung_up: HungUp, channels: Channels, wanted: &[u8]) -> (Connection, Vec<Incoming>) {
        let (senders, incoming): (Vec<_>, Vec<_>) = wanted
            .iter()
            .map(|number| {
                let (sender, incoming) = flow::stream();
                (Channel { number: *number, sender, ended: false }, incoming)
            })
            .unzip();
        let demultiplexer = Demultiplexer { channels, senders };
        (Connection::start(io, hung_up, channels, demultiplexer), incoming)
    }

    /// One stream of bytes in the messages of a client.
    pub fn tunnel(io: Io, hung_up: HungUp) -> (Connection, Io) {
        let channels = Channels { base64: false, half_close: false };
        let (near, far) = tokio::io::duplex(CHUNK_BYTES);
        let (from, to) = tokio::io::split(near);
        let connection = Connection::start(io, hung_up, channels, Tunnel(to));
        tokio::spawn(pump(from, connection.writer.clone()));
        (connection, Box::pin(far))
    }

    fn start(io: Io, hung_up: HungUp, channels: Channels, mut to: impl Take + Send + 'static) -> Connection {
        let (read, write) = tokio::io::split(io);
        let (writer, queue) = flow::writer();
        let (end, gone) = watch::channel(false);
        let answers = writer.clone();
        let reader = tokio::spawn(async move {
            if let Err(e) = messages(BufReader::new(read), &answers, &hung_up, &mut to).await {
                tracing::debug!("a streaming client: {e}");
            }
            to.end().await;
            end.send_replace(true);
        });
        Connection { writer, channels, gone, tasks: [reader, tokio::spawn(flow::write(write, queue))] }
    }

    /// Becomes true when the client has gone.
    pub fn gone(&self) -> watch::Receiver<bool> {
        self.gone.clone()
    }

    /// Our direction of a channel.
    pub fn outgoing(&self, channel: u8) -> Outgoing {
        Outgoing { writer: self.writer.clone(), channels: self.channels, channel }
    }

    /// Says that this is all, and gives the client time to read it.
    pub async fn close(mut self) {
        let closing = async {
            if self.writer.frame(frame::message(Kind::Close, &[&NORMAL])).await.is_ok() {
                let _ = self.gone.wait_for(|gone| *gone).await; // an error: the reader has ended
            }
        };
        let _ = tokio::time::timeout(LINGER, closing).await; // it is hung up on
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Our direction of a channel.
#[derive(Debug)]
pub struct Outgoing {
    writer: Writer,
    channels: Channels,
    channel: u8,
}

impl Outgoing {
    /// Sends data, waiting for a client that does not read. Empty data are a message as well.
    pub async fn send(&self, bytes: &[u8]) -> std::result::Result<(), Gone> {
        let message = match self.channels.base64 {
            false => frame::message(Kind::Binary, &[&[self.channel], bytes]),
            true => frame::message(Kind::Text, &[&[b'0' + self.channel], BASE64_STANDARD.encode(bytes).as_bytes()]),
        };
        self.writer.frame(message).await
    }
}

/// Who takes whole messages.
trait Take {
    fn take(&mut self, message: Vec<u8>, text: bool, room: &Room) -> impl Future<Output = Result<()>> + Send;

    /// No more come. Channels are gone with this.
    fn end(self) -> impl Future<Output = ()> + Send;
}

struct Demultiplexer {
    channels: Channels,
    senders: Vec<Channel>,
}

/// A channel that is read.
struct Channel {
    number: u8,
    sender: Sender,
    /// The client sends no more on it.
    ended: bool,
}

impl Take for Demultiplexer {
    async fn take(&mut self, mut message: Vec<u8>, text: bool, room: &Room) -> Result<()> {
        let Some(first) = message.first().copied() else { return Ok(()) };
        if self.channels.half_close && first == HALF_CLOSE {
            let [_, channel] = message[..] else {
                return Err(Error::invalid("the end of a channel that is not named"));
            };
            match self.senders.iter_mut().find(|known| known.number == channel && !known.ended) {
                Some(known) => {
                    known.ended = true;
                    known.sender.end();
                }
                None => return Err(Error::invalid(format!("the end of channel {channel}, which is not open"))),
            }
            return Ok(());
        }
        if text != self.channels.base64 {
            return Err(Error::invalid("a message of the other kind"));
        }
        let channel = if self.channels.base64 { first.wrapping_sub(b'0') } else { first };
        let wanted = self.senders.iter().find(|known| known.number == channel && !known.ended);
        let Some(known) = wanted else { return Ok(()) };
        message.remove(0);
        if self.channels.base64 {
            message = BASE64_STANDARD.decode(&message).map_err(|_| Error::invalid("a message that is no base64"))?;
        }
        message.shrink_to_fit(); // what waits is charged by its length
        if let Some(piece) = room.take(message).await {
            known.sender.data(piece);
        }
        Ok(())
    }

    async fn end(self) {}
}

struct Tunnel(tokio::io::WriteHalf<DuplexStream>);

impl Take for Tunnel {
    async fn take(&mut self, message: Vec<u8>, text: bool, _: &Room) -> Result<()> {
        if text {
            return Err(Error::invalid("a text message in a tunnel"));
        }
        self.0.write_all(&message).await.context(|| "hand on what came through a tunnel")
    }

    async fn end(mut self) {
        let _ = self.0.shutdown().await; // nobody reads it any more
    }
}

/// What is written into a tunnel, as messages.
async fn pump(mut from: impl AsyncRead + Unpin, to: Writer) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk).await {
            Ok(n) if n > 0 => {
                if to.frame(frame::message(Kind::Binary, &[&chunk[..n]])).await.is_err() {
                    return;
                }
            }
            _ => {
                let _ = to.frame(frame::message(Kind::Close, &[&NORMAL])).await; // it may have gone first
                return;
            }
        }
    }
}

/// Reads until the client closes.
async fn messages(
    mut io: BufReader<impl AsyncRead + Unpin>,
    answers: &Writer,
    hung_up: &HungUp,
    to: &mut impl Take,
) -> Result<()> {
    let room = Room::default();
    // The message that is being put together, and whether it is text.
    let mut message: Option<(Vec<u8>, bool)> = None;
    loop {
        let mut first = [0; 2];
        match tokio::time::timeout(IDLE, io.read_exact(&mut first)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Ok(()), // it has closed
            Err(_) => return Err(Error::invalid("it was idle for too long")),
        }
        let mut rest = [0; 12];
        let rest = &mut rest[..frame::rest_of_head(first)?];
        io.read_exact(rest).await.context(|| "read a frame")?;
        let head = Head::parse(first, rest)?;
        let payload = payload(&mut io, head).await?;
        match head.kind {
            Kind::Ping => {
                let flooded = |Gone| Error::exhausted("it reads no answers");
                answers.answer(frame::message(Kind::Pong, &[&payload])).map_err(flooded)?;
            }
            Kind::Pong => {}
            Kind::Close => {
                let _ = answers.answer(frame::message(Kind::Close, &[payload.get(..2).unwrap_or(&NORMAL)])); // it has gone
                return Ok(());
            }
            Kind::Text | Kind::Binary if message.is_some() => {
                return Err(Error::invalid("a message within another"));
            }
            Kind::Text | Kind::Binary => message = Some((payload, head.kind == Kind::Text)),
            Kind::Continuation => {
                let (whole, _) = message.as_mut().ok_or_else(|| Error::invalid("the rest of no message"))?;
                if whole.len() + payload.len() > frame::MAX_MESSAGE_BYTES {
                    return Err(Error::invalid("a message that is too long"));
                }
                whole.extend_from_slice(&payload);
            }
        }
        let data = matches!(head.kind, Kind::Text | Kind::Binary | Kind::Continuation);
        if data
            && head.last
            && let Some((whole, text)) = message.take()
        {
            // While somebody does not take what came, the client's end would go unseen behind it.
            tokio::select! {
                biased;
                taken = to.take(whole, text, &room) => taken?,
                () = hung_up.wait() => return Ok(()),
            }
        }
    }
}

/// Grows with what arrives, not with what is announced.
async fn payload(io: &mut BufReader<impl AsyncRead + Unpin>, head: Head) -> Result<Vec<u8>> {
    let mut payload = Vec::new();
    while payload.len() < head.len {
        let (filled, step) = (payload.len(), (head.len - payload.len()).min(CHUNK_BYTES));
        payload.resize(filled + step, 0);
        let n = io.read(&mut payload[filled..]).await.context(|| "read a frame")?;
        if n == 0 {
            return Err(Error::invalid("it has closed within a frame"));
        }
        payload.truncate(filled + n);
    }
    frame::mask(&mut payload, head.mask);
    Ok(payload)
}

/// What arrives is of no concern any more, and is dropped.
pub async fn drain(mut incoming: Incoming) {
    while matches!(incoming.next().await, Arrival::Data(_)) {}
}
