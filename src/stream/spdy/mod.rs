//! The server's side of a SPDY/3.1 connection, as much of it as Kubernetes' clients speak (SPDY Protocol Draft 3.1; what they do is in
//! moby/spdystream): streams are the client's, windows and settings are ignored by both, pings are answered.
//!
//! * `frame`         eight bytes of head and what follows; pure
//! * `header_block`, `dictionary`  names and values, compressed; pure
//!
//! Everything a client can make grow is bounded: headers before and after they are decompressed, streams, what waits to be read
//! ([`super::flow::Room`]) and to be written. Any breach of the protocol ends the connection.

pub mod dictionary;
pub mod frame;
pub mod header_block;

use super::flow::{self, Arrival, CHUNK_BYTES, Gone, IDLE, Incoming, Room, Sender, Writer};
use super::io::{HungUp, Io};
use crate::error::{Context, Error, Result};
use frame::{Control, HEAD_BYTES, Head, Status};
use header_block::{Decompressor, Headers, NoHeaders};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Streams at a time on one connection: two for each forwarded connection.
const MAX_STREAMS: usize = 1024;
/// Streams that were opened and not looked at yet.
const MAX_UNSEEN: usize = 128;
/// How long a client may take, after the end of it all, to read what it has not read and close.
const LINGER: Duration = Duration::from_secs(60);

/// A stream that the client has opened. To be answered by [`Connection::accept`] or [`Connection::refuse`].
#[derive(Debug)]
pub struct Opened {
    pub id: u32,
    pub headers: Headers,
    pub incoming: Incoming,
}

/// What is known of a stream that is open in one direction at least.
#[derive(Debug)]
struct Known {
    /// Dropped when the client takes the stream back, or goes.
    sender: Sender,
    /// The client has sent all.
    ended: bool,
    /// We have sent all.
    finished: bool,
}

#[derive(Debug)]
struct Shared {
    writer: Writer,
    streams: Mutex<HashMap<u32, Known>>,
    replies: Mutex<NoHeaders>,
}

/// A connection whose upgrade is done.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    opened: mpsc::Receiver<Opened>,
    gone: watch::Receiver<bool>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Connection {
    /// Within a runtime. `hung_up`: the client has gone, seen also while nothing is read.
    pub fn new(io: Io, hung_up: HungUp) -> Connection {
        let (read, write) = tokio::io::split(io);
        let (writer, queue) = flow::writer();
        let shared = Arc::new(Shared { writer, streams: Mutex::default(), replies: Mutex::default() });
        let (open, opened) = mpsc::channel(MAX_UNSEEN);
        let (end, gone) = watch::channel(false);
        let reader = Reader { shared: shared.clone(), open, decompressor: Decompressor::default(), last: 0 };
        Connection {
            shared,
            opened,
            gone,
            reader: tokio::spawn(async move {
                if let Err(e) = reader.run(read, hung_up).await {
                    tracing::debug!("a streaming client: {e}");
                }
                end.send_replace(true);
            }),
            writer: tokio::spawn(flow::write(write, queue)),
        }
    }

    /// The next stream; `None` when the client sends no more.
    pub async fn opened(&mut self) -> Option<Opened> {
        self.opened.recv().await
    }

    /// Becomes true when the client has gone.
    pub fn gone(&self) -> watch::Receiver<bool> {
        self.gone.clone()
    }

    /// Answers a stream: from here on data may be sent on it.
    pub fn accept(&self, stream: u32) -> Outgoing {
        let mut replies = self.shared.replies.lock().unwrap_or_else(PoisonError::into_inner);
        // Of one compressor, so in the order in which they were made.
        let _ = self.shared.writer.answer(frame::syn_reply(stream, &replies.block())); // a client that floods is gone soon
        Outgoing { shared: self.shared.clone(), stream, finished: false }
    }

    /// Answers a stream that is not wanted.
    pub fn refuse(&self, stream: u32) {
        self.shared.reset(stream, Status::Cancel);
    }

    /// Says that this is all, and gives the client time to read it. Closing at once with something unread would take it away from it.
    pub async fn close(mut self, last: u32) {
        let frame = frame::go_away(last);
        let closing = async {
            if self.shared.writer.frame(frame).await.is_ok() {
                let _ = self.gone.wait_for(|gone| *gone).await; // an error: the reader has ended
            }
        };
        let _ = tokio::time::timeout(LINGER, closing).await; // it is hung up on
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Known>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reset(&self, stream: u32, status: Status) {
        self.streams().remove(&stream);
        let _ = self.writer.answer(frame::rst_stream(stream, status)); // a client that floods is gone soon
    }

    /// The client has sent all.
    fn end(&self, stream: u32) {
        let mut streams = self.streams();
        let Some(known) = streams.get_mut(&stream) else { return };
        if !std::mem::replace(&mut known.ended, true) {
            known.sender.end();
        }
        if known.finished {
            streams.remove(&stream);
        }
    }
}

/// Our direction of a stream. Dropped without [`Outgoing::finish`], the stream is reset.
#[derive(Debug)]
pub struct Outgoing {
    shared: Arc<Shared>,
    stream: u32,
    finished: bool,
}

impl Outgoing {
    /// Sends data, waiting for a client that does not read.
    pub async fn send(&self, bytes: &[u8]) -> std::result::Result<(), Gone> {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            self.shared.writer.frame(frame::data(self.stream, false, chunk)).await?;
        }
        Ok(())
    }

    /// There is no more.
    pub async fn finish(mut self) {
        self.finished = true;
        {
            let mut streams = self.shared.streams();
            if let Some(known) = streams.get_mut(&self.stream) {
                known.finished = true;
                if known.ended {
                    streams.remove(&self.stream);
                }
            }
        }
        let _ = self.shared.writer.frame(frame::data(self.stream, true, &[])).await; // it has gone before the end
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.reset(self.stream, Status::Cancel);
        }
    }
}

