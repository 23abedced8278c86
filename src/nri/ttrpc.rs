//! The messages of ttrpc (pure; containerd/ttrpc, PROTOCOL.md): unary calls, which is all that NRI has.
//!
//! ```text
//!   length (4 bytes)  stream (4 bytes)  type (1)  flags (1)  data       numbers big-endian
//!   client --Request--> server --Response--> client                     the client counts streams 1, 3, 5, ...
//! ```

use crate::error::{Error, Result};
use prost::Message as _;

pub const HEADER_BYTES: usize = 10;
/// The longest data that is sent, as the protocol has it.
pub const MAX_SENT_BYTES: usize = 4 << 20;
/// The longest data that is taken. The protocol would allow more; what plugins answer is some kilobytes.
pub const MAX_TAKEN_BYTES: usize = 1 << 20;
/// What a response's status carries when all went well, and what a method nobody has (google.rpc.Code).
pub const OK: i32 = 0;
pub const UNKNOWN: i32 = 2;
pub const UNIMPLEMENTED: i32 = 12;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Request,
    Response,
}

/// A message on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub stream: u32,
    pub kind: Type,
    pub data: Vec<u8>,
}

impl Message {
    /// Cuts the first message off what has come, if all of it has.
    ///
    /// # Errors
    /// `ResourceExhausted` for one that is too long, `InvalidArgument` for one of a type or with flags that no unary call has.
    pub fn cut(bytes: &mut Vec<u8>) -> Result<Option<Message>> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h, kind, flags] = *header;
        let (length, stream) = (u32::from_be_bytes([a, b, c, d]) as usize, u32::from_be_bytes([e, f, g, h]));
        if length > MAX_TAKEN_BYTES {
            return Err(Error::exhausted(format!("a message of {length} bytes; at most {MAX_TAKEN_BYTES} are taken")));
        }
        let kind = match (kind, flags) {
            (1, 0) => Type::Request,
            (2, 0) => Type::Response,
            _ => return Err(Error::invalid(format!("a message of type {kind} with flags {flags}: no unary call"))),
        };
        let Some(data) = rest.get(..length) else { return Ok(None) };
        let message = Message { stream, kind, data: data.to_vec() };
        bytes.drain(..HEADER_BYTES + length);
        Ok(Some(message))
    }

    /// As it is sent.
    ///
    /// # Errors
    /// `ResourceExhausted` for one that is longer than the protocol allows.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let length = u32::try_from(self.data.len()).ok().filter(|_| self.data.len() <= MAX_SENT_BYTES);
        let length = length.ok_or_else(|| {
            Error::exhausted(format!("a message of {} bytes; ttrpc has at most {MAX_SENT_BYTES}", self.data.len()))
        })?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.data.len());
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend([if self.kind == Type::Request { 1 } else { 2 }, 0]);
        bytes.extend(&self.data);
        Ok(bytes)
    }

    /// A call.
    pub fn request(stream: u32, request: &Request) -> Message {
        Message { stream, kind: Type::Request, data: request.encode_to_vec() }
    }

    /// Its answer.
    pub fn response(stream: u32, response: &Response) -> Message {
        Message { stream, kind: Type::Response, data: response.encode_to_vec() }
    }
}

/// A call.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Request {
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the caller waits; 0: it does not say.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Response {
    /// None: all went well.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// google.rpc.Status, without details.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Status {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_call_looks_as_the_protocol_has_it() {
        let request = Request { service: "s".into(), method: "m".into(), payload: vec![9], timeout_nano: 0 };
        let bytes = Message::request(3, &request).bytes().expect("short");
        let data = [0x0a, 1, b's', 0x12, 1, b'm', 0x1a, 1, 9];
        assert_eq!(bytes[..10], [0, 0, 0, 9, 0, 0, 0, 3, 1, 0]);
        assert_eq!(bytes[10..], data);
        let mut stream = bytes[..12].to_vec();
        assert_eq!(Message::cut(&mut stream).expect("so far"), None);
        stream.extend(&bytes[12..]);
        let back = Message::cut(&mut stream).expect("valid").expect("whole");
        assert_eq!((Request::decode(back.data.as_slice()).expect("decodes"), stream.len()), (request, 0));
    }

    #[test]
    fn what_is_too_long_or_no_unary_call_is_refused() {
        let cut = |bytes: [u8; 10]| Message::cut(&mut bytes.to_vec()).expect_err("refused").kind();
        assert_eq!(cut([0, 0x10, 0, 1, 0, 0, 0, 1, 2, 0]), Kind::ResourceExhausted);
        assert_eq!(cut([0, 0, 0, 1, 0, 0, 0, 1, 3, 0]), Kind::InvalidArgument, "data of a stream");
        assert_eq!(cut([0, 0, 0, 1, 0, 0, 0, 1, 1, 2]), Kind::InvalidArgument, "an open stream");
        let long = Message { stream: 1, kind: Type::Request, data: vec![0; MAX_SENT_BYTES + 1] };
        assert_eq!(long.bytes().expect_err("too long").kind(), Kind::ResourceExhausted);
    }
}
