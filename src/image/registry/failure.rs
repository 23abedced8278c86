//! Why a request came to nothing, for whoever decides what to try next: wait, another endpoint, or give up.

use crate::error::{Error, Kind};
use std::time::Duration;

/// What is to be decided upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// No connection, or none in time: its name, its address.
    Unreachable,
    /// No connection that can be believed: its certificate, or ours.
    Untrusted,
    /// It answers, but not in TLS.
    NotTls,
    /// Credentials are missing, or not good for this.
    Denied,
    /// It has no such thing.
    Missing,
    /// Not now; perhaps it says when.
    Busy(Option<Duration>),
    /// The answer ended too early, or stopped coming.
    Broken,
    /// The answer is wrong, and asking again would not change it.
    Wrong,
    /// What has come is not what was asked for, and part of it was passed on.
    Corrupt,
    /// Nobody takes the answer any more.
    Unwanted,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Failure {
    pub why: Why,
    pub error: Error,
}

impl Failure {
    pub fn new(why: Why, message: impl Into<String>) -> Failure {
        let kind = match why {
            Why::Unreachable | Why::Untrusted | Why::NotTls | Why::Busy(_) | Why::Broken => Kind::Unavailable,
            Why::Denied => Kind::FailedPrecondition,
            Why::Missing => Kind::NotFound,
            Why::Wrong | Why::Corrupt | Why::Unwanted => Kind::InvalidArgument,
        };
        Failure { why, error: Error::new(kind, message) }
    }

    #[must_use]
    pub fn context(self, doing: impl Into<String>) -> Failure {
        Failure { why: self.why, error: self.error.context(doing) }
    }
}

impl From<Error> for Failure {
    /// An error that is not the other side's: nothing helps.
    fn from(error: Error) -> Failure {
        Failure { why: Why::Wrong, error }
    }
}
