//! `podwright run`: runs a manifest, by the daemon when one is up, else with an engine of its own.

use super::console::Console;
use super::outlet::Outlet;
use super::remote::Daemon;
use super::{Session, output, pull, require_root, units};
use crate::agent::host::{self, Manner};
use crate::agent::manifest::{self, Manifest};
use crate::agent::node;
use crate::agent::pod::PullPolicy;
use crate::agent::problem::ManifestErrors;
use crate::agent::pull_secrets::PullSecrets;
use crate::agent::runner::Ask;
use crate::engine::{Engine, Options, sweep};
use crate::error::{Context, Error, Kind, Result};
use crate::id::InstanceId;
use crate::image::pull::Puller;
use crate::image::reference::{Reference, is_id};
use crate::ownapi::{self, Pods};
use crate::state::paths::Paths;
use crate::sys::session::is_ignored;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

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
/// Exit code when the terminal has gone, 128 + SIGHUP.
const HUNG_UP: u8 = 129;

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
    /// Credentials of registries, docker's config.json, before image.auth_file and docker's own
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Keep the logs, below /var/log/pods
    #[arg(long)]
    keep: bool,
    /// Do not print what the containers write
    #[arg(short, long)]
    quiet: bool,
    /// Return once the pod runs (not in this version)
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
            "run --detach is not in this version: no daemon would supervise the pod once this command has ended";
        return Err(Error::unsupported(message));
    }
    let files = args.files.iter().map(|file| bytes(file)).collect::<Result<Vec<_>>>()?;
    let manifests = files.iter().map(|(name, bytes)| read(bytes, name, args.template)).collect::<Result<Vec<_>>>()?;
    super::runtime()?.block_on(async {
        let daemon = if args.no_daemon { None } else { Daemon::find(session).await? };
        let puller = pull::puller(session.store()?, session, args.authfile.as_deref())?;
        if !has_images(&puller, &manifests, args.quiet).await? {
            return Ok(INTERRUPTED);
        }
        match daemon {
            Some(daemon) => ask(daemon, args, files, &manifests, timeout).await,
            None => host(args, session, &manifests, timeout).await,
        }
    })
}

/// Lets a daemon run the pods.
async fn ask(
    daemon: Daemon,
    args: &RunArgs,
    files: Vec<(String, Vec<u8>)>,
    manifests: &[Manifest],
    timeout: Option<Duration>,
) -> Result<u8> {
    let socket = daemon.socket().display();
    output::note(&format!("podwright: the daemon on {socket} runs it (--no-daemon: this command would)"));
    let pods = Pods {
        manifests: files.into_iter().map(|(name, text)| ownapi::Manifest { name, text }).collect(),
        templates: args.template,
        log_root: if args.keep { KEPT_LOGS.to_owned() } else { String::new() },
    };
    let names = names(manifests);
    let (ask, asked) = watch::channel(Ask::Run);
    let outlet = Outlet::new(asked.clone())?;
    let running = daemon.run(pods, || Arc::new(Console::new(&names, args.quiet, outlet.clone())), asked);
    supervise(timeout, &ask, shown(running, &outlet)).await
}

/// Checks a manifest.
///
/// # Errors
/// `InvalidArgument` with a line for everything that is wrong in it.
fn read(bytes: &[u8], name: &str, templates: bool) -> Result<Manifest> {
    let manifest = load(bytes, name, templates)?;
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
        cgroup_driver: settings.cgroup_driver,
        allow_unenforced: settings.allow_unenforced,
        node_name: node::name()?,
        network: settings.network,
        runtimes: settings.runtimes,
        cdi_dirs: session.config.value("cdi.spec_dirs").split(',').map(Into::into).collect(),
        selinux: session.config.labels_with_selinux(),
    })
}

/// The names of all containers, to tell their lines apart.
fn names(manifests: &[Manifest]) -> Vec<String> {
    let pods = manifests.iter().flat_map(|m| &m.pods);
    pods.flat_map(|p| p.spec.init_containers.iter().chain(&p.spec.containers)).map(|c| c.name.clone()).collect()
}

