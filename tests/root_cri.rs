//! The daemon behind its socket, with a kubelet's calls: the life of pods and containers, each answer beside a second source (/proc,
//! cgroup files, the log), and the daemon killed in the middle of it.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{Machine, PATIENCE, Running, until};
use podwright::criapi::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Code;

fn exists(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// The value of a key in a verbose answer's JSON.
fn info(info: &std::collections::BTreeMap<String, String>, key: &str) -> serde_json::Value {
    let text = info.get("info").expect("verbose");
    serde_json::from_str::<serde_json::Value>(text).expect("JSON")[key].clone()
}

async fn pid_of(node: &mut Node, container: &str) -> String {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let answer = node.runtime.container_status(request).await.expect("status").into_inner();
    info(&answer.info, "pid").to_string()
}

#[tokio::test]
async fn the_runtime_says_what_it_is_and_what_it_can() {
    let mut node = Node::new().await;
    let version = node.runtime.version(VersionRequest::default()).await.expect("version").into_inner();
    assert_eq!((version.version.as_str(), version.runtime_api_version.as_str()), ("0.1.0", "v1"));
    assert_eq!((version.runtime_name.as_str(), version.runtime_version.as_str()), ("podwright", "0.1.0"));

    let status = node.runtime.status(StatusRequest { verbose: true }).await.expect("status").into_inner();
    let conditions = status.status.expect("conditions").conditions;
    let is = |kind: &str| conditions.iter().find(|c| c.r#type == kind).expect("there").status;
    assert!(is("RuntimeReady") && !is("NetworkReady"), "a pod network is a later version's");
    assert!(status.info["config"].contains("cri.socket"));
    assert_eq!(status.runtime_handlers.len(), 1);

    let config = node.runtime.runtime_config(RuntimeConfigRequest {}).await.expect("config").into_inner();
    assert_eq!(config.linux.expect("linux").cgroup_driver(), CgroupDriver::Cgroupfs);
    node.runtime.update_runtime_config(UpdateRuntimeConfigRequest::default()).await.expect("never fails");

    let later = [
        node.runtime.checkpoint_pod(CheckpointPodRequest::default()).await.map(|_| ()).expect_err("later"),
        node.runtime.restore_pod(RestorePodRequest::default()).await.map(|_| ()).expect_err("later"),
    ];
    for (status, name) in later.iter().zip(["CheckpointPod", "RestorePod"]) {
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(status.message().starts_with(name), "{status:?}");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_lives_from_run_to_remove_as_its_statuses_say() {
    let mut node = Node::new().await;
    let config = node.sandbox("web");
    let pod = node.run_pod(config.clone()).await.expect("run");
    let status = node.pod_status(&pod).await.expect("status");
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!((&status.labels, &status.annotations), (&config.labels, &config.annotations));
    assert_eq!(status.metadata, config.metadata);

    let mut asked = script("c", "trap 'exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.05; done");
    let source = node.machine.dir("volume");
    asked.mounts =
        vec![Mount { container_path: "/data".into(), host_path: source.display().to_string(), ..Mount::default() }];
    asked.annotations.insert("io.kubernetes.container.hash".into(), "abc".into());
    let id = node.create(&pod, asked.clone(), config.clone()).await.expect("create");
    let created = node.status(&id).await.expect("status");
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert_eq!((created.started_at, created.finished_at), (0, 0));

    node.start_container(&id).await.expect("start");
    let running = node.status(&id).await.expect("status");
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at > running.created_at && running.created_at > 0);
    assert_eq!(running.mounts.len(), 1, "those that were asked for and no other");
    assert_eq!((running.mounts[0].container_path.as_str(), &running.annotations), ("/data", &asked.annotations));
    let log = PathBuf::from(&running.log_path);
    assert_eq!(log, Path::new(&config.log_directory).join("c/0.log"));
    let pid = pid_of(&mut node, &id).await;
    let hostname = node.exec(&id, &["cat", "/etc/hostname"], 10).await.expect("exec");
    assert_eq!(String::from_utf8_lossy(&hostname.stdout), "web\n");
    assert!(std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it runs").contains("while"));

    until(PATIENCE, || if log_text(&log, "stderr") == "err\n" { Ok(()) } else { Err("it has no trap yet".to_owned()) });
    node.stop_container(&id, 30).await.expect("stop");
    let exited = node.status(&id).await.expect("status");
    assert_eq!(exited.state(), ContainerState::ContainerExited);
    assert_eq!((exited.exit_code, exited.reason.as_str()), (7, "Error"), "its own answer to SIGTERM");
    assert!(exited.finished_at > exited.started_at && !exists(&pid));
    assert_eq!((log_text(&log, "stdout").as_str(), log_text(&log, "stderr").as_str()), ("out\n", "err\n"));

    node.stop_pod(&pod).await.expect("stop");
    assert_eq!(node.pod_status(&pod).await.expect("listed").state(), PodSandboxState::SandboxNotready);
    node.remove_container(&id).await.expect("remove");
    assert_eq!(node.status(&id).await.expect_err("gone").code(), Code::NotFound);
    node.remove_pod(&pod).await.expect("remove");
    assert_eq!(node.pod_status(&pod).await.expect_err("gone").code(), Code::NotFound);
    assert!(log.exists(), "logs are the kubelet's");
    node.assert_clean().await;
}

#[tokio::test]
async fn what_is_gone_is_stopped_and_removed_already() {
    let mut node = Node::new().await;
    for unknown in ["0".repeat(64), "f81d4fae-7dec-11d0-a765-00a0c91e6bf6".to_owned()] {
        node.stop_container(&unknown, 0).await.expect("as asked");
        node.remove_container(&unknown).await.expect("as asked");
        node.stop_pod(&unknown).await.expect("as asked");
        node.remove_pod(&unknown).await.expect("as asked");
        assert_eq!(node.status(&unknown).await.expect_err("unknown").code(), Code::NotFound);
        assert_eq!(node.pod_status(&unknown).await.expect_err("unknown").code(), Code::NotFound);
        assert_eq!(node.exec(&unknown, &["true"], 0).await.expect_err("unknown").code(), Code::NotFound);
    }
    let (pod, container) = node.pod_with("p", "sleep 1000").await;
    for _ in 0..2 {
        node.stop_container(&container, 0).await.expect("twice is as once");
        node.stop_pod(&pod).await.expect("twice is as once");
    }
    assert_eq!(node.status(&container).await.expect("status").exit_code, 137);
    for _ in 0..2 {
        node.remove_pod(&pod).await.expect("twice is as once");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn lists_are_filtered_by_all_that_is_given() {
    let mut node = Node::new().await;
    let (a, in_a) = node.pod_with("a", "sleep 1000").await;
    let (b, in_b) = node.pod_with("b", "exit 0").await;
    node.exited(&in_b).await;
    node.stop_pod(&b).await.expect("stop");

    let all = node.pods(PodSandboxFilter::default()).await;
    assert_eq!(all.iter().map(|p| &p.id).collect::<BTreeSet<_>>(), BTreeSet::from([&a, &b]));
    let ready = PodSandboxStateValue { state: PodSandboxState::SandboxReady as i32 };
    let only = node.pods(PodSandboxFilter { state: Some(ready), ..Default::default() }).await;
    assert_eq!(only.iter().map(|p| &p.id).collect::<Vec<_>>(), [&a]);
    let short = node.pods(PodSandboxFilter { id: b[..10].to_owned(), ..Default::default() }).await;
    assert_eq!(short.len(), 1);
    let labels = |name: &str| [("app".to_owned(), "test".to_owned()), ("io.kubernetes.pod.name".into(), name.into())];
    let by_label = node.pods(PodSandboxFilter { label_selector: labels("b").into(), ..Default::default() }).await;
    assert_eq!(by_label.iter().map(|p| &p.id).collect::<Vec<_>>(), [&b]);
    let nothing = PodSandboxFilter { label_selector: labels("b").into(), id: a.clone(), ..Default::default() };
    assert_eq!(node.pods(nothing).await, []);

    let exited = ContainerStateValue { state: ContainerState::ContainerExited as i32 };
    let filter = ContainerFilter { state: Some(exited), ..Default::default() };
    assert_eq!(node.containers(filter).await.iter().map(|c| &c.id).collect::<Vec<_>>(), [&in_b]);
    let filter = ContainerFilter { pod_sandbox_id: a.clone(), ..Default::default() };
    let of_a = node.containers(filter).await;
    assert_eq!(of_a.iter().map(|c| &c.id).collect::<Vec<_>>(), [&in_a]);
    for pod in [a, b] {
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn lists_come_in_pieces_too() {
    let mut node = Node::new().await;
    let (pod, _) = node.pod_with("a", "sleep 1000").await;
    let mut stream = node.runtime.stream_containers(StreamContainersRequest::default()).await.expect("stream");
    let piece = stream.get_mut().message().await.expect("a piece").expect("not empty");
    assert_eq!(piece.containers.len(), 1);
    assert!(stream.get_mut().message().await.expect("the end").is_none());
    node.remove_pod(&pod).await.expect("remove");
    let mut stream = node.runtime.stream_pod_sandboxes(StreamPodSandboxesRequest::default()).await.expect("stream");
    assert!(stream.get_mut().message().await.expect("the end").is_none(), "nothing is no message");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_retry_gets_the_first_calls_object_and_another_config_is_told_apart() {
    let mut node = Node::new().await;
    let config = node.sandbox("p");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let mut client = node.runtime.clone();
        calls.spawn(async move { client.run_pod_sandbox(request).await.expect("run").into_inner().pod_sandbox_id });
    }
    let mut ids = calls.join_all().await;
    ids.dedup();
    assert_eq!(ids.len(), 1, "eight calls at once are one pod");
    let pod = ids.remove(0);
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 1);
    let mut other = config.clone();
    other.hostname = "other".into();
    assert_eq!(node.run_pod(other).await.expect_err("another").code(), Code::AlreadyExists);

    let asked = script("c", "sleep 1000");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(asked.clone()),
            sandbox_config: Some(config.clone()),
        };
        let mut client = node.runtime.clone();
        calls.spawn(async move { client.create_container(request).await.expect("create").into_inner().container_id });
    }
    let mut ids = calls.join_all().await;
    ids.dedup();
    assert_eq!(ids.len(), 1, "eight calls at once are one container");
    let other = node.create(&pod, script("c", "sleep 2000"), config.clone()).await;
    assert_eq!(other.expect_err("another").code(), Code::AlreadyExists);

    // A client that gives up: what it asked for is there when it comes again.
    let mut request =
        tonic::Request::new(RunPodSandboxRequest { config: Some(node.sandbox("q")), runtime_handler: String::new() });
    request.set_timeout(Duration::from_millis(1));
    let given_up = node.runtime.run_pod_sandbox(request).await;
    let sandbox = node.sandbox("q");
    let q = node.run_pod(sandbox.clone()).await.expect("the retry");
    assert_eq!(node.run_pod(sandbox).await.expect("again"), q);
    assert_eq!(node.pods(PodSandboxFilter::default()).await.len(), 2, "{given_up:?}");
    node.stop_pod(&q).await.expect("stop");
    let sandbox = node.sandbox("q");
    assert_eq!(node.run_pod(sandbox).await.expect_err("it has stopped").code(), Code::FailedPrecondition);
    for pod in [pod, q] {
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_leaves_nothing() {
    let mut node = Node::new().await;
    let request = RunPodSandboxRequest { config: Some(node.sandbox("p")), runtime_handler: "kata".into() };
    let refused = node.runtime.run_pod_sandbox(request).await.expect_err("no such handler");
    assert!(refused.message().contains("kata"), "{refused:?}");
    assert_eq!(node.pods(PodSandboxFilter::default()).await, []);

    let config = node.sandbox("p");
    let pod = node.run_pod(config.clone()).await.expect("run");
    let mut missing = script("c", "true");
    missing.image = Some(ImageSpec { image: "nothing".into(), ..Default::default() });
    assert_eq!(node.create(&pod, missing, config.clone()).await.expect_err("no image").code(), Code::NotFound);
    let mut privileged = script("c", "true");
    let context = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    privileged.linux = Some(LinuxContainerConfig { security_context: Some(context), resources: None });
    let refused = node.create(&pod, privileged, config.clone()).await.expect_err("the pod is not");
    assert!(refused.message().contains("privileged"), "{refused:?}");
    let unknown = node.create(&"0".repeat(64), script("c", "true"), config).await;
    assert_eq!(unknown.expect_err("no pod").code(), Code::NotFound);
    assert_eq!(node.containers(ContainerFilter::default()).await, []);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_container_that_cannot_start_says_why_and_stays_listed() {
    let mut node = Node::new().await;
    let config = node.sandbox("p");
    let pod = node.run_pod(config.clone()).await.expect("run");
    let mut asked = script("c", "");
    asked.command = vec!["/bin/nothing".into()];
    let id = node.create(&pod, asked, config).await.expect("create");
    let refused = node.start_container(&id).await.expect_err("there is no such program");
    assert!(refused.message().contains("/bin/nothing"), "{refused:?}");
    let status = node.status(&id).await.expect("listed");
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 128));
    assert_eq!(status.reason, "StartError");
    assert!(status.message.contains("/bin/nothing"), "{}", status.message);
    node.start_container(&id).await.expect_err("only once");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn what_the_contract_leaves_open_is_decided() {
    let mut node = Node::new().await;
    assert_eq!(node.stop_pod("").await.expect_err("no id").code(), Code::InvalidArgument);
    let mut slice = node.sandbox("p");
    slice.linux = Some(LinuxPodSandboxConfig { cgroup_parent: "kubepods.slice".into(), ..Default::default() });
    assert!(node.run_pod(slice).await.expect_err("systemd").message().contains("cgroup_parent"));

    let (a, in_a) = node.pod_with("a", "sleep 1000").await;
    assert_eq!(node.status(&in_a).await.expect("status").stop_signal(), Signal::Sigterm);
    let image = node.images.image_status(ImageStatusRequest {
        image: Some(ImageSpec { image: "busybox".into(), ..Default::default() }),
        verbose: false,
    });
    let image = image.await.expect("status").into_inner().image.expect("there");
    let listed = node.containers(ContainerFilter::default()).await;
    assert_eq!(listed[0].image_id, image.id, "what image collection goes by");
    let config = node.sandbox("b");
    let b = node.run_pod(config.clone()).await.expect("run");
    let all = node.pods(PodSandboxFilter::default()).await;
    assert_eq!(all.iter().map(|p| &p.id).collect::<Vec<_>>(), [&b, &a], "the newest first");

    let wrong = ContainerConfig { command: vec!["/bin/nothing".into()], ..script("c", "") };
    let wrong = node.create(&b, wrong, config).await.expect("create");
    assert!(node.start_container(&wrong).await.expect_err("no program").message().contains("ENOENT"));
    assert_eq!(node.start_container(&wrong).await.expect_err("only once").code(), Code::FailedPrecondition);
    let request = ReopenContainerLogRequest { container_id: wrong };
    let refused = node.runtime.reopen_container_log(request).await.expect_err("it has ended");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let request = UpdateContainerResourcesRequest {
        container_id: in_a.clone(),
        linux: Some(LinuxContainerResources { cpu_shares: -1, ..Default::default() }),
        ..Default::default()
    };
    let refused = node.runtime.update_container_resources(request).await.expect_err("negative");
    assert_eq!(refused.code(), Code::InvalidArgument);
    node.stop_container(&in_a, 0).await.expect("stop");
    let stats = node.runtime.list_container_stats(ListContainerStatsRequest::default()).await.expect("stats");
    assert_eq!(stats.into_inner().stats.len(), 0, "what has ended uses nothing");
    for pod in [a, b] {
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn exec_sync_returns_output_and_code_and_leaves_nothing_behind() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    let done = node.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"], 10).await.expect("exec");
    assert_eq!((done.stdout.as_slice(), done.stderr.as_slice(), done.exit_code), (&b"out\n"[..], &b"err\n"[..], 3));

    let start = Instant::now();
    let late = node.exec(&id, &["sh", "-c", "sleep 54321 & sleep 54321"], 1).await.expect_err("too long");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert!(start.elapsed() < PATIENCE);
    let left = node.exec(&id, &["sh", "-c", "ps | grep -c '[s]leep 54321'"], 10).await.expect("exec");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "0\n", "all of it was killed");

    let held = node.exec(&id, &["sh", "-c", "echo first; setsid sleep 1000 & exit 0"], 60).await;
    let held = held.expect("a grandchild holds the pipe, and the call returns");
    assert_eq!((held.stdout.as_slice(), held.exit_code), (&b"first\n"[..], 0));

    let much = node.exec(&id, &["sh", "-c", "yes | head -c 30000000; echo end >&2"], 60).await.expect("exec");
    assert_eq!((much.exit_code, much.stderr.as_slice()), (0, &b"end\n"[..]), "it was not stopped by a full pipe");
    assert!(much.stdout.len() >= 4 << 20 && much.stdout.len() < 16 << 20, "{}", much.stdout.len());

    let wrong = node.exec(&id, &["/nothing"], 0).await.expect_err("no such program");
    assert!(wrong.message().contains("/nothing"), "{wrong:?}");
    node.exec(&id, &[], 0).await.expect_err("no command");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

/// The next event of these; a server may have kept those of others, from before somebody listened.
async fn event_of(events: &mut tonic::Streaming<ContainerEventResponse>, ids: &[String]) -> ContainerEventResponse {
    loop {
        let event = tokio::time::timeout(PATIENCE, events.message()).await.expect("an event, in time");
        let event = event.expect("no error").expect("no end");
        if ids.contains(&event.container_id) {
            return event;
        }
    }
}

#[tokio::test]
async fn events_come_in_order_with_the_state_that_they_tell_of() {
    let mut node = Node::new().await;
    let mut events = node.runtime.get_container_events(GetEventsRequest {}).await.expect("listen").into_inner();
    let (pod, id) = node.pod_with("p", "exit 3").await;
    node.exited(&id).await;
    node.remove_container(&id).await.expect("remove");
    node.stop_pod(&pod).await.expect("stop");
    node.remove_pod(&pod).await.expect("remove");

    use ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    let mut last = 0;
    let mut seen = Vec::new();
    while seen.len() < 8 {
        let event = event_of(&mut events, &[pod.clone(), id.clone()]).await;
        assert!(event.created_at > last, "times only grow");
        last = event.created_at;
        let of_pod = event.container_id == pod;
        if !of_pod && event.container_event_type() == Stopped {
            let status = event.containers_statuses.iter().find(|c| c.id == id).expect("it is there");
            assert_eq!(status.exit_code, 3, "the state is visible with its event");
        }
        let gone = of_pod && event.container_event_type() == Deleted;
        assert!(event.pod_sandbox_status.is_some() || gone);
        seen.push((of_pod, event.container_event_type()));
    }
    let of = |pod: bool| seen.iter().filter(|(of_pod, _)| *of_pod == pod).map(|(_, kind)| *kind).collect::<Vec<_>>();
    let order = [Created, Started, Stopped, Deleted];
    assert_eq!((of(true).as_slice(), of(false).as_slice()), (&order[..], &order[..]), "{seen:?}");
    assert_eq!(seen[..2], [(true, Created), (true, Started)]);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_stream_without_an_end_does_not_hold_up_the_daemons() {
    let mut node = Node::new().await;
    let mut events = node.runtime.get_container_events(GetEventsRequest {}).await.expect("listen").into_inner();
    node.stop().await;
    assert!(matches!(events.message().await, Ok(None) | Err(_)));
    node.machine.assert_as_before();
}

#[tokio::test]
async fn each_container_and_pod_is_created_started_stopped_and_deleted_in_this_order() {
    let mut node = Node::new().await;
    let mut events = node.runtime.get_container_events(GetEventsRequest {}).await.expect("listen").into_inner();
    // Each ends at once, and several at a time: of every step another call may be the first to speak.
    let mut stories = tokio::task::JoinSet::new();
    let mut ids = Vec::new();
    for n in 0..8 {
        let name = format!("p{n}");
        let config = node.sandbox(&name);
        let pod = node.run_pod(config.clone()).await.expect("run");
        ids.push(pod.clone());
        for m in 0..5 {
            let asked = ContainerConfig {
                metadata: Some(ContainerMetadata { name: format!("c{m}"), attempt: 0 }),
                ..script("c", "exit 0")
            };
            let id = node.create(&pod, asked, config.clone()).await.expect("create");
            ids.push(id.clone());
            let mut client = node.runtime.clone();
            stories.spawn(async move {
                client.start_container(StartContainerRequest { container_id: id.clone() }).await.expect("start");
                client.remove_container(RemoveContainerRequest { container_id: id }).await.expect("remove");
            });
        }
        while stories.join_next().await.is_some() {}
        let mut client = node.runtime.clone();
        client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod }).await.expect("remove");
    }
    let (mut last, mut ended) = (0, 0);
    let mut steps = std::collections::BTreeMap::<String, i32>::new();
    while ended < 8 * 6 {
        let event = event_of(&mut events, &ids).await;
        assert!(event.created_at > last, "they are sent in the order of their times");
        last = event.created_at;
        let step = steps.entry(event.container_id.clone()).or_default();
        assert_eq!(event.container_event_type, *step, "created, started, stopped, deleted: {event:?}");
        *step += 1;
        ended += usize::from(event.container_event_type() == ContainerEventType::ContainerDeletedEvent);
        let status = event.containers_statuses.iter().find(|c| c.id == event.container_id);
        if let (ContainerEventType::ContainerStoppedEvent, Some(status)) = (event.container_event_type(), status) {
            assert_eq!(status.state(), ContainerState::ContainerExited);
        }
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_log_is_rotated_without_a_lost_line() {
    let mut node = Node::new().await;
    let text = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo end; sleep 1000";
    let (pod, id) = node.pod_with("p", text).await;
    let log = PathBuf::from(node.status(&id).await.expect("status").log_path);
    let mut rotated = Vec::new();
    for n in 0..5 {
        let to = log.with_extension(format!("log.{n}"));
        std::fs::rename(&log, &to).expect("rename");
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        node.runtime.reopen_container_log(request).await.expect("reopen");
        assert!(log.exists(), "there at once");
        rotated.push(to);
    }
    rotated.push(log.clone());
    until(PATIENCE, || {
        let all: String = rotated.iter().map(|path| log_text(path, "stdout")).collect();
        if all.ends_with("end\n") { Ok(()) } else { Err("not at its end".to_owned()) }
    });
    let all: String = rotated.iter().map(|path| log_text(path, "stdout")).collect();
    let wanted: String = (0..2000).map(|n| format!("line {n}\n")).collect();
    assert!(all == format!("{wanted}end\n"), "{} bytes", all.len());

    node.stop_container(&id, 0).await.expect("stop");
    std::fs::remove_file(&log).expect("remove");
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    node.runtime.reopen_container_log(request).await.expect_err("it has ended");
    assert!(!log.exists(), "and no file was made");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

/// A pod with a container that has used a processor for some time, and does so no more.
async fn counted(node: &mut Node) -> (String, String) {
    let text = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo end; sleep 1000";
    let (pod, id) = node.pod_with("p", text).await;
    let log = PathBuf::from(node.status(&id).await.expect("status").log_path);
    until(PATIENCE, || if log_text(&log, "stdout") == "end\n" { Ok(()) } else { Err("it counts".to_owned()) });
    (pod, id)
}

#[tokio::test]
async fn cpu_time_is_that_of_the_kernel() {
    let mut node = Node::new().await;
    let (pod, id) = counted(&mut node).await;
    let pid = pid_of(&mut node, &id).await;
    let stats = node.runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await;
    let stats = stats.expect("stats").into_inner().stats.expect("there");
    let used = stats.cpu.expect("cpu").usage_core_nano_seconds.expect("known").value;
    // utime and stime, clock ticks of 10 ms: proc_pid_stat(5).
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    let seen = ticks * 10_000_000;
    let difference = used.abs_diff(seen);
    assert!(difference < seen / 20 + 30_000_000, "cgroup {used} ns, /proc {seen} ns");
    let layer = stats.writable_layer.expect("a layer");
    assert!(layer.fs_id.is_some_and(|fs| Path::new(&fs.mountpoint).exists()));

    let request = ListPodSandboxStatsRequest::default();
    let pods = node.runtime.list_pod_sandbox_stats(request).await.expect("stats").into_inner().stats;
    let linux = pods[0].linux.as_ref().expect("linux");
    assert_eq!(linux.containers.len(), 1);
    assert!(linux.cpu.as_ref().expect("cpu").usage_core_nano_seconds.expect("known").value >= used);

    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn every_metric_is_described_and_says_what_the_stats_say() {
    let mut node = Node::new().await;
    let (pod, id) = counted(&mut node).await;
    let stats = node.runtime.container_stats(ContainerStatsRequest { container_id: id }).await;
    let cpu = stats.expect("stats").into_inner().stats.expect("there").cpu.expect("cpu");
    let used = cpu.usage_core_nano_seconds.expect("known").value;
    let descriptors = node.runtime.list_metric_descriptors(ListMetricDescriptorsRequest {}).await;
    let descriptors = descriptors.expect("descriptors").into_inner().descriptors;
    let metrics = node.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await;
    let metrics = metrics.expect("metrics").into_inner().pod_metrics;
    let of_container = &metrics[0].container_metrics[0].metrics;
    for metric in of_container.iter().chain(&metrics[0].metrics) {
        let descriptor = descriptors.iter().find(|d| d.name == metric.name).expect("described");
        assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
    }
    let total = of_container.iter().find(|m| m.name == "container_cpu_usage_seconds_total").expect("there");
    assert!(total.value.expect("known").value.abs_diff(used / 1_000_000_000) <= 1);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn images_are_found_by_every_name_and_removed_with_all() {
    let mut node = Node::new().await;
    let spec = |image: &str| Some(ImageSpec { image: image.to_owned(), ..Default::default() });
    let usage = node.images.image_fs_info(ImageFsInfoRequest {}).await.expect("usage").into_inner();
    let of = &usage.image_filesystems[0];
    assert!(of.timestamp > 0 && of.used_bytes.expect("known").value > 0);
    let listed = node.images.list_images(ListImagesRequest::default()).await.expect("list").into_inner().images;
    assert_eq!(listed.len(), 1);
    for name in ["busybox", "docker.io/library/busybox:latest", &listed[0].id] {
        let request = ImageStatusRequest { image: spec(name), verbose: true };
        let status = node.images.image_status(request).await.expect("status").into_inner();
        assert_eq!(status.image.as_ref(), Some(&listed[0]), "{name}");
        let pulled = node.images.pull_image(PullImageRequest { image: spec(name), ..Default::default() }).await;
        assert_eq!(pulled.expect("it is there").into_inner().image_ref, listed[0].id);
    }
    let request = ImageStatusRequest { image: spec("nothing"), verbose: false };
    assert!(node.images.image_status(request).await.expect("no error").into_inner().image.is_none());
    let pull = node.images.pull_image(PullImageRequest { image: spec("Not a name"), ..Default::default() }).await;
    assert_eq!(pull.expect_err("no name").code(), Code::InvalidArgument);

    let (pod, _) = node.pod_with("p", "sleep 1000").await;
    let request = RemoveImageRequest { image: spec("busybox") };
    let used = node.images.remove_image(request.clone()).await.expect_err("a container uses it");
    assert_eq!(used.code(), Code::FailedPrecondition);
    node.remove_pod(&pod).await.expect("remove");
    for _ in 0..2 {
        node.images.remove_image(request.clone()).await.expect("twice is as once");
    }
    let left = node.images.list_images(ListImagesRequest::default()).await.expect("list").into_inner().images;
    assert_eq!(left, []);
    node.stop().await;
}

#[tokio::test]
async fn limits_are_changed_one_by_one_and_before_the_start() {
    let mut node = Node::new().await;
    let config = node.sandbox("p");
    let pod = node.run_pod(config.clone()).await.expect("run");
    let mut asked = script("c", "sleep 1000");
    let resources = LinuxContainerResources { cpu_quota: 50_000, cpu_period: 100_000, ..Default::default() };
    asked.linux = Some(LinuxContainerConfig { resources: Some(resources), security_context: None });
    let id = node.create(&pod, asked, config).await.expect("create");
    let update = |linux| UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    let shares = LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    node.runtime.update_container_resources(update(shares)).await.expect("created");
    node.start_container(&id).await.expect("start");
    let quota = LinuxContainerResources { cpu_quota: 70_000, ..Default::default() };
    node.runtime.update_container_resources(update(quota)).await.expect("running");
    let now = node.status(&id).await.expect("status").resources.and_then(|r| r.linux).expect("known");
    assert_eq!((now.cpu_shares, now.cpu_quota, now.cpu_period), (512, 70_000, 100_000));
    let wrong = LinuxContainerResources { cpu_shares: -1, ..Default::default() };
    node.runtime.update_container_resources(update(wrong)).await.expect_err("negative");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_killed_daemon_is_followed_by_one_that_knows_everything() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("p", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done").await;
    let (other, ended) = node.pod_with("q", "sleep 0.3; exit 9").await;
    let before = node.status(&id).await.expect("status");
    let pid = pid_of(&mut node, &id).await;
    node.kill();
    until(PATIENCE, || {
        let exit = std::fs::read_dir(node.machine.state().join("pods").join(&other).join("containers").join(&ended));
        let there = exit.expect("its directory").flatten().any(|e| e.file_name() == "exit.json");
        if there { Ok(()) } else { Err("it has not ended without a daemon".to_owned()) }
    });
    node.start();
    let after = node.status(&id).await.expect("it is known");
    assert_eq!((&after, &pid_of(&mut node, &id).await), (&before, &pid), "nothing has changed");
    assert_eq!(node.status(&ended).await.expect("it is known").exit_code, 9, "the exit that nobody saw");
    assert!(node.status(&ended).await.expect("known").finished_at > 0);
    let config = node.sandbox("p");
    assert_eq!(node.run_pod(config.clone()).await.expect("a retry"), pod);
    assert_eq!(node.exec(&id, &["echo", "there"], 10).await.expect("exec").stdout, b"there\n");
    node.stop_container(&id, 0).await.expect("stop");
    let numbers = log_text(Path::new(&before.log_path), "stdout");
    let numbers: Vec<u32> = numbers.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(numbers.iter().zip(0..).all(|(number, n)| *number == n), "no line is lost");
    for pod in [pod, other] {
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

/// Soft and hard limit of a line of /proc/PID/limits.
fn limit(pid: &str, name: &str) -> [String; 2] {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("read");
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a line of it");
    let mut words = line.split_whitespace().map(str::to_owned);
    [words.next().expect("soft"), words.next().expect("hard")]
}

#[tokio::test]
async fn a_containers_limits_are_its_own_and_not_those_that_its_daemon_was_started_with() {
    use podwright::sys::rlimit::{Resource, highest, setrlimit};
    let files = Resource::NOFILE;
    let (most, given) = (highest(files, u64::MAX).expect("ask"), highest(files, 1 << 20).expect("ask"));
    let cores = Resource::from_name("RLIMIT_CORE").expect("known");
    // Of this process, and so of a daemon that it starts, as a shell or a unit has it.
    setrlimit(files, 4096, most).expect("lower the soft limit");
    setrlimit(cores, 0, highest(cores, u64::MAX).expect("ask")).expect("lower the soft limit");
    let mut node = Node::new().await;
    let daemon = node.pid().to_string();
    assert_eq!(limit(&daemon, "Max open files"), [most, most].map(|n| n.to_string()), "it takes all it may");
    assert_eq!(limit(&daemon, "Max core file size")[0], "0");
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    let pid = pid_of(&mut node, &id).await;
    assert_eq!(limit(&pid, "Max open files"), [given, given].map(|n| n.to_string()));
    let exec = node.exec(&id, &["sh", "-c", "ulimit -n"], 10).await.expect("exec");
    assert_eq!(String::from_utf8_lossy(&exec.stdout).trim(), given.to_string(), "an exec has them too");
    let [soft, hard] = limit(&pid, "Max core file size");
    assert!(soft == hard && soft != "0", "{soft} of {hard}");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_is_refused() {
    let mut node = Node::new().await;
    let second = Running::of(node.machine.podwright(["daemon", "--socket", "/nowhere/s"])).wait();
    second.refused(&["another daemon", "lock"]);
    let said = node.stop().await;
    assert!(said.contains("serving CRI"), "{said}");
    node.start();
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_that_is_asked_to_end_finishes_what_it_was_asked_for() {
    let mut node = Node::of(Machine::with_busybox(), |_| {}).await;
    let (pod, id) = node.pod_with("p", "sleep 1000").await;
    let mut client = node.runtime.clone();
    let exec = tokio::spawn(async move {
        let cmd = ["sh", "-c", "touch /began; sleep 1; echo done"].map(str::to_owned).to_vec();
        client.exec_sync(ExecSyncRequest { container_id: id, cmd, timeout: 30 }).await
    });
    let pid = {
        let list = node.containers(ContainerFilter::default()).await;
        pid_of(&mut node, &list[0].id).await
    };
    let began = PathBuf::from(format!("/proc/{pid}/root/began"));
    while !began.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.stop().await;
    let output = exec.await.expect("joined").expect("it was answered");
    assert_eq!(output.into_inner().stdout, b"done\n");
    node.start();
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn metrics_of_a_container_count_what_proc_has_of_its_processes() {
    let mut node = Node::new().await;
    let text = "sleep 1000 & nc -l -p 4321 & echo ready; wait";
    let (pod, container) = node.pod_with("p", text).await;
    let request = ListPodSandboxMetricsRequest::default();
    let shell = pid_of(&mut node, &container).await;
    // The second source: what the kernel says of the three.
    let open = || {
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("children");
        let pids = children.split_whitespace().map(str::to_owned).chain([shell.clone()]);
        pids.map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)).sum::<usize>() as u64
    };
    let end = Instant::now() + PATIENCE;
    loop {
        let all = node.runtime.list_pod_sandbox_metrics(request).await.expect("metrics").into_inner().pod_metrics;
        let metrics = all[0].container_metrics[0].metrics.clone();
        let value = |name: &str| {
            let found = metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no {name}"));
            found.value.as_ref().map_or(0, |v| v.value)
        };
        let values = ["processes", "threads", "sockets", "file_descriptors"].map(|n| value(&format!("container_{n}")));
        if values == [3, 3, 1, open()] {
            break;
        }
        assert!(Instant::now() < end, "{values:?}, and {} are open", open());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}
