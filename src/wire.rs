//! The protocol between the engine and a pod's shim: messages, versions, framing. Who sends what:
//!
//! | engine sends      | fds it carries                     | shim answers          | fds that ride back                   |
//! |-------------------|------------------------------------|-----------------------|--------------------------------------|
//! | `Hello`           |                                    | `Hello`               |                                      |
//! | `Join`            | cgroup.procs of the shims' cgroup  | `Done`                |                                      |
//! | `CreateSandbox`   | pause cgroup, listening socket, [flight] | `Sandbox`       | pidfd of pause                       |
//! | `Prepare` (5)     |                                    | `Done`                |                                      |
//! | `Start`           | container cgroup                   | `Started`             | pidfd; stdout, stderr or the pty; stdin if it is open |
//! | `Exec`            | stdin, stdout, stderr; or a socket | `Executed`, at its end |                                     |
//! | `Signal`          |                                    | `Done`                |                                      |
//! | `Kill`            |                                    | `Done`                |                                      |
//! | `ReopenLog`       |                                    | `Done`                |                                      |
//! | `Forget`          |                                    | `Done`                |                                      |
//! | `StopSandbox`     |                                    | `Done`, when pause is gone |                                 |
//! | `List`            |                                    | `List`                |                                      |
//! | `Shutdown`        |                                    | `Done`, then it exits |                                      |
//! | `CancelExec` (2)  |                                    | `Done`; `Exec` is answered as well, at its end |             |
//! | `Duplicate` (2)   |                                    | `Duplicates`          | pidfd, then the streams it names     |
//! | `Adopt` (2)       | listening socket, pidfd of pause   | `Done`                |                                      |
//! | `AdoptContainer` (2) | container cgroup, pidfd, then the streams it names | `Done` |                                   |
//! | `Attach` (3)      | pipes to write to, in the order of the streams it names | `Done` |                              |
//! | `CloseInput` (3)  |                                    | `Done`, and `InputClosed` to all |                           |
//!
//! (2), (3): from that version on. The streams that ride back are the shim's own, non-blocking, for the engine to hold and not to read: they
//! outlive the shim. When it has died they go to another one, with `Adopt` instead of `CreateSandbox` and an `AdoptContainer` for each
//! container; an engine that comes later asks for them (`Duplicate`).
//! A container may be another OCI runtime's (4): `Launch` names its program. An `Exec` with `tty` brings a socket then, over which the master
//! of the terminal goes that the runtime has made; closed without one if there is none. Nothing else is different.
//! `Prepare` makes a container's root before it is started, while nobody waits; it says nothing about the container and changes nothing of it.
//! What it made goes with the `Start`, the `Forget`, or the connection, and a `Start` without it makes its own.
//! The flight recorder is opened by its path; a descriptor for it is not looked at.
//!
//! For people at a terminal (3): an `Exec` with `tty` brings the slave of a pseudo terminal three times, whose master is the engine's alone,
//! so no byte of an exec passes through a shim. What a container writes does, for the log: `Attach` has it copied into pipes as well. A
//! reader that is too slow misses some, which it is told, and holds up neither the container nor the log. Input is written by the engine,
//! into its duplicate; `CloseInput` has everybody let go of theirs, which is how the container learns that there is no more.
//!
//! Unasked, to every connection: `Event`. Any request may be answered by `Failed`. Answers carry the request's number and may
//! come in any order (an exec of an hour holds up nothing).
//!
//! The first connection is the shim's file descriptor 0, given at its birth: a shim exists before the first file or cgroup
//! of its pod does, so that it can take everything away when its engine dies. Further ones come over `shim.sock`. A shim
//! of an instance of `run` watches the connection that said `owner`; when it hangs up, the shim turns into
//! `podwright sweep INSTANCE`, which removes the pod with the engine's own verbs.
//!
//! A shim may be made before its pod is known, with [`PodId::none`] in its place: the pod is then the one of `CreateSandbox`.
//!
//! A frame is the length of the JSON text (u32, little endian) and the text; file descriptors ride along with the
//! first byte (SCM_RIGHTS, unix(7)). The first message each way is `Hello` with the versions understood; both go on with the
//! highest common one; each release keeps the one before it. With a shim of an older version everything works but what came later.

