//! [`Error`] -> [`Status`]: the only place that makes one.

use crate::error::{Error, Kind};
use std::borrow::Cow;
use std::fmt::Write as _;
use tonic::{Code, Status};

/// The longest message, in bytes. It travels as a header, where each byte may take three, beside others; HTTP/2 clients take 16 KiB of those
/// by default, and one that gets more ends the connection with all its other calls. A message repeats what was asked for.
const MAX_MESSAGE_BYTES: usize = 4096;
/// How much of a longer one is its beginning, in bytes: what was being done. The reason is at the end.
const BEGINNING_BYTES: usize = 1024;

/// The code of gRPC that each kind mirrors; the message is the error's, and what people read in `kubectl describe`.
pub(super) fn status(error: &Error) -> Status {
    let code = match error.kind() {
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unsupported => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    };
    Status::new(code, message(&error.to_string()))
}

/// What is told: bounded, and nothing that a terminal would obey.
fn message(text: &str) -> String {
    let mut told = String::with_capacity(text.len().min(MAX_MESSAGE_BYTES));
    let put = |told: &mut String, c: char| match c {
        '\n' | '\t' => told.push(c),
        c if c.is_control() => write!(told, "{}", c.escape_default()).unwrap_or_default(), // to a string
        c => told.push(c),
    };
    // Once before, for it may be long, and once after, for what was escaped is longer.
    shortened(text).chars().for_each(|c| put(&mut told, c));
    shortened(&told).into_owned()
}

/// The beginning and the end of what is too long.
fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_MESSAGE_BYTES {
        return Cow::Borrowed(text);
    }
    let beginning = text.floor_char_boundary(BEGINNING_BYTES);
    let end = text.ceil_char_boundary(text.len() - (MAX_MESSAGE_BYTES - BEGINNING_BYTES));
    Cow::Owned(format!("{} [...] {}", &text[..beginning], &text[end..]))
}

/// The same for PullImage: from a message that begins so, and has no code, the kubelet makes a reason of its own instead of ErrImagePull
/// (k8s.io/cri-api/pkg/errors, ErrRegistryUnavailable).
pub(super) fn pull_status(error: &Error) -> Status {
    match error.kind() {
        Kind::Unavailable => Status::new(Code::Unknown, message(&format!("RegistryUnavailable: {error}"))),
        _ => status(error),
    }
}

/// A method that this version does not have. Clients tell by the code, people by the name.
pub(super) fn unimplemented(method: &str) -> Status {
    status(&Error::unsupported(format!("{method} is not in this version of podwright")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_that_the_kubelet_branches_on_are_those_of_their_kinds() {
        for (kind, code) in [
            (Kind::NotFound, Code::NotFound),
            (Kind::DeadlineExceeded, Code::DeadlineExceeded),
            (Kind::Unsupported, Code::Unimplemented),
            (Kind::Unavailable, Code::Unavailable),
        ] {
            let status = status(&Error::new(kind, "x").context("run pod"));
            assert_eq!((status.code(), status.message()), (code, "run pod: x"));
        }
    }

    #[test]
    fn a_message_is_bounded_and_keeps_its_beginning_and_its_end() {
        let long = Error::invalid(format!("{}: is no name", "\u{e9}".repeat(1 << 20))).context("run pod");
        let told = status(&long);
        assert!(told.message().starts_with("run pod: \u{e9}") && told.message().ends_with(": is no name"));
        assert!(told.message().len() <= MAX_MESSAGE_BYTES + 16, "{}", told.message().len());
        assert!(message(&"\0".repeat(MAX_MESSAGE_BYTES)).len() <= MAX_MESSAGE_BYTES + 16, "what is escaped is longer");
        assert_eq!(message("a\u{1b}[2Jb\r\0\n\tc"), "a\\u{1b}[2Jb\\r\\u{0}\n\tc");
    }
}
