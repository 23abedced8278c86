//! `podwright stop`: graceful stop. A pod belongs to a daemon or a `podwright run`, so that is what is asked to stop it; a container of
//! a `run` is stopped by its pod's shim.

use super::find::{self, Found, Target};
use super::output::{self, Format};
use super::remote::Daemon;
use super::{Session, status, units};
use crate::engine::query::ContainerStatus;
use crate::engine::signal::SIGTERM;
use crate::engine::sweep;
use crate::error::{Context, Error, Kind, Result};
use crate::id::InstanceId;
use crate::ownapi::StopRequest;
use crate::sys;
use serde::Serialize;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  podwright stop web                        as long as the pod's own grace period says
  podwright stop --grace 0s web/nginx       kill at once";

/// How long beyond the grace period `run` may take: to kill what is left, and to remove the pod.
const REMOVAL_WAIT: Duration = Duration::from_secs(10);
/// How long after one SIGTERM the next is sent to a `run` that is to kill: two that come together are one to it.
const SECOND_SIGNAL: Duration = Duration::from_millis(200);

/// Stops pods or containers: the stop signal, then SIGKILL when the grace period is over
///
/// A pod that has stopped is removed by the `podwright run` that it belongs to; one that was made through the CRI is not. A container may be started again, as its pod's
/// restart policy says.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StopArgs {
    /// POD, POD/CONTAINER, or the first digits of an id
    #[arg(required = true, value_name = "POD")]
    targets: Vec<String>,
    /// Time between the stop signal and SIGKILL, instead of the pod's own (30s)
    #[arg(long, value_name = "DURATION")]
    grace: Option<String>,
}

/// `-o json`: `{"stopped": [names]}`.
#[derive(Serialize, Default)]
pub(super) struct Document {
    pub stopped: Vec<String>,
}

pub(super) fn run(args: &StopArgs, session: &Session) -> Result<u8> {
    let grace = args.grace.as_deref().map(|text| units::duration("--grace", text)).transpose()?;
    super::require_root("stop")?;
    let document = super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let targets = find::targets(&all, &args.targets)?;
        let mut document = Document::default();
        let (of_daemon, targets): (Vec<_>, Vec<_>) = targets.into_iter().partition(is_daemons);
        for target in &targets {
            if let Target::Container(found, container) = target {
                stop_container(found, container, grace).await?;
                document.stopped.push(name(target));
            }
        }
        stop_pods(&all, &targets, grace, &mut document)?;
        ask_daemon(session, &of_daemon, grace, false, &mut document).await?;
        Ok::<_, Error>(document)
    })?;
    print(session, &document, "stopped")
}

/// A line a name, or the document.
pub(super) fn print(session: &Session, document: &Document, done: &str) -> Result<u8> {
    match session.format {
        Format::Json => output::print_json(document)?,
        Format::Table => {
            let lines: String = document.stopped.iter().map(|name| format!("{name} {done}\n")).collect();
            output::print(&lines)?;
        }
    }
    Ok(0)
}

/// As the user would name it.
pub(super) fn name(target: &Target) -> String {
    match target {
        Target::Pod(found) => found.name(),
        Target::Container(found, container) => format!("{}/{}", found.name(), container.record.config.name),
    }
}

async fn stop_container(found: &Found, container: &ContainerStatus, grace: Option<Duration>) -> Result<()> {
    let config = &found.pod.record.config;
    let grace = grace.unwrap_or_else(|| status::grace(config));
    found.engine.stop_container(&container.record.id, grace).await?;
    if status::restart_policy(config) == "Always" {
        let name = &container.record.config.name;
        output::note(&format!(
            "{name} will be started again: its pod's restart policy is Always; `podwright stop {}` stops the pod",
            found.name()
        ));
    }
    Ok(())
}

pub(super) fn is_daemons(target: &Target) -> bool {
    match target {
        Target::Pod(found) | Target::Container(found, _) => found.is_daemons(),
    }
}

