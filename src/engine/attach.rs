//! Attach: a running container's output from now on, its input, its terminal. Output is copied by the shim, which nobody holds up; input goes
//! from here into a duplicate of what the shim holds.

use super::Engine;
use super::adopt::duplicates;
use super::pod::{Pod, State};
use super::shim::Shim;
use crate::error::{Context, Error, Kind, Result};
use crate::id::ContainerId;
use crate::state::record::StdStream;
use crate::sys::pipe;
use crate::wire::{INTERACTION, Request};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// How much of a container's output waits for a reader, in bytes a stream: what a pipe may have (/proc/sys/fs/pipe-max-size, pipe(7)). A
/// container that writes more before it is read has what is beyond left out of the copy.
const PIPE_BYTES: usize = 1 << 20;
/// How long the successor of a shim that died may take.
const AGAIN_WAIT: Duration = Duration::from_secs(30);

/// Which streams somebody wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// The ends of a running container's streams.
#[derive(Debug)]
pub struct Attached {
    /// Its end is the container's, or its shim's ([`Engine::attach_again`]).
    pub stdout: Option<OwnedFd>,
    /// `None` for a container with a terminal.
    pub stderr: Option<OwnedFd>,
    /// To write to; `None` when it was not wanted, or the container has none, or no more.
    pub stdin: Option<OwnedFd>,
    /// The master of its terminal, for its size. Not to be read.
    pub terminal: Option<OwnedFd>,
}

impl Engine {
    /// The streams of a running container, from now on.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` unless it runs, `ResourceExhausted` when too many look on, `Unsupported` for a pod of an older
    /// podwright.
    pub async fn attach(&self, id: &ContainerId, wanted: Wanted) -> Result<Attached> {
        let doing = || format!("attach to container {}", id.short());
        let pod = self.reachable_of(id).await?;
        let tty = tty_of_running(&pod, id)?;
        let shim = pod.shim_soon().await?;
        if shim.version() < INTERACTION {
            return Err(Error::unsupported("the pod was made by an older podwright, which copies no output"))
                .context(doing);
        }
        let (stdout, stderr) = copies(&shim, id, wanted, tty).await.context(doing)?;
        let mut attached = Attached { stdout, stderr, stdin: None, terminal: None };
        if wanted.stdin || tty {
            let held = duplicates(&shim, Some(id.clone())).await.context(doing)?;
            for (stream, fd) in held.into_iter().flat_map(|held| held.streams) {
                match stream {
                    StdStream::Stdin if wanted.stdin => attached.stdin = Some(fd),
                    StdStream::Stdout if tty => attached.terminal = Some(fd),
                    _ => {}
                }
            }
            if let (true, Some(terminal)) = (wanted.stdin, &attached.terminal) {
                attached.stdin = Some(terminal.try_clone().context(|| "dup a terminal")?);
            }
        }
        Ok(attached)
    }

    /// After an end of the output: `None` when it was the container's, and the output of its next shim when that one's predecessor died.
    ///
    /// # Errors
    /// As [`Engine::attach`].
    pub async fn attach_again(&self, id: &ContainerId, wanted: Wanted) -> Result<Option<Attached>> {
        let output = Wanted { stdin: false, ..wanted };
        let again = async {
            loop {
                let pod = self.pod_of(id)?;
                match self.attach(id, output).await {
                    // Ended, removed, or its pod is gone.
                    Err(_) if !is_running(&pod, id) => return Ok(None),
                    Err(e) if e.kind() == Kind::FailedPrecondition => return Ok(None), // it has ended, and that was not told yet
                    // The connection of the one that died, until that is known.
                    Err(e) if e.kind() == Kind::Unavailable => pod.next_change().await,
                    attached => return attached.map(Some),
                }
            }
        };
        match tokio::time::timeout(AGAIN_WAIT, again).await {
            Ok(Err(e)) if e.kind() == Kind::NotFound => Ok(None),
            Ok(done) => done,
            Err(_) => Err(Error::new(Kind::Unavailable, "its shim has died, and no other has taken over in time")),
        }
    }

    /// Closes a container's input for good.
    ///
    /// # Errors
    /// As [`Engine::attach`]; one that has ended is none.
    pub async fn close_input(&self, id: &ContainerId) -> Result<()> {
        let pod = self.reachable_of(id).await?;
        if !is_running(&pod, id) {
            return Ok(());
        }
        let shim = pod.shim_soon().await?;
        shim.done(Request::CloseInput { container: id.clone() }, &[]).await
    }

    /// Whoever wrote to a container's input has gone: that of one that is to have one client only is closed for good (CRI, `stdin_once`). A
    /// terminal has no end of its input.
    pub async fn input_ended(&self, id: &ContainerId) {
        let once = self.container_status(id).is_ok_and(|c| {
            let config = &c.record.config;
            config.stdin && config.stdin_once && !config.tty
        });
        if once && let Err(e) = self.close_input(id).await {
            tracing::warn!("close the input of container {}: {e}", id.short());
        }
    }

    /// Whether a container has a variable of that name in its environment.
    pub fn has_env(&self, id: &ContainerId, name: &str) -> bool {
        let Ok(status) = self.container_status(id) else { return false };
        let spec = status.record.spec.value();
        let mut env = spec["process"]["env"].as_array().into_iter().flatten().filter_map(|entry| entry.as_str());
        env.any(|entry| entry.split('=').next() == Some(name))
    }

    /// Waits until a container's input was closed for good, or it has ended.
    pub async fn input_closed(&self, id: &ContainerId) {
        let Ok(pod) = self.pod_of(id) else { return };
        let closed = pod.wait(|facts| {
            let open = facts.containers.get(id).is_some_and(|c| !c.input_closed && c.exit.is_none());
            Ok((!open).then_some(()))
        });
        let _ = closed.await; // an error: the pod is gone
    }
}

fn is_running(pod: &Pod, id: &ContainerId) -> bool {
    pod.facts().containers.get(id).is_some_and(|c| c.state() == State::Running)
}

fn tty_of_running(pod: &Arc<Pod>, id: &ContainerId) -> Result<bool> {
    let facts = pod.facts();
    let running = facts.containers.get(id).filter(|c| c.state() == State::Running);
    let not = || Error::precondition(format!("container {} does not run", id.short()));
    running.map(|c| c.record.config.tty).ok_or_else(not)
}

/// Pipes that the shim copies the output into from now on.
async fn copies(
    shim: &Shim,
    id: &ContainerId,
    wanted: Wanted,
    tty: bool,
) -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    let (mut readers, mut outputs, mut writers) = ([None, None], Vec::new(), Vec::new());
    // By the end of stdout that of the container is seen, whether or not it is wanted.
    let asked = [(StdStream::Stdout, true), (StdStream::Stderr, wanted.stderr && !tty)];
    for (at, (stream, _)) in asked.into_iter().enumerate().filter(|(_, (_, wanted))| *wanted) {
        let (reader, writer) = std::io::pipe().context(|| "pipe")?;
        let _ = pipe::set_size(writer.as_fd(), PIPE_BYTES); // EPERM: this user's pipes hold much already, and it stays at 64 KiB
        readers[at] = Some(OwnedFd::from(reader));
        outputs.push(stream);
        writers.push(OwnedFd::from(writer));
    }
    let fds: Vec<_> = writers.iter().map(AsFd::as_fd).collect();
    shim.done(Request::Attach { container: id.clone(), outputs }, &fds).await?;
    let [stdout, stderr] = readers;
    Ok((stdout, stderr))
}
