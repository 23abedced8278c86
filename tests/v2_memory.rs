//! Memory QoS as a kubelet asks for it over CRI. Needs cgroup v2 with its controllers: run with hack/vm.

mod fixtures;

use fixtures::cri::{Node, script};
use fixtures::machine::{Machine, PATIENCE, until};
use fixtures::pod::cgroup_root;
use podwright::criapi::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const MIB: i64 = 1 << 20;

async fn strict() -> Node {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    Node::of(machine, |_| {}).await
}

/// A container that fills 35 MiB and holds them: dd writes to where nobody reads.
fn holds(name: &str, resources: LinuxContainerResources) -> ContainerConfig {
    let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
    ContainerConfig { linux: Some(linux), ..script(name, "dd if=/dev/zero bs=35M count=1 | sleep 1000") }
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
async fn memory_qos_throttles_above_high_and_is_changed_while_it_runs() {
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
        used if used > 35 * MIB => Ok(()),
        used => Err(format!("{used} bytes are in use")),
    });
    assert_eq!(event(&cgroup, "high"), 0);
    // Less than it holds: it is pressed, and not killed.
    let update = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources { unified: unified(&[("memory.high", 30 * MIB)]), ..Default::default() }),
        ..Default::default()
    };
    node.runtime.update_container_resources(update).await.expect("update");
    assert_eq!(all(files), [8, 16, 30, 256], "and the rest is as it was");
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
