//! Pods whose cgroups systemd makes. These tests need it as PID 1 and fail elsewhere: `hack/vm --systemd`.

mod fixtures;

use fixtures::cri::{Node, script};
use fixtures::machine::{GONE_WITHIN, Machine, PATIENCE, binary, script as manifest, until};
use fixtures::pod::cgroup_root;
use podwright::criapi::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::sync::Mutex;

const MIB: u64 = 1 << 20;

/// systemd is one for all: what is looked for in its list of units is everybody's.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A machine whose pods are in a slice of its own, by which its cgroups are compared.
fn machine() -> Machine {
    let comm = fs::read_to_string("/proc/1/comm").expect("/proc");
    assert_eq!(comm.trim(), "systemd", "PID 1 is not systemd: run this with hack/vm --systemd");
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    machine.driver = "systemd";
    machine.cgroup = format!("{}.slice", machine.cgroup.replace('-', "_"));
    machine.remember();
    machine
}

/// systemctl's answer.
fn systemctl(args: &[&str]) -> String {
    let done = Command::new("systemctl").args(args).output().expect("systemctl");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&done.stderr));
    said
}

/// The units of pods, shims and their slices that systemd knows.
fn units(machine: &Machine) -> Vec<String> {
    let own = machine.cgroup.trim_start_matches('/').trim_end_matches(".slice");
    let all =
        systemctl(&["list-units", "--all", "--plain", "--no-legend", "--no-pager", "podwright-*", &format!("{own}*")]);
    all.lines().map(|line| line.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

fn assert_nothing_left(machine: &Machine) {
    machine.assert_as_before_within(GONE_WITHIN);
    until(GONE_WITHIN, || match units(machine) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("left in systemd: {left:?}")),
    });
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display())).trim().to_owned()
}

/// Each file that may be written, of a cgroup and all below it.
fn settings(cgroup: &Path) -> BTreeMap<PathBuf, String> {
    let names =
        ["cgroup.subtree_control", "cpu.max", "cpu.weight", "cpuset.cpus", "io.weight", "memory.high", "memory.low"];
    let more = ["memory.max", "memory.min", "memory.oom.group", "memory.swap.max", "pids.max"];
    let files = names.into_iter().chain(more).map(|name| cgroup.join(name)).filter(|path| path.exists());
    let mut all: BTreeMap<PathBuf, String> = files.map(|path| (path.clone(), read(&path))).collect();
    for entry in fs::read_dir(cgroup).expect("a cgroup").flatten().filter(|e| e.path().is_dir()) {
        all.extend(settings(&entry.path()));
    }
    all
}

/// systemd reads its units again, and writes again what they say.
fn assert_reload_changes_nothing(cgroup: &Path) {
    let before = settings(cgroup);
    assert!(before.len() > 20, "{before:?}");
    systemctl(&["daemon-reload"]);
    assert_eq!(settings(cgroup), before);
}

/// The cgroup of a process, as a directory.
fn cgroup_of(pid: u32) -> PathBuf {
    let text = read(Path::new(&format!("/proc/{pid}/cgroup")));
    cgroup_root().join(text.strip_prefix("0::/").expect("cgroup v2"))
}

