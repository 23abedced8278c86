//! The daemon as a process of its host: its socket, what it says of itself, and `run` that goes through it. What it answers to a kubelet is
//! in `root_cri`.

mod fixtures;

use fixtures::cri::{Node, log_text};
use fixtures::machine::{Finished, GONE_WITHIN, Machine, PATIENCE, Running, pod, script, until};
use podwright::criapi::{ContainerFilter, ContainerState, ContainerStatus, PodSandboxFilter, PodSandboxState};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[test]
fn the_socket_is_roots_alone_in_a_directory_of_roots_alone() {
    let machine = Machine::with_busybox();
    let socket = machine.temp.path().join("made/for/it/podwright.sock");
    let mut command = machine.podwright(["daemon"]);
    command.env("PODWRIGHT_CRI_SOCKET", &socket);
    let daemon = Running::of(command);
    until(PATIENCE, || if socket.exists() { Ok(()) } else { Err("no socket".to_owned()) });
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().expect("a directory"))), (0o600, 0o700));
    daemon.signal(15);
    daemon.wait().code(0);
    assert!(!socket.exists());
}

#[test]
fn a_place_that_is_somebody_elses_stays_his() {
    let machine = Machine::with_busybox();
    let dir = machine.dir("sockets");
    let (socket, file) = (dir.join("cri.sock"), dir.join("file"));
    let daemon = |socket: &Path| {
        let mut command = machine.podwright(["daemon"]);
        command.env("PODWRIGHT_CRI_SOCKET", socket);
        Running::of(command)
    };
    let inode = || std::fs::metadata(&socket).expect("there").ino();
    let another = UnixListener::bind(&socket).expect("bind");
    let before = inode();
    daemon(&socket).wait().refused(&["cri.sock", "another daemon or runtime serves it"]);
    assert_eq!(inode(), before);
    std::fs::write(&file, "precious").expect("write");
    daemon(&file).wait().refused(&["sockets/file", "something else than a socket"]);
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "precious");
    // That of a dead one is replaced; and when somebody has replaced ours, it is not ours to remove.
    drop(another);
    let mut running = daemon(&socket);
    running.until("it serves", || inode() != before);
    let _later = UnixListener::bind(dir.join("later")).expect("bind");
    std::fs::rename(dir.join("later"), &socket).expect("rename");
    running.signal(15);
    running.wait().code(0);
    assert!(socket.exists());
}

/// `podwright run` on a machine whose daemon serves on the node's socket.
fn run(node: &Node, manifest: &str, args: &[&str]) -> Running {
    node.machine.start_with(manifest, args, |command| {
        command.env("PODWRIGHT_CRI_SOCKET", node.socket());
    })
}

/// Any other command on that machine.
async fn ask(node: &Node, args: &[&str]) -> Finished {
    let mut command = node.machine.podwright(args.iter().copied());
    command.env("PODWRIGHT_CRI_SOCKET", node.socket());
    end(Running::of(command)).await
}

/// Its end, while this thread's clients are served.
async fn end(running: Running) -> Finished {
    tokio::task::spawn_blocking(|| running.wait()).await.expect("joined")
}

