//! User namespaces of pods, in the kernel: who a container's processes are on the host, what they see of owners, what they cannot take
//! back, over starts, execs, restarts, init containers and sidecars, by both doors.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{Machine, PATIENCE, ask, json, until};
use podwright::criapi::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use tonic::Code;

/// What a kubelet of a test's own gives to its pods.
const HOST: u32 = 1_300_000_000;
const LENGTH: u32 = 65536;

fn mapping() -> Vec<IdMapping> {
    vec![IdMapping { host_id: HOST, container_id: 0, length: LENGTH }]
}

fn asked(mode: NamespaceMode, ids: Vec<IdMapping>) -> NamespaceOption {
    let user = UserNamespace { mode: mode as i32, uids: ids.clone(), gids: ids };
    NamespaceOption { pid: NamespaceMode::Container as i32, userns_options: Some(user), ..Default::default() }
}

fn with_options(sandbox: PodSandboxConfig, options: NamespaceOption) -> PodSandboxConfig {
    let context = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
    PodSandboxConfig { linux: Some(linux), ..sandbox }
}

fn with(config: ContainerConfig, context: LinuxContainerSecurityContext) -> ContainerConfig {
    let linux = LinuxContainerConfig { security_context: Some(context), resources: None };
    ContainerConfig { linux: Some(linux), ..config }
}

async fn said(node: &mut Node, pod: &str, sandbox: &PodSandboxConfig, config: ContainerConfig) -> String {
    let id = node.create(pod, config, sandbox.clone()).await.expect("create");
    node.start_container(&id).await.expect("start");
    let status = node.exited(&id).await;
    let text = log_text(Path::new(&status.log_path), "stdout");
    assert_eq!(status.exit_code, 0, "{text} {}", log_text(Path::new(&status.log_path), "stderr"));
    text
}

