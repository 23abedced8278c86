//! Exec: a further process in a running container. The pipes are the caller's; the shim holds none of them.

use super::Engine;
use super::pod::State;
use super::shim::unexpected;
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::{ContainerId, ExecId};
use crate::state::record::ExitStatus;
use crate::sys;
use crate::wire::{Exec, Executed, Failure, Reply, Request, UserChoice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

/// The most of each stream that ExecSync returns, in bytes: gRPC's answer to kubelet must stay below 16 MiB (CRI ExecSync).
pub const MAX_OUTPUT_BYTES: usize = 7 << 20;
/// How much of a pipe is read at a time, in bytes: what a pipe holds, pipe(7).
const CHUNK_BYTES: usize = 64 << 10;
/// How long output is read after the process has ended and everything below it was killed or let go.
const DRAIN_WAIT: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ExecConfig {
    pub args: Vec<String>,
    /// `NAME=value`, added to the container's own.
    pub env: Vec<String>,
    /// Empty: the container's.
    pub cwd: String,
    /// `None`: the container's.
    pub user: Option<UserChoice>,
    /// Zero: no deadline.
    pub timeout: Duration,
}

/// The streams of an exec.
#[derive(Debug)]
pub struct Streams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// What ExecSync answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Output beyond [`MAX_OUTPUT_BYTES`] was thrown away.
    pub truncated: bool,
}

impl Engine {
    /// Runs a process in a container with the caller's streams, until it ends or its deadline ends it.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` unless it runs, `InvalidArgument` for a command that cannot be run,
    /// `DeadlineExceeded` when everything in it was killed at the deadline.
    pub async fn exec(&self, id: &ContainerId, config: ExecConfig, streams: Streams) -> Result<ExitStatus> {
        self.try_exec(id, config, streams).await?.map_err(exec_failure)
    }

    /// As [`Engine::exec`], with the shim's own words when the command could not be run: their errno becomes 126 or 127.
    ///
    /// # Errors
    /// As [`Engine::exec`], but for `InvalidArgument`.
    pub async fn try_exec(
        &self,
        id: &ContainerId,
        config: ExecConfig,
        streams: Streams,
    ) -> Result<std::result::Result<ExitStatus, Failure>> {
        let pod = self.pod_of(id)?;
        let running = pod.facts().containers.get(id).is_some_and(|c| c.state() == State::Running);
        if !running {
            return Err(Error::precondition(format!("container {} does not run", id.short())));
        }
        if config.args.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("exec: no command"));
        }
        let shim = pod.shim()?;
        let mut number = [0; 4];
        sys::random(&mut number);
        let timeout = config.timeout;
        let request = Exec {
            container: id.clone(),
            exec: ExecId(u32::from_le_bytes(number)),
            args: config.args,
            env: config.env,
            cwd: config.cwd,
            user: config.user,
            timeout_ns: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
        };
        let fds = [streams.stdin.as_fd(), streams.stdout.as_fd(), streams.stderr.as_fd()];
        fault::point("engine.exec.asked");
        let asked = shim.send(Request::Exec(Box::new(request)), &fds).await;
        drop(streams); // or our own ends would keep the readers from their end-of-file
        let asked = asked?;
        fault::point("engine.exec.sent");
        let answer = asked.answer().await?.0;
        fault::point("engine.exec.answered");
        match answer {
            Reply::Executed(Executed { timed_out: true, .. }) => Err(Error::new(
                Kind::DeadlineExceeded,
                format!(
                    "command in container {} timed out after {:.1} s and was killed",
                    id.short(),
                    timeout.as_secs_f64()
                ),
            )),
            Reply::Executed(Executed { status, .. }) => Ok(Ok(status)),
            Reply::Failed(failure) => Ok(Err(failure)),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a process to its end and returns what it wrote (CRI ExecSync).
    ///
    /// # Errors
    /// As [`Engine::exec`].
    pub async fn exec_sync(&self, id: &ContainerId, config: ExecConfig) -> Result<ExecOutput> {
        let stdin = std::fs::File::open("/dev/null").context(|| "open /dev/null")?;
        let (out_reader, out_writer) = std::io::pipe().context(|| "pipe")?;
        let (err_reader, err_writer) = std::io::pipe().context(|| "pipe")?;
        let streams = Streams { stdin: stdin.into(), stdout: out_writer.into(), stderr: err_writer.into() };
        let (out, err) = (Capture::default(), Capture::default());
        let mut readers = JoinSet::new();
        readers.spawn(out.clone().read(out_reader.into()));
        readers.spawn(err.clone().read(err_reader.into()));
        let status = self.exec(id, config, streams).await?;
        // A grandchild that went into the background may hold the pipes for ever: what is there by then is what is returned.
        let all_read = async { while readers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_WAIT, all_read).await; // the readers end with the set, either way
        let (out, err) = (out.take(), err.take());
        Ok(ExecOutput { status, truncated: out.cut || err.cut, stdout: out.bytes, stderr: err.bytes })
    }
}

fn exec_failure(failure: Failure) -> Error {
    Error::from(failure).context("exec")
}

/// One stream as it is read: shared, so that what arrived by a deadline is there.
#[derive(Debug, Clone, Default)]
struct Capture(Arc<Mutex<Captured>>);

#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    cut: bool,
}

impl Capture {
    /// Reads until end-of-file; beyond the bound it still reads, so that the writer is not stopped by a full pipe.
    async fn read(self, fd: OwnedFd) -> Result<()> {
        let mut pipe = pipe::Receiver::from_owned_fd(fd).context(|| "watch a pipe")?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = pipe.read(&mut chunk).await.context(|| "read a pipe")?;
            if n == 0 {
                return Ok(());
            }
            let mut captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let room = MAX_OUTPUT_BYTES - captured.bytes.len();
            captured.bytes.extend_from_slice(&chunk[..n.min(room)]);
            captured.cut |= n > room;
        }
    }

    fn take(&self) -> Captured {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
