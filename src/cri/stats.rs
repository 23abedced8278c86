//! Statistics of containers and pods. A number that the host does not have is absent, never zero.

use super::{Cri, answer, convert};
use crate::cgroup::stats::{Depth, Memory, Pressure, Stall, Stats};
use crate::criapi::{
    ContainerStats, ContainerStatsFilter, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxStats, PodSandboxStatsFilter,
    ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};
use crate::engine::blocking;
use crate::engine::pod::State;
use crate::engine::query::{ContainerStatus, PodStatus};
use crate::engine::stats::{RECEIVED, SENT, counters, net_dev};
use crate::error::{Error, Kind, Result};

/// The interface that clients take for the pod's own.
const DEFAULT_INTERFACE: &str = "eth0";

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn maybe(number: Option<u64>) -> Option<UInt64Value> {
    number.map(|value| UInt64Value { value })
}

/// Of what the kernel gives in microseconds and hundredths of a percent.
fn psi(pressure: Option<&Pressure>) -> Option<PsiStats> {
    #[allow(clippy::cast_precision_loss, reason = "hundredths of a percent are below 2^53")]
    let percent = |e2: u64| e2 as f64 / 100.0;
    let data = |stall: &Stall| PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: percent(stall.avg10_e2),
        avg60: percent(stall.avg60_e2),
        avg300: percent(stall.avg300_e2),
    };
    pressure.map(|p| PsiStats { full: p.full.as_ref().map(data), some: Some(data(&p.some)) })
}

fn cpu(stats: &Stats, timestamp: i64) -> Option<CpuUsage> {
    let cpu = stats.cpu.as_ref()?;
    Some(CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(cpu.usage_us.saturating_mul(1000)),
        usage_nano_cores: None, // the client makes it of two readings, over the time that it wants
        psi: psi(stats.pressure.cpu.as_ref()),
    })
}

fn memory(stats: &Stats, timestamp: i64) -> Option<MemoryUsage> {
    let memory = stats.memory.as_ref()?;
    let left = |memory: &Memory| Some(memory.limit_bytes?.saturating_sub(memory.working_set_bytes?));
    Some(MemoryUsage {
        timestamp,
        working_set_bytes: maybe(memory.working_set_bytes),
        available_bytes: maybe(left(memory)),
        usage_bytes: value(memory.usage_bytes),
        rss_bytes: maybe(memory.anon_bytes),
        page_faults: maybe(memory.faults),
        major_page_faults: maybe(memory.major_faults),
        psi: psi(stats.pressure.memory.as_ref()),
    })
}

fn io(stats: &Stats, timestamp: i64) -> Option<IoUsage> {
    stats.pressure.io.as_ref().map(|pressure| IoUsage { timestamp, psi: psi(Some(pressure)) })
}

fn swap(stats: &Stats, timestamp: i64) -> Option<SwapUsage> {
    let swap = stats.swap.as_ref()?;
    Some(SwapUsage {
        timestamp,
        swap_available_bytes: maybe(swap.limit_bytes.map(|limit| limit.saturating_sub(swap.usage_bytes))),
        swap_usage_bytes: value(swap.usage_bytes),
    })
}

fn interfaces(text: &str) -> Vec<NetworkInterfaceUsage> {
    let interface = |(name, numbers): (&str, Vec<u64>)| {
        let at = |index: usize| numbers.get(index).copied().map(|value| UInt64Value { value });
        NetworkInterfaceUsage {
            name: name.to_owned(),
            rx_bytes: at(RECEIVED[0]),
            rx_errors: at(RECEIVED[2]),
            tx_bytes: at(SENT[0]),
            tx_errors: at(SENT[2]),
        }
    };
    counters(text).into_iter().map(interface).collect()
}

/// A pod, and its containers that run, each with what it uses.
pub(super) type Reading = (PodStatus, Stats, Vec<(ContainerStatus, Stats)>);

