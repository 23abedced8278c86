//! `podwright inspect`: records, status, limits and the flight recorder.

use super::find::{self, Found, Target};
use super::output::{self, Format, Page};
use super::{Session, plan_text, planner, pods, ps, units};
use crate::cgroup::Row;
use crate::engine::pod::State;
use crate::engine::query::ContainerStatus;
use crate::engine::{etc, sweep};
use crate::error::{Error, Kind, Result};
use crate::state::flight::{Entry as Step, Source};
use crate::state::record::Oom;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

const EXAMPLES: &str = "\
Examples:
  podwright inspect web                     a pod, its limits, and the steps that made it
  podwright inspect web/nginx               a container: limits, mounts, command, environment
  podwright inspect -o json web/nginx       all of that, and the OCI runtime spec";

/// Prints all that is known of a pod or container: config, status, limits, OCI spec, and the steps that made it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct InspectArgs {
    /// POD, POD/CONTAINER, or the first digits of an id
    #[arg(required = true, value_name = "POD")]
    targets: Vec<String>,
}

/// `-o json`.
#[derive(Serialize, Default)]
struct Document {
    pods: Vec<PodView>,
    containers: Vec<ContainerView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodView {
    #[serde(flatten)]
    entry: pods::Entry,
    /// Empty: the node's.
    hostname: String,
    /// `pod`, `container` or `host`, by kind.
    namespaces: BTreeMap<&'static str, &'static str>,
    sysctls: BTreeMap<String, String>,
    /// `null`: a copy of the host's.
    resolv_conf: Option<String>,
    host_aliases: Vec<String>,
    log_directory: Option<String>,
    /// Processes as the host sees them; the owner is `podwright run`, or the daemon.
    owner_pid: Option<u32>,
    /// The owner is a daemon.
    #[serde(skip)]
    daemons: bool,
    shim_pid: u32,
    pause_pid: Option<u32>,
    shim_lost: bool,
    limits: Vec<Limit>,
    warnings: Vec<String>,
    containers: Vec<ps::Entry>,
    /// The flight recorder, the oldest first.
    steps: Vec<StepView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerView {
    #[serde(flatten)]
    entry: ps::Entry,
    user: Option<UserView>,
    stop_signal: i32,
    /// A process below it was killed for memory and it went on.
    child_oom: bool,
    /// Whose memory limit ended it: `Container`, `Pod`, `Node`.
    oom: Option<Oom>,
    limits: Vec<Limit>,
    warnings: Vec<String>,
    /// Overlay directories, the lowest first.
    layers: Vec<String>,
    /// The OCI runtime spec.
    spec: Value,
}

#[derive(Serialize)]
struct UserView {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// A file of the cgroup, read at this moment.
#[derive(Serialize)]
struct Limit {
    file: String,
    asked: String,
    written: String,
    /// `null`: the file is missing, the limit is not enforced.
    kernel: Option<String>,
    /// Why a file that nobody asked for was left out: the host has none.
    #[serde(rename = "notAvailable")]
    not_available: Option<String>,
    /// What holds, with the cgroups above.
    effective: Option<String>,
    /// The kernel shows what was written.
    holds: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StepView {
    /// RFC 3339.
    time: String,
    source: &'static str,
    step: String,
    took_us: Option<u64>,
}

pub(super) fn run(args: &InspectArgs, session: &Session) -> Result<u8> {
    super::require_root("inspect")?;
    let document = super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let mut document = Document::default();
        for target in find::targets(&all, &args.targets)? {
            match target {
                Target::Pod(found) => document.pods.push(pod(&found)?),
                Target::Container(found, container) => document.containers.push(container_view(&found, &container)?),
            }
        }
        Ok::<_, Error>(document)
    })?;
    if session.format == Format::Json {
        output::print_json(&document)?;
        return Ok(0);
    }
    let mut page = Page::default();
    document.pods.iter().for_each(|view| pod_text(&mut page, view));
    document.containers.iter().for_each(|view| container_text(&mut page, view));
    output::print(page.text())?;
    Ok(0)
}

/// Limits now, and why some are not enforced; none when the cgroup is gone with what was in it.
fn limits(report: Result<crate::cgroup::Report>) -> Result<(Vec<Limit>, Vec<String>)> {
    let view = |row: Row| Limit {
        file: row.file,
        asked: row.asked,
        written: row.written,
        kernel: row.kernel,
        not_available: row.not_available,
        effective: row.effective,
        holds: row.holds,
    };
    match report {
        Err(e) if e.kind() == Kind::NotFound => Ok((Vec::new(), Vec::new())),
        report => report.map(|r| (r.rows.into_iter().map(view).collect(), r.warnings)),
    }
}

fn pod(found: &Found) -> Result<PodView> {
    let (record, engine) = (&found.pod.record, &found.engine);
    let config = &record.config;
    let (limits, mut warnings) = limits(engine.verify_pod(&record.id))?;
    warnings.extend(found.pod.warnings.iter().filter(|w| !warnings.contains(w)).cloned().collect::<Vec<_>>());
    Ok(PodView {
        entry: pods::Entry::new(found),
        hostname: config.hostname.clone(),
        namespaces: planner::namespaces(&config.namespaces),
        sysctls: config.sysctls.clone(),
        resolv_conf: config.dns.as_ref().map(etc::resolv_conf).transpose()?,
        host_aliases: config.host_aliases.iter().map(|a| format!("{} {}", a.ip, a.hostnames.join(" "))).collect(),
        log_directory: config.log_directory.as_ref().map(|d| d.display().to_string()),
        owner_pid: sweep::owner(engine.paths())?.map(|owner| owner.pid),
        daemons: engine.paths().instance.is_none(),
        shim_pid: found.pod.shim.pid,
        pause_pid: found.pod.sandbox.as_ref().filter(|s| s.exit.is_none()).map(|s| s.pause.pid),
        shim_lost: found.pod.shim_lost,
        limits,
        warnings,
        containers: found.containers.iter().rev().map(|c| ps::Entry::new(found, c)).collect(),
        steps: engine.flight(&record.id)?.into_iter().map(step).collect(),
    })
}

fn step(step: Step) -> StepView {
    StepView {
        time: units::timestamp(i64::try_from(step.time_ns).unwrap_or(i64::MAX)),
        source: match step.source {
            Source::Engine => "engine",
            Source::Shim => "shim",
        },
        // The text says its source too, for whoever reads the file itself.
        step: step.step.trim_start_matches("engine: ").trim_start_matches("shim: ").to_owned(),
        took_us: step.took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
    }
}

fn container_view(found: &Found, container: &ContainerStatus) -> Result<ContainerView> {
    let record = &container.record;
    let (limits, mut warnings) = match container.state {
        State::Running => limits(found.engine.verify_container(&record.id))?,
        _ => Default::default(),
    };
    warnings.extend(container.warnings.iter().filter(|w| !warnings.contains(w)).cloned().collect::<Vec<_>>());
    Ok(ContainerView {
        entry: ps::Entry::new(found, container),
        user: container.process.as_ref().map(|p| UserView {
            uid: p.user.uid,
            gid: p.user.gid,
            groups: p.user.groups.clone(),
        }),
        stop_signal: record.stop_signal,
        child_oom: container.child_oom,
        oom: container.exit.as_ref().and_then(|e| e.oom),
        limits,
        warnings,
        layers: record.layers.iter().map(|l| l.display().to_string()).collect(),
        spec: record.spec.value(),
    })
}

fn pairs(map: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    map.iter().map(|(name, value)| format!("{name} = {value}"))
}

fn number(pid: Option<u32>) -> String {
    pid.map(|pid| pid.to_string()).unwrap_or_default()
}

fn pod_text(page: &mut Page, view: &PodView) {
    page.gap();
    let entry = &view.entry;
    page.line(0, &format!("pod {}/{}", entry.namespace, entry.name));
    page.fields(
        1,
        &[
            ("id", entry.id.clone()),
            ("uid", entry.uid.clone()),
            (
                "status",
                format!("{}, {} of {} containers ready", entry.status, entry.containers_ready, entry.containers_total),
            ),
            ("restarts", entry.restarts.to_string()),
            ("created", entry.created_at.clone()),
            ("qos class", entry.qos.to_owned()),
            ("restart policy", entry.restart_policy.clone()),
            ("grace period", format!("{}s", entry.grace_seconds)),
            ("hostname", if view.hostname.is_empty() { "the node's".to_owned() } else { view.hostname.clone() }),
            ("namespaces", plan_text::namespaces(&view.namespaces)),
            ("network", entry.network.clone()),
            ("ips", entry.ips.join(", ")),
            ("cgroup", entry.cgroup.clone()),
            ("logs", view.log_directory.clone().unwrap_or_default()),
            (if view.daemons { "daemon" } else { "`run`" }, number(view.owner_pid)),
            ("shim", if view.shim_lost { "lost".to_owned() } else { view.shim_pid.to_string() }),
            ("pause", number(view.pause_pid)),
        ],
    );
    page.list(1, "labels:", pairs(&entry.labels));
    page.list(1, "annotations:", pairs(&entry.annotations));
    page.list(1, "sysctls:", pairs(&view.sysctls));
    page.list(1, "resolv.conf:", view.resolv_conf.iter().flat_map(|text| text.lines()).map(str::to_owned));
    page.list(1, "host ports:", entry.host_ports.iter().cloned());
    page.list(1, "host aliases:", view.host_aliases.iter().cloned());
    limits_text(page, &view.limits);
    page.list(1, "warnings:", plan_text::grouped(&view.warnings));
    let row = |c: &ps::Entry| {
        [c.name.clone(), c.attempt.to_string(), c.state_text(), number(c.pid), c.image.clone(), c.id[..12].to_owned()]
    };
    page.table(
        1,
        "containers:",
        ["NAME", "ATTEMPT", "STATE", "PID", "IMAGE", "CONTAINER ID"],
        view.containers.iter().map(row),
    );
    let row = |s: &StepView| {
        let took = s.took_us.map(|us| format!("{}.{:03} ms", us / 1000, us % 1000)).unwrap_or_default();
        [s.time.clone(), s.source.to_owned(), took, s.step.clone()]
    };
    page.table(1, "steps:", ["TIME", "BY", "TOOK", "STEP"], view.steps.iter().map(row));
}

fn container_text(page: &mut Page, view: &ContainerView) {
    page.gap();
    let entry = &view.entry;
    page.line(0, &format!("container {} of pod {}/{}", entry.name, entry.pod_namespace, entry.pod_name));
    let user = view.user.as_ref().map(|user| {
        let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
        format!(
            "{}:{}, groups {}",
            user.uid,
            user.gid,
            if groups.is_empty() { "none".to_owned() } else { groups.join(" ") }
        )
    });
    let oom = view.oom.map(|oom| format!("the memory limit of the {}", format!("{oom:?}").to_lowercase()));
    page.fields(
        1,
        &[
            ("id", entry.id.clone()),
            ("pod id", entry.pod_id.clone()),
            ("image", entry.image.clone()),
            ("image id", entry.image_id.clone().unwrap_or_default()),
            ("state", entry.state_text()),
            ("message", entry.message.clone().unwrap_or_default()),
            ("ended by", oom.unwrap_or_default()),
            ("attempt", entry.attempt.to_string()),
            ("created", entry.created_at.clone()),
            ("started", entry.started_at.clone().unwrap_or_default()),
            ("finished", entry.finished_at.clone().unwrap_or_default()),
            ("pid", number(entry.pid)),
            ("runs as", user.unwrap_or_default()),
            ("stop signal", view.stop_signal.to_string()),
            ("memory", if view.child_oom { "a process in it was killed for memory".to_owned() } else { String::new() }),
            ("cgroup", entry.cgroup.clone()),
            ("log", entry.log.clone().unwrap_or_else(|| "none: output is discarded".to_owned())),
        ],
    );
    limits_text(page, &view.limits);
    page.list(1, "warnings:", plan_text::grouped(&view.warnings));
    plan_text::process(page, 1, &view.spec);
    page.list(1, "layers, the lowest first:", view.layers.iter().cloned());
}

fn limits_text(page: &mut Page, limits: &[Limit]) {
    let row = |l: &Limit| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let word = match (l.holds, &l.not_available) {
            (true, _) => "yes",
            (false, Some(_)) => "not available",
            (false, None) => "NO",
        };
        [l.file.clone(), l.asked.clone(), l.written.clone(), or_dash(&l.kernel), or_dash(&l.effective), word.to_owned()]
    };
    page.table(1, "limits:", ["FILE", "ASKED", "WRITTEN", "KERNEL", "EFFECTIVE", "HOLDS"], limits.iter().map(row));
    let missing = limits.iter().filter_map(|l| Some(format!("{}: {}", l.file, l.not_available.as_ref()?)));
    page.list(1, "not available, and asked for by nobody:", missing);
}
