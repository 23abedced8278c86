//! The daemon's spare: a shim that is there before its pod, so that a sandbox does not wait for a program to be executed. There is at
//! most one, made once the pod that took the last has started a container (or a moment after it, if it has none by then), and none
//! while no pod is to run. Not at once: it would take a processor from the create and the start that come next.
//!
//! It is as any shim in its first moment: it has seen no pod, it holds nothing but its connection, and it ends by itself when that
//! does. Not for `run`: its shims sweep after it, and one pod alone would pay for two.

use super::{Engine, blocking};
use crate::error::Result;
use crate::fault;
use crate::id::PodId;
use crate::sys::spawn::Child;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// When a spare is made at the latest, after its forerunner was taken: a client that starts a container at once is done by then, and one
/// that does not is in no hurry.
const MOMENT: Duration = Duration::from_millis(20);

/// After a container's start: until the answer is told.
const ANSWER: Duration = Duration::from_millis(1);

/// Where the spare is kept. Locked while one is made or ended.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Option<(Child, OwnedFd)>>);

impl Spare {
    fn lock(&self) -> MutexGuard<'_, Option<(Child, OwnedFd)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_there(&self) -> bool {
        self.0.try_lock().is_ok_and(|spare| spare.is_some())
    }

    /// The spare, if it is there and lives.
    fn take(&self) -> Option<(Child, OwnedFd)> {
        // One that is just being made would take as long as another.
        let (child, socket) = self.0.try_lock().ok()?.take()?;
        if child.has_ended().unwrap_or(true) {
            let _ = child.wait(); // it is ours, so there is nothing that could fail
            return None;
        }
        Some((child, socket))
    }
}

impl Engine {
    /// The shim for a new pod with its connection, and whether it is in the shims' cgroup: the spare, or a new one.
    ///
    /// # Errors
    /// As [`super::shim::spawn`].
    pub(super) fn bear(&self, pod: &PodId) -> Result<(Child, OwnedFd, bool)> {
        match self.0.spare.take() {
            Some((child, socket)) => Ok((child, socket, true)),
            None => self.give_birth(pod, false),
        }
    }

    /// Makes a spare beside whatever else is done, where there is to be one, after `delay`.
    fn keep_spare(&self, delay: Duration) {
        if !self.is_daemon() || self.0.spare.is_there() {
            return;
        }
        let engine = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let making = move || engine.make_spare();
            if let Err(e) = blocking(making).await {
                tracing::warn!("no spare shim: {e}"); // the next pod makes its own, and says what is wrong
            }
        });
    }

    /// A pod was made, perhaps of the spare.
    pub(super) fn keep_spare_soon(&self) {
        self.keep_spare(MOMENT);
    }

    /// A container was started: whoever made its pod has what it wanted, as soon as the answer is there.
    pub(super) fn keep_spare_then(&self) {
        self.keep_spare(ANSWER);
    }

    fn make_spare(&self) -> Result<()> {
        let mut spare = self.0.spare.lock();
        if spare.is_some() || !self.has_live_pods() {
            return Ok(());
        }
        let (child, socket, inside) = self.give_birth(&PodId::none(), false)?;
        fault::point("engine.run_pod.spare");
        if inside {
            *spare = Some((child, socket));
        } else {
            bury(&child);
        }
        Ok(())
    }

    /// Ends the spare unless a pod is to run: it is in a cgroup that goes with the last one.
    pub(super) fn end_spare(&self) {
        let mut spare = self.0.spare.lock();
        if self.has_live_pods() {
            return;
        }
        if let Some((child, _socket)) = spare.take() {
            bury(&child);
        }
    }

    fn has_live_pods(&self) -> bool {
        self.pods_mut().values().any(|pod| !pod.facts().stopped)
    }
}

fn bury(child: &Child) {
    let _ = child.kill(); // it may have ended by itself
    let _ = child.wait(); // it is ours, so there is nothing that could fail
}
