//! Copies of a container's output, as it is read for the log, into the pipes of those who are attached. And the end of its input.
//!
//! Whoever reads a pipe too slowly misses what it has no room for: nothing is kept here, nobody is waited for. How much that was is said in
//! the pipe itself as soon as there is room for it; all of it is in the log. A reader that goes is noticed by its pipe (`EPOLLERR`).

use super::event_loop::{Shim, Source};
use super::log::Stream;
use super::machine::Action;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::ContainerId;
use crate::state::record::StdStream;
use crate::sys::epoll::Interest;
use crate::sys::session::set_nonblocking;
use crate::wire::{Event, MAX_ATTACHED, Reply};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One pipe.
#[derive(Debug)]
pub(super) struct Tap {
    /// Unique among those of its container.
    number: u64,
    stream: Stream,
    pipe: File,
    /// What it had no room for since it was last told.
    lost_bytes: u64,
    pub(super) token: u64,
}

impl Tap {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.lost_bytes > 0 {
            // Shorter than PIPE_BUF, so it is written whole or not at all, pipe(7).
            let told = format!("\r\n[podwright: {} bytes are left out here: read too slowly]\r\n", self.lost_bytes);
            match self.pipe.write_all(told.as_bytes()) {
                Ok(()) => self.lost_bytes = 0,
                Err(_) => return self.lose(bytes.len()),
            }
        }
        match self.pipe.write(bytes) {
            Ok(n) => self.lose(bytes.len() - n),
            Err(_) => self.lose(bytes.len()), // no room; a reader that has gone shows at the pipe
        }
    }

    fn lose(&mut self, bytes: usize) {
        self.lost_bytes += bytes as u64;
    }
}

/// All pipes of one container.
#[derive(Debug, Default)]
pub(super) struct Taps {
    taps: Vec<Tap>,
    next: u64,
}

impl Taps {
    /// Gives what was read to everybody who wants it.
    pub(super) fn copy(&mut self, stream: Stream, bytes: &[u8]) {
        self.taps.iter_mut().filter(|tap| tap.stream == stream).for_each(|tap| tap.take(bytes));
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Tap> {
        self.taps.iter()
    }

    fn remove(&mut self, number: u64) -> Option<Tap> {
        let at = self.taps.iter().position(|tap| tap.number == number)?;
        let tap = self.taps.swap_remove(at);
        self.taps.shrink_to_fit();
        Some(tap)
    }
}

impl Shim {
    /// Copies what the container writes from now on into the given pipes.
    pub(super) fn attach(
        &mut self,
        id: &ContainerId,
        outputs: &[StdStream],
        pipes: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        let container = self.containers.get_mut(id).ok_or_else(|| Error::precondition("it has ended"))?;
        if outputs.len() != pipes.len() {
            let text = format!("{} pipes came with it, not {}", pipes.len(), outputs.len());
            return Err(Error::invalid(text));
        }
        let taps = &mut container.streams.taps;
        if taps.taps.len() + pipes.len() > MAX_ATTACHED {
            return Err(Error::exhausted(format!("the container's output is copied {MAX_ATTACHED} times already")));
        }
        for (output, pipe) in outputs.iter().zip(pipes) {
            let stream = match output {
                StdStream::Stdout => Stream::Stdout,
                StdStream::Stderr => Stream::Stderr,
                StdStream::Stdin => return Err(Error::invalid("stdin is no output")),
            };
            set_nonblocking(pipe.as_fd()).context(|| "set O_NONBLOCK")?;
            let number = taps.next;
            let token = self.poll.add(pipe.as_fd(), Source::Tap(id.clone(), number), Interest::HungUp)?;
            taps.next += 1;
            taps.taps.push(Tap { number, stream, pipe: pipe.into(), lost_bytes: 0, token });
        }
        fault::point("shim.attach.attached");
        Ok((Reply::Done, Vec::new()))
    }

    /// The reader of a pipe has gone.
    pub(super) fn detach(&mut self, id: &ContainerId, number: u64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(tap) = container.streams.taps.remove(number) {
            self.poll.remove(tap.fd(), tap.token);
        }
    }

    /// Nobody will write to its input again.
    pub(super) fn close_input(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.streams.close_input() {
            self.note(&format!("end of the input of {}", id.short()));
            fault::point("shim.close_input.closed");
            self.apply(vec![Action::Broadcast(Event::InputClosed { container: id.clone() })]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn who_reads_too_slowly_is_told_what_is_left_out_and_goes_on() {
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let writer = OwnedFd::from(writer);
        set_nonblocking(writer.as_fd()).expect("non-blocking");
        let tap = Tap { number: 0, stream: Stream::Stdout, pipe: writer.into(), lost_bytes: 0, token: 0 };
        let mut taps = Taps { taps: vec![tap], next: 1 };
        let chunk = [b'x'; 4096];
        for _ in 0..20 {
            taps.copy(Stream::Stdout, &chunk); // a pipe holds 16 of them
            taps.copy(Stream::Stderr, b"of no concern");
        }
        let mut held = vec![0; 65536];
        reader.read_exact(&mut held).expect("what it holds");
        assert!(held.iter().all(|byte| *byte == b'x'));
        taps.copy(Stream::Stdout, b"later");
        drop(taps);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("the rest");
        assert_eq!(rest, "\r\n[podwright: 16384 bytes are left out here: read too slowly]\r\nlater");
    }
}