/// Hosts the engine in this process.
async fn host(args: &RunArgs, session: &Session, manifests: &[Manifest], timeout: Option<Duration>) -> Result<u8> {
    sweep::sweep_dead(&options(session, None)?).await?;
    let instance = InstanceId::random();
    let engine = Engine::open(options(session, Some(instance.clone()))?)?;
    let log_root = args.keep.then(|| KEPT_LOGS.into());
    let plans = host::plan(&engine, manifests, &Manner { salt: instance.to_string(), log_root, foreground: false })?;
    let names = names(manifests);
    let (ask, asked) = watch::channel(Ask::Run);
    let outlet = Outlet::new(asked.clone())?;
    let running = host::run(&engine, plans, |_| {
        // One for each pod: containers of two pods may have the same name.
        (Arc::new(Console::new(&names, args.quiet, outlet.clone())), asked.clone())
    });
    let code = supervise(timeout, &ask, shown(running, &outlet)).await;
    sweep::release(&engine).await?;
    code
}

/// Until all that the pods have written is shown as well: for that, too, it may be that nobody reads.
async fn shown(running: impl Future<Output = Result<u8>>, outlet: &Outlet) -> Result<u8> {
    let code = running.await;
    outlet.settle().await;
    code
}

/// SIGHUP, the end of the terminal; `None` where this command is to outlive it (nohup(1)).
fn hangup() -> Result<Option<Signal>> {
    let kind = SignalKind::hangup();
    match is_ignored(kind.as_raw_value()).context(|| "ask for the action of SIGHUP")? {
        true => Ok(None),
        false => signal(kind).map(Some).context(|| "watch SIGHUP"),
    }
}

/// Waits for the pods, passing on what the user asks meanwhile.
async fn supervise(
    timeout: Option<Duration>,
    ask: &watch::Sender<Ask>,
    running: impl Future<Output = Result<u8>>,
) -> Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt()).context(|| "watch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context(|| "watch SIGTERM")?;
    let mut hangup = hangup()?;
    let mut deadline = timeout.map(|t| Box::pin(tokio::time::sleep(t)));
    let mut asked_code = None;
    let next = |ask: &watch::Sender<Ask>| {
        ask.send_modify(|ask| *ask = if *ask == Ask::Run { Ask::Stop } else { Ask::Kill });
    };
    tokio::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => return ended.map(|code| asked_code.unwrap_or(code)),
            _ = interrupt.recv() => { asked_code = Some(INTERRUPTED); next(ask); }
            _ = terminate.recv() => next(ask),
            () = async { match &mut hangup { Some(s) => { s.recv().await; } None => std::future::pending().await } } => {
                // However often: the kernel sends one when a terminal closes, and so does the shell.
                asked_code = Some(HUNG_UP);
                ask.send_modify(|ask| *ask = (*ask).max(Ask::Stop));
            }
            () = async { match &mut deadline { Some(d) => d.await, None => std::future::pending().await } } => {
                deadline = None;
                asked_code = Some(TIMED_OUT);
                next(ask);
            }
        }
    }
}

/// Has every image in the store before anything is made; `false` after Ctrl-C. It is the command that pulls, also where a daemon runs the
/// pods: the store is both's, and the credentials are those of the user.
///
/// What was imported is what somebody of this host said the name is: no registry is asked whether it says the same.
async fn has_images(puller: &Puller, manifests: &[Manifest], quiet: bool) -> Result<bool> {
    let mut images = Vec::new();
    for manifest in manifests {
        for pod in &manifest.pods {
            let secrets = Rc::new(PullSecrets::of(pod, &manifest.objects)?);
            let (name, spec) = (&pod.metadata.name, &pod.spec);
            for container in spec.init_containers.iter().chain(&spec.containers) {
                let doing = format!("pod {name:?}, container {:?}", container.name);
                images.push((doing, &container.image.value, container.pull_policy, Rc::clone(&secrets)));
            }
            for (volume, image, policy) in spec.volumes.iter().filter_map(|v| v.image().map(|(i, p)| (v, i, p))) {
                let doing = format!("pod {name:?}, volume {:?}", volume.name);
                images.push((doing, &image.value, policy, Rc::clone(&secrets)));
            }
        }
    }
    for (doing, image, policy, secrets) in images {
        let doing = || doing.clone();
        let there = puller.store().lookup(image);
        if is_id(image) {
            there.context(doing)?;
            continue;
        }
        let name = image.parse::<Reference>().context(doing)?;
        let pull = match policy {
            PullPolicy::Never => {
                there.context(|| "imagePullPolicy is Never").context(doing)?;
                false
            }
            PullPolicy::IfNotPresent => there.is_err(),
            PullPolicy::Always => there.is_err() || puller.store().named(&name)?.is_some_and(|named| named.pulled),
        };
        if pull {
            let pulled = pull::pull(puller, name, None, secrets.files.clone(), quiet).await;
            if pulled.map_err(|e| secrets.explain(e)).context(doing)?.is_none() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
