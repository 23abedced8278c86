//! One layer: a confined process reads a blob once and leaves a directory tree for overlay.
//!
//! ```text
//! parent                                  podwright unpack JOB        (one a layer, at most one a core)
//!   cwd   = tmp/<session>/<diff id>/fs      unshare mount, net, ipc, uts; pivot_root to its cwd
//!   stdin = the blob: a file or a pipe      uid 65534, six capabilities, no_new_privs, rlimits, dies with the parent
//!   stdout: Reply lines  <---------------   sha256 > gunzip/unzstd > sha256 > tar > openat2 below the root
//!   stderr: a panic's message               a seccomp filter of the few calls it needs
//!                                           the session's lock, held until the last of them is gone
//! ```
//! * [`stream`]  the bytes: digests, decompression, bounds
//! * [`tree`]    the files: what an entry does to the tree
//! * [`calls`]   the system calls it may make
//! * [`worker`]  the process: confinement, job, replies
//! * [`spawn`]   the parent's half
//!
//! The capabilities are CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD and SETFCAP: what owners, modes, devices and file capabilities
//! need. `trusted.overlay.opaque` needs SYS_ADMIN, so the worker names its opaque directories and the parent marks them, opening each beneath
//! the layer's root. A worker that its input took over can still write what it likes into this one layer, and so lie about the diff id; it sees
//! no other file, no network and no process's memory.

pub mod calls;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod spawn;
mod stream;
mod tree;
pub mod worker;

use crate::error::{Error, Kind};
use crate::id::Digest;
use serde::{Deserialize, Serialize};

/// Entries of a layer, at most.
pub const MAX_ENTRIES: u64 = 512 << 10;
/// Bytes of a layer's tar stream, and of its files with their holes, at most.
pub const MAX_UNPACKED: u64 = 64 << 30;
/// A stream that has become this large may not be more than [`MAX_RATIO`] times what it was made from: deflate's own limit is 1032, and
/// nothing but a bomb comes near.
const RATIO_FROM: u64 = 256 << 20;
/// See [`RATIO_FROM`].
const MAX_RATIO: u64 = 1000;
/// Directories that hide what is below them, in one layer, at most.
const MAX_OPAQUE: usize = 64 << 10;
/// Bytes between two reports of progress.
const PROGRESS_EVERY: u64 = 1 << 20;

/// What the worker is to do with its standard input; one JSON argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    what: What,
    /// Where the blob starts in a file that holds more than it; a pipe starts at 0.
    offset: u64,
    /// Bytes of the blob; reading more or fewer is an error. `None`: to the end.
    len: Option<u64>,
    /// Standard input is a pipe: read it instead of reading at offsets.
    pipe: bool,
    /// The process that has to be alive.
    parent: u32,
    /// The descriptor of the session's lock, the only one that stays open beside the standard three.
    keep: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    /// Extract it into the working directory.
    Layer,
    /// Decompress it to a file `archive` in the working directory.
    Inflate,
}

/// A line of the worker's standard output.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Reply {
    /// Bytes of the blob read so far.
    Progress { read: u64 },
    /// The path of an opaque directory below the root, in bytes.
    Opaque { path: Vec<u8> },
    /// The last line, when all went well.
    Done(Unpacked),
    /// The last line, when not. The kind is a name of [`Kind`].
    Failed { kind: String, message: String },
}

/// What a layer came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Of the blob as it came.
    pub blob: Digest,
    pub blob_bytes: u64,
    /// Of the tar stream.
    pub diff_id: Digest,
    /// What du(1) would say on a file system of 4 KiB blocks: data without holes, and a block for each directory.
    pub unpacked_bytes: u64,
    pub entries: u64,
    /// The root itself is opaque: no layer below this one is to be seen.
    pub opaque_root: bool,
    /// Attributes that were left out, for they are not `security.capability` or `user.*`.
    pub ignored_xattrs: u64,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::NotFound, "not-found"),
    (Kind::AlreadyExists, "already-exists"),
    (Kind::InvalidArgument, "invalid"),
    (Kind::FailedPrecondition, "precondition"),
    (Kind::Unavailable, "unavailable"),
    (Kind::DeadlineExceeded, "deadline"),
    (Kind::ResourceExhausted, "exhausted"),
    (Kind::Unsupported, "unsupported"),
    (Kind::Internal, "internal"),
];

fn failed(error: &Error) -> Reply {
    let kind = KINDS.iter().find(|(kind, _)| *kind == error.kind()).map_or("internal", |(_, name)| name);
    Reply::Failed { kind: kind.to_owned(), message: error.to_string() }
}

fn error_of(kind: &str, message: String) -> Error {
    let kind = KINDS.iter().find(|(_, name)| *name == kind).map_or(Kind::Internal, |(kind, _)| *kind);
    Error::new(kind, message)
}
