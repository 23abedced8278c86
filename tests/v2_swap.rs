//! Swap: what a container may have of it by the CRI is what it gets, and what it has of it is told. Where the host has no swap these tests give it
//! some, in a file that goes with them. Run with hack/vm, or on a host with unified cgroups.

mod fixtures;

use fixtures::cri::{Node, script};
use fixtures::machine::{Machine, PATIENCE, until};
use fixtures::pod::cgroup_root;
use podwright::criapi::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

const MIB: u64 = 1 << 20;
/// What each container is after.
const WANTED: u64 = 32 * MIB;
/// The memory that it may have.
const MEMORY: u64 = 16 * MIB;
/// What a process's own numbers may lack: each CPU counts some pages for itself at first.
const SLACK: u64 = MIB;
/// As much as all tests of this program have at a time, and as much again.
const SWAP_MIB: u64 = 128;

/// Swap that the host has for as long as a test needs it.
struct Swap {
    /// `None`: it has its own.
    file: Option<PathBuf>,
}

impl Swap {
    /// The same for all tests that run at a time.
    fn get() -> Arc<Swap> {
        static SHARED: Mutex<Weak<Swap>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let swap = Arc::new(Swap::new());
            *shared = Arc::downgrade(&swap);
            swap
        })
    }

    fn new() -> Swap {
        if field(&read(Path::new("/proc/meminfo")), "SwapFree:") * 1024 >= SWAP_MIB * MIB {
            return Swap { file: None };
        }
        let named = tempfile::Builder::new().prefix("podwright-swap-").tempfile_in("/var/tmp").expect("a file");
        let (mut file, path) = named.keep().expect("keep");
        let swap = Swap { file: Some(path.clone()) }; // also when the rest fails
        let written = std::io::copy(&mut std::io::Read::take(std::io::repeat(0), SWAP_MIB * MIB), &mut file);
        assert_eq!(written.expect("write"), SWAP_MIB * MIB);
        for program in ["mkswap", "swapon"] {
            let said = Command::new(program).arg(&path).output().expect(program);
            assert!(said.status.success(), "{program} {}: {}", path.display(), String::from_utf8_lossy(&said.stderr));
        }
        swap
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            let _ = Command::new("swapoff").arg(path).status(); // one that failed before it was on has none
            let _ = fs::remove_file(path); // a swap file that is on stays with the kernel
        }
    }
}

/// A node on which nothing unenforced is allowed.
async fn strict() -> Node {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    Node::of(machine, |_| {}).await
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display())).trim().to_owned()
}

fn number(path: &Path) -> u64 {
    read(path).parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The number after `key` in a file of `key number` lines.
fn field(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no {key} in {text}"))
}

fn limited(name: &str, text: &str, resources: LinuxContainerResources) -> ContainerConfig {
    let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
    ContainerConfig { linux: Some(linux), ..script(name, text) }
}

/// By the request's own field: memory and swap together. 0: not specified; negative: no limit.
fn both(memory: u64, both: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: memory.cast_signed(),
        memory_swap_limit_in_bytes: both,
        ..Default::default()
    }
}

/// As a kubelet asks for it (LimitedSwap, NoSwap): swap alone, by its file.
fn unified(memory: u64, swap: u64) -> LinuxContainerResources {
    LinuxContainerResources { unified: [("memory.swap.max".to_owned(), swap.to_string())].into(), ..both(memory, 0) }
}

/// Has `WANTED` bytes and keeps them: dd has filled its block, and writes it where nobody reads. None of them is zero, for of such pages Linux
/// 6.12 keeps none that it has no place for.
const HOLDS: &str = "tr '\\0' x </dev/zero | dd bs=32M count=1 iflag=fullblock | sleep 1000";
/// Has them, and ends well.
const TAKES: &str = "tr '\\0' x </dev/zero | dd bs=32M count=1 iflag=fullblock of=/dev/null";

async fn info(node: &mut Node, container: &str) -> serde_json::Value {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let answer = node.runtime.container_status(request).await.expect("status").into_inner();
    serde_json::from_str(&answer.info["info"]).expect("JSON")
}

async fn cgroup_of(node: &mut Node, container: &str) -> PathBuf {
    let info = info(node, container).await;
    cgroup_root().join(info["cgroup"].as_str().expect("a path").trim_start_matches('/'))
}

