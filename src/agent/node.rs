//! What of this host a plan depends on, gathered: `run`, `check` and `verify` see the same.

use super::convert::NodeFacts;
use super::resources::NodeResources;
use crate::cgroup::compare;
use crate::engine::host_resolv_conf;
use crate::error::{Context, Result};
use crate::id::PodId;
use crate::state::paths::Paths;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;

/// The facts for one pod of a manifest. `salt` makes derived uids differ; `network`: a pod that is not on the host's gets addresses, when it
/// is made. What [`NodeFacts::runtimes`] there are is the caller's to know.
///
/// # Errors
/// `Internal` when /proc cannot be read.
pub fn facts(paths: &Paths, pod: &PodId, salt: &str, host_network: bool, network: bool) -> Result<NodeFacts> {
    let host_ips: Vec<String> = host_ips().iter().map(IpAddr::to_string).collect();
    Ok(NodeFacts {
        node_name: name()?,
        uid_salt: salt.to_owned(),
        pod_ips: match host_network {
            true => Some(host_ips.clone()),
            false => (!network).then(Vec::new),
        },
        host_ips,
        resources: resources()?,
        resolv_conf: host_resolv_conf(host_network),
        masked_paths: thermal_paths(),
        log_root: Some(paths.logs(pod)),
        pod_dir: paths.pod_data(pod),
        secret_dir: paths.pod(pod).join("secrets"),
        seccomp_dir: paths.root.join("seccomp"),
        runtimes: Vec::new(),
    })
}

/// The host's name.
///
/// # Errors
/// `Internal` when /proc cannot be read.
pub fn name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context(|| "read /proc/sys/kernel/hostname")?;
    Ok(name.trim().to_owned())
}

/// The address that each family's default route would use. Connecting a datagram socket asks the routing table and sends nothing.
fn host_ips() -> Vec<IpAddr> {
    let towards = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")]; // documentation, RFC 5737 and 3849
    let address = |(from, to): (&str, &str)| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        socket.local_addr().ok().map(|a| a.ip())
    };
    towards.into_iter().filter_map(address).collect()
}

fn resources() -> Result<NodeResources> {
    // What the node has, not what this process may use: a pod's share of it must not depend on who starts it.
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let online = compare::set(&online).map_or(0, |set| set.len());
    let cpus = if online > 0 { online } else { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) };
    let meminfo = std::fs::read_to_string("/proc/meminfo").context(|| "read /proc/meminfo")?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    let kib: i64 = total.and_then(|kib| kib.trim().parse().ok()).unwrap_or(0);
    Ok(NodeResources {
        cpu_millis: i64::try_from(cpus).unwrap_or(i64::MAX / 1000) * 1000,
        memory_bytes: kib * 1024,
        hugepage_bytes: hugepage_bytes(),
    })
}

/// The sizes that the host has pages of. Where there are none there is nothing to keep from a pod, and every container is spared
/// four files and a controller.
fn hugepage_bytes() -> Vec<u64> {
    let Ok(sizes) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let size = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok();
    let filled = |dir: &Path| {
        let count = |file: &str| std::fs::read_to_string(dir.join(file)).is_ok_and(|text| text.trim() != "0");
        count("nr_hugepages") || count("nr_overcommit_hugepages")
    };
    let with_pages = sizes.flatten().filter(|e| filled(&e.path()));
    let mut all: Vec<u64> = with_pages.filter_map(|e| size(&e.file_name().to_string_lossy())).collect();
    all.sort_unstable();
    all.into_iter().map(|kib| kib * 1024).collect()
}

fn thermal_paths() -> Vec<String> {
    let Ok(cpus) = std::fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let paths = cpus.flatten().map(|cpu| cpu.path().join("thermal_throttle")).filter(|path| path.exists());
    let mut all: Vec<String> = paths.map(|p| p.to_string_lossy().into_owned()).collect();
    all.sort();
    all
}
