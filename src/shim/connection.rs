//! One connection: frames with their descriptors in, frames out through a bounded queue. Knows no message's meaning.
//!
//! The peer is an engine, but it is not trusted with this process's memory: a frame is bounded, its buffer grows with what
//! arrives and not with what is announced, and a peer that does not read is hung up on once the queue is full. Nothing here blocks.

use crate::error::{Context, Error, Result};
use crate::sys::socket::{self, recvmsg, sendmsg};
use crate::wire::{self, HEADER_BYTES};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// How much of a frame is read at a time.
const READ_BYTES: usize = 64 << 10;
/// How many bytes wait for a peer that does not read. Events and answers are a few hundred bytes, a list of the largest pod
/// 700 KiB; one message may exceed it, none comes after.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// How many frames wait; each can hold descriptors.
const MAX_QUEUED_FRAMES: usize = 4096;

/// A message as it came.
#[derive(Debug)]
pub struct Frame {
    /// The JSON text.
    pub text: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// What [`Connection::receive`] found.
#[derive(Debug)]
pub enum Received {
    Frame(Frame),
    /// More has to arrive first.
    Nothing,
    /// The peer has closed between two frames.
    Closed,
}

#[derive(Debug, Default)]
struct Incoming {
    header: [u8; HEADER_BYTES],
    /// How much of the header is there.
    headed: usize,
    text: Vec<u8>,
    fds: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// A stream socket that carries frames.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    incoming: Incoming,
    outgoing: VecDeque<Outgoing>,
    queued_bytes: usize,
}

impl Connection {
    pub fn new(socket: UnixStream) -> Self {
        Connection { socket, incoming: Incoming::default(), outgoing: VecDeque::new(), queued_bytes: 0 }
    }

    /// Whether frames wait for the socket to take more.
    pub fn wants_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The next whole frame, if it is there.
    ///
    /// # Errors
    /// Any: the connection is to be closed. A frame that is too long, descriptors that are too many or in the middle of a
    /// frame, an end within a frame.
    pub fn receive(&mut self) -> Result<Received> {
        loop {
            if self.incoming.headed < HEADER_BYTES {
                let mut header = [0; HEADER_BYTES];
                let missing = HEADER_BYTES - self.incoming.headed;
                let Some(n) = self.read(&mut header[..missing])? else { return Ok(Received::Nothing) };
                if n == 0 && self.incoming.headed == 0 {
                    return Ok(Received::Closed);
                }
                self.some(n)?;
                let at = self.incoming.headed;
                self.incoming.header[at..at + n].copy_from_slice(&header[..n]);
                self.incoming.headed += n;
                continue;
            }
            let len = wire::frame_len(self.incoming.header)?;
            let filled = self.incoming.text.len();
            if filled == len {
                let whole = std::mem::take(&mut self.incoming);
                return Ok(Received::Frame(Frame { text: whole.text, fds: whole.fds }));
            }
            // Never beyond this frame: descriptors of the next one would come with its first byte.
            let step = (len - filled).min(READ_BYTES);
            let mut text = std::mem::take(&mut self.incoming.text);
            text.resize(filled + step, 0);
            let read = self.read(&mut text[filled..]);
            text.truncate(filled + read.as_ref().ok().copied().flatten().unwrap_or(0));
            self.incoming.text = text;
            let Some(n) = read? else { return Ok(Received::Nothing) };
            self.some(n)?;
        }
    }

    fn some(&self, n: usize) -> Result<()> {
        if n == 0 { Err(Error::invalid("the peer has closed within a frame")) } else { Ok(()) }
    }

    /// Reads once; `None` when nothing is there.
    fn read(&mut self, buf: &mut [u8]) -> Result<Option<usize>> {
        let first = self.incoming.headed == 0;
        let mut received = match recvmsg(&self.socket, buf) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => socket::Received::default(),
            received => received.context(|| "receive from the engine")?,
        };
        if received.truncated || received.fds.len() > wire::MAX_FDS {
            return Err(Error::exhausted(format!("more than {} descriptors with one message", wire::MAX_FDS)));
        }
        if !received.fds.is_empty() && !first {
            return Err(Error::invalid("descriptors that do not come with the first byte of a frame"));
        }
        self.incoming.fds.append(&mut received.fds);
        Ok(Some(received.bytes))
    }

    /// Sends a message, or queues what the socket does not take now.
    ///
    /// # Errors
    /// Any: the connection is to be closed. The peer is gone, or does not read.
    pub fn send(&mut self, message: &wire::ToEngine, fds: Vec<OwnedFd>) -> Result<()> {
        if self.queued_bytes > MAX_QUEUED_BYTES || self.outgoing.len() >= MAX_QUEUED_FRAMES {
            return Err(Error::exhausted("the peer does not read"));
        }
        let bytes = wire::encode(message)?;
        self.queued_bytes += bytes.len();
        self.outgoing.push_back(Outgoing { bytes, sent: 0, fds });
        if self.outgoing.len() == 1 { self.flush() } else { Ok(()) }
    }

