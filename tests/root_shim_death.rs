//! Shims killed with -9 under running pods: the containers live on under another one, with their output, their exit codes and
//! everything that can be done with them. On a kernel that keeps exit codes (6.15); tests/v2_shim_death.rs is for older ones.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{PATIENCE, until};
use podwright::criapi::*;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Code;

/// A value of a pod's or container's verbose status.
fn value(info: &std::collections::BTreeMap<String, String>, path: &str) -> serde_json::Value {
    let info: serde_json::Value = serde_json::from_str(info.get("info").expect("verbose")).expect("JSON");
    info.pointer(path).cloned().unwrap_or_default()
}

async fn pod_value(node: &mut Node, pod: &str, path: &str) -> serde_json::Value {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
    value(&node.runtime.pod_sandbox_status(request).await.expect("status").into_inner().info, path)
}

async fn pid_of(node: &mut Node, container: &str) -> String {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    value(&node.runtime.container_status(request).await.expect("status").into_inner().info, "/pid").to_string()
}

async fn shim_of(node: &mut Node, pod: &str) -> u32 {
    pod_value(node, pod, "/shim/pid").await.as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
}

fn kill(pid: u32) {
    podwright::sys::exec::kill(pid, 9).expect("kill");
}

fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])))
}

async fn ended(pid: String) {
    let wait = move || until(PATIENCE, || if runs(&pid) { Err("it runs".to_owned()) } else { Ok(()) });
    tokio::task::spawn_blocking(wait).await.expect("ended");
}

