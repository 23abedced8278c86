//! The records: versioned JSON, each written once by one owner, complete or absent.
//!
//! ```text
//!   config.json                        CREATED
//!   config.json process.json           RUNNING
//!   config.json process.json exit.json EXITED
//!   config.json exit.json              EXITED   it could not be started
//! ```
//! There is no status record that two writers would race for: what exists is the status. A record that cannot be read is
//! quarantined: shown, left where it is, for a newer podwright may read it, and neither deleted nor written over.

use super::model::{ContainerConfig, PodConfig, Resources, SelinuxLabels};
use super::paths::beside;
use super::spec::SpecText;
use crate::error::{Context, Error, Result};
use crate::id::{ContainerId, PodId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The version this program writes. It reads this one and, from 2 on, the one before.
const VERSION: u32 = 1;
/// The largest record that is read, in bytes: a container's spec with a large seccomp profile is 100 KiB.
const MAX_BYTES: u64 = 4 << 20;

/// A record's outer shape.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    kind: String,
    #[serde(flatten)]
    body: T,
}

/// What is kept as a record, and under which name.
pub trait Record: Serialize + DeserializeOwned {
    /// Stands in the file, so that a record in the wrong place is not believed.
    const KIND: &'static str;
}

macro_rules! record {
    ($name:ident, $kind:literal) => {
        impl Record for $name {
            const KIND: &'static str = $kind;
        }
    };
}

/// Whether a record must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Below /run: the machine's death ends what it describes. No fsync.
    Boot,
    /// Below /var/lib: file and directory are synced.
    Disk,
}

/// Writes `record` to `path`: beside it, then rename(2).
///
/// # Errors
/// `Internal` and `ResourceExhausted` (a full disk), naming the path; nothing is left beside it.
pub fn write<T: Record>(path: &Path, record: &T, durability: Durability) -> Result<()> {
    #[derive(Serialize)]
    struct Out<'a, T> {
        version: u32,
        kind: &'a str,
        #[serde(flatten)]
        body: &'a T,
    }
    let bytes = serde_json::to_vec(&Out { version: VERSION, kind: T::KIND, body: record })
        .map_err(|e| Error::internal(format!("encode {}: {e}", T::KIND)))?;
    write_bytes(path, &bytes, 0o600, durability)
}

/// Writes a whole file the same way: complete or absent, with permission bits `mode`.
///
/// # Errors
/// As [`write`].
pub fn write_bytes(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> Result<()> {
    let new = beside(path);
    let written = write_new(&new, bytes, mode, durability)
        .and_then(|()| std::fs::rename(&new, path))
        .and_then(|()| if durability == Durability::Disk { sync_parent(path) } else { Ok(()) });
    if written.is_err() {
        let _ = std::fs::remove_file(&new); // it may never have been made; the first error is the one to tell
    }
    written.context(|| format!("write {}", path.display()))
}

fn write_new(new: &Path, bytes: &[u8], mode: u32, durability: Durability) -> std::io::Result<()> {
    let mut open = std::fs::OpenOptions::new();
    let mut file = match open.write(true).create_new(true).mode(mode).open(new) {
        // A writer that was killed before its rename left this; there is one writer for each record, so it is ours to replace.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::remove_file(new)?;
            open.open(new)?
        }
        opened => opened?,
    };
    file.write_all(bytes)?;
    if durability == Durability::Disk { file.sync_all() } else { Ok(()) }
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Reads a record; `None` when there is none.
///
/// # Errors
/// `Internal`, naming the path, for one that cannot be read, is too large, of another kind or of a newer version.
pub fn read<T: Record>(path: &Path) -> Result<Option<T>> {
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.context(|| format!("open {}", path.display()))?,
    };
    let mut bytes = Vec::new();
    let n = file.take(MAX_BYTES + 1).read_to_end(&mut bytes).context(|| format!("read {}", path.display()))?;
    if n as u64 > MAX_BYTES {
        return Err(Error::internal(format!("record {} is larger than {MAX_BYTES} bytes", path.display())));
    }
    let outer: Envelope<serde_json::Value> =
        serde_json::from_slice(&bytes).map_err(|e| Error::internal(format!("record {}: {e}", path.display())))?;
    if outer.kind != T::KIND {
        return Err(Error::internal(format!("record {} is a {:?}, not a {:?}", path.display(), outer.kind, T::KIND)));
    }
    if outer.version != VERSION {
        return Err(Error::internal(format!(
            "record {} has version {}; this podwright reads {VERSION}",
            path.display(),
            outer.version
        )));
    }
    let body =
        serde_json::from_value(outer.body).map_err(|e| Error::internal(format!("record {}: {e}", path.display())))?;
    Ok(Some(body))
}

/// A process on disk: a pid alone may by now be another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Clock ticks after boot: field 22 of /proc/pid/stat, proc_pid_stat(5).
    pub start_time: u64,
}

/// `pod.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    pub id: PodId,
    pub config: PodConfig,
    /// Nanoseconds since the epoch; strictly increasing within one engine.
    pub created_at_ns: i64,
    /// /proc/sys/kernel/random/boot_id: records of another boot are history.
    pub boot_id: String,
    /// The pod's cgroup, absolute in the v2 hierarchy.
    pub cgroup: String,
    /// It is to be connected to a network, and not there before it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub networked: bool,
    /// `None`: its processes and files get no labels of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<SelinuxLabels>,
    /// The shim it was born with; [`ShimRecord`] has the one that took over, if any did.
    pub shim: Process,
}
record!(PodRecord, "pod");

/// `sandbox.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub pause: Process,
    pub started_at_ns: i64,
}
record!(SandboxRecord, "sandbox");

