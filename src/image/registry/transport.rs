//! Connections: HTTP/1.1 over TCP or TLS, kept for the next request to the same origin, each wait with a bound.
//!
//! HTTP/1.1 on purpose: each layer has a connection of its own, and none waits for another's window. A connection is driven by the task that
//! waits for its answer, so that dropping that task ends it, and what a layer costs is paid on the layer's thread.

use super::failure::{Failure, Why};
use super::proxy::{self, Proxies};
use super::tls::{self, TlsOptions};
use super::url::{Origin, Url};
use crate::error::{Error, describe_io};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

/// Addresses of a name that are tried, at most.
const MAX_ADDRESSES: usize = 8;
/// Connections that are kept while nobody uses them, at most.
const MAX_IDLE: usize = 16;
/// Bytes of an answer's head, at most, and of what is read at once.
const READ_BUFFER: usize = 256 << 10;
/// Bytes of an answer that are read for the sake of its connection; one with more is closed.
const MAX_DRAIN: usize = 64 << 10;

/// How an origin is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    pub origin: Origin,
    pub tls: TlsOptions,
    pub dial_timeout: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Transport {
    idle: Mutex<Vec<(Route, Connection)>>,
    configs: Mutex<HashMap<TlsOptions, Arc<ClientConfig>>>,
    proxies: Proxies,
    /// How long a request waits for the next byte.
    no_progress: Duration,
}

/// What makes a connection go on; `None` once it has ended.
struct Driver(Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>);

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Driver {
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.0
            && driver.as_mut().poll(cx).is_ready()
        {
            self.0 = None; // why, is told to the request as well
        }
    }

    /// Waits for `work` while the connection goes on.
    async fn with<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => {
                self.poll(cx);
                work.as_mut().poll(cx)
            }
        })
        .await
    }
}

/// An answer, its body not yet read.
#[derive(Debug)]
pub struct Answer<'a> {
    pub status: u16,
    pub headers: HeaderMap,
    /// Who has given it.
    pub origin: Origin,
    body: Incoming,
    connection: Option<(Route, Connection)>,
    transport: &'a Transport,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What hyper says, with what the kernel says below it.
fn broken(e: &hyper::Error) -> Failure {
    let mut text = e.to_string();
    let mut source = std::error::Error::source(e);
    while let Some(inner) = source {
        let said = inner.downcast_ref().map_or_else(|| inner.to_string(), describe_io);
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = inner.source();
    }
    Failure::new(Why::Broken, text)
}

impl Transport {
    pub fn new(no_progress: Duration, proxies: Proxies) -> Transport {
        Transport { idle: Mutex::default(), configs: Mutex::default(), proxies, no_progress }
    }

