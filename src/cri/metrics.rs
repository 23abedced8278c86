//! Metrics of pods and containers for the kubelet's /metrics/cadvisor: cAdvisor's names, and only those that there is a true number for.
//!
//! Every metric stands once, in [`DESCRIPTORS`]; a value without a line there cannot be made. A value is a whole number by the
//! interface: seconds are rounded down.

use super::Cri;
use crate::cgroup::census::Census;
use crate::cgroup::stats::Stats;
use crate::criapi::{ContainerMetrics, Metric, MetricDescriptor, MetricType, PodSandboxMetrics, UInt64Value};
use crate::engine::blocking;
use crate::engine::query::{ContainerStatus, PodStatus};
use crate::engine::stats::{self, RECEIVED, SENT};
use crate::error::Result;
use crate::sys::fs;
use std::path::Path;

/// What every metric is labelled with, as cAdvisor has it.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Name, kind, further labels, help.
type Descriptor = (&'static str, MetricType, &'static [&'static str], &'static str);

const COUNTER: MetricType = MetricType::Counter;
const GAUGE: MetricType = MetricType::Gauge;

const BLKIO: &[&str] = &["device", "major", "minor", "operation"];

const DESCRIPTORS: &[Descriptor] = &[
    ("container_cpu_usage_seconds_total", COUNTER, &["cpu"], "CPU time consumed, in seconds"),
    ("container_cpu_user_seconds_total", COUNTER, &[], "CPU time consumed in user mode, in seconds"),
    ("container_cpu_system_seconds_total", COUNTER, &[], "CPU time consumed in the kernel, in seconds"),
    ("container_cpu_cfs_periods_total", COUNTER, &[], "Periods of the CPU limit in which something ran"),
    ("container_cpu_cfs_throttled_periods_total", COUNTER, &[], "Periods in which the CPU limit was reached"),
    ("container_cpu_cfs_throttled_seconds_total", COUNTER, &[], "How long it was kept waiting then, in seconds"),
    ("container_memory_usage_bytes", GAUGE, &[], "Memory in use, with page cache"),
    ("container_memory_working_set_bytes", GAUGE, &[], "Memory in use without inactive page cache"),
    ("container_memory_max_usage_bytes", GAUGE, &[], "The most memory that was in use"),
    ("container_memory_rss", GAUGE, &[], "Anonymous memory in use, in bytes"),
    ("container_memory_cache", GAUGE, &[], "Page cache in use, in bytes"),
    ("container_memory_mapped_file", GAUGE, &[], "Page cache that is mapped, in bytes"),
    ("container_memory_failcnt", COUNTER, &[], "How often the memory limit was reached"),
    ("container_oom_events_total", COUNTER, &[], "Processes that were killed for memory"),
    ("container_memory_kernel_usage", GAUGE, &[], "Memory that the kernel uses for it, in bytes"),
    ("container_memory_swap", GAUGE, &[], "Swap in use, in bytes"),
    ("container_memory_failures_total", COUNTER, &["failure_type", "scope"], "Page faults"),
    ("container_processes", GAUGE, &[], "Processes"),
    ("container_threads", GAUGE, &[], "Processes and threads"),
    ("container_file_descriptors", GAUGE, &[], "Open file descriptors of all processes"),
    ("container_sockets", GAUGE, &[], "Sockets among them"),
    ("container_threads_max", GAUGE, &[], "The most processes and threads that it may have; 0 is no limit"),
    ("container_fs_usage_bytes", GAUGE, &["device"], "What it has written on its writable layer and that is there"),
    ("container_fs_limit_bytes", GAUGE, &["device"], "The size of the file system that it is on"),
    ("container_fs_inodes_total", GAUGE, &["device"], "The inodes of that file system"),
    ("container_fs_inodes_free", GAUGE, &["device"], "Those that are free"),
    ("container_blkio_device_usage_total", COUNTER, BLKIO, "Bytes read from and written to a device"),
    ("container_fs_reads_bytes_total", COUNTER, &["device"], "Bytes read from a device"),
    ("container_fs_writes_bytes_total", COUNTER, &["device"], "Bytes written to a device"),
    ("container_fs_reads_total", COUNTER, &["device"], "Reads from a device"),
    ("container_fs_writes_total", COUNTER, &["device"], "Writes to a device"),
    ("container_network_receive_bytes_total", COUNTER, &["interface"], "Bytes received"),
    ("container_network_receive_errors_total", COUNTER, &["interface"], "Errors when receiving"),
    ("container_network_receive_packets_total", COUNTER, &["interface"], "Packets received"),
    ("container_network_receive_packets_dropped_total", COUNTER, &["interface"], "Packets dropped when receiving"),
    ("container_network_transmit_bytes_total", COUNTER, &["interface"], "Bytes sent"),
    ("container_network_transmit_errors_total", COUNTER, &["interface"], "Errors when sending"),
    ("container_network_transmit_packets_total", COUNTER, &["interface"], "Packets sent"),
    ("container_network_transmit_packets_dropped_total", COUNTER, &["interface"], "Packets dropped when sending"),
    ("container_pressure_cpu_waiting_seconds_total", COUNTER, &[], "Time in which a task waited for a CPU"),
    ("container_pressure_cpu_stalled_seconds_total", COUNTER, &[], "Time in which all tasks waited for a CPU"),
    ("container_pressure_memory_waiting_seconds_total", COUNTER, &[], "Time in which a task waited for memory"),
    ("container_pressure_memory_stalled_seconds_total", COUNTER, &[], "Time in which all tasks waited for memory"),
    ("container_pressure_io_waiting_seconds_total", COUNTER, &[], "Time in which a task waited for a disk"),
    ("container_pressure_io_stalled_seconds_total", COUNTER, &[], "Time in which all tasks waited for a disk"),
    ("container_spec_cpu_period", GAUGE, &[], "Period of the CPU limit, in microseconds"),
    ("container_spec_cpu_quota", GAUGE, &[], "CPU limit, in microseconds of each period"),
    ("container_spec_cpu_shares", GAUGE, &[], "CPU share"),
    ("container_spec_memory_limit_bytes", GAUGE, &[], "Memory limit"),
    ("container_spec_memory_swap_limit_bytes", GAUGE, &[], "Limit of swap alone"),
    ("container_start_time_seconds", GAUGE, &[], "When it started, in seconds since the epoch"),
    ("container_last_seen", GAUGE, &[], "When this was read, in seconds since the epoch"),
];

pub(super) fn descriptors() -> Vec<MetricDescriptor> {
    let describe = |(name, _, more, help): &Descriptor| MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: LABELS.iter().chain(*more).map(|label| (*label).to_owned()).collect(),
    };
    DESCRIPTORS.iter().map(describe).collect()
}

