//! The gRPC surface: convert, call the engine, convert. It decides nothing about pods.
//!
//! * `runtime`, `images`  the two services: a line a method
//! * `convert`, `security`, `answer`  what goes in and what comes out; pure
//! * `lists`  the lists that are asked for every second, encoded once
//! * `streaming`  the URLs of exec, attach and port-forward
//! * `pods`, `containers`, `stats`, `metrics`, `events`, `node`  what the methods do
//! * `status`  [`Error`] to gRPC's; `serve` the connections, `calls` what is counted there, `prometheus` who may read it
//!
//! Three rules hold for every method that changes something:
//!
//! * It runs to its end when its caller goes away: a deadline of the client must not cut a verb in two, and the retry finds a whole object
//!   ([`Cri::to_the_end`]). Only PullImage does not, which has no deadline: it ends with the last of those who wait for the image.
//! * A retry of RunPodSandbox or CreateContainer with the same identity (CRI metadata) and the same config is answered with the object of
//!   the first call, after it, if that is still at it. The same identity with another config is ALREADY_EXISTS.
//! * Nothing waits for a pod that is not its own: verbs on one pod are serialised by the engine, on different pods not.

mod answer;
mod calls;
mod containers;
mod convert;
mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod images;
mod lists;
mod metrics;
mod node;
mod pods;
mod prometheus;
mod runtime;
mod security;
mod serve;
mod stats;
mod status;
mod streaming;

pub use prometheus::{Listener, serve_metrics};
pub use serve::{Extra, serve};

use crate::criapi::AuthConfig;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::id::{ContainerId, PodId};
use crate::image::pull::Puller;
use crate::stream;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;
use tokio::sync::{OwnedMutexGuard, mpsc, watch};
use tokio_stream::Stream;
use tonic::{Response, Status};

/// The most items of a streamed list in one message, as containerd has it: 5,000 are 3 MiB of the 16 that a client takes.
const STREAM_ITEMS: usize = 5000;

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the server is made of.
#[derive(Debug, Clone)]
pub struct Cri {
    engine: Engine,
    puller: Puller,
    streams: stream::Server,
    /// Pods can have user namespaces here, with any volume.
    user_namespaces: bool,
    /// The configuration as JSON, for `crictl info`.
    config: Arc<str>,
    making: Arc<Making>,
    calls: Arc<calls::Calls>,
    started: SystemTime,
    /// Becomes true when the server is to end: endless streams end then.
    closing: watch::Receiver<bool>,
    /// Held by every verb that is at work.
    working: mpsc::Sender<()>,
}

/// Who makes an object of which identity at this moment.
#[derive(Debug, Default)]
struct Making(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Making {
    /// Waits for whoever makes an object of this identity, and takes the turn.
    async fn turn(&self, identity: String) -> OwnedMutexGuard<()> {
        let lock = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, lock| lock.strong_count() > 0);
            let lock = all.get(&identity).and_then(Weak::upgrade).unwrap_or_default();
            all.insert(identity, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }
}

impl Cri {
    /// Serves `engine`. `working` is dropped with the last verb that is at work, so that its receiver tells when all have ended.
    pub fn new(
        engine: Engine,
        puller: Puller,
        streams: stream::Server,
        config: String,
        closing: watch::Receiver<bool>,
        working: mpsc::Sender<()>,
    ) -> Cri {
        let user_namespaces = crate::sys::probe::user_namespace_with_idmapped_tmpfs().is_ok();
        let (config, started) = (config.into(), SystemTime::now());
        Cri {
            engine,
            puller,
            streams,
            user_namespaces,
            config,
            making: Arc::default(),
            calls: Arc::default(),
            started,
            closing,
            working,
        }
    }

    /// Runs a verb to its end, whether or not its caller still waits.
    async fn to_the_end<T, F>(&self, verb: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let working = self.working.clone();
        let task = tokio::spawn(async move {
            let result = verb.await;
            drop(working);
            result
        });
        task.await.map_err(|e| Error::internal(format!("a verb ended: {e}")))?
    }

    /// The pod of an id, or of the first digits of one.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for no id at all, or for digits that several have.
    fn pod_id(&self, text: &str) -> Result<PodId> {
        one("pod", text, |digits| self.engine.pods_with(digits))
    }

    /// The container of an id, or of the first digits of one.
    ///
    /// # Errors
    /// As [`Cri::pod_id`].
    fn container_id(&self, text: &str) -> Result<ContainerId> {
        one("container", text, |digits| self.engine.containers_with(digits))
    }
}

/// What an id or its first digits stand for. A full id is not looked up: the engine says what it thinks of it.
fn one<T: std::str::FromStr>(what: &str, text: &str, with: impl FnOnce(&str) -> Vec<T>) -> Result<T> {
    if text.is_empty() {
        return Err(Error::invalid(format!("no {what} id is given")));
    }
    if let Ok(id) = text.parse::<T>() {
        return Ok(id);
    }
    let mut found = with(text);
    match (found.pop(), found.len()) {
        (Some(id), 0) => Ok(id),
        (Some(_), more) => Err(Error::invalid(format!("{} {what} ids start with {text:?}", more + 1))),
        (None, _) => Err(Error::not_found(format!("no {what} {text:?}"))),
    }
}

/// What Stop and Remove say of an object that is gone: it is as they were to make it.
fn gone_is_done(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}

/// Waits until the server is to end.
pub(crate) async fn until_closing(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await; // an error: who would say so is gone, which is the end as well
}

/// The answer of a method.
pub(crate) fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|e| status::status(&e))
}

/// A list in pieces; nothing at all for an empty one.
fn pieces<I, T>(items: Vec<I>, message: impl Fn(Vec<I>) -> T) -> Response<Answers<T>>
where
    T: Send + 'static,
{
    let mut messages = Vec::new();
    let mut items = items.into_iter();
    loop {
        let piece: Vec<I> = items.by_ref().take(STREAM_ITEMS).collect();
        if piece.is_empty() {
            return Response::new(Box::pin(tokio_stream::iter(messages)));
        }
        messages.push(Ok(message(piece)));
    }
}

/// Without the secrets.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_digits_of_an_id_are_enough_when_they_are_one_ids_only() {
        let (a, b) = (format!("ab{}", "0".repeat(62)), format!("ac{}", "0".repeat(62)));
        let known: Vec<PodId> = [&a, &b].map(|id| id.parse().expect("valid")).to_vec();
        let find = |text: &str| {
            one("pod", text, |digits| known.iter().filter(|id| id.as_str().starts_with(digits)).cloned().collect())
        };
        assert_eq!(find("ab").expect("one").as_str(), a);
        assert_eq!(find("a").expect_err("two").kind(), Kind::InvalidArgument);
        assert_eq!(find("f").expect_err("none").kind(), Kind::NotFound);
        assert_eq!(find("").expect_err("none given").kind(), Kind::InvalidArgument);
        assert_eq!(find(&"f".repeat(64)).expect("the engine's to judge").as_str(), "f".repeat(64));
    }

    #[test]
    fn a_password_is_not_printed() {
        let auth = AuthConfig { password: "secret".into(), identity_token: "secret".into(), ..Default::default() };
        assert!(!format!("{auth:?}").contains("secret"));
    }

    #[tokio::test]
    async fn makers_of_one_identity_take_turns_and_of_another_do_not_wait() {
        let making = Arc::new(Making::default());
        let first = making.turn("a".into()).await;
        let _other = making.turn("b".into()).await;
        let second = tokio::spawn({
            let making = making.clone();
            async move { drop(making.turn("a".into()).await) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.expect("its turn came");
    }
}
