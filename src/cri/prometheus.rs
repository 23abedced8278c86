//! `/metrics`: the daemon's own numbers in the text format of Prometheus, over HTTP/1.1. Those of pods and containers are the kubelet's to
//! ask for, through the CRI (`metrics`).

use super::Cri;
use super::calls::{escaped, head, line};
use crate::engine::pod::State;
use crate::error::{Context, Error, Result};
use crate::sys;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Scrapers at a time; one more waits in the socket's queue.
const MAX_CONNECTIONS: usize = 16;
/// How long a client may take to send its request: one that sends nothing holds one of the connections.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Where `/metrics` is served.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// On an address, `127.0.0.1:9100`.
    ///
    /// # Errors
    /// `InvalidArgument` for none, `Internal` when it cannot be had.
    pub async fn tcp(address: &str) -> Result<Listener> {
        let parsed: SocketAddr = address
            .parse()
            .map_err(|_| Error::invalid(format!("metrics.address: {address:?} is no address and port")))?;
        Ok(Listener::Tcp(TcpListener::bind(parsed).await.context(|| format!("listen on {address}"))?))
    }

    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Listener::Tcp(listener) => Box::new(listener.accept().await?.0),
            Listener::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Serves until `closing` becomes true.
pub async fn serve_metrics(cri: Cri, listener: Listener, mut closing: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok(stream) => {
                    let cri = cri.clone();
                    let service = hyper::service::service_fn(move |request| {
                        let cri = cri.clone();
                        async move { Ok::<_, Infallible>(respond(&cri, &request)) }
                    });
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
                    connections.spawn(http.serve_connection(TokioIo::new(stream), service));
                }
                Err(e) => {
                    tracing::warn!("accept a connection: {}", crate::error::describe_io(&e));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = super::until_closing(&mut closing) => return,
        }
    }
}

fn respond(cri: &Cri, request: &Request<Incoming>) -> Response<String> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", cri.page()),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET /metrics\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "/metrics is all there is\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

impl Cri {
    /// All numbers, as they are now.
    fn page(&self) -> String {
        let mut page = String::new();
        head(&mut page, "podwright_build_info", "gauge", "Which podwright this is");
        let version = escaped(env!("CARGO_PKG_VERSION"));
        line(&mut page, "podwright_build_info", &format!("version=\"{version}\""), 1);
        let pods = self.engine.list_pods();
        let ready = pods.iter().filter(|pod| pod.ready).count();
        head(&mut page, "podwright_pods", "gauge", "Pod sandboxes, by the state that the CRI tells");
        line(&mut page, "podwright_pods", "state=\"ready\"", ready);
        line(&mut page, "podwright_pods", "state=\"not_ready\"", pods.len() - ready);
        let containers = self.engine.list_containers();
        head(&mut page, "podwright_containers", "gauge", "Containers, by the state that the CRI tells");
        for (name, state) in [("created", State::Created), ("running", State::Running), ("exited", State::Exited)] {
            let count = containers.iter().filter(|c| c.state == state).count();
            line(&mut page, "podwright_containers", &format!("state=\"{name}\""), count);
        }
        self.calls.write(&mut page);
        process(&mut page, self.started);
        page
    }
}

/// The daemon as a process: names and units are those that every Prometheus client has. A number that is not to be had is left out.
fn process(page: &mut String, started: SystemTime) {
    let mut number = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            head(page, name, kind, help);
            line(page, name, "", value);
        }
    };
    number(
        "process_cpu_seconds_total",
        "counter",
        "CPU time of the daemon, in seconds",
        Some(sys::cpu_time().as_secs_f64()),
    );
    #[allow(clippy::cast_precision_loss, reason = "counts and bytes below 2^53")]
    let float = |n: u64| n as f64;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    let bytes = |name: &str| field(name).map(|kib| float(kib * 1024));
    number("process_resident_memory_bytes", "gauge", "Resident memory of the daemon", bytes("VmRSS"));
    number("process_virtual_memory_bytes", "gauge", "Virtual memory of the daemon", bytes("VmSize"));
    number("process_threads", "gauge", "Threads of the daemon", field("Threads").map(float));
    // One of them is this look.
    let open = std::fs::read_dir("/proc/self/fd").map(|fds| fds.count().saturating_sub(1) as u64);
    number("process_open_fds", "gauge", "Open file descriptors of the daemon", open.ok().map(float));
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    number("process_max_fds", "gauge", "How many it may have", limit.map(float));
    number(
        "process_start_time_seconds",
        "gauge",
        "When the daemon started, in seconds since the epoch",
        started.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs_f64()),
    );
}
