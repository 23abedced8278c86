//! `podwright stats`: what pods and containers use, from their cgroups, and what pods received and sent.

use super::find::{self, Found, Target};
use super::output::{self, Format};
use super::{Session, units};
use crate::cgroup::stats::{Depth, Pressure, Stats};
use crate::engine::pod::State;
use crate::engine::query::ContainerStatus;
use crate::engine::stats::{RECEIVED, SENT, counters, net_dev};
use crate::error::{Kind, Result};
use serde::Serialize;
use serde_json::Value;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  podwright stats                           all pods and their containers
  podwright stats --interval 5s web         cpu as the mean of five seconds
  podwright stats web/nginx -o json         one reading with all numbers";

/// Prints what pods and containers use: CPU, throttling, memory, processes, I/O and pressure
///
/// CPU and throttling are measured over --interval: 1000m is one cpu. MEMORY is the working set, which is what eviction goes by.
/// PRESSURE is the share of the last 10 seconds in which something waited for cpu, memory and I/O. A dash is what this host's
/// cgroup v2 does not count.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatsArgs {
    /// POD, POD/CONTAINER, or the first digits of an id; everything if none is given
    #[arg(value_name = "POD")]
    targets: Vec<String>,
    /// How long to measure cpu
    #[arg(long, value_name = "DURATION", default_value = "500ms")]
    interval: String,
}

/// `-o json`: `{"stats": [...]}`.
#[derive(Serialize)]
struct Document {
    stats: Vec<Entry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    pod_id: String,
    pod_name: String,
    pod_namespace: String,
    /// `null`: the whole pod.
    container_id: Option<String>,
    container_name: Option<String>,
    /// One reading; units last in names. A number that this host does not count is `null`.
    stats: Value,
    /// `null` for a container, whose network is its pod's, and on the host's network.
    network: Option<Traffic>,
}

/// Of all interfaces of a pod but its loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Traffic {
    received_bytes: u64,
    sent_bytes: u64,
}

impl Traffic {
    /// From /proc/PID/net/dev.
    fn of(text: &str) -> Traffic {
        let all = counters(text);
        let sum = |column: usize| all.iter().filter_map(|(_, columns)| columns.get(column)).sum();
        Traffic { received_bytes: sum(RECEIVED[0]), sent_bytes: sum(SENT[0]) }
    }
}

/// A pod, or a container of it.
struct Subject {
    found: Found,
    container: Option<ContainerStatus>,
}

impl Subject {
    fn read(&self) -> Result<Option<Stats>> {
        let engine = &self.found.engine;
        let read = match &self.container {
            None => engine.pod_stats(&self.found.pod, Depth::Full),
            Some(container) => {
                engine.container_status(&container.record.id).and_then(|now| engine.container_stats(&now, Depth::Full))
            }
        };
        match read {
            // It has ended meanwhile.
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::FailedPrecondition) => Ok(None),
            read => read.map(Some),
        }
    }

    fn traffic(&self) -> Option<Traffic> {
        let pod = self.container.is_none().then_some(&self.found.pod)?;
        net_dev(pod).map(|text| Traffic::of(&text))
    }

    fn name(&self) -> String {
        match &self.container {
            None => self.found.name(),
            Some(container) => format!("{}/{}", self.found.name(), container.record.config.name),
        }
    }
}

pub(super) fn run(args: &StatsArgs, session: &Session) -> Result<u8> {
    let interval = units::duration("--interval", &args.interval)?;
    super::require_root("stats")?;
    super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let subjects = subjects(&all, &args.targets)?;
        let mut first = Vec::new();
        for subject in &subjects {
            if let Some(stats) = subject.read()? {
                first.push((subject, stats, Instant::now()));
            }
        }
        if session.format == Format::Json {
            return output::print_json(&Document {
                stats: first.iter().map(|(s, stats, _)| entry(s, stats)).collect(),
            });
        }
        if first.is_empty() {
            output::note("nothing runs");
            return Ok(());
        }
        tokio::time::sleep(interval).await; // the rate is what is asked for
        let mut rows = Vec::new();
        for (subject, before, at) in first {
            if let Some(now) = subject.read()? {
                rows.push(row(subject.name(), &before, &now, subject.traffic(), at.elapsed()));
            }
        }
        let header = [
            "NAME",
            "CPU",
            "THROTTLED",
            "MEMORY",
            "LIMIT",
            "PEAK",
            "PIDS",
            "READ",
            "WRITTEN",
            "RECEIVED",
            "SENT",
            "PRESSURE",
        ];
        output::print(&output::table(header, rows))
    })?;
    Ok(0)
}

/// Each pod and its running containers; or what `targets` mean.
fn subjects(all: &[Found], targets: &[String]) -> Result<Vec<Subject>> {
    let pod = |found: &Found| {
        let running = found.current().into_iter().filter(|c| c.state == State::Running);
        let containers = running.map(|c| Subject { found: found.clone(), container: Some(c.clone()) });
        [Subject { found: found.clone(), container: None }].into_iter().chain(containers).collect::<Vec<_>>()
    };
    if targets.is_empty() {
        return Ok(all.iter().flat_map(pod).collect());
    }
    let mut subjects = Vec::new();
    for target in find::targets(all, targets)? {
        match target {
            Target::Pod(found) => subjects.extend(pod(&found)),
            Target::Container(found, container) => subjects.push(Subject { found, container: Some(*container) }),
        }
    }
    Ok(subjects)
}