/// The metrics of one object.
struct Sheet {
    labels: Vec<String>,
    metrics: Vec<Metric>,
}

impl Sheet {
    fn new(labels: [&str; LABELS.len()]) -> Sheet {
        Sheet { labels: labels.map(str::to_owned).to_vec(), metrics: Vec::new() }
    }

    /// A number that is not known makes no metric.
    fn add(&mut self, name: &str, more: &[&str], number: impl Into<Option<u64>>) {
        let Some(value) = number.into() else { return };
        let known = DESCRIPTORS.iter().find(|(known, _, labels, _)| *known == name && labels.len() == more.len());
        let Some((_, kind, _, _)) = known else { return };
        self.metrics.push(Metric {
            name: name.to_owned(),
            timestamp: 0,
            metric_type: *kind as i32,
            label_values: self.labels.iter().cloned().chain(more.iter().map(|label| (*label).to_owned())).collect(),
            value: Some(UInt64Value { value }),
        });
    }

    fn usage(&mut self, stats: &Stats) {
        let seconds = |us: u64| us / 1_000_000;
        if let Some(cpu) = &stats.cpu {
            self.add("container_cpu_usage_seconds_total", &["total"], seconds(cpu.usage_us));
            self.add("container_cpu_user_seconds_total", &[], seconds(cpu.user_us));
            self.add("container_cpu_system_seconds_total", &[], seconds(cpu.system_us));
            self.add("container_cpu_cfs_periods_total", &[], cpu.periods);
            self.add("container_cpu_cfs_throttled_periods_total", &[], cpu.throttled_periods);
            self.add("container_cpu_cfs_throttled_seconds_total", &[], cpu.throttled_us.map(seconds));
        }
        if let Some(memory) = &stats.memory {
            self.add("container_memory_usage_bytes", &[], memory.usage_bytes);
            self.add("container_memory_working_set_bytes", &[], memory.working_set_bytes);
            self.add("container_memory_max_usage_bytes", &[], memory.peak_bytes);
            self.add("container_memory_rss", &[], memory.anon_bytes);
            self.add("container_memory_cache", &[], memory.file_bytes);
            self.add("container_memory_mapped_file", &[], memory.mapped_bytes);
            self.add("container_memory_kernel_usage", &[], memory.kernel_bytes);
            self.add("container_memory_failures_total", &["pgfault", "container"], memory.faults);
            self.add("container_memory_failures_total", &["pgmajfault", "container"], memory.major_faults);
        }
        self.add("container_memory_swap", &[], stats.swap.as_ref().map(|s| s.usage_bytes));
        self.add("container_threads", &[], stats.pids.as_ref().map(|p| p.current));
        self.add("container_threads_max", &[], stats.pids.as_ref().map(|p| p.limit.unwrap_or(0)));
        for io in stats.io.iter().flatten() {
            let device = [io.device.as_str()];
            let (major, minor) = io.device.split_once(':').unwrap_or((&io.device, ""));
            for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
                self.add("container_blkio_device_usage_total", &[&io.device, major, minor, operation], bytes);
            }
            self.add("container_fs_reads_bytes_total", &device, io.read_bytes);
            self.add("container_fs_writes_bytes_total", &device, io.written_bytes);
            self.add("container_fs_reads_total", &device, io.reads);
            self.add("container_fs_writes_total", &device, io.writes);
        }
        let pressures = [("cpu", &stats.pressure.cpu), ("memory", &stats.pressure.memory), ("io", &stats.pressure.io)];
        for (what, pressure) in pressures {
            let Some(pressure) = pressure else { continue };
            let name = |how: &str| format!("container_pressure_{what}_{how}_seconds_total");
            self.add(&name("waiting"), &[], seconds(pressure.some.total_us));
            self.add(&name("stalled"), &[], pressure.full.as_ref().map(|full| seconds(full.total_us)));
        }
    }

    /// An interface with its columns of /proc/PID/net/dev.
    fn interface(&mut self, name: &str, columns: &[u64]) {
        for (way, at) in [("receive", RECEIVED), ("transmit", SENT)] {
            for (what, at) in ["bytes", "packets", "errors", "packets_dropped"].into_iter().zip(at) {
                self.add(&format!("container_network_{way}_{what}_total"), &[name], columns.get(at).copied());
            }
        }
    }

    /// Who is in a container. Without the pids controller its threads are counted too.
    fn census(&mut self, census: &Census, stats: &Stats) {
        self.add("container_processes", &[], census.processes);
        self.add("container_threads", &[], stats.pids.is_none().then_some(census.threads));
        self.add("container_file_descriptors", &[], census.descriptors);
        self.add("container_sockets", &[], census.sockets);
        self.add("container_oom_events_total", &[], census.oom_kills);
        self.add("container_memory_failcnt", &[], census.limit_hits);
    }

    /// The file system of writable layers.
    fn file_system(&mut self, used: u64, path: &Path) {
        self.add("container_fs_usage_bytes", &[""], used);
        if let Ok((bytes, inodes, free)) = fs::capacity(path) {
            self.add("container_fs_limit_bytes", &[""], bytes);
            self.add("container_fs_inodes_total", &[""], inodes);
            self.add("container_fs_inodes_free", &[""], free);
        }
    }

    fn times(&mut self, started_ns: Option<i64>, now_ns: i64) {
        let seconds = |ns: i64| u64::try_from(ns / 1_000_000_000).ok();
        self.add("container_start_time_seconds", &[], started_ns.and_then(seconds));
        self.add("container_last_seen", &[], seconds(now_ns));
    }
}

