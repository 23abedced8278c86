//! What the daemon tells of usage and limits on a host whose cgroup v2 has its controllers, each number beside a second source: the
//! container's own times, /proc, the kernel's files. Run with hack/vm.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{Machine, PATIENCE, until};
use fixtures::pod::cgroup_root;
use podwright::criapi::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tonic::Code;

const MIB: u64 = 1 << 20;

/// A node on which nothing unenforced is allowed.
async fn strict() -> Node {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    Node::of(machine, |_| {}).await
}

fn limited(name: &str, text: &str, resources: LinuxContainerResources) -> ContainerConfig {
    let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
    ContainerConfig { linux: Some(linux), ..script(name, text) }
}

fn memory(bytes: u64) -> LinuxContainerResources {
    LinuxContainerResources { memory_limit_in_bytes: bytes.cast_signed(), ..Default::default() }
}

async fn started(node: &mut Node, pod: &str, config: ContainerConfig, sandbox: &PodSandboxConfig) -> String {
    let id = node.create(pod, config, sandbox.clone()).await.expect("create");
    node.start_container(&id).await.expect("start");
    id
}

/// A container's cgroup as a directory.
async fn cgroup_of(node: &mut Node, container: &str) -> PathBuf {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let answer = node.runtime.container_status(request).await.expect("status").into_inner();
    let info: serde_json::Value = serde_json::from_str(answer.info.get("info").expect("verbose")).expect("JSON");
    cgroup_root().join(info["cgroup"].as_str().expect("a path").trim_start_matches('/'))
}

async fn stats_of(node: &mut Node, container: &str) -> ContainerStats {
    let request = ContainerStatsRequest { container_id: container.to_owned() };
    node.runtime.container_stats(request).await.expect("stats").into_inner().stats.expect("there")
}

async fn pod_stats(node: &mut Node, pod: &str) -> LinuxPodSandboxStats {
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.to_owned() };
    let stats = node.runtime.pod_sandbox_stats(request).await.expect("stats").into_inner().stats;
    stats.and_then(|stats| stats.linux).expect("there")
}

fn value(number: Option<UInt64Value>) -> u64 {
    number.expect("known").value
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display())).trim().to_owned()
}

/// The number after `key` in a file of `key number` lines.
fn field(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no {key} in {text}"))
}

#[track_caller]
fn within_5_percent(what: &str, told: u64, seen: u64) {
    assert!(told.abs_diff(seen) <= seen / 20, "{what}: {told} is told, and {seen} is seen");
}

/// Of ash's `times`: "0m1.23s 0m0.45s", its own and then its children's; in nanoseconds.
fn own_times(text: &str) -> u64 {
    let hundredths = |time: &str| -> u64 {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m').expect("minutes");
        let (whole, rest) = seconds.split_once('.').expect("seconds");
        let number = |text: &str| text.parse::<u64>().expect("a number");
        (number(minutes) * 60 + number(whole)) * 1_000_000_000 + number(&format!("{rest:0<9}")[..9])
    };
    text.lines().next().expect("its own").split_whitespace().map(hundredths).sum()
}

