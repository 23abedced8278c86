//! `podwright run`: runs a manifest with an engine of its own.

use super::console::Console;
use super::{Session, node, require_root, units};
use crate::agent::convert::{self, PodPlan};
use crate::agent::manifest::{self, Manifest};
use crate::agent::problem::ManifestErrors;
use crate::agent::runner::{self, Ask, Outcome};
use crate::engine::{Engine, Options, sweep};
use crate::error::{Context, Error, Kind, Result};
use crate::id::{InstanceId, PodId};
use crate::state::paths::Paths;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

const EXAMPLES: &str = "\
Examples:
  podwright run pod.yaml                    output of all containers, each line with its container's name
  podwright run --dry-run pod.yaml          only the plan: cgroup files, mounts, capabilities
  podwright run --template job.yaml         one pod of the template of a Job, Deployment ...
  podwright run --timeout 5m pod.yaml       exit code 124 when it is not done by then
  cat pod.yaml | podwright run -";

/// The longest manifest, in bytes, as in the kubelet (pkg/kubelet/config/common.go).
const MAX_MANIFEST_BYTES: u64 = 10 << 20;
/// Where the kubelet has the logs of pods, and everybody looks for them.
const KEPT_LOGS: &str = "/var/log/pods";
/// Exit code when `--timeout` was over, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// Exit code after Ctrl-C, 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs the pods of a manifest until their containers end, then takes them away
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// Manifest, YAML or JSON; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the plan and run nothing (as `podwright check` does)
    #[arg(long)]
    dry_run: bool,
    /// Of a Deployment, Job and the like run one pod of its template; replicas, selector and schedule are not looked at
    #[arg(long)]
    template: bool,
    /// Stop the pod after this long (90s, 5m, 1h30m) and exit with 124
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Keep the logs, below /var/log/pods
    #[arg(long)]
    keep: bool,
    /// Do not print what the containers write
    #[arg(short, long)]
    quiet: bool,
    /// Return once the pod runs (needs a daemon, which would restart it)
    #[arg(short, long)]
    detach: bool,
    /// Host the engine in this command even if a daemon is up
    #[arg(long)]
    no_daemon: bool,
}

pub(super) fn run(args: &RunArgs, session: &Session) -> Result<u8> {
    let timeout = units::timeout(args.timeout.as_deref())?;
    if args.dry_run {
        return super::check::files(&args.files, args.template, session);
    }
    require_root("run")?;
    if args.detach {
        let message =
            "run --detach: nobody would restart the pod; start `podwright daemon` first (not in this version)";
        return Err(Error::unsupported(message));
    }
    let manifests = args.files.iter().map(|file| read(file, args.template)).collect::<Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "start a runtime")?;
    runtime.block_on(host(args, session, &manifests, timeout))
}

/// Reads and checks a manifest.
///
/// # Errors
/// `NotFound` for the file; `InvalidArgument` with a line for everything that is wrong in it.
fn read(file: &Path, templates: bool) -> Result<Manifest> {
    let (name, bytes) = bytes(file)?;
    let manifest = load(&bytes, &name, templates)?;
    if manifest.pods.is_empty() {
        return Err(Error::invalid(format!("{name}: no pod in it; nothing to run")));
    }
    Ok(manifest)
}

/// What is in a manifest, workloads as pods of their templates or refused.
pub(super) fn load(bytes: &[u8], name: &str, templates: bool) -> Result<Manifest, ManifestErrors> {
    if templates { manifest::load_templates(bytes, name) } else { manifest::load(bytes, name) }
}

/// What a manifest's file or stdin (`-`) has, and its name for messages.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for one that is too long.
pub(super) fn bytes(file: &Path) -> Result<(String, Vec<u8>)> {
    let (name, text) = if file == Path::new("-") {
        ("<stdin>".to_owned(), bounded(std::io::stdin().lock()))
    } else {
        let open = std::fs::File::open(file).context(|| format!("open manifest {}", file.display()));
        (file.display().to_string(), bounded(open.map_err(|e| e.with_kind(Kind::NotFound))?))
    };
    let bytes = text.context(|| format!("read manifest {name}"))?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(Error::invalid(format!("{name}: longer than {MAX_MANIFEST_BYTES} bytes")));
    }
    Ok((name, bytes))
}

