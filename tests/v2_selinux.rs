//! SELinux, on a machine that was booted with it, enforcing a policy of our own (selinux/policy.conf) that has the types of container-selinux: the
//! labels that pods get, and what the kernel keeps apart by them. Run with hack/vm; hack/test says how it is booted.

mod fixtures;
mod shim_client;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{Machine, PATIENCE, ask, until};
use podwright::criapi::*;
use podwright::state::flight::{Flight, Source};
use podwright::state::spec::SpecText;
use podwright::wire::Reply;
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tonic::Code;

const ALL: &str = "s0-s0:c0.c1023";

/// Loads the policy and says what a container is by it, once for all tests of this machine.
fn load() {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        let fs = Path::new("/sys/fs/selinux");
        assert!(fs.exists(), "boot with security=selinux selinux=1 enforcing=1");
        if !fs.join("enforce").exists() {
            let mounted = Command::new("mount").args(["-t", "selinuxfs", "none", "/sys/fs/selinux"]).status();
            assert!(mounted.expect("mount").success());
        }
        let path = std::env::var("PODWRIGHT_SELINUX_POLICY").unwrap_or_else(|_| "/selinux.policy".to_owned());
        // In one write, as the kernel wants it.
        fs::write(fs.join("load"), fs::read(path).expect("hack/lib/selinux.sh makes it")).expect("load");
        fs::create_dir_all("/etc/selinux/test/contexts").expect("mkdir");
        fs::write("/etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=test\n").expect("write");
        let contexts =
            "process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n";
        fs::write("/etc/selinux/test/contexts/lxc_contexts", contexts).expect("write");
        fs::write(fs.join("enforce"), "1").expect("enforce");
        assert_eq!(fs::read_to_string(fs.join("enforce")).expect("read"), "1");
        assert_eq!(text("/proc/self/attr/current"), format!("system_u:system_r:kernel_t:{ALL}"));
    });
}

/// A file's text, as the kernel ends its labels.
fn text(path: impl AsRef<Path>) -> String {
    let text = fs::read_to_string(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()));
    text.trim_end_matches(['\0', '\n']).to_owned()
}

/// The label of a file, by its attribute; of a symbolic link its own. Not by an open file: std's `custom_flags` has no O_PATH where the target is musl,
/// whose O_ACCMODE has that bit.
fn label(path: &Path) -> String {
    let mut value = [0; 256];
    let len = rustix::fs::lgetxattr(path, "security.selinux", &mut value[..]).expect("lgetxattr");
    String::from_utf8_lossy(&value[..len]).trim_end_matches('\0').to_owned()
}

async fn node() -> Node {
    load();
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    Node::of(machine, |_| {}).await
}

/// A pod whose containers are each PID 1, and may be privileged.
fn sandbox(node: &Node, name: &str, edit: impl FnOnce(&mut LinuxSandboxSecurityContext)) -> PodSandboxConfig {
    let options = NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() };
    let mut context =
        LinuxSandboxSecurityContext { namespace_options: Some(options), privileged: true, ..Default::default() };
    edit(&mut context);
    let linux = LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
    PodSandboxConfig { linux: Some(linux), ..node.sandbox(name) }
}

fn with(config: ContainerConfig, context: LinuxContainerSecurityContext) -> ContainerConfig {
    let linux = LinuxContainerConfig { security_context: Some(context), resources: None };
    ContainerConfig { linux: Some(linux), ..config }
}

