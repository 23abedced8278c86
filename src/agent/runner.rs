//! Carries out what [`super::reconcile`] decides for one pod, with the engine's verbs: observe, decide, act, wait. `run` hosts
//! one of these a pod; the daemon's agent will host one a manifest.

use super::convert::{ContainerPlan, PodPlan};
use super::pod::MessagePolicy;
use super::reconcile::{self, Action, Decision, End, Observed, Phase, Rules, State, Wish};
use super::{message, volume_files};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::id::{ContainerId, PodId};
use crate::state::record::{ExitRecord, ExitStatus};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// ENOENT and EACCES of an execve(2) that failed, errno-base.h.
const NOT_FOUND: i32 = 2;
const NOT_EXECUTABLE: i32 = 13;
/// Shortest grace period that a container is given, as in the kubelet.
const MIN_GRACE: Duration = Duration::from_secs(2);

/// Who watches a pod run: tells people, collects logs.
pub trait Observer: Send + Sync {
    /// The sandbox is ready.
    fn ready(&self, pod: &PodId);
    /// A container runs; `log` is its log file.
    fn started(&self, container: &ContainerPlan, id: &ContainerId, attempt: u32, log: Option<&Path>);
    /// A container ended, or could not start. Its logs are there until the returned future has ended.
    fn ended(self: Arc<Self>, container: &ContainerPlan, attempt: u32, exit: &ExitRecord) -> Ending;
    /// A container will be started again after `delay`.
    fn backing_off(&self, container: &ContainerPlan, delay: Duration);
}

/// What an [`Observer`] still does when a container has ended.
pub type Ending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub phase: Phase,
    /// `DeadlineExceeded`.
    pub reason: Option<&'static str>,
    /// Of the first container in the file that failed, init containers first; 0 when none did; 127 and 126 for a command that was
    /// not found or not executable.
    pub code: i32,
}

/// What is asked of a running pod; a later one is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Ask {
    #[default]
    Run,
    /// End gracefully, each container with its grace period.
    Stop,
    /// End now.
    Kill,
}

/// What the tasks of containers tell the loop.
enum News {
    /// There is a container; `runs`: its program does.
    Made {
        index: usize,
        id: ContainerId,
        runs: bool,
    },
    Ended(usize, u32, ExitRecord),
}

struct Runner<'a> {
    engine: Engine,
    pod: PodId,
    plan: &'a PodPlan,
    observer: Arc<dyn Observer>,
    rules: Rules,
    observed: Vec<Observed>,
    /// The newest container of each plan, and how the last ended.
    current: Vec<Option<ContainerId>>,
    exits: Vec<Option<ExitRecord>>,
    started_at: Instant,
    news: mpsc::UnboundedSender<News>,
    grace: Duration,
    /// All is to end now: a container that is only being started, too.
    killed: bool,
}

/// Runs a pod to its end and removes it.
///
/// # Errors
/// What kept the sandbox from being made, a volume from being prepared, or the pod from being removed.
pub async fn run(
    engine: &Engine,
    id: PodId,
    plan: &PodPlan,
    observer: Arc<dyn Observer>,
    ask: watch::Receiver<Ask>,
) -> Result<Outcome> {
    engine.run_pod_as(id.clone(), plan.config.clone()).await?;
    let outcome = lead(engine, &id, plan, observer, ask).await;
    let removed = engine.remove_pod(&id).await;
    match (outcome, removed) {
        (Ok(outcome), Ok(())) => Ok(outcome),
        (Err(e), Ok(())) | (Ok(_), Err(e)) => Err(e),
        (Err(e), Err(left)) => Err(Error::new(e.kind(), format!("{e} (and then: {left})"))),
    }
}

