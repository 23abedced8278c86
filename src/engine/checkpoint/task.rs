//! Work of a checkpoint that blocks: none of it is waited for longer than there is time, and none of it is let go of.
//!
//! A call that hangs in the kernel cannot be taken back. What comes of it comes after the answer: it is dropped, and whoever puts the container
//! back afterwards waits for it first ([`Late`]), for it may make anew what was removed.

use crate::error::{Error, Kind, Result};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout_at};

/// Until when, and what is held until the last of the work has ended: the turn.
pub(super) struct Task<T> {
    pub until: Instant,
    held: Arc<T>,
    late: Mutex<Vec<JoinHandle<()>>>,
}

/// What had not ended in time, and what is held for it.
pub(super) struct Late<T> {
    work: Vec<JoinHandle<()>>,
    held: Arc<T>,
}

impl<T: Send + Sync + 'static> Task<T> {
    pub fn new(until: Instant, held: T) -> Task<T> {
        Task { until, held: Arc::new(held), late: Mutex::default() }
    }

    /// Waits for work that blocks, and no longer than there is time.
    ///
    /// # Errors
    /// `DeadlineExceeded` when there is none left; those of the work.
    pub async fn blocking<R: Send + 'static>(&self, work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
        let (tell, told) = oneshot::channel();
        let held = self.held.clone();
        let work = spawn_blocking(move || {
            let _ = tell.send(work()); // nobody waits any more: it is dropped, here
            drop(held);
        });
        match timeout_at(self.until, told).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::internal(format!("a worker thread ended: {:?}", work.await.err()))),
            Err(_) => {
                self.late.lock().unwrap_or_else(PoisonError::into_inner).push(work);
                Err(Error::new(Kind::DeadlineExceeded, "it was not written in time"))
            }
        }
    }

    /// What is still at work; `None`: nothing.
    pub fn late(&self) -> Option<Late<T>> {
        let work = std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner));
        if work.is_empty() { None } else { Some(Late { work, held: self.held.clone() }) }
    }
}

impl<T> Late<T> {
    /// Waits for all of it, however long that takes, and gives what is held for it.
    pub async fn ended(self) -> Arc<T> {
        for work in self.work {
            let _ = work.await; // a panic was told by its thread
        }
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    /// Says when it is dropped.
    struct Told(Arc<AtomicBool>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn work_that_outlives_its_time_is_dropped_when_it_ends_and_waited_for_by_who_cleans_up() {
        let (turn, result) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let is = |flag: &Arc<AtomicBool>| flag.load(Ordering::SeqCst);
        let task = Task::new(Instant::now() + Duration::from_millis(10), Told(turn.clone()));
        let (go, wait) = mpsc::channel::<()>();
        let made = Told(result.clone());
        let hangs = move || {
            let _ = wait.recv(); // an error is the end of the test
            Ok(made)
        };
        let e = task.blocking(hangs).await.map(|_| ()).expect_err("its time is over");
        assert_eq!(e.kind(), Kind::DeadlineExceeded);
        let late = task.late().expect("it hangs");
        assert!(task.late().is_none(), "somebody has it");
        drop(task);
        assert!(!is(&turn) && !is(&result), "it is at work");
        let mut ended = Box::pin(late.ended());
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut ended).await.is_err(), "it is waited for");
        go.send(()).expect("it hears");
        let held = ended.await;
        assert!(is(&result), "what it made is gone when it has ended");
        assert!(!is(&turn), "held until all is put back");
        drop(held);
        assert!(is(&turn));
    }

    #[tokio::test]
    async fn work_that_ends_in_time_or_panics_leaves_nothing() {
        let task = Task::new(Instant::now() + Duration::from_secs(600), ());
        assert_eq!(task.blocking(|| Ok(7)).await.expect("done"), 7);
        let failed = task.blocking(|| Err::<(), _>(Error::not_found("it"))).await.expect_err("failed");
        assert_eq!(failed.kind(), Kind::NotFound);
        let panicked = task.blocking(|| -> Result<()> { panic!("as it is to") }).await.expect_err("it has");
        assert!(panicked.kind() == Kind::Internal && panicked.to_string().contains("worker thread"), "{panicked}");
        assert!(task.late().is_none());
    }
}