/// Kills the pod's shim, and waits until it has another one; the new one's pid.
async fn kill_shim(node: &mut Node, pod: &str) -> u32 {
    let old = shim_of(node, pod).await;
    kill(old);
    let end = Instant::now() + PATIENCE;
    loop {
        let now = shim_of(node, pod).await;
        if now != old {
            return now;
        }
        assert!(Instant::now() < end, "the pod has no other shim");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn log_of(node: &Node, pod: &str, container: &str) -> PathBuf {
    node.machine.dir("logs").join(pod).join(container).join("0.log")
}

async fn eventually_logged(path: &Path, stream: &str, text: &str) {
    let path = path.to_owned();
    let (stream, text) = (stream.to_owned(), text.to_owned());
    let wait = move || {
        until(PATIENCE, || {
            let is = log_text(&path, &stream);
            if is.contains(&text) { Ok(()) } else { Err(format!("no {text:?} in {is:?}")) }
        });
    };
    tokio::task::spawn_blocking(wait).await.expect("logged");
}

/// Says what it is told through a file, one line after the other, and then so through another; and ends with the number in `exit`.
const OBEYS: &str = "n=0; while :; do
    if [ -e /v/say$n ]; then cat /v/say$n; cat /v/say$n >&2; : > /v/said$n; n=$((n+1)); fi
    [ -e /v/exit ] && exit $(cat /v/exit)
    sleep 0.02
done";

/// A container that does what is written into `volume`.
fn obedient(name: &str, volume: &Path) -> ContainerConfig {
    ContainerConfig {
        mounts: vec![Mount {
            container_path: "/v".into(),
            host_path: volume.display().to_string(),
            ..Mount::default()
        }],
        ..script(name, OBEYS)
    }
}

fn tell(volume: &Path, name: &str, text: &str) {
    fixtures::put(volume.join("new"), text);
    fs::rename(volume.join("new"), volume.join(name)).expect("rename");
}

/// Waits until the container has said that line; where nobody reads, it is in its pipes.
async fn said(volume: &Path, number: u32) {
    let path = volume.join(format!("said{number}"));
    let wait = move || until(PATIENCE, || if path.exists() { Ok(()) } else { Err("it says nothing".to_owned()) });
    tokio::task::spawn_blocking(wait).await.expect("said");
}

/// A pod `name` with obedient containers, and their volumes.
async fn pod_of(node: &mut Node, name: &str, containers: &[&str]) -> (String, Vec<(String, PathBuf)>) {
    let sandbox = node.sandbox(name);
    pod_like(node, sandbox, containers).await
}

async fn pod_like(node: &mut Node, sandbox: PodSandboxConfig, containers: &[&str]) -> (String, Vec<(String, PathBuf)>) {
    let name = sandbox.hostname.clone();
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let mut made = Vec::new();
    for container in containers {
        let volume = node.machine.dir(&format!("volume-{name}-{container}"));
        let id = node.create(&pod, obedient(container, &volume), sandbox.clone()).await.expect("create");
        node.start_container(&id).await.expect("start");
        made.push((id, volume));
    }
    (pod, made)
}

/// Waits until it is: pause goes after the containers.
async fn not_ready(node: &mut Node, pod: &str) {
    let end = Instant::now() + PATIENCE;
    while node.pod_status(pod).await.expect("status").state() == PodSandboxState::SandboxReady {
        assert!(Instant::now() < end, "it is ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn remove(node: &mut Node, pod: &str) {
    node.stop_pod(pod).await.expect("stop");
    node.remove_pod(pod).await.expect("remove");
}

#[tokio::test]
async fn a_container_goes_on_under_another_shim_with_its_output_and_its_exit_code() {
    let mut node = Node::new().await;
    let (pod, made) = pod_of(&mut node, "web", &["c"]).await;
    let (id, volume) = &made[0];
    let log = log_of(&node, "web", "c");
    tell(volume, "say0", "before\n");
    eventually_logged(&log, "stderr", "before\n").await;
    let pid = pid_of(&mut node, id).await;
    // No shim is there while it writes: what it says waits in its pipes.
    let old = shim_of(&mut node, &pod).await;
    podwright::sys::exec::kill(old, 19).expect("SIGSTOP");
    tell(volume, "say1", "between\n");
    said(volume, 1).await;
    kill(old);
    tell(volume, "say2", "after\n");
    for stream in ["stdout", "stderr"] {
        eventually_logged(&log, stream, "after\n").await;
    }
    assert_eq!(log_text(&log, "stdout"), "before\nbetween\nafter\n");
    assert_eq!(log_text(&log, "stderr"), "before\nbetween\nafter\n");
    assert!(runs(&pid) && pid_of(&mut node, id).await == pid, "it is the same process");
    assert_eq!(node.status(id).await.expect("status").state(), ContainerState::ContainerRunning);
    assert_eq!(node.pod_status(&pod).await.expect("status").state(), PodSandboxState::SandboxReady);
    tell(volume, "exit", "42");
    let exited = node.exited(id).await;
    assert_eq!((exited.exit_code, exited.reason.as_str(), exited.message.as_str()), (42, "Error", ""));
    assert!(!Path::new("/proc").join(&pid).exists(), "its zombie is gone as well");
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn exec_stop_and_rotation_work_under_another_shim_as_before() {
    let mut node = Node::new().await;
    let text = "trap 'trap \"\" TERM; echo bye; exit 7' TERM; echo ready; while :; do sleep 0.02; done";
    let (pod, id) = node.pod_with("web", text).await;
    let log = log_of(&node, "web", "c");
    eventually_logged(&log, "stdout", "ready\n").await;
    kill_shim(&mut node, &pod).await;
    let said = node.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"], 10).await.expect("exec");
    let output = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert_eq!((said.exit_code, output.0.as_ref(), output.1.as_ref()), (3, "out\n", "err\n"));
    let inside = node.exec(&id, &["hostname"], 10).await.expect("exec");
    assert_eq!(String::from_utf8_lossy(&inside.stdout), "web\n", "in the pod's namespaces");
    let late = node.exec(&id, &["sleep", "1000"], 1).await.expect_err("a deadline");
    assert_eq!(late.code(), Code::DeadlineExceeded);

    let rotated = log.with_extension("1");
    fs::rename(&log, &rotated).expect("rotate");
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    node.runtime.reopen_container_log(request).await.expect("reopen");
    let stats = node.runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await.expect("stats");
    let cpu = stats.into_inner().stats.expect("stats").cpu.expect("cpu");
    assert!(cpu.usage_core_nano_seconds.expect("usage").value > 0);

    node.stop_container(&id, 30).await.expect("stop");
    let exited = node.status(&id).await.expect("status");
    assert_eq!((exited.state(), exited.exit_code), (ContainerState::ContainerExited, 7), "its answer to SIGTERM");
    assert_eq!((log_text(&rotated, "stdout"), log_text(&log, "stdout")), ("ready\n".to_owned(), "bye\n".to_owned()));
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn two_containers_survive_two_deaths_in_a_row_and_a_third_starts_beside_them() {
    let mut node = Node::new().await;
    let (pod, made) = pod_of(&mut node, "web", &["a", "b"]).await;
    let shims = [kill_shim(&mut node, &pod).await, kill_shim(&mut node, &pod).await];
    assert_ne!(shims[0], shims[1]);
    let sandbox = node.sandbox("web");
    let volume = node.machine.dir("volume-web-late");
    let late = node.create(&pod, obedient("late", &volume), sandbox).await.expect("create");
    node.start_container(&late).await.expect("start");
    kill_shim(&mut node, &pod).await;
    let all: Vec<(String, PathBuf)> = made.into_iter().chain([(late, volume)]).collect();
    for (n, ((id, volume), name)) in all.iter().zip(["a", "b", "late"]).enumerate() {
        tell(volume, "say0", &format!("{name}\n"));
        eventually_logged(&log_of(&node, "web", name), "stdout", &format!("{name}\n")).await;
        tell(volume, "exit", &format!("{}", 10 + n));
        assert_eq!(node.exited(id).await.exit_code, 10 + i32::try_from(n).expect("few"));
    }
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_exec_was_doing_ends_with_its_shim_and_its_caller_is_told() {
    let mut node = Node::new().await;
    let (pod, made) = pod_of(&mut node, "web", &["c"]).await;
    let (id, volume) = made[0].clone();
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", "(setsid sleep 4747 &); echo > /v/begun; sleep 4747"].map(str::to_owned).to_vec(),
        timeout: 0,
    };
    let mut runtime = node.runtime.clone();
    let exec = tokio::spawn(async move { runtime.exec_sync(request).await });
    let begun = volume.join("begun");
    let wait = || until(PATIENCE, || if begun.exists() { Ok(()) } else { Err("it has not begun".to_owned()) });
    wait();
    kill_shim(&mut node, &pod).await;
    let told = exec.await.expect("joined").expect_err("nobody knows how it ended");
    assert!(told.message().contains("shim"), "{told:?}");
    let processes = node.exec(&id, &["sh", "-c", "ps -o args | grep -c '[s]leep 4747'"], 10).await.expect("exec");
    assert_eq!(String::from_utf8_lossy(&processes.stdout), "0\n");
    tell(&volume, "exit", "0");
    assert_eq!(node.exited(&id).await.exit_code, 0);
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_container_that_ends_while_no_shim_is_there_has_its_exit_code_and_its_last_words() {
    let mut node = Node::new().await;
    let (pod, made) = pod_of(&mut node, "web", &["c"]).await;
    let (id, volume) = &made[0];
    let shim = shim_of(&mut node, &pod).await;
    let pid = pid_of(&mut node, id).await;
    podwright::sys::exec::kill(shim, 19).expect("SIGSTOP");
    tell(volume, "say0", "last words\n");
    said(volume, 0).await;
    tell(volume, "exit", "9");
    ended(pid).await;
    kill(shim);
    assert_eq!(node.exited(id).await.exit_code, 9);
    assert_eq!(log_text(&log_of(&node, "web", "c"), "stdout"), "last words\n");
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn when_pause_has_died_with_the_shim_everything_is_killed_and_the_pod_is_not_ready() {
    let mut node = Node::new().await;
    // With a pid namespace each: in a shared one all end with pause, its init.
    let options = NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() };
    let security =
        LinuxSandboxSecurityContext { namespace_options: Some(options), ..LinuxSandboxSecurityContext::default() };
    let linux = LinuxPodSandboxConfig { security_context: Some(security), ..LinuxPodSandboxConfig::default() };
    let sandbox = PodSandboxConfig { linux: Some(linux), ..node.sandbox("web") };
    let (pod, made) = pod_like(&mut node, sandbox, &["a", "b"]).await;
    let (shim, pause) = (shim_of(&mut node, &pod).await, pod_value(&mut node, &pod, "/pid").await);
    podwright::sys::exec::kill(shim, 19).expect("SIGSTOP");
    kill(pause.as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid"));
    ended(pause.to_string()).await;
    kill(shim);
    for (id, _) in &made {
        let exited = node.exited(id).await;
        assert_eq!(exited.exit_code, 137, "{exited:?}");
        assert!(exited.message.contains("pause"), "{exited:?}");
    }
    not_ready(&mut node, &pod).await;
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_that_comes_after_the_shim_s_death_takes_over_what_is_left() {
    let mut node = Node::new().await;
    let (pod, made) = pod_of(&mut node, "web", &["a", "b"]).await;
    let log = log_of(&node, "web", "a");
    tell(&made[0].1, "say0", "before\n");
    eventually_logged(&log, "stdout", "before\n").await;
    let (pid, shim) = (pid_of(&mut node, &made[0].0).await, shim_of(&mut node, &pod).await);
    node.kill();
    kill(shim);
    // Nobody has the other ends of its pipes now: it is neither killed by that nor are its words lost.
    tell(&made[0].1, "say1", "alone\n");
    said(&made[0].1, 1).await;
    assert!(runs(&pid));
    node.start();
    assert_ne!(shim_of(&mut node, &pod).await, shim);
    for stream in ["stdout", "stderr"] {
        eventually_logged(&log, stream, "before\nalone\n").await;
    }
    node.exec(&made[0].0, &["true"], 10).await.expect("exec");
    for (n, (id, volume)) in made.iter().enumerate() {
        tell(volume, "exit", &format!("{}", 20 + n));
        assert_eq!(node.exited(id).await.exit_code, 20 + i32::try_from(n).expect("few"));
    }
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_that_came_after_the_one_that_made_the_pod_has_what_it_takes_too() {
    let mut node = Node::new().await;
    let (pod, made) = pod_of(&mut node, "web", &["c"]).await;
    let (id, volume) = &made[0];
    node.kill();
    node.start();
    kill_shim(&mut node, &pod).await;
    tell(volume, "say0", "after\n");
    eventually_logged(&log_of(&node, "web", "c"), "stdout", "after\n").await;
    tell(volume, "exit", "33");
    assert_eq!(node.exited(id).await.exit_code, 33);
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_a_takeover_is_followed_by_one_that_ends_it() {
    let mut node = Node::new().await;
    for step in ["hello", "record", "sandbox", "container", "containers"] {
        let (pod, made) = pod_of(&mut node, step, &["a", "b"]).await;
        node.kill();
        let fault = format!("kill:engine.adopt.{step}");
        node.start_with(|command| _ = command.env("PODWRIGHT_FAULT", &fault));
        let shim = shim_of(&mut node, &pod).await;
        kill(shim);
        assert_eq!(node.ended().signal(), Some(9), "{step}");
        node.start();
        assert_ne!(shim_of(&mut node, &pod).await, shim, "{step}");
        for ((id, volume), (name, code)) in made.iter().zip([("a", 5), ("b", 6)]) {
            tell(volume, "say0", "after\n");
            eventually_logged(&log_of(&node, step, name), "stdout", "after\n").await;
            tell(volume, "exit", &code.to_string());
            assert_eq!(node.exited(id).await.exit_code, code, "{step}");
        }
        remove(&mut node, &pod).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn shims_that_die_while_they_take_over_leave_nothing_unmanaged() {
    let mut node = Node::new().await;
    for step in ["listening", "sandbox", "container"] {
        node.kill();
        let fault = format!("kill:shim.adopt.{step}");
        node.start_with(|command| _ = command.env("PODWRIGHT_FAULT", &fault));
        let (pod, made) = pod_of(&mut node, step, &["a", "b"]).await;
        kill(shim_of(&mut node, &pod).await);
        for (id, _) in &made {
            let exited = node.exited(id).await;
            assert_eq!(exited.exit_code, 137, "{step}: {exited:?}");
            assert!(exited.message.contains("again and again"), "{step}: {exited:?}");
        }
        not_ready(&mut node, &pod).await;
        remove(&mut node, &pod).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_log_under_load_lacks_at_most_what_the_shim_had_just_read() {
    let mut node = Node::new().await;
    // The last line is said when nobody is killed any more.
    let text = "i=0; while [ $i -lt 59999 ]; do echo line $i of many; i=$((i+1)); done
        until [ -e /v/end ]; do sleep 0.02; done; echo line $i of many; exit 4";
    let (sandbox, volume) = (node.sandbox("web"), node.machine.dir("volume"));
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let config = ContainerConfig { command: script("c", text).command, ..obedient("c", &volume) };
    let id = node.create(&pod, config, sandbox).await.expect("create");
    node.start_container(&id).await.expect("start");
    let log = log_of(&node, "web", "c");
    eventually_logged(&log, "stdout", "line 100 of").await;
    for _ in 0..3 {
        kill_shim(&mut node, &pod).await;
    }
    tell(&volume, "end", "");
    assert_eq!(node.exited(&id).await.exit_code, 4);
    let text = log_text(&log, "stdout");
    let numbers: Vec<u32> = text.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect();
    let lost = 60_000 - numbers.len();
    assert!(numbers.is_sorted_by(|a, b| a < b), "none twice, all in order");
    // 64 KiB of lines of 19 bytes, for each death.
    assert!(lost <= 3 * (64 << 10) / 15, "{lost} lines are missing");
    assert_eq!(numbers.last(), Some(&59_999));
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_terminal_survives_its_shim() {
    let mut node = Node::new().await;
    let sandbox = node.sandbox("web");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let volume = node.machine.dir("volume");
    let config = ContainerConfig { tty: true, stdin: true, ..obedient("c", &volume) };
    let id = node.create(&pod, config, sandbox).await.expect("create");
    node.start_container(&id).await.expect("start");
    kill_shim(&mut node, &pod).await;
    tell(&volume, "say0", "after\n");
    eventually_logged(&log_of(&node, "web", "c"), "stdout", "after\nafter\n").await;
    tell(&volume, "exit", "5");
    assert_eq!(node.exited(&id).await.exit_code, 5, "no SIGHUP");
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_is_stopped_and_removed_in_the_moment_its_shim_dies() {
    let mut node = Node::new().await;
    for round in 0..5u64 {
        let (pod, made) = pod_of(&mut node, &format!("web{round}"), &["a", "b"]).await;
        let shim = shim_of(&mut node, &pod).await;
        let killer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(round * 3)).await;
            let _ = podwright::sys::exec::kill(shim, 9); // it may have gone by itself
        });
        node.stop_pod(&pod).await.expect("stop");
        killer.await.expect("killed");
        for (id, _) in made {
            let status = node.status(&id).await.expect("status");
            assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137), "{status:?}");
        }
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn shims_that_die_again_and_again_are_given_up_and_the_pod_with_them() {
    let mut node = Node::new().await;
    let (pod, made) = pod_of(&mut node, "web", &["c"]).await;
    let end = Instant::now() + PATIENCE;
    let mut killed = 0;
    while node.pod_status(&pod).await.expect("status").state() == PodSandboxState::SandboxReady {
        let shim = shim_of(&mut node, &pod).await;
        if podwright::sys::exec::kill(shim, 9).is_ok() {
            killed += 1;
        }
        assert!(Instant::now() < end, "it is replaced for ever: {killed}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let exited = node.exited(&made[0].0).await;
    assert_eq!(exited.exit_code, 137);
    assert!(exited.message.contains("again and again"), "{exited:?}");
    remove(&mut node, &pod).await;
    node.assert_clean().await;
}
