//! The daemon in trouble: clients that go away, shims that do not answer or speak another version, records that cannot be read or are of
//! another boot. One pod's trouble is no other's, nothing is lost, and every wait has an end.

mod fixtures;

use fixtures::cri::{Node, script};
use fixtures::machine::{PATIENCE, until};
use podwright::criapi::*;
use std::time::{Duration, Instant};

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
    for (timeout, deadline) in [(0, None), (0, Some(Duration::from_millis(300))), (500, None)] {
        let cmd = ["sh", "-c", &format!("setsid {sleeper} & {sleeper}")].map(str::to_owned).to_vec();
        let mut request = tonic::Request::new(ExecSyncRequest { container_id: id.clone(), cmd, timeout });
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let mut client = node.runtime.clone();
        let call = tokio::spawn(async move { client.exec_sync(request).await });
        soon("running", || running(&sleeper) == 2).await;
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
