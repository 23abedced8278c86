//! What hack/bench measures a CRI runtime with: one client for podwright and containerd alike, over their sockets.
//!
//! Arguments: SOCKET, IMAGE, a directory for LOGS, the v2 CGROUP in which all of the runtime's processes are (by its directory; its
//! cpu.stat tells their CPU time), and the PARENT of pods' cgroups (empty: the runtime's default). It does what its standard input
//! says, line by line, and ends each answer with `end`:
//!   rounds COUNT          "verb microseconds" for each verb of COUNT pods, one after another; "cpu" is that of all of a round
//!   parallel WIDTH COUNT  "parallel microseconds" until COUNT pods run, WIDTH of them being made at a time; then they are removed
//!   exec COUNT            "exec microseconds" of COUNT execs of true in one container; "cpu" is that of one
//!   fill COUNT, empty     makes pods until there are COUNT, and removes all
//!   calls COUNT           "call microseconds" for each call that lists all pods, COUNT times
//!   logs LINES            "logs microseconds" from the start of a container that copies LINES of 100 bytes, which are there, to its
//!                         standard output, until they are logged
//!   network               from now on a pod has a network of its own
//!   sandboxes COUNT       "call microseconds" for RunPodSandbox, StopPodSandbox and RemovePodSandbox of COUNT pods without a container,
//!                        "all" of the three together; "cpu" is that of a pod
//!
//! A pod is as a kubelet asks for one of best effort, on the host's network unless told otherwise: that needs no plugins.

use podwright::criapi::runtime_service_client::RuntimeServiceClient;
use podwright::criapi::*;
use podwright::error::{Context, Error, Result};
use std::ffi::OsString;
use std::future::Future;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// The longest wait for anything, so that a bug is an error and no hang.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often is looked whether a log is complete: its end has no event that both runtimes tell.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How many pods are made or removed at a time when that is not what is measured.
const AT_ONCE: usize = 8;
/// The longest answer that a client takes, in bytes, as the kubelet's.
const MAX_ANSWER_BYTES: usize = 16 << 20;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "start a runtime");
    match runtime.and_then(|runtime| runtime.block_on(drive())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "cri: {e}"); // nobody is left to tell
            ExitCode::FAILURE
        }
    }
}

async fn drive() -> Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [socket, image, logs, cgroup, parent] = &args[..] else {
        return Err(Error::invalid("usage: cri SOCKET IMAGE LOGS CGROUP PARENT"));
    };
    let text = |arg: &OsString| arg.to_string_lossy().into_owned();
    let endpoint = Endpoint::try_from(format!("unix://{}", text(socket)));
    let endpoint = endpoint.map_err(|e| Error::invalid(format!("socket: {e}")))?;
    let mut bench = Bench {
        runtime: RuntimeServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(MAX_ANSWER_BYTES),
        image: text(image),
        logs: logs.into(),
        cpu_stat: PathBuf::from(cgroup).join("cpu.stat"),
        parent: text(parent),
        made: 0,
        filled: Vec::new(),
        network: NamespaceMode::Node,
    };
    for line in std::io::stdin().lock().lines() {
        bench.obey(&line.context(|| "read a command")?).await?;
        say("end")?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context(|| "write to stdout")
}

fn tell(what: &str, microseconds: f64) -> Result<()> {
    say(&format!("{what} {microseconds:.1}"))
}

/// Tells how long it was since `since`, and starts anew.
fn lap(what: &str, since: &mut Instant) -> Result<()> {
    tell(what, since.elapsed().as_secs_f64() * 1e6)?;
    *since = Instant::now();
    Ok(())
}

/// The answer to a call.
async fn call<T>(what: &str, answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    let answer = answer.map_err(|_| Error::internal(format!("{what}: no answer")))?;
    answer.map(Response::into_inner).map_err(|e| Error::internal(format!("{what}: {:?}: {}", e.code(), e.message())))
}

/// A pod with one container, by their ids.
#[derive(Debug, Clone)]
struct Made {
    pod: String,
    container: String,
}