use crate::error::{Error, Kind};
use crate::id::{ContainerId, ExecId, PodId};
use crate::state::model::{NamespaceMode, Namespaces};
use crate::state::record::{ExitRecord, ExitStatus, Process, ProcessRecord, StdStream, User};
use crate::state::spec::SpecText;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The versions of the protocol that this program understands, oldest and newest.
pub const VERSIONS: (u32, u32) = (1, 5);
/// The version from which on an exec can be cancelled.
pub const CANCELLATION: u32 = 2;
/// The version from which on a shim can be taken over from, and can take over.
pub const ADOPTION: u32 = 2;
/// The version from which on execs have terminals, and running containers can be attached to.
pub const INTERACTION: u32 = 3;
/// The version from which on AppArmor profiles are entered.
pub const SECURITY: u32 = 4;
/// The version from which on containers may be another runtime's.
pub const RUNTIMES: u32 = 4;
/// The version from which on a root can be made in advance.
pub const PREPARATION: u32 = 5;
/// The longest message, in bytes: an OCI spec with a full environment (128 KiB an argument, 2 MiB together, execve(2)).
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The most file descriptors that ride along with one message.
pub const MAX_FDS: usize = 8;
/// How many containers one shim holds: a pod of Kubernetes has at most a few dozen.
pub const MAX_CONTAINERS: usize = 1024;
/// How many execs run in one pod at a time; one more is refused.
pub const MAX_EXECS: usize = 256;
/// How many pipes one container's output is copied into at a time; one more is refused.
pub const MAX_ATTACHED: usize = 128;
/// How many connections one shim serves at a time; one more is closed at once.
pub const MAX_CONNECTIONS: usize = 64;

/// What the engine sends.
#[derive(Debug, Serialize, Deserialize)]
pub struct ToShim {
    /// Chosen by the sender, unique among its unanswered requests.
    pub id: u32,
    pub request: Request,
}

/// What the shim sends.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToEngine {
    Reply { id: u32, reply: Reply },
    Event(Event),
}

/// A request to the shim; the table above says what rides along and what comes back.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// `owner`: the pod shall not outlive this connection; refused by a shim that belongs to no instance.
    Hello {
        versions: (u32, u32),
        owner: bool,
    },
    Join,
    CreateSandbox(Box<Sandbox>),
    /// Of a container that is about to be started, in a pod without a user namespace, a runtime handler, or labels of SELinux.
    Prepare {
        container: ContainerId,
        root: Root,
    },
    Start(Box<Launch>),
    Exec(Box<Exec>),
    /// To the container's first process only. Like `Kill` and `ReopenLog`, `Done` for a container that has ended meanwhile.
    Signal {
        container: ContainerId,
        signal: i32,
    },
    /// SIGKILL to everything in the container's cgroup (cgroup.kill).
    Kill {
        container: ContainerId,
    },
    ReopenLog {
        container: ContainerId,
    },
    /// The container has ended (or never started) and its record is about to go. `Done` for one that is unknown.
    Forget {
        container: ContainerId,
    },
    /// Kills the containers that run (their exits are told), then pause. `Done` for one that is gone; nothing starts afterwards.
    StopSandbox,
    List,
    /// Refused while anything runs.
    Shutdown,
    /// Nobody waits for that exec any more: everything in it is killed. `Done` for one that has ended, or is unknown.
    CancelExec {
        container: ContainerId,
        exec: ExecId,
    },
    /// Of a running container, or of pause.
    Duplicate {
        container: Option<ContainerId>,
    },
    Adopt(Box<Adopt>),
    AdoptContainer(Box<AdoptContainer>),
    /// Copies what the container writes from now on, until it ends, into the pipes that ride along. A terminal's output is all stdout.
    Attach {
        container: ContainerId,
        outputs: Vec<StdStream>,
    },
    /// Nobody will write to its input again. `Done` for one that has none, or has ended.
    CloseInput {
        container: ContainerId,
    },
}

