//! The HTTP server: a request names a token, is upgraded, and becomes a session that lives by itself.

use super::flow::Incoming;
use super::io::{HungUp, Io};
use super::negotiate::{self, Agreed, Kind, Refused, Transport, Version};
use super::session::{Client, Command, Outgoing};
use super::token::Tokens;
use super::{port_forward, spdy, websocket};
use crate::engine::Engine;
use crate::error::{Context, Error, Result};
use crate::id::{ContainerId, PodId};
use crate::sys::socket;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Connections at a time, each with at most one session; one more waits in the socket's queue.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take to send its request, and for its half of a TLS handshake.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may take to open the streams of a command (k8s.io/cri-streaming, remotecommand/constants.go).
const STREAMS_WITHIN: Duration = Duration::from_secs(30);
/// When a client is asked whether it is there: after so long without a byte, then so often, so many times. The end of one that has gone
/// can be stuck behind what nobody reads (a window of zero), and then this is what finds it.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
/// The largest request, in bytes: its path is a token, its headers a few protocols.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Where and how it listens.
#[derive(Debug, Clone)]
pub struct Settings {
    /// An address and port; port 0 is any that is free.
    pub address: String,
    /// Files in PEM: a certificate chain and its key, for https.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// What was asked for.
#[derive(Debug, Clone)]
enum Asked {
    Command { command: Command, streams: Wanted },
    PortForward { pod: PodId, ports: Vec<u16> },
}

/// Which streams a command is to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Wanted {
    /// # Errors
    /// `InvalidArgument` for what the CRI rules out (ExecRequest, AttachRequest).
    fn check(self) -> Result<()> {
        if self.tty && self.stderr {
            return Err(Error::invalid("tty and stderr cannot both be true: a terminal has one output"));
        }
        if !(self.stdin || self.stdout || self.stderr) {
            return Err(Error::invalid("one of stdin, stdout and stderr must be set"));
        }
        Ok(())
    }
}

impl Asked {
    /// The first part of its URL's path.
    fn name(&self) -> &'static str {
        match self {
            Asked::Command { command: Command::Exec { .. }, .. } => "exec",
            Asked::Command { command: Command::Attach { .. }, .. } => "attach",
            Asked::PortForward { .. } => "portforward",
        }
    }
}

/// Who gives out URLs and serves them.
#[derive(Debug, Clone)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    tokens: Mutex<Tokens<Asked>>,
    /// `http://127.0.0.1:39143`
    base: String,
}