#[derive(Debug, Clone)]
struct Bench {
    runtime: RuntimeServiceClient<Channel>,
    image: String,
    logs: PathBuf,
    cpu_stat: PathBuf,
    parent: String,
    /// How many pods were made: each has a name of its own.
    made: u32,
    filled: Vec<Made>,
    /// Of all pods that are made from now on.
    network: NamespaceMode,
}

impl Bench {
    async fn obey(&mut self, command: &str) -> Result<()> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let number = |text: &str| text.parse::<u32>().map_err(|e| Error::invalid(format!("{command:?}: {e}")));
        match words[..] {
            ["rounds", count] => {
                for _ in 0..number(count)? {
                    self.round().await?;
                }
                Ok(())
            }
            ["parallel", width, count] => {
                let mut since = Instant::now();
                let made = self.make_many(number(width)?, number(count)?).await?;
                lap("parallel", &mut since)?;
                self.remove_many(made).await
            }
            ["exec", count] => self.execs(number(count)?).await,
            ["fill", count] => {
                let there = u32::try_from(self.filled.len()).unwrap_or(u32::MAX);
                let more = number(count)?.saturating_sub(there);
                let made = self.make_many(u32::try_from(AT_ONCE).unwrap_or(1), more).await?;
                self.filled.extend(made);
                Ok(())
            }
            ["empty"] => {
                let filled = std::mem::take(&mut self.filled);
                self.remove_many(filled).await
            }
            ["calls", count] => {
                for _ in 0..number(count)? {
                    self.calls().await?;
                }
                Ok(())
            }
            ["network"] => {
                self.network = NamespaceMode::Pod;
                Ok(())
            }
            ["sandboxes", count] => {
                for _ in 0..number(count)? {
                    self.only_sandbox().await?;
                }
                Ok(())
            }
            ["logs", lines] => self.log(number(lines)?).await,
            _ => Err(Error::invalid(format!("{command:?} is no command"))),
        }
    }

    /// The CPU time of everything in the runtime's cgroup so far, in microseconds.
    fn cpu_us(&self) -> Result<f64> {
        let text = std::fs::read_to_string(&self.cpu_stat);
        let text = text.context(|| format!("read {}", self.cpu_stat.display()))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        usage.ok_or_else(|| Error::internal(format!("{} tells no usage", self.cpu_stat.display())))
    }

    fn sandbox(&mut self) -> PodSandboxConfig {
        self.made += 1;
        let name = format!("bench-{}-{}", std::process::id(), self.made);
        let labels = [("io.kubernetes.pod.name", &*name), ("io.kubernetes.pod.namespace", "bench")];
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: format!("uid-{name}"),
                namespace: "bench".to_owned(),
                attempt: 0,
                name: name.clone(),
            }),
            log_directory: self.logs.join(&name).display().to_string(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: namespaces(self.network),
                    seccomp: default_profile(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container(&self, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            labels: [("io.kubernetes.container.name".to_owned(), "main".to_owned())].into(),
            log_path: "main.log".to_owned(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources { cpu_shares: 2, oom_score_adj: 1000, ..Default::default() }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: namespaces(self.network),
                    seccomp: default_profile(),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    async fn run_pod(&mut self, config: &PodSandboxConfig) -> Result<String> {
        // As the kubelet does.
        let logs = || format!("make directory {}", config.log_directory);
        std::fs::create_dir_all(&config.log_directory).context(logs)?;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(call("RunPodSandbox", self.runtime.run_pod_sandbox(request)).await?.pod_sandbox_id)
    }

    async fn create(&mut self, pod: &str, command: &[&str], sandbox: PodSandboxConfig) -> Result<String> {
        self.create_as(pod, self.container(command), sandbox).await
    }

    async fn create_as(&mut self, pod: &str, config: ContainerConfig, sandbox: PodSandboxConfig) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        Ok(call("CreateContainer", self.runtime.create_container(request)).await?.container_id)
    }

    async fn start(&mut self, container: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: container.to_owned() };
        call("StartContainer", self.runtime.start_container(request)).await.map(|_| ())
    }

    async fn exec(&mut self, container: &str) -> Result<()> {
        let cmd = vec!["true".to_owned()];
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 60 };
        let done = call("ExecSync", self.runtime.exec_sync(request)).await?;
        if done.exit_code != 0 {
            return Err(Error::internal(format!("exec of true: {}", done.exit_code)));
        }
        Ok(())
    }

    async fn stop(&mut self, container: &str) -> Result<()> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout: 0 };
        call("StopContainer", self.runtime.stop_container(request)).await.map(|_| ())
    }

    async fn stop_pod(&mut self, pod: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        call("StopPodSandbox", self.runtime.stop_pod_sandbox(request)).await.map(|_| ())
    }

    async fn remove(&mut self, made: &Made) -> Result<()> {
        let request = RemoveContainerRequest { container_id: made.container.clone() };
        call("RemoveContainer", self.runtime.remove_container(request)).await?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: made.pod.clone() };
        call("RemovePodSandbox", self.runtime.remove_pod_sandbox(request)).await.map(|_| ())
    }

    async fn round(&mut self) -> Result<()> {
        let config = self.sandbox();
        let cpu_us = self.cpu_us()?;
        let mut since = Instant::now();
        let pod = self.run_pod(&config).await?;
        lap("sandbox", &mut since)?;
        let container = self.create(&pod, &["sleep", "1000000"], config).await?;
        lap("create", &mut since)?;
        self.start(&container).await?;
        lap("start", &mut since)?;
        self.exec(&container).await?;
        lap("exec", &mut since)?;
        self.stop(&container).await?;
        lap("stop", &mut since)?;
        self.stop_pod(&pod).await?;
        lap("stop pod", &mut since)?;
        self.remove(&Made { pod, container }).await?;
        lap("remove", &mut since)?;
        tell("cpu", self.cpu_us()? - cpu_us)
    }

    async fn only_sandbox(&mut self) -> Result<()> {
        let config = self.sandbox();
        let (cpu_us, begun) = (self.cpu_us()?, Instant::now());
        let mut since = begun;
        let pod = self.run_pod(&config).await?;
        lap("sandbox", &mut since)?;
        self.stop_pod(&pod).await?;
        lap("stop pod", &mut since)?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod };
        call("RemovePodSandbox", self.runtime.remove_pod_sandbox(request)).await?;
        lap("remove", &mut since)?;
        tell("all", (since - begun).as_secs_f64() * 1e6)?;
        tell("cpu", self.cpu_us()? - cpu_us)
    }

    async fn make(&mut self, config: PodSandboxConfig, command: &[&str]) -> Result<Made> {
        let pod = self.run_pod(&config).await?;
        let container = self.create(&pod, command, config).await?;
        self.start(&container).await?;
        Ok(Made { pod, container })
    }

    /// Makes `count` pods, at most `width` at a time.
    async fn make_many(&mut self, width: u32, count: u32) -> Result<Vec<Made>> {
        let configs: Vec<PodSandboxConfig> = (0..count).map(|_| self.sandbox()).collect();
        let works = configs.into_iter().map(|config| {
            let mut bench = self.clone();
            async move { bench.make(config, &["sleep", "1000000"]).await }
        });
        at_once(usize::try_from(width).unwrap_or(usize::MAX), works).await
    }

    async fn remove_many(&mut self, all: Vec<Made>) -> Result<()> {
        let works = all.into_iter().map(|made| {
            let mut bench = self.clone();
            async move {
                bench.stop_pod(&made.pod).await?;
                bench.remove(&made).await
            }
        });
        at_once(AT_ONCE, works).await.map(|_| ())
    }

    async fn execs(&mut self, count: u32) -> Result<()> {
        let config = self.sandbox();
        let made = self.make(config, &["sleep", "1000000"]).await?;
        self.exec(&made.container).await?; // not the first one, which may load something
        let cpu_us = self.cpu_us()?;
        let mut since = Instant::now();
        for _ in 0..count {
            self.exec(&made.container).await?;
            lap("exec", &mut since)?;
        }
        tell("cpu", (self.cpu_us()? - cpu_us) / f64::from(count))?;
        self.remove_many(vec![made]).await
    }

    /// Each answer has all pods, or it was not measured.
    async fn calls(&mut self) -> Result<()> {
        let expected = self.filled.len();
        let check = |what: &str, count: usize| match count {
            count if count == expected => Ok(()),
            count => Err(Error::internal(format!("{what}: {count} of {expected}"))),
        };
        let mut runtime = self.runtime.clone();
        let mut since = Instant::now();
        let pods = call("ListPodSandbox", runtime.list_pod_sandbox(ListPodSandboxRequest::default())).await?;
        lap("list pods", &mut since)?;
        check("ListPodSandbox", pods.items.len())?;
        since = Instant::now();
        let containers = call("ListContainers", runtime.list_containers(ListContainersRequest::default())).await?;
        lap("list containers", &mut since)?;
        check("ListContainers", containers.containers.len())?;
        since = Instant::now();
        let request = ListContainerStatsRequest::default();
        let stats = call("ListContainerStats", runtime.list_container_stats(request)).await?;
        lap("container stats", &mut since)?;
        check("ListContainerStats", stats.stats.len())?;
        since = Instant::now();
        let request = ListPodSandboxStatsRequest::default();
        let stats = call("ListPodSandboxStats", runtime.list_pod_sandbox_stats(request)).await?;
        lap("pod stats", &mut since)?;
        check("ListPodSandboxStats", stats.stats.len())
    }

    async fn log(&mut self, lines: u32) -> Result<()> {
        let config = self.sandbox();
        let log = PathBuf::from(&config.log_directory).join("main.log");
        let pod = self.run_pod(&config).await?;
        // A pipeline that makes the lines takes longer than logging them.
        let source = PathBuf::from(&config.log_directory).join("lines");
        let line = format!("{}\n", "x".repeat(99));
        std::fs::write(&source, line.repeat(lines as usize)).context(|| format!("write {}", source.display()))?;
        let mut cat = self.container(&["cat", "/lines"]);
        let host_path = source.to_string_lossy().into_owned();
        cat.mounts = vec![Mount { host_path, container_path: "/lines".into(), readonly: true, ..Mount::default() }];
        let container = self.create_as(&pod, cat, config).await?;
        let least = u64::from(lines) * 100;
        let mut since = Instant::now();
        self.start(&container).await?;
        loop {
            let request = ContainerStatusRequest { container_id: container.clone(), verbose: false };
            let status = call("ContainerStatus", self.runtime.container_status(request)).await?.status;
            let ended = status.is_some_and(|s| s.state() == ContainerState::ContainerExited);
            let bytes = std::fs::metadata(&log).map_or(0, |about| about.len());
            if ended && bytes >= least {
                break;
            }
            if since.elapsed() > PATIENCE {
                return Err(Error::internal(format!("{bytes} bytes were logged of {least}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        lap("logs", &mut since)?;
        self.remove_many(vec![Made { pod, container }]).await?;
        for file in [log, source] {
            std::fs::remove_file(&file).context(|| format!("remove {}", file.display()))?;
        }
        Ok(())
    }
}

/// What a pod on this network has; pid is each container's own.
fn namespaces(network: NamespaceMode) -> Option<NamespaceOption> {
    Some(NamespaceOption { network: network as i32, pid: NamespaceMode::Container as i32, ..Default::default() })
}

fn default_profile() -> Option<SecurityProfile> {
    use security_profile::ProfileType::RuntimeDefault;
    Some(SecurityProfile { profile_type: RuntimeDefault as i32, ..Default::default() })
}

/// Does all works, at most `width` at a time.
async fn at_once<T, F>(width: usize, works: impl Iterator<Item = F>) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut done = Vec::new();
    let mut running = JoinSet::new();
    for work in works {
        if running.len() >= width {
            done.extend(joined(&mut running).await?);
        }
        running.spawn(work);
    }
    while !running.is_empty() {
        done.extend(joined(&mut running).await?);
    }
    Ok(done)
}

async fn joined<T: 'static>(running: &mut JoinSet<Result<T>>) -> Result<Option<T>> {
    let Some(ended) = running.join_next().await else { return Ok(None) };
    ended.map_err(|e| Error::internal(format!("a task ended: {e}")))?.map(Some)
}
