//! What a daemon does for podwright's own commands (proto/podwright.v1.proto): `run`, by the same [`host`] as a `run` without a daemon, and
//! `stop` and `rm` of what is the daemon's.
//!
//! A pod of `run` lives by the stream of its client. When that ends the pod is asked to end, and soon told to; and a daemon that starts takes
//! away the foreground pods that it finds, for nobody supervises them: their clients ended with the daemon that served them.

use super::convert::ContainerPlan;
use super::host::{self, Manner};
use super::manifest;
use super::runner::{Ask, Ending, Observer};
use crate::cri::{Answers, answer, until_closing};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::id::{ContainerId, PodId};
use crate::ownapi::podwright_server::{Podwright, PodwrightServer};
use crate::ownapi::run_request::What as Said;
use crate::ownapi::run_response::What as Told;
use crate::ownapi::{self, DescribeRequest, DescribeResponse, RunRequest, RunResponse, StopRequest, StopResponse};
use crate::state::record::ExitRecord;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long pods may take to end gracefully when their client has gone: all of them are gone after 10 s, as without a daemon.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);
/// How long beyond its grace period a pod of `run` may take to end and be removed.
const REMOVAL_WAIT: Duration = Duration::from_secs(10);

/// The service. Cheap to clone; all clones are the same one.
#[derive(Debug, Clone)]
pub struct Service {
    engine: Engine,
    /// The pods that live by a client's stream, and how they are asked to end; what is sent is gone when they have.
    foreground: Arc<Mutex<HashMap<PodId, Arc<watch::Sender<Ask>>>>>,
    /// Becomes true when the server is to end.
    closing: watch::Receiver<bool>,
    /// Held by everything that is at work.
    working: mpsc::Sender<()>,
}

impl Service {
    /// Serves `engine`. The other two are those of [`crate::cri::Cri::new`].
    pub fn new(engine: Engine, closing: watch::Receiver<bool>, working: mpsc::Sender<()>) -> Service {
        Service { engine, foreground: Arc::default(), closing, working }
    }

    /// As gRPC has it.
    pub fn server(self) -> PodwrightServer<Service> {
        // A manifest has 10 MiB at most, and there may be several.
        PodwrightServer::new(self).max_decoding_message_size(64 << 20)
    }

    fn foreground(&self) -> MutexGuard<'_, HashMap<PodId, Arc<watch::Sender<Ask>>>> {
        self.foreground.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs pods for a client, and says how that ended.
    async fn run_for(&self, mut client: Streaming<RunRequest>, out: mpsc::UnboundedSender<RunResponse>) -> Result<u8> {
        let first = client.message().await.ok().flatten().and_then(|first| first.what);
        let Some(Said::Pods(pods)) = first else {
            return Err(Error::invalid("the first message of Run has the manifests"));
        };
        let engine = self.engine.clone();
        let plans = crate::engine::blocking(move || plan(&engine, &pods)).await?;
        let asks: Vec<Arc<watch::Sender<Ask>>> = plans.iter().map(|_| Arc::new(watch::channel(Ask::Run).0)).collect();
        let ids: Vec<PodId> = plans.iter().map(|(id, _)| id.clone()).collect();
        self.foreground().extend(ids.iter().cloned().zip(asks.iter().cloned()));
        let remote = Remote { out, unread: Arc::new(Mutex::new(Some(HashMap::new()))) };
        let watched = |n: usize| -> (Arc<dyn Observer>, watch::Receiver<Ask>) {
            (Arc::new(OfPod { remote: remote.clone(), pod: u32::try_from(n).unwrap_or(u32::MAX) }), asks[n].subscribe())
        };
        let ended = self.supervise(client, &remote, &asks, host::run(&self.engine, plans, watched)).await;
        self.foreground().retain(|id, _| !ids.contains(id));
        ended
    }

