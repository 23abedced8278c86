//! What hack/bench measures podwright with: the engine in this process, as the daemon hosts it (with a spare shim from the second pod on),
//! and each verb timed by its caller.
//!
//! Directories and cgroup come from `PODWRIGHT_ROOT`, `PODWRIGHT_STATE` and `PODWRIGHT_CGROUP_ROOT`, as for `podwright`. It does
//! what its standard input says, line by line, and ends each answer with `end`:
//!   layer                  the directory of the image's one layer, for the floor
//!   rounds pod|host COUNT  "verb microseconds" for each verb of COUNT rounds beside a pod that is there; "first" is its sandbox
//!   logs LINES             "logs microseconds" from the start of a container that writes LINES of 100 bytes until they are logged
//!
//! The pod is what a manifest gives by default: the default seccomp profile, masked paths, a log file. It has no limits, for the
//! floor has none.

use podwright::agent::convert::{self, NodeFacts, PodPlan};
use podwright::agent::manifest;
use podwright::config::CgroupDriver;
use podwright::config::network::NetworkSettings;
use podwright::engine::exec::ExecConfig;
use podwright::engine::{Engine, Options, Runtimes, sweep};
use podwright::error::{Context, Error, Result};
use podwright::id::PodId;
use podwright::shim::{self, ShimArgs};
use podwright::state::paths::Paths;
use podwright::state::record::ExitStatus;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const IMAGE: &str = "docker.io/library/busybox:latest";
/// The longest wait for anything, so that a bug is an error and no hang.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let role = args.get(1).map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default();
    // The engine makes its shims from this program, so it has their roles, as src/main.rs has. Images are imported by podwright.
    let played = match role.as_str() {
        "shim" => ShimArgs::parse(args.into_iter().skip(2)).and_then(|args| shim::run(&args)).map(|()| 0),
        "sweep" => sweep::main(&args),
        _ => drive().map(|()| 0),
    };
    played.map_or_else(
        |e| {
            let _ = writeln!(std::io::stderr(), "verbs: {e}"); // nobody is left to tell
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}

fn drive() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "start a runtime")?;
    runtime.block_on(async {
        let engine = Engine::open(options()?)?;
        for line in std::io::stdin().lock().lines() {
            obey(&engine, &line.context(|| "read a command")?).await?;
            say("end")?;
        }
        sweep::prune_directories(engine.paths());
        Ok(())
    })
}

fn options() -> Result<Options> {
    let setting = |name: &str| std::env::var(name).map_err(|_| Error::invalid(format!("{name} is not set")));
    let paths =
        Paths { root: setting("PODWRIGHT_ROOT")?.into(), state: setting("PODWRIGHT_STATE")?.into(), instance: None };
    let cgroup_root = setting("PODWRIGHT_CGROUP_ROOT")?;
    Ok(Options {
        paths,
        cgroup_root,
        cgroup_driver: CgroupDriver::Cgroupfs,
        allow_unenforced: true,
        node_name: "bench".to_owned(),
        network: NetworkSettings::default(),
        owner: false,
        runtimes: Runtimes::new(),
        cdi_dirs: Vec::new(),
        selinux: false,
    })
}

async fn obey(engine: &Engine, command: &str) -> Result<()> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let number = |text: &str| text.parse::<u32>().map_err(|e| Error::invalid(format!("{command:?}: {e}")));
    match words[..] {
        ["layer"] => {
            let image = engine.images().lookup(IMAGE)?;
            say(&image.layers.iter().map(|layer| layer.to_string_lossy()).collect::<Vec<_>>().join(":"))
        }
        ["rounds", network @ ("pod" | "host"), count] => {
            let host_network = network == "host";
            let first = PodId::random();
            let config = plan(engine, &first, host_network, &["true"])?.config;
            let mut since = Instant::now();
            engine.run_pod_as(first.clone(), config).await?;
            lap("first", &mut since)?;
            for _ in 0..number(count)? {
                round(engine, host_network).await?;
            }
            engine.remove_pod(&first).await
        }
        ["logs", lines] => logs(engine, number(lines)?).await,
        _ => Err(Error::invalid(format!("{command:?} is no command"))),
    }
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context(|| "write to stdout")
}

