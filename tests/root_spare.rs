//! The daemon's spare shim: it becomes the next pod's, is replaced, is missed by nobody, and never stays where there is no pod.

mod fixtures;

use fixtures::cri::Node;
use fixtures::machine::{GONE_WITHIN, Machine, until};
use podwright::id::PodId;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// The shims of a machine that live and show this id as their pod's.
fn shims(machine: &Machine, pod: &str) -> Vec<u32> {
    let state = machine.state().to_string_lossy().into_owned();
    let pids = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| {
        let text = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let line = String::from_utf8_lossy(&text("cmdline")).into_owned();
        text("comm") == b"podwright-shim\n" && line.contains(&state) && line.contains(pod)
    })
    .collect()
}

fn spares(machine: &Machine) -> Vec<u32> {
    shims(machine, PodId::none().as_str())
}

/// Waits for the one spare there is to be.
fn spare(machine: &Machine) -> u32 {
    let one = || match spares(machine)[..] {
        [one] => Ok(one),
        ref others => Err(format!("spares: {others:?}")),
    };
    until(SOON, || one().map(drop));
    one().expect("it is there")
}

#[tokio::test]
async fn the_next_pod_gets_the_spare_and_the_last_one_takes_it_along() {
    let mut node = Node::new().await;
    assert!(spares(&node.machine).is_empty(), "there is no pod yet");
    let mut pods = Vec::new();
    let mut waiting = None;
    for name in ["a", "b", "c"] {
        let sandbox = node.sandbox(name);
        let pod = node.run_pod(sandbox).await.expect("run");
        let shim = shims(&node.machine, &pod);
        assert_eq!(shim.len(), 1, "it is seen whose it is");
        if let Some(spare) = waiting {
            assert_eq!(shim, [spare]);
        }
        waiting = Some(spare(&node.machine));
        pods.push(pod);
    }
    for pod in &pods {
        assert_eq!(spares(&node.machine).len(), 1);
        node.stop_pod(pod).await.expect("stop");
        node.remove_pod(pod).await.expect("remove");
    }
    assert!(spares(&node.machine).is_empty());
    assert!(!node.machine.cgroup_dir().exists(), "nothing is in podwright's cgroup any more");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_dead_spare_is_missed_by_nobody() {
    let mut node = Node::new().await;
    let sandbox = node.sandbox("a");
    let first = node.run_pod(sandbox).await.expect("run");
    let killed = spare(&node.machine);
    podwright::sys::exec::kill(killed, 9).expect("kill");
    until(SOON, || if spares(&node.machine).is_empty() { Ok(()) } else { Err("it lives".to_owned()) });
    let sandbox = node.sandbox("b");
    let second = node.run_pod(sandbox).await.expect("without it");
    assert_ne!(spare(&node.machine), killed);
    for pod in [first, second] {
        node.stop_pod(&pod).await.expect("stop");
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_spare_ends_with_its_daemon_and_the_pods_do_not() {
    let mut node = Node::new().await;
    let sandbox = node.sandbox("a");
    let pod = node.run_pod(sandbox).await.expect("run");
    spare(&node.machine);
    node.kill();
    until(GONE_WITHIN, || if spares(&node.machine).is_empty() { Ok(()) } else { Err("it lives".to_owned()) });
    assert_eq!(shims(&node.machine, &pod).len(), 1);
    node.start();
    node.stop_pod(&pod).await.expect("stop");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}