async fn started(node: &mut Node, pod: &str, config: ContainerConfig, sandbox: &PodSandboxConfig) -> (String, PathBuf) {
    let id = node.create(pod, config, sandbox.clone()).await.expect("create");
    node.start_container(&id).await.expect("start");
    let cgroup = cgroup_of(node, &id).await;
    (id, cgroup)
}

/// What its processes have of their own, in memory and in swap; the cgroup's numbers may count a page twice.
fn held(cgroup: &Path) -> u64 {
    let of = |pid: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(); // one that ends has none
        let of = |key: &str| if text.contains(key) { field(&text, key) } else { 0 };
        of("RssAnon:") + of("VmSwap:")
    };
    read(&cgroup.join("cgroup.procs")).lines().map(of).sum::<u64>() * 1024
}

/// What ContainerStats, ListContainerStats, PodSandboxStats and the metric tell of a container's swap.
async fn told(node: &mut Node, pod: &str, container: &str) -> Vec<(u64, Option<u64>)> {
    let pair = |swap: Option<SwapUsage>| {
        let swap = swap.expect("told");
        (swap.swap_usage_bytes.expect("known").value, swap.swap_available_bytes.map(|number| number.value))
    };
    let request = ContainerStatsRequest { container_id: container.to_owned() };
    let one = node.runtime.container_stats(request).await.expect("stats").into_inner().stats.expect("there");
    let filter = ContainerStatsFilter { id: container.to_owned(), ..Default::default() };
    let request = ListContainerStatsRequest { filter: Some(filter) };
    let list = node.runtime.list_container_stats(request).await.expect("stats").into_inner().stats;
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.to_owned() };
    let stats = node.runtime.pod_sandbox_stats(request).await.expect("stats").into_inner().stats;
    let all = stats.and_then(|stats| stats.linux).expect("there").containers;
    let of_pod = all.into_iter().find(|c| c.attributes.as_ref().is_some_and(|a| a.id == container)).expect("listed");
    let metrics = node.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.expect("metrics");
    let metrics = metrics.into_inner().pod_metrics.into_iter().flat_map(|pod| pod.container_metrics);
    let metrics = metrics.filter(|c| c.container_id == container).flat_map(|c| c.metrics).collect::<Vec<_>>();
    let metric = |name| metrics.iter().find(|m| m.name == name).and_then(|m| m.value.as_ref()).map(|value| value.value);
    let used = metric("container_memory_swap").expect("there");
    let left = metric("container_spec_memory_swap_limit_bytes").map(|limit| limit - used);
    vec![pair(one.swap), pair(list.into_iter().next().expect("listed").swap), pair(of_pod.swap), (used, left)]
}

