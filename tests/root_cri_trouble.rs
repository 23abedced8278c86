//! The daemon in trouble: clients that go away, shims that do not answer or speak another version, records that cannot be read or are of
//! another boot. One pod's trouble is no other's, nothing is lost, and every wait has an end.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{GONE_WITHIN, Machine, PATIENCE, Running, killed, until};
use podwright::criapi::*;
use podwright::sys::poll::{Interest, poll_until};
use podwright::sys::socket::{recvmsg, sendmsg};
use podwright::wire::{HEADER_BYTES, VERSIONS, frame_len};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tonic::Code;

/// Asserts that no process of that command line is there, soon.
fn gone(command: &str) {
    until(PATIENCE, || match running(command) {
        0 => Ok(()),
        n => Err(format!("{n} of {command:?} run")),
    });
}

/// How many processes have a command line that ends so.
fn running(command: &str) -> usize {
    let words = command.replace(' ', "\0") + "\0";
    let is =
        |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(words.as_bytes()));
    fixtures::machine::pids().filter(is).count()
}

/// Waits until something is so, and lets this thread do other work meanwhile.
async fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "not {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_command_ends_when_the_client_that_asked_for_it_has_gone() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    let sleeper = format!("sleep 7{}", std::process::id());
    for (timeout, deadline) in [(0, None), (0, Some(Duration::from_secs(2))), (500, None)] {
        let cmd = ["sh", "-c", &format!("setsid {sleeper} & {sleeper}")].map(str::to_owned).to_vec();
        let mut request = tonic::Request::new(ExecSyncRequest { container_id: id.clone(), cmd, timeout });
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let mut client = node.runtime.clone();
        let call = tokio::spawn(async move { client.exec_sync(request).await });
        // On a machine that is busy its time may be over before that.
        soon("running", || running(&sleeper) == 2 || deadline.is_some() && call.is_finished()).await;
        if deadline.is_none() {
            call.abort(); // as a client that is killed: its stream is reset
        }
        let ended = call.await;
        assert!(ended.is_err() || ended.is_ok_and(|answer| answer.is_err()));
        tokio::task::spawn_blocking({
            let sleeper = sleeper.clone();
            move || gone(&sleeper)
        })
        .await
        .expect("all of it is killed, what it left in the background too");
    }
    assert_eq!(node.exec(&id, &["echo", "on"], 10).await.expect("the pod goes on").stdout, b"on\n");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn when_a_command_is_said_to_have_timed_out_nothing_of_it_runs() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    // The one with much memory takes longer to die than the first process, whose end is seen at once.
    let many = "awk 'BEGIN { s = sprintf(\"%200000000d\", 0); while (1); }' & while :; do :; done";
    let cgroup = node.machine.cgroup_dir().join("pods").join(&pod).join(&id);
    // One that is empty may be about to be removed.
    let alive = |dir: &std::path::Path| {
        std::fs::read_to_string(dir.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
    };
    let execs = || {
        let entries = std::fs::read_dir(&cgroup).expect("the container's cgroup").flatten();
        let execs = entries.filter(|e| e.file_name().to_string_lossy().starts_with("exec-"));
        execs.filter(|e| alive(&e.path())).count()
    };
    for _ in 0..3 {
        let late = node.exec(&id, &["sh", "-c", many], 1).await.expect_err("too long");
        assert_eq!((late.code(), execs()), (Code::DeadlineExceeded, 0), "{late:?}");
    }
    assert!(cgroup.join("cgroup.procs").exists());
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

/// As a shell or a unit starts a program that has said nothing of its files.
fn with_few_files(command: &mut Command) {
    let given = std::mem::replace(command, Command::new("sh"));
    command.args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\""]).arg(given.get_program()).args(given.get_args());
    for (name, value) in given.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

#[tokio::test]
async fn clients_that_leave_their_connections_open_hold_up_no_other() {
    let mut node = Node::of(Machine::with_busybox(), with_few_files).await;
    let connect = |_| UnixStream::connect(node.socket()).expect("connect");
    let open: Vec<UnixStream> = (0..600).map(connect).collect();
    // With a connection of its own, for the node's is made with its first call.
    let version = node.runtime.version(VersionRequest::default());
    let version = tokio::time::timeout(PATIENCE, version).await.expect("in time").expect("version");
    assert_eq!(version.into_inner().runtime_name, "podwright");
    drop(open);
    node.assert_clean().await;
}