/// The ids of the pods that the CRI lists, once there are so many.
async fn listed(node: &mut Node, count: usize) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let pods = node.pods(PodSandboxFilter::default()).await;
        if pods.len() == count {
            return pods.into_iter().map(|pod| pod.id).collect();
        }
        assert!(Instant::now() < end, "{pods:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The one container of the CRI's list, once it has written a line.
async fn until_ready(node: &mut Node) -> ContainerStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let [container] = &node.containers(ContainerFilter::default()).await[..] {
            let status = node.status(&container.id.clone()).await.expect("status");
            if log_text(Path::new(&status.log_path), "stdout").contains("ready") {
                return status;
            }
        }
        assert!(Instant::now() < end, "no container is ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
const STUBBORN: &str = "trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done";
const POLITE: &str = "trap 'trap \"\" TERM; echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done";

#[tokio::test]
async fn run_lets_the_daemon_that_is_up_run_the_pod_and_says_so() {
    let node = Node::new().await;
    let text = "echo out; echo err >&2; i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; printf end; exit 7";
    let ended = end(run(&node, &script(text, ""), &[])).await;
    ended.code(7);
    let lines: String = (0..2000).map(|n| format!("{n}\n")).collect();
    assert_eq!(ended.stdout, format!("out\n{lines}end"));
    let told: Vec<&str> = ended.stderr.lines().collect();
    assert!(told[0].starts_with("podwright: the daemon on ") && told[0].contains("--no-daemon"), "{told:?}");
    assert_eq!(told[1..], ["err", "podwright: container c ended with 7 (Error)"]);
    // Several, one of which is started again: the same words as without a daemon.
    let several = pod(
        "  restartPolicy: OnFailure\n  initContainers:\n  - {name: first, image: busybox, command: [echo, before]}\n  containers:\n  \
         - {name: a, image: busybox, command: [sh, -c, 'echo a']}\n  - {name: bb, image: busybox, command: [sh, -c, 'exit 0']}\n",
    );
    let (by_daemon, by_itself) =
        (end(run(&node, &several, &[])).await, end(run(&node, &several, &["--no-daemon"])).await);
    assert_eq!(by_daemon.code(0).stdout, "first | before\na     | a\n");
    assert_eq!((by_itself.stdout.as_str(), by_itself.stderr.as_str()), (by_daemon.stdout.as_str(), ""));
    node.assert_clean().await;
}

#[tokio::test]
async fn what_the_daemon_cannot_run_is_an_error_of_the_command() {
    let node = Node::new().await;
    let absent = script("true", "imagePullPolicy: Never").replace("image: busybox", "image: absent");
    let refused = end(run(&node, &absent, &[])).await;
    assert!(refused.code(125).stderr.contains("is not in the store"), "{}", refused.stderr);
    let wrong = end(run(&node, "apiVersion: v1\nkind: Pod\nspec: {}\n", &[])).await;
    wrong.refused(&["metadata: missing"]);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_of_other_directories_is_not_asked() {
    let node = Node::new().await;
    let other = Machine::with_busybox();
    let ended = other.start_with(&script("echo here", ""), &[], |command| {
        command.env("PODWRIGHT_CRI_SOCKET", node.socket());
    });
    let ended = end(ended).await;
    assert_eq!((ended.code(0).stdout.as_str(), ended.stderr.as_str()), ("here\n", ""));
    other.assert_as_before();
    node.assert_clean().await;
}

#[tokio::test]
async fn signals_and_timeouts_reach_the_pod_through_the_daemon() {
    let mut node = Node::new().await;
    for (signal, code) in [(2, 130), (15, 7)] {
        let running = run(&node, &script(POLITE, ""), &[]);
        until_ready(&mut node).await;
        running.signal(signal);
        let ended = end(running).await;
        assert_eq!(ended.code(code).stdout, "ready\nbye\n");
    }
    let hours = script(STUBBORN, "") + "  terminationGracePeriodSeconds: 3600\n";
    let running = run(&node, &hours, &[]);
    let log = PathBuf::from(until_ready(&mut node).await.log_path);
    running.signal(2);
    // Two that come together are one.
    while !log_text(&log, "stdout").contains("asked") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.signal(2);
    end(running).await.code(130); // the second kills
    end(run(&node, &script(POLITE, ""), &["--timeout", "1s"])).await.code(124);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_client_that_is_killed_takes_its_pod_along() {
    let mut node = Node::new().await;
    let (polite, polite_container) = node.pod_with("cri", "sleep 1000").await;
    let running = run(&node, &script(DEAF, ""), &[]);
    listed(&mut node, 2).await;
    let began = Instant::now();
    running.signal(9);
    let ended = end(running).await;
    assert_eq!(ended.status.code(), None);
    assert_eq!(listed(&mut node, 1).await, std::slice::from_ref(&polite), "a pod of the kubelet's is none of it");
    assert!(began.elapsed() < GONE_WITHIN, "{:?}", began.elapsed());
    assert_eq!(node.status(&polite_container).await.expect("status").state(), ContainerState::ContainerRunning);
    node.remove_pod(&polite).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_that_is_killed_is_told_of_and_the_next_one_takes_the_pod_down() {
    let mut node = Node::new().await;
    let (kept, _) = node.pod_with("cri", "sleep 1000").await;
    let running = run(&node, &script(DEAF, ""), &[]);
    listed(&mut node, 2).await;
    node.kill();
    let ended = end(running).await;
    ended.code(125);
    assert!(ended.stderr.contains("has gone"), "{}", ended.stderr);
    node.start();
    assert_eq!(listed(&mut node, 1).await, std::slice::from_ref(&kept));
    node.remove_pod(&kept).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_that_is_asked_to_end_takes_its_foreground_pods_along() {
    let mut node = Node::new().await;
    let running = run(&node, &script(POLITE, ""), &[]);
    until_ready(&mut node).await;
    node.stop().await;
    let ended = end(running).await;
    assert_eq!(ended.code(125).stdout, "ready\nbye\n");
    assert!(ended.stderr.contains("was told to end"), "{}", ended.stderr);
    node.start();
    node.assert_clean().await;
}

#[tokio::test]
async fn every_command_works_on_the_pods_of_a_daemon() {
    let mut node = Node::new().await;
    let (cri, container) = node.pod_with("cri", &format!("echo said; {POLITE}")).await;
    let running = run(&node, &script(POLITE, ""), &[]);
    let end_of_patience = Instant::now() + PATIENCE;
    loop {
        let mut ready = 0;
        for container in node.containers(ContainerFilter::default()).await {
            let log = node.status(&container.id).await.expect("status").log_path;
            ready += usize::from(log_text(Path::new(&log), "stdout").contains("ready"));
        }
        if ready == 2 {
            break;
        }
        assert!(Instant::now() < end_of_patience, "{ready} are ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pods = ask(&node, &["pods"]).await;
    assert!(pods.stdout.contains("cri") && pods.stdout.contains(" p "), "{}", pods.stdout);
    assert_eq!(ask(&node, &["ps"]).await.code(0).stdout.lines().count(), 3);
    assert_eq!(ask(&node, &["logs", "cri"]).await.code(0).stdout, "said\nready\n");
    assert_eq!(ask(&node, &["exec", "cri", "--", "echo", "in"]).await.code(0).stdout, "in\n");
    assert_eq!(ask(&node, &["exec", "p/c", "--", "sh", "-c", "exit 9"]).await.code(9).stdout, "");
    assert!(ask(&node, &["inspect", "cri/c"]).await.code(0).stdout.contains(&container[..12]));
    ask(&node, &["stats", "cri"]).await.code(0);
    ask(&node, &["stop", "cri/c"]).await.code(0);
    let status = node.status(&container).await.expect("status");
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    ask(&node, &["rm", "cri/c"]).await.code(0);
    assert!(node.status(&container).await.is_err(), "the daemon knows that it is removed");
    ask(&node, &["stop", "cri"]).await.code(0);
    assert_eq!(node.pod_status(&cri).await.expect("status").state(), PodSandboxState::SandboxNotready);
    ask(&node, &["rm", "cri"]).await.code(0);
    // A pod of `run` is stopped as without a daemon: its `run` ends with it.
    ask(&node, &["stop", "p"]).await.code(0);
    end(running).await.code(7);
    listed(&mut node, 0).await;
    node.assert_clean().await;
}

/// A page, over HTTP/1.1.
fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("connect");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: podwright\r\nConnection: close\r\n\r\n").expect("ask");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("read");
    page
}

/// The value of a metric, given all of its line before that.
fn metric(page: &str, name: &str) -> f64 {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {page}")).parse().expect("a number")
}

#[tokio::test]
async fn metrics_are_what_was_called_what_is_there_and_what_proc_says_of_the_daemon() {
    let machine = Machine::with_busybox();
    let socket = machine.temp.path().join("metrics.sock");
    let mut node = Node::of(machine, |command| {
        command.env("PODWRIGHT_METRICS_ADDRESS", &socket);
    })
    .await;
    let (pod, container) = node.pod_with("p", "sleep 1000").await;
    node.exec(&container, &["sleep", "0.3"], 10).await.expect("exec");
    assert!(node.status(&"0".repeat(64)).await.is_err());
    let page = get(&socket, "/metrics");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    let calls = |method: &str, code: &str| {
        let labels = format!("grpc_service=\"runtime.v1.RuntimeService\",grpc_method=\"{method}\"");
        metric(&page, &format!("grpc_server_handled_total{{{labels},grpc_code=\"{code}\"}}"))
    };
    assert_eq!((calls("RunPodSandbox", "OK"), calls("StartContainer", "OK")), (1.0, 1.0));
    assert_eq!(calls("ContainerStatus", "NotFound"), 1.0);
    let of_exec = "grpc_service=\"runtime.v1.RuntimeService\",grpc_method=\"ExecSync\"";
    let took = metric(&page, &format!("grpc_server_handling_seconds_sum{{{of_exec}}}"));
    assert!((0.3..PATIENCE.as_secs_f64()).contains(&took), "{took}");
    assert_eq!(metric(&page, &format!("grpc_server_handling_seconds_bucket{{{of_exec},le=\"0.25\"}}")), 0.0);
    assert_eq!(metric(&page, &format!("grpc_server_handling_seconds_bucket{{{of_exec},le=\"+Inf\"}}")), 1.0);
    assert_eq!(metric(&page, "podwright_pods{state=\"ready\"}"), 1.0);
    assert_eq!(metric(&page, "podwright_containers{state=\"running\"}"), 1.0);
    // The second source: what the kernel says of the daemon. Its workers and its spare come when they come.
    let proc = PathBuf::from(format!("/proc/{}", node.pid()));
    until(PATIENCE, || {
        let page = get(&socket, "/metrics");
        let status = std::fs::read_to_string(proc.join("status")).expect("status");
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
            value.split_whitespace().next().expect("a value").parse::<f64>().expect("a number")
        };
        #[allow(clippy::cast_precision_loss, reason = "few")]
        let open = std::fs::read_dir(proc.join("fd")).expect("fd").count() as f64;
        let told =
            ["resident_memory_bytes", "threads", "open_fds"].map(|name| metric(&page, &format!("process_{name}")));
        let seen = [field("VmRSS:") * 1024.0, field("Threads:"), open];
        let same = (told[0] / seen[0] - 1.0).abs() < 0.1
            && told[1..].iter().zip(&seen[1..]).all(|(a, b)| (a - b).abs() <= 3.0);
        if same { Ok(()) } else { Err(format!("{told:?} are told, and {seen:?} are seen")) }
    });
    assert!(get(&socket, "/other").starts_with("HTTP/1.1 404 "));
    node.remove_pod(&pod).await.expect("remove");
    assert_eq!(metric(&get(&socket, "/metrics"), "podwright_pods{state=\"ready\"}"), 0.0);
    node.stop().await;
    assert!(!socket.exists());
}