/// A container's, without its writable layer.
fn container(pod: &PodStatus, container: &ContainerStatus, stats: &Stats, now_ns: i64) -> Sheet {
    let config = &container.record.config;
    let owner = &pod.record.config;
    let id = container.record.id.as_str();
    let mut sheet = Sheet::new([&config.name, &container.cgroup, &config.image, id, &owner.namespace, &owner.name]);
    sheet.usage(stats);
    sheet.times(container.process.as_ref().map(|p| p.started_at_ns), now_ns);
    let set = |number: i64| u64::try_from(number).ok().filter(|n| *n != 0);
    let resources = &container.resources;
    sheet.add("container_spec_cpu_period", &[], Some(resources.cpu_period_us).filter(|n| *n != 0));
    sheet.add("container_spec_cpu_quota", &[], set(resources.cpu_quota_us));
    sheet.add("container_spec_cpu_shares", &[], Some(resources.cpu_shares).filter(|n| *n != 0));
    let memory = set(resources.memory_limit_bytes);
    sheet.add("container_spec_memory_limit_bytes", &[], memory);
    // As the kernel has it: a request names it together with the memory, or, as a kubelet does, by its file.
    sheet.add("container_spec_memory_swap_limit_bytes", &[], stats.swap.as_ref().and_then(|swap| swap.limit_bytes));
    sheet
}