#[tokio::test]
async fn cpu_and_memory_are_what_the_containers_themselves_have_used() {
    let mut node = strict().await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    // The first counts for 1.5 s of its CPU (utime and stime of proc_pid_stat(5), in hundredths) and says its times; the other touches
    // 50 MiB, and writes them to where nobody reads.
    let count = "u=0 s=0; while [ $((u+s)) -lt 150 ]; do i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; \
                 read -r _ _ _ _ _ _ _ _ _ _ _ _ _ u s _ < /proc/self/stat; done; times; exec sleep 1000";
    let counts = started(&mut node, &pod, script("counts", count), &sandbox).await;
    let touch = limited("touches", "dd if=/dev/zero bs=50M count=1 | sleep 1000", memory(100 * MIB));
    let touches = started(&mut node, &pod, touch, &sandbox).await;

    let log = PathBuf::from(node.status(&counts).await.expect("status").log_path);
    until(PATIENCE, || {
        let said = log_text(&log, "stdout").lines().count();
        if said == 2 { Ok(()) } else { Err("it counts".to_owned()) }
    });
    let cpu = stats_of(&mut node, &counts).await.cpu.expect("cpu");
    within_5_percent("cpu", value(cpu.usage_core_nano_seconds), own_times(&log_text(&log, "stdout")));

    let cgroup = cgroup_of(&mut node, &touches).await;
    let rss_kib = || {
        let pids = read(&cgroup.join("cgroup.procs"));
        let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).map_or(0, |s| field(&s, "RssAnon:"));
        pids.lines().map(of).sum::<u64>()
    };
    until(PATIENCE, || if rss_kib() >= 50 * 1024 { Ok(()) } else { Err("it touches".to_owned()) });
    let used = stats_of(&mut node, &touches).await.memory.expect("memory");
    within_5_percent("working set", value(used.working_set_bytes), 50 * MIB);
    within_5_percent("rss", value(used.rss_bytes), rss_kib() * 1024);
    let stat = read(&cgroup.join("memory.stat"));
    let inactive = field(&stat, "inactive_file ");
    assert_eq!(value(used.usage_bytes).abs_diff(value(used.working_set_bytes)), inactive, "usage less inactive file");
    assert_eq!(value(used.available_bytes), 100 * MIB - value(used.working_set_bytes), "what the limit leaves");
    let faults = field(&stat, "pgfault ");
    assert!((1..=faults).contains(&value(used.page_faults)), "{:?} of {faults}", used.page_faults);

    let all = pod_stats(&mut node, &pod).await;
    assert_eq!(all.containers.len(), 2);
    let pod_cgroup = cgroup.parent().expect("the pod's");
    let processes = value(all.process.expect("known").process_count);
    assert_eq!(processes.to_string(), read(&pod_cgroup.join("pids.current")));
    assert_eq!(processes, 5, "pause, a counter that is a sleep now, a shell with dd and another sleep");
    let cpu = value(all.cpu.expect("cpu").usage_core_nano_seconds);
    within_5_percent("the pod's cpu", cpu, field(&read(&pod_cgroup.join("cpu.stat")), "usage_usec ") * 1000);
    assert!(value(all.memory.expect("memory").usage_bytes) >= value(used.usage_bytes));
    // A pod's network is its loopback in this version, which is no interface to count.
    let network = all.network.expect("a network of its own");
    assert_eq!((network.default_interface, network.interfaces), (None, vec![]));
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn pressure_and_throttling_are_told_of_a_container_that_wants_more_than_its_limit() {
    let mut node = strict().await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let tenth = LinuxContainerResources { cpu_quota: 10_000, cpu_period: 100_000, ..Default::default() };
    let id = started(&mut node, &pod, limited("c", "while :; do :; done", tenth), &sandbox).await;
    let cgroup = cgroup_of(&mut node, &id).await;
    let stalled_ns = || {
        let text = read(&cgroup.join("cpu.pressure"));
        let some = text.lines().find_map(|line| line.strip_prefix("some ")).expect("some");
        some.split("total=").nth(1).expect("a total").parse::<u64>().expect("a number") * 1000
    };
    let mut last = 0;
    for _ in 0..2 {
        let from = last + 200_000_000;
        until(PATIENCE, || if stalled_ns() > from { Ok(()) } else { Err("it is not throttled".to_owned()) });
        let least = stalled_ns();
        let psi = stats_of(&mut node, &id).await.cpu.and_then(|cpu| cpu.psi).and_then(|psi| psi.some).expect("known");
        let most = stalled_ns();
        assert!((least..=most).contains(&psi.total), "{least} <= {} <= {most}", psi.total);
        assert!(psi.total > last, "it moves");
        last = psi.total;
    }
    let throttled = field(&read(&cgroup.join("cpu.stat")), "nr_throttled ");
    let request = ListPodSandboxMetricsRequest {};
    let metrics = node.runtime.list_pod_sandbox_metrics(request).await.expect("metrics").into_inner().pod_metrics;
    let of_container = &metrics[0].container_metrics[0].metrics;
    let periods = of_container.iter().find(|m| m.name == "container_cpu_cfs_throttled_periods_total").expect("there");
    assert!(throttled > 0 && value(periods.value) >= throttled, "{periods:?} and {throttled} before");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_container_over_its_memory_limit_is_told_to_be_oom_killed() {
    let mut node = strict().await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let id = started(&mut node, &pod, limited("c", "tail /dev/zero", memory(16 * MIB)), &sandbox).await;
    let status = node.exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

/// Every file of a cgroup that somebody may have written.
fn settings(cgroup: &Path) -> BTreeMap<String, String> {
    let files = ["cpu.max", "cpu.weight", "cpuset.cpus", "memory.high", "memory.low", "memory.max", "memory.min"];
    let more = ["memory.oom.group", "memory.swap.max", "pids.max"];
    let files = files.into_iter().chain(more);
    files.map(|file| (file.to_owned(), read(&cgroup.join(file)))).collect()
}

/// A pod's cgroup as a kubelet makes it: the parent that it tells the runtime, and the directory.
fn pod_cgroup_of_a_kubelet(node: &Node) -> (String, PathBuf) {
    let parent = format!("{}-kubepods/pod1", node.machine.cgroup);
    let pod_cgroup = cgroup_root().join(parent.trim_start_matches('/'));
    let top = pod_cgroup.parent().expect("kubepods");
    let wanted = "+cpu +cpuset +memory +pids";
    fixtures::put(cgroup_root().join("cgroup.subtree_control"), wanted);
    fs::create_dir(top).and_then(|()| fs::create_dir(&pod_cgroup)).expect("mkdir");
    fixtures::put(top.join("cgroup.subtree_control"), wanted);
    (parent, pod_cgroup)
}

/// As the kubelet does at the end.
fn remove_pod_cgroup(pod_cgroup: &Path) {
    let top = pod_cgroup.parent().expect("kubepods");
    fs::remove_dir(pod_cgroup).and_then(|()| fs::remove_dir(top)).expect("nothing is in it");
}

#[tokio::test]
async fn a_container_that_is_killed_does_not_wait_for_the_quota_of_its_pod_which_stays() {
    let mut node = strict().await;
    let (parent, pod_cgroup) = pod_cgroup_of_a_kubelet(&node);
    let mut sandbox = node.sandbox("p");
    sandbox.linux = Some(LinuxPodSandboxConfig { cgroup_parent: parent, ..Default::default() });
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    // Both want all there is, and the one that is killed has 250 MB to give back.
    let big = "awk 'BEGIN { s = sprintf(\"%250000000d\", 0); print \"big\"; while (1); }'";
    let one = started(&mut node, &pod, script("one", big), &sandbox).await;
    let other = started(&mut node, &pod, script("other", "while :; do :; done"), &sandbox).await;
    let cgroup = cgroup_of(&mut node, &one).await;
    until(PATIENCE, || {
        let bytes: u64 = read(&cgroup.join("memory.current")).parse().expect("a number");
        if bytes > 230 * MIB { Ok(()) } else { Err("it grows".to_owned()) }
    });
    fixtures::put(pod_cgroup.join("cpu.max"), "1000 100000");
    until(PATIENCE, || match field(&read(&pod_cgroup.join("cpu.stat")), "nr_throttled") {
        0..20 => Err("it is not out of its quota".to_owned()),
        _ => Ok(()),
    });
    let begun = std::time::Instant::now();
    node.stop_container(&one, 0).await.expect("stop");
    let took = begun.elapsed();
    eprintln!("killed under 1% of a processor, its pod alive: {took:?}");
    assert!(took < std::time::Duration::from_secs(3), "{took:?}");
    assert_eq!(read(&pod_cgroup.join("cpu.max")), "1000 100000", "nobody has touched it");
    assert_eq!(node.status(&other).await.expect("status").state(), ContainerState::ContainerRunning);
    node.remove_pod(&pod).await.expect("remove");
    remove_pod_cgroup(&pod_cgroup);
    node.assert_clean().await;
}

#[tokio::test]
async fn limits_are_changed_in_the_kernel_and_the_pods_cgroup_is_the_kubelets() {
    let mut node = strict().await;
    let (parent, pod_cgroup) = pod_cgroup_of_a_kubelet(&node);
    fixtures::put(pod_cgroup.join("memory.max"), (512 * MIB).to_string());
    fixtures::put(pod_cgroup.join("cpu.max"), "90000 100000");
    let as_made = settings(&pod_cgroup);

    let mut sandbox = node.sandbox("p");
    sandbox.linux = Some(LinuxPodSandboxConfig { cgroup_parent: parent, ..Default::default() });
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let asked = LinuxContainerResources { cpu_quota: 50_000, cpu_period: 100_000, ..memory(64 * MIB) };
    let id =
        started(&mut node, &pod, limited("c", "dd if=/dev/zero bs=20M count=1 | sleep 1000", asked), &sandbox).await;
    let cgroup = cgroup_of(&mut node, &id).await;
    assert!(cgroup.starts_with(&pod_cgroup), "{}", cgroup.display());
    let file = |name: &str| read(&cgroup.join(name));
    assert_eq!((file("memory.max"), file("cpu.max")), ((64 * MIB).to_string(), "50000 100000".to_owned()));

    let update = |linux| UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    // As a kubelet resizes: memory and CPU one after the other, each with only its own fields.
    node.runtime.update_container_resources(update(memory(128 * MIB))).await.expect("memory");
    assert_eq!((file("memory.max"), file("cpu.max")), ((128 * MIB).to_string(), "50000 100000".to_owned()));
    let cpu = LinuxContainerResources { cpu_quota: 70_000, cpu_shares: 512, ..Default::default() };
    node.runtime.update_container_resources(update(cpu)).await.expect("cpu");
    assert_eq!((file("memory.max"), file("cpu.max")), ((128 * MIB).to_string(), "70000 100000".to_owned()));
    let cpus = LinuxContainerResources { cpuset_cpus: "0".into(), ..Default::default() };
    node.runtime.update_container_resources(update(cpus)).await.expect("cpuset");
    assert_eq!(file("cpuset.cpus"), "0");
    until(PATIENCE, || {
        let bytes: u64 = file("memory.current").parse().expect("a number");
        if bytes > 20 * MIB { Ok(()) } else { Err("it touches".to_owned()) }
    });
    let before = settings(&cgroup);
    let refused = node.runtime.update_container_resources(update(memory(10 * MIB))).await.expect_err("it is in use");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(
        (settings(&cgroup), node.status(&id).await.expect("status").state()),
        (before, ContainerState::ContainerRunning)
    );
    let told = node.status(&id).await.expect("status").resources.and_then(|r| r.linux).expect("known");
    assert_eq!(
        (told.memory_limit_in_bytes.cast_unsigned(), told.cpu_quota, told.cpuset_cpus.as_str()),
        (128 * MIB, 70_000, "0")
    );

    let resources = LinuxContainerResources { cpu_quota: 20_000, cpu_period: 100_000, ..memory(256 * MIB) };
    let request =
        UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.clone(), overhead: None, resources: Some(resources) };
    node.runtime.update_pod_sandbox_resources(request).await.expect("heard");
    assert_eq!(settings(&pod_cgroup), as_made, "neither this nor anything before wrote the pod's cgroup");
    let unknown = UpdatePodSandboxResourcesRequest { pod_sandbox_id: "0".repeat(64), ..Default::default() };
    let unknown = node.runtime.update_pod_sandbox_resources(unknown).await.expect_err("no such pod");
    assert_eq!(unknown.code(), Code::NotFound);
    node.remove_pod(&pod).await.expect("remove");
    assert_eq!(settings(&pod_cgroup), as_made, "and it is there");
    remove_pod_cgroup(&pod_cgroup);
    node.assert_clean().await;
}
