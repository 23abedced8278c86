//! What holds whatever a peer sends over a shim's socket; driven by [`crate::fuzz`].

use super::{Connection, Received};
use crate::wire::{self, HEADER_BYTES, ToEngine, ToShim};
use serde::{Serialize, de::DeserializeOwned};
use std::io::Write;
use std::os::unix::net::UnixStream;

/// Bytes of a peer that are looked at: what a socket's buffer holds, for nobody reads meanwhile.
const MAX_INPUT: usize = 64 << 10;

/// Frames come out as they were put in, until one that is no frame; a message that is understood says the same when it is sent again.
pub fn wire(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MAX_INPUT)];
    let mut expected = frames(bytes).into_iter();
    let (ours, mut theirs) = UnixStream::pair().expect("socketpair");
    ours.set_nonblocking(true).expect("a socket");
    theirs.write_all(bytes).expect("it fits");
    drop(theirs);
    let mut connection = Connection::new(ours);
    while let Ok(Received::Frame(frame)) = connection.receive() {
        assert_eq!(Some(&frame.text[..]), expected.next());
        again::<ToShim>(&frame.text);
        again::<ToEngine>(&frame.text);
    }
    assert_eq!(expected.next(), None);
    // And as if it were one message.
    again::<ToShim>(bytes);
    again::<ToEngine>(bytes);
}

fn frames(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>()
        && let Ok(len) = wire::frame_len(*header)
        && let Some((text, after)) = after.split_at_checked(len)
    {
        frames.push(text);
        rest = after;
    }
    frames
}

fn again<T: Serialize + DeserializeOwned>(text: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(text) else { return };
    let sent = wire::encode(&message).expect("no longer than what came");
    let understood: T = serde_json::from_slice(&sent[HEADER_BYTES..]).expect("a message of ours");
    assert_eq!(wire::encode(&understood).expect("the same length"), sent);
}
