//! Identifiers: pods, containers, execs, instances of `run`, digests. Parsed once at the door, trusted inside.
//!
//! Ids become file and cgroup names, so their grammar admits nothing that means something to a path.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Hex digits of a pod or container id, as containerd and CRI-O have them.
const LONG_HEX: usize = 64;
/// Hex digits of an instance of `run`; short, for it stands in every path below it (a socket's path has 107 bytes, unix(7)).
const INSTANCE_HEX: usize = 8;

fn is_lower_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn random_hex(len: usize) -> String {
    let mut bytes = [0u8; LONG_HEX / 2];
    crate::sys::random(&mut bytes);
    let mut hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    hex.truncate(len);
    hex
}

macro_rules! hex_id {
    ($name:ident, $len:expr, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new random one (getrandom(2)).
            pub fn random() -> Self {
                $name(random_hex($len))
            }

            /// The digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first twelve digits (or all, if fewer), as tables show them.
            pub fn short(&self) -> &str {
                &self.0[..self.0.len().min(12)]
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                if is_lower_hex(text, $len) {
                    return Ok($name(text.to_owned()));
                }
                Err(Error::invalid(format!("id {text:?} is not {} lower-case hex digits", $len)))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

hex_id!(PodId, LONG_HEX, "A pod sandbox: 64 lower-case hex digits.");
hex_id!(ContainerId, LONG_HEX, "A container: 64 lower-case hex digits.");
hex_id!(InstanceId, INSTANCE_HEX, "An instance of `podwright run`: 8 lower-case hex digits.");

impl PodId {
    /// The id of no pod, all zeroes: what a shim has that was made before its pod is known.
    pub fn none() -> Self {
        PodId("0".repeat(LONG_HEX))
    }

    /// Whether it is [`PodId::none`].
    pub fn is_none(&self) -> bool {
        self.0.bytes().all(|digit| digit == b'0')
    }
}

/// An exec inside one container: its ordinal, from 1. Names the cgroup `exec-N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExecId(pub u32);

impl ExecId {
    /// Reads what it is written as.
    pub fn parse(name: &str) -> Option<ExecId> {
        name.strip_prefix("exec-")?.parse().ok().map(ExecId)
    }
}

impl fmt::Display for ExecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exec-{}", self.0)
    }
}

/// A content digest, `sha256:` and 64 lower-case hex digits (OCI image-spec, descriptor.md). Other algorithms are refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest whose sha256 is `hash`.
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        Digest(hash.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// The 64 digits without the algorithm: a file name.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("sha256:") {
            Some(hex) if is_lower_hex(hex, LONG_HEX) => Ok(Digest(hex.to_owned())),
            _ => Err(Error::invalid(format!("digest {text:?} is not sha256: followed by 64 lower-case hex digits"))),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_be_a_path_is_refused() {
        for bad in ["", "..", "a/b", &"A".repeat(64), &"g".repeat(64), &"a".repeat(63)] {
            assert!(bad.parse::<PodId>().is_err(), "{bad:?}");
        }
        assert_eq!("a".repeat(64).parse::<PodId>().expect("valid").short(), "aaaaaaaaaaaa");
    }

    #[test]
    fn random_ids_have_their_length_and_differ() {
        assert_ne!(PodId::random(), PodId::random());
        assert_eq!(InstanceId::random().as_str().len(), 8);
    }

    #[test]
    fn a_digest_round_trips_and_other_algorithms_are_refused() {
        let text = format!("sha256:{}", "0".repeat(64));
        assert_eq!(text.parse::<Digest>().expect("valid").to_string(), text);
        assert!(format!("sha512:{}", "0".repeat(64)).parse::<Digest>().is_err());
    }
}
