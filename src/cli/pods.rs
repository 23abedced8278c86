//! `podwright pods`: the table of pods.

use super::find::{self, Found, Target};
use super::output::{self, Format};
use super::{Session, status, units};
use crate::agent::convert;
use crate::engine::query::PodStatus;
use crate::error::Result;
use crate::network::HostPort;
use crate::state::model::NamespaceMode;
use serde::Serialize;
use std::collections::BTreeMap;

const EXAMPLES: &str = "\
Examples:
  podwright pods
  podwright pods -q                         only ids
  podwright pods -o json";

/// Lists pods
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PodsArgs {
    /// Only pods of this name, or whose id starts so
    #[arg(value_name = "POD")]
    targets: Vec<String>,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl PodsArgs {
    /// What `podwright get pods` asks for.
    pub(super) fn of(targets: Vec<String>) -> Self {
        PodsArgs { targets, quiet: false, no_trunc: false }
    }
}

/// `-o json`: `{"pods": [...]}`.
#[derive(Serialize)]
struct Document {
    pods: Vec<Entry>,
}

/// A pod, here and in `inspect`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// kubectl's word for it.
    pub status: String,
    /// The sandbox is there.
    pub ready: bool,
    /// Why its record cannot be read: the rest is what else was found of it.
    pub unreadable: Option<String>,
    /// App containers and sidecars that run, and how many there are to be.
    pub containers_ready: usize,
    pub containers_total: usize,
    pub restarts: u32,
    pub qos: &'static str,
    pub restart_policy: String,
    pub grace_seconds: u64,
    /// RFC 3339.
    pub created_at: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub cgroup: String,
    /// `bridge NAME`, `cni NAME`, `host`, or `none`: only its loopback.
    pub network: String,
    /// The first is the pod's own; none for `host` and `none`, and when it is stopped.
    pub ips: Vec<String>,
    /// Ports of the host that lead to the pod.
    pub host_ports: Vec<String>,
    /// Of `podwright run`.
    pub instance: Option<String>,
}

impl Entry {
    pub(super) fn new(found: &Found) -> Entry {
        let (record, summary) = (&found.pod.record, status::summary(found));
        let config = &record.config;
        let attached = found.pod.network.as_ref();
        let own = [convert::ROLES, convert::RESTART_POLICY, convert::GRACE_SECONDS, convert::IMAGES];
        Entry {
            id: record.id.to_string(),
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            uid: config.uid.clone(),
            status: summary.status,
            ready: found.pod.ready,
            unreadable: found.pod.damaged.as_ref().map(ToString::to_string),
            containers_ready: summary.ready,
            containers_total: summary.total,
            restarts: summary.restarts,
            qos: status::qos(config),
            restart_policy: status::restart_policy(config).to_owned(),
            grace_seconds: status::grace(config).as_secs(),
            created_at: units::timestamp(record.created_at_ns),
            labels: config.labels.clone(),
            annotations: config
                .annotations
                .iter()
                .filter(|(k, _)| !own.contains(&k.as_str()))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            cgroup: record.cgroup.clone(),
            network: network(&found.pod),
            ips: attached.iter().flat_map(|network| &network.ips).map(ToString::to_string).collect(),
            host_ports: attached.iter().flat_map(|network| &network.ports).map(host_port).collect(),
            instance: found.engine.paths().instance.as_ref().map(ToString::to_string),
        }
    }
}

/// What a pod is connected to.
fn network(pod: &PodStatus) -> String {
    match &pod.network {
        Some(network) => format!("{} {}", network.kind, network.network),
        None if pod.record.config.namespaces.network == NamespaceMode::Node => "host".to_owned(),
        None => "none".to_owned(),
    }
}

fn host_port(port: &HostPort) -> String {
    format!("{port} to {}", port.container_port)
}

pub(super) fn run(args: &PodsArgs, session: &Session) -> Result<u8> {
    super::require_root("pods")?;
    let mut all = super::runtime()?.block_on(find::all(session))?;
    if !args.targets.is_empty() {
        let mut wanted = Vec::new();
        for target in find::targets(&all, &args.targets)? {
            let (Target::Pod(found) | Target::Container(found, _)) = target;
            wanted.push(found);
        }
        all = wanted;
    }
    let id = |found: &Found| {
        let id = &found.pod.record.id;
        if args.no_trunc { id.to_string() } else { id.short().to_owned() }
    };
    if args.quiet {
        let lines: String = all.iter().map(|found| format!("{}\n", id(found))).collect();
        output::print(&lines)?;
        return Ok(0);
    }
    match session.format {
        Format::Json => output::print_json(&Document { pods: all.iter().map(Entry::new).collect() })?,
        Format::Table if all.is_empty() => output::note("no pods; `podwright run FILE` runs one"),
        Format::Table => {
            let rows = all.iter().map(|found| {
                let (config, summary) = (&found.pod.record.config, status::summary(found));
                [
                    config.namespace.clone(),
                    config.name.clone(),
                    format!("{}/{}", summary.ready, summary.total),
                    summary.status,
                    summary.restarts.to_string(),
                    units::age_of(found.pod.record.created_at_ns),
                    status::qos(config).to_owned(),
                    id(found),
                ]
            });
            let header = ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "QOS", "POD ID"];
            output::print(&output::table(header, rows))?;
        }
    }
    Ok(0)
}