#[tokio::test]
async fn a_pods_root_is_nobody_on_the_host_and_root_of_its_own_files() {
    let mut node = Node::new().await;
    let sandbox = with_options(node.sandbox("p"), asked(NamespaceMode::Pod, mapping()));
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let volume = node.machine.temp.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    fs::write(volume.join("roots"), "r").expect("write");
    fs::set_permissions(volume.join("roots"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let mount = |path: &str, readonly| Mount {
        container_path: path.to_owned(),
        host_path: volume.display().to_string(),
        readonly,
        uid_mappings: mapping(),
        gid_mappings: mapping(),
        ..Default::default()
    };
    let text = "id -u; cat /proc/self/uid_map /proc/self/gid_map; stat -c '%u:%g %n' / /bin/busybox /dev /dev/null /etc/hosts /v/roots;
        cat /v/roots; echo; echo x > /v/made; chown 1000:1000 /v/made; echo x > /made; mkdir /deep/below; stat -c %u /deep;
        chown 5:6 /made; stat -c %u:%g /made; echo x > /dev/null; head -c 4 /dev/zero | wc -c; ls /proc/1/fd >/dev/null && echo proc";
    let config = ContainerConfig { mounts: vec![mount("/v", false), mount("/deep/mount", false)], ..script("c", text) };
    let text = said(&mut node, &pod, &sandbox, config).await;
    let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let map = format!("0 {HOST} {LENGTH}");
    let expected = [
        "0",
        &map,
        &map,
        "0:0 /",
        "0:0 /bin/busybox",
        "0:0 /dev",
        "0:0 /dev/null",
        "0:0 /etc/hosts",
        "0:0 /v/roots",
        "r",
        "0",
        "5:6",
        "4",
        "proc",
    ];
    assert_eq!(lines, expected);
    // What it made in the volume is its own ids there, as if there were no namespace.
    let made = fs::metadata(volume.join("made")).expect("made");
    assert_eq!((made.uid(), made.gid()), (1000, 1000));
    // What it made in its root is on the disk as nobody's.
    let containers = node.machine.root().join("containers");
    let upper = fs::read_dir(containers).expect("read").next().expect("one").expect("entry").path().join("upper");
    let made = fs::metadata(upper.join("made")).expect("made");
    assert_eq!((made.uid(), made.gid(), fs::metadata(&upper).expect("upper").uid()), (HOST + 5, HOST + 6, HOST));

    let status = node.pod_status(&pod).await.expect("status");
    let options = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).expect("options");
    assert_eq!(options.userns_options.map(|user| (user.mode, user.uids)), Some((NamespaceMode::Pod as i32, mapping())));
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn devices_are_there_for_the_pods_own_users_and_groups() {
    let mut node = Node::new().await;
    let sandbox = with_options(node.sandbox("p"), asked(NamespaceMode::Pod, mapping()));
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    // fuse, which no container has, for root and a group; that it may be opened is looked at.
    let host = node.machine.temp.path().join("fuse");
    let made = Command::new("mknod").args(["-m", "640"]).arg(&host).args(["c", "10", "229"]).status();
    assert!(made.expect("mknod").success());
    std::os::unix::fs::chown(&host, Some(0), Some(44)).expect("chown");
    let look = "id -u; stat -c '%u:%g %a %t:%T' /dev/one; (: < /dev/one) 2>/dev/null && echo read; \
                (: > /dev/one) 2>/dev/null && echo written; true";
    for (user, groups, read) in [(0, vec![], true), (1000, vec![44], true), (1000, vec![], false)] {
        let device = Device {
            container_path: "/dev/one".to_owned(),
            host_path: host.display().to_string(),
            permissions: "r".to_owned(),
        };
        let context = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: user }),
            supplemental_groups: groups.clone(),
            ..Default::default()
        };
        let name = format!("c{user}-{}", groups.len());
        let config = ContainerConfig { devices: vec![device], ..with(script(&name, look), context) };
        let text = said(&mut node, &pod, &sandbox, config).await;
        let expected = format!("{user}\n0:44 640 a:e5\n");
        assert_eq!(text, format!("{expected}{}", if read { "read\n" } else { "" }));
    }
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn capabilities_reach_no_further_than_the_namespace_and_mounts_of_the_host_are_locked() {
    let mut node = Node::new().await;
    let sandbox = with_options(node.sandbox("p"), asked(NamespaceMode::Pod, mapping()));
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let volume = node.machine.temp.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    let config = script(
        "c",
        "try() { if sh -c \"$2\" 2>/dev/null; then echo $1 yes; else echo $1 no; fi; }
         try remount 'mount -o remount,rw,bind /v && echo x > /v/x'
         try umount-volume 'umount /v'
         try umount-sys 'umount /sys'
         try mknod 'mknod /null2 c 1 3'
         try hostname 'hostname other'
         try tmpfs 'mkdir /m && mount -t tmpfs none /m'
         try low-oom 'echo -1000 > /proc/self/oom_score_adj'
         try core-pattern 'echo x > /proc/sys/kernel/core_pattern'
         try sysrq 'echo h > /proc/sysrq-trigger'
         grep CapEff /proc/self/status",
    );
    let all = Capability { add_capabilities: vec!["ALL".to_owned()], ..Default::default() };
    let config = ContainerConfig {
        mounts: vec![Mount {
            container_path: "/v".to_owned(),
            host_path: volume.display().to_string(),
            readonly: true,
            uid_mappings: mapping(),
            gid_mappings: mapping(),
            ..Default::default()
        }],
        ..with(config, LinuxContainerSecurityContext { capabilities: Some(all), ..Default::default() })
    };
    let text = said(&mut node, &pod, &sandbox, config).await;
    for line in [
        "remount no",
        "umount-volume no",
        "umount-sys no",
        "mknod no",
        "hostname yes",
        "tmpfs yes",
        "low-oom no",
        "core-pattern no",
        "sysrq no",
    ] {
        assert!(text.lines().any(|said| said == line), "{line:?} is not in {text}");
    }
    assert_eq!(fs::read_dir(&volume).expect("read").count(), 0);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn execs_terminals_users_and_shared_pid_namespaces_are_in_it_too() {
    let mut node = Node::new().await;
    for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
        let options = NamespaceOption { pid: pid as i32, ..asked(NamespaceMode::Pod, mapping()) };
        let sandbox = with_options(node.sandbox(&format!("p{}", pid as i32)), options.clone());
        let pod = node.run_pod(sandbox.clone()).await.expect("run");
        let context = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            run_as_group: Some(Int64Value { value: 2000 }),
            supplemental_groups: vec![3000],
            no_new_privs: true,
            namespace_options: Some(options),
            ..Default::default()
        };
        let config = with(script("c", "echo $$; exec sleep 1000"), context);
        let id = node.create(&pod, ContainerConfig { tty: true, ..config }, sandbox).await.expect("create");
        node.start_container(&id).await.expect("start");
        let exec = "id -u; id -g; id -G; readlink /proc/self/ns/user; cat /proc/self/uid_map; \
                    grep -E '^(Uid|Gid|CapPrm|NoNewPrivs|Seccomp):' /proc/self/status; ls -ln /dev/pts/0 | cut -d' ' -f3-40";
        let said = node.exec(&id, &["sh", "-c", exec], 0).await.expect("exec");
        let said = String::from_utf8(said.stdout).expect("text");
        assert!(said.starts_with("1000\n2000\n2000 3000\n"), "{said}");
        assert!(said.contains(&HOST.to_string()) && said.contains("NoNewPrivs:\t1"), "{said}");
        let host = fs::read_link("/proc/self/ns/user").expect("link");
        assert!(!said.contains(&host.display().to_string()), "{said}");
        // On the host it is nobody that anything belongs to.
        let verbose = ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let info = node.runtime.container_status(verbose).await.expect("status").into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
        let process = info["pid"].as_u64().expect("a pid");
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("status");
        let uid = format!("Uid:\t{0}\t{0}\t{0}\t{0}", HOST + 1000);
        let gid = format!("Gid:\t{0}\t{0}\t{0}\t{0}", HOST + 2000);
        assert!(
            status.contains(&uid) && status.contains(&gid) && status.contains("CapEff:\t0000000000000000"),
            "{status}"
        );
        node.remove_pod(&pod).await.expect("remove");
    }
    // One that the namespace does not have.
    let sandbox = with_options(node.sandbox("q"), asked(NamespaceMode::Pod, mapping()));
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let beyond = LinuxContainerSecurityContext {
        run_as_user: Some(Int64Value { value: i64::from(LENGTH) }),
        ..Default::default()
    };
    let id = node.create(&pod, with(script("c", "true"), beyond), sandbox).await.expect("create");
    let refused = node.start_container(&id).await.expect_err("refused");
    assert!(refused.message().contains("uid 65536 is not among the 65536 ids"), "{}", refused.message());
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn the_first_process_leads_its_session_and_its_terminal_is_that_of_the_session() {
    let mut node = Node::new().await;
    for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
        let options = NamespaceOption { pid: pid as i32, ..asked(NamespaceMode::Pod, mapping()) };
        let sandbox = with_options(node.sandbox(&format!("p{}", pid as i32)), options.clone());
        let pod = node.run_pod(sandbox.clone()).await.expect("run");
        for tty in [true, false] {
            let text = "read -r pid _ _ _ group session tty _ </proc/self/stat; [ $pid = $$ ] && echo $((session == pid)) $((group == pid)) $((tty != 0))
                [ $tty = 0 ] || echo control >/dev/tty";
            let context =
                LinuxContainerSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
            let config = ContainerConfig { tty, ..with(script(&format!("c{tty}"), text), context) };
            let said = said(&mut node, &pod, &sandbox, config).await;
            let lines: Vec<_> = said.lines().map(str::trim).collect();
            assert_eq!(lines, if tty { vec!["1 1 1", "control"] } else { vec!["1 1 0"] }, "{pid:?}");
        }
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_its_name() {
    let mut node = Node::new().await;
    let one = |host_id, container_id, length| vec![IdMapping { host_id, container_id, length }];
    let two = [one(HOST, 0, 5), one(HOST + 5, 5, 5)].concat();
    for (mode, ids, words) in [
        (NamespaceMode::Pod, vec![], "0 mappings"),
        (NamespaceMode::Pod, two, "2 mappings"),
        (NamespaceMode::Pod, one(HOST, 1, 5), "begins with 1"),
        (NamespaceMode::Pod, one(0, 0, 5), "host's root"),
        (NamespaceMode::Pod, one(u32::MAX, 0, 5), "2^32-1"),
        (NamespaceMode::Container, vec![], "the mode is POD"),
        (NamespaceMode::Target, vec![], "the mode is POD"),
        (NamespaceMode::Node, one(HOST, 0, 5), "the mode is POD"),
    ] {
        let sandbox = with_options(node.sandbox("p"), asked(mode, ids));
        let refused = node.run_pod(sandbox).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(words), "{words:?} is not in {}", refused.message());
    }
    for options in [
        NamespaceOption { network: NamespaceMode::Node as i32, ..asked(NamespaceMode::Pod, mapping()) },
        NamespaceOption { ipc: NamespaceMode::Node as i32, ..asked(NamespaceMode::Pod, mapping()) },
        NamespaceOption { pid: NamespaceMode::Node as i32, ..asked(NamespaceMode::Pod, mapping()) },
    ] {
        let refused = node.run_pod(with_options(node.sandbox("p"), options)).await.expect_err("refused");
        assert!(refused.message().contains("user namespace"), "{}", refused.message());
    }
    let sandbox = with_options(node.sandbox("p"), asked(NamespaceMode::Pod, mapping()));
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let other = Mount {
        container_path: "/v".to_owned(),
        host_path: "/tmp".to_owned(),
        uid_mappings: one(HOST + 1, 0, 5),
        gid_mappings: mapping(),
        ..Default::default()
    };
    let config = ContainerConfig { mounts: vec![other], ..script("c", "true") };
    let refused = node.create(&pod, config, sandbox.clone()).await.expect_err("refused");
    assert!(refused.message().contains("uidMappings"), "{}", refused.message());
    let bidirectional = Mount {
        container_path: "/v".to_owned(),
        host_path: "/tmp".to_owned(),
        propagation: MountPropagation::PropagationBidirectional as i32,
        ..Default::default()
    };
    let config = ContainerConfig { mounts: vec![bidirectional], ..script("c", "true") };
    let refused = node.create(&pod, config, sandbox).await.expect_err("refused");
    assert!(refused.message().contains("propagated to the host"), "{}", refused.message());
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

const MANIFEST: &str = "apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  hostUsers: false
  restartPolicy: Never
  securityContext: {fsGroup: 4000}
  initContainers:
  - {name: i, image: busybox, command: [sh, -c, 'head -1 /proc/self/uid_map; stat -c %u /cache; echo x > /cache/i'],
     volumeMounts: [{name: cache, mountPath: /cache}]}
  - {name: s, image: busybox, restartPolicy: Always, command: [sh, -c, 'head -1 /proc/self/uid_map; exec sleep 1000'],
     volumeMounts: [{name: cache, mountPath: /cache}]}
  containers:
  - {name: a, image: busybox, command: [sh, -c, 'head -1 /proc/self/uid_map; stat -c %u:%g /cache/i; LAST'],
     securityContext: {procMount: Unmasked}, volumeMounts: [{name: cache, mountPath: /cache}]}
  volumes:
  - {name: cache, emptyDir: {}}
";

#[test]
fn a_manifest_gets_ids_that_no_other_pod_has_and_keeps_them_over_its_containers() {
    let machine = Machine::with_busybox();
    let manifest = |name: &str, last: &str| MANIFEST.replace("NAME", name).replace("LAST", last);
    let ran = machine.run(&manifest("p", "touch /proc/sys/x 2>&1 | head -1")).code(0).stdout.clone();
    let maps: Vec<_> = ran
        .lines()
        .filter(|line| line.contains(" 65536"))
        .map(|line| line.rsplit("  ").take(2).collect::<String>())
        .collect();
    assert_eq!(maps.len(), 3, "{ran}");
    assert_eq!(maps.iter().collect::<BTreeSet<_>>().len(), 1, "{ran}");
    assert!(ran.contains("0:4000"), "{ran}");
    machine.assert_as_before();

    // Four at a time, in four processes.
    let mut runs: Vec<_> = (0..4).map(|n| machine.start(&manifest(&format!("p{n}"), "exec sleep 1000"), &[])).collect();
    let mut ids = BTreeSet::new();
    for n in 0..4 {
        let name = format!("p{n}");
        until(PATIENCE, || {
            let logs = ask(&machine, &["logs", &name, "-c", "a"]).stdout;
            if logs.lines().count() >= 2 { Ok(()) } else { Err(format!("{name} has not begun: {logs}")) }
        });
        let inspected = json(&machine, &["inspect", &format!("{name}/a")]).to_string();
        let host =
            inspected.split("\"hostID\":").nth(1).and_then(|rest| rest.split([',', '}']).next().map(str::to_owned));
        ids.insert(host.unwrap_or_else(|| panic!("no mapping in {inspected}")));
    }
    assert_eq!(ids.len(), 4, "{ids:?}");
    let verified = ask(&machine, &["verify", "p0"]).code(0).stdout.clone();
    assert!(verified.lines().any(|line| line.contains("namespace user") && line.contains("the pod's")), "{verified}");
    // Into the container, as its user.
    let file = machine.temp.path().join("file");
    fs::write(&file, "copied").expect("write");
    ask(&machine, &["cp", &file.display().to_string(), "p0/a:/cache/copied"]).code(0);
    let seen =
        ask(&machine, &["exec", "p0", "-c", "a", "--", "sh", "-c", "stat -c %u /cache/copied; cat /cache/copied"]);
    assert_eq!(seen.code(0).stdout, "0\ncopied");
    for n in 0..4 {
        ask(&machine, &["stop", "--grace", "0s", &format!("p{n}")]).code(0);
    }
    runs.drain(..).for_each(|run| {
        run.wait();
    });
    machine.assert_as_before();
}