/// Tells how long it was since `since`, and starts anew.
fn lap(verb: &str, since: &mut Instant) -> Result<()> {
    let took = since.elapsed();
    say(&format!("{verb} {:.1}", took.as_secs_f64() * 1e6))?;
    *since = Instant::now();
    Ok(())
}

/// A pod of one container, as `podwright run` would make it of a manifest.
fn plan(engine: &Engine, id: &PodId, host_network: bool, command: &[&str]) -> Result<PodPlan> {
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bench"},
        "spec": {"hostNetwork": host_network, "containers": [{"name": "main", "image": IMAGE, "command": command}]},
    });
    let manifest = manifest::load(manifest.to_string().as_bytes(), "bench")?;
    let facts = NodeFacts {
        node_name: engine.options().node_name.clone(),
        pod_ips: Some(Vec::new()),
        log_root: Some(engine.paths().logs(id)),
        pod_dir: engine.paths().pod_data(id),
        secret_dir: engine.paths().pod(id).join("secrets"),
        ..NodeFacts::default()
    };
    Ok(convert::plan(&manifest, 0, &facts)?)
}

async fn round(engine: &Engine, host_network: bool) -> Result<()> {
    let id = PodId::random();
    let plan = plan(engine, &id, host_network, &["sleep", "1000"])?;
    let config = plan.containers[0].config.clone();
    let mut since = Instant::now();
    engine.run_pod_as(id.clone(), plan.config).await?;
    lap("sandbox", &mut since)?;
    let container = engine.create_container(&id, config).await?;
    lap("create", &mut since)?;
    engine.start_container(&container).await?;
    lap("start", &mut since)?;
    let exec = ExecConfig { args: vec!["true".to_owned()], ..ExecConfig::default() };
    let ended = engine.exec_sync(&container, exec, std::future::pending()).await?;
    lap("exec", &mut since)?;
    if ended.status != ExitStatus::Exited(0) {
        return Err(Error::internal(format!("exec of true: {:?}", ended.status)));
    }
    engine.stop_container(&container, Duration::ZERO).await?;
    lap("stop", &mut since)?;
    engine.remove_container(&container).await?;
    engine.remove_pod(&id).await?;
    lap("remove", &mut since)
}

async fn logs(engine: &Engine, lines: u32) -> Result<()> {
    let id = PodId::random();
    let script = format!("yes {} | head -n {lines}", "x".repeat(99)); // and the newline
    let plan = plan(engine, &id, false, &["sh", "-c", &script])?;
    engine.run_pod_as(id.clone(), plan.config).await?;
    let container = engine.create_container(&id, plan.containers[0].config.clone()).await?;
    let mut since = Instant::now();
    engine.start_container(&container).await?;
    let ended = tokio::time::timeout(PATIENCE, engine.wait_container(&container)).await;
    lap("logs", &mut since)?; // a container's end is told when its output is in the log
    ended.map_err(|_| Error::internal("the logs took too long"))??;
    let logged = logged_bytes(engine, &id)?;
    let least = u64::from(lines) * 100;
    if logged < least {
        return Err(Error::internal(format!("{logged} bytes were logged of {least}")));
    }
    engine.remove_pod(&id).await
}

/// The size of all log files of a pod.
fn logged_bytes(engine: &Engine, id: &PodId) -> Result<u64> {
    let mut directories = vec![engine.paths().logs(id)];
    let mut bytes = 0;
    while let Some(directory) = directories.pop() {
        let reading = || format!("list {}", directory.display());
        for entry in std::fs::read_dir(&directory).context(reading)? {
            let entry = entry.context(reading)?;
            let about = entry.metadata().context(reading)?;
            if about.is_dir() { directories.push(entry.path()) } else { bytes += about.len() }
        }
    }
    Ok(bytes)
}