fn entry(subject: &Subject, stats: &Stats) -> Entry {
    let record = &subject.found.pod.record;
    Entry {
        pod_id: record.id.to_string(),
        pod_name: record.config.name.clone(),
        pod_namespace: record.config.namespace.clone(),
        container_id: subject.container.as_ref().map(|c| c.record.id.to_string()),
        container_name: subject.container.as_ref().map(|c| c.record.config.name.clone()),
        stats: output::camel_case(serde_json::to_value(stats).unwrap_or_default()),
        network: subject.traffic(),
    }
}

/// What is counted, else a dash.
fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

fn row(name: String, before: &Stats, now: &Stats, traffic: Option<Traffic>, passed: Duration) -> [String; 12] {
    let passed_us = passed.as_micros().max(1);
    let cpu = before.cpu.as_ref().zip(now.cpu.as_ref());
    let millis = cpu.map(|(a, b)| u128::from(b.usage_us.saturating_sub(a.usage_us)) * 1000 / passed_us);
    // Of the periods in between, those in which the quota ran out.
    let throttled = cpu.and_then(|(a, b)| {
        let periods = b.periods?.saturating_sub(a.periods?);
        let throttled = b.throttled_periods?.saturating_sub(a.throttled_periods?);
        Some((throttled * 100).checked_div(periods).unwrap_or(0))
    });
    let memory = now.memory.as_ref();
    let io = |bytes: fn(&crate::cgroup::stats::Io) -> u64| {
        or_dash(now.io.as_ref(), |io| units::size(io.iter().map(bytes).sum()))
    };
    [
        name,
        or_dash(millis, |m| format!("{m}m")),
        or_dash(throttled, |t| format!("{t}%")),
        or_dash(memory.map(|m| m.working_set_bytes.unwrap_or(m.usage_bytes)), units::size),
        or_dash(memory, |m| m.limit_bytes.map_or_else(|| "none".to_owned(), units::size)),
        or_dash(memory.and_then(|m| m.peak_bytes), units::size),
        or_dash(now.pids.as_ref(), |p| match p.limit {
            Some(limit) => format!("{}/{limit}", p.current),
            None => p.current.to_string(),
        }),
        io(|io| io.read_bytes),
        io(|io| io.written_bytes),
        or_dash(traffic, |t| units::size(t.received_bytes)),
        or_dash(traffic, |t| units::size(t.sent_bytes)),
        pressure([&now.pressure.cpu, &now.pressure.memory, &now.pressure.io]),
    ]
}

/// `cpu 1.2% memory 0% io 0%`.
fn pressure(all: [&Option<Pressure>; 3]) -> String {
    let share = |p: &Pressure| {
        let e2 = p.some.avg10_e2;
        if e2 == 0 { "0%".to_owned() } else { format!("{}.{:02}%", e2 / 100, e2 % 100) }
    };
    let named =
        ["cpu", "memory", "io"].iter().zip(all).filter_map(|(n, p)| p.as_ref().map(|p| format!("{n} {}", share(p))));
    let text = named.collect::<Vec<_>>().join(" ");
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::stats::{Cpu, Memory, Pids};

    #[test]
    fn what_a_pod_received_and_sent_is_that_of_all_its_interfaces_but_lo() {
        let line =
            |name: &str, received: u64, sent: u64| format!("{name}: {received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0\n");
        let text = [line("lo", 9, 9), line("eth0", 1, 10), line("net1", 2, 20)].concat();
        assert_eq!(Traffic::of(&text), Traffic { received_bytes: 3, sent_bytes: 30 });
    }

    #[test]
    fn rates_are_of_the_time_that_passed() {
        let cpu = |usage_us, periods, throttled| {
            let (periods, throttled_periods) = (Some(periods), Some(throttled));
            Stats { cpu: Some(Cpu { usage_us, periods, throttled_periods, ..Cpu::default() }), ..Stats::default() }
        };
        let row = row("x".into(), &cpu(1_000_000, 10, 1), &cpu(1_250_000, 20, 6), None, Duration::from_millis(500));
        assert_eq!(row[..3], ["x".to_owned(), "500m".to_owned(), "50%".to_owned()]);
    }

    #[test]
    fn what_is_not_counted_is_a_dash_and_no_limit_is_none() {
        let empty = row("x".into(), &Stats::default(), &Stats::default(), None, Duration::from_secs(1));
        assert!(empty[1..].iter().all(|cell| cell == "-"), "{empty:?}");
        let memory = Memory { usage_bytes: 2 << 20, working_set_bytes: Some(1 << 20), ..Memory::default() };
        let pids = Pids { current: 3, limit: Some(10) };
        let some = Stats { memory: Some(memory), pids: Some(pids), ..Stats::default() };
        let row = row("x".into(), &some, &some, None, Duration::from_secs(1));
        assert_eq!(row[3..7], ["1Mi", "none", "-", "3/10"].map(str::to_owned));
    }
}
