//! What holds whatever a client sends on a connection that was upgraded; driven by [`crate::fuzz`].

use super::flow::{Arrival, Incoming};
use super::io::{HungUp, Io};
use super::spdy::frame::{Control, HEAD_BYTES, Head};
use super::spdy::header_block::Decompressor;
use super::websocket::frame::{self, Kind};
use super::websocket::{self, Channels};
use super::{spdy, websocket::Connection};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::collections::HashMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Bytes of a client that are looked at: below what waits on one connection, so that the order in which streams are read does not matter.
const MAX_INPUT: usize = 16 << 10;
/// Bytes in flight each way: all that a client sends here.
const PIPE: usize = 64 << 10;
/// The channels that a session reads.
const CHANNELS: [u8; 2] = [0, 4];

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(future)
}

/// A connection, and its client, who sends `bytes` and then no more.
async fn client(bytes: &[u8]) -> (Io, tokio::io::ReadHalf<DuplexStream>, tokio::io::WriteHalf<DuplexStream>) {
    let (near, far) = tokio::io::duplex(PIPE);
    let (from, mut to) = tokio::io::split(far);
    to.write_all(bytes).await.expect("the pipe is longer");
    to.shutdown().await.expect("the pipe is open");
    (Box::pin(near), from, to)
}

async fn all_of(incoming: &mut Incoming) -> Vec<u8> {
    let mut all = Vec::new();
    while let Arrival::Data(piece) = incoming.next().await {
        all.extend_from_slice(&piece.bytes);
    }
    all
}

/// The bytes of a SPDY client, served by an echo: streams are odd and ascend, each gets its own bytes in their order, and the answers are
/// frames of SPDY whose length is bounded by that of the input.
pub fn spdy(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MAX_INPUT)];
    let answers = block_on(async {
        let (io, mut from, _to) = client(bytes).await;
        let mut answers = Vec::new();
        let read = async { from.read_to_end(&mut answers).await };
        let (delivered, read) = tokio::join!(echo(spdy::Connection::new(io, HungUp::never())), read);
        read.expect("a pipe in memory");
        let sent = sent(bytes);
        for (stream, got) in delivered {
            let sent = sent.get(&stream).map(Vec::as_slice).unwrap_or_default();
            assert!(sent.starts_with(&got), "stream {stream}: {got:?} of {sent:?}");
        }
        answers
    });
    assert!(answers.len() <= 4 * bytes.len() + 256, "{} bytes of answers to {}", answers.len(), bytes.len());
    let mut decompressor = Decompressor::default();
    let mut rest = &answers[..];
    while !rest.is_empty() {
        let (head, after) = rest.split_first_chunk::<HEAD_BYTES>().expect("a whole head");
        let (len, control) = match Head::parse(*head).expect("a frame of ours") {
            Head::Data { len, .. } => (len, None),
            Head::Control { kind, flags, len } => (len, Some((kind, flags))),
        };
        let (payload, after) = after.split_at(len);
        if let Some((kind, flags)) = control
            && let Control::SynReply { headers } = Control::parse(kind, flags, payload).expect("a frame of ours")
        {
            assert_eq!(decompressor.headers(headers).expect("headers of ours"), Default::default());
        }
        rest = after;
    }
}

/// Serves every stream until the client sends no more, and tells what each has got.
async fn echo(mut connection: spdy::Connection) -> HashMap<u32, Vec<u8>> {
    let mut delivered = HashMap::new();
    let mut last = 0;
    while let Some(mut opened) = connection.opened().await {
        assert!(opened.id > last && opened.id % 2 == 1, "stream {} after {last}", opened.id);
        last = opened.id;
        if opened.headers.get("refuse").is_some() {
            connection.refuse(opened.id);
            continue;
        }
        let outgoing = connection.accept(opened.id);
        let got = all_of(&mut opened.incoming).await;
        if outgoing.send(&got).await.is_ok() && got.len() % 2 == 0 {
            outgoing.finish().await;
        }
        delivered.insert(opened.id, got);
    }
    connection.close(last).await;
    delivered
}

/// What a client's frames have for each stream once it is opened, its end or not.
fn sent(bytes: &[u8]) -> HashMap<u32, Vec<u8>> {
    let mut sent: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_first_chunk::<HEAD_BYTES>()
        && let Ok(head) = Head::parse(*head)
    {
        let (Head::Data { len, .. } | Head::Control { len, .. }) = head;
        let (payload, after) = after.split_at(len.min(after.len()));
        match head {
            Head::Data { stream, .. } => {
                if let Some(sent) = sent.get_mut(&stream) {
                    sent.extend_from_slice(payload);
                }
            }
            Head::Control { kind, flags, .. } => {
                if let Ok(Control::SynStream { stream, .. }) = Control::parse(kind, flags, payload) {
                    sent.entry(stream).or_default();
                }
            }
        }
        rest = after;
    }
    sent
}

