//! Several connections in one: NRI's frames on the socket of a plugin (pure; containerd/nri, pkg/net/multiplex).
//!
//! ```text
//!   connection (4 bytes)  length (4 bytes)  payload       both numbers big-endian
//! ```
//! Each side is a client of the other, on a connection of its own. What a payload means is [`super::ttrpc`]'s.

use super::ttrpc;
use crate::error::{Error, Result};

/// Where the runtime asks and the plugin answers.
pub const PLUGIN: u32 = 1;
/// Where the plugin asks and the runtime answers.
pub const RUNTIME: u32 = 2;

const HEADER_BYTES: usize = 8;
/// The longest first piece of a message that is sent: a plugin that is made with Go's library reads into a buffer of this size, and fails
/// when a frame does not fit into it. What follows it reads into one buffer of exactly the rest.
const FIRST_PIECE_BYTES: usize = 4096;
/// The longest payload that is taken: a message of ttrpc.
const MAX_PAYLOAD_BYTES: usize = ttrpc::HEADER_BYTES + ttrpc::MAX_TAKEN_BYTES;

/// A message in the frames that carry it.
pub fn frames(connection: u32, message: &[u8]) -> Vec<u8> {
    let (first, rest) = message.split_at(message.len().min(FIRST_PIECE_BYTES));
    let mut bytes = Vec::with_capacity(message.len() + 2 * HEADER_BYTES);
    for piece in [first, rest].into_iter().filter(|piece| !piece.is_empty()) {
        bytes.extend(connection.to_be_bytes());
        bytes.extend(u32::try_from(piece.len()).unwrap_or(u32::MAX).to_be_bytes()); // ttrpc's messages are 4 MiB at most
        bytes.extend(piece);
    }
    bytes
}

/// Takes the frames of a socket apart into messages. Of what a peer sends it keeps one message for each of the two connections, and one
/// frame.
#[derive(Debug, Default)]
pub struct Demux {
    bytes: Vec<u8>,
    plugin: Vec<u8>,
    runtime: Vec<u8>,
}

impl Demux {
    /// Takes what was read from the socket.
    pub fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message that is complete, and the connection it came on. `None`: more is to be read.
    ///
    /// # Errors
    /// `ResourceExhausted` for more than is taken, `InvalidArgument` for what is no frame or message: the socket is to be closed.
    pub fn message(&mut self) -> Result<Option<(u32, ttrpc::Message)>> {
        loop {
            for (connection, stream) in [(PLUGIN, &mut self.plugin), (RUNTIME, &mut self.runtime)] {
                if let Some(message) = ttrpc::Message::cut(stream)? {
                    return Ok(Some((connection, message)));
                }
            }
            let Some((connection, payload)) = self.frame()? else { return Ok(None) };
            let stream = match connection {
                PLUGIN => &mut self.plugin,
                RUNTIME => &mut self.runtime,
                other => return Err(Error::invalid(format!("a frame for connection {other}; there are 1 and 2"))),
            };
            stream.extend(payload);
        }
    }

    fn frame(&mut self) -> Result<Option<(u32, Vec<u8>)>> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h] = *header;
        let (connection, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]) as usize);
        if length > MAX_PAYLOAD_BYTES {
            return Err(Error::exhausted(format!("a frame of {length} bytes; at most {MAX_PAYLOAD_BYTES} are taken")));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let payload = payload.to_vec();
        self.bytes.drain(..HEADER_BYTES + length);
        Ok(Some((connection, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::nri::ttrpc::{Message, Type};
    use proptest::prelude::*;

    fn message(stream: u32, length: usize) -> Message {
        Message { stream, kind: Type::Request, data: vec![7; length] }
    }

    #[test]
    fn the_first_piece_fits_a_go_readers_buffer_and_the_second_is_the_rest() {
        let bytes = frames(PLUGIN, &[1; 10_000]);
        assert_eq!(bytes[..8], [0, 0, 0, 1, 0, 0, 16, 0]);
        assert_eq!(bytes[8 + 4096..8 + 4096 + 8], [0, 0, 0, 1, 0, 0, 23, 16]);
        assert_eq!(bytes.len(), 10_000 + 16);
        assert_eq!(frames(RUNTIME, &[1; 4096]).len(), 4096 + 8);
    }

    #[test]
    fn a_frame_above_the_bound_is_refused_before_it_is_read() {
        let mut demux = Demux::default();
        demux.take(&[0, 0, 0, 1, 0, 0x10, 0, 11]); // 1 MiB and a header, and one more
        assert_eq!(demux.message().expect_err("too long").kind(), Kind::ResourceExhausted);
        let mut demux = Demux::default();
        demux.take(&[0, 0, 0, 3, 0, 0, 0, 0]);
        assert_eq!(demux.message().expect_err("no such connection").kind(), Kind::InvalidArgument);
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_they_are_cut(
            sent in proptest::collection::vec((1u32..3, 0usize..9000), 1..8),
            cut in 1usize..5000,
        ) {
            let mut bytes = Vec::new();
            for (n, (connection, length)) in sent.iter().enumerate() {
                let stream = u32::try_from(n).expect("small");
                bytes.extend(frames(*connection, &message(stream, *length).bytes().expect("fits")));
            }
            let (mut demux, mut got) = (Demux::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                demux.take(piece);
                while let Some((connection, message)) = demux.message().expect("valid") {
                    got.push((connection, message.data.len()));
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn any_bytes_are_taken_or_refused_and_never_kept_beyond_the_bound(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let mut demux = Demux::default();
            demux.take(&bytes);
            for _ in 0..bytes.len() + 1 {
                match demux.message() {
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
            prop_assert!(demux.bytes.len() <= 4000);
        }
    }
}