/// The socket of a [`Server`].
pub struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("tcp", &self.tcp).field("tls", &self.tls.is_some()).finish()
    }
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no address, certificate or key; `Internal` when the address cannot be had.
    pub async fn bind(engine: Engine, settings: &Settings) -> Result<(Server, Listener)> {
        let address = &settings.address;
        let parsed: SocketAddr = address
            .parse()
            .map_err(|_| Error::invalid(format!("cri.stream_address: {address:?} is no address and port")))?;
        let tls = settings.tls.as_ref().map(|(cert, key)| tls(cert, key)).transpose()?;
        let doing = || format!("listen on {address} (cri.stream_address)");
        let tcp = TcpListener::bind(parsed).await.context(doing)?;
        let mut own = tcp.local_addr().context(doing)?;
        // Clients are on this host: a kubelet, or crictl.
        match own.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => own.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => own.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let base = format!("{}://{own}", if tls.is_some() { "https" } else { "http" });
        let server = Server(Arc::new(Inner { engine, tokens: Mutex::default(), base }));
        Ok((server, Listener { tcp, tls }))
    }

    /// A URL for an exec.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotFound`, `FailedPrecondition` unless the container runs, `ResourceExhausted`.
    pub fn exec(&self, container: ContainerId, args: Vec<String>, streams: Wanted) -> Result<String> {
        if args.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("cmd: no command"));
        }
        self.command(Command::Exec { container: container.clone(), args }, &container, streams)
    }

    /// A URL for an attachment.
    ///
    /// # Errors
    /// As [`Server::exec`]; `InvalidArgument` for a terminal that the container has not, or the other way round.
    pub fn attach(&self, container: ContainerId, streams: Wanted) -> Result<String> {
        self.command(Command::Attach { container: container.clone() }, &container, streams)
    }

    fn command(&self, command: Command, container: &ContainerId, streams: Wanted) -> Result<String> {
        streams.check()?;
        let status = self.0.engine.container_status(container)?;
        if status.state != crate::engine::pod::State::Running {
            return Err(Error::precondition(format!("container {} does not run", container.short())));
        }
        if matches!(command, Command::Attach { .. }) && status.record.config.tty != streams.tty {
            let (has, asked) = (status.record.config.tty, streams.tty);
            let text = format!("container {}: tty is {has}, and attach asks for {asked}", container.short());
            return Err(Error::invalid(text));
        }
        self.url(Asked::Command { command, streams })
    }

    /// A URL for forwarding ports of a pod; clients over SPDY name each port themselves.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotFound`, `FailedPrecondition` unless the pod is ready, `ResourceExhausted`.
    pub fn port_forward(&self, pod: PodId, ports: &[i32]) -> Result<String> {
        let valid = |port: &i32| u16::try_from(*port).ok().filter(|port| *port > 0);
        let wrong = || Error::invalid(format!("ports {ports:?}: each is 1 to 65535"));
        let ports: Vec<u16> = ports.iter().map(valid).collect::<Option<_>>().ok_or_else(wrong)?;
        if !self.0.engine.pod_status(&pod)?.ready {
            return Err(Error::precondition(format!("pod {} is not ready", pod.short())));
        }
        self.url(Asked::PortForward { pod, ports })
    }

    fn url(&self, asked: Asked) -> Result<String> {
        let name = asked.name();
        let token = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner).put(asked, Instant::now())?;
        Ok(format!("{}/{name}/{token}", self.0.base))
    }

    /// Serves until `closing` becomes true; sessions end with it.
    pub async fn serve(self, listener: Listener, mut closing: watch::Receiver<bool>) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        let until_closing = async {
            let _ = closing.wait_for(|closing| *closing).await; // an error: who would say so is gone
        };
        let serving = async {
            loop {
                let permit = room.clone().acquire_owned().await;
                tokio::select! {
                    accepted = listener.tcp.accept() => match accepted {
                        Ok((stream, _)) => {
                            let (server, tls) = (self.clone(), listener.tls.clone());
                            connections.spawn(async move {
                                server.connection(stream, tls).await;
                                drop(permit);
                            });
                        }
                        Err(e) => {
                            tracing::warn!("accept a connection: {}", crate::error::describe_io(&e));
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        };
        tokio::select! {
            () = serving => {}
            () = until_closing => {}
        }
    }

    async fn connection(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let _ = stream.set_nodelay(true); // it is slower without, and works
        let (idle, interval, count) = KEEP_ALIVE;
        let _ = socket::keep_alive(&stream, idle, interval, count); // its end would be seen later, or when it is written to
        let hung_up = HungUp::of(&stream);
        match tls {
            None => self.http(stream, hung_up).await,
            Some(tls) => match tokio::time::timeout(HEAD_WITHIN, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.http(stream, hung_up).await,
                Ok(Err(e)) => tracing::debug!("TLS of a streaming client: {e}"),
                Err(_) => {}
            },
        }
    }

    /// One request, and what it becomes.
    async fn http<S>(self, stream: S, hung_up: HungUp)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let session = Arc::new(Mutex::new(None));
        let (server, place) = (self.clone(), session.clone());
        let service = hyper::service::service_fn(move |request: Request<body::Incoming>| {
            let response = match server.answer(&request) {
                Ok((agreed, asked)) => {
                    let upgraded = hyper::upgrade::on(request);
                    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some((agreed.transport, asked, upgraded));
                    respond(StatusCode::SWITCHING_PROTOCOLS, agreed.headers, String::new())
                }
                Err(Refused { status, message, headers }) => {
                    let mut map = HeaderMap::new();
                    for (name, value) in headers {
                        map.append(name, value);
                    }
                    respond(status, map, message)
                }
            };
            async move { Ok::<_, Infallible>(response) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(MAX_HEAD_BYTES);
        if let Err(e) = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
            tracing::debug!("a streaming client: {e}");
            return;
        }
        let session = session.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((transport, asked, upgraded)) = session
            && let Ok(upgraded) = upgraded.await
        {
            self.session(transport, asked, Box::pin(TokioIo::new(upgraded)), hung_up).await;
        }
    }

    fn answer(&self, request: &Request<body::Incoming>) -> std::result::Result<(Agreed, Asked), Refused> {
        let unknown = || Refused {
            status: StatusCode::NOT_FOUND,
            message: "there is no such request, or its time is over".to_owned(),
            headers: Vec::new(),
        };
        let mut path = request.uri().path().trim_start_matches('/').split('/');
        let (Some(name), Some(token), None) = (path.next(), path.next(), path.next()) else { return Err(unknown()) };
        let kind = match name {
            "exec" | "attach" => Kind::Command,
            "portforward" => Kind::PortForward,
            _ => return Err(unknown()),
        };
        // A client that is refused may try another transport with the same URL.
        let agreed = negotiate::negotiate(kind, request.method(), request.headers());
        let mut tokens = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = |asked: &Asked| asked.name() == name;
        match agreed {
            Ok(agreed) => Ok((agreed, tokens.take(token, Instant::now(), ours).ok_or_else(unknown)?)),
            Err(refused) if tokens.has(token, Instant::now(), ours) => Err(refused),
            Err(_) => Err(unknown()),
        }
    }

    async fn session(&self, transport: Transport, asked: Asked, io: Io, hung_up: HungUp) {
        let engine = &self.0.engine;
        match (asked, transport) {
            (Asked::Command { command, streams }, Transport::Spdy { version }) => {
                let mut connection = spdy::Connection::new(io, hung_up);
                let opened = tokio::time::timeout(STREAMS_WITHIN, streams_of(&mut connection, streams, version)).await;
                if let Ok(Some((client, theirs, last))) = opened {
                    command.run(engine, client, streams.tty).await;
                    for stream in theirs {
                        stream.finish().await;
                    }
                    connection.close(last).await;
                }
            }
            (Asked::Command { command, streams }, Transport::WebSocket { channels, version }) => {
                let (connection, mut incoming) = websocket::Connection::new(io, hung_up, channels, &[0, 4]);
                let sizes = incoming.pop().filter(|_| streams.tty);
                let stdin = incoming.pop().filter(|_| streams.stdin);
                let client = client_of(&connection, streams, version, stdin, sizes);
                // Says that it is there.
                if let Some(first) = client.stdout.as_ref().or(client.stderr.as_ref()).or(client.error.as_ref()) {
                    let _ = first.send(&[]).await; // it has gone, which is seen below
                }
                command.run(engine, client, streams.tty).await;
                connection.close().await;
            }
            (Asked::PortForward { pod, .. }, Transport::Spdy { .. }) => {
                port_forward::serve(engine, &pod, spdy::Connection::new(io, hung_up)).await;
            }
            (Asked::PortForward { pod, .. }, Transport::Tunnel) => {
                let (tunnel, io) = websocket::Connection::tunnel(io, hung_up.clone());
                port_forward::serve(engine, &pod, spdy::Connection::new(io, hung_up)).await;
                tunnel.close().await;
            }
            (Asked::PortForward { pod, ports }, Transport::WebSocket { channels, .. }) => {
                let Ok(wanted) = port_forward::channels(&ports, channels.base64) else { return };
                let (connection, incoming) = websocket::Connection::new(io, hung_up, channels, &wanted);
                port_forward::serve_channels(engine, &pod, &ports, &connection, incoming).await;
                connection.close().await;
            }
            (Asked::Command { .. }, Transport::Tunnel) => {} // is never agreed on
        }
    }
}

fn respond(status: StatusCode, headers: HeaderMap, mut message: String) -> Response<String> {
    if !message.is_empty() {
        message.push('\n');
    }
    let mut response = Response::new(message);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if status != StatusCode::SWITCHING_PROTOCOLS {
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    response
}

/// Waits until a client has opened all streams of its command: with our direction of those that only it sends on, and the last of all.
/// `None`: it has gone.
async fn streams_of(
    connection: &mut spdy::Connection,
    wanted: Wanted,
    version: Version,
) -> Option<(Client, Vec<spdy::Outgoing>, u32)> {
    let mut client =
        Client { stdin: None, stdout: None, stderr: None, error: None, sizes: None, version, gone: connection.gone() };
    let (mut theirs, mut last) = (Vec::new(), 0);
    let sized = wanted.tty && version >= Version::V3;
    let complete = |client: &Client| {
        client.error.is_some()
            && client.stdin.is_some() == wanted.stdin
            && client.stdout.is_some() == wanted.stdout
            && client.stderr.is_some() == wanted.stderr
            && client.sizes.is_some() == sized
    };
    while !complete(&client) {
        let opened = connection.opened().await?;
        last = opened.id;
        let out = |connection: &spdy::Connection| Outgoing::Spdy(connection.accept(opened.id));
        match opened.headers.get("streamtype") {
            Some("error") if client.error.is_none() => client.error = Some(out(connection)),
            Some("stdout") if wanted.stdout && client.stdout.is_none() => client.stdout = Some(out(connection)),
            Some("stderr") if wanted.stderr && client.stderr.is_none() => client.stderr = Some(out(connection)),
            Some("stdin") if wanted.stdin && client.stdin.is_none() => {
                theirs.push(connection.accept(opened.id));
                client.stdin = Some(opened.incoming);
            }
            Some("resize") if sized && client.sizes.is_none() => {
                theirs.push(connection.accept(opened.id));
                client.sizes = Some(opened.incoming);
            }
            _ => connection.refuse(opened.id),
        }
    }
    Some((client, theirs, last))
}

fn client_of(
    connection: &websocket::Connection,
    wanted: Wanted,
    version: Version,
    stdin: Option<Incoming>,
    sizes: Option<Incoming>,
) -> Client {
    let channel = |number: u8| Outgoing::WebSocket(connection.outgoing(number));
    Client {
        stdin,
        stdout: wanted.stdout.then(|| channel(1)),
        stderr: wanted.stderr.then(|| channel(2)),
        error: Some(channel(3)),
        sizes,
        version,
        gone: connection.gone(),
    }
}

fn tls(cert: &PathBuf, key: &PathBuf) -> Result<TlsAcceptor> {
    let wrong = |what: &str, path: &PathBuf, e: &dyn std::fmt::Display| {
        Error::invalid(format!("cri.stream_tls_{what}: {}: {e}", path.display()))
    };
    let chain: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(cert).map_err(|e| wrong("cert", cert, &e))?.collect();
    let chain = chain.map_err(|e| wrong("cert", cert, &e))?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong("key", key, &e))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong("cert", cert, &e))?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .map_err(|e| wrong("key", key, &e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