impl Cri {
    pub(super) async fn pod_metrics(&self) -> Result<Vec<PodSandboxMetrics>> {
        let cri = self.clone();
        blocking(move || Ok(cri.readings().iter().map(|(pod, stats, all)| cri.metrics_of(pod, stats, all)).collect()))
            .await
    }

    fn metrics_of(&self, pod: &PodStatus, stats: &Stats, all: &[(ContainerStatus, Stats)]) -> PodSandboxMetrics {
        let (now_ns, config) = (self.engine.now_ns(), &pod.record.config);
        let id = pod.record.id.as_str();
        let mut sheet = Sheet::new(["", &pod.record.cgroup, "", id, &config.namespace, &config.name]);
        sheet.usage(stats);
        sheet.times(pod.sandbox.as_ref().map(|s| s.started_at_ns), now_ns);
        let net_dev = stats::net_dev(pod).unwrap_or_default();
        stats::counters(&net_dev).iter().for_each(|(name, columns)| sheet.interface(name, columns));
        let of = |(status, stats): &(ContainerStatus, Stats)| {
            let mut sheet = container(pod, status, stats, now_ns);
            let used = self.engine.layer_of(status);
            sheet.file_system(used.bytes, &self.engine.paths().root);
            sheet.census(&self.engine.census(&status.cgroup), stats);
            ContainerMetrics { container_id: status.record.id.to_string(), metrics: sheet.metrics }
        };
        PodSandboxMetrics {
            pod_sandbox_id: id.to_owned(),
            metrics: sheet.metrics,
            container_metrics: all.iter().map(of).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::stats::{Cpu, Io, Memory, Pids, Pressure, Stall, Swap};
    use std::collections::BTreeSet;

    #[test]
    fn every_value_is_of_a_described_metric_with_all_its_labels() {
        let pressure = || Some(Pressure { some: Stall::default(), full: Some(Stall::default()) });
        let stats = Stats {
            cpu: Some(Cpu {
                usage_us: 2_500_000,
                periods: Some(1),
                throttled_periods: Some(1),
                throttled_us: Some(1),
                ..Cpu::default()
            }),
            memory: Some(Memory {
                peak_bytes: Some(1),
                working_set_bytes: Some(1),
                anon_bytes: Some(1),
                file_bytes: Some(1),
                kernel_bytes: Some(1),
                faults: Some(1),
                major_faults: Some(1),
                ..Memory::default()
            }),
            swap: Some(Swap::default()),
            pids: Some(Pids { current: 1, limit: Some(2) }),
            io: Some(vec![Io::default()]),
            pressure: crate::cgroup::stats::Pressures { cpu: pressure(), memory: pressure(), io: pressure() },
        };
        let mut sheet = Sheet::new(["c", "/id", "i", "n", "ns", "p"]);
        sheet.usage(&stats);
        sheet.interface("eth0", &[1; 16]);
        sheet.census(&Census { oom_kills: Some(1), limit_hits: Some(1), ..Census::default() }, &stats);
        sheet.file_system(1, Path::new("/"));
        sheet.times(Some(1), 1);
        let described = descriptors();
        for metric in &sheet.metrics {
            let descriptor = described.iter().find(|d| d.name == metric.name).expect("described");
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
        let names: BTreeSet<&str> = sheet.metrics.iter().map(|m| m.name.as_str()).collect();
        assert!(names.len() >= 44, "{names:?}");
        let usage = sheet.metrics.iter().find(|m| m.name == "container_cpu_usage_seconds_total").expect("there");
        assert_eq!(usage.value, Some(UInt64Value { value: 2 }));
        let unknown: BTreeSet<&str> = described.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(unknown.len(), DESCRIPTORS.len(), "a name stands once");
    }
}