fn bounded(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The engine's options as the settings say, for one instance.
pub(super) fn options(session: &Session, instance: Option<InstanceId>) -> Result<Options> {
    let settings = session.config.settings();
    Ok(Options {
        owner: instance.is_some(),
        paths: Paths { root: settings.root, state: settings.state, instance },
        cgroup_root: settings.cgroup_root.to_string_lossy().into_owned(),
        allow_unenforced: settings.allow_unenforced,
        node_name: node::name()?,
    })
}

async fn host(args: &RunArgs, session: &Session, manifests: &[Manifest], timeout: Option<Duration>) -> Result<u8> {
    sweep::sweep_dead(&options(session, None)?).await?;
    let instance = InstanceId::random();
    let engine = Engine::open(options(session, Some(instance.clone()))?)?;
    let mut plans = Vec::new();
    for manifest in manifests {
        for (index, pod) in manifest.pods.iter().enumerate() {
            let id = PodId::random();
            let salt = format!("{instance}/{index}");
            let mut facts = node::facts(engine.paths(), &id, &salt, pod.spec.host_network)?;
            if args.keep {
                facts.log_root = Some(KEPT_LOGS.into());
            }
            let plan = convert::plan(manifest, index, &facts)?;
            check_images(&engine, &plan)?;
            plans.push((id, plan));
        }
    }
    let (ask, asked) = watch::channel(Ask::Run);
    let names: Vec<String> =
        plans.iter().flat_map(|(_, p)| p.containers.iter().map(|c| c.config.name.clone())).collect();
    let mut pods = JoinSet::new();
    for (n, (id, plan)) in plans.into_iter().enumerate() {
        // One for each pod: containers of two pods may have the same name.
        let console = Arc::new(Console::new(&names, args.quiet));
        let (engine, asked) = (engine.clone(), asked.clone());
        pods.spawn(async move { (n, runner::run(&engine, id, &plan, console, asked).await) });
    }
    let code = supervise(timeout, pods, &ask).await;
    sweep::release(&engine).await?;
    code
}

/// Waits for all pods, passing on what the user asks meanwhile.
async fn supervise(
    timeout: Option<Duration>,
    mut pods: JoinSet<(usize, Result<Outcome>)>,
    ask: &watch::Sender<Ask>,
) -> Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "watch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context(|| "watch SIGTERM")?;
    let mut deadline = timeout.map(|t| Box::pin(tokio::time::sleep(t)));
    let mut asked_code = None;
    let mut ended: Vec<(usize, Result<Outcome>)> = Vec::new();
    let next = |ask: &watch::Sender<Ask>| {
        ask.send_modify(|ask| *ask = if *ask == Ask::Run { Ask::Stop } else { Ask::Kill });
    };
    loop {
        tokio::select! {
            pod = pods.join_next() => match pod {
                Some(Ok(pod)) => ended.push(pod),
                Some(Err(e)) => ended.push((usize::MAX, Err(Error::internal(format!("a pod's task ended: {e}"))))),
                None => break,
            },
            _ = interrupt.recv() => { asked_code = Some(INTERRUPTED); next(ask); }
            _ = terminate.recv() => next(ask),
            () = async { match &mut deadline { Some(d) => d.await, None => std::future::pending().await } } => {
                deadline = None;
                asked_code = Some(TIMED_OUT);
                next(ask);
            }
        }
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
        None => Ok(asked_code.unwrap_or(code)),
    }
}

/// Every image must be there before anything is made: this version does not pull.
fn check_images(engine: &Engine, plan: &PodPlan) -> Result<()> {
    for container in &plan.containers {
        engine
            .images()
            .lookup(&container.config.image)
            .context(|| format!("pod {:?}, container {:?}", plan.config.name, container.config.name))?;
    }
    Ok(())
}
