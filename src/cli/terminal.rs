//! The terminal of whoever types: raw while it is joined with one in a container, and as it was before on every way out that a process can
//! see. And what is typed, read by a thread of its own: a terminal's read blocks whatever else shares it, if it is made not to.

use crate::engine::terminal::Size;
use crate::error::{Context, Result};
use crate::sys::async_fd::AsyncFile;
use crate::sys::terminal::{Raw, size};
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How much is read or shown at a time, in bytes.
const CHUNK_BYTES: usize = 32 << 10;
/// How many reads of what is typed wait for whoever takes them.
const QUEUED: usize = 4;
/// How long output is shown after the end, if something in the background holds on to it.
const DRAIN_WAIT: Duration = Duration::from_millis(500);
/// What leaves an attachment: Ctrl-P, Ctrl-Q, as with docker.
const DETACH: [u8; 2] = [0x10, 0x11];

/// This command's own terminal, or what stands in for it.
#[derive(Debug)]
pub(super) struct Own {
    _raw: Option<Raw>,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Left<T> {
    Done(T),
    /// The detach keys.
    Detached,
    /// A signal; the exit code that stands for it.
    Signaled(u8),
}

impl Own {
    /// `raw`: what is typed is for somebody else, if it is typed at a terminal at all.
    pub(super) fn new(raw: bool) -> Result<Own> {
        let stdin = std::io::stdin();
        let raw = (raw && stdin.is_terminal()).then(|| Raw::new(stdin.as_fd())).transpose();
        Ok(Own { _raw: raw.context(|| "make the terminal raw")? })
    }

    /// `None` without a terminal.
    pub(super) fn size() -> Option<Size> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        let (columns, rows) = size(stdout.as_fd()).or_else(|_| size(stdin.as_fd())).ok()?;
        Some(Size { columns, rows })
    }
}

/// Signals that end a command: its exit code then.
#[derive(Debug)]
pub(super) struct Ends([(Signal, u8); 3]);

impl Ends {
    pub(super) fn new() -> Result<Ends> {
        let watch = |kind, code| signal(kind).context(|| "watch a signal").map(|signal| (signal, code));
        let (hangup, interrupt) = (watch(SignalKind::hangup(), 129)?, watch(SignalKind::interrupt(), 130)?);
        Ok(Ends([hangup, interrupt, watch(SignalKind::terminate(), 143)?]))
    }

    pub(super) async fn next(&mut self) -> u8 {
        let [(hangup, one), (interrupt, two), (terminate, three)] = &mut self.0;
        tokio::select! {
            _ = hangup.recv() => *one,
            _ = interrupt.recv() => *two,
            _ = terminate.recv() => *three,
        }
    }
}

/// What comes on this command's standard input.
pub(super) fn typed() -> Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(QUEUED);
    let read = move || {
        let mut stdin = std::io::stdin().lock();
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(n @ 1..) = stdin.read(&mut chunk) {
            if sender.blocking_send(chunk[..n].to_vec()).is_err() {
                return;
            }
        }
    };
    // It ends with the process: nothing wakes a read of a terminal.
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read).context(|| "start a thread")?;
    Ok(receiver)
}

/// Copies what is typed, until its end or that of whoever takes it. Whether the detach keys came, if they are looked for.
pub(super) async fn keys(mut from: mpsc::Receiver<Vec<u8>>, to: Arc<AsyncFile>, detach: bool) -> bool {
    let mut seen = Detach::default();
    while let Some(chunk) = from.recv().await {
        let (bytes, detached) = if detach { seen.take(&chunk) } else { (chunk, false) };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match to.write(rest).await {
                Ok(n) => rest = &rest[n..],
                Err(_) => return false, // it reads no more
            }
        }
        if detached {
            return true;
        }
    }
    false
}

/// Looks for the detach keys in what is typed.
#[derive(Debug, Default)]
struct Detach {
    first: bool,
}

impl Detach {
    /// What is to be passed on, and whether they came. The first key is held back until it is known what follows.
    fn take(&mut self, chunk: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = Vec::with_capacity(chunk.len() + 1);
        for byte in chunk {
            match (std::mem::take(&mut self.first), *byte) {
                (true, second) if second == DETACH[1] => return (bytes, true),
                (was_first, byte) => {
                    if was_first {
                        bytes.push(DETACH[0]);
                    }
                    if byte == DETACH[0] {
                        self.first = true;
                    } else {
                        bytes.push(byte);
                    }
                }
            }
        }
        (bytes, false)
    }
}

/// Shows what comes until its end.
pub(super) async fn show(from: &AsyncFile, mut to: impl Write) {
    while let Ok(chunk) = from.chunk(CHUNK_BYTES).await {
        if chunk.is_empty() || to.write_all(&chunk).and_then(|()| to.flush()).is_err() {
            return; // whoever reads us has gone
        }
    }
}

/// Joins this terminal with the one whose master is `master`, if there is one, while `work` goes on, and shows what is left after it. `input`: a task of
/// [`keys`].
pub(super) async fn join<T>(
    master: Option<Arc<AsyncFile>>,
    shown: impl Future<Output = ()>,
    mut input: Option<JoinHandle<bool>>,
    work: impl Future<Output = T>,
) -> Result<Left<T>> {
    let mut resized = signal(SignalKind::window_change()).context(|| "watch SIGWINCH")?;
    let mut ends = Ends::new()?;
    tokio::pin!(shown, work);
    let mut all_shown = false;
    let left = loop {
        tokio::select! {
            done = &mut work => break Left::Done(done),
            () = &mut shown, if !all_shown => all_shown = true,
            detached = async { match &mut input { Some(input) => input.await, None => std::future::pending().await } } => {
                input = None;
                if detached.unwrap_or(false) {
                    break Left::Detached;
                }
            }
            _ = resized.recv() => {
                if let (Some(size), Some(master)) = (Own::size(), &master) {
                    let _ = size.apply(master.as_fd()); // it has ended
                }
            }
            code = ends.next() => break Left::Signaled(code),
        }
    };
    if !all_shown && matches!(left, Left::Done(_)) {
        let _ = tokio::time::timeout(DRAIN_WAIT, shown).await; // something in the background keeps it open
    }
    if let Some(input) = input {
        input.abort();
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_keys_are_found_wherever_reads_cut_them_and_nothing_else_is_held_back() {
        let mut seen = Detach::default();
        assert_eq!(seen.take(b"ls\n"), (b"ls\n".to_vec(), false));
        assert_eq!(seen.take(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(seen.take(b"b"), (b"\x10b".to_vec(), false));
        assert_eq!(seen.take(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(seen.take(b"\x11rest"), (b"".to_vec(), true));
        assert_eq!(Detach::default().take(b"x\x10\x11"), (b"x".to_vec(), true));
        assert_eq!(Detach::default().take(b"\x11"), (b"\x11".to_vec(), false));
    }
}