    /// Waits for the pods, passing on what the client asks meanwhile.
    async fn supervise(
        &self,
        mut client: Streaming<RunRequest>,
        remote: &Remote,
        asks: &[Arc<watch::Sender<Ask>>],
        running: impl Future<Output = Result<u8>>,
    ) -> Result<u8> {
        let ask = |what: Ask| {
            for one in asks {
                one.send_if_modified(|asked| std::mem::replace(asked, (*asked).max(what)) < what);
            }
        };
        let mut closing = self.closing.clone();
        let (mut hung_up, mut ends) = (false, false);
        let kill = tokio::time::sleep(Duration::MAX);
        tokio::pin!(running, kill);
        loop {
            tokio::select! {
                ended = &mut running => {
                    let told = "the daemon was told to end, and has taken the pod down";
                    return if ends { ended.and(Err(Error::new(Kind::Unavailable, told))) } else { ended };
                }
                said = client.message(), if !hung_up => match said.ok().flatten() {
                    Some(RunRequest { what: Some(Said::Ask(asked)) }) => match ownapi::Ask::try_from(asked) {
                        Ok(ownapi::Ask::Kill) => ask(Ask::Kill),
                        _ => ask(Ask::Stop),
                    },
                    Some(RunRequest { what: Some(Said::Shown(ownapi::Shown { life: Some(life) })) }) => remote.shown(&life),
                    Some(_) => {}
                    None => {
                        tracing::info!("the client of {} pods of `podwright run` has gone: they are stopped", asks.len());
                        hung_up = true;
                        remote.gone();
                        ask(Ask::Stop);
                        kill.as_mut().reset(tokio::time::Instant::now() + HANG_UP_GRACE);
                    }
                },
                () = &mut kill, if hung_up => {
                    ask(Ask::Kill);
                    kill.as_mut().reset(tokio::time::Instant::now() + Duration::from_secs(3600)); // it was told once
                }
                () = until_closing(&mut closing), if !ends => {
                    ends = true;
                    ask(Ask::Stop);
                }
            }
        }
    }

    /// Ends a pod that lives by a client's stream, which removes it.
    async fn end_foreground(&self, ask: &watch::Sender<Ask>, grace: Duration) -> Result<()> {
        ask.send_if_modified(|asked| std::mem::replace(asked, (*asked).max(Ask::Stop)) < Ask::Stop);
        let gone = |wait| tokio::time::timeout(wait, ask.closed());
        if gone(grace).await.is_ok() {
            return Ok(());
        }
        ask.send_replace(Ask::Kill);
        let late = |_| Error::new(Kind::DeadlineExceeded, "the pod was told to end at once and has not");
        gone(REMOVAL_WAIT).await.map_err(late)
    }

    async fn stop(&self, request: StopRequest) -> Result<()> {
        let pod: PodId = request.pod.parse()?;
        let grace = Duration::from_millis(request.grace_ms);
        if !request.container.is_empty() {
            let container: ContainerId = request.container.parse()?;
            self.engine.stop_container(&container, grace).await?;
            return if request.remove { self.engine.remove_container(&container).await } else { Ok(()) };
        }
        let ask = self.foreground().get(&pod).cloned();
        if let Some(ask) = ask {
            return self.end_foreground(&ask, grace).await;
        }
        let running = self.engine.containers_of(&pod).into_iter();
        let stops = running.map(|c| {
            let engine = self.engine.clone();
            tokio::spawn(async move { engine.stop_container(&c.record.id, grace).await })
        });
        for stop in stops.collect::<Vec<_>>() {
            stop.await.map_err(|e| Error::internal(format!("a stop ended: {e}")))??;
        }
        self.engine.stop_pod(&pod).await?;
        if request.remove { self.engine.remove_pod(&pod).await } else { Ok(()) }
    }
}

/// Reads and plans what a client has sent.
fn plan(engine: &Engine, pods: &ownapi::Pods) -> Result<Vec<(PodId, super::convert::PodPlan)>> {
    let load = |m: &ownapi::Manifest| {
        if pods.templates { manifest::load_templates(&m.text, &m.name) } else { manifest::load(&m.text, &m.name) }
    };
    let manifests = pods.manifests.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    let log_root = Some(&pods.log_root).filter(|path| Path::new(path).is_absolute()).map(Into::into);
    let salt = PodId::random().to_string();
    host::plan(engine, &manifests, &Manner { salt, log_root, foreground: true })
}