/// The pod of a shim that has died.
#[derive(Debug, Serialize, Deserialize)]
pub struct Adopt {
    pub pod: PodId,
    /// As [`Sandbox::dir`].
    pub dir: PathBuf,
    /// Pause runs, or its end is still to be learned from its pidfd.
    pub sandbox: SandboxState,
}

/// A container of a shim that has died: it runs, or its end is still to be learned from its pidfd.
#[derive(Debug, Serialize, Deserialize)]
pub struct AdoptContainer {
    /// As it was started with: an exec is confined as it says, and it names the log.
    pub launch: Launch,
    pub process: ProcessRecord,
    pub warnings: Vec<String>,
    /// Those that ride along, in this order.
    pub streams: Vec<StdStream>,
}

/// The pod's pause process and namespaces.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sandbox {
    pub pod: PodId,
    /// `<state>/…/pods/<pod>`: where `sandbox.json` goes.
    pub dir: PathBuf,
    pub namespaces: Namespaces,
    /// Set in the pod's uts namespace; empty with the host's network.
    pub hostname: String,
    /// Dotted name and value; each belongs to a namespace of the pod.
    pub sysctls: Vec<(String, String)>,
    /// Bytes of the pod's /dev/shm.
    pub shm_bytes: u64,
    /// Written for pause; where it may not be lowered (without CAP_SYS_RESOURCE) it stays as it is.
    pub oom_score_adj: i32,
    /// SELinux's, of the pod's /dev/shm. Of pods that have a label the shim is always as new as this field.
    #[serde(default)]
    pub file_label: Option<String>,
}

/// Everything needed to start one container. Nothing in it is looked up again but names of users, in the container's root.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {
    pub container: ContainerId,
    /// `<state>/…/containers/<container>`: where `process.json` and `exit.json` go.
    pub dir: PathBuf,
    /// The OCI runtime spec. Its `linux.resources` were applied by the engine already; its `process.user` is a default.
    pub spec: SpecText,
    pub root: Root,
    pub user: UserChoice,
    pub namespaces: Namespaces,
    pub seccomp: Seccomp,
    pub stdio: Stdio,
    /// Run it below an own init that reaps.
    pub init: bool,
    /// A limit or oom_score_adj that the host refuses is reported, not fatal.
    pub allow_unenforced: bool,
    /// Who makes the container's processes; `None`: the shim itself. A shim of a version before [`RUNTIMES`] does not know it.
    #[serde(default)]
    pub runtime: Option<Runtime>,
}

/// Another OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// The handler's, as the configuration has it.
    pub name: String,
    /// Of its program; absolute.
    pub path: PathBuf,
}

/// What the root file system is made of: overlayfs, the lowest layer first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub layers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub readonly: bool,
}

/// Whom to run as, before names were looked up in the container's /etc/passwd and /etc/group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserChoice {
    /// `user[:group]`, each a number or a name; empty is `0`.
    pub user: String,
    /// Wins over the group that `user` names or implies.
    pub group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    /// Leave out the groups of the image's /etc/group.
    pub strict_groups: bool,
    /// Refuse uid 0.
    pub non_root: bool,
}

/// The seccomp filter (seccomp(2)).
#[derive(Debug, Serialize, Deserialize)]
pub enum Seccomp {
    Unconfined,
    /// The built-in profile, for the capabilities the container has.
    RuntimeDefault,
    /// The one in the spec's `linux.seccomp`.
    Spec,
}

/// Where a container's input comes from and its output goes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stdio {
    pub tty: bool,
    /// Keep a pipe open for attach; else /dev/null.
    pub stdin: bool,
    pub stdin_once: bool,
    /// The log, in the CRI's format; `None`: discarded.
    pub log: Option<PathBuf>,
}