#[tokio::test]
async fn an_answer_has_at_most_what_a_client_takes() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    let flood = "yes out | head -c 30000000; yes err | head -c 30000000 >&2; exit 5";
    let answer = node.exec(&id, &["sh", "-c", flood], 60).await.expect("a client's limit of 16 MiB is not exceeded");
    let (out, err) = (answer.stdout.len(), answer.stderr.len());
    assert_eq!((answer.exit_code, err), (5, 1 << 20), "the command was not disturbed");
    assert!(out + err > 15 << 20 && out + err < 16 << 20, "{out} and {err}");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_retry_after_a_deadline_gets_what_the_first_call_made() {
    let mut node = Node::new().await;
    let config = node.sandbox("p");
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    // Each client gives up at another moment: before the call is read, in the middle of it, after it.
    let mut ids = Vec::new();
    for micros in [0, 200, 500, 1000, 2000, 4000, 8000] {
        let mut client = node.runtime.clone();
        let patience = Duration::from_micros(micros);
        let first = tokio::time::timeout(patience, client.run_pod_sandbox(request.clone())).await;
        if let Ok(answer) = first {
            ids.push(answer.expect("run").into_inner().pod_sandbox_id);
        }
        let mut asked = script("c", "sleep 1000");
        asked.metadata = Some(ContainerMetadata { name: format!("c{micros}"), attempt: 0 });
        let pod = node.run_pod(config.clone()).await.expect("never: name is reserved");
        ids.push(pod.clone());
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(asked.clone()),
            sandbox_config: Some(config.clone()),
        };
        let mut containers = Vec::new();
        if let Ok(answer) = tokio::time::timeout(patience, client.create_container(create)).await {
            containers.push(answer.expect("create").into_inner().container_id);
        }
        containers.push(node.create(&pod, asked.clone(), config.clone()).await.expect("never: name is reserved"));
        containers.dedup();
        assert_eq!(containers.len(), 1);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 1);
    assert_eq!(node.containers(ContainerFilter::default()).await.len(), 7);
    node.remove_pod(&ids[0]).await.expect("remove");
    node.assert_clean().await;
}

/// The value of a key in what the runtime says of itself.
async fn info(node: &mut Node, key: &str) -> serde_json::Value {
    let status = node.runtime.status(StatusRequest { verbose: true }).await.expect("status").into_inner();
    serde_json::from_str::<serde_json::Value>(&status.info["podwright"]).expect("JSON")[key].clone()
}

fn remove_image() -> RemoveImageRequest {
    RemoveImageRequest { image: Some(ImageSpec { image: "busybox".into(), ..ImageSpec::default() }) }
}

