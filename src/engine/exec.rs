//! Exec: a further process in a running container. The pipes are the caller's; the shim holds none of them.

use super::Engine;
use super::pod::State;
use super::shim::{Asked, Shim, unexpected};
use super::terminal::Size;
use crate::error::{Context, Error, Kind, Result};
use crate::fault;
use crate::id::{ContainerId, ExecId};
use crate::state::record::ExitStatus;
use crate::sys::{self, session, socket};
use crate::wire::{CANCELLATION, Exec, Executed, Failure, INTERACTION, Reply, Request, UserChoice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;

/// The most that ExecSync returns of both streams together, in bytes: an answer of more than 16 MiB is one that clients refuse to take (CRI
/// ExecSync), and 64 KiB are for what is around it.
pub const MAX_OUTPUT_BYTES: usize = (16 << 20) - (64 << 10);
/// How much of it one stream leaves to the other, in bytes: a flood on stdout must not hide what stderr says of it.
const OTHERS_SHARE: usize = 1 << 20;
/// How long the shim may take to kill and answer, beyond a command's own timeout.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// How often the shim of a command that has not ended yet is asked whether it still serves anybody.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long it may take to answer that: it starts one process at a time, each within this time.
const LOOK_WAIT: Duration = Duration::from_secs(60);
/// How much of a pipe is read at first, in bytes: what most commands have to say.
const FIRST_BYTES: usize = 4 << 10;
/// How much of it is read at a time when there is more, in bytes: what a pipe holds, pipe(7).
const CHUNK_BYTES: usize = 64 << 10;
/// How long output is read after the process has ended and everything below it was killed or let go.
pub const DRAIN_WAIT: Duration = Duration::from_millis(500);

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

/// A command that the shim was asked to run.
#[derive(Debug)]
pub struct Running {
    shim: Shim,
    asked: Asked,
    container: ContainerId,
    exec: ExecId,
    timeout: Duration,
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
    /// Output beyond [`MAX_OUTPUT_BYTES`] together was thrown away.
    pub truncated: bool,
}

impl Engine {
    /// Runs a process in a container with the caller's streams, until it ends or its deadline ends it.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` unless it runs, `InvalidArgument` for a command that cannot be run,
    /// `DeadlineExceeded` when everything in it was killed at the deadline.
    pub async fn exec(&self, id: &ContainerId, config: ExecConfig, streams: Streams) -> Result<ExitStatus> {
        self.exec_until(id, config, streams, std::future::pending()).await
    }

    /// As [`Engine::exec`], for a caller that may go away before its end: when `gone` is ready, everything in it is killed.
    ///
    /// # Errors
    /// As [`Engine::exec`]; `Unavailable` when it was cancelled.
    pub async fn exec_until(
        &self,
        id: &ContainerId,
        config: ExecConfig,
        streams: Streams,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<ExitStatus> {
        self.try_exec_until(id, config, streams, gone).await?.map_err(exec_failure)
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
        self.try_exec_until(id, config, streams, std::future::pending()).await
    }

    /// Both: for a caller that may go away, with the shim's own words.
    ///
    /// # Errors
    /// As [`Engine::try_exec`] and [`Engine::exec_until`].
    pub async fn try_exec_until(
        &self,
        id: &ContainerId,
        config: ExecConfig,
        streams: Streams,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<std::result::Result<ExitStatus, Failure>> {
        self.start_exec(id, config, streams).await?.ended(gone).await
    }

    /// Has a process run with the caller's streams.
    ///
    /// # Errors
    /// As [`Engine::exec`]. A command that cannot be run says so at its end.
    pub async fn start_exec(&self, id: &ContainerId, config: ExecConfig, streams: Streams) -> Result<Running> {
        let Streams { stdin, stdout, stderr } = streams;
        self.ask_exec(id, config, None, vec![stdin, stdout, stderr]).await
    }

    /// Has a process run at a terminal of its container's, which has `size`: the terminal's master, non-blocking, and the command. A command
    /// that cannot be run says so at its end, and nothing comes from that master.
    ///
    /// # Errors
    /// As [`Engine::exec`]; `FailedPrecondition` when the container has no devpts.
    pub async fn exec_at_terminal(
        &self,
        id: &ContainerId,
        config: ExecConfig,
        size: Option<Size>,
    ) -> Result<(OwnedFd, Running)> {
        let size = size.unwrap_or(Size { columns: 0, rows: 0 });
        let (master, slave) = self.open_terminal(id).await?;
        size.apply(master.as_fd())?;
        if self.pod_of(id)?.record.config.runtime_handler.is_empty() {
            let dup = || slave.try_clone().context(|| "duplicate a terminal");
            let streams = vec![dup()?, dup()?, slave];
            return Ok((master, self.ask_exec(id, config, Some(size), streams).await?));
        }
        // Another runtime makes its terminals itself, and gives away the master.
        drop(slave);
        let (ours, theirs) = UnixStream::pair().context(|| "socketpair")?;
        let command = self.ask_exec(id, config, Some(size), vec![theirs.into()]).await?;
        let given = match tokio::time::timeout(LOOK_WAIT, handed_over(ours)).await {
            Ok(given) => given,
            Err(_) => Ok(None),
        };
        let ready = |given: &OwnedFd| {
            session::set_nonblocking(given.as_fd()).context(|| "set O_NONBLOCK")?;
            size.apply(given.as_fd()) // some runtimes, and older shims, have not done it
        };
        match given.and_then(|given| given.as_ref().map_or(Ok(()), ready).map(|()| given)) {
            // Without one, the command's end tells why.
            Ok(given) => Ok((given.unwrap_or(master), command)),
            Err(e) => {
                let _ = cancel(&command.shim, &command.container, command.exec).await; // `e` is what went wrong first
                Err(e)
            }
        }
    }

    /// Asks the shim to run it, with descriptors that are closed here; at a terminal of that size.
    async fn ask_exec(
        &self,
        id: &ContainerId,
        config: ExecConfig,
        terminal: Option<Size>,
        fds: Vec<OwnedFd>,
    ) -> Result<Running> {
        let tty = terminal.is_some();
        let pod = self.reachable_of(id).await?;
        pod.facts().whole()?;
        let running = pod.facts().containers.get(id).is_some_and(|c| c.state() == State::Running);
        if !running {
            return Err(Error::precondition(format!("container {} does not run", id.short())));
        }
        if config.args.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("exec: no command"));
        }
        // It would be born frozen, and the pod's shim would wait for it.
        if self.is_being_checkpointed(id) {
            let why = format!("container {} is being checkpointed; try again", id.short());
            return Err(Error::new(Kind::Unavailable, why));
        }
        let shim = pod.shim_soon().await?;
        if tty && shim.version() < INTERACTION {
            return Err(Error::unsupported("the pod was made by an older podwright, whose execs have no terminal"));
        }
        let mut number = [0; 4];
        sys::random(&mut number);
        let (exec, timeout) = (ExecId(u32::from_le_bytes(number)), config.timeout);
        let request = Exec {
            container: id.clone(),
            exec,
            args: config.args,
            env: config.env,
            cwd: config.cwd,
            user: config.user,
            timeout_ns: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
            tty,
            size: terminal.and_then(Size::known),
        };
        let riding: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        fault::point("engine.exec.asked");
        let asked = shim.send(Request::Exec(Box::new(request)), &riding).await;
        drop(fds); // or our own ends would keep the readers from their end-of-file
        let asked = asked?;
        fault::point("engine.exec.sent");
        Ok(Running { shim, asked, container: id.clone(), exec, timeout })
    }

    /// Runs a process to its end and returns what it wrote (CRI ExecSync). When `gone` is ready, nobody waits for it any more.
    ///
    /// # Errors
    /// As [`Engine::exec_until`].
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        config: ExecConfig,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<ExecOutput> {
        let stdin = std::fs::File::open("/dev/null").context(|| "open /dev/null")?;
        let (out_reader, out_writer) = std::io::pipe().context(|| "pipe")?;
        let (err_reader, err_writer) = std::io::pipe().context(|| "pipe")?;
        let streams = Streams { stdin: stdin.into(), stdout: out_writer.into(), stderr: err_writer.into() };
        let captured = Captured::default();
        // In this task, for to wake another thread for each of them takes as long as the command's start.
        let reading = async {
            tokio::join!(
                captured.read(Stream::Stdout, out_reader.into()),
                captured.read(Stream::Stderr, err_reader.into())
            )
        };
        let mut reading = std::pin::pin!(reading);
        let mut all_read = false;
        let status = {
            let mut ended = std::pin::pin!(self.exec_until(id, config, streams, gone));
            loop {
                tokio::select! {
                    status = ended.as_mut() => break status?,
                    _ = reading.as_mut(), if !all_read => all_read = true, // what could not be read is not there
                }
            }
        };
        if !all_read {
            // A grandchild that went into the background may hold the pipes for ever: what is there by then is what is returned.
            let _ = tokio::time::timeout(DRAIN_WAIT, reading).await;
        }
        let Output { streams: [stdout, stderr], cut: truncated } = captured.take();
        Ok(ExecOutput { status, truncated, stdout, stderr })
    }
}

impl Running {
    /// Waits for its end, for a caller that may go away before: when `gone` is ready, everything in it is killed. The shim's own words when
    /// it could not be run.
    ///
    /// # Errors
    /// As [`Engine::try_exec_until`].
    pub async fn ended(
        self,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<std::result::Result<ExitStatus, Failure>> {
        let Running { shim, asked, container, exec, timeout } = self;
        let answer = tokio::select! {
            answer = within(&shim, asked, timeout) => answer?,
            () = gone => return Err(cancel(&shim, &container, exec).await),
        };
        fault::point("engine.exec.answered");
        match answer {
            Reply::Executed(Executed { timed_out: true, .. }) => Err(Error::new(
                Kind::DeadlineExceeded,
                format!(
                    "command in container {} timed out after {:.1} s and was killed",
                    container.short(),
                    timeout.as_secs_f64()
                ),
            )),
            Reply::Executed(Executed { status, .. }) => Ok(Ok(status)),
            Reply::Failed(failure) => Ok(Err(failure)),
            other => Err(unexpected(&other)),
        }
    }
}

/// The descriptor that comes over a socket; `None` when it is closed without one.
async fn handed_over(socket: UnixStream) -> Result<Option<OwnedFd>> {
    socket.set_nonblocking(true).context(|| "make a socket non-blocking")?;
    let socket = tokio::net::UnixStream::from_std(socket).context(|| "watch a socket")?;
    let received = socket.async_io(Interest::READABLE, || socket::recvmsg(&socket, &mut [0; 1])).await;
    Ok(received.context(|| "receive a terminal")?.fds.into_iter().next())
}

/// The answer of the shim, which kills what goes on beyond its timeout; zero is none.
async fn within(shim: &Shim, asked: Asked, timeout: Duration) -> Result<Reply> {
    let late = |kind| Error::new(kind, "the pod's shim does not answer: whether the command has ended is not known");
    let answer = served(shim, asked);
    let answer = match timeout.is_zero() {
        true => answer.await,
        false => match tokio::time::timeout(timeout.saturating_add(ANSWER_WAIT), answer).await {
            Ok(answer) => answer,
            Err(_) => return Err(late(Kind::DeadlineExceeded)),
        },
    };
    answer.unwrap_or_else(|| Err(late(Kind::Unavailable)))
}

/// The same for as long as the shim serves at all; else `None`. It does one thing after another: while it answers other questions, it has
/// taken this request, and the command runs.
async fn served(shim: &Shim, asked: Asked) -> Option<Result<Reply>> {
    let mut answer = std::pin::pin!(asked.answer());
    loop {
        let look = async {
            tokio::time::sleep(LOOK_EVERY).await;
            shim.answers_within(LOOK_WAIT).await
        };
        tokio::select! {
            answer = answer.as_mut() => return Some(answer.map(|(reply, _)| reply)),
            serves = look => if !serves { return None },
        }
    }
}

/// Ends an exec that nobody waits for. A shim of an older version cannot: there it ends at its own timeout.
async fn cancel(shim: &Shim, container: &ContainerId, exec: ExecId) -> Error {
    let what = format!("{exec} in container {}: whoever asked for it has gone", container.short());
    if shim.version() < CANCELLATION {
        return Error::new(Kind::Unavailable, format!("{what}, and its shim is of a version that does not end it"));
    }
    let request = Request::CancelExec { container: container.clone(), exec };
    match tokio::time::timeout(ANSWER_WAIT, shim.done(request, &[])).await {
        Ok(Ok(())) => Error::new(Kind::Unavailable, format!("{what}, and it was killed")),
        Ok(Err(e)) => e.context(what),
        Err(_) => Error::new(Kind::Unavailable, format!("{what}, and its shim does not answer")),
    }
}

/// What a command that could not be run is to a caller who does not look at its errno.
pub fn exec_failure(failure: Failure) -> Error {
    Error::from(failure).context("exec")
}

/// Which stream.
#[derive(Debug, Clone, Copy)]
enum Stream {
    Stdout = 0,
    Stderr = 1,
}

/// Both streams as they are read: what arrived by a deadline is there.
#[derive(Debug, Default)]
struct Captured(Mutex<Output>);

#[derive(Debug, Default)]
struct Output {
    streams: [Vec<u8>; 2],
    cut: bool,
}

impl Output {
    /// Takes what there is room for.
    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let (own, other) = (stream as usize, 1 - stream as usize);
        let others = self.streams[other].len().max(OTHERS_SHARE);
        let room = (MAX_OUTPUT_BYTES - others).saturating_sub(self.streams[own].len());
        self.streams[own].extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.cut |= bytes.len() > room;
    }
}

impl Captured {
    /// Reads until end-of-file; beyond the bound it still reads, so that the writer is not stopped by a full pipe.
    async fn read(&self, stream: Stream, fd: OwnedFd) -> Result<()> {
        let mut pipe = pipe::Receiver::from_owned_fd(fd).context(|| "watch a pipe")?;
        let mut chunk = vec![0; FIRST_BYTES];
        loop {
            let n = pipe.read(&mut chunk).await.context(|| "read a pipe")?;
            if n == 0 {
                return Ok(());
            }
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(stream, &chunk[..n]);
            if n == chunk.len() {
                chunk.resize(CHUNK_BYTES, 0);
            }
        }
    }

    fn take(&self) -> Output {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{self, HEADER_BYTES, ToEngine};
    use std::os::unix::net::UnixStream;
    use tokio::io::AsyncWriteExt;

    /// Asks a shim that stands in for one, for a command without a timeout.
    async fn ask(shim: &Shim) -> Result<Reply> {
        let asked = shim.send(Request::Shutdown, &[]).await.expect("sent");
        within(shim, asked, Duration::ZERO).await
    }

    fn pair() -> (Shim, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        let (heard, _) = tokio::sync::mpsc::unbounded_channel();
        (Shim::new(ours.into(), heard).expect("shim"), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_stands_still_holds_up_no_command_for_ever() {
        let (shim, _theirs) = pair();
        let begun = tokio::time::Instant::now();
        let e = ask(&shim).await.expect_err("nobody answers");
        assert_eq!((e.kind(), begun.elapsed()), (Kind::Unavailable, LOOK_EVERY + LOOK_WAIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_takes_as_long_as_it_takes_while_its_shim_serves_others() {
        let (shim, theirs) = pair();
        theirs.set_nonblocking(true).expect("O_NONBLOCK");
        let mut theirs = tokio::net::UnixStream::from_std(theirs).expect("watch");
        let begun = tokio::time::Instant::now();
        let serve = async {
            let mut command = None;
            // The request, and then a question every ten seconds, of which the last ones come after an hour.
            while begun.elapsed() < Duration::from_secs(3600) {
                let mut header = [0; HEADER_BYTES];
                theirs.read_exact(&mut header).await.expect("a frame");
                let mut text = vec![0; wire::frame_len(header).expect("short")];
                theirs.read_exact(&mut text).await.expect("a frame");
                let request: wire::ToShim = serde_json::from_slice(&text).expect("JSON");
                let reply = ToEngine::Reply { id: request.id, reply: Reply::Done };
                match command {
                    None => command = Some(wire::encode(&reply).expect("short")),
                    Some(_) => theirs.write_all(&wire::encode(&reply).expect("short")).await.expect("write"),
                }
            }
            theirs.write_all(&command.expect("it was asked")).await.expect("write");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            reply = ask(&shim) => assert!(matches!(reply, Ok(Reply::Done)), "{reply:?}"),
            () = serve => {}
        }
        assert!(begun.elapsed() >= Duration::from_secs(3600));
    }

    #[test]
    fn both_streams_together_fit_an_answer_and_neither_takes_all_of_it() {
        let flood = vec![b'x'; MAX_OUTPUT_BYTES + 1];
        for (first, second) in [(Stream::Stdout, Stream::Stderr), (Stream::Stderr, Stream::Stdout)] {
            let mut output = Output::default();
            output.push(first, &flood);
            assert_eq!((output.streams[first as usize].len(), output.cut), (MAX_OUTPUT_BYTES - OTHERS_SHARE, true));
            output.push(second, &flood);
            assert_eq!(output.streams[second as usize].len(), OTHERS_SHARE);
            output.push(first, b"more");
            assert_eq!(output.streams.iter().map(Vec::len).sum::<usize>(), MAX_OUTPUT_BYTES);
        }
        let mut output = Output::default();
        output.push(Stream::Stdout, b"a little");
        assert!(!output.cut);
        output.push(Stream::Stderr, &flood);
        output.push(Stream::Stdout, &flood);
        assert_eq!(output.streams.iter().map(Vec::len).sum::<usize>(), MAX_OUTPUT_BYTES);
    }
}