/// `stopped.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedRecord {
    pub stopped_at_ns: i64,
}
record!(StoppedRecord, "stopped");

/// `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: ContainerId,
    pub pod: PodId,
    pub config: ContainerConfig,
    pub created_at_ns: i64,
    /// Resolved when it was created, for the image may be gone later: the OCI runtime spec.
    pub spec: SpecText,
    /// Absolute directories, the lowest layer first.
    pub layers: Vec<PathBuf>,
    /// Number of the signal that asks it to stop.
    pub stop_signal: i32,
    /// Absolute path of the log; `None`: output is discarded.
    pub log: Option<PathBuf>,
    /// The user the image asks for; used when the config names none.
    pub image_user: String,
    /// `repository@digest` of the image when it has one, else its id (CRI `image_ref`).
    #[serde(default)]
    pub image_ref: String,
    /// Groups that its devices need its processes to have, beside those that were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<u32>,
}
record!(ContainerRecord, "container");

/// `process.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    pub process: Process,
    pub started_at_ns: i64,
    pub user: User,
    /// The pipes that its streams were given, by inode number: how they are found again when whoever held them has died.
    #[serde(default)]
    pub pipes: Vec<(StdStream, u64)>,
}
record!(ProcessRecord, "process");

/// A standard stream of a container, this side of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdStream {
    /// The writing end.
    Stdin,
    /// The reading end; the master of a terminal.
    Stdout,
    /// The reading end.
    Stderr,
}

/// `shim.json`: the shim that a pod has instead of the one it was born with, which died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    pub shim: Process,
}
record!(ShimRecord, "shim");

/// Who a container runs as, after every name was looked up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub status: ExitStatus,
    pub finished_at_ns: i64,
    /// Whose memory limit ended it, when one did.
    pub oom: Option<Oom>,
    /// For people; says step and errno when it could not be started.
    pub message: String,
}
record!(ExitRecord, "exit");

impl ExitRecord {
    /// There is nothing that a person should know: one that exits 0 may still have lost a child to its memory limit, or left a message.
    pub fn is_uneventful(&self) -> bool {
        self.status == ExitStatus::Exited(0) && self.oom.is_none() && self.message.is_empty()
    }
}

/// `resources.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesRecord {
    pub resources: Resources,
}
record!(ResourcesRecord, "resources");

/// How a container ended. 128+n is made at the edge ([`ExitStatus::code`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Exited(u8),
    Signaled(i32),
    /// It never ran; the errno of the step that failed, 0 when there was none.
    StartFailed {
        errno: i32,
    },
    /// Its end was not seen.
    Unknown,
}

impl ExitStatus {
    /// As a shell, CRI and `kubectl` show it: 128+n for signal n, 128 for one that could not start, 255 for unknown.
    pub fn code(self) -> i32 {
        match self {
            ExitStatus::Exited(code) => i32::from(code),
            ExitStatus::Signaled(signal) => 128 + signal,
            ExitStatus::StartFailed { .. } => 128,
            ExitStatus::Unknown => 255,
        }
    }

    /// CRI's reason, given whose memory limit ended it.
    pub fn reason(self, oom: Option<Oom>) -> &'static str {
        match self {
            ExitStatus::StartFailed { .. } => "StartError",
            ExitStatus::Unknown => "Unknown",
            _ if oom.is_some() => "OOMKilled",
            ExitStatus::Exited(0) => "Completed",
            _ => "Error",
        }
    }
}

/// Whose limit ran out, told from memory.events and memory.events.local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Oom {
    Container,
    Pod,
    Node,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> ExitRecord {
        ExitRecord {
            status: ExitStatus::Signaled(9),
            finished_at_ns: 7,
            oom: Some(Oom::Container),
            message: String::new(),
        }
    }

    #[test]
    fn a_record_is_read_back_as_written_and_its_absence_is_no_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("exit.json");
        assert_eq!(read::<ExitRecord>(&path).expect("absent"), None);
        for durability in [Durability::Boot, Durability::Disk] {
            write(&path, &exit(), durability).expect("write");
            assert_eq!(read(&path).expect("read"), Some(exit()));
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_half_written_record_beside_it_is_replaced() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("exit.json");
        std::fs::OpenOptions::new().write(true).create_new(true).open(beside(&path)).expect("plant");
        write(&path, &exit(), Durability::Boot).expect("write");
        assert_eq!(read(&path).expect("read"), Some(exit()));
    }

    #[test]
    fn garbage_another_kind_and_a_newer_version_are_errors_that_name_the_path() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("exit.json");
        for text in [
            "",
            "{",
            r#"{"version":1,"kind":"pod"}"#,
            r#"{"version":2,"kind":"exit"}"#,
            r#"{"version":1,"kind":"exit"}"#,
        ] {
            write_bytes(&path, text.as_bytes(), 0o600, Durability::Boot).expect("plant");
            let e = read::<ExitRecord>(&path).expect_err(text);
            assert!(e.to_string().contains("exit.json"), "{e}");
        }
    }

    #[test]
    fn exit_codes_and_reasons_are_those_of_the_cri() {
        assert_eq!((ExitStatus::Exited(3).code(), ExitStatus::Exited(3).reason(None)), (3, "Error"));
        assert_eq!(
            (ExitStatus::Signaled(9).code(), ExitStatus::Signaled(9).reason(Some(Oom::Pod))),
            (137, "OOMKilled")
        );
        assert_eq!(
            (ExitStatus::StartFailed { errno: 2 }.code(), ExitStatus::StartFailed { errno: 2 }.reason(None)),
            (128, "StartError")
        );
        assert_eq!((ExitStatus::Unknown.code(), ExitStatus::Exited(0).reason(None)), (255, "Completed"));
    }
}