/// What reads.
struct Reader {
    shared: Arc<Shared>,
    open: mpsc::Sender<Opened>,
    decompressor: Decompressor,
    /// The highest stream that was opened.
    last: u32,
}

impl Reader {
    async fn run(mut self, io: impl AsyncRead + Unpin, hung_up: HungUp) -> Result<()> {
        let mut io = BufReader::new(io);
        let room = Room::default();
        let ended = self.frames(&mut io, &room, &hung_up).await;
        self.shared.streams().clear(); // whoever reads one finds it gone
        ended
    }

    async fn frames(
        &mut self,
        io: &mut BufReader<impl AsyncRead + Unpin>,
        room: &Room,
        hung_up: &HungUp,
    ) -> Result<()> {
        loop {
            let mut head = [0; HEAD_BYTES];
            match tokio::time::timeout(IDLE, io.read_exact(&mut head)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Ok(()), // it has closed
                Err(_) => return Err(Error::invalid("it was idle for too long")),
            }
            match Head::parse(head)? {
                Head::Data { stream, fin, len } => self.data(io, room, hung_up, (stream, fin, len)).await?,
                Head::Control { kind, flags, len } => {
                    let mut payload = vec![0; len];
                    io.read_exact(&mut payload).await.context(|| "read a frame")?;
                    self.control(Control::parse(kind, flags, &payload)?)?;
                }
            }
        }
    }

    async fn data(
        &mut self,
        io: &mut BufReader<impl AsyncRead + Unpin>,
        room: &Room,
        hung_up: &HungUp,
        (stream, fin, mut len): (u32, bool, usize),
    ) -> Result<()> {
        while len > 0 {
            let mut bytes = vec![0; len.min(CHUNK_BYTES)];
            let n = io.read(&mut bytes).await.context(|| "read a frame")?;
            if n == 0 {
                return Err(Error::invalid("it has closed within a frame"));
            }
            len -= n;
            bytes.truncate(n);
            bytes.shrink_to_fit(); // what waits is charged by its length
            if self.shared.streams().get(&stream).is_none_or(|known| known.ended) {
                continue; // it crossed our own reset
            }
            // While somebody does not take what came, the client's end would go unseen behind it.
            let piece = tokio::select! {
                biased;
                piece = room.take(bytes) => piece,
                () = hung_up.wait() => return Ok(()),
            };
            if let (Some(piece), Some(known)) = (piece, self.shared.streams().get(&stream)) {
                known.sender.data(piece);
            }
        }
        if stream > self.last || stream.is_multiple_of(2) {
            self.answer(frame::rst_stream(stream, Status::InvalidStream))?;
        }
        if fin {
            self.shared.end(stream);
        }
        Ok(())
    }

    fn control(&mut self, control: Control<'_>) -> Result<()> {
        match control {
            Control::SynStream { stream, fin, headers } => {
                let headers = self.decompressor.headers(headers)?;
                self.syn_stream(stream, fin, headers)?;
            }
            Control::SynReply { headers } => drop(self.decompressor.headers(headers)?),
            Control::Headers { stream, fin, headers } => {
                self.decompressor.headers(headers)?;
                if fin {
                    self.shared.end(stream);
                }
            }
            Control::RstStream { stream } => drop(self.shared.streams().remove(&stream)),
            // The client's are odd; another is the answer to one of ours, which were none.
            Control::Ping { id } if id % 2 == 1 => self.answer(frame::ping(id))?,
            Control::Ping { .. } | Control::GoAway | Control::Ignored => {}
        }
        Ok(())
    }

    fn syn_stream(&mut self, stream: u32, fin: bool, headers: Headers) -> Result<()> {
        if stream.is_multiple_of(2) || stream <= self.last {
            return self.answer(frame::rst_stream(stream, Status::Protocol));
        }
        self.last = stream;
        let (sender, incoming) = flow::stream();
        {
            let mut streams = self.shared.streams();
            if streams.len() >= MAX_STREAMS {
                drop(streams);
                return self.answer(frame::rst_stream(stream, Status::Refused));
            }
            streams.insert(stream, Known { sender, ended: false, finished: false });
        }
        if self.open.try_send(Opened { id: stream, headers, incoming }).is_err() {
            self.shared.streams().remove(&stream);
            return self.answer(frame::rst_stream(stream, Status::Refused));
        }
        if fin {
            self.shared.end(stream);
        }
        Ok(())
    }

    fn answer(&self, frame: Vec<u8>) -> Result<()> {
        self.shared.writer.answer(frame).map_err(|Gone| Error::exhausted("it reads no answers"))
    }
}

/// Whether a client has taken a stream back; for those who wait for something else on its behalf. What it sends meanwhile is dropped.
pub async fn taken_back(incoming: &mut Incoming) {
    while !matches!(incoming.next().await, Arrival::Gone) {}
}
