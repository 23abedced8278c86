//! Shims killed with -9 on a host with limits, on kernels that forget an exit code with the reaping (before 6.15) as well: what survives is
//! as the README's table says. Run with hack/vm, and with its --kernel.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{Machine, PATIENCE};
use podwright::criapi::*;
use podwright::sys::orphan::how_it_ended;
use podwright::sys::pidfd::pidfd_open;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What limits the containers here, in bytes.
const LIMIT: i64 = 32 << 20;

/// Does what a file of its volume says: to end with a code, or to want more memory than there is.
const OBEYS: &str = "echo ready; while :; do
    [ -e /v/say ] && { cat /v/say; rm /v/say; }
    [ -e /v/exit ] && exit $(cat /v/exit)
    [ -e /v/eat ] && exec tail /dev/zero
    sleep 0.05
done";

/// Whether a process that was reaped by another still tells how it ended.
fn kernel_remembers() -> bool {
    let mut child = Command::new("/bin/sh").args(["-c", "exit 3"]).spawn().expect("spawn");
    let pidfd = pidfd_open(child.id()).expect("pidfd");
    child.wait().expect("reap");
    how_it_ended(pidfd.as_fd()).is_some()
}

struct Container {
    pod: String,
    id: String,
    volume: PathBuf,
    log: PathBuf,
}

async fn limited(node: &mut Node, name: &str) -> Container {
    let sandbox = node.sandbox(name);
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let volume = node.machine.dir(&format!("volume-{name}"));
    let resources = LinuxContainerResources { memory_limit_in_bytes: LIMIT, ..LinuxContainerResources::default() };
    let config = ContainerConfig {
        mounts: vec![Mount {
            container_path: "/v".into(),
            host_path: volume.display().to_string(),
            ..Mount::default()
        }],
        linux: Some(LinuxContainerConfig { resources: Some(resources), ..LinuxContainerConfig::default() }),
        ..script("c", OBEYS)
    };
    let id = node.create(&pod, config, sandbox).await.expect("create");
    node.start_container(&id).await.expect("start");
    let log = node.machine.dir("logs").join(name).join("c/0.log");
    let container = Container { pod, id, volume, log };
    logged(&container, "ready\n").await;
    container
}

async fn logged(container: &Container, text: &str) {
    let end = Instant::now() + PATIENCE;
    while log_text(&container.log, "stdout") != text {
        assert!(Instant::now() < end, "{:?} is not {text:?}", log_text(&container.log, "stdout"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn tell(container: &Container, name: &str, text: &str) {
    fixtures::put(container.volume.join("new"), text);
    std::fs::rename(container.volume.join("new"), container.volume.join(name)).expect("rename");
}

async fn shim_of(node: &mut Node, pod: &str) -> u32 {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
    let info = node.runtime.pod_sandbox_status(request).await.expect("status").into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
    info["shim"]["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
}

/// Kills the pod's shim, and waits until it has another one; how long that took.
async fn kill_shim(node: &mut Node, pod: &str) -> Duration {
    let old = shim_of(node, pod).await;
    let killed = Instant::now();
    podwright::sys::exec::kill(old, 9).expect("kill");
    while shim_of(node, pod).await == old {
        assert!(killed.elapsed() < PATIENCE, "the pod has no other shim");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    killed.elapsed()
}

async fn node() -> Node {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    Node::of(machine, |_| {}).await
}

#[tokio::test]
async fn under_the_daemon_that_made_the_shim_containers_live_on_with_limits_and_exit_codes() {
    let mut node = node().await;
    let (exits, eats) = (limited(&mut node, "exits").await, limited(&mut node, "eats").await);
    let took = [kill_shim(&mut node, &exits.pod).await, kill_shim(&mut node, &eats.pod).await];
    eprintln!("another shim after {took:?}; the kernel remembers exit codes: {}", kernel_remembers());
    tell(&exits, "say", "after\n");
    logged(&exits, "ready\nafter\n").await;
    assert_eq!(node.exec(&exits.id, &["true"], 60).await.expect("exec").exit_code, 0);
    tell(&exits, "exit", "42");
    let status = node.exited(&exits.id).await;
    assert_eq!((status.exit_code, status.message.as_str()), (42, ""), "on every kernel");
    tell(&eats, "eat", "");
    let status = node.exited(&eats.id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    for container in [exits, eats] {
        node.stop_pod(&container.pod).await.expect("stop");
        node.remove_pod(&container.pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn under_a_later_daemon_they_live_on_with_the_exit_codes_that_the_kernel_remembers() {
    let mut node = node().await;
    let mut told = Vec::new();
    for round in 0..5 {
        let container = limited(&mut node, &format!("web{round}")).await;
        node.kill();
        node.start();
        kill_shim(&mut node, &container.pod).await;
        tell(&container, "say", "after\n");
        logged(&container, "ready\nafter\n").await;
        tell(&container, "exit", "33");
        let status = node.exited(&container.id).await;
        let known = (status.exit_code, status.reason.as_str()) == (33, "Error");
        let unknown = (status.exit_code, status.reason.as_str()) == (255, "Unknown") && status.message.contains("shim");
        assert!(known || (unknown && !kernel_remembers()), "{status:?}");
        told.push(status.exit_code);
        node.stop_pod(&container.pod).await.expect("stop");
        node.remove_pod(&container.pod).await.expect("remove");
    }
    eprintln!("exit codes: {told:?}; the kernel remembers them: {}", kernel_remembers());
    node.assert_clean().await;
}

#[tokio::test]
async fn after_daemon_and_shim_were_both_killed_output_goes_on_and_nothing_is_lost() {
    let mut node = node().await;
    let container = limited(&mut node, "web").await;
    let shim = shim_of(&mut node, &container.pod).await;
    node.kill();
    podwright::sys::exec::kill(shim, 9).expect("kill");
    tell(&container, "say", "alone\n");
    let end = Instant::now() + PATIENCE;
    while container.volume.join("say").exists() {
        assert!(Instant::now() < end, "it is dead");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.start();
    logged(&container, "ready\nalone\n").await;
    let pods = Path::new("/proc").join(shim.to_string());
    assert!(!pods.exists() && shim_of(&mut node, &container.pod).await != shim);
    assert_eq!(node.exec(&container.id, &["true"], 60).await.expect("exec").exit_code, 0);
    node.stop_container(&container.id, 0).await.expect("stop");
    let status = node.status(&container.id).await.expect("status");
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert!(status.exit_code == 137 || (status.exit_code == 255 && !kernel_remembers()), "{status:?}");
    node.stop_pod(&container.pod).await.expect("stop");
    node.remove_pod(&container.pod).await.expect("remove");
    node.assert_clean().await;
}