/// A further process in a running container, with exactly the container's confinement.
#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    pub container: ContainerId,
    pub exec: ExecId,
    pub args: Vec<String>,
    /// Added to the container's own.
    pub env: Vec<String>,
    /// Empty: the container's.
    pub cwd: String,
    /// `None`: the container's.
    pub user: Option<UserChoice>,
    /// Nanoseconds until everything in it is killed; 0: never.
    pub timeout_ns: u64,
    /// What rides along is a terminal, to be the controlling one of its session; or a socket, see above.
    #[serde(default)]
    pub tty: bool,
    /// Of the terminal that another runtime makes; `None`: not known. One that is given has its size.
    #[serde(default)]
    pub size: Option<TerminalSize>,
}

/// In characters; none is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// An answer of the shim.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// `pod`: none yet for a spare.
    Hello {
        version: u32,
        pod: Option<PodId>,
    },
    Sandbox(SandboxState),
    Started(ContainerState),
    Executed(Executed),
    List {
        sandbox: Option<SandboxState>,
        containers: Vec<ContainerState>,
    },
    /// Which streams ride along.
    Duplicates {
        streams: Vec<StdStream>,
    },
    Done,
    Failed(Failure),
}

/// The pause process as the shim sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxState {
    pub pause: Process,
    pub started_at_ns: i64,
    /// How it ended, if it has.
    pub exit: Option<ExitStatus>,
}

/// A container as the shim sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerState {
    pub container: ContainerId,
    pub process: ProcessRecord,
    pub exit: Option<ExitRecord>,
    /// What could not be enforced and was allowed not to be.
    pub warnings: Vec<String>,
}

/// How an exec ended: its first process. What it left in the background lives on in `exec-N`, which goes with the last of it; output may
/// therefore be held open for longer, and is the engine's to bound. At the deadline everything in `exec-N` is killed, and this comes when
/// nothing of it is left, or after 10 s.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Executed {
    pub status: ExitStatus,
    /// The deadline ended it.
    pub timed_out: bool,
    pub message: String,
}

/// Why a request could not be served.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
    /// The errno of a container's failed start, 0 when there was none: 2 becomes exit code 127 of `run`, 13 becomes 126.
    pub errno: i32,
}

/// [`Kind`], as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    NotFound,
    AlreadyExists,
    InvalidArgument,
    FailedPrecondition,
    ResourceExhausted,
    Unsupported,
    Internal,
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Self {
        let kind = match e.kind() {
            Kind::NotFound => FailureKind::NotFound,
            Kind::AlreadyExists => FailureKind::AlreadyExists,
            Kind::InvalidArgument => FailureKind::InvalidArgument,
            Kind::FailedPrecondition => FailureKind::FailedPrecondition,
            Kind::ResourceExhausted => FailureKind::ResourceExhausted,
            Kind::Unsupported => FailureKind::Unsupported,
            Kind::Unavailable | Kind::DeadlineExceeded | Kind::Internal => FailureKind::Internal,
        };
        Failure { kind, message: e.to_string(), errno: 0 }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind {
            FailureKind::NotFound => Kind::NotFound,
            FailureKind::AlreadyExists => Kind::AlreadyExists,
            FailureKind::InvalidArgument => Kind::InvalidArgument,
            FailureKind::FailedPrecondition => Kind::FailedPrecondition,
            FailureKind::ResourceExhausted => Kind::ResourceExhausted,
            FailureKind::Unsupported => Kind::Unsupported,
            FailureKind::Internal => Kind::Internal,
        };
        Error::new(kind, failure.message)
    }
}

/// What the shim tells unasked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// `exit.json` is there already.
    ContainerExited { container: ContainerId, exit: ExitRecord },
    /// The pause process is gone, and with it the pod's namespaces.
    SandboxExited { status: ExitStatus },
    /// Somewhere below a running container a process was killed for memory, and the container goes on.
    ChildOom { container: ContainerId },
    /// Whoever holds a duplicate of a container's input is to let it go, for its end to be seen there.
    InputClosed { container: ContainerId },
}

