//! A real shim on a host with the memory controller: whose memory ran out, and that a neighbour does not hear of it. Run with hack/vm.

mod shim_client;

use podwright::id::ContainerId;
use podwright::state::record::{ExitStatus, Oom};
use podwright::wire::{Event, Reply, Request};
use shim_client::{Pod, cgroup2_mount};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The binary under test: `PODWRIGHT_BIN` (in a virtual machine), or what was built with the test.
fn binary() -> PathBuf {
    std::env::var_os("PODWRIGHT_BIN").map_or_else(|| env!("CARGO_BIN_EXE_podwright").into(), PathBuf::from)
}

fn write(path: &Path, text: &str) {
    let file = OpenOptions::new().write(true).open(path);
    let mut file = file.unwrap_or_else(|e| panic!("{}: {e}; run this with hack/vm", path.display()));
    file.write_all(text.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A pod whose containers have a memory controller.
fn pod() -> Pod {
    write(&cgroup2_mount().join("cgroup.subtree_control"), "+memory");
    let pod = Pod::up(&binary(), None);
    write(&pod.cgroup.join("cgroup.subtree_control"), "+memory");
    pod
}

/// A container that may have 16 MiB.
fn start(pod: &mut Pod, script: &str) -> ContainerId {
    let (launch, cgroup) = pod.launch(&["/bin/busybox", "sh", "-c", script]);
    let id = launch.container.clone();
    write(&pod.cgroup_of(&id).join("memory.max"), "16M");
    let (reply, _) = pod.start_launch(launch, &cgroup);
    assert!(matches!(reply, Reply::Started(_)), "{reply:?}");
    id
}

#[test]
fn a_container_over_its_limit_is_told_as_out_of_memory_and_a_sigkill_from_outside_is_not() {
    let mut pod = pod();
    let neighbour = start(&mut pod, "exec sleep 1000");
    let greedy = start(&mut pod, "exec tail /dev/zero");
    let exit = pod.client.exit(&greedy);
    assert_eq!((exit.status, exit.oom), (ExitStatus::Signaled(9), Some(Oom::Container)));
    assert!(matches!(pod.client.call(Request::Signal { container: neighbour.clone(), signal: 9 }), Reply::Done));
    let exit = pod.client.exit(&neighbour);
    assert_eq!((exit.status, exit.oom), (ExitStatus::Signaled(9), None));
}

#[test]
fn a_child_that_is_killed_for_memory_is_told_while_the_container_goes_on() {
    let mut pod = pod();
    let id = start(&mut pod, "tail /dev/zero; echo survived; exec sleep 1000");
    assert!(matches!(pod.client.event(), Event::ChildOom { container } if container == id));
    assert!(matches!(pod.client.call(Request::List), Reply::List { containers, .. } if containers[0].exit.is_none()));
    assert!(matches!(pod.client.call(Request::Kill { container: id.clone() }), Reply::Done));
    let exit = pod.client.exit(&id);
    assert_eq!((exit.status, exit.oom), (ExitStatus::Signaled(9), Some(Oom::Container)));
}
