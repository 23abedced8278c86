//! The daemon over a long time: pods come and go, commands run in them, and the daemon is killed or asked to end again and again
//! while a client goes on as a kubelet would. Nothing grows, nothing is left, no exit code is wrong, no log line is lost.
//!
//! Short by default. `PODWRIGHT_SOAK=PODS,EXECS,RESTARTS` sets its length; hack/soak runs it in full.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{PATIENCE, until};
use fixtures::size::{Size, size_of};
use podwright::criapi::runtime_service_client::RuntimeServiceClient;
use podwright::criapi::*;
use podwright::state::record::{self, PodRecord};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Pods, commands and restarts when nobody asks for others: some seconds.
const SHORT: [u32; 3] = [100, 1000, 4];
/// Pods that are at work at a time.
const WIDTH: u32 = 4;
/// What the daemon may have grown by at the end: what its allocator keeps for later. A leak of 1 KiB a pod or of 100 bytes a command is
/// more than this when the test runs in full.
const MAX_GROWN_KIB: u64 = 1024;
/// How long a call that met a dead daemon waits until it is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// A kubelet's side of the socket: a call is repeated until the daemon that it meets answers it.
#[derive(Debug, Clone)]
struct Kubelet {
    runtime: RuntimeServiceClient<Channel>,
    /// How many calls were repeated.
    retries: Arc<AtomicU32>,
}