/// A container's first process, as the daemon tells.
async fn pid_of(node: &mut Node, container: &str) -> u32 {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let answer = node.runtime.container_status(request).await.expect("status").into_inner();
    let info: serde_json::Value = serde_json::from_str(answer.info.get("info").expect("verbose")).expect("JSON");
    info["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
}

fn limited(name: &str, text: &str, resources: LinuxContainerResources) -> ContainerConfig {
    let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
    ContainerConfig { linux: Some(linux), ..script(name, text) }
}

/// A unit of the administrator's, until it is dropped.
struct Unit(&'static str);

impl Unit {
    fn new(name: &'static str, text: &str) -> Unit {
        fixtures::put(Path::new("/run/systemd/system").join(name), text);
        systemctl(&["daemon-reload"]);
        systemctl(&["start", name]);
        Unit(name)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", self.0]).status(); // a test that failed may have stopped it
        let _ = fs::remove_file(Path::new("/run/systemd/system").join(self.0)); // as above
        let _ = Command::new("systemctl").arg("daemon-reload").status(); // as above
    }
}

#[tokio::test]
async fn a_kubelets_pod_is_a_scope_in_its_slice_and_systemd_leaves_its_limits_alone() {
    let _alone = ALONE.lock().await;
    // What a kubelet makes of a pod, with the limits of the whole pod.
    let kubelets =
        Unit::new("kubepods-burstable-pod1_2.slice", "[Slice]\nMemoryMax=256M\nTasksMax=100\nCPUWeight=20\n");
    let slice = cgroup_root().join("kubepods.slice/kubepods-burstable.slice").join(kubelets.0);
    let mut node = Node::of(machine(), |_| {}).await;
    let config = node.runtime.runtime_config(RuntimeConfigRequest {}).await.expect("config").into_inner();
    assert_eq!(config.linux.expect("linux").cgroup_driver(), CgroupDriver::Systemd);

    let mut sandbox = node.sandbox("p");
    let with_parent =
        |parent: &str| Some(LinuxPodSandboxConfig { cgroup_parent: parent.to_owned(), ..Default::default() });
    sandbox.linux = with_parent("/kubepods/burstable/pod1");
    let refused = node.run_pod(sandbox.clone()).await.expect_err("of the other driver");
    assert!(refused.message().contains("cgroupDriver: systemd"), "{refused:?}");
    sandbox.linux = with_parent(slice.to_str().and_then(|path| path.strip_prefix("/sys/fs/cgroup")).expect("a path"));
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let scope = slice.join(format!("podwright-{pod}.scope"));
    let shown = systemctl(&["show", "-p", "Delegate,TasksMax,Slice", &format!("podwright-{pod}.scope")]);
    for line in ["Delegate=yes", "TasksMax=infinity", "Slice=kubepods-burstable-pod1_2.slice"] {
        assert!(shown.lines().any(|l| l == line), "{line} in {shown}");
    }
    // A quota of 12.345 %, which systemd could not keep.
    let asked = LinuxContainerResources {
        cpu_quota: 12_345,
        cpu_period: 100_000,
        cpu_shares: 512,
        memory_limit_in_bytes: (64 * MIB).cast_signed(),
        unified: [("memory.high".to_owned(), (60 * MIB).to_string())].into(),
        ..Default::default()
    };
    let quiet = node.create(&pod, limited("c", "exec sleep 1000", asked), sandbox.clone()).await.expect("create");
    node.start_container(&quiet).await.expect("start");
    let pid = pid_of(&mut node, &quiet).await;
    let cgroup = scope.join(&quiet);
    assert_eq!(cgroup_of(pid), cgroup);
    let file = |name: &str| read(&cgroup.join(name));
    assert_eq!((file("cpu.max"), file("memory.max")), ("12345 100000".to_owned(), (64 * MIB).to_string()));
    assert_eq!(file("memory.high"), (60 * MIB).to_string());
    let said = node.exec(&quiet, &["cat", "/proc/self/cgroup", "/sys/fs/cgroup/cpu.max"], 0).await.expect("exec");
    assert!(String::from_utf8_lossy(&said.stdout).contains("12345 100000"), "{said:?}");
    assert_reload_changes_nothing(&slice);

    // Enforced: by the container's own limit, and by the pod's.
    let own = LinuxContainerResources { memory_limit_in_bytes: (16 * MIB).cast_signed(), ..Default::default() };
    let grows = "dd if=/dev/zero of=/dev/null bs=300M count=1";
    for (name, resources) in [("own", own), ("pods", LinuxContainerResources::default())] {
        let id = node.create(&pod, limited(name, grows, resources), sandbox.clone()).await.expect("create");
        node.start_container(&id).await.expect("start");
        let status = node.exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{name}: {status:?}");
        let whose = node.machine.podwright(["inspect", &format!("p/{name}")]).output().expect("podwright").stdout;
        let (whose, limit) =
            (String::from_utf8_lossy(&whose).into_owned(), if name == "own" { "container" } else { "pod" });
        assert!(whose.contains(&format!("the memory limit of the {limit}")), "{name}: {whose}");
    }
    let update = UpdateContainerResourcesRequest {
        container_id: quiet.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: (100 * MIB).cast_signed(),
            cpuset_cpus: "0".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    node.runtime.update_container_resources(update).await.expect("update");
    assert_eq!((file("memory.max"), file("cpuset.cpus")), ((100 * MIB).to_string(), "0".to_owned()));
    assert_reload_changes_nothing(&slice);

    let stats = node.runtime.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: pod.clone() }).await;
    let linux = stats.expect("stats").into_inner().stats.and_then(|stats| stats.linux).expect("there");
    let processes = linux.process.and_then(|p| p.process_count).expect("known").value;
    assert_eq!((processes.to_string(), processes), (read(&scope.join("pids.current")), 2), "pause and sleep");
    assert!(linux.memory.and_then(|m| m.usage_bytes).is_some_and(|bytes| bytes.value > 0));

    node.stop_pod(&pod).await.expect("stop");
    until(GONE_WITHIN, || if scope.exists() { Err("a stopped pod's scope is there".to_owned()) } else { Ok(()) });
    node.remove_pod(&pod).await.expect("remove");
    assert!(slice.exists(), "the slice is the kubelet's");
    node.stop().await;
    assert_nothing_left(&node.machine);
    assert_eq!(read(&slice.join("memory.max")), (256 * MIB).to_string());
}

#[test]
fn a_manifests_pod_is_a_scope_with_its_limits_inside_and_its_weight_outside() {
    let _alone = ALONE.blocking_lock();
    let machine = machine();
    let manifest = manifest(
        "trap 'exit 3' TERM; while :; do sleep 0.1; done",
        "resources: {requests: {cpu: 250m}, limits: {cpu: 333m, memory: 100M}}",
    );
    for signal in [15, 9] {
        let mut running = machine.start(&manifest, &[]);
        let slice = machine.cgroup_dir();
        let scope = || {
            let mut names = fs::read_dir(&slice).into_iter().flatten().flatten().map(|entry| entry.path());
            names.find(|path| path.to_string_lossy().contains("/podwright-"))
        };
        running.until("the container runs", || {
            String::from_utf8_lossy(&machine.podwright(["ps"]).output().expect("podwright").stdout).contains("Running")
        });
        let scope = scope().expect("a scope");
        let pod = scope.join("pod");
        assert_eq!(read(&pod.join("cpu.max")), "33300 100000");
        assert_eq!(read(&pod.join("memory.max")), "99999744");
        let weight = read(&pod.join("cpu.weight"));
        assert_ne!(weight, "100", "a quarter of a processor is asked for");
        assert_eq!(read(&scope.join("cpu.weight")), weight);
        assert_reload_changes_nothing(&slice);
        let verified = machine.podwright(["verify", "p"]).output().expect("podwright");
        assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
        running.signal(signal);
        let ended = running.wait();
        if signal == 15 {
            ended.code(3);
        }
        assert_nothing_left(&machine);
    }
}

#[tokio::test]
async fn a_daemon_killed_while_a_scope_is_made_leaves_none() {
    let _alone = ALONE.lock().await;
    let mut node = Node::of(machine(), |command| {
        command.env("PODWRIGHT_FAULT", "kill:engine.run_pod.scope");
    })
    .await;
    let sandbox = node.sandbox("p");
    node.run_pod(sandbox).await.expect_err("the daemon is killed");
    node.ended();
    node.start();
    assert!(node.pods(PodSandboxFilter::default()).await.is_empty());
    node.stop().await;
    assert_nothing_left(&node.machine);
}

// The connection that a stopping daemon closes is driven beside what waits for its stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn pods_outlive_a_daemon_that_is_killed_restarted_and_stopped_as_a_service() {
    let _alone = ALONE.lock().await;
    let machine = machine();
    let unit =
        machine.podwright(["daemon", "--systemd-unit", "--socket"]).arg(machine.temp.path().join("cri.sock")).output();
    let mut text = String::from_utf8(unit.expect("podwright").stdout).expect("text");
    let mut settings = Command::new(binary());
    machine.aim(&mut settings);
    text.push_str("\n[Service]\n");
    for (name, value) in settings.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        text.push_str(&format!("Environment={}={}\n", name.to_string_lossy(), value.to_string_lossy()));
    }
    text.push_str(&format!("StandardError=append:{}\n", machine.temp.path().join("daemon.log").display()));
    let mut node = Node::of_others(machine);
    let service = Unit::new("podwright.service", &text);
    systemctl(&["stop", service.0]); // it makes a lock, and leaves it: that is how it is before
    node.machine.remember();
    systemctl(&["start", service.0]);

    let (pod, container) = node.pod_with("p", "trap 'exit 5' TERM; while :; do sleep 0.1; done").await;
    let pid = pid_of(&mut node, &container).await;
    let main = || systemctl(&["show", "-p", "MainPID", "--value", "podwright.service"]).trim().to_owned();
    let first = main();
    podwright::sys::exec::kill(first.parse().expect("a pid"), 9).expect("kill");
    until(PATIENCE, || match main() {
        now if now == first || now == "0" => Err("it is not started again".to_owned()),
        _ => Ok(()),
    });
    // READY by then, whoever started it.
    systemctl(&["start", service.0]);
    systemctl(&["daemon-reload"]);
    systemctl(&["restart", service.0]);
    systemctl(&["stop", service.0]);
    assert!(cgroup_of(pid).starts_with(node.machine.cgroup_dir()), "its service has ended, and it lives");
    systemctl(&["start", service.0]);
    node.reconnect();
    let status = node.status(&container).await.expect("status");
    assert_eq!(status.state(), ContainerState::ContainerRunning, "{status:?}");
    assert_eq!(pid_of(&mut node, &container).await, pid);
    node.stop_container(&container, 30).await.expect("stop");
    assert_eq!(node.status(&container).await.expect("status").exit_code, 5);
    node.remove_pod(&pod).await.expect("remove");
    drop(service);
    assert_nothing_left(&node.machine);
}