impl Cri {
    pub(super) async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        let status = self.engine.container_status(&self.container_id(id)?)?;
        let cri = self.clone();
        blocking(move || cri.stats_of(&status)).await
    }

    /// Of those that run.
    pub(super) async fn list_container_stats(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Result<Vec<ContainerStats>> {
        let filter = filter.unwrap_or_default();
        let wanted = |c: &ContainerStatus| {
            c.state == State::Running
                && c.record.id.as_str().starts_with(&filter.id)
                && c.record.pod.as_str().starts_with(&filter.pod_sandbox_id)
                && convert::selects(&filter.label_selector, &c.record.config.labels)
        };
        let running: Vec<_> = self.engine.list_containers().into_iter().filter(wanted).collect();
        let cri = self.clone();
        blocking(move || Ok(running.iter().filter_map(|c| cri.stats_of(c).ok()).collect())).await
    }

    /// One reading. Blocks.
    ///
    /// # Errors
    /// As [`crate::engine::Engine::container_stats`].
    fn stats_of(&self, container: &ContainerStatus) -> Result<ContainerStats> {
        let stats = self.engine.container_stats(container, Depth::Container)?;
        let timestamp = self.engine.now_ns();
        let used = self.engine.layer_of(container);
        let mountpoint = self.engine.paths().root.display().to_string();
        Ok(ContainerStats {
            attributes: Some(answer::container_attributes(container)),
            cpu: cpu(&stats, timestamp),
            memory: memory(&stats, timestamp),
            writable_layer: Some(FilesystemUsage {
                timestamp,
                fs_id: Some(FilesystemIdentifier { mountpoint }),
                used_bytes: value(used.bytes),
                inodes_used: value(used.inodes),
            }),
            swap: swap(&stats, timestamp),
            io: io(&stats, timestamp),
        })
    }

    pub(super) async fn pod_stats(&self, id: &str) -> Result<PodSandboxStats> {
        let status = self.engine.pod_status(&self.pod_id(id)?)?;
        if !status.ready {
            return Err(Error::precondition(format!("pod {} is not ready", status.record.id.short())));
        }
        let cri = self.clone();
        blocking(move || cri.pod_stats_of(&status)).await
    }

    /// Of those that are ready.
    pub(super) async fn list_pod_stats(&self, filter: Option<PodSandboxStatsFilter>) -> Result<Vec<PodSandboxStats>> {
        let filter = filter.unwrap_or_default();
        let wanted = |p: &PodStatus| {
            p.ready
                && p.record.id.as_str().starts_with(&filter.id)
                && convert::selects(&filter.label_selector, &p.record.config.labels)
        };
        let ready: Vec<_> = self.engine.list_pods().into_iter().filter(wanted).collect();
        let cri = self.clone();
        blocking(move || Ok(ready.iter().filter_map(|p| cri.pod_stats_of(p).ok()).collect())).await
    }

    /// One reading. Blocks.
    fn pod_stats_of(&self, pod: &PodStatus) -> Result<PodSandboxStats> {
        let stats = self.engine.pod_stats(pod, Depth::Pod)?;
        let timestamp = self.engine.now_ns();
        let containers = self.engine.containers_of(&pod.record.id);
        let running = containers.iter().filter(|c| c.state == State::Running);
        let linux = LinuxPodSandboxStats {
            cpu: cpu(&stats, timestamp),
            memory: memory(&stats, timestamp),
            network: network(pod, timestamp),
            process: stats.pids.as_ref().map(|p| ProcessUsage { timestamp, process_count: value(p.current) }),
            // One that ends at this moment has no numbers any more.
            containers: running.filter_map(|c| self.stats_of(c).ok()).collect(),
            io: io(&stats, timestamp),
        };
        Ok(PodSandboxStats { attributes: Some(answer::pod_attributes(pod)), linux: Some(linux), windows: None })
    }

    /// Every ready pod with its reading and those of its containers, for metrics. Blocks.
    pub(super) fn readings(&self) -> Vec<Reading> {
        let read = |pod: PodStatus| {
            let stats = self.engine.pod_stats(&pod, Depth::Full).ok()?;
            let containers = self.engine.containers_of(&pod.record.id).into_iter();
            let read = |c: ContainerStatus| match self.engine.container_stats(&c, Depth::Full) {
                Err(e) if e.kind() == Kind::FailedPrecondition => None, // it does not run
                other => Some((c, other.ok()?)),
            };
            let containers = containers.filter_map(read).collect();
            Some((pod, stats, containers))
        };
        self.engine.list_pods().into_iter().filter(|p| p.ready).filter_map(read).collect()
    }
}

fn network(pod: &PodStatus, timestamp: i64) -> Option<NetworkUsage> {
    let mut interfaces = interfaces(&net_dev(pod)?);
    let default = interfaces.iter().position(|i| i.name == DEFAULT_INTERFACE);
    let default_interface = default.map(|at| interfaces.remove(at));
    Some(NetworkUsage { timestamp, default_interface, interfaces })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    4096       9    1    0    0     0          0         0     2048       7    2    0    0     0       0          0
";

    #[test]
    fn an_interface_has_the_counters_of_its_line_and_the_loopback_is_none() {
        let all = interfaces(DEV);
        assert_eq!(all.len(), 1);
        let eth0 = &all[0];
        let number = |n: &Option<UInt64Value>| n.as_ref().map(|v| v.value);
        assert_eq!(eth0.name, "eth0");
        assert_eq!((number(&eth0.rx_bytes), number(&eth0.rx_errors)), (Some(4096), Some(1)));
        assert_eq!((number(&eth0.tx_bytes), number(&eth0.tx_errors)), (Some(2048), Some(2)));
    }

    #[test]
    fn what_is_left_of_memory_is_known_only_with_a_limit() {
        let stats = |limit_bytes| Stats {
            memory: Some(Memory { usage_bytes: 70, working_set_bytes: Some(60), limit_bytes, ..Memory::default() }),
            ..Stats::default()
        };
        let left = |limit| memory(&stats(limit), 1).and_then(|m| m.available_bytes).map(|v| v.value);
        assert_eq!((left(Some(100)), left(Some(50)), left(None)), (Some(40), Some(0), None));
        assert_eq!(memory(&Stats::default(), 1), None);
    }

    #[test]
    fn pressure_is_told_in_percent_and_nanoseconds() {
        let stall = Stall { avg10_e2: 1234, avg60_e2: 0, avg300_e2: 0, total_us: 5 };
        let psi = psi(Some(&Pressure { some: stall, full: None })).and_then(|p| p.some).expect("known");
        assert!((psi.avg10 - 12.34).abs() < 1e-9 && psi.total == 5000);
    }
}
