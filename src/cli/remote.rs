//! The daemon as a command sees it: found by its socket, asked over proto/podwright.v1.proto. HTTP/2 by hyper itself: tonic's own transport
//! brings reconnecting and balancing that a command on the same host has no use for.

use super::Session;
use super::console::{Console, Notice};
use crate::agent::runner::Ask;
use crate::error::{Context, Error, Kind, Result};
use crate::ownapi::podwright_client::PodwrightClient;
use crate::ownapi::run_request::What as Say;
use crate::ownapi::run_response::What as Told;
use crate::ownapi::{self, DescribeRequest, DescribeResponse, Pods, RunRequest, StopRequest};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Code, Status};

/// How long a daemon may take to say who it is; one that is up and does not is an error, for its pods are there.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A connection of HTTP/2, as tonic's clients want it.
#[derive(Debug, Clone)]
struct Connection(SendRequest<Body>);

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<http::Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A daemon that has the directories of this command.
#[derive(Debug)]
pub(super) struct Daemon {
    socket: PathBuf,
    client: PodwrightClient<Connection>,
}

impl Daemon {
    /// The daemon of this command's directories, `None` when none is up. Within a tokio runtime.
    ///
    /// # Errors
    /// `Unavailable` for one that does not answer, `FailedPrecondition` for one of another version or with other limits.
    pub(super) async fn find(session: &Session) -> Result<Option<Daemon>> {
        let socket = PathBuf::from(session.config.value("cri.socket"));
        let Ok(stream) = UnixStream::connect(&socket).await else { return Ok(None) };
        let doing = || format!("ask the daemon on {}", socket.display());
        let asked = async {
            let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
            tokio::spawn(connection);
            let origin = http::Uri::from_static("http://podwright");
            let mut client = PodwrightClient::with_origin(Connection(sender), origin);
            let described = client.describe(DescribeRequest {}).await.map(tonic::Response::into_inner);
            Some((client, described))
        };
        let silent = "it does not answer; --no-daemon does without it";
        let asked = tokio::time::timeout(ANSWER_WITHIN, asked).await;
        let asked = asked.map_err(|_| Error::new(Kind::Unavailable, silent)).context(doing)?;
        match asked {
            Some((client, Ok(daemon))) if is_ours(&daemon, session) => {
                agrees(&daemon, session).context(doing)?;
                Ok(Some(Daemon { socket, client }))
            }
            // Another runtime's socket, or another podwright's.
            _ => Ok(None),
        }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs pods until they have ended; the exit code of `run`. `console` makes what shows each of them.
    ///
    /// # Errors
    /// What went wrong there; `Unavailable` when the daemon has gone.
    pub(super) async fn run(
        mut self,
        pods: Pods,
        console: impl Fn() -> Arc<Console>,
        mut asked: watch::Receiver<Ask>,
    ) -> Result<u8> {
        // Bounded by what is asked: the manifests, two signals, and a word for each end of a container.
        let (say, said) = mpsc::unbounded_channel();
        let tell = |what: Say| {
            let _ = say.send(RunRequest { what: Some(what) }); // the stream's end is noticed where it is read
        };
        tell(Say::Pods(pods));
        let gone = |_: Status| {
            let remedy = "its pods run on until it starts again, which takes them down";
            Error::new(Kind::Unavailable, format!("the daemon on {} has gone: {remedy}", self.socket.display()))
        };
        let mut told = self.client.run(UnboundedReceiverStream::new(said)).await.map_err(gone)?.into_inner();
        let mut consoles: Vec<Arc<Console>> = Vec::new();
        loop {
            let what = tokio::select! {
                message = told.message() => match message.transpose() {
                    Some(message) => message.map_err(gone)?.what,
                    None => return Err(gone(Status::unknown(""))),
                },
                Ok(()) = asked.changed() => {
                    let ask = match *asked.borrow_and_update() {
                        Ask::Run => continue,
                        Ask::Stop => ownapi::Ask::Stop,
                        Ask::Kill => ownapi::Ask::Kill,
                    };
                    tell(Say::Ask(ask.into()));
                    continue;
                }
            };
            let mut of = |life: &ownapi::Life| {
                let pod = usize::try_from(life.pod).unwrap_or(0);
                consoles.resize_with(consoles.len().max(pod + 1), &console);
                consoles[pod].clone()
            };
            match what {
                Some(Told::Started(ownapi::Started { life: Some(life), log, .. })) => {
                    let log = Some(log).filter(|log| !log.is_empty()).map(PathBuf::from);
                    of(&life).show(&life.container, life.attempt, log.as_deref());
                }
                Some(Told::Ended(ownapi::Ended { life: Some(life), notice })) => {
                    let notice = notice.map(|n| Notice { code: n.code, reason: n.reason, message: n.message });
                    let finish = of(&life).finish(&life.container, life.attempt, notice);
                    let say = say.clone();
                    tokio::spawn(async move {
                        finish.await;
                        let shown = Say::Shown(ownapi::Shown { life: Some(life) });
                        let _ = say.send(RunRequest { what: Some(shown) }); // as above
                    });
                }
                Some(Told::BackingOff(ownapi::BackingOff { life: Some(life), delay_ms })) => {
                    of(&life).again(&life.container, Duration::from_millis(delay_ms));
                }
                Some(Told::Finished(finished)) if finished.error.is_empty() => {
                    return Ok(u8::try_from(finished.code).unwrap_or(u8::MAX));
                }
                Some(Told::Finished(finished)) => return Err(Error::internal(finished.error)),
                _ => {} // of a message without its life there is nothing to show
            }
        }
    }

    /// Stops a pod of the daemon's, or a container; removes it if that is asked for.
    ///
    /// # Errors
    /// What the daemon says.
    pub(super) async fn stop(&mut self, request: StopRequest) -> Result<()> {
        self.client.stop(request).await.map(|_| ()).map_err(|status| error(&status))
    }
}

/// Whether the daemon is that of this command's directories.
fn is_ours(daemon: &DescribeResponse, session: &Session) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let paths = session.paths();
    let same = |theirs: &str, ours: &Path| real(Path::new(theirs)) == real(ours);
    same(&daemon.root, &paths.root) && same(&daemon.state, &paths.state)
}

/// Whether the daemon does what this command would do.
fn agrees(daemon: &DescribeResponse, session: &Session) -> Result<()> {
    if daemon.version != env!("CARGO_PKG_VERSION") {
        let (theirs, ours) = (&daemon.version, env!("CARGO_PKG_VERSION"));
        let remedy = "restart it (pods live on), or --no-daemon";
        return Err(Error::precondition(format!("it is podwright {theirs}, and this is {ours}: {remedy}")));
    }
    if session.config.settings().allow_unenforced && !daemon.allow_unenforced_limits {
        let remedy = "start the daemon with --allow-unenforced-limits, or --no-daemon";
        return Err(Error::precondition(format!("it refuses limits that cannot be enforced: {remedy}")));
    }
    Ok(())
}

/// What a daemon has answered.
fn error(status: &Status) -> Error {
    let kind = match status.code() {
        Code::NotFound => Kind::NotFound,
        Code::InvalidArgument => Kind::InvalidArgument,
        Code::FailedPrecondition => Kind::FailedPrecondition,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::Unavailable | Code::Unknown | Code::Cancelled => Kind::Unavailable,
        _ => Kind::Internal,
    };
    let said = if status.message().is_empty() { "the daemon has gone" } else { status.message() };
    Error::new(kind, said)
}
