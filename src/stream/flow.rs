//! What both transports are made of on the way in and out: pieces that arrive on a stream, frames that wait to be written, and the bounds of
//! both. A connection is two tasks, one that reads and one that writes; neither waits for the other.

use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// How much that has arrived may wait on one connection for whoever it is for, in bytes. Then the connection is not read: SPDY has no flow
/// control that any client of Kubernetes honours, and WebSockets have none, so TCP's is what is left.
const RECEIVED_BYTES: usize = 1 << 20;
/// What each piece is charged beside its bytes: an empty frame costs memory as well.
const PIECE_BYTES: usize = 256;
/// The longest piece, in bytes.
pub const CHUNK_BYTES: usize = 32 << 10;
/// How many frames of a chunk each wait to be written.
const QUEUED_FRAMES: usize = 8;
/// How many short frames (answers to pings, acknowledgements) wait: a client that asks for more and reads nothing is hung up on.
const QUEUED_ANSWERS: usize = 1024;
/// A connection on which nothing was read or written for this long is closed, as the kubelet's own (k8s.io/cri-streaming, server.go).
pub const IDLE: Duration = Duration::from_secs(4 * 3600);

/// What arrived on a stream.
#[derive(Debug)]
pub enum Arrival {
    Data(Piece),
    /// The client sends no more of it.
    End,
    /// The client takes it back, or the connection is gone.
    Gone,
}

/// Some bytes; their room is free again when they are dropped.
#[derive(Debug)]
pub struct Piece {
    pub bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// Room for what arrives on one connection.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Room(Arc::new(Semaphore::new(RECEIVED_BYTES)))
    }
}

impl Room {
    /// Waits until there is room. Pieces of more than [`RECEIVED_BYTES`] are refused by whoever reads them.
    pub async fn take(&self, bytes: Vec<u8>) -> Option<Piece> {
        let charge = u32::try_from((bytes.len() + PIECE_BYTES).min(RECEIVED_BYTES)).ok()?;
        let room = self.0.clone().acquire_many_owned(charge).await.ok()?;
        Some(Piece { bytes, _room: room })
    }
}

/// The way into a stream, for the reader of its connection. Dropped without [`Sender::end`]: gone.
#[derive(Debug)]
pub struct Sender(mpsc::UnboundedSender<Option<Piece>>);

impl Sender {
    /// Nobody may want it any more: then it is dropped.
    pub fn data(&self, piece: Piece) {
        let _ = self.0.send(Some(piece)); // as above
    }

    pub fn end(&self) {
        let _ = self.0.send(None); // nobody waits for it
    }
}

/// The way out of it.
#[derive(Debug)]
pub struct Incoming(mpsc::UnboundedReceiver<Option<Piece>>);

/// A stream's two ends. Bounded by the [`Room`] of its connection.
pub fn stream() -> (Sender, Incoming) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Sender(sender), Incoming(receiver))
}

impl Incoming {
    pub async fn next(&mut self) -> Arrival {
        match self.0.recv().await {
            Some(Some(piece)) => Arrival::Data(piece),
            Some(None) => Arrival::End,
            None => Arrival::Gone,
        }
    }

    /// What has arrived already.
    pub fn ready(&mut self) -> Option<Piece> {
        self.0.try_recv().ok().flatten()
    }
}

/// The connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// The writing side of a connection.
#[derive(Debug, Clone)]
pub struct Writer {
    frames: mpsc::Sender<Vec<u8>>,
    answers: mpsc::Sender<Vec<u8>>,
}

/// What [`write`] takes its frames from.
#[derive(Debug)]
pub struct Queue {
    frames: mpsc::Receiver<Vec<u8>>,
    answers: mpsc::Receiver<Vec<u8>>,
}

/// A writer and its queue.
pub fn writer() -> (Writer, Queue) {
    let (frames, waiting) = mpsc::channel(QUEUED_FRAMES);
    let (answers, asked) = mpsc::channel(QUEUED_ANSWERS);
    (Writer { frames, answers }, Queue { frames: waiting, answers: asked })
}

impl Writer {
    /// Waits for room in the queue.
    pub async fn frame(&self, frame: Vec<u8>) -> Result<(), Gone> {
        self.frames.send(frame).await.map_err(|_| Gone)
    }

    /// A short frame that goes before all others, at once or never.
    pub fn answer(&self, frame: Vec<u8>) -> Result<(), Gone> {
        self.answers.try_send(frame).map_err(|_| Gone)
    }
}

/// Writes what is queued until nobody can queue any more, or the connection is gone; then says that no more comes.
pub async fn write(mut io: impl AsyncWrite + Unpin, mut queue: Queue) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(answer) = queue.answers.recv() => answer,
            Some(frame) = queue.frames.recv() => frame,
            else => break,
        };
        if io.write_all(&frame).await.is_err() {
            return;
        }
        // A connection with TLS holds back what was written.
        if queue.frames.is_empty() && queue.answers.is_empty() && io.flush().await.is_err() {
            return;
        }
    }
    let _ = io.shutdown().await; // the peer may have gone first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_is_bounded_and_makes_room_when_it_is_dropped() {
        let (room, (sender, mut incoming)) = (Room::default(), stream());
        let mut taken = 0;
        while let Ok(Some(piece)) = tokio::time::timeout(Duration::from_millis(20), room.take(vec![0; 1000])).await {
            sender.data(piece);
            taken += 1;
        }
        assert_eq!(taken, RECEIVED_BYTES / (1000 + PIECE_BYTES));
        assert!(matches!(incoming.next().await, Arrival::Data(piece) if piece.bytes.len() == 1000));
        assert!(room.take(vec![0; 1000]).await.is_some());
        drop(incoming);
        assert!(room.take(vec![0; RECEIVED_BYTES - 10_000]).await.is_some(), "all is free with the stream");
    }

    #[tokio::test]
    async fn answers_go_first_and_a_flood_of_them_is_the_end() {
        let (writer, queue) = writer();
        writer.frame(b"data".to_vec()).await.expect("room");
        writer.answer(b"pong ".to_vec()).expect("room");
        let mut written = Vec::new();
        drop(writer);
        write(&mut written, queue).await;
        assert_eq!(written, b"pong data");
        let (writer, _queue) = super::writer();
        assert_eq!((0..=QUEUED_ANSWERS).filter(|_| writer.answer(Vec::new()).is_ok()).count(), QUEUED_ANSWERS);
    }
}
