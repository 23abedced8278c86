//! Containers of other OCI runtimes (runc and crun of Debian) by their handlers, beside those of the built-in one: the same pod, the same limits,
//! the same confinement, the same ends. Run with hack/vm: these runtimes need cgroup v2 alone.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{self, Machine, PATIENCE, until};
use fixtures::pod::cgroup_root;
use fixtures::streams::{RESIZE, STDIN, STDOUT, Session, Speak};
use podwright::criapi::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tonic::Code;

/// The handlers, and where Debian has their programs.
const HANDLERS: [(&str, &str); 2] = [("runc", "/usr/sbin/runc"), ("crun", "/usr/bin/crun")];

/// A machine that has both, and its configuration.
fn with_both() -> (Machine, PathBuf) {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    let config = machine.temp.path().join("config.toml");
    let tables = HANDLERS.map(|(name, path)| format!("[runtimes.{name}]\npath = \"{path}\"\n"));
    fs::write(&config, tables.concat()).expect("write");
    (machine, config)
}

/// A node with one more handler: runc, but for what a script does before, in the container's bundle.
async fn node_with(name: &str, before: &str) -> Node {
    let (machine, config) = with_both();
    let program = machine.temp.path().join(name);
    fs::write(&program, format!("#!/bin/sh\n{before}\nexec /usr/sbin/runc \"$@\"\n")).expect("write");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let tables = fs::read_to_string(&config).expect("read");
    fs::write(&config, format!("{tables}[runtimes.{name}]\npath = \"{}\"\n", program.display())).expect("write");
    Node::of(machine, |command| {
        command.env("PODWRIGHT_CONFIG", &config);
    })
    .await
}

/// A node that has both.
async fn node() -> Node {
    let (machine, config) = with_both();
    Node::of(machine, |command| {
        command.env("PODWRIGHT_CONFIG", &config);
    })
    .await
}

async fn run_pod(node: &mut Node, sandbox: &PodSandboxConfig, handler: &str) -> Result<String, tonic::Status> {
    let request = RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: handler.to_owned() };
    Ok(node.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

async fn started(node: &mut Node, pod: &str, config: ContainerConfig, sandbox: &PodSandboxConfig) -> String {
    let id = node.create(pod, config, sandbox.clone()).await.expect("create");
    node.start_container(&id).await.expect("start");
    id
}

async fn cgroup_of(node: &mut Node, container: &str) -> PathBuf {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let answer = node.runtime.container_status(request).await.expect("status").into_inner();
    let info: serde_json::Value = serde_json::from_str(answer.info.get("info").expect("verbose")).expect("JSON");
    cgroup_root().join(info["cgroup"].as_str().expect("a path").trim_start_matches('/'))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display())).trim().to_owned()
}

async fn take_down(node: &mut Node, pod: &str) {
    node.stop_pod(pod).await.expect("stop pod");
    node.remove_pod(pod).await.expect("remove pod");
}

/// What a process is allowed, and where it is.
const CONFINEMENT: &str = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; cat /proc/self/cgroup; hostname; umask; \
    cat /proc/self/oom_score_adj; cut -d' ' -f5 /proc/self/mountinfo | grep -vE '^/(proc|sys)/|^/dev/(null|zero|full|tty|random|urandom|console)$' | sort -u; \
    touch /proc/sys/kernel/x /sys/x 2>/dev/null || echo read-only; ls /proc/kcore | wc -c; echo $HOME $A";