impl Kubelet {
    async fn call<T, F>(&self, what: &str, mut ask: impl FnMut(RuntimeServiceClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let end = Instant::now() + PATIENCE;
        loop {
            match ask(self.runtime.clone()).await {
                Ok(answer) => return Ok(answer.into_inner()),
                // What a client is told when the daemon goes away in the middle of a call, and when there is none.
                Err(e) if [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal].contains(&e.code()) => {
                    assert!(Instant::now() < end, "{what}: {e:?}");
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(RETRY).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    async fn run_pod(&self, config: &PodSandboxConfig) -> String {
        let request = || RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let run = self.call("run pod", |mut runtime| async move { runtime.run_pod_sandbox(request()).await });
        run.await.expect("run pod").pod_sandbox_id
    }

    async fn status(&self, id: &str) -> ContainerStatus {
        let request = || ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let asked = self.call("status", |mut runtime| async move { runtime.container_status(request()).await });
        asked.await.expect("status").status.expect("a status")
    }

    async fn make(&self, pod: &str, config: ContainerConfig, sandbox: &PodSandboxConfig) -> String {
        let request = || CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        let create = self.call("create", |mut runtime| async move { runtime.create_container(request()).await });
        let id = create.await.expect("create").container_id;
        let request = || StartContainerRequest { container_id: id.clone() };
        let start = self.call("start", |mut runtime| async move { runtime.start_container(request()).await });
        if let Err(e) = start.await {
            // The call that was cut off had started it.
            assert_eq!(e.code(), Code::FailedPrecondition, "{e:?}");
            assert_ne!(self.status(&id).await.state(), ContainerState::ContainerCreated, "{e:?}");
        }
        id
    }

    async fn exec(&self, id: &str, cmd: &[&str]) -> String {
        let cmd: Vec<String> = cmd.iter().map(|word| (*word).to_owned()).collect();
        let request = || ExecSyncRequest { container_id: id.to_owned(), cmd: cmd.clone(), timeout: 60 };
        let exec = self.call("exec", |mut runtime| async move { runtime.exec_sync(request()).await });
        let done = exec.await.expect("exec");
        assert_eq!((done.exit_code, done.stderr.as_slice()), (0, &b""[..]), "{cmd:?}");
        String::from_utf8(done.stdout).expect("UTF-8")
    }

    async fn stop(&self, id: &str) {
        let request = || StopContainerRequest { container_id: id.to_owned(), timeout: 30 };
        let stop = self.call("stop", |mut runtime| async move { runtime.stop_container(request()).await });
        stop.await.expect("stop");
    }

    async fn remove_pod(&self, pod: &str) {
        let request = || StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        let stop = self.call("stop pod", |mut runtime| async move { runtime.stop_pod_sandbox(request()).await });
        stop.await.expect("stop pod");
        let request = || RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        let remove = self.call("remove pod", |mut runtime| async move { runtime.remove_pod_sandbox(request()).await });
        remove.await.expect("remove pod");
    }

    /// What a kubelet's stats take.
    async fn look(&self) {
        let list = ListContainerStatsRequest::default;
        let stats = self.call("stats", |mut runtime| async move { runtime.list_container_stats(list()).await });
        assert!(!stats.await.expect("stats").stats.is_empty());
    }

    /// The life of a pod, with as many commands in it as in a pod that lives on.
    async fn live(&self, config: PodSandboxConfig, number: u32, execs: u32, other: &str) {
        let code = number % 100;
        let pod = self.run_pod(&config).await;
        let text = format!("trap 'exit {code}' TERM; : > /ready; echo {number}; sleep 1000 & wait");
        let id = self.make(&pod, script("c", &text), &config).await;
        self.exec(&id, &["sh", "-c", "until [ -e /ready ]; do sleep 0.01; done"]).await;
        for n in 0..execs {
            let word = format!("{number}-{n}");
            assert_eq!(self.exec(&id, &["echo", &word]).await, format!("{word}\n"));
            assert_eq!(self.exec(other, &["echo", &word]).await, format!("{word}\n"));
        }
        self.look().await;
        self.stop(&id).await;
        let status = self.status(&id).await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, code.cast_signed()));
        assert_eq!(log_text(Path::new(&status.log_path), "stdout"), format!("{number}\n"));
        self.remove_pod(&pod).await;
    }
}

/// The pods that are still to live, shared by those who make them live.
struct Work {
    kubelet: Kubelet,
    /// The container that lives on.
    other: String,
    next: AtomicU32,
    done: AtomicU32,
    execs: u32,
}

impl Work {
    /// `pods` lives, some at a time; returns at once.
    fn begin(self: &Arc<Self>, node: &Node, pods: u32) -> tokio::task::JoinSet<()> {
        let last = self.next.load(Ordering::Relaxed) + pods;
        let mut workers = tokio::task::JoinSet::new();
        let config = node.sandbox("");
        for _ in 0..WIDTH.min(pods) {
            let (work, config) = (self.clone(), config.clone());
            workers.spawn(async move {
                while let Ok(number) =
                    work.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < last).then_some(n + 1))
                {
                    let mut config = config.clone();
                    let name = format!("pod-{number}");
                    config.log_directory = PathBuf::from(&config.log_directory).join(&name).display().to_string();
                    config.metadata = config.metadata.map(|m| PodSandboxMetadata { uid: name.clone(), name, ..m });
                    work.kubelet.live(config, number, work.execs, &work.other).await;
                    work.done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        workers
    }

    async fn finish(self: &Arc<Self>, node: &Node, pods: u32) {
        finish(self.begin(node, pods)).await;
    }
}

async fn finish(mut workers: tokio::task::JoinSet<()>) {
    while let Some(ended) = workers.join_next().await {
        ended.expect("as it should be");
    }
}

fn length() -> [u32; 3] {
    let Ok(text) = std::env::var("PODWRIGHT_SOAK") else { return SHORT };
    let numbers: Vec<u32> = text.split(',').map(|n| n.parse().expect("PODWRIGHT_SOAK=PODS,EXECS,RESTARTS")).collect();
    numbers.try_into().expect("PODWRIGHT_SOAK=PODS,EXECS,RESTARTS")
}

/// What the daemon has when nothing is at work: threads that wait for more have ended by then, and nothing is opened or closed any more.
async fn at_rest(node: &Node, threads: u64, fds: Option<usize>) -> Size {
    let end = Instant::now() + PATIENCE;
    let mut before = 0;
    loop {
        let size = size_of(node.pid());
        let still = fds.map_or(size.fds == before, |fds| size.fds == fds);
        before = size.fds;
        let wanted = size.threads <= threads && still;
        if wanted || Instant::now() > end {
            return size;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_grows_while_pods_come_and_go_and_the_daemon_dies_again_and_again() {
    let [pods, execs, restarts] = length();
    let mut node = Node::new().await;
    let idle_threads = size_of(node.pid()).threads;
    let count = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let (pod, other) = node.pod_with("other", count).await;
    let before = node.status(&other).await.expect("status");
    let kubelet = Kubelet { runtime: node.runtime.clone(), retries: Arc::default() };
    let work = Work { kubelet, other, next: 0.into(), done: 0.into(), execs: execs / pods / 2 };
    let work = Arc::new(work);
    let record = node.machine.state().join("pods").join(&pod).join("pod.json");
    let shim = record::read::<PodRecord>(&record).expect("readable").expect("a record").shim.pid;

    // A tenth is for everything to become as it will be; then half dies with its daemons; the rest has one daemon for all.
    let [first, dying] = [pods / 10, pods / 2];
    work.finish(&node, first).await;
    let (shim_before, began) = (size_of(shim), Instant::now());
    let workers = work.begin(&node, dying);
    for n in 0..restarts {
        let due = first + dying * (n + 1) / (restarts + 1);
        while work.done.load(Ordering::Relaxed) < due {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if n % 2 == 0 {
            node.kill();
        } else {
            node.stop().await;
        }
        node.start();
    }
    finish(workers).await;
    let retries = work.kubelet.retries.load(Ordering::Relaxed);
    work.finish(&node, first).await;
    let daemon_before = at_rest(&node, idle_threads, None).await;
    work.finish(&node, pods - dying - 2 * first).await;
    let daemon_after = at_rest(&node, idle_threads, Some(daemon_before.fds)).await;
    let shim_after = size_of(shim);
    println!(
        "{pods} pods, {} commands, {restarts} restarts, {retries} calls repeated, {:.1} s\n\
         daemon {daemon_before:?} -> {daemon_after:?}\nshim {shim_before:?} -> {shim_after:?}",
        pods * work.execs * 2,
        began.elapsed().as_secs_f64()
    );
    assert_eq!(work.kubelet.retries.load(Ordering::Relaxed), retries, "a daemon that lives answers every call");
    for (before, after) in [(daemon_before, daemon_after), (shim_before, shim_after)] {
        assert_eq!((before.fds, before.threads), (after.fds, after.threads), "{before:?} {after:?}");
        assert!(after.rss_kib < before.rss_kib + MAX_GROWN_KIB, "{before:?} {after:?}");
    }
    assert!(daemon_after.threads <= idle_threads, "{daemon_after:?}, and {idle_threads} threads at first");

    // The pod that was there all the time: the same, and its log whole.
    let after = node.status(&work.other).await.expect("it is known");
    assert_eq!((after.state(), after.started_at), (ContainerState::ContainerRunning, before.started_at));
    // A cgroup that is removed and still in somebody's hand: the kernel keeps it.
    until(PATIENCE, || {
        let stat = std::fs::read_to_string(node.machine.cgroup_dir().join("cgroup.stat")).expect("a cgroup");
        if stat.contains("nr_dying_descendants 0\n") { Ok(()) } else { Err(stat) }
    });
    node.stop_container(&work.other, 0).await.expect("stop");
    let numbers = log_text(Path::new(&before.log_path), "stdout");
    assert!(numbers.lines().zip(0..).all(|(line, n)| line == n.to_string()), "no line is lost");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}