/// What `run` does with a pod whose sandbox is there.
async fn lead(
    engine: &Engine,
    id: &PodId,
    plan: &PodPlan,
    observer: Arc<dyn Observer>,
    ask: watch::Receiver<Ask>,
) -> Result<Outcome> {
    let addressed = addressed(engine, id, plan)?;
    let plan = addressed.as_ref().unwrap_or(plan);
    let volumes = plan.volumes.clone();
    crate::engine::blocking(move || volumes.iter().try_for_each(volume_files::prepare)).await?;
    observer.ready(id);
    live(engine, id, plan, observer, ask).await
}

/// The plan with the address that the pod has by now; `None` when it does not ask for it.
fn addressed(engine: &Engine, id: &PodId, plan: &PodPlan) -> Result<Option<PodPlan>> {
    if plan.unaddressed.is_none() {
        return Ok(None);
    }
    let network = engine.pod_status(id)?.network;
    let ips = network.iter().flat_map(|network| &network.ips).map(ToString::to_string);
    Ok(Some(plan.addressed(ips.collect())?))
}

async fn live(
    engine: &Engine,
    id: &PodId,
    plan: &PodPlan,
    observer: Arc<dyn Observer>,
    mut ask: watch::Receiver<Ask>,
) -> Result<Outcome> {
    let (news, mut heard) = mpsc::unbounded_channel();
    let mut runner = Runner {
        engine: engine.clone(),
        pod: id.clone(),
        plan,
        observer,
        rules: Rules {
            roles: plan.containers.iter().map(|c| c.role).collect(),
            restart_policy: plan.restart_policy,
            deadline: plan.active_deadline_seconds.map(|s| Duration::from_secs(u64::from(s))),
        },
        observed: vec![Observed::default(); plan.containers.len()],
        current: vec![None; plan.containers.len()],
        exits: vec![None; plan.containers.len()],
        started_at: Instant::now(),
        news,
        grace: Duration::from_secs(u64::from(plan.termination_grace_seconds)),
        killed: false,
    };
    let lost = engine.wait_lost(id);
    tokio::pin!(lost);
    let mut why_lost = None;
    loop {
        let wish = Wish { started_at: Duration::ZERO, stop: why_lost.is_some() || *ask.borrow() != Ask::Run };
        let decision = reconcile::decide(&runner.rules, &runner.observed, wish, runner.started_at.elapsed());
        for action in &decision.actions {
            runner.act(*action);
        }
        if decision.finished {
            return match why_lost {
                None => Ok(runner.outcome(&decision)),
                Some(why) => {
                    Err(Error::new(Kind::Unavailable, format!("pod {}: {why}; all of it was killed", plan.config.name)))
                }
            };
        }
        let wake_at = decision.wake_at.map(|at| runner.started_at + at);
        tokio::select! {
            Some(news) = heard.recv() => runner.hear(news, wish.stop),
            () = sleep_until(wake_at) => {}
            why = &mut lost, if why_lost.is_none() => {
                why_lost = Some(why?);
                runner.kill_all();
            }
            Ok(()) = ask.changed() => {
                if *ask.borrow() == Ask::Kill {
                    runner.kill_all();
                }
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Runner<'_> {
    fn act(&mut self, action: Action) {
        match action {
            Action::Start { index, restart, backoff } => {
                self.observed[index].state = State::Starting;
                self.observed[index].backoff = backoff;
                if restart {
                    self.observed[index].restarts += 1;
                }
                self.start(index);
            }
            Action::Stop { index } => {
                let Some(id) = self.current[index].clone() else { return };
                self.observed[index].state = State::Stopping;
                self.stop(id, if self.killed { Duration::ZERO } else { self.grace.max(MIN_GRACE) });
            }
        }
    }

    /// One task a container: make it, start it, wait for its end. Its news come back in this order.
    fn start(&mut self, index: usize) {
        let container = self.plan.containers[index].clone();
        let attempt = self.observed[index].restarts;
        let (engine, pod, observer, news) =
            (self.engine.clone(), self.pod.clone(), self.observer.clone(), self.news.clone());
        let previous = self.current[index].take();
        tokio::spawn(async move {
            let exit = match one_life(&engine, &pod, &container, attempt, &*observer, |id, runs| {
                let _ = news.send(News::Made { index, id, runs }); // the loop ends only after the last container has
            })
            .await
            {
                Ok(exit) => exit,
                Err(e) => failed_start(&e),
            };
            observer.ended(&container, attempt, &exit).await;
            if let Some(previous) = previous
                && let Err(e) = engine.remove_container(&previous).await
            {
                tracing::warn!("{e}"); // it goes with the pod at the latest
            }
            let _ = news.send(News::Ended(index, attempt, exit)); // as above
        });
    }

    fn stop(&self, id: ContainerId, grace: Duration) {
        let engine = self.engine.clone();
        tokio::spawn(async move {
            if let Err(e) = engine.stop_container(&id, grace).await {
                tracing::warn!("{e}");
            }
        });
    }

    fn kill_all(&mut self) {
        self.killed = true;
        for id in self.current.iter().flatten() {
            self.stop(id.clone(), Duration::ZERO);
        }
    }

    fn hear(&mut self, news: News, stopping: bool) {
        match news {
            News::Made { index, id, runs } => {
                self.current[index] = Some(id);
                if runs {
                    self.observed[index].state = State::Running;
                }
            }
            News::Ended(index, attempt, exit) if attempt == self.observed[index].restarts => {
                let code = exit.status.code();
                let oom_killed = exit.oom.is_some();
                self.observed[index].state = State::Exited(End { code, oom_killed, at: self.started_at.elapsed() });
                self.exits[index] = Some(exit);
                if !stopping
                    && let Some((_, _)) =
                        reconcile::waiting(&self.rules, index, &self.observed[index], self.started_at.elapsed())
                {
                    let delay = self.observed[index].backoff.map_or(Duration::ZERO, |b| b.delay);
                    self.observer.backing_off(&self.plan.containers[index], delay);
                }
            }
            News::Ended(..) => {}
        }
    }

    fn outcome(&self, decision: &Decision) -> Outcome {
        let code = reconcile::exit_code(&self.rules, &self.observed);
        let unstarted = self.exits.iter().flatten().find_map(|exit| match exit.status {
            ExitStatus::StartFailed { errno } if code == exit.status.code() => Some(errno),
            _ => None,
        });
        let code = match unstarted {
            Some(NOT_FOUND) => 127,
            Some(NOT_EXECUTABLE) => 126,
            _ => code,
        };
        Outcome { phase: decision.phase, reason: decision.reason, code }
    }
}

/// A container from its making to its end.
async fn one_life(
    engine: &Engine,
    pod: &PodId,
    container: &ContainerPlan,
    attempt: u32,
    observer: &dyn Observer,
    made: impl FnOnce(ContainerId, bool),
) -> Result<ExitRecord> {
    let config = container.attempt(attempt);
    let file = container.message_file(attempt);
    let prepared = file.clone();
    crate::engine::blocking(move || message::prepare(&prepared)).await?;
    let id = engine.create_container(pod, config).await?;
    let log = engine.container_status(&id)?.record.log.clone();
    let started = engine.start_container(&id).await;
    made(id.clone(), started.is_ok());
    if started.is_ok() {
        observer.started(container, &id, attempt, log.as_deref());
    }
    // A start that failed has an exit record as well, and that one says why.
    let mut exit = engine.wait_container(&id).await?;
    let fall_back = container.message_policy == MessagePolicy::FallbackToLogsOnError;
    let told = message::read(&file, log.as_deref().filter(|_| fall_back && exit.status.code() != 0));
    if !told.is_empty() {
        exit.message = if exit.message.is_empty() { told } else { format!("{}: {told}", exit.message) };
    }
    Ok(exit)
}

/// A container that could not even be made.
fn failed_start(e: &Error) -> ExitRecord {
    ExitRecord { status: ExitStatus::StartFailed { errno: 0 }, finished_at_ns: 0, oom: None, message: e.to_string() }
}
