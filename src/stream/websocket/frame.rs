//! Frames of a WebSocket, RFC 6455 section 5: a head of 2 to 14 bytes, then the payload, which a client has masked.

use crate::error::{Error, Result};

/// The longest message, in bytes: clients write 32 KiB at a time.
pub const MAX_MESSAGE_BYTES: usize = 512 << 10;
/// RFC 6455 section 5.5.
const MAX_CONTROL_BYTES: usize = 125;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// What a frame's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub kind: Kind,
    /// The last of its message.
    pub last: bool,
    pub len: usize,
    pub mask: [u8; 4],
}

/// How many bytes follow the first two of a client's frame, before its payload.
///
/// # Errors
/// `InvalidArgument`: it is not masked, as RFC 6455 section 5.1 has a client's be.
pub fn rest_of_head(first: [u8; 2]) -> Result<usize> {
    if first[1] & 0x80 == 0 {
        return Err(Error::invalid("WebSocket frame of a client that is not masked"));
    }
    Ok(4 + match first[1] & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    })
}

impl Head {
    /// `rest` is as long as [`rest_of_head`] said.
    ///
    /// # Errors
    /// `InvalidArgument`: no frame of RFC 6455, or one that is too long. The connection is lost by that.
    pub fn parse(first: [u8; 2], rest: &[u8]) -> Result<Head> {
        let wrong = |what: &str| Error::invalid(format!("WebSocket frame: {what}"));
        if first[0] & 0x70 != 0 {
            return Err(wrong("an extension that was not agreed on"));
        }
        let kind = match first[0] & 0x0f {
            0 => Kind::Continuation,
            1 => Kind::Text,
            2 => Kind::Binary,
            8 => Kind::Close,
            9 => Kind::Ping,
            10 => Kind::Pong,
            _ => return Err(wrong("a kind that is not known")),
        };
        let (length, mask) = rest.split_last_chunk::<4>().ok_or_else(|| wrong("cut off"))?;
        let len = match length {
            [] => u64::from(first[1] & 0x7f),
            long => long.iter().fold(0, |len, byte| len << 8 | u64::from(*byte)),
        };
        let last = first[0] & 0x80 != 0;
        let control = matches!(kind, Kind::Close | Kind::Ping | Kind::Pong);
        let most = if control { MAX_CONTROL_BYTES } else { MAX_MESSAGE_BYTES };
        match usize::try_from(len) {
            Ok(len) if len <= most && (last || !control) => Ok(Head { kind, last, len, mask: *mask }),
            _ => Err(wrong(&format!("{len} bytes of {kind:?}"))),
        }
    }
}

/// Undoes a mask, and does one.
pub fn mask(payload: &mut [u8], mask: [u8; 4]) {
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

/// A whole message of ours: `parts`, one after another.
pub fn message(kind: Kind, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(10 + len);
    frame.push(0x80 | kind.code());
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ ..=125), _) => frame.push(short),
        (_, Ok(medium)) => {
            frame.push(126);
            frame.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::Continuation => 0,
            Kind::Text => 1,
            Kind::Binary => 2,
            Kind::Close => 8,
            Kind::Ping => 9,
            Kind::Pong => 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_those_of_the_rfc() {
        // RFC 6455 section 5.7: a masked "Hello".
        let frame = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(rest_of_head([0x81, 0x85]).expect("masked"), 4);
        let head = Head::parse([0x81, 0x85], &frame[2..6]).expect("valid");
        assert_eq!((head.kind, head.last, head.len), (Kind::Text, true, 5));
        let mut payload = frame[6..].to_vec();
        mask(&mut payload, head.mask);
        assert_eq!(payload, b"Hello");
        assert_eq!(message(Kind::Text, &[b"Hel", b"lo"]), [&[0x81, 5][..], b"Hello"].concat());
        assert_eq!(message(Kind::Binary, &[&[0; 256]])[..4], [0x82, 126, 1, 0]);
        assert_eq!(message(Kind::Binary, &[&[0; 65536]])[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn what_a_client_must_not_send_is_refused() {
        assert!(rest_of_head([0x82, 5]).is_err(), "not masked");
        let parse = |first: [u8; 2], length: &[u8]| Head::parse(first, &[length, &[0; 4]].concat());
        assert!(parse([0xc2, 0x80], &[]).is_err(), "compressed");
        assert!(parse([0x83, 0x80], &[]).is_err(), "unknown");
        assert!(parse([0x09, 0x80], &[]).is_err(), "a ping in pieces");
        assert!(parse([0x89, 0xfe], &[0, 126]).is_err(), "a long ping");
        assert!(parse([0x82, 0xff], &u64::MAX.to_be_bytes()).is_err(), "endless");
        assert!(parse([0x82, 0xff], &(MAX_MESSAGE_BYTES as u64).to_be_bytes()).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_more_than_an_error(first: [u8; 2], rest: [u8; 12]) {
            if let Ok(len) = rest_of_head(first) {
                let _ = Head::parse(first, &rest[..len]); // it returns
            }
        }
    }
}