/// The bytes of a client of a WebSocket, the first of which chooses what is spoken over it. Answers are frames of a server, not longer than
/// what was sent; what is sent as messages arrives as it was, in however many frames.
pub fn websocket(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let bytes = &bytes[..bytes.len().min(MAX_INPUT)];
    let channels = Channels { base64: mode & 1 != 0, half_close: mode & 2 != 0 };
    let (delivered, answers) = match mode & 4 == 0 {
        true => block_on(serve(bytes, channels)),
        false => block_on(tunnelled(bytes)),
    };
    let delivered: usize = delivered.iter().map(Vec::len).sum();
    assert!(delivered <= bytes.len(), "{delivered} bytes of {}", bytes.len());
    assert!(answers.len() <= bytes.len() + 16, "{} bytes of answers to {}", answers.len(), bytes.len());
    server_frames(&answers);

    let mask = [*mode, mode.wrapping_mul(31), 0, 7];
    let (first, second) = bytes.split_at(usize::from(*mode).min(bytes.len()));
    if channels.base64 {
        let messages = [first, second].map(|part| {
            let text = format!("4{}", BASE64_STANDARD.encode(part));
            client_frame(0x81, mask, text.as_bytes())
        });
        let (delivered, _) = block_on(serve(&messages.concat(), channels));
        assert_eq!(delivered, [Vec::new(), bytes.to_vec()]);
    } else {
        let begin = client_frame(0x02, mask, &[&[4], first].concat());
        let ping = client_frame(0x89, mask, b"p");
        let end = client_frame(0x80, mask, second);
        let (delivered, answers) = block_on(serve(&[begin, ping, end].concat(), channels));
        assert_eq!(delivered, [Vec::new(), bytes.to_vec()]);
        assert_eq!(answers[..3], frame::message(Kind::Pong, &[b"p"]));
    }
}

/// What arrived on each channel, and the answers.
async fn serve(bytes: &[u8], channels: Channels) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (io, mut from, _to) = client(bytes).await;
    let (connection, mut incoming) = websocket::Connection::new(io, HungUp::never(), channels, &CHANNELS);
    let [input, resize] = &mut incoming[..] else { panic!("one of each channel") };
    let delivered = async {
        let (input, resize) = tokio::join!(all_of(input), all_of(resize));
        hang_up(connection).await;
        vec![input, resize]
    };
    let mut answers = Vec::new();
    let (delivered, read) = tokio::join!(delivered, from.read_to_end(&mut answers));
    read.expect("a pipe in memory");
    (delivered, answers)
}

async fn tunnelled(bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (io, mut from, _to) = client(bytes).await;
    let (connection, mut inner) = Connection::tunnel(io, HungUp::never());
    let delivered = async {
        let mut all = Vec::new();
        inner.read_to_end(&mut all).await.expect("a pipe in memory");
        hang_up(connection).await;
        drop(inner);
        vec![all]
    };
    let mut answers = Vec::new();
    let (delivered, read) = tokio::join!(delivered, from.read_to_end(&mut answers));
    read.expect("a pipe in memory");
    (delivered, answers)
}

/// Once the client sends no more, and is answered.
async fn hang_up(connection: Connection) {
    let mut gone = connection.gone();
    let _ = gone.wait_for(|gone| *gone).await; // an error: the reader has ended
    connection.close().await;
}

fn client_frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut framed = frame::message(Kind::Binary, &[payload]);
    let head = framed.len() - payload.len();
    framed[0] = first;
    framed[1] |= 0x80;
    let mut masked = payload.to_vec();
    frame::mask(&mut masked, mask);
    [&framed[..head], &mask, &masked].concat()
}

/// Whole, unmasked, and of a kind that answers.
fn server_frames(mut rest: &[u8]) {
    while let Some((first, after)) = rest.split_first_chunk::<2>() {
        assert!([0x88, 0x8a].contains(&first[0]), "{first:?} is no answer");
        assert!(first[1] <= 125, "{first:?} is masked, or longer than a control frame");
        rest = &after[usize::from(first[1])..];
    }
    assert!(rest.is_empty(), "a piece of a frame: {rest:?}");
}
