//! The standard streams of a container: pipes or the terminal on this side, and their way into the log.

use super::attach::Taps;
use super::log::{BATCH_BYTES, Batch, Lines, Log, Stream};
use crate::error::{Context, Result};
use crate::launch::ChildStdio;
use crate::state::record::StdStream;
use crate::sys::pipe::{inode, lasting_pipe};
use crate::sys::session::set_nonblocking;
use crate::wire;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How much is read of a stream of a container that has ended: what a pipe may hold at most (/proc/sys/fs/pipe-max-size, pipe(7)). More
/// comes only from a process elsewhere that was handed the pipe, and is not waited for.
const DRAIN_BYTES: usize = 1 << 20;

/// Memory for reading and formatting, shared by all streams of a shim and given back when nothing comes.
#[derive(Debug, Default)]
pub struct Buffers {
    input: Vec<u8>,
    batch: Batch,
}

impl Buffers {
    /// Gives it back.
    pub fn release(&mut self) {
        self.input = Vec::new();
        self.batch.release();
    }
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// As many bytes.
    Read(usize),
    /// Nothing is there now.
    Nothing,
    /// The writers are gone.
    Ended,
}

#[derive(Debug)]
struct Output {
    file: File,
    lines: Lines,
}

/// This side of a container's streams.
#[derive(Debug, Default)]
pub struct Streams {
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// Held open so that a program that reads its input waits. The engine holds a duplicate, which it writes to for those who are attached, and
    /// lets it go when this side closes it.
    stdin: Option<OwnedFd>,
    log: Option<Log>,
    /// Who else is to see what comes.
    pub(super) taps: Taps,
}

impl Streams {
    /// Both sides, as asked for. The terminal comes later ([`Streams::terminal`]), for the container's own devpts has it, and so does the
    /// log ([`Streams::open_log`]).
    ///
    /// # Errors
    /// No more descriptors.
    pub fn open(stdio: &wire::Stdio) -> Result<(ChildStdio, Streams)> {
        if stdio.tty {
            return Ok((ChildStdio::Terminal, Streams::default()));
        }
        let (stdin, held) = if stdio.stdin {
            let (reader, writer) = std::io::pipe().context(|| "pipe")?;
            (reader.into(), Some(writer.into()))
        } else {
            (File::open("/dev/null").context(|| "open /dev/null")?.into(), None)
        };
        // Where nobody reads any more because shim and engine were killed, a container is to wait for those who come after them.
        let (stdout_reader, stdout) = lasting_pipe().context(|| "pipe")?;
        let (stderr_reader, stderr) = lasting_pipe().context(|| "pipe")?;
        let streams = Streams {
            stdout: Some(Output::new(stdout_reader, Stream::Stdout)?),
            stderr: Some(Output::new(stderr_reader, Stream::Stderr)?),
            stdin: held,
            log: None,
            taps: Taps::default(),
        };
        Ok((ChildStdio::Fds { stdin, stdout, stderr }, streams))
    }