impl Event {
    /// The first version of the protocol that has it: to others it is not told.
    pub fn since(&self) -> u32 {
        match self {
            Event::ContainerExited { .. } | Event::SandboxExited { .. } | Event::ChildOom { .. } => 1,
            Event::InputClosed { .. } => INTERACTION,
        }
    }
}

impl Sandbox {
    /// Whether the pod has a network (and so a uts) namespace of its own.
    pub fn own_network(&self) -> bool {
        self.namespaces.network != NamespaceMode::Node
    }
}

impl UserChoice {
    /// The same choice after `user` was resolved: nothing is looked up again.
    pub fn resolved(user: &User) -> Self {
        UserChoice {
            user: format!("{}:{}", user.uid, user.gid),
            group: Some(user.gid),
            supplemental_groups: user.groups.clone(),
            strict_groups: true,
            non_root: false,
        }
    }
}

/// The longest frame header, in bytes.
pub const HEADER_BYTES: usize = 4;

/// A message as it goes over the socket.
///
/// # Errors
/// `ResourceExhausted` when it is longer than [`MAX_MESSAGE_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut bytes, message).map_err(|e| Error::internal(format!("encode message: {e}")))?;
    let len = bytes.len() - HEADER_BYTES;
    match u32::try_from(len) {
        Ok(header) if len <= MAX_MESSAGE_BYTES => bytes[..HEADER_BYTES].copy_from_slice(&header.to_le_bytes()),
        _ => return Err(Error::exhausted(format!("message of {len} bytes is longer than {MAX_MESSAGE_BYTES}"))),
    }
    Ok(bytes)
}

/// The length that a header announces.
///
/// # Errors
/// `ResourceExhausted` when it is longer than [`MAX_MESSAGE_BYTES`].
pub fn frame_len(header: [u8; HEADER_BYTES]) -> Result<usize, Error> {
    let len = u32::from_le_bytes(header) as usize;
    if len > MAX_MESSAGE_BYTES {
        return Err(Error::exhausted(format!("message of {len} bytes is longer than {MAX_MESSAGE_BYTES}")));
    }
    Ok(len)
}

/// The version both sides go on with.
///
/// # Errors
/// `Unsupported` when there is none.
pub fn negotiate(theirs: (u32, u32)) -> Result<u32, Error> {
    let (oldest, newest) = (theirs.0.max(VERSIONS.0), theirs.1.min(VERSIONS.1));
    if oldest > newest {
        return Err(Error::unsupported(format!(
            "the peer speaks versions {} to {} of the shim protocol, this podwright {} to {}",
            theirs.0, theirs.1, VERSIONS.0, VERSIONS.1
        )));
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_wire() {
        let bytes =
            encode(&ToShim { id: 7, request: Request::Hello { versions: VERSIONS, owner: true } }).expect("encode");
        let (header, text) = bytes.split_at(HEADER_BYTES);
        assert_eq!(frame_len(header.try_into().expect("4 bytes")).expect("short"), text.len());
        let back: ToShim = serde_json::from_slice(text).expect("decode");
        assert!(matches!(back, ToShim { id: 7, request: Request::Hello { owner: true, .. } }));
    }

    #[test]
    fn an_endless_message_is_refused_at_both_ends() {
        assert!(frame_len(u32::MAX.to_le_bytes()).is_err());
        assert!(encode(&"x".repeat(MAX_MESSAGE_BYTES)).is_err());
    }

    #[test]
    fn the_highest_common_version_is_taken_and_none_is_an_error_that_names_both() {
        assert_eq!(negotiate((0, 9)).expect("common"), VERSIONS.1);
        assert!(negotiate((VERSIONS.1 + 1, VERSIONS.1 + 2)).expect_err("none").to_string().contains("versions"));
    }
}