#[tokio::test]
async fn a_container_of_another_runtime_is_confined_as_one_of_ours() {
    let mut node = node().await;
    let mut told: Vec<(String, String, String)> = Vec::new();
    for handler in ["", "runc", "crun"] {
        let sandbox = node.sandbox(&format!("p{handler}"));
        let pod = run_pod(&mut node, &PodSandboxConfig { hostname: "same".into(), ..sandbox.clone() }, handler)
            .await
            .expect("run");
        let sandbox = PodSandboxConfig { hostname: "same".into(), ..sandbox };
        let mut config = script("main", &format!("{CONFINEMENT}; echo end; exec sleep 1000"));
        config.envs = vec![KeyValue { key: "A".into(), value: b"b".to_vec() }];
        let resources =
            LinuxContainerResources { memory_limit_in_bytes: 64 << 20, oom_score_adj: 7, ..Default::default() };
        let security = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 33 }),
            supplemental_groups: vec![44],
            no_new_privs: true,
            seccomp: Some(SecurityProfile {
                profile_type: security_profile::ProfileType::RuntimeDefault as i32,
                ..Default::default()
            }),
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            ..Default::default()
        };
        config.linux = Some(LinuxContainerConfig { resources: Some(resources), security_context: Some(security) });
        let container = started(&mut node, &pod, config, &sandbox).await;
        let log = PathBuf::from(node.status(&container).await.expect("status").log_path);
        until(
            PATIENCE,
            || if log_text(&log, "stdout").contains("end\n") { Ok(()) } else { Err("it tells".to_owned()) },
        );
        let first = log_text(&log, "stdout").replace("end\n", "");
        let exec = node.exec(&container, &["sh", "-c", CONFINEMENT], 60).await.expect("exec");
        assert_eq!(exec.exit_code, 0, "{}", String::from_utf8_lossy(&exec.stderr));
        told.push((handler.to_owned(), first, String::from_utf8_lossy(&exec.stdout).into_owned()));
        take_down(&mut node, &pod).await;
    }
    for (handler, first, exec) in &told[1..] {
        assert_eq!(*first, told[0].1, "the first process with {handler}");
        assert_eq!(without_exec_number(exec), without_exec_number(&told[0].2), "an exec with {handler}");
    }
    node.assert_clean().await;
}