fn options(kind: &str, level: &str) -> Option<SeLinuxOption> {
    Some(SeLinuxOption { r#type: kind.to_owned(), level: level.to_owned(), ..Default::default() })
}

/// What a container says of itself until its end.
async fn said(node: &mut Node, pod: &str, sandbox: &PodSandboxConfig, config: ContainerConfig) -> String {
    let id = node.create(pod, config, sandbox.clone()).await.expect("create");
    node.start_container(&id).await.expect("start");
    let status = node.exited(&id).await;
    let text = log_text(Path::new(&status.log_path), "stdout");
    assert_eq!(status.exit_code, 0, "{text} {}", log_text(Path::new(&status.log_path), "stderr"));
    node.remove_container(&id).await.expect("remove");
    text.replace('\0', "")
}

/// The pid of a container's first process.
async fn pid(node: &mut Node, id: &str) -> u64 {
    let verbose = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let info = node.runtime.container_status(verbose).await.expect("status").into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
    info["pid"].as_u64().expect("a pid")
}

/// The level that a pod was given, by its status.
async fn level(node: &mut Node, pod: &str) -> String {
    let verbose = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
    let info = node.runtime.pod_sandbox_status(verbose).await.expect("status").into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
    let file = info["selinux"]["file"].as_str().expect("a label");
    file.strip_prefix("system_u:object_r:container_file_t:").expect("of a container's files").to_owned()
}

/// The labels of a container's first process, from inside and outside, and of an exec in it.
async fn labels(node: &mut Node, pod: &str, sandbox: &PodSandboxConfig, config: ContainerConfig) -> [String; 3] {
    let id = node.create(pod, config, sandbox.clone()).await.expect("create");
    node.start_container(&id).await.expect("start");
    let outside = text(format!("/proc/{}/attr/current", pid(node, &id).await));
    let both = "cat /proc/1/attr/current; echo; cat /proc/self/attr/current";
    let answer = node.exec(&id, &["sh", "-c", both], 0).await.expect("exec");
    let answer = String::from_utf8(answer.stdout).expect("text").replace('\0', "");
    let mut lines = answer.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty());
    let (inside, exec) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    node.stop_container(&id, 0).await.expect("stop");
    node.remove_container(&id).await.expect("remove");
    [outside, inside, exec]
}

#[tokio::test]
async fn starts_and_execs_have_the_label_that_their_security_context_says() {
    let mut node = node().await;
    let sandbox = sandbox(&node, "p", |_| {});
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let level = level(&mut node, &pod).await;
    assert!(level.starts_with("s0:c") && level.contains(",c"), "{level}");
    let context = LinuxContainerSecurityContext::default;
    let of = |kind: &str, level: &str| format!("system_u:system_r:{kind}:{level}");
    let container = of("container_t", &level);
    let cases = [
        ("unset", context(), container.clone()),
        ("no-new-privs", LinuxContainerSecurityContext { no_new_privs: true, ..context() }, container.clone()),
        (
            "user",
            LinuxContainerSecurityContext { run_as_user: Some(Int64Value { value: 1000 }), ..context() },
            container.clone(),
        ),
        (
            "seccomp",
            LinuxContainerSecurityContext { seccomp: Some(SecurityProfile::default()), ..context() },
            container,
        ),
        (
            "type",
            LinuxContainerSecurityContext { selinux_options: options("container_other_t", ""), ..context() },
            of("container_other_t", &level),
        ),
        (
            "level",
            LinuxContainerSecurityContext { selinux_options: options("", "s0:c3,c4,c5"), ..context() },
            of("container_t", "s0:c3.c5"),
        ),
        (
            "user-of-the-policy",
            LinuxContainerSecurityContext {
                selinux_options: Some(SeLinuxOption { user: "other_u".into(), ..Default::default() }),
                ..context()
            },
            format!("other_u:system_r:container_t:{level}"),
        ),
        ("privileged", LinuxContainerSecurityContext { privileged: true, ..context() }, of("spc_t", &level)),
        (
            "privileged-type",
            LinuxContainerSecurityContext {
                privileged: true,
                selinux_options: options("container_t", ""),
                ..context()
            },
            of("container_t", &level),
        ),
    ];
    for (name, context, label) in cases {
        let config = with(script(name, "exec sleep 1000"), context);
        let labels = labels(&mut node, &pod, &sandbox, config).await;
        assert_eq!(labels, [label.clone(), label.clone(), label], "{name}");
    }
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_user_namespace_loses_no_label_and_the_hosts_processes_take_confinement_away() {
    let mut node = node().await;
    let ids = vec![IdMapping { host_id: 1_300_000_000, container_id: 0, length: 65536 }];
    for pid in [NamespaceMode::Container, NamespaceMode::Pod] {
        let user = UserNamespace { mode: NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids.clone() };
        let mapped = sandbox(&node, &format!("mapped-{}", pid as i32), |context| {
            let options = context.namespace_options.as_mut().expect("some");
            (options.pid, options.userns_options) = (pid as i32, Some(user));
        });
        let pod = node.run_pod(mapped.clone()).await.expect("run");
        let expected = format!("system_u:system_r:container_t:{}", level(&mut node, &pod).await);
        let config = ContainerConfig { mounts: vec![image_volume()], ..script("c", "exec sleep 1000") };
        let id = node.create(&pod, config, mapped.clone()).await.expect("create");
        node.start_container(&id).await.expect("start");
        assert_eq!(text(format!("/proc/{}/attr/current", self::pid(&mut node, &id).await)), expected);
        let whole = "cat /proc/self/attr/current; echo; id -u; echo x > /made; cat /made /etc/hostname; \
                     echo x > /dev/shm/f; ls /i/bin/busybox /dev/mqueue /proc/acpi /sys/firmware; echo ok >/dev/null && echo done";
        let answer = node.exec(&id, &["sh", "-c", whole], 0).await.expect("exec");
        let answer = String::from_utf8(answer.stdout).expect("text").replace('\0', "");
        assert!(answer.starts_with(&expected) && answer.ends_with("done\n"), "{answer}");
        node.remove_pod(&pod).await.expect("remove");
    }
    for (pid, ipc) in [(NamespaceMode::Node, NamespaceMode::Pod), (NamespaceMode::Pod, NamespaceMode::Node)] {
        let host = sandbox(&node, &format!("host-{}", pid as i32), |context| {
            let options = context.namespace_options.as_mut().expect("some");
            (options.pid, options.ipc) = (pid as i32, ipc as i32);
        });
        let pod = node.run_pod(host.clone()).await.expect("run");
        let expected = format!("system_u:system_r:spc_t:{}", level(&mut node, &pod).await);
        let context = LinuxContainerSecurityContext { namespace_options: options_of(&host), ..Default::default() };
        let config = with(script("c", "cat /proc/self/attr/current"), context);
        assert_eq!(said(&mut node, &pod, &host, config).await.trim(), expected);
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

fn options_of(sandbox: &PodSandboxConfig) -> Option<NamespaceOption> {
    sandbox.linux.as_ref()?.security_context.as_ref()?.namespace_options.clone()
}

/// A directory of the host's with a file in it.
fn volume(node: &Node, name: &str) -> PathBuf {
    let path = node.machine.dir(name);
    fs::create_dir_all(path.join("deep/below")).expect("mkdir");
    fs::write(path.join("deep/below/secret"), format!("of {name}\n")).expect("write");
    path
}

fn mount(host: &Path, path: &str, selinux_relabel: bool) -> Mount {
    Mount {
        container_path: path.to_owned(),
        host_path: host.display().to_string(),
        selinux_relabel,
        ..Default::default()
    }
}

/// The files of an image of one layer, which is no bind mount here.
fn image_volume() -> Mount {
    Mount {
        container_path: "/i".to_owned(),
        image: Some(ImageSpec { image: "busybox".to_owned(), ..Default::default() }),
        readonly: true,
        ..Default::default()
    }
}

/// A script's container, as root with every capability: what is refused is refused by nothing else.
fn powerful(name: &str, text: &str, mounts: Vec<Mount>) -> ContainerConfig {
    let all = Capability { add_capabilities: vec!["ALL".to_owned()], ..Default::default() };
    let context = LinuxContainerSecurityContext { capabilities: Some(all), ..Default::default() };
    ContainerConfig { mounts, ..with(script(name, text), context) }
}

#[tokio::test]
async fn two_pods_cannot_read_each_others_files() {
    let mut node = node().await;
    let (one, other) = (sandbox(&node, "one", |_| {}), sandbox(&node, "other", |_| {}));
    let first = node.run_pod(one.clone()).await.expect("run");
    let second = node.run_pod(other.clone()).await.expect("run");
    assert_ne!(level(&mut node, &first).await, level(&mut node, &second).await);
    let (shared, plain) = (volume(&node, "shared"), volume(&node, "plain"));
    let outside = node.machine.dir("outside").join("f");
    fs::write(&outside, "x").expect("write");
    let before = label(&outside);
    symlink(&outside, shared.join("link")).expect("link");

    // Relabelled, its first pod has it; what the host did not give stays the host's.
    let look = "cat /v/deep/below/secret && echo new > /v/deep/made; cat /plain/deep/below/secret 2>&1 || true; \
                touch /plain/x 2>&1 || true";
    let mounts = vec![mount(&shared, "/v", true), mount(&plain, "/plain", false)];
    let text = said(&mut node, &first, &one, powerful("reads", look, mounts)).await;
    assert!(text.starts_with("of shared\n"), "{text}");
    assert_eq!(text.matches("Permission denied").count(), 2, "{text}");
    let of_first = format!("system_u:object_r:container_file_t:{}", level(&mut node, &first).await);
    for path in ["", "deep", "deep/below/secret", "deep/made", "link"] {
        assert_eq!(label(&shared.join(path)), of_first, "{path:?}");
    }
    assert_eq!(label(&outside), before, "a link is not followed");

    // The other pod sees that there is something and nothing of it; nor has it what a container of the first one wrote.
    let look = "exec 2>&1; ls /v; cat /v/deep/below/secret; cat /v/deep/made; echo x > /v/deep/x; true";
    let text = said(&mut node, &second, &other, powerful("other", look, vec![mount(&shared, "/v", false)])).await;
    assert!(!text.contains("of shared") && !text.contains("new"), "{text}");
    assert_eq!(text.matches("Permission denied").count(), 4, "{text}");
    assert!(!shared.join("deep/x").exists());
    // Privileged it is not confined, and changes no label.
    let mut privileged = powerful("privileged", "cat /v/deep/below/secret", vec![mount(&shared, "/v", true)]);
    let context = privileged.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).expect("a context");
    context.privileged = true;
    assert_eq!(said(&mut node, &second, &other, privileged).await, "of shared\n");
    assert_eq!(label(&shared), of_first);
    // Relabelled for it, it is its own.
    let again = powerful("again", "cat /v/deep/below/secret", vec![mount(&shared, "/v", true)]);
    assert_eq!(said(&mut node, &second, &other, again).await, "of shared\n");
    assert_ne!(label(&shared.join("deep/below/secret")), of_first);

    for path in ["/etc", "/usr", "/", "/proc/1"] {
        let config = powerful("refused", "true", vec![mount(Path::new(path), "/v", true)]);
        let refused = node.create(&first, config, one.clone()).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("selinux_relabel") && refused.message().contains(path), "{refused}");
    }
    for pod in [first, second] {
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

/// A file system on which nothing is written, no label either, until it goes on.
struct Standing(PathBuf);

impl Standing {
    /// With a volume of some directories in it.
    fn new(node: &Node) -> Standing {
        let (image, place) = (node.machine.temp.path().join("image"), node.machine.dir("standing"));
        fs::File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("create");
        let run = |program: &str, args: &[&str]| {
            let (said, shown) = (Command::new(program).args(args).output().expect(program), args.join(" "));
            assert!(said.status.success(), "{program} {shown}: {}", String::from_utf8_lossy(&said.stderr));
        };
        run("mke2fs", &["-F", image.to_str().expect("text")]);
        run("mount", &["-o", "loop", "-t", "ext4", image.to_str().expect("text"), place.to_str().expect("text")]);
        let standing = Standing(place); // also when the rest fails
        fs::create_dir_all(standing.volume().join("a/b/c")).expect("mkdir");
        run("fsfreeze", &["--freeze", standing.0.to_str().expect("text")]);
        standing
    }

    fn volume(&self) -> PathBuf {
        self.0.join("volume")
    }

    fn goes_on(&self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).output(); // it may go on already
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.goes_on();
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.expect("umount").success());
    }
}

#[tokio::test]
async fn a_relabelling_is_given_up_when_its_pod_is_to_be_stopped() {
    let mut node = node().await;
    let sandbox = sandbox(&node, "p", |_| {});
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let standing = Standing::new(&node);
    let volume = standing.volume();
    let before = label(&volume.join("a"));
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(powerful("c", "true", vec![mount(&volume, "/v", true)])),
        sandbox_config: Some(sandbox),
    };
    let (mut client, mut stops) = (node.runtime.clone(), node.runtime.clone());
    let create = tokio::spawn(async move { client.create_container(request).await });
    // It stands where labels are written: the thread of the daemon that nobody can wake.
    let tasks = PathBuf::from(format!("/proc/{}/task", node.pid()));
    let stands = move || {
        let place = |task: PathBuf| fs::read_to_string(task.join("wchan")).unwrap_or_default(); // one that ends has none
        let places: Vec<String> = tasks.read_dir().expect("listed").flatten().map(|task| place(task.path())).collect();
        let freezes = |at: &String| ["percpu_rwsem", "sb_start_write", "mnt_want_write"].iter().any(|f| at.contains(f));
        if places.iter().any(freezes) { Ok(()) } else { Err(format!("it does not label: {places:?}")) }
    };
    let wait = move || until(PATIENCE, stands);
    tokio::task::spawn_blocking(wait).await.expect("joined");

    let request = StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    let stop = tokio::spawn(async move { stops.stop_pod_sandbox(request).await });
    let flight = node.machine.state().join("pods").join(&pod).join("flight");
    let told = move || {
        let steps = Flight::open(&flight, Source::Engine).expect("open").read().expect("read");
        let told = steps.iter().any(|entry| entry.step == "engine: to be ended");
        if told { Ok(()) } else { Err("it is not told to stop".to_owned()) }
    };
    let wait = move || until(PATIENCE, told);
    tokio::task::spawn_blocking(wait).await.expect("joined");
    assert!(!create.is_finished() && !stop.is_finished(), "one holds up the other");
    standing.goes_on();
    let refused = create.await.expect("joined").expect_err("given up");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("the pod is being stopped"), "{refused}");
    stop.await.expect("joined").expect("stopped");
    assert_eq!(label(&volume.join("a")), before, "what came after has not its label");
    drop(standing);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_what_is_the_pods_and_have_all_that_is_mounted_for_them() {
    let mut node = node().await;
    let sandbox = sandbox(&node, "p", |_| {});
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let scratch = node.machine.dir("scratch");
    let first = "echo hello > /dev/shm/f; echo hello > /s/f; cat /etc/hosts /etc/resolv.conf /etc/hostname >/dev/null && \
                 ls /dev/mqueue /dev/pts /proc/acpi /sys/fs/cgroup >/dev/null && touch /dev/mqueue/q && \
                 head -c 1 /dev/urandom >/dev/null && /i/bin/busybox true && cat /proc/kcore | wc -c && echo whole";
    let mounts = vec![mount(&scratch, "/s", true), image_volume()];
    let masked = LinuxContainerSecurityContext {
        masked_paths: vec!["/proc/acpi".into(), "/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        ..Default::default()
    };
    let config = ContainerConfig { mounts: mounts.clone(), ..with(script("first", first), masked) };
    assert_eq!(said(&mut node, &pod, &sandbox, config).await, "0\nwhole\n");
    let second = ContainerConfig { mounts, ..script("second", "cat /dev/shm/f /s/f; ls /dev/mqueue") };
    assert_eq!(said(&mut node, &pod, &sandbox, second).await, "hello\nhello\nq\n");
    let tty = ContainerConfig { tty: true, ..script("tty", "echo hello > /dev/tty; cat /proc/self/attr/current") };
    let text = said(&mut node, &pod, &sandbox, tty).await;
    assert!(text.starts_with("hello") && text.contains("container_t"), "{text}");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_label_that_the_policy_does_not_have_is_refused_by_field_and_value_and_leaves_nothing() {
    let mut node = node().await;
    let plain = sandbox(&node, "plain", |_| {});
    let pod = node.run_pod(plain.clone()).await.expect("run");
    let user = Some(SeLinuxOption { user: "nobody_u".into(), ..Default::default() });
    let role = Some(SeLinuxOption { role: "nobody_r".into(), ..Default::default() });
    let cases = [
        (options("nosuch_t", ""), Code::InvalidArgument, "selinux_options.type: \"nosuch_t\""),
        (options("", "s7"), Code::InvalidArgument, "selinux_options.level: \"s7\""),
        (options("", "s0:c4000"), Code::InvalidArgument, "selinux_options.level: \"s0:c4000\""),
        (options("container_t:s0", ""), Code::InvalidArgument, "selinux_options.type: \"container_t:s0\""),
        (user, Code::InvalidArgument, "selinux_options.user: \"nobody_u\""),
        (role, Code::InvalidArgument, "selinux_options.role: \"nobody_r\""),
        // The policy has it, and lets nobody into it.
        (options("locked_t", ""), Code::FailedPrecondition, "selinux_options.type: \"locked_t\""),
    ];
    for (asked, code, words) in cases {
        let context = LinuxContainerSecurityContext { selinux_options: asked.clone(), ..Default::default() };
        let config = with(script("c", "true"), context);
        let refused = node.create(&pod, config, plain.clone()).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(words), "{words} in {refused}");
        let whole = sandbox(&node, "refused", |context| context.selinux_options = asked);
        let refused = node.run_pod(whole).await.expect_err("refused");
        assert!(refused.code() == code && refused.message().contains(words), "{words} in {refused}");
    }
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn pods_have_levels_of_their_own_or_those_that_they_ask_for() {
    let mut node = node().await;
    let mut levels = BTreeSet::new();
    let mut pods = Vec::new();
    for n in 0..6 {
        let pod = node.run_pod(sandbox(&node, &format!("p{n}"), |_| {})).await.expect("run");
        assert!(levels.insert(level(&mut node, &pod).await), "{levels:?}");
        pods.push(pod);
    }
    let asked = sandbox(&node, "asked", |context| {
        context.selinux_options = options("container_other_t", "s0:c1,c2");
    });
    let pod = node.run_pod(asked.clone()).await.expect("run");
    assert_eq!(level(&mut node, &pod).await, "s0:c1,c2");
    let label = said(&mut node, &pod, &asked, script("c", "cat /proc/self/attr/current")).await;
    assert_eq!(label.trim(), "system_u:system_r:container_other_t:s0:c1,c2");
    // Instead of the pod's, but for the level.
    let context = LinuxContainerSecurityContext {
        selinux_options: Some(SeLinuxOption { role: "system_r".into(), ..Default::default() }),
        ..Default::default()
    };
    let label = said(&mut node, &pod, &asked, with(script("d", "cat /proc/self/attr/current"), context)).await;
    assert_eq!(label.trim(), "system_u:system_r:container_t:s0:c1,c2");
    pods.push(pod);
    for pod in pods {
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_manifest_gives_labels_to_pods_and_containers_and_volumes_of_its_own_are_theirs() {
    load();
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    let manifest = |options: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{key: value}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  restartPolicy: Never\n  \
             securityContext: {{seLinuxOptions: {options}, seLinuxChangePolicy: MountOption}}\n  \
             volumes: [{{name: e, emptyDir: {{}}}}, {{name: m, configMap: {{name: m}}}}]\n  initContainers:\n  \
             - {{name: i, image: busybox, command: [sh, -c, 'cat /proc/self/attr/current; echo kept > /e/f'], \
             volumeMounts: [{{name: e, mountPath: /e}}]}}\n  containers:\n  \
             - {{name: a, image: busybox, command: [sh, -c, 'cat /proc/self/attr/current /e/f /m/key; \
             echo end > /dev/termination-log'], \
             volumeMounts: [{{name: e, mountPath: /e}}, {{name: m, mountPath: /m}}]}}\n  \
             - {{name: b, image: busybox, command: [cat, /proc/self/attr/current], \
             securityContext: {{seLinuxOptions: {{type: container_t}}}}}}\n"
        )
    };
    let ran = machine.run(&manifest("{type: container_other_t, level: 's0:c7,c8'}")).code(0).stdout.clone();
    assert_eq!(ran.matches("system_u:system_r:container_other_t:s0:c7,c8").count(), 2, "{ran}");
    assert_eq!(ran.matches("system_u:system_r:container_t:s0:c7,c8").count(), 1, "{ran}");
    assert!(ran.contains("kept") && ran.contains("value"), "{ran}");
    let refused = machine.run(&manifest("{type: nosuch_t}"));
    assert!(refused.stderr.contains("selinux_options.type: \"nosuch_t\""), "{}", refused.stderr);
    machine.assert_as_before();
}

#[tokio::test]
async fn a_later_daemon_execs_with_the_label_of_before_and_verify_compares_it() {
    let mut node = node().await;
    let (pod, container) = node.pod_with("p", "exec sleep 1000").await;
    let expected = format!("system_u:system_r:container_t:{}", level(&mut node, &pod).await);
    node.kill();
    node.start();
    assert_eq!(level(&mut node, &pod).await, expected["system_u:system_r:container_t:".len()..]);
    let answer = node.exec(&container, &["cat", "/proc/self/attr/current"], 0).await.expect("exec");
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim_end_matches(['\0', '\n']), expected);
    let other = node.run_pod(node.sandbox("other")).await.expect("run");
    assert_ne!(level(&mut node, &other).await, level(&mut node, &pod).await);
    let checks = fixtures::machine::json(&node.machine, &["verify", "p/c"])["checks"].clone();
    let check = checks.as_array().expect("a list").iter().find(|check| check["check"] == "SELinux label").cloned();
    let check = check.expect("compared");
    assert!(check["ok"] == true && check["found"] == expected.as_str(), "{check}");
    for pod in [pod, other] {
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn containers_of_other_runtimes_have_the_same_labels() {
    load();
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    let config = machine.temp.path().join("config.toml");
    // Where Debian has them.
    fs::write(&config, "[runtimes.runc]\npath = \"/usr/sbin/runc\"\n[runtimes.crun]\npath = \"/usr/bin/crun\"\n")
        .expect("write");
    let mut node = Node::of(machine, |command| {
        command.env("PODWRIGHT_CONFIG", &config);
    })
    .await;
    for handler in ["runc", "crun"] {
        let sandbox = sandbox(&node, handler, |_| {});
        let request = RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: handler.to_owned() };
        let pod = node.runtime.run_pod_sandbox(request).await.expect("run").into_inner().pod_sandbox_id;
        let expected = format!("system_u:system_r:container_t:{}", level(&mut node, &pod).await);
        let whole = "echo x > /made && echo x > /dev/shm/f && cat /etc/hosts >/dev/null && exec sleep 1000";
        let labels = labels(&mut node, &pod, &sandbox, script("c", whole)).await;
        assert_eq!(labels, [expected.clone(), expected.clone(), expected], "{handler}");
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

/// Changes a bundle's files of these names, by a word of sed, before a runtime reads them.
fn heedless(files: &str, word: &str) -> String {
    format!("for f in {files}; do [ ! -f $f ] || sed -i -e '{word}' $f; done")
}

/// Processes whose command line has this word.
fn with_word(word: &str) -> Vec<u32> {
    let has = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|b| *b == 0).any(|w| w == word.as_bytes()))
    };
    fixtures::machine::pids().filter(has).collect()
}

#[tokio::test]
async fn a_program_that_another_runtime_started_without_its_label_is_killed_and_its_start_has_failed() {
    load();
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    // Each is crun, and does something to what it is told before.
    let gone = "s/\"selinuxLabel\":\"[^\"]*\"/\"x\":\"\"/";
    let another = "s/:container_t:/:container_other_t:/";
    let handlers = [
        ("heeds", String::new()),
        ("forgets", heedless("config.json", gone)),
        ("takes-another", heedless("config.json", another)),
        // crun takes the container's own where an exec has none.
        ("takes-another-in-execs", heedless("exec-*.json", another)),
    ];
    let mut tables = String::new();
    for (name, before) in &handlers {
        let program = machine.temp.path().join(name);
        fs::write(&program, format!("#!/bin/sh\n{before}\nexec /usr/bin/crun \"$@\"\n")).expect("write");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
        tables.push_str(&format!("[runtimes.{name}]\npath = \"{}\"\n", program.display()));
    }
    let config = machine.temp.path().join("config.toml");
    fs::write(&config, tables).expect("write");
    let mut node = Node::of(machine, |command| {
        command.env("PODWRIGHT_CONFIG", &config);
    })
    .await;
    // Soon, for the answer does not wait for the kernel to have done it.
    let killed = |word: &str| {
        until(PATIENCE, || if with_word(word).is_empty() { Ok(()) } else { Err(format!("sleep {word} runs on")) });
    };
    for (number, (handler, _)) in (0..).zip(&handlers) {
        let sandbox = sandbox(&node, handler, |_| {});
        let request = RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: (*handler).to_owned() };
        let pod = node.runtime.run_pod_sandbox(request).await.expect("run").into_inner().pod_sandbox_id;
        let level = level(&mut node, &pod).await;
        let expected = format!("system_u:system_r:container_t:{level}");
        let found = match *handler {
            "takes-another" | "takes-another-in-execs" => format!("system_u:system_r:container_other_t:{level}"),
            _ => format!("system_u:system_r:kernel_t:{ALL}"),
        };
        let refused = |e: &tonic::Status| {
            let said = e.message();
            assert!(said.contains(&expected) && said.contains(&found), "{handler}: {said}");
            assert!(said.contains("process.selinuxLabel"), "{handler}: {said}");
        };
        // One that runs on, and one that has ended before anybody could look.
        let (lasts, ends) = (format!("{}", 100_000 + number), "true".to_owned());
        for (name, text) in [("lasts", format!("exec sleep {lasts}")), ("ends", ends)] {
            let id = node.create(&pod, script(name, &text), sandbox.clone()).await.expect("create");
            let started = node.start_container(&id).await;
            if matches!(*handler, "heeds" | "takes-another-in-execs") {
                started.unwrap_or_else(|e| panic!("{handler}: {e}"));
            } else {
                refused(&started.expect_err(handler));
                killed(&lasts);
            }
            if name == "lasts" && *handler == "takes-another-in-execs" {
                for word in ["200000", "true"] {
                    refused(
                        &node
                            .exec(&id, &["sh", "-c", &format!("sleep {word} || {word}")], 0)
                            .await
                            .expect_err("an exec"),
                    );
                    killed("200000");
                }
                let status = node.status(&id).await.expect("status");
                assert_eq!(status.state(), ContainerState::ContainerRunning, "the container is as it should be");
            }
            node.stop_container(&id, 0).await.expect("stop");
            node.remove_container(&id).await.expect("remove");
        }
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}

#[test]
fn an_own_init_and_its_program_have_the_containers_label() {
    load();
    // Where files have the label that those of a shim have, which is executed from memory.
    let binary =
        std::env::var_os("PODWRIGHT_BIN").map_or_else(|| env!("CARGO_BIN_EXE_podwright").into(), PathBuf::from);
    let memory = tempfile::tempdir_in("/dev/shm").expect("tempdir");
    let program = memory.path().join("podwright");
    fs::copy(binary, &program).expect("copy");
    assert!(label(&program).contains(":tmpfs_t:"), "{}", label(&program));
    let mut pod = shim_client::Pod::up(&program, None);
    for no_new_privileges in [true, false] {
        let says = "cat /proc/1/attr/current; echo; cat /proc/1/cmdline; echo; cat /proc/self/attr/current; echo; \
                    echo $$; exec sleep 1000";
        let (mut launch, cgroup) = pod.launch(&["/bin/busybox", "sh", "-c", says]);
        let id = launch.container.clone();
        let expected = "system_u:system_r:container_t:s0:c5,c6";
        let mut spec = launch.spec.value();
        spec["process"]["selinuxLabel"] = expected.into();
        spec["process"]["noNewPrivileges"] = no_new_privileges.into();
        spec["linux"]["mountLabel"] = "system_u:object_r:container_file_t:s0:c5,c6".into();
        launch.spec = SpecText::of(&spec).expect("JSON");
        launch.init = true;
        let (reply, _) = pod.start_launch(launch, &cgroup);
        let Reply::Started(state) = reply else { panic!("{reply:?}") };
        assert_eq!(text(format!("/proc/{}/attr/current", state.process.process.pid)), expected);
        // It runs when its start is answered; its words come later.
        shim_client::eventually("it says it all", || pod.logged(&id).len() >= 4);
        let said = pod.logged(&id).join("\n").replace('\0', " ");
        let lines: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("stdout F ")).map(str::trim).collect();
        assert_eq!((lines[0], lines[2]), (expected, expected), "{said}");
        assert!(lines[1].starts_with("podwright-init ") && lines[3] != "1", "{said}");
        let (_, number, mut output) = pod.exec(&id, "cat /proc/self/attr/current", std::time::Duration::ZERO);
        let mut exec = String::new();
        output.read_to_string(&mut exec).expect("read");
        assert!(matches!(pod.client.answer(number).0, Reply::Executed(_)), "{exec}");
        assert_eq!(exec.trim_end_matches(['\0', '\n']), expected);
    }
}

#[tokio::test]
async fn turned_off_there_are_no_labels_and_status_and_doctor_say_how_it_is() {
    let mut node = node().await;
    let told = |response: StatusResponse| {
        let state: serde_json::Value = serde_json::from_str(&response.info["podwright"]).expect("JSON");
        state["selinux"].as_str().expect("a sentence").to_owned()
    };
    let verbose = || StatusRequest { verbose: true };
    let state = told(node.runtime.status(verbose()).await.expect("status").into_inner());
    assert_eq!(
        state,
        "enforcing, containers are system_u:system_r:container_t:s0, their files system_u:object_r:container_file_t:s0"
    );
    assert!(ask(&node.machine, &["doctor"]).stdout.contains(&state));
    node.stop().await;
    node.start_with(|command| {
        command.env("PODWRIGHT_SELINUX_ENABLE", "false");
    });
    let state = told(node.runtime.status(verbose()).await.expect("status").into_inner());
    assert_eq!(state, "no labels: selinux.enable is false");
    let sandbox = sandbox(&node, "p", |_| {});
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let context = LinuxContainerSecurityContext { selinux_options: options("nosuch_t", ""), ..Default::default() };
    let config = with(script("c", "cat /proc/self/attr/current"), context);
    let label = said(&mut node, &pod, &sandbox, config).await;
    assert_eq!(label.trim(), format!("system_u:system_r:kernel_t:{ALL}"));
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}