#[tokio::test]
async fn a_pod_record_that_cannot_be_read_is_shown_and_kept_and_blocks_no_other_pod() {
    let mut node = Node::new().await;
    let (a, in_a) = node.pod_with("a", "sleep 1000").await;
    let (b, in_b) = node.pod_with("b", "sleep 1000").await;
    let record = node.machine.state().join("pods").join(&b).join("pod.json");
    let whole = std::fs::read(&record).expect("record");
    let before = node.status(&in_b).await.expect("status");
    for broken in [&whole[..whole.len() / 2], &b"\0\0\0\0"[..], br#"{"version":99,"kind":"pod"}"#] {
        node.kill();
        std::fs::write(&record, broken).expect("write");
        node.start();
        let mut listed = node.pods(PodSandboxFilter::default()).await;
        listed.sort_by_key(|pod| pod.id != a);
        let states: Vec<_> = listed.iter().map(|pod| (pod.id.as_str(), pod.state())).collect();
        let (ready, not) = (PodSandboxState::SandboxReady, PodSandboxState::SandboxNotready);
        assert_eq!(states, [(&*a, ready), (&*b, not)], "the other one is as before, and this one is no secret");
        assert!(listed[1].annotations["podwright.dev/unreadable"].contains("pod.json"), "{listed:?}");
        assert_eq!(node.status(&in_b).await.expect("it runs on"), before);
        assert_eq!(node.exec(&in_a, &["echo", "on"], 10).await.expect("exec").stdout, b"on\n");
        let (fresh, _) = node.pod_with("c", "sleep 1000").await;
        node.remove_pod(&fresh).await.expect("remove");

        let shown = info(&mut node, "unreadable").await;
        assert_eq!(shown[0]["path"].as_str(), record.to_str(), "{shown}");
        assert_eq!(std::fs::read(&record).expect("it is there"), broken, "neither removed nor written");
        let config = node.sandbox("b");
        let created = node.create(&b, script("d", "true"), config).await.map(|_| ());
        for refused in [created, node.exec(&in_b, &["true"], 10).await.map(|_| ())] {
            let refused = refused.expect_err("what it is cannot be known");
            assert!(
                refused.code() == Code::FailedPrecondition && refused.message().contains("pod.json"),
                "{refused:?}"
            );
        }
        let pods = fixtures::machine::json(&node.machine, &["pods", &b]);
        assert_eq!(pods["pods"][0]["status"], "Unreadable", "{pods}");
        let doctor = fixtures::machine::json(&node.machine, &["doctor"]);
        let about = |check: &&serde_json::Value| check["area"] == "records" && check["verdict"] == "warn";
        let checks = doctor["checks"].as_array().expect("a list");
        assert!(checks.iter().find(about).is_some_and(|c| c["found"].as_str().is_some_and(|f| f.contains("pod.json"))));
        // What it uses is not known: nothing is removed, and everything is listed.
        let images = node.images.list_images(ListImagesRequest::default()).await.expect("list").into_inner().images;
        assert_eq!(images.len(), 1);
        let refused = node.images.remove_image(remove_image()).await.expect_err("it may be in use");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let listed = fixtures::machine::ask(&node.machine, &["images"]);
        assert!(listed.code(0).stdout.contains("busybox") && listed.stderr.contains("pod.json"), "{listed:?}");
        fixtures::machine::ask(&node.machine, &["prune"]).refused(&["pod.json", "nothing is removed"]);
    }
    let said = node.stop().await;
    assert!(said.contains("ERROR") && said.contains("pod.json"), "{said}");
    std::fs::write(&record, whole).expect("repair");
    node.start();
    assert_eq!(info(&mut node, "unreadable").await, serde_json::json!([]));
    assert_eq!(node.pod_status(&b).await.expect("known again").state(), PodSandboxState::SandboxReady);
    assert_eq!(node.status(&in_b).await.expect("known again"), before, "it ran on all the time");
    for pod in [a, b] {
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_whose_record_cannot_be_read_can_be_stopped_and_removed() {
    let mut node = Node::new().await;
    let mut of_kubelet = script("c", "sleep 1000");
    of_kubelet.labels = [("name", "web"), ("namespace", "shop"), ("uid", "u-1")]
        .map(|(key, value)| (format!("io.kubernetes.pod.{key}"), value.to_owned()))
        .into();
    // With its shim, with another one that takes over, after the pod has ended with its shim; by its id, and by people.
    for (name, kill_shim, kill_pause) in
        [("a", false, false), ("b", true, false), ("c", true, true), ("d", false, false)]
    {
        let config = node.sandbox(name);
        let pod = node.run_pod(config.clone()).await.expect("run");
        let id = node.create(&pod, of_kubelet.clone(), config.clone()).await.expect("create");
        node.start_container(&id).await.expect("start");
        let shim = shim_of(&mut node, &pod).await;
        let of_pod = node.machine.state().join("pods").join(&pod);
        let text = std::fs::read_to_string(of_pod.join("sandbox.json")).expect("record");
        let sandbox: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        node.kill();
        std::fs::write(of_pod.join("pod.json"), "{").expect("write");
        let pause = u32::try_from(sandbox["pause"]["pid"].as_u64().expect("a pid")).expect("a pid");
        for (pid, yes) in [(shim, kill_shim), (pause, kill_pause)] {
            if yes {
                killed(pid);
            }
        }
        node.start();
        let listed = node.pods(PodSandboxFilter::default()).await;
        let metadata = listed[0].metadata.clone().expect("it has one");
        let named = (metadata.name.as_str(), metadata.namespace.as_str(), metadata.uid.as_str());
        assert_eq!((listed.len(), named), (1, ("web", "shop", "u-1")), "as its containers say");
        let runs = node.status(&id).await.expect("listed").state() == ContainerState::ContainerRunning;
        assert_eq!(runs, !kill_pause, "{name}");
        node.start_container(&id).await.expect_err("neither is it started");
        // Another one of that identity is another one, which a kubelet makes.
        let other = node.run_pod(config).await.expect("run");
        node.remove_pod(&other).await.expect("remove");
        if name == "d" {
            let mut rm = node.machine.podwright(["rm", "-f", &pod]);
            rm.env("PODWRIGHT_CRI_SOCKET", node.socket());
            Running::of(rm).wait().code(0);
        } else {
            node.stop_pod(&pod).await.expect("stop");
            assert_eq!(node.status(&id).await.expect("listed").state(), ContainerState::ContainerExited);
            node.remove_pod(&pod).await.expect("remove");
        }
        assert!(!of_pod.exists());
        assert_eq!(info(&mut node, "unreadable").await, serde_json::json!([]));
    }
    node.stop().await;
    node.machine.assert_as_before_within(GONE_WITHIN);
}

#[tokio::test]
async fn any_other_record_that_cannot_be_read_costs_no_more_than_what_it_says() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    let config = node.sandbox("p");
    let other = node.create(&pod, script("d", "exit 3"), config).await.expect("create");
    node.start_container(&other).await.expect("start");
    node.exited(&other).await;
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources { cpu_shares: 512, ..LinuxContainerResources::default() }),
        ..UpdateContainerResourcesRequest::default()
    };
    node.runtime.update_container_resources(request.clone()).await.expect("update");
    let of_pod = node.machine.state().join("pods").join(&pod);
    let (running, ended) = (of_pod.join("containers").join(&id), of_pod.join("containers").join(&other));
    let records = [
        of_pod.join("sandbox.json"),
        running.join("config.json"),
        running.join("process.json"),
        running.join("resources.json"),
        ended.join("config.json"),
        ended.join("process.json"),
        ended.join("exit.json"),
    ];
    for record in &records {
        node.kill();
        let whole = std::fs::read(record).expect("record");
        std::fs::write(record, "{").expect("write");
        node.start();
        assert_eq!(node.pod_status(&pod).await.expect("known").state(), PodSandboxState::SandboxReady, "{record:?}");
        let shown = info(&mut node, "unreadable").await;
        assert_eq!(shown.as_array().map(Vec::len), Some(1), "{shown}");
        assert_eq!(shown[0]["path"].as_str(), record.to_str());
        for (container, dir, state) in
            [(&id, &running, ContainerState::ContainerRunning), (&other, &ended, ContainerState::ContainerExited)]
        {
            let status = node.status(container).await;
            if *record == dir.join("config.json") {
                assert_eq!(status.expect_err("what it is cannot be known").code(), Code::Internal);
            } else {
                let status = status.expect("known");
                let code = if state == ContainerState::ContainerExited { 3 } else { 0 };
                assert_eq!((status.state(), status.exit_code), (state, code), "{record:?}: the shim knows");
            }
        }
        assert_eq!(std::fs::read(record).expect("it is there"), b"{", "neither removed nor written");
        if record.ends_with("resources.json") {
            node.runtime.update_container_resources(request.clone()).await.expect("update");
            assert_eq!(std::fs::read(record.with_extension("json.unreadable")).expect("aside"), b"{");
        } else {
            std::fs::write(record, whole).expect("repair");
        }
    }
    // One that is not known goes with its pod all the same.
    node.kill();
    std::fs::write(running.join("config.json"), "{").expect("write");
    node.start();
    node.remove_pod(&pod).await.expect("remove");
    assert_eq!(info(&mut node, "unreadable").await, serde_json::json!([]));
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_of_another_boot_is_swept() {
    let mut node = Node::new().await;
    let (a, in_a) = node.pod_with("a", "sleep 1000").await;
    let (b, _) = node.pod_with("b", "sleep 1000").await;
    // What a reboot does to its processes.
    node.stop_pod(&b).await.expect("stop");
    node.kill();
    let of_b = node.machine.state().join("pods").join(&b);
    std::fs::remove_file(of_b.join("stopped.json")).expect("as if it had run");
    let text = std::fs::read_to_string(of_b.join("pod.json")).expect("record");
    let mut record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let shim = record["shim"]["pid"].as_u64().expect("a pid");
    killed(u32::try_from(shim).expect("a pid"));
    record["boot_id"] = "00000000-0000-4000-8000-000000000000".into();
    // By now its number is another process's, which is not to be touched.
    record["shim"]["pid"] = std::process::id().into();
    std::fs::write(of_b.join("pod.json"), record.to_string()).expect("write");
    node.start();
    let listed: Vec<String> = node.pods(PodSandboxFilter::default()).await.into_iter().map(|p| p.id).collect();
    assert_eq!(listed, std::slice::from_ref(&a));
    assert!(!of_b.exists());
    assert_eq!(node.exec(&in_a, &["echo", "on"], 10).await.expect("exec").stdout, b"on\n");
    node.remove_pod(&a).await.expect("remove");
    node.assert_clean().await;
}

