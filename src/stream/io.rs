//! A connection's bytes, whatever they come over: TCP, TLS, or the messages of a WebSocket.

use crate::sys::async_fd::HangUp;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Both directions.
pub trait Bytes: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Bytes for T {}

/// Both directions, of whatever kind.
pub type Io = Pin<Box<dyn Bytes>>;

/// Whether the client has gone, seen by its socket also while nothing is read from it.
#[derive(Debug, Clone)]
pub struct HungUp(Option<Arc<HangUp>>);

impl HungUp {
    /// Of a socket; where that cannot be watched, never.
    pub fn of(socket: &impl std::os::fd::AsFd) -> HungUp {
        HungUp(HangUp::of(socket.as_fd()).ok().map(Arc::new))
    }

    /// Of what is no socket.
    #[cfg(any(test, fuzzing))]
    pub fn never() -> HungUp {
        HungUp(None)
    }

    /// Waits for that.
    pub async fn wait(&self) {
        match &self.0 {
            Some(watched) => watched.wait().await,
            None => std::future::pending().await,
        }
    }
}
