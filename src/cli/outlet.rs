//! What containers write, on its way to whoever reads `run`: by a thread of its own. A reader that does not read (`| less`, a terminal after
//! Ctrl-S) holds up a write for as long as it likes, and meanwhile there are containers to start again, deadlines to keep and Ctrl-C to hear.

use crate::agent::logs::Stream;
use crate::agent::runner::Ask;
use crate::error::{Context, Result};
use std::io::{ErrorKind, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// How many writes wait for the one that is at work; each container has one at a time.
const QUEUED: usize = 16;
/// How long a reader may take nothing: once the pods are to end, before what is left is not shown; and when a container has ended, before its
/// pod goes on all the same.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same once they are killed.
const BRIEFLY: Duration = Duration::from_millis(500);

/// Something to write.
#[derive(Debug)]
struct Job {
    stream: Stream,
    bytes: Vec<u8>,
    /// Dropped when it is written, or could not be.
    _done: oneshot::Sender<()>,
}

/// This command's stdout and stderr, for all pods that it shows.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    jobs: mpsc::Sender<Job>,
    asked: watch::Receiver<Ask>,
    /// What is still to be shown of containers that have ended.
    late: Arc<Mutex<JoinSet<()>>>,
}

impl Outlet {
    /// `asked`: what is asked of the pods.
    ///
    /// # Errors
    /// `Internal` when there is no thread to be had.
    pub(super) fn new(asked: watch::Receiver<Ask>) -> Result<Outlet> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUED);
        let write = move || {
            let mut told = false;
            while let Some(job) = queue.blocking_recv() {
                told |= !put(job.stream, &job.bytes, told);
            }
        };
        // It ends with the process: nothing wakes a write.
        std::thread::Builder::new().name("output".to_owned()).spawn(write).context(|| "start a thread")?;
        Ok(Outlet { jobs, asked, late: Arc::default() })
    }

    /// Writes, and waits until that is done; `false` when nobody reads and the pods are to end.
    pub(super) async fn write(&self, stream: Stream, bytes: Vec<u8>) -> bool {
        let (done, written) = oneshot::channel();
        let write = async {
            let _ = self.jobs.send(Job { stream, bytes, _done: done }).await; // the thread takes all there is
            let _ = written.await; // told by being dropped
        };
        tokio::select! {
            biased;
            () = write => true,
            () = self.given_up() => false,
        }
    }

    /// Says something on stderr, after what is on its way. It is not said when too much is.
    pub(super) fn say(&self, text: &str) {
        let job = Job { stream: Stream::Stderr, bytes: note(text), _done: oneshot::channel().0 };
        let _ = self.jobs.try_send(job); // nobody reads
    }

    /// Says something on stderr, and waits until that is done, as [`Outlet::write`].
    pub(super) async fn tell(&self, text: &str) {
        self.write(Stream::Stderr, note(text)).await;
    }

    /// Has `work` show what is left of a container, and waits for that, but for a reader that does not read only for a while.
    pub(super) async fn finish(&self, work: impl Future<Output = ()> + Send + 'static) {
        let (done, ended) = oneshot::channel::<()>();
        {
            let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
            while late.try_join_next().is_some() {}
            late.spawn(async move {
                work.await;
                drop(done);
            });
        }
        let _ = tokio::time::timeout(PATIENCE, ended).await; // it goes on, and `settle` waits for it
    }

    /// Waits until all is shown, unless it is given up.
    pub(super) async fn settle(&self) {
        let mut late = std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner));
        while late.join_next().await.is_some() {}
        self.write(Stream::Stderr, Vec::new()).await;
    }

    async fn given_up(&self) {
        self.until(Ask::Stop).await;
        tokio::select! {
            () = tokio::time::sleep(PATIENCE) => {}
            () = async {
                self.until(Ask::Kill).await;
                tokio::time::sleep(BRIEFLY).await;
            } => {}
        }
    }

    async fn until(&self, ask: Ask) {
        let mut asked = self.asked.clone();
        if asked.wait_for(|now| *now >= ask).await.map(|_| ()).is_err() {
            std::future::pending().await // nobody can ask any more
        }
    }
}

fn note(text: &str) -> Vec<u8> {
    format!("podwright: {text}\n").into_bytes()
}

/// Whether it could be written. A reader that went away is no reason to stop the pod, nor to say anything; a full disk is told of once.
fn put(stream: Stream, bytes: &[u8], told: bool) -> bool {
    let (name, written) = match stream {
        Stream::Stdout => {
            let mut stdout = std::io::stdout().lock();
            ("stdout", stdout.write_all(bytes).and_then(|()| stdout.flush()))
        }
        Stream::Stderr => ("stderr", std::io::stderr().lock().write_all(bytes)),
    };
    match written {
        Ok(()) => true,
        Err(e) if e.kind() == ErrorKind::BrokenPipe => true,
        Err(e) => {
            if !told {
                let why = crate::error::describe_io(&e);
                let text = format!("write to {name}: {why}; the pod goes on, some of its output is not shown");
                let _ = std::io::stderr().lock().write_all(&note(&text)); // nobody is left to tell
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_is_given_up_when_the_pods_are_killed_and_not_before() {
        let (ask, asked) = watch::channel(Ask::Run);
        let (jobs, queue) = mpsc::channel(1); // a thread that is stuck in a write takes none
        let outlet = Outlet { jobs, asked, late: Arc::default() };
        let writing = outlet.write(Stream::Stdout, b"x".to_vec());
        tokio::pin!(writing);
        assert!(by_now(writing.as_mut()).await.is_none(), "it waits");
        ask.send_replace(Ask::Kill);
        assert!(!writing.await);
        drop(queue);
        assert!(outlet.write(Stream::Stdout, b"x".to_vec()).await, "a thread that is gone holds up nobody");
    }

    /// What a future has to say by now.
    async fn by_now<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = &mut future => Some(output),
            () = tokio::task::yield_now() => None,
        }
    }
}