/// An exec is in a cgroup of its own, whose number is random.
fn without_exec_number(text: &str) -> String {
    let cut = |line: &str| line.split("/exec-").next().unwrap_or_default().to_owned();
    text.lines().map(cut).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn limits_are_the_ones_that_were_verified_and_the_kernel_enforces_them() {
    let mut node = node().await;
    for (handler, _) in HANDLERS {
        let sandbox = node.sandbox(&format!("limits-{handler}"));
        let pod = run_pod(&mut node, &sandbox, handler).await.expect("run");
        let resources = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 25_000,
            cpu_shares: 256,
            memory_limit_in_bytes: 32 << 20,
            ..Default::default()
        };
        let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
        let eats = ContainerConfig {
            linux: Some(linux),
            ..script("eats", "while [ ! -e /tmp/go ]; do sleep 0.1; done; tail /dev/zero")
        };
        let eats = started(&mut node, &pod, eats, &sandbox).await;
        let cgroup = cgroup_of(&mut node, &eats).await;
        assert_eq!(read(&cgroup.join("cpu.max")), "25000 100000", "{handler}");
        assert_eq!(read(&cgroup.join("memory.max")), (32 << 20).to_string(), "{handler}");
        let pids = read(&cgroup.join("cgroup.procs"));
        assert!(!pids.is_empty(), "its process is in the cgroup that the engine made");
        node.exec(&eats, &["touch", "/tmp/go"], 60).await.expect("exec");
        let ended = node.exited(&eats).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{handler}");
        take_down(&mut node, &pod).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn ends_errors_and_signals_are_told_as_with_the_built_in_one() {
    let mut node = node().await;
    for (handler, _) in HANDLERS {
        let sandbox = node.sandbox(&format!("ends-{handler}"));
        let pod = run_pod(&mut node, &sandbox, handler).await.expect("run");
        assert_eq!(node.pods(PodSandboxFilter::default()).await[0].runtime_handler, handler);
        let seven = started(&mut node, &pod, script("seven", "echo out; echo err >&2; exit 7"), &sandbox).await;
        let ended = node.exited(&seven).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"), "{handler}");
        let log = PathBuf::from(&ended.log_path);
        assert_eq!(
            (log_text(&log, "stdout").as_str(), log_text(&log, "stderr").as_str()),
            ("out\n", "err\n"),
            "{handler}"
        );

        let missing = ContainerConfig { command: vec!["/nowhere".into()], args: vec![], ..script("missing", "") };
        let missing = node.create(&pod, missing, sandbox.clone()).await.expect("create");
        let refused = node.start_container(&missing).await.expect_err("there is no such program");
        assert!(refused.message().contains(handler) && refused.message().contains("/nowhere"), "{refused:?}");
        let status = node.status(&missing).await.expect("status");
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{handler}");

        let stops = started(
            &mut node,
            &pod,
            script("stops", "trap 'exit 3' TERM; touch /tmp/ready; while :; do sleep 0.1; done"),
            &sandbox,
        )
        .await;
        let nul = node.exec(&stops, &["echo", "a\0b"], 60).await.expect_err("no argument has a NUL");
        assert_eq!(nul.code(), Code::InvalidArgument, "{nul}");
        let none = node.exec(&stops, &["nothing-like-it"], 60).await.expect_err("there is no such program");
        assert!(none.message().contains("nothing-like-it"), "{none:?}");
        let left = node.exec(&stops, &["sh", "-c", "sleep 1000 & echo $$; exit 5"], 60).await.expect("exec");
        assert_eq!(left.exit_code, 5, "{handler}");
        let late = node.exec(&stops, &["sleep", "1000"], 1).await.expect_err("its time is over");
        assert_eq!(late.code(), Code::DeadlineExceeded, "{handler}");
        let ready = "while [ ! -e /tmp/ready ]; do sleep 0.1; done";
        node.exec(&stops, &["sh", "-c", ready], 60).await.expect("exec");
        node.stop_container(&stops, 30).await.expect("stop");
        assert_eq!(node.status(&stops).await.expect("status").exit_code, 3, "{handler}");
        take_down(&mut node, &pod).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_of_another_runtime_outlives_its_daemon() {
    let mut node = node().await;
    let config = node.machine.temp.path().join("config.toml");
    for (handler, _) in HANDLERS {
        let sandbox = node.sandbox(&format!("outlives-{handler}"));
        let pod = run_pod(&mut node, &sandbox, handler).await.expect("run");
        let main =
            started(&mut node, &pod, script("main", "while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 9"), &sandbox)
                .await;
        node.kill();
        node.start_with(|command| {
            command.env("PODWRIGHT_CONFIG", &config);
        });
        let request = CheckpointContainerRequest {
            container_id: main.clone(),
            location: "/tmp/checkpoint.tar".to_owned(),
            ..Default::default()
        };
        let refused = node.runtime.checkpoint_container(request).await.expect_err("not by another runtime");
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
        assert!(refused.message().contains(&format!("runtime handler {handler:?}")), "{refused}");
        let touched = node.exec(&main, &["touch", "/tmp/go"], 60).await.expect("exec");
        assert_eq!(touched.exit_code, 0, "{handler}");
        assert_eq!(node.exited(&main).await.exit_code, 9, "{handler}");
        take_down(&mut node, &pod).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn terminals_of_containers_and_of_execs_are_a_clients() {
    let mut node = node().await;
    for (handler, _) in HANDLERS {
        let sandbox = node.sandbox(&format!("tty-{handler}"));
        let pod = run_pod(&mut node, &sandbox, handler).await.expect("run");
        let shell = ContainerConfig { tty: true, stdin: true, ..script("shell", "exec sh") };
        let shell = started(&mut node, &pod, shell, &sandbox).await;

        let asked = ExecRequest {
            container_id: shell.clone(),
            cmd: vec!["sh".to_owned()],
            tty: true,
            stdin: true,
            stdout: true,
            stderr: false,
        };
        let url = node.runtime.exec(asked.clone()).await.expect("a URL").into_inner().url;
        let speak = Speak::WebSocket("v5.channel.k8s.io");
        let mut session = Session::open(&url, speak, &[STDIN, STDOUT, RESIZE]).expect("upgraded");
        session.send(RESIZE, b"{\"Width\":91,\"Height\":17}\n").expect("write");
        session.send(STDIN, b"tty; echo $TERM\n").expect("write");
        assert!(session.until(STDOUT, "xterm\r\n").contains("/dev/pts/"), "{handler}");
        session.send(STDIN, b"while [ \"$(stty size)\" != '17 ''91' ]; do :; done; echo si''zed\n").expect("write");
        session.until(STDOUT, "sized");
        let text = "sh -c \"trap 'echo trap''ped; exit' INT; echo rea''dy; while :; do sleep 0.1; done\"\n";
        session.send(STDIN, text.as_bytes()).expect("write");
        session.until(STDOUT, "ready");
        session.send(STDIN, &[3]).expect("write"); // ^C
        session.until(STDOUT, "trapped");
        session.send(STDIN, b"exit 9\n").expect("write");
        assert_eq!(session.rest().code(), Ok(9), "{handler}");

        let nothing = ExecRequest { cmd: vec!["nothing-like-it".to_owned()], ..asked };
        let url = node.runtime.exec(nothing).await.expect("a URL").into_inner().url;
        let session = Session::open(&url, speak, &[STDIN, STDOUT, RESIZE]).expect("upgraded");
        let told = session.rest().code().expect_err("there is no such program");
        assert!(told.contains("nothing-like-it"), "{handler}: {told}");

        let asked = AttachRequest { container_id: shell.clone(), stdin: true, tty: true, stdout: true, stderr: false };
        let url = node.runtime.attach(asked).await.expect("a URL").into_inner().url;
        let mut session = Session::open(&url, speak, &[STDIN, STDOUT, RESIZE]).expect("upgraded");
        session.send(STDIN, b"echo at''tached; exit 5\n").expect("write");
        session.until(STDOUT, "attached");
        let ended = node.exited(&shell).await;
        assert_eq!(ended.exit_code, 5, "{handler}");
        assert!(log_text(Path::new(&ended.log_path), "stdout").contains("attached"), "{handler}");
        take_down(&mut node, &pod).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn volumes_are_as_read_only_as_they_are_asked_to_be_and_usage_is_told() {
    let mut node = node().await;
    // /run is a mount of its own in the machine that these tests are run in.
    let canary = format!("/run/pw-canary-{}", std::process::id());
    let text = "touch /all$F 2>/dev/null && echo writable; touch /one$F 2>/dev/null && echo writable below; \
        dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null; echo end; exec sleep 1000";
    for (handler, _) in HANDLERS {
        let sandbox = node.sandbox(&format!("volumes-{handler}"));
        let pod = run_pod(&mut node, &sandbox, handler).await.expect("run");
        let mount = |path: &str, recursive_read_only| Mount {
            container_path: path.to_owned(),
            host_path: "/".to_owned(),
            readonly: true,
            recursive_read_only,
            ..Mount::default()
        };
        let config = ContainerConfig {
            mounts: vec![mount("/all", true), mount("/one", false)],
            envs: vec![KeyValue { key: "F".into(), value: canary.clone().into_bytes() }],
            ..script("main", text)
        };
        let main = started(&mut node, &pod, config, &sandbox).await;
        let log = PathBuf::from(node.status(&main).await.expect("status").log_path);
        until(
            PATIENCE,
            || if log_text(&log, "stdout").contains("end\n") { Ok(()) } else { Err("it tells".to_owned()) },
        );
        assert_eq!(log_text(&log, "stdout"), "writable below\nend\n", "{handler}");
        fs::remove_file(&canary).expect("it was made");
        let asked = ContainerStatsRequest { container_id: main.clone() };
        let stats = node.runtime.container_stats(asked).await.expect("stats").into_inner().stats.expect("there");
        let used = stats.memory.and_then(|memory| memory.usage_bytes).expect("known").value;
        assert!(used > 8 << 20, "{handler}: {used}");
        assert!(stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).expect("known").value > 0, "{handler}");
        take_down(&mut node, &pod).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn what_a_runtime_does_not_do_to_a_volume_is_seen_before_the_program_runs() {
    let mut node = node_with("forgets", "[ ! -e config.json ] || sed -i 's/\"rro\"/\"ro\"/g' config.json").await;
    let sandbox = node.sandbox("forgets");
    let pod = run_pod(&mut node, &sandbox, "forgets").await.expect("run");
    let mount = |recursive_read_only| Mount {
        container_path: "/all".to_owned(),
        host_path: "/".to_owned(),
        readonly: true,
        recursive_read_only,
        ..Mount::default()
    };
    let config = |name, mount| ContainerConfig { mounts: vec![mount], ..script(name, "exec sleep 1000") };
    let plain = started(&mut node, &pod, config("plain", mount(false)), &sandbox).await;
    assert_eq!(node.status(&plain).await.expect("status").state(), ContainerState::ContainerRunning);
    let asked = node.create(&pod, config("asked", mount(true)), sandbox.clone()).await.expect("create");
    let refused = node.start_container(&asked).await.expect_err("what is below is writable");
    assert!(refused.message().contains("volume /all: /all/") && refused.message().contains("is writable"), "{refused}");

    // Where the state directory is, nothing reaches the host.
    let state = node.machine.temp.path().to_owned();
    let shared = Mount {
        container_path: "/shared".to_owned(),
        host_path: state.to_string_lossy().into_owned(),
        propagation: MountPropagation::PropagationBidirectional as i32,
        ..Mount::default()
    };
    for (handler, _) in HANDLERS {
        let sandbox = node.sandbox(&format!("shared-{handler}"));
        let pod = run_pod(&mut node, &sandbox, handler).await.expect("run");
        let asked = node.create(&pod, config("shared", shared.clone()), sandbox.clone()).await.expect("create");
        let refused = node.start_container(&asked).await.expect_err("it would not be the host's");
        assert!(refused.message().contains("on the mount of podwright's state directory"), "{refused}");
        take_down(&mut node, &pod).await;
    }
    take_down(&mut node, &pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_runtime_that_hangs_in_an_exec_is_killed_at_the_execs_own_deadline() {
    let mut node = node_with("hangs", "case \"$*\" in *' exec '*) exec sleep 1000 ;; esac").await;
    let sandbox = node.sandbox("hangs");
    let pod = run_pod(&mut node, &sandbox, "hangs").await.expect("run");
    let main = started(&mut node, &pod, script("main", "exec sleep 1000"), &sandbox).await;
    let cgroup = cgroup_of(&mut node, &main).await;
    let late = node.exec(&main, &["true"], 1).await.expect_err("it never runs");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    let execs = || fs::read_dir(&cgroup).expect("list").flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(execs(), 0, "its cgroup is gone");
    take_down(&mut node, &pod).await;
    node.assert_clean().await;
}

#[test]
fn a_manifest_names_its_handler_and_its_overhead_is_the_pods() {
    let (machine, config) = with_both();
    let with = |text: &str, class: &str| {
        machine::script(text, "resources: {limits: {cpu: 100m, memory: 32Mi}}")
            + &format!(
                "  runtimeClassName: {class}\n  overhead: {{cpu: 50m, memory: 16Mi}}\n  terminationGracePeriodSeconds: 1\n"
            )
    };
    let configured = |command: &mut std::process::Command| {
        command.env("PODWRIGHT_CONFIG", &config);
    };
    for (handler, _) in HANDLERS {
        let text = "cat /sys/fs/cgroup/memory.max; while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 4";
        let mut running = machine.start_with(&with(text, handler), &[], configured);
        let mut pod = None;
        running.until("its pod is there", || {
            pod = pod_of(&machine.cgroup_dir());
            pod.is_some()
        });
        let pod = pod.expect("just now");
        assert_eq!(read(&pod.join("memory.max")), (48 << 20).to_string(), "{handler}");
        assert_eq!(read(&pod.join("cpu.max")), "15000 100000", "{handler}");
        running.until("the container runs", || {
            let exec = machine.podwright(["exec", "p", "--", "touch", "/tmp/go"]).output().expect("podwright");
            exec.status.success()
        });
        assert_eq!(running.wait().code(4).stdout, format!("{}\n", 32 << 20), "{handler}");
    }
    let refused = machine.start_with(&with("true", "runk"), &[], configured).wait();
    let refused = refused.code(125);
    assert!(
        refused.stderr.contains("runtimeClassName") && refused.stderr.contains("did you mean runc?"),
        "{}",
        refused.stderr
    );
    machine.assert_as_before();
}

/// The cgroup of the one pod there is, when it has its limits.
fn pod_of(dir: &Path) -> Option<PathBuf> {
    let below = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let name = dir.file_name()?.to_string_lossy();
    let limited = || fs::read_to_string(dir.join("memory.max")).is_ok_and(|max| max.trim() != "max");
    if name.starts_with("pod") && limited() {
        return Some(dir.to_owned());
    }
    below.into_iter().find_map(|path| pod_of(&path))
}

#[tokio::test]
async fn a_handler_that_is_not_configured_is_refused_and_those_that_are_are_listed() {
    let mut node = node().await;
    let sandbox = node.sandbox("p");
    let refused = run_pod(&mut node, &sandbox, "kata").await.expect_err("nobody knows it");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("kata") && refused.message().contains("crun, runc"), "{refused:?}");
    let status = node.runtime.status(StatusRequest { verbose: false }).await.expect("status").into_inner();
    let names: Vec<&str> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", "crun", "runc"]);
    for handler in &status.runtime_handlers[1..] {
        let features = handler.features.expect("told");
        assert!(!features.user_namespaces, "{handler:?}");
        // crun of Debian 12 does not tell its features.
        assert_eq!(features.recursive_read_only_mounts, handler.name == "runc", "{handler:?}");
    }
    let doctor = machine::json(
        &node.machine,
        &["--config", &node.machine.temp.path().join("config.toml").to_string_lossy(), "doctor"],
    );
    let found = |name: &str| {
        let mut checks = doctor["checks"].as_array().expect("a list").iter();
        let check = checks.find(|check| check["area"] == "runtime handlers" && check["check"] == name).expect(name);
        assert_eq!(check["verdict"], "ok", "{check}");
        check["found"].as_str().expect("text").to_owned()
    };
    assert!(found("runc").starts_with("runc version 1.") && found("runc").ends_with("; recursive read-only mounts"));
    assert!(found("crun").starts_with("crun version 1."), "{}", found("crun"));
    assert_eq!(found("cgroup v2"), "at /sys/fs/cgroup");
    let mapping = IdMapping { host_id: 1 << 20, container_id: 0, length: 65536 };
    let users = UserNamespace { mode: NamespaceMode::Pod as i32, uids: vec![mapping], gids: vec![mapping] };
    let namespaces = NamespaceOption { userns_options: Some(users), ..Default::default() };
    let security = LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    let linux = LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
    let refused =
        run_pod(&mut node, &PodSandboxConfig { linux: Some(linux), ..sandbox }, "runc").await.expect_err("refused");
    assert!(refused.message().contains("user namespace") && refused.message().contains("\"runc\""), "{refused:?}");
    node.assert_clean().await;
}