/// Lets the daemon stop what is its own, and remove it if that is asked for.
pub(super) async fn ask_daemon(
    session: &Session,
    targets: &[Target],
    grace: Option<Duration>,
    remove: bool,
    document: &mut Document,
) -> Result<()> {
    if targets.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = targets.iter().map(name).collect();
    let doing = || format!("stop {}", names.join(", "));
    let Some(mut daemon) = Daemon::find(session).await.context(doing)? else {
        let socket = session.config.value("cri.socket");
        let remedy = "start `podwright daemon`, which finds what runs; of one elsewhere set PODWRIGHT_CRI_SOCKET";
        let why = format!("the daemon that it belongs to does not serve on {socket}: {remedy}");
        return Err(Error::new(Kind::Unavailable, why)).context(doing);
    };
    for (target, name) in targets.iter().zip(&names) {
        let (found, container) = match target {
            Target::Pod(found) => (found, String::new()),
            Target::Container(found, container) => (found, container.record.id.to_string()),
        };
        let grace = grace.unwrap_or_else(|| status::grace(&found.pod.record.config));
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let pod = found.pod.record.id.to_string();
        daemon.stop(StopRequest { pod, container, grace_ms, remove }).await.context(|| format!("stop {name}"))?;
        document.stopped.push(name.clone());
    }
    Ok(())
}

/// Stops the pods among `targets`, by their owners, one `run` after the other.
pub(super) fn stop_pods(
    all: &[Found],
    targets: &[Target],
    grace: Option<Duration>,
    document: &mut Document,
) -> Result<()> {
    let pods: Vec<&Found> =
        targets.iter().filter_map(|t| if let Target::Pod(found) = t { Some(found) } else { None }).collect();
    let instance = |found: &Found| found.engine.paths().instance.clone();
    let instances: BTreeSet<InstanceId> = pods.iter().filter_map(|found| instance(found)).collect();
    // First everything that could be refused, then the first signal.
    for id in &instances {
        let own: Vec<&Found> = all.iter().filter(|f| instance(f).as_ref() == Some(id)).collect();
        let named = |f: &&&Found| pods.iter().any(|p| p.pod.record.id == f.pod.record.id);
        let others: Vec<String> = own.iter().filter(|f| !named(f)).map(|f| f.name()).collect();
        if !others.is_empty() {
            let why = "one `podwright run` has several pods, and they stop together; name the others too";
            return Err(Error::precondition(format!("{why}: {}", others.join(", "))));
        }
    }
    for id in &instances {
        let own: Vec<&&Found> = pods.iter().filter(|f| instance(f).as_ref() == Some(id)).collect();
        let longest = own.iter().map(|f| status::grace(&f.pod.record.config)).max().unwrap_or_default();
        let names: Vec<String> = own.iter().map(|f| f.name()).collect();
        let Some(first) = own.first() else { continue };
        end_owner(first, grace, longest).context(|| format!("stop {}", names.join(", ")))?;
        for name in names {
            if !document.stopped.contains(&name) {
                document.stopped.push(name);
            }
        }
    }
    Ok(())
}

/// Sends SIGTERM to the `run` that owns a pod and waits for its end; after `grace`, if that is given, it is told to kill.
fn end_owner(found: &Found, grace: Option<Duration>, pods_grace: Duration) -> Result<()> {
    let paths = found.engine.paths();
    let Some(owner) = sweep::owner(paths)? else {
        return Err(Error::new(Kind::Unavailable, "its `podwright run` is just starting or ending; try again"));
    };
    let gone = |e: &std::io::Error| sys::errno_name(e.raw_os_error().unwrap_or(0)) == "ESRCH";
    let pidfd = match sys::pidfd::pidfd_open(owner.pid) {
        Err(e) if gone(&e) => return Ok(()),
        opened => opened.context(|| format!("pidfd_open {}", owner.pid))?,
    };
    if !sys::start_time(owner.pid).is_ok_and(|start| start == owner.start_time) {
        return Ok(()); // it has ended, and the pid is another's
    }
    let signal = || match sys::session::pidfd_send_signal(pidfd.as_fd(), SIGTERM) {
        Err(e) if gone(&e) => Ok(()),
        sent => sent.context(|| format!("send SIGTERM to `podwright run`, pid {}", owner.pid)),
    };
    let ended_within = |time| {
        let ended = sys::poll::poll_until(pidfd.as_fd(), sys::poll::Interest::Read, time);
        ended.context(|| format!("wait for `podwright run`, pid {}", owner.pid))
    };
    signal()?;
    if ended_within(grace.unwrap_or(pods_grace + REMOVAL_WAIT))? {
        return Ok(());
    }
    if grace.is_some() {
        let end = Instant::now() + REMOVAL_WAIT;
        while Instant::now() < end {
            signal()?;
            if ended_within(SECOND_SIGNAL)? {
                return Ok(());
            }
        }
    }
    let remedy = "`podwright rm --force` kills at once";
    Err(Error::new(
        Kind::DeadlineExceeded,
        format!("`podwright run`, pid {}, has not ended in time; {remedy}", owner.pid),
    ))
}
