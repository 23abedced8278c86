//! The daemon's spare: a shim that is there before its pod, so that a sandbox does not wait for a program to be executed. There is at
//! most one, made after each pod that took the last, and none while no pod is to run.
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

/// Where the spare is kept. Locked while one is made or ended.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Option<(Child, OwnedFd)>>);

impl Spare {
    fn lock(&self) -> MutexGuard<'_, Option<(Child, OwnedFd)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Makes a spare beside whatever else is done, where there is to be one.
    pub(super) fn keep_spare(&self) {
        if !self.is_daemon() {
            return;
        }
        let engine = self.clone();
        tokio::spawn(blocking(move || {
            if let Err(e) = engine.make_spare() {
                tracing::warn!("no spare shim: {e}"); // the next pod makes its own, and says what is wrong
            }
            Ok(())
        }));
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