/// The pid of a pod's shim.
async fn shim_of(node: &mut Node, pod: &str) -> u32 {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
    let answer = node.runtime.pod_sandbox_status(request).await.expect("status").into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).expect("JSON");
    u32::try_from(info["shim"]["pid"].as_u64().expect("a pid")).expect("a pid")
}

/// A process that stands still until it is told to go on, in any case at the end of the test.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Stopped {
        podwright::sys::exec::kill(pid, 19).expect("SIGSTOP");
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = podwright::sys::exec::kill(self.0, 18); // it may have been killed
    }
}

#[tokio::test]
async fn verbs_on_one_pod_wait_for_each_other_and_on_different_pods_do_not() {
    let mut node = Node::new().await;
    let (a, in_a) = node.pod_with("a", "sleep 1000").await;
    let config = node.sandbox("a");
    let second = node.create(&a, script("second", "sleep 1000"), config.clone()).await.expect("create");
    let stopped = Stopped::new(shim_of(&mut node, &a).await);

    let mut client = node.runtime.clone();
    let request = StartContainerRequest { container_id: second.clone() };
    let start = tokio::spawn(async move { client.start_container(request).await });
    let mut client = node.runtime.clone();
    let request = ExecSyncRequest { container_id: in_a, cmd: vec!["true".into()], timeout: 30 };
    let exec = tokio::spawn(async move { client.exec_sync(request).await });
    // In the order in which they came: it is another verb on that pod, which the start has by now.
    let cgroup = node.machine.cgroup_dir().join("pods").join(&a).join(&second);
    soon("at its start", || cgroup.exists()).await;
    let mut client = node.runtime.clone();
    let create = CreateContainerRequest {
        pod_sandbox_id: a.clone(),
        config: Some(script("third", "sleep 1000")),
        sandbox_config: Some(config),
    };
    let create = tokio::spawn(async move { client.create_container(create).await });

    let (b, in_b) = node.pod_with("b", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done").await;
    let log = node.status(&in_b).await.expect("status").log_path;
    soon("ready", || log_text(Path::new(&log), "stdout") == "ready\n").await;
    assert_eq!(node.exec(&in_b, &["echo", "on"], 10).await.expect("exec").stdout, b"on\n");
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 2);
    node.stop_container(&in_b, 30).await.expect("stop");
    assert_eq!(node.status(&in_b).await.expect("status").exit_code, 5);
    node.remove_pod(&b).await.expect("remove");
    assert!(!start.is_finished() && !exec.is_finished() && !create.is_finished(), "that pod's shim stands still");
    drop(stopped);
    start.await.expect("joined").expect("start");
    exec.await.expect("joined").expect("exec");
    create.await.expect("joined").expect("create");
    assert_eq!(node.status(&second).await.expect("status").state(), ContainerState::ContainerRunning);
    node.remove_pod(&a).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn calls_to_a_shim_that_stands_still_end_and_its_pod_can_be_stopped() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    let shim = shim_of(&mut node, &pod).await;
    let _stopped = Stopped::new(shim);
    let begun = Instant::now();
    let late = node.stop_container(&id, 0).await.expect_err("nobody kills it");
    assert!(late.code() == Code::DeadlineExceeded && late.message().contains("shim"), "{late:?}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(node.status(&id).await.expect("status").state(), ContainerState::ContainerRunning, "it does run");
    // A pod that is to end ends without its shim.
    node.stop_pod(&pod).await.expect("stop");
    assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", begun.elapsed());
    assert_eq!(node.status(&id).await.expect("status").state(), ContainerState::ContainerExited);
    node.remove_pod(&pod).await.expect("remove");
    node.stop().await;
    // What the shim was parent of is the host's init's to reap.
    node.machine.assert_as_before_within(GONE_WITHIN);
}

#[tokio::test]
async fn a_shim_that_stands_still_does_not_hold_up_the_start() {
    let mut node = Node::new().await;
    let (a, in_a) = node.pod_with("a", "sleep 1000").await;
    let (b, in_b) = node.pod_with("b", "sleep 1000").await;
    let before = node.status(&in_a).await.expect("status");
    let shim = shim_of(&mut node, &a).await;
    node.kill();
    let stopped = Stopped::new(shim);
    let begun = Instant::now();
    node.start();
    // What a shim is given until it is given up.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(node.pod_status(&a).await.expect("listed").state(), PodSandboxState::SandboxNotready);
    assert_eq!(node.pod_status(&b).await.expect("listed").state(), PodSandboxState::SandboxReady);
    assert_eq!(node.exec(&in_b, &["echo", "on"], 10).await.expect("exec").stdout, b"on\n");
    let mut client = node.runtime.clone();
    let request = ExecSyncRequest { container_id: in_a.clone(), cmd: vec!["echo".into(), "on".into()], timeout: 30 };
    let exec = tokio::spawn(async move { client.exec_sync(request).await });
    drop(stopped);
    assert_eq!(exec.await.expect("joined").expect("it was waited for").into_inner().stdout, b"on\n");
    assert_eq!(node.pod_status(&a).await.expect("listed").state(), PodSandboxState::SandboxReady);
    assert_eq!(node.status(&in_a).await.expect("status"), before, "nothing has happened to it");
    for pod in [a, b] {
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

/// A whole frame of the shim's protocol, with what rides along; `None` at the end.
fn frame(from: &UnixStream) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut bytes, mut fds, mut wanted) = (Vec::new(), Vec::new(), HEADER_BYTES);
    while bytes.len() < wanted {
        let mut chunk = vec![0; wanted - bytes.len()];
        poll_until(from.as_fd(), Interest::Read, PATIENCE).expect("poll");
        let got = recvmsg(from, &mut chunk).ok().filter(|got| got.bytes > 0)?;
        bytes.extend_from_slice(&chunk[..got.bytes]);
        fds.extend(got.fds);
        if let (HEADER_BYTES, Some(header)) = (bytes.len(), bytes.first_chunk()) {
            wanted += frame_len(*header).expect("short");
        }
    }
    Some((bytes, fds))
}

fn pass_on(to: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> Option<()> {
    let riding: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let sent = sendmsg(to, bytes, &riding).ok()?;
    (&mut &*to).write_all(&bytes[sent..]).ok()
}

/// Takes the place of a pod's shim: what is between it and the daemon goes through `greet`, which is given the daemon's greeting.
fn instead_of_shim(node: &Node, pod: &str, greet: impl Fn(&UnixStream, String) -> Option<UnixStream> + Send + 'static) {
    let socket = node.machine.state().join("pods").join(pod).join("shim.sock");
    std::fs::rename(&socket, socket.with_extension("real")).expect("rename");
    let listener = podwright::engine::shim::listen_at(&socket).expect("bind");
    std::thread::spawn(move || {
        let (daemon, _) = listener.accept().expect("accept");
        let (greeting, _) = frame(&daemon).expect("a greeting");
        let text = String::from_utf8(greeting[HEADER_BYTES..].to_vec()).expect("JSON");
        let Some(shim) = greet(&daemon, text) else {
            while frame(&daemon).is_some() {}
            return;
        };
        let (from, to) = (shim.try_clone().expect("dup"), daemon.try_clone().expect("dup"));
        std::thread::spawn(move || while frame(&from).and_then(|(bytes, fds)| pass_on(&to, &bytes, &fds)).is_some() {});
        while frame(&daemon).and_then(|(bytes, fds)| pass_on(&shim, &bytes, &fds)).is_some() {}
        let _ = shim.shutdown(std::net::Shutdown::Both); // it may have ended
    });
}

fn shim_again(node: &Node, pod: &str) {
    let socket = node.machine.state().join("pods").join(pod).join("shim.sock");
    std::fs::rename(socket.with_extension("real"), &socket).expect("rename");
}

fn framed(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("short");
    [&len.to_le_bytes()[..], text.as_bytes()].concat()
}

#[tokio::test]
async fn a_shim_of_the_version_before_is_understood() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    node.kill();
    let real = node.machine.state().join("pods").join(&pod).join("shim.real");
    instead_of_shim(&node, &pod, move |_, greeting| {
        let shim = UnixStream::from(podwright::engine::shim::connect(&real).expect("connect"));
        let older = greeting.replace(&format!("[1,{}]", VERSIONS.1), "[1,1]");
        assert_ne!(older, greeting, "the version before is one that this one speaks");
        pass_on(&shim, &framed(&older), &[])?;
        Some(shim)
    });
    node.start();
    assert_eq!(node.pod_status(&pod).await.expect("known").state(), PodSandboxState::SandboxReady);
    assert_eq!(node.exec(&id, &["echo", "on"], 10).await.expect("exec").stdout, b"on\n");
    // What that version cannot do is done without: a command that nobody waits for ends at its own timeout.
    let sleeper = format!("sleep 8{}", std::process::id());
    let cmd = ["sh", "-c", &format!("{sleeper}; true")].map(str::to_owned).to_vec();
    let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 2 };
    let mut client = node.runtime.clone();
    let call = tokio::spawn(async move { client.exec_sync(request).await });
    soon("running", || running(&sleeper) == 1 || call.is_finished()).await;
    call.abort();
    soon("ended", || running(&sleeper) == 0).await;
    node.stop_container(&id, 0).await.expect("stop");
    assert_eq!(node.status(&id).await.expect("status").exit_code, 137);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_shim_of_a_later_version_is_left_alone_with_its_pod() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    let before = node.status(&id).await.expect("status");
    node.kill();
    instead_of_shim(&node, &pod, |daemon, _| {
        let refusal = r#"{"Reply":{"id":1,"reply":{"Failed":{"kind":"Unsupported","message":"the peer speaks versions 1 to 2 of the shim protocol, this podwright 8 to 9","errno":0}}}}"#;
        pass_on(daemon, &framed(refusal), &[]);
        None
    });
    node.start();
    assert_eq!(node.pod_status(&pod).await.expect("listed").state(), PodSandboxState::SandboxNotready);
    assert_eq!(node.status(&id).await.expect("listed"), before, "it runs, as its records say");
    let refusals = [
        node.exec(&id, &["true"], 10).await.map(|_| ()),
        node.stop_container(&id, 0).await,
        node.remove_container(&id).await,
        node.stop_pod(&pod).await,
        node.remove_pod(&pod).await,
    ];
    for refused in refusals {
        let refused = refused.expect_err("nobody can speak with it");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("8 to 9") && refused.message().contains("out of reach"), "{refused:?}");
    }
    let said = node.stop().await;
    assert!(said.contains("ERROR") && said.contains("8 to 9"), "{said}");
    shim_again(&node, &pod);
    node.start();
    assert_eq!(node.pod_status(&pod).await.expect("listed").state(), PodSandboxState::SandboxReady, "it is not lost");
    assert_eq!(node.status(&id).await.expect("status"), before);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}