#[tokio::test]
async fn a_container_swaps_what_its_memory_has_no_place_for_and_it_is_told() {
    let _swap = Swap::get();
    let mut node = strict().await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let memory = MEMORY;
    let cases = [
        ("both", both(memory, (memory + 64 * MIB).cast_signed()), Some(64 * MIB)),
        ("of-a-kubelet", unified(memory, 64 * MIB), Some(64 * MIB)),
        ("unlimited", both(memory, -1), None),
    ];
    for (name, resources, limit) in cases {
        let asked = resources.clone();
        let (id, cgroup) = started(&mut node, &pod, limited(name, HOLDS, resources), &sandbox).await;
        let shown = limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
        assert_eq!(read(&cgroup.join("memory.max")), memory.to_string(), "{name}");
        assert_eq!(read(&cgroup.join("memory.swap.max")), shown, "{name}");
        until(PATIENCE, || match held(&cgroup) {
            bytes if bytes >= WANTED - SLACK => Ok(()),
            bytes => Err(format!("{name}: it has {bytes} bytes; {}", read(&cgroup.join("memory.events")))),
        });
        let current = cgroup.join("memory.swap.current");
        // Nothing in it moves any more; the kernel may still be at work on what did.
        let end = tokio::time::Instant::now() + PATIENCE;
        let used = loop {
            let before = number(&current);
            let told = told(&mut node, &pod, &id).await;
            if number(&current) == before {
                let available = limit.map(|limit| limit - before);
                assert_eq!(told, vec![(before, available); 4], "{name}");
                break before;
            }
            assert!(tokio::time::Instant::now() < end, "{name}: its swap does not come to rest");
        };
        let resident = number(&cgroup.join("memory.current"));
        assert!(used >= WANTED - memory - SLACK && resident <= memory, "{name}: {used} in swap, {resident} in memory");
        assert_eq!(field(&read(&cgroup.join("memory.events")), "oom_kill "), 0, "{name}");
        let status = node.status(&id).await.expect("status");
        assert_eq!(status.state(), ContainerState::ContainerRunning, "{name}");
        let told = status.resources.and_then(|resources| resources.linux).expect("told");
        assert_eq!(told.memory_swap_limit_in_bytes, asked.memory_swap_limit_in_bytes, "{name}");
        assert_eq!(told.unified, asked.unified, "{name}");
        eprintln!("{name}: {} KiB of {} in swap", used / 1024, WANTED / 1024);
        node.stop_container(&id, 0).await.expect("stop");
        node.remove_container(&id).await.expect("remove");
    }
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn what_has_place_neither_in_memory_nor_in_swap_is_killed() {
    let _swap = Swap::get();
    let mut node = strict().await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let memory = MEMORY;
    let killed = [
        ("as-much-as-memory", both(memory, memory.cast_signed()), 0),
        ("not-specified", both(memory, 0), 0),
        ("no-swap-of-a-kubelet", unified(memory, 0), 0),
        ("too-little", both(memory, (memory + 4 * MIB).cast_signed()), 4 * MIB),
    ];
    for (name, resources, limit) in killed {
        let id = node.create(&pod, limited(name, TAKES, resources), sandbox.clone()).await.expect("create");
        node.start_container(&id).await.expect("start");
        let limits = info(&mut node, &id).await["limits"].clone();
        let row = limits.as_array().and_then(|rows| rows.iter().find(|row| row["file"] == "memory.swap.max").cloned());
        assert_eq!(row.expect("a row")["kernel"], limit.to_string(), "{name}");
        let status = node.exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{name}");
        node.remove_container(&id).await.expect("remove");
    }
    // With swap for it, it is not: it was the limit.
    let config = limited("enough", TAKES, both(memory, (memory + WANTED).cast_signed()));
    let id = node.create(&pod, config, sandbox.clone()).await.expect("create");
    node.start_container(&id).await.expect("start");
    assert_eq!(node.exited(&id).await.exit_code, 0);

    let config = limited("less", TAKES, both(memory, (memory - MIB).cast_signed()));
    let refused = node.create(&pod, config, sandbox.clone()).await;
    let refused = match refused {
        Ok(id) => node.start_container(&id).await.expect_err("both are less than one of them"),
        Err(refused) => refused,
    };
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn swap_is_given_to_a_container_that_runs() {
    let _swap = Swap::get();
    let mut node = strict().await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let memory = MEMORY;
    // It begins when it is told to.
    let waits = format!("until [ -e /tmp/go ]; do sleep 0.1; done; {HOLDS}");
    let (id, cgroup) = started(&mut node, &pod, limited("c", &waits, both(memory, 0)), &sandbox).await;
    assert_eq!(read(&cgroup.join("memory.swap.max")), "0");
    let update = |linux| UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    let more = both(0, (memory + 48 * MIB).cast_signed());
    node.runtime.update_container_resources(update(more)).await.expect("more");
    assert_eq!(number(&cgroup.join("memory.max")), memory);
    assert_eq!(number(&cgroup.join("memory.swap.max")), 48 * MIB);
    assert_eq!(node.exec(&id, &["mkdir", "-p", "/tmp/go"], 0).await.expect("exec").exit_code, 0);
    until(PATIENCE, || match held(&cgroup) {
        bytes if bytes >= WANTED - SLACK => Ok(()),
        bytes => Err(format!("it has {bytes} bytes; {}", read(&cgroup.join("memory.events")))),
    });
    assert!(number(&cgroup.join("memory.swap.current")) >= WANTED - memory - SLACK);
    // The file alone, as a kubelet does, and by it.
    node.runtime.update_container_resources(update(unified(0, 40 * MIB))).await.expect("less");
    assert_eq!(number(&cgroup.join("memory.swap.max")), 40 * MIB);
    let told = node.status(&id).await.expect("status").resources.and_then(|r| r.linux).expect("told");
    assert_eq!(told.unified.get("memory.swap.max"), Some(&(40 * MIB).to_string()));
    assert_eq!(node.status(&id).await.expect("status").state(), ContainerState::ContainerRunning);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}