    /// The log, before anything is read: on a disk to make a file takes as long as a dozen mounts.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_log(&mut self, stdio: &wire::Stdio) -> Result<()> {
        self.log = stdio.log.as_deref().map(Log::open).transpose()?;
        Ok(())
    }

    /// The streams of a container that another shim has started; its log is written on. A log that cannot be opened is told, and the
    /// container goes on without.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn adopt(
        stdio: &wire::Stdio,
        given: impl Iterator<Item = (StdStream, OwnedFd)>,
    ) -> Result<(Streams, Result<()>)> {
        let (log, logged) = match stdio.log.as_deref().map(Log::resume).transpose() {
            Ok(log) => (log, Ok(())),
            Err(e) => (None, Err(e)),
        };
        let mut streams = Streams { log, ..Streams::default() };
        for (stream, fd) in given {
            match stream {
                StdStream::Stdin => streams.stdin = Some(fd),
                StdStream::Stdout => streams.stdout = Some(Output::new(fd, Stream::Stdout)?),
                StdStream::Stderr => streams.stderr = Some(Output::new(fd, Stream::Stderr)?),
            }
        }
        Ok((streams, logged))
    }

    /// All that are open, and which they are.
    fn all(&self) -> impl Iterator<Item = (StdStream, BorrowedFd<'_>)> {
        let named = |(stream, fd)| match stream {
            Stream::Stdout => (StdStream::Stdout, fd),
            Stream::Stderr => (StdStream::Stderr, fd),
        };
        self.fds().map(named).chain(self.stdin.iter().map(|fd| (StdStream::Stdin, fd.as_fd())))
    }

    /// Duplicates of all that are open, stdout first, stdin last.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn duplicates(&self) -> Result<Vec<(StdStream, OwnedFd)>> {
        let dup = |(stream, fd): (_, BorrowedFd<'_>)| Ok((stream, fd.try_clone_to_owned().context(|| "dup a stream")?));
        self.all().map(dup).collect()
    }

    /// The inode numbers of those that are pipes, before there is a terminal.
    pub fn pipes(&self) -> Vec<(StdStream, u64)> {
        self.all().filter_map(|(stream, fd)| Some((stream, inode(fd).ok()?))).collect()
    }

    /// The master of the container's terminal: all of it is logged as stdout.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn terminal(&mut self, master: OwnedFd) -> Result<()> {
        self.stdout = Some(Output::new(master, Stream::Stdout)?);
        Ok(())
    }

    /// The streams that are open, stdout first.
    pub fn fds(&self) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
        let stdout = self.stdout.iter().map(|output| (Stream::Stdout, output.file.as_fd()));
        stdout.chain(self.stderr.iter().map(|output| (Stream::Stderr, output.file.as_fd())))
    }

    fn output(&mut self, stream: Stream) -> &mut Option<Output> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Reads one stream once and logs what came. The error is one of the log, told once; reading goes on.
    pub fn read(&mut self, stream: Stream, buffers: &mut Buffers) -> (Progress, Result<()>) {
        let Buffers { input, batch } = buffers;
        input.resize(BATCH_BYTES, 0);
        let Some(output) = self.output(stream) else { return (Progress::Ended, Ok(())) };
        let n = match output.file.read(input) {
            Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => {
                return (Progress::Nothing, Ok(()));
            }
            // EIO: nobody has the terminal open any more, tty_ioctl(4). Any other error would not go away either.
            Ok(0) | Err(_) => return (Progress::Ended, Ok(())),
            Ok(n) => n,
        };
        self.taps.copy(stream, &input[..n]);
        let (mut used, mut logged) = (0, Ok(()));
        while used < n && self.log.is_some() {
            let Some(output) = self.output(stream) else { break };
            used += output.lines.take(&input[used..n], batch);
            logged = logged.and(self.write(batch));
        }
        (Progress::Read(n), logged)
    }

    /// How much of the log is missing, in bytes.
    pub fn lost_bytes(&self) -> u64 {
        self.log.as_ref().map_or(0, Log::lost_in_all_bytes)
    }

    fn write(&mut self, batch: &mut Batch) -> Result<()> {
        self.log.as_mut().map_or(Ok(()), |log| log.write(batch))
    }

    /// Ends a stream: an unended line is logged as it is, and the descriptor closed.
    pub fn end(&mut self, stream: Stream, buffers: &mut Buffers) -> Result<()> {
        if let Some(mut output) = self.output(stream).take() {
            output.lines.end(&mut buffers.batch);
        }
        self.write(&mut buffers.batch)
    }

    /// Reads what is still there after the last process has gone, and ends the stream.
    pub fn drain(&mut self, stream: Stream, buffers: &mut Buffers) -> Result<()> {
        let (mut drained, mut logged) = (0, Ok(()));
        while drained < DRAIN_BYTES {
            let (progress, written) = self.read(stream, buffers);
            logged = logged.and(written);
            match progress {
                Progress::Read(n) => drained += n,
                Progress::Nothing | Progress::Ended => break,
            }
        }
        logged.and(self.end(stream, buffers))
    }

    /// The log was renamed: open its path again.
    ///
    /// # Errors
    /// The path cannot be opened; the old file is written on.
    pub fn reopen_log(&mut self) -> Result<()> {
        self.log.as_mut().map_or(Ok(()), Log::reopen)
    }

    /// Lets go of the input. Whether there was one.
    pub fn close_input(&mut self) -> bool {
        self.stdin.take().is_some()
    }

    /// Gives back memory that holds nothing.
    pub fn release(&mut self) {
        for output in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            output.lines.release();
        }
    }
}

impl Output {
    fn new(fd: OwnedFd, stream: Stream) -> Result<Self> {
        set_nonblocking(fd.as_fd()).context(|| "set O_NONBLOCK")?;
        Ok(Output { file: fd.into(), lines: Lines::new(stream) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::Path;

    fn streams(log: &Path) -> (File, File, Streams) {
        let stdio = wire::Stdio { tty: false, stdin: false, stdin_once: false, log: Some(log.to_owned()) };
        let (child, mut streams) = Streams::open(&stdio).expect("open");
        streams.open_log(&stdio).expect("open");
        match child {
            ChildStdio::Fds { stdout, stderr, .. } => (stdout.into(), stderr.into(), streams),
            ChildStdio::Terminal => panic!("no terminal was asked for"),
        }
    }

    #[test]
    fn what_is_in_the_pipes_is_logged_though_a_writer_keeps_them_open() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let (mut stdout, mut stderr, mut streams) = streams(&path);
        let mut buffers = Buffers::default();
        stdout.write_all(b"one\ntwo").expect("write");
        stderr.write_all(b"three\n").expect("write");
        for stream in [Stream::Stdout, Stream::Stderr] {
            streams.drain(stream, &mut buffers).expect("drain");
        }
        let text = std::fs::read_to_string(&path).expect("read");
        let lines: Vec<_> = text.lines().map(|line| &line[31..]).collect();
        assert_eq!(lines, ["stdout F one", "stdout P two", "stderr F three"]);
        assert_eq!(streams.fds().count(), 0);
    }

    #[test]
    fn a_writer_that_never_stops_does_not_hold_up_the_end() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (stdout, _stderr, mut streams) = streams(&dir.path().join("log"));
        // One that only writes, and sees by that when the reader has gone.
        let pipe = inode(stdout.as_fd()).expect("fstat");
        let writer = crate::sys::pipe::reopen(std::process::id(), pipe, true).expect("open").expect("it is there");
        drop(stdout);
        let gone = |e: &std::io::Error| e.kind() == ErrorKind::BrokenPipe;
        let mut writer = File::from(writer);
        let writer = std::thread::spawn(move || while !writer.write(b"endless\n").as_ref().is_err_and(gone) {});
        streams.drain(Stream::Stdout, &mut Buffers::default()).expect("drain");
        writer.join().expect("the pipe was closed under it");
    }
}
