//! The streams of a command in a container that has no terminal of its own. A pipe of ours is handed to it; anything else is copied. A container that
//! had our terminal could read what is typed there for as long as anything of the command lives, and write to it; one that had a file of the
//! host could open it anew with other rights, by /proc/self/fd.

use super::terminal;
use crate::engine::exec::{DRAIN_WAIT, Streams};
use crate::error::{Context, Result};
use crate::sys::async_fd::AsyncFile;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;
use tokio::sync::watch;

/// How much is copied at a time, in bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// How much is copied after the command has ended, in bytes: what a pipe may hold. More comes from what it has left in the background.
const DRAIN_BYTES: usize = 1 << 20;
/// Device number of /dev/null, Documentation/admin-guide/devices.txt.
const NULL: u64 = 0x103;

/// What is copied while the command runs.
#[derive(Debug, Default)]
pub(super) struct Copies {
    stdin: Option<AsyncFile>,
    stdout: Option<AsyncFile>,
    stderr: Option<AsyncFile>,
}

/// The command's streams, and what of them is copied. `interactive`: it gets our stdin.
///
/// # Errors
/// No more descriptors.
pub(super) fn new(interactive: bool) -> Result<(Streams, Copies)> {
    let mut copies = Copies::default();
    let own = std::io::stdin();
    let stdin = match interactive {
        false => File::open("/dev/null").context(|| "open /dev/null")?.into(),
        true if is_harmless(&stat(own.as_fd())?) => dup(own.as_fd())?,
        true => {
            let (reader, writer) = std::io::pipe().context(|| "pipe")?;
            copies.stdin = Some(AsyncFile::new(writer.into()).context(|| "watch a stream")?);
            reader.into()
        }
    };
    let (out, err) = (std::io::stdout(), std::io::stderr());
    let (stdout, stderr);
    (stdout, copies.stdout) = output(out.as_fd())?;
    // One pipe for both where they are one, so that what is written first comes first.
    if copies.stdout.is_some() && is_same(&stat(out.as_fd())?, &stat(err.as_fd())?) {
        stderr = dup(stdout.as_fd())?;
    } else {
        (stderr, copies.stderr) = output(err.as_fd())?;
    }
    Ok((Streams { stdin, stdout, stderr }, copies))
}

fn output(own: BorrowedFd<'_>) -> Result<(OwnedFd, Option<AsyncFile>)> {
    if is_harmless(&stat(own)?) {
        return Ok((dup(own)?, None));
    }
    let (reader, writer) = std::io::pipe().context(|| "pipe")?;
    Ok((writer.into(), Some(AsyncFile::new(reader.into()).context(|| "watch a stream")?)))
}

fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().context(|| "duplicate a standard stream")
}

fn stat(fd: BorrowedFd<'_>) -> Result<Metadata> {
    File::from(dup(fd)?).metadata().context(|| "stat a standard stream")
}

/// Whether a container may have it: a pipe, or /dev/null.
fn is_harmless(stream: &Metadata) -> bool {
    stream.file_type().is_fifo() || stream.file_type().is_char_device() && stream.rdev() == NULL
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino(), one.rdev()) == (other.dev(), other.ino(), other.rdev())
}

impl Copies {
    /// Copies while `work`, the command, goes on, and what is left after it.
    ///
    /// # Errors
    /// Our stdout or stderr cannot be written to: a disk that is full behind it, for instance.
    pub(super) async fn during<T>(self, work: impl Future<Output = T>) -> Result<T> {
        let Copies { stdin, stdout, stderr } = self;
        let input = match stdin {
            Some(to) => Some(tokio::spawn(terminal::keys(terminal::typed()?, Arc::new(to), false))),
            None => None,
        };
        let (ended, over) = watch::channel(false);
        let outputs = async {
            tokio::join!(
                copy(stdout, std::io::stdout(), "stdout", over.clone()),
                copy(stderr, std::io::stderr(), "stderr", over.clone())
            )
        };
        let work = async {
            let done = work.await;
            ended.send_replace(true);
            done
        };
        let ((out, err), done) = tokio::join!(outputs, work);
        if let Some(input) = input {
            input.abort();
        }
        out.and(err).map(|()| done)
    }
}

/// Copies until the end. When the command has ended, what is there; what others hold open is not waited for.
async fn copy(from: Option<AsyncFile>, mut to: impl Write, name: &str, mut over: watch::Receiver<bool>) -> Result<()> {
    let Some(from) = from else { return Ok(()) };
    let mut left = DRAIN_BYTES;
    while left > 0 {
        let is_over = *over.borrow();
        let chunk = if is_over {
            tokio::time::timeout(DRAIN_WAIT, from.chunk(CHUNK_BYTES)).await.ok()
        } else {
            tokio::select! {
                chunk = from.chunk(CHUNK_BYTES) => Some(chunk),
                _ = over.changed() => continue,
            }
        };
        let Some(Ok(chunk @ [_, ..])) = chunk.as_ref().map(|chunk| chunk.as_deref()) else { break };
        match to.write_all(chunk).and_then(|()| to.flush()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => break, // whoever reads us has what he wanted
            written => written.context(|| format!("write to {name}"))?,
        }
        left -= if is_over { chunk.len().min(left) } else { 0 };
    }
    Ok(())
}