    fn stalled(&self) -> Failure {
        Failure::new(
            Why::Broken,
            format!("nothing came for {} s (image.no_progress_timeout)", self.no_progress.as_secs_f32()),
        )
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// `Unreachable`, `NotTls`, `Broken`.
    pub async fn send(
        &self,
        route: &Route,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: &str,
    ) -> Result<Answer<'_>, Failure> {
        loop {
            let kept = self.kept(route).await;
            let reused = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect(route).await?,
            };
            let request = self.request(method, url, headers, body)?;
            let sent = timeout(self.no_progress, connection.driver.with(connection.sender.send_request(request))).await;
            match sent {
                Err(_) => return Err(self.stalled()),
                // The server has closed it in the meantime, which it may at any time.
                Ok(Err(_)) if reused => {}
                Ok(Err(e)) => return Err(broken(&e)),
                Ok(Ok(response)) => {
                    let (parts, body) = response.into_parts();
                    return Ok(Answer {
                        status: parts.status.as_u16(),
                        headers: parts.headers,
                        origin: url.origin.clone(),
                        body,
                        connection: Some((route.clone(), connection)),
                        transport: self,
                    });
                }
            }
        }
    }

    fn request(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        body: &str,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let wrong = |e: &dyn std::fmt::Display| Failure::from(Error::invalid(format!("request {url}: {e}")));
        // A proxy of plain HTTP is told the whole URL.
        let proxy = self.proxies.towards(&url.origin).filter(|_| !url.origin.https);
        let target = if proxy.is_some() { format!("{}{}", url.origin, url.path) } else { url.path.clone() };
        let mut request = Request::builder().method(method).uri(target);
        if let Some(own) = request.headers_mut() {
            own.extend(headers.clone());
            own.insert(header::HOST, HeaderValue::try_from(url.origin.authority()).map_err(|e| wrong(&e))?);
            own.insert(header::USER_AGENT, HeaderValue::from_static(concat!("podwright/", env!("CARGO_PKG_VERSION"))));
            if let Some(authorization) = proxy.and_then(|proxy| proxy.authorization.as_ref()) {
                let value = HeaderValue::try_from(authorization).map_err(|e| wrong(&e))?;
                own.insert(header::PROXY_AUTHORIZATION, value);
            }
        }
        request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).map_err(|e| wrong(&e))
    }

    /// A connection of an earlier request that is still good: its end, if it has come, is seen by driving it once.
    async fn kept(&self, route: &Route) -> Option<Connection> {
        loop {
            let mut connection = {
                let mut idle = lock(&self.idle);
                let at = idle.iter().position(|(to, _)| to == route)?;
                idle.swap_remove(at).1
            };
            poll_fn(|cx| {
                connection.driver.poll(cx);
                Poll::Ready(())
            })
            .await;
            if connection.driver.0.is_some() && connection.sender.is_ready() {
                return Some(connection);
            }
        }
    }

    fn keep(&self, route: Route, connection: Connection) {
        let mut idle = lock(&self.idle);
        if idle.len() == MAX_IDLE {
            idle.remove(0);
        }
        idle.push((route, connection));
    }

    async fn connect(&self, route: &Route) -> Result<Connection, Failure> {
        let proxy = self.proxies.towards(&route.origin);
        let mut stream = dial(proxy.map_or(&route.origin, |proxy| &proxy.origin), route.dial_timeout).await?;
        if !route.origin.https {
            return handshake(stream).await;
        }
        let config = self.config(&route.tls)?;
        let name = tls::server_name(route.origin.name())?;
        let secured = async {
            if let Some(proxy) = proxy {
                proxy::connect(&mut stream, proxy, &route.origin).await?;
            }
            TlsConnector::from(config).connect(name, stream).await.map_err(|e| {
                let why = if tls::is_not_tls(&e) { Why::NotTls } else { Why::Untrusted };
                Failure::new(why, format!("TLS handshake: {}", tls::explain(&e)))
            })
        };
        match timeout(self.no_progress, secured).await {
            Ok(stream) => handshake(stream?).await,
            Err(_) => Err(self.stalled().context("TLS handshake")),
        }
    }

    fn config(&self, options: &TlsOptions) -> Result<Arc<ClientConfig>, Failure> {
        if let Some(config) = lock(&self.configs).get(options) {
            return Ok(Arc::clone(config));
        }
        let config = tls::config(options)?;
        lock(&self.configs).insert(options.clone(), Arc::clone(&config));
        Ok(config)
    }
}

async fn dial(to: &Origin, dial_timeout: Duration) -> Result<TcpStream, Failure> {
    let unreachable = |why: String| Failure::new(Why::Unreachable, why);
    let lookup = timeout(dial_timeout, tokio::net::lookup_host((to.name(), to.port))).await;
    let addresses = match lookup {
        Err(_) => return Err(unreachable(format!("look up {}: no answer in time", to.name()))),
        Ok(found) => found.map_err(|e| unreachable(format!("look up {}: {}", to.name(), describe_io(&e))))?,
    };
    let mut last = format!("look up {}: it has no address", to.name());
    for address in addresses.take(MAX_ADDRESSES) {
        match timeout(dial_timeout, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true); // only a matter of speed
                return Ok(stream);
            }
            Ok(Err(e)) => last = format!("connect to {address}: {}", describe_io(&e)),
            Err(_) => last = format!("connect to {address}: no answer in {} s", dial_timeout.as_secs_f32()),
        }
    }
    Err(unreachable(last))
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connection, Failure> {
    let made = http1::Builder::new().max_buf_size(READ_BUFFER).handshake(TokioIo::new(stream)).await;
    let (sender, driver) = made.map_err(|e| broken(&e))?;
    Ok(Connection { sender, driver: Driver(Some(Box::pin(driver))) })
}

impl Answer<'_> {
    /// A header as text; empty when it is absent or no text.
    pub fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Bytes of the body, if it says.
    pub fn length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH).parse().ok()
    }

    /// The next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// `Broken` when it ends too early, or nothing comes for the time that is allowed.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let Some((_, connection)) = &mut self.connection else { return Ok(None) };
            let frame = timeout(self.transport.no_progress, connection.driver.with(self.body.frame())).await;
            match frame {
                Err(_) => return Err(self.transport.stalled()),
                Ok(Some(Err(e))) => return Err(broken(&e)),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {} // trailers
                },
                Ok(None) => {
                    if let Some((route, connection)) = self.connection.take() {
                        self.transport.keep(route, connection);
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// The body up to `max` bytes, and whether that was all of it.
    ///
    /// # Errors
    /// As [`Answer::chunk`].
    pub async fn text(mut self, max: usize) -> Result<(Vec<u8>, bool), Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            let room = max - bytes.len();
            if chunk.len() > room {
                bytes.extend_from_slice(&chunk[..room]);
                return Ok((bytes, false));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes, true))
    }

    /// Reads a short body, so that its connection can be used again.
    pub async fn drain(self) {
        let _ = self.text(MAX_DRAIN).await; // else the connection is closed
    }
}