    /// Sends what the socket takes of the queue.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn flush(&mut self) -> Result<()> {
        while let Some(frame) = self.outgoing.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = frame.fds.iter().map(AsFd::as_fd).collect();
            match sendmsg(&self.socket, &frame.bytes[frame.sent..], &fds) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                sent => frame.sent += sent.context(|| "send to the engine")?,
            }
            frame.fds.clear(); // they went with the first byte
            if frame.sent == frame.bytes.len() {
                self.queued_bytes -= frame.bytes.len();
                self.outgoing.pop_front();
            }
        }
        self.outgoing.shrink_to_fit();
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Reply, ToEngine};
    use std::io::{Read, Write};

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        (Connection::new(ours), theirs)
    }

    fn frame(text: &[u8]) -> Vec<u8> {
        let len = u32::try_from(text.len()).expect("short");
        [&len.to_le_bytes()[..], text].concat()
    }

    fn received(connection: &mut Connection) -> Vec<u8> {
        match connection.receive().expect("receive") {
            Received::Frame(frame) => frame.text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn frames_are_the_same_however_the_bytes_arrive() {
        let (mut connection, mut peer) = pair();
        for byte in frame(b"{}") {
            assert!(matches!(connection.receive().expect("receive"), Received::Nothing));
            peer.write_all(&[byte]).expect("write");
        }
        assert_eq!(received(&mut connection), b"{}");
        peer.write_all(&[frame(b"one"), frame(b""), frame(b"three")].concat()).expect("write");
        drop(peer);
        let three: Vec<_> = (0..3).map(|_| received(&mut connection)).collect();
        assert_eq!(three, [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
        assert!(matches!(connection.receive().expect("receive"), Received::Closed));
    }

    #[test]
    fn an_end_within_a_frame_is_an_error() {
        for part in [&frame(b"abc")[..2], &frame(b"abc")[..5]] {
            let (mut connection, mut peer) = pair();
            peer.write_all(part).expect("write");
            drop(peer);
            assert!(connection.receive().expect_err("short").to_string().contains("within a frame"));
        }
    }

    #[test]
    fn an_announced_length_costs_no_memory_and_one_too_long_is_an_error() {
        let (mut connection, mut peer) = pair();
        let announced = u32::try_from(wire::MAX_MESSAGE_BYTES).expect("fits");
        peer.write_all(&announced.to_le_bytes()).expect("write");
        assert!(matches!(connection.receive().expect("receive"), Received::Nothing));
        assert!(connection.incoming.text.capacity() <= READ_BYTES);
        let (mut connection, mut peer) = pair();
        peer.write_all(&(announced + 1).to_le_bytes()).expect("write");
        assert!(connection.receive().is_err());
    }

    #[test]
    fn descriptors_belong_to_the_frame_they_came_with_and_are_bounded() {
        let (mut connection, mut peer) = pair();
        let null = std::fs::File::open("/dev/null").expect("open");
        peer.write_all(&frame(b"a")).expect("write");
        sendmsg(&peer, &frame(b"b"), &[null.as_fd(), null.as_fd()]).expect("send");
        peer.write_all(&frame(b"c")).expect("write");
        let counts: Vec<_> = (0..3)
            .map(|_| match connection.receive().expect("receive") {
                Received::Frame(frame) => (frame.text[0], frame.fds.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(counts, [(b'a', 0), (b'b', 2), (b'c', 0)]);
        peer.write_all(&frame(b"late")[..5]).expect("write");
        sendmsg(&peer, &frame(b"late")[5..], &[null.as_fd()]).expect("send");
        assert!(connection.receive().expect_err("in the middle").to_string().contains("first byte"));
    }

    #[test]
    fn a_peer_that_does_not_read_is_hung_up_on_and_costs_a_bounded_amount() {
        let (mut connection, mut peer) = pair();
        let reply = || ToEngine::Reply {
            id: 1,
            reply: Reply::Failed(wire::Failure {
                kind: wire::FailureKind::Internal,
                message: "x".repeat(100_000),
                errno: 0,
            }),
        };
        let sent = (0..1000).take_while(|_| connection.send(&reply(), Vec::new()).is_ok()).count();
        assert!(sent < 100, "{sent}");
        assert!(connection.queued_bytes < MAX_QUEUED_BYTES + 200_000 && connection.wants_write());
        // What was taken arrives whole once the peer reads.
        let len = wire::encode(&reply()).expect("encode").len();
        let mut got = vec![0; len];
        for _ in 0..sent {
            connection.flush().expect("flush");
            peer.read_exact(&mut got).expect("read");
            assert_eq!(got, wire::encode(&reply()).expect("encode"));
        }
        assert_eq!((connection.queued_bytes, connection.wants_write()), (0, false));
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (mut connection, peer) = pair();
        drop(peer);
        assert!(connection.send(&ToEngine::Reply { id: 1, reply: Reply::Done }, Vec::new()).is_err());
    }
}
