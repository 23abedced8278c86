//! Runs the pods of manifests side by side, each by a [`runner`]: the same for `run` in its own process and for the daemon that does it
//! for one. Who watches and who asks them to end is the caller's.

use super::convert::{self, PodPlan, Unaddressed};
use super::manifest::Manifest;
use super::node;
use super::runner::{self, Ask, Observer, Outcome};
use super::volume::Content;
use crate::engine::Engine;
use crate::error::{Context, Error, Result};
use crate::id::PodId;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How pods are to be run.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// Makes the uids of pods that have none in their file differ from those of another run.
    pub salt: String,
    /// Where logs go that are kept; `None`: they go with their pod.
    pub log_root: Option<PathBuf>,
    /// [`crate::state::model::PodConfig::foreground`].
    pub foreground: bool,
}

/// Every pod of `manifests`, in their order, as it will be made.
///
/// # Errors
/// `InvalidArgument` with lines for what this host will not run; `NotFound` for an image that is not in the store: who asks has pulled it.
pub fn plan(engine: &Engine, manifests: &[Manifest], manner: &Manner) -> Result<Vec<(PodId, PodPlan)>> {
    let mut plans = Vec::new();
    for manifest in manifests {
        for (index, pod) in manifest.pods.iter().enumerate() {
            let id = PodId::random();
            let salt = format!("{}/{index}", manner.salt);
            let network = engine.network().kind().is_some();
            let mut facts = node::facts(engine.paths(), &id, &salt, pod.spec.host_network, network)?;
            facts.runtimes = engine.options().runtimes.keys().cloned().collect();
            if manner.log_root.is_some() {
                facts.log_root.clone_from(&manner.log_root);
            }
            let mut plan = convert::plan(manifest, index, &facts)?;
            plan.config.foreground = manner.foreground;
            if plan.asks_for_address() {
                plan.unaddressed = Some(Box::new(Unaddressed { manifest: manifest.clone(), index, facts }));
            }
            check_images(engine, &plan)?;
            plans.push((id, plan));
        }
    }
    Ok(plans)
}

/// Every image must be there before anything is made.
fn check_images(engine: &Engine, plan: &PodPlan) -> Result<()> {
    for container in &plan.containers {
        engine
            .images()
            .lookup(&container.config.image)
            .context(|| format!("pod {:?}, container {:?}", plan.config.name, container.config.name))?;
    }
    for volume in &plan.volumes {
        if let Content::Image(name) = &volume.content {
            engine.images().lookup(name).context(|| format!("pod {:?}, volume {:?}", plan.config.name, volume.name))?;
        }
    }
    Ok(())
}

/// Runs the pods until all have ended and are removed; the exit code of `run`.
///
/// `watched` says, for each pod by its place in `plans`, who observes it and who asks it to end.
///
/// # Errors
/// What kept pods from being made, supervised or removed.
pub async fn run(
    engine: &Engine,
    plans: Vec<(PodId, PodPlan)>,
    watched: impl Fn(usize) -> (Arc<dyn Observer>, watch::Receiver<Ask>),
) -> Result<u8> {
    let mut pods = JoinSet::new();
    for (n, (id, plan)) in plans.into_iter().enumerate() {
        let engine = engine.clone();
        let (observer, asked) = watched(n);
        pods.spawn(async move { (n, runner::run(&engine, id, &plan, observer, asked).await) });
    }
    let mut ended: Vec<(usize, Result<Outcome>)> = Vec::new();
    while let Some(pod) = pods.join_next().await {
        ended.push(pod.unwrap_or_else(|e| (usize::MAX, Err(Error::internal(format!("a pod's task ended: {e}"))))));
    }
    ended.sort_by_key(|(n, _)| *n);
    let mut code = 0;
    let mut errors = Vec::new();
    for (_, end) in ended {
        match end {
            Ok(outcome) if code == 0 => code = u8::try_from(outcome.code).unwrap_or(u8::MAX),
            Ok(_) => {}
            Err(e) => errors.push(e),
        }
    }
    match Error::collect(errors) {
        Some(e) => Err(e),
        None => Ok(code),
    }
}
