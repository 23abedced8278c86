//! What a kubelet asks of memory beyond its limit, over CRI: swap as it has it configured (NoSwap, LimitedSwap), and memory QoS. Needs
//! cgroup v2 with its controllers, and makes a swap file for as long as it runs. Run with hack/vm.

mod fixtures;

use fixtures::cri::{Node, script};
use fixtures::machine::{Machine, PATIENCE, until};
use fixtures::pod::cgroup_root;
use podwright::criapi::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::sync::Mutex;
use tonic::Code;

const MIB: i64 = 1 << 20;
/// Each keeps the machine busy.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A swap file, in use until it is dropped.
struct Swap {
    dir: tempfile::TempDir,
}

impl Swap {
    fn new(mebibytes: usize) -> Swap {
        // Not below /tmp, which may have no disk.
        let dir = tempfile::Builder::new().prefix("pw-swap-").tempdir_in("/var/tmp").expect("tempdir");
        let swap = Swap { dir };
        let mut file = fs::File::create(swap.file()).expect("create");
        let chunk = vec![0; 1 << 20];
        for _ in 0..mebibytes {
            std::io::Write::write_all(&mut file, &chunk).expect("write"); // not sparse: the kernel refuses holes
        }
        file.sync_all().expect("sync");
        swap.run("mkswap");
        swap.run("swapon");
        swap
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("swap")
    }

    fn run(&self, program: &str) {
        let done = Command::new(program).arg(self.file()).output().expect(program);
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        self.run("swapoff");
    }
}

async fn strict() -> Node {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    Node::of(machine, |_| {}).await
}

/// A container that fills 44 MiB and holds them: dd writes to where nobody reads.
fn holds(name: &str, resources: LinuxContainerResources) -> ContainerConfig {
    let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
    ContainerConfig { linux: Some(linux), ..script(name, "dd if=/dev/zero bs=44M count=1 | sleep 1000") }
}

fn unified(files: &[(&str, i64)]) -> BTreeMap<String, String> {
    files.iter().map(|(file, value)| ((*file).to_owned(), value.to_string())).collect()
}

async fn started(node: &mut Node, pod: &str, config: ContainerConfig) -> (String, PathBuf) {
    let sandbox = node.sandbox("p");
    let id = node.create(pod, config, sandbox).await.expect("create");
    node.start_container(&id).await.expect("start");
    let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let answer = node.runtime.container_status(request).await.expect("status").into_inner();
    let info: serde_json::Value = serde_json::from_str(answer.info.get("info").expect("verbose")).expect("JSON");
    let cgroup = cgroup_root().join(info["cgroup"].as_str().expect("a path").trim_start_matches('/'));
    (id, cgroup)
}

fn number(cgroup: &Path, file: &str) -> i64 {
    let path = cgroup.join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    text.trim().parse().unwrap_or_else(|e| panic!("{file}: {text}: {e}"))
}

/// A count of memory.events.
fn event(cgroup: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(cgroup.join("memory.events")).expect("memory.events");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("a count").parse().expect("a number")
}

#[tokio::test]
async fn swap_is_what_the_kubelet_allows_and_a_limit_alone_allows_none() {
    let _alone = ALONE.lock().await;
    let _swap = Swap::new(80);
    let mut node = strict().await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let memory = LinuxContainerResources { memory_limit_in_bytes: 32 * MIB, ..Default::default() };
    let limited = [
        // As LimitedSwap says it: by both together, and by the file.
        ("both", LinuxContainerResources { memory_swap_limit_in_bytes: 96 * MIB, ..memory.clone() }),
        ("file", LinuxContainerResources { unified: unified(&[("memory.swap.max", 64 * MIB)]), ..memory.clone() }),
    ];
    for (name, resources) in limited {
        let (id, cgroup) = started(&mut node, &pod, holds(name, resources)).await;
        assert_eq!((number(&cgroup, "memory.max"), number(&cgroup, "memory.swap.max")), (32 * MIB, 64 * MIB), "{name}");
        until(PATIENCE, || match number(&cgroup, "memory.swap.current") {
            used if used > 8 * MIB => Ok(()),
            used => Err(format!("{name}: {used} bytes are in swap")),
        });
        assert_eq!(node.status(&id).await.expect("status").state(), ContainerState::ContainerRunning, "{name}");
        let request = ContainerStatsRequest { container_id: id.clone() };
        let stats = node.runtime.container_stats(request).await.expect("stats").into_inner().stats.expect("there");
        let told = stats.swap.expect("swap");
        let (used, left) =
            (told.swap_usage_bytes.expect("known").value, told.swap_available_bytes.expect("known").value);
        assert!(used > 0, "{name}");
        assert_eq!(used + left, (64 * MIB).cast_unsigned(), "{name}");
        node.stop_container(&id, 0).await.expect("stop");
    }
    let none = [
        ("no-swap", LinuxContainerResources { memory_swap_limit_in_bytes: 32 * MIB, ..memory.clone() }),
        ("no-swap-file", LinuxContainerResources { unified: unified(&[("memory.swap.max", 0)]), ..memory.clone() }),
        ("unsaid", memory.clone()),
    ];
    for (name, resources) in none {
        let id = node.create(&pod, holds(name, resources), sandbox.clone()).await.expect("create");
        node.start_container(&id).await.expect("start");
        let status = node.exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{name}: {status:?}");
    }
    let less = LinuxContainerResources { memory_swap_limit_in_bytes: 16 * MIB, ..memory };
    let id = node.create(&pod, holds("less", less), sandbox).await;
    let refused = match id {
        Ok(id) => node.start_container(&id).await.expect_err("both are less than memory alone"),
        Err(refused) => refused,
    };
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("below the memory limit"), "{refused:?}");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn memory_qos_throttles_above_high_and_is_changed_while_it_runs() {
    let _alone = ALONE.lock().await;
    let mut node = strict().await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox).await.expect("run");
    // As a kubelet with the gate MemoryQoS: min is the request, high a part of the limit.
    let qos = LinuxContainerResources {
        memory_limit_in_bytes: 256 * MIB,
        unified: unified(&[("memory.min", 8 * MIB), ("memory.low", 16 * MIB), ("memory.high", 100 * MIB)]),
        ..Default::default()
    };
    let (id, cgroup) = started(&mut node, &pod, holds("c", qos)).await;
    let all = |files: [&str; 4]| files.map(|file| number(&cgroup, file) / MIB);
    let files = ["memory.min", "memory.low", "memory.high", "memory.max"];
    assert_eq!(all(files), [8, 16, 100, 256]);
    until(PATIENCE, || match number(&cgroup, "memory.current") {
        used if used > 44 * MIB => Ok(()),
        used => Err(format!("{used} bytes are in use")),
    });
    assert_eq!(event(&cgroup, "high"), 0);
    // Less than it holds: it is pressed, and not killed.
    let update = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources { unified: unified(&[("memory.high", 36 * MIB)]), ..Default::default() }),
        ..Default::default()
    };
    node.runtime.update_container_resources(update).await.expect("update");
    assert_eq!(all(files), [8, 16, 36, 256], "and the rest is as it was");
    node.exec(&id, &["true"], 60).await.expect("exec");
    until(PATIENCE, || match event(&cgroup, "high") {
        0 => Err("nobody was throttled".to_owned()),
        _ => Ok(()),
    });
    assert_eq!(node.status(&id).await.expect("status").state(), ContainerState::ContainerRunning);
    assert_eq!(event(&cgroup, "oom_kill"), 0);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}
