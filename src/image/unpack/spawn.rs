//! The parent's half of a worker: starting it, reading its replies with bounds, marking opaque directories, telling how it ended.

use super::{Job, MAX_OPAQUE, Reply, Unpacked, What, error_of};
use crate::error::{Context, Error, Result};
use crate::image::tarball::quoted;
use crate::sys::at::{OFlags, ResolveFlags, openat2};
use crate::sys::{fsetxattr, inherit_fd};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// Bytes of a reply, at most: a path of 4095 bytes as JSON numbers, and room.
const MAX_REPLY: u64 = 32 << 10;
/// Bytes of the worker's standard error that are kept.
const MAX_MESSAGE: u64 = 4 << 10;
/// The mark that overlayfs reads (kernel: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
const OPAQUE: &str = "trusted.overlay.opaque";

/// asm-generic/signal.h; what a seccomp filter kills with.
const SIGSYS: i32 = 31;

/// Where a worker reads the blob.
#[derive(Debug)]
pub enum Blob {
    /// `len` bytes of a file from `offset`.
    File { file: File, offset: u64, len: Option<u64> },
    /// A pipe that somebody else fills, to its end.
    Pipe { pipe: OwnedFd, len: Option<u64> },
}

/// How workers are started.
#[derive(Debug, Clone)]
pub struct Program(PathBuf);

impl Program {
    /// This program itself, by the kernel's link, so that an upgrade on the disk does not matter.
    pub fn own() -> Self {
        Program(PathBuf::from("/proc/self/exe"))
    }

    /// Another program that has the role: for tests, whose own program has not.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Program(path.into())
    }
}

/// Extracts a layer into `dir`, which exists and is empty. `hold` stays open as long as the worker lives. Blocks until it has ended.
///
/// # Errors
/// Those of the worker, in its words; `Internal` when it died without a word.
pub fn layer(program: &Program, blob: Blob, dir: &Path, hold: &File, read: &mut dyn FnMut(u64)) -> Result<Unpacked> {
    let (done, opaque) = work(program, What::Layer, blob, dir, hold, read)?;
    let root = File::open(dir).context(|| format!("open {}", dir.display()))?;
    for path in opaque {
        mark_opaque(&root, &path).context(|| format!("in {}", dir.display()))?;
    }
    Ok(done)
}

/// Has a directory of a layer hide what is below it.
pub(super) fn mark_opaque(root: &File, path: &[u8]) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(root.as_fd(), Path::new(OsStr::from_bytes(path)), flags, 0, beneath)
        .and_then(|fd| fsetxattr(fd.as_fd(), OsStr::new(OPAQUE), b"y"))
        .context(|| format!("mark {} opaque", quoted(path)))
}

/// Decompresses to `archive` in `dir`, as [`layer`].
///
/// # Errors
/// As [`layer`].
pub fn inflate(program: &Program, blob: Blob, dir: &Path, hold: &File) -> Result<Unpacked> {
    work(program, What::Inflate, blob, dir, hold, &mut |_| {}).map(|(done, _)| done)
}

fn work(
    program: &Program,
    what: What,
    blob: Blob,
    dir: &Path,
    hold: &File,
    read: &mut dyn FnMut(u64),
) -> Result<(Unpacked, Vec<Vec<u8>>)> {
    let hold = hold.as_fd().try_clone_to_owned().context(|| "duplicate the session's lock")?;
    let (parent, keep) = (std::process::id(), hold.as_raw_fd().cast_unsigned());
    let (stdin, job) = match blob {
        Blob::File { file, offset, len } => (Stdio::from(file), Job { what, offset, len, pipe: false, parent, keep }),
        Blob::Pipe { pipe, len } => (Stdio::from(pipe), Job { what, offset: 0, len, pipe: true, parent, keep }),
    };
    let job = serde_json::to_string(&job).map_err(|e| Error::internal(format!("encode an unpack job: {e}")))?;
    let mut command = Command::new(&program.0);
    command.arg("unpack").arg(job).current_dir(dir).env_clear();
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    inherit_fd(&mut command, hold);
    let mut child = command.spawn().context(|| format!("start {} unpack", program.0.display()))?;
    drop(command); // it holds duplicates of the pipe's end and of the lock
    let outcome = match child.stdout.take() {
        Some(stdout) => replies(stdout, read),
        None => Err(Error::internal("the unpack process has no standard output")),
    };
    if outcome.is_err() {
        let _ = child.kill(); // it may have ended by itself
    }
    let (status, message) = reap(child)?;
    match outcome? {
        Some(done) => Ok(done),
        None => Err(Error::internal(died(status, &message))),
    }
}

type Outcome = (Unpacked, Vec<Vec<u8>>);

/// Reads to the last line; `None` when there was none.
fn replies(stdout: ChildStdout, read: &mut dyn FnMut(u64)) -> Result<Option<Outcome>> {
    let mut lines = BufReader::new(stdout);
    let mut opaque = Vec::new();
    loop {
        let mut line = Vec::new();
        let n = (&mut lines).take(MAX_REPLY).read_until(b'\n', &mut line).context(|| "read from the unpack process")?;
        if n == 0 || line.last() != Some(&b'\n') {
            return Ok(None);
        }
        let reply = serde_json::from_slice(&line)
            .map_err(|e| Error::internal(format!("the unpack process said {}: {e}", quoted(&line))))?;
        match reply {
            Reply::Progress { read: so_far } => read(so_far),
            Reply::Opaque { .. } if opaque.len() == MAX_OPAQUE => {
                return Err(Error::exhausted(format!("more than {MAX_OPAQUE} opaque directories")));
            }
            Reply::Opaque { path } => opaque.push(path),
            Reply::Done(done) => return Ok(Some((done, opaque))),
            Reply::Failed { kind, message } => return Err(error_of(&kind, message)),
        }
    }
}

fn reap(mut child: Child) -> Result<(ExitStatus, String)> {
    let mut message = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_MESSAGE).read_to_end(&mut message); // what it said is only for people
    }
    let status = child.wait().context(|| "wait for the unpack process")?;
    Ok((status, String::from_utf8_lossy(&message).trim().replace('\n', " ")))
}

fn died(status: ExitStatus, message: &str) -> String {
    let how = match (status.code(), status.signal()) {
        (_, Some(SIGSYS)) => "made a system call that it has no use for, and was killed".to_owned(),
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        (code, _) => format!("exited with {}", code.unwrap_or_default()),
    };
    let said = if message.is_empty() { String::new() } else { format!(": {message}") };
    format!("the unpack process {how} without an answer{said}")
}
