//! The connections: HTTP/2 without TLS on a unix socket, services to choose from by their path: the two of the CRI, and one of the
//! daemon's own.

use super::calls::Calls;
use super::{Cri, lists, status};
use crate::criapi::image_service_server::{self, ImageServiceServer};
use crate::criapi::runtime_service_server::{self, RuntimeServiceServer};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

/// The longest request, in bytes: what clients take for an answer, both ways.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Calls at a time on one connection; a kubelet has one connection for everything.
const MAX_STREAMS: u32 = 1024;
/// Connections at a time: the kubelet's two, and those of tools. critest makes two for each spec and closes none, so a few hundred are
/// everyday life. One more waits in the socket's queue.
const MAX_CONNECTIONS: usize = 1024;
/// How long calls may go on when the server is to end; what they began ends after it in any case, or is found by the next server.
const DRAIN: Duration = Duration::from_secs(10);

/// A service beside those of the CRI.
pub trait Extra:
    Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible, Future: Send>
    + NamedService
    + Clone
    + Send
    + 'static
{
}

impl<S> Extra for S where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible, Future: Send>
        + NamedService
        + Clone
        + Send
        + 'static
{
}

/// Which service a call is for, by its path.
#[derive(Clone)]
struct Services<S> {
    cri: Cri,
    runtime: RuntimeServiceServer<Cri>,
    images: ImageServiceServer<Cri>,
    extra: S,
    calls: Arc<Calls>,
}

impl<S: Extra> Services<S> {
    async fn call(self, request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
        let (calls, path, began) = (self.calls.clone(), request.uri().path().to_owned(), Instant::now());
        calls.started(&path);
        let response = self.answer(request).await?;
        // An error of one message is told in the header; a call that was answered may still fail in its stream, which is not counted.
        let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok());
        calls.handled(&path, code.unwrap_or(0), began.elapsed());
        Ok(response)
    }

    async fn answer(mut self, request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
        match request.uri().path() {
            lists::CONTAINERS => return Ok(self.cri.answer_containers(request, MAX_MESSAGE_BYTES).await),
            lists::PODS => return Ok(self.cri.answer_pods(request, MAX_MESSAGE_BYTES).await),
            _ => {}
        }
        let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
        match service {
            runtime_service_server::SERVICE_NAME => self.runtime.call(request).await,
            image_service_server::SERVICE_NAME => self.images.call(request).await,
            name if name == S::NAME => self.extra.call(request).await,
            other => Ok(status::unimplemented(&format!("service {other}")).into_http()),
        }
    }
}

/// Serves until `closing` becomes true, and then until all calls have ended, or long enough.
pub async fn serve<S: Extra>(cri: Cri, extra: S, listener: UnixListener, mut closing: watch::Receiver<bool>) {
    let services = Services {
        calls: cri.calls.clone(),
        cri: cri.clone(),
        runtime: RuntimeServiceServer::new(cri.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
        images: ImageServiceServer::new(cri).max_decoding_message_size(MAX_MESSAGE_BYTES),
        extra,
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, services.clone(), closing.clone()));
                    if connections.len() == MAX_CONNECTIONS {
                        tracing::warn!("{MAX_CONNECTIONS} clients are connected: the next one waits until one of them has gone");
                    }
                }
                // Out of descriptors: others must close theirs first, and nobody tells when.
                Err(e) => {
                    tracing::warn!("accept a connection: {}", crate::error::describe_io(&e));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = super::until_closing(&mut closing) => break,
        }
    }
    drop(listener);
    let ended = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!("{} connections are cut after {} s", connections.len(), DRAIN.as_secs());
    }
}

async fn connection<S: Extra>(stream: UnixStream, services: Services<S>, mut closing: watch::Receiver<bool>) {
    let service = hyper::service::service_fn(move |request| services.clone().call(request));
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.max_concurrent_streams(MAX_STREAMS);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = super::until_closing(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!("connection: {e}"); // a client that goes in the middle of a call is everyday life
    }
}
