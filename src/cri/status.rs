//! [`Error`] -> [`Status`]: the only place that makes one.

use crate::error::{Error, Kind};
use tonic::{Code, Status};

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
    Status::new(code, error.to_string())
}

/// The same for PullImage: from a message that begins so, and has no code, the kubelet makes a reason of its own instead of ErrImagePull
/// (k8s.io/cri-api/pkg/errors, ErrRegistryUnavailable).
pub(super) fn pull_status(error: &Error) -> Status {
    match error.kind() {
        Kind::Unavailable => Status::new(Code::Unknown, format!("RegistryUnavailable: {error}")),
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
}
