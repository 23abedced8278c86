//! Frames of SPDY/3.1 (SPDY Protocol Draft 3.1, 2.2): eight bytes of head, then what it announces. What a server of Kubernetes' streams needs.

use crate::error::{Error, Result};

/// Of every frame, in bytes.
pub const HEAD_BYTES: usize = 8;
/// No more comes on this stream, in this direction.
pub const FLAG_FIN: u8 = 1;
const VERSION: u16 = 3;
/// The longest payload of a control frame, in bytes: ours are tens of bytes of headers.
pub const MAX_CONTROL_BYTES: usize = 16 << 10;
/// The highest stream id, and the longest frame.
const MAX_ID: u32 = 0x7fff_ffff;
const MAX_FRAME_BYTES: usize = (1 << 24) - 1;

/// Why a stream is reset (2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Protocol = 1,
    InvalidStream = 2,
    Refused = 3,
    Cancel = 5,
}

/// What a frame's first eight bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    Data { stream: u32, fin: bool, len: usize },
    Control { kind: u16, flags: u8, len: usize },
}

impl Head {
    /// # Errors
    /// `InvalidArgument`: another version, or a control frame that is too long. The connection is lost by that.
    pub fn parse(bytes: [u8; HEAD_BYTES]) -> Result<Head> {
        let [first @ .., flags, l1, l2, l3] = bytes;
        let (word, len) = (u32::from_be_bytes(first), u32::from_be_bytes([0, l1, l2, l3]) as usize);
        if word > MAX_ID {
            let [_, _, high, low] = first;
            let version = u16::from_be_bytes([first[0] & 0x7f, first[1]]);
            if version != VERSION {
                return Err(Error::invalid(format!("SPDY frame of version {version}")));
            }
            if len > MAX_CONTROL_BYTES {
                return Err(Error::invalid(format!("SPDY control frame of {len} bytes")));
            }
            return Ok(Head::Control { kind: u16::from_be_bytes([high, low]), flags, len });
        }
        Ok(Head::Data { stream: word, fin: flags & FLAG_FIN != 0, len })
    }
}

/// A control frame as it came.
#[derive(Debug, PartialEq, Eq)]
pub enum Control<'a> {
    /// The headers are compressed still, here and below: whatever becomes of them, they have to go through the decompressor.
    SynStream {
        stream: u32,
        fin: bool,
        headers: &'a [u8],
    },
    SynReply {
        headers: &'a [u8],
    },
    RstStream {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Headers {
        stream: u32,
        fin: bool,
        headers: &'a [u8],
    },
    /// SETTINGS and WINDOW_UPDATE: no client of Kubernetes goes by them, and none waits for ours.
    Ignored,
}

impl<'a> Control<'a> {
    /// # Errors
    /// `InvalidArgument`: no frame of SPDY/3.1. The connection is lost by that.
    pub fn parse(kind: u16, flags: u8, payload: &'a [u8]) -> Result<Control<'a>> {
        let wrong = || Error::invalid(format!("SPDY frame of type {kind} with {} bytes", payload.len()));
        let word = |at: usize| payload.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let exactly = |len: usize| if payload.len() == len { Ok(()) } else { Err(wrong()) };
        let stream = || word(0).map(|id| id & MAX_ID).ok_or_else(wrong);
        let after = |at: usize| payload.get(at..).ok_or_else(wrong);
        let fin = flags & FLAG_FIN != 0;
        Ok(match kind {
            1 => Control::SynStream { stream: stream()?, fin, headers: after(10)? },
            2 => Control::SynReply { headers: after(4)? },
            3 => {
                exactly(8)?;
                Control::RstStream { stream: stream()? }
            }
            4 | 9 => Control::Ignored,
            6 => {
                exactly(4)?;
                Control::Ping { id: word(0).ok_or_else(wrong)? }
            }
            7 => {
                exactly(8)?;
                Control::GoAway
            }
            8 => Control::Headers { stream: stream()?, fin, headers: after(4)? },
            _ => return Err(wrong()),
        })
    }
}

/// `bytes` are at most [`super::super::flow::CHUNK_BYTES`], far below what a frame may have.
pub fn data(stream: u32, fin: bool, bytes: &[u8]) -> Vec<u8> {
    framed(stream, u8::from(fin), &[bytes])
}

fn control(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    framed(0x8000_0000 | u32::from(VERSION) << 16 | u32::from(kind), 0, parts)
}

fn framed(word: u32, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let len = parts.iter().map(|part| part.len()).sum::<usize>().min(MAX_FRAME_BYTES);
    let mut frame = Vec::with_capacity(HEAD_BYTES + len);
    frame.extend_from_slice(&word.to_be_bytes());
    frame.extend_from_slice(&u32::try_from(len).unwrap_or(0).to_be_bytes());
    frame[4] = flags;
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

/// `headers` as [`super::header_block`] has them.
pub fn syn_reply(stream: u32, headers: &[u8]) -> Vec<u8> {
    control(2, &[&stream.to_be_bytes(), headers])
}

/// Takes a stream back, or refuses it.
pub fn rst_stream(stream: u32, status: Status) -> Vec<u8> {
    control(3, &[&stream.to_be_bytes(), &(status as u32).to_be_bytes()])
}

pub fn ping(id: u32) -> Vec<u8> {
    control(6, &[&id.to_be_bytes()])
}

/// No stream after `last` was looked at; all is well.
pub fn go_away(last: u32) -> Vec<u8> {
    control(7, &[&last.to_be_bytes(), &[0; 4]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(frame: &[u8]) -> (Head, &[u8]) {
        let (head, payload) = frame.split_first_chunk::<HEAD_BYTES>().expect("a head");
        (Head::parse(*head).expect("valid"), payload)
    }

    #[test]
    fn frames_are_those_of_the_draft() {
        assert_eq!(data(5, true, b"hi"), [0, 0, 0, 5, 1, 0, 0, 2, b'h', b'i']);
        assert_eq!(ping(1), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        assert_eq!(rst_stream(3, Status::Cancel), [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5]);
        assert_eq!(go_away(9)[..8], [0x80, 3, 0, 7, 0, 0, 0, 8]);
        let frame = data(5, true, b"hi");
        assert_eq!(split(&frame), (Head::Data { stream: 5, fin: true, len: 2 }, &b"hi"[..]));
        let frame = ping(7);
        let (Head::Control { kind, flags, .. }, payload) = split(&frame) else { panic!("{frame:?}") };
        assert_eq!(Control::parse(kind, flags, payload).expect("valid"), Control::Ping { id: 7 });
    }

    #[test]
    fn what_is_too_long_or_too_short_or_unknown_is_refused() {
        assert!(Head::parse([0x80, 2, 0, 1, 0, 0, 0, 10]).is_err(), "version 2");
        assert!(Head::parse([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).is_err(), "16 MiB of headers");
        assert!(Head::parse([0, 0, 0, 1, 0, 0xff, 0xff, 0xff]).is_ok(), "16 MiB of data come in pieces");
        for (kind, len) in [(1, 9), (2, 3), (3, 7), (3, 9), (6, 3), (6, 5), (7, 4), (8, 0), (5, 0), (10, 8), (0, 0)] {
            assert!(Control::parse(kind, 0, &vec![0; len]).is_err(), "type {kind} of {len} bytes");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_more_than_an_error(kind: u16, flags: u8, payload: Vec<u8>, head: [u8; 8]) {
            let _ = Control::parse(kind, flags, &payload); // it returns
            let _ = Head::parse(head); // likewise
        }
    }
}
