//! `podwright ps`: the table of containers.

use super::find::{self, Found, Target};
use super::output::{self, Format};
use super::{Session, status, units};
use crate::engine::pod::State;
use crate::engine::query::ContainerStatus;
use crate::error::Result;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  podwright ps                              running ones
  podwright ps -a web                       all of pod web, ended ones too
  podwright ps -q";

/// Lists containers
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PsArgs {
    /// Only containers of these pods, or POD/CONTAINER
    #[arg(value_name = "POD")]
    targets: Vec<String>,
    /// Ended ones too
    #[arg(short, long)]
    all: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl PsArgs {
    /// What `podwright get containers` asks for.
    pub(super) fn of(targets: Vec<String>) -> Self {
        PsArgs { targets, all: true, quiet: false, no_trunc: false }
    }
}

/// `-o json`: `{"containers": [...]}`.
#[derive(Serialize)]
struct Document {
    containers: Vec<Entry>,
}

/// A container, here and in `inspect`. Times are RFC 3339.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub pod_id: String,
    pub pod_name: String,
    pub pod_namespace: String,
    pub image: String,
    pub image_id: Option<String>,
    /// `Created`, `Running`, `Exited`.
    pub state: State,
    /// 128+n for signal n, 128 for one that could not start, 255 for unknown.
    pub exit_code: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
    pub reason: Option<&'static str>,
    pub message: Option<String>,
    pub created_at: String,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    /// As the host sees it.
    pub pid: Option<u32>,
    pub log: Option<String>,
    pub cgroup: String,
}

impl Entry {
    pub(super) fn new(found: &Found, container: &ContainerStatus) -> Entry {
        let (record, exit, pod) = (&container.record, &container.exit, &found.pod.record);
        let running = container.process.as_ref().filter(|_| container.state == State::Running);
        Entry {
            id: record.id.to_string(),
            name: record.config.name.clone(),
            attempt: record.config.attempt,
            pod_id: pod.id.to_string(),
            pod_name: pod.config.name.clone(),
            pod_namespace: pod.config.namespace.clone(),
            image: record.config.image.clone(),
            image_id: record.config.image_id.as_ref().map(ToString::to_string),
            state: container.state,
            exit_code: exit.as_ref().map(|e| e.status.code()),
            reason: exit.as_ref().map(|e| e.status.reason(e.oom)),
            message: exit.as_ref().map(|e| e.message.clone()).filter(|m| !m.is_empty()),
            created_at: units::timestamp(record.created_at_ns),
            started_at: container.process.as_ref().map(|p| units::timestamp(p.started_at_ns)),
            finished_at: exit.as_ref().map(|e| units::timestamp(e.finished_at_ns)),
            pid: running.map(|p| p.process.pid),
            log: record.log.as_ref().map(|p| p.display().to_string()),
            cgroup: container.cgroup.clone(),
        }
    }
}

impl Entry {
    /// The state, and how it ended.
    pub(super) fn state_text(&self) -> String {
        match (self.exit_code, self.reason) {
            (Some(code), Some(reason)) => status::ended(code, reason),
            _ => format!("{:?}", self.state),
        }
    }
}

pub(super) fn run(args: &PsArgs, session: &Session) -> Result<u8> {
    super::require_root("ps")?;
    let all = super::runtime()?.block_on(find::all(session))?;
    let mut list = listed(&all, &args.targets)?;
    let ended = list.len();
    list.retain(|(_, container)| args.all || container.state == State::Running);
    let ended = ended - list.len();
    list.sort_by_key(|(_, container)| std::cmp::Reverse(container.record.created_at_ns));
    let short = |id: &str| if args.no_trunc { id.to_owned() } else { id[..12].to_owned() };
    if args.quiet {
        let lines: String = list.iter().map(|(_, c)| format!("{}\n", short(c.record.id.as_str()))).collect();
        output::print(&lines)?;
        return Ok(0);
    }
    match session.format {
        Format::Json => {
            let containers = list.iter().map(|(found, container)| Entry::new(found, container)).collect();
            output::print_json(&Document { containers })?;
        }
        Format::Table if list.is_empty() && ended > 0 => {
            output::note(&format!("no container runs; {ended} that ended: `podwright ps --all`"));
        }
        Format::Table if list.is_empty() => output::note("no containers; `podwright run FILE` runs a pod"),
        Format::Table => {
            let rows = list.iter().map(|(found, container)| {
                let record = &container.record;
                [
                    short(record.id.as_str()),
                    record.config.image.clone(),
                    units::age_of(record.created_at_ns),
                    Entry::new(found, container).state_text(),
                    record.config.name.clone(),
                    record.config.attempt.to_string(),
                    short(found.pod.record.id.as_str()),
                    found.name(),
                ]
            });
            let header = ["CONTAINER ID", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD"];
            output::print(&output::table(header, rows))?;
        }
    }
    Ok(0)
}

/// All containers, or those that `targets` mean.
fn listed(all: &[Found], targets: &[String]) -> Result<Vec<(Found, ContainerStatus)>> {
    let of = |found: &Found| found.containers.iter().map(|c| (found.clone(), c.clone())).collect::<Vec<_>>();
    if targets.is_empty() {
        return Ok(all.iter().flat_map(of).collect());
    }
    let mut list: Vec<(Found, ContainerStatus)> = Vec::new();
    for target in find::targets(all, targets)? {
        match target {
            Target::Pod(found) => list.extend(of(&found)),
            Target::Container(found, container) => list.push((found, *container)),
        }
    }
    Ok(list)
}