/// Takes away the pods whose `run` ended with the daemon that served it: each by itself, so that one that is stuck holds up nothing.
pub fn take_down_foreground(engine: &Engine) {
    for pod in engine.list_pods().into_iter().filter(|pod| pod.record.config.foreground) {
        let engine = engine.clone();
        tokio::spawn(async move {
            let (id, name) = (&pod.record.id, &pod.record.config.name);
            match engine.remove_pod(id).await {
                Ok(()) => tracing::info!("pod {name} is removed: its `podwright run` ended with the daemon before"),
                Err(e) => tracing::warn!("{e}"),
            }
        });
    }
}

/// Containers whose output the client has not read yet; `None` when nobody will.
type Unread = Option<HashMap<(u32, String, u32), oneshot::Sender<()>>>;

/// The client of some pods.
#[derive(Debug, Clone)]
struct Remote {
    /// Bounded by the containers: the next life of one begins only when the client has read the one before.
    out: mpsc::UnboundedSender<RunResponse>,
    unread: Arc<Mutex<Unread>>,
}

impl Remote {
    fn tell(&self, what: Told) {
        let _ = self.out.send(RunResponse { what: Some(what) }); // a client that has gone is noticed by who hears it
    }

    fn unread(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self, life: &ownapi::Life) {
        let key = (life.pod, life.container.clone(), life.attempt);
        if let Some(waiting) = self.unread().as_mut().and_then(|all| all.remove(&key)) {
            let _ = waiting.send(()); // who waited may have ended
        }
    }

    /// Nobody reads any more: what waited for it goes on.
    fn gone(&self) {
        self.unread().take();
    }
}

/// One pod, as its client sees it.
#[derive(Debug)]
struct OfPod {
    remote: Remote,
    pod: u32,
}

impl OfPod {
    fn life(&self, container: &ContainerPlan, attempt: u32) -> ownapi::Life {
        ownapi::Life { pod: self.pod, container: container.config.name.clone(), attempt }
    }
}

impl Observer for OfPod {
    fn ready(&self, _pod: &PodId) {}

    fn started(&self, container: &ContainerPlan, id: &ContainerId, attempt: u32, log: Option<&Path>) {
        self.remote.tell(Told::Started(ownapi::Started {
            life: Some(self.life(container, attempt)),
            container_id: id.to_string(),
            log: log.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        }));
    }

    fn ended(self: Arc<Self>, container: &ContainerPlan, attempt: u32, exit: &ExitRecord) -> Ending {
        let life = self.life(container, attempt);
        let (read, wait) = oneshot::channel();
        if let Some(unread) = self.remote.unread().as_mut() {
            unread.insert((life.pod, life.container.clone(), life.attempt), read);
        }
        let notice = (!exit.is_uneventful()).then(|| ownapi::Notice {
            code: exit.status.code(),
            reason: exit.status.reason(exit.oom).to_owned(),
            message: exit.message.clone(),
        });
        self.remote.tell(Told::Ended(ownapi::Ended { life: Some(life), notice }));
        Box::pin(async move {
            let _ = wait.await; // read, or nobody reads
        })
    }

    fn backing_off(&self, container: &ContainerPlan, delay: Duration) {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.remote.tell(Told::BackingOff(ownapi::BackingOff { life: Some(self.life(container, 0)), delay_ms }));
    }
}

#[tonic::async_trait]
impl Podwright for Service {
    type RunStream = Answers<RunResponse>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let paths = self.engine.paths();
        Ok(Response::new(DescribeResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            root: paths.root.to_string_lossy().into_owned(),
            state: paths.state.to_string_lossy().into_owned(),
            allow_unenforced_limits: self.engine.options().allow_unenforced,
        }))
    }

    async fn run(&self, request: Request<Streaming<RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        let (out, told) = mpsc::unbounded_channel();
        let service = self.clone();
        tokio::spawn(async move {
            let finished = match service.run_for(request.into_inner(), out.clone()).await {
                Ok(code) => ownapi::Finished { code: code.into(), error: String::new() },
                Err(e) => ownapi::Finished { code: 0, error: e.to_string() },
            };
            let _ = out.send(RunResponse { what: Some(Told::Finished(finished)) }); // it may have gone
            drop(service.working);
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(told).map(Ok))))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let service = self.clone();
        let stop = tokio::spawn(async move { Service::stop(&service, request.into_inner()).await });
        let stopped = stop.await.unwrap_or_else(|e| Err(Error::internal(format!("a stop ended: {e}"))));
        answer(stopped.map(|()| StopResponse {}))
    }
}
