//! What has bitten every runtime, as properties: images and neighbours that mean harm (classes A, B, D and E) and strings of clients that do
//! (H, F), over every way into a container and every kind of pod (L): first starts, execs, second attempts, init containers and sidecars;
//! namespaces of the pod's own, the host's network, shared processes, user namespaces. What a process may (G and K) is in `root_powers`.

mod fixtures;

use fixtures::canary::{self, Canary};
use fixtures::cri::{Node, log_text, script};
use fixtures::evil_images::{Dice, NO_USERS, known, programs_layer, random};
use fixtures::evil_tar::{Image, Layer, layout, write_dir};
use fixtures::machine::{Finished, Machine, PATIENCE, ask, pids, probe_dir, until};
use fixtures::pod::{section, status};
use fixtures::size::size_of;
use podwright::criapi::*;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tonic::Code;

/// Images of chance beside the known ones. Another seed gives others: `PODWRIGHT_SEED`.
const IMAGES: usize = 9;
/// What containers have that ask for nothing, capabilities(7).
const DEFAULT: &str = "00000000a80425fb";
/// What PROBE-IN looks at beside itself.
const LOOK: &str = "/bin/probe /proc/keys /sys/firmware /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/1/exe";
/// The paths of the kubelet's default procMount (k8s.io/kubernetes pkg/securitycontext/util.go).
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn seed() -> u64 {
    std::env::var("PODWRIGHT_SEED").ok().map_or(20_261_122, |text| text.parse().expect("a number"))
}

/// Each kind of pod there is.
fn kinds() -> Vec<(&'static str, NamespaceOption)> {
    let container = NamespaceMode::Container as i32;
    let ids = vec![IdMapping { host_id: 1_200_000_000, container_id: 0, length: 65536 }];
    let user = UserNamespace { mode: NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids };
    vec![
        ("own", NamespaceOption { pid: container, ..Default::default() }),
        ("host-network", NamespaceOption { pid: container, network: NamespaceMode::Node as i32, ..Default::default() }),
        ("shared-pid", NamespaceOption { pid: NamespaceMode::Pod as i32, ..Default::default() }),
        ("userns", NamespaceOption { pid: container, userns_options: Some(user), ..Default::default() }),
    ]
}

async fn pod_of(node: &mut Node, kind: &str, options: &NamespaceOption) -> (String, PodSandboxConfig) {
    let security = LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
    let linux = LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
    let sandbox = PodSandboxConfig { linux: Some(linux), ..node.sandbox(kind) };
    (node.run_pod(sandbox.clone()).await.expect("run"), sandbox)
}

/// As a kubelet asks for a container that asks for nothing, but for a seccomp profile.
fn confined(mut config: ContainerConfig, options: &NamespaceOption, attempt: u32) -> ContainerConfig {
    let default = security_profile::ProfileType::RuntimeDefault as i32;
    let context = LinuxContainerSecurityContext {
        namespace_options: Some(options.clone()),
        masked_paths: MASKED.map(str::to_owned).to_vec(),
        readonly_paths: READONLY.map(str::to_owned).to_vec(),
        seccomp: Some(SecurityProfile { profile_type: default, ..Default::default() }),
        ..Default::default()
    };
    config.linux = Some(LinuxContainerConfig { security_context: Some(context), resources: None });
    config.log_path = format!("{}/{attempt}.log", config.metadata.as_ref().expect("one").name);
    config.metadata.as_mut().expect("one").attempt = attempt;
    config
}

/// The default confinement in what PROBE-IN prints, whatever the image is.
fn assert_confined(what: &str, text: &str) {
    let mounts = section(text, "mountinfo");
    let at = |place: &str| mounts.lines().find(|line| line.split(' ').nth(4) == Some(place)).map(str::to_owned);
    let of_kind = |place: &str, kind: &str| {
        let line = at(place).unwrap_or_else(|| panic!("{what}: nothing is mounted at {place}: {mounts}"));
        assert!(line.contains(&format!(" - {kind} ")), "{what}: {line}");
    };
    of_kind("/", "overlay");
    of_kind("/proc", "proc");
    assert!(at("/proc/sys").is_some_and(|line| line.split(' ').nth(5).is_some_and(|o| o.starts_with("ro"))), "{what}");
    assert_eq!(section(text, "path /proc/keys").lines().next(), Some("read 0"), "{what}: masked");
    let sys = section(text, "path /sys/firmware");
    assert!(sys.starts_with("dir 0") || sys.contains("os error 2"), "{what}: masked: {sys}");
    for path in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/exe"] {
        let last = section(text, &format!("path {path}"));
        assert!(!last.ends_with("writable"), "{what}: {path}: {last}");
    }
    // E: three descriptors, none a directory or of podwright's, and a working directory inside.
    let fds = section(text, "fd");
    assert!(fds.lines().all(|line| ["0 ", "1 ", "2 "].iter().any(|n| line.starts_with(n))), "{what}: {fds}");
    assert!(!fds.contains(".sock") && !fds.contains("socket:"), "{what}: {fds}");
    assert!(section(text, "cwd").starts_with('/'), "{what}: {}", section(text, "cwd"));
    // G: the user decides, and nothing else does.
    let root = status(text, "Uid") == "0 0 0 0";
    assert_eq!(status(text, "CapEff"), if root { DEFAULT } else { "0000000000000000" }, "{what}");
    assert_eq!(status(text, "CapBnd"), DEFAULT, "{what}");
    for (key, value) in [("CapInh", "0000000000000000"), ("CapAmb", "0000000000000000"), ("Seccomp", "2")] {
        assert_eq!(status(text, key), value, "{what}: {key}");
    }
}

/// The lines that are the same whichever way a process came (L).
fn who(text: &str) -> Vec<String> {
    let keys = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    keys.map(|key| format!("{key} {}", status(text, key))).to_vec()
}

/// The images of this run: name, whether no process of it may ever run.
fn images(machine: &mut Machine, canary: &Canary) -> Vec<(String, bool)> {
    let (dir, file, base) = (machine.dir("canary"), canary.file(), programs_layer());
    let known = known(&dir, &file);
    let made: Vec<Image> = known
        .iter()
        .map(|(name, tar)| Image::new(&format!("example.com/{name}:1"), &[base.clone(), Layer::plain(tar)]))
        .collect();
    write_dir(&layout(&made), &machine.dir("known"));
    let path = machine.dir("known");
    machine.import(&path);
    let mut names: Vec<(String, bool)> =
        known.iter().map(|(name, _)| (format!("example.com/{name}:1"), name.starts_with("proc-"))).collect();
    let mut dice = Dice(seed());
    for number in 0..IMAGES {
        let name = format!("example.com/r{number}:1");
        let (image, user) = random(&name, &base, &dir, &file, &mut dice);
        let at = machine.dir(&format!("r{number}"));
        write_dir(&layout(&[image]), &at);
        // A layer that contradicts itself may be refused, whole.
        if ask(machine, &["import", "--quiet", at.to_str().expect("utf-8")]).status.success() {
            names.push((name, NO_USERS.contains(&user.as_str())));
        }
    }
    assert!(names.len() > known.len() + IMAGES / 3, "most can be imported: {names:?}");
    machine.remember();
    names
}

/// No socket of podwright's has a name that a container on the host's network could connect to (CVE-2020-15257), and each that has a path is
/// root's alone.
fn assert_no_socket_is_reachable(node: &Node) {
    let ours = node.machine.temp.path().to_str().expect("utf-8").to_owned();
    let mut seen = 0;
    for pid in pids().filter(|pid| *pid != std::process::id()) {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_ours =
            pid == node.pid() || [command, environ].iter().any(|b| String::from_utf8_lossy(b).contains(&ours));
        if !is_ours {
            continue;
        }
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = links.filter_map(|entry| fs::read_link(entry.path()).ok()?.to_str().map(str::to_owned));
        let inodes: BTreeSet<String> =
            links.filter_map(|l| Some(l.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
        let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(6);
            let (Some(inode), name) = (fields.next(), fields.next().unwrap_or_default()) else { continue };
            if !inodes.contains(inode) || name.is_empty() {
                continue;
            }
            assert!(!name.starts_with('@'), "process {pid} has the abstract socket {name}");
            seen += 1;
        }
    }
    assert!(seen > 0, "the daemon has a socket");
    let meta = fs::symlink_metadata(node.socket()).expect("there");
    assert_eq!((meta.mode() & 0o777, meta.uid()), (0o600, 0), "the daemon's socket");
}

/// Starts a container, looks at it by its log and by an exec, ends it; what it said, or `None` when it never ran.
async fn look(node: &mut Node, pod: &str, sandbox: &PodSandboxConfig, config: ContainerConfig) -> Option<String> {
    let what = config.image.as_ref().expect("one").image.clone();
    let id = match node.create(pod, config, sandbox.clone()).await {
        Ok(id) => id,
        // A stop signal that is none, a relative directory: said before anything is made.
        Err(e) => {
            assert_eq!(e.code(), Code::InvalidArgument, "{what}: {e:?}");
            return None;
        }
    };
    let started = node.start_container(&id).await;
    let log = PathBuf::from(node.status(&id).await.expect("status").log_path);
    let text = match started {
        Err(e) => {
            assert_ne!(e.code(), Code::Unknown, "{what}: {e:?}");
            assert_eq!(log_text(&log, "stdout"), "", "{what}: {e:?}");
            None
        }
        Ok(()) => {
            until(PATIENCE, || {
                let said = log_text(&log, "stdout");
                if said.contains("== path /proc/1/exe\n") && said.ends_with("ready\n") { Ok(()) } else { Err(said) }
            });
            let said = log_text(&log, "stdout");
            assert_confined(&what, &said);
            let words: Vec<&str> = LOOK.split(' ').collect();
            let execed = String::from_utf8(node.exec(&id, &words, 0).await.expect("exec").stdout).expect("text");
            assert_confined(&format!("{what}, exec"), &execed);
            assert_eq!(who(&execed), who(&said), "{what}: an exec is another than the first process");
            Some(said)
        }
    };
    node.stop_container(&id, 0).await.expect("stop");
    node.remove_container(&id).await.expect("remove");
    text
}

#[tokio::test]
async fn an_image_that_means_harm_is_confined_or_never_runs_whichever_way_its_processes_come() {
    canary::apart();
    let mut machine = Machine::new();
    let canary = Canary::plant(&machine.dir("canary"));
    let images = images(&mut machine, &canary);
    let volume = machine.dir("volume");
    let mut node = Node::of(machine, |_| {}).await;
    for (kind, options) in kinds() {
        let (pod, sandbox) = pod_of(&mut node, kind, &options).await;
        let mut ran = 0;
        for (number, (image, never)) in images.iter().enumerate() {
            let mut said = Vec::new();
            for attempt in 0..2 {
                let config = ContainerConfig {
                    image: Some(ImageSpec { image: image.clone(), ..Default::default() }),
                    mounts: vec![Mount {
                        container_path: "/data/vol".to_owned(),
                        host_path: volume.display().to_string(),
                        ..Default::default()
                    }],
                    ..script(&format!("c{number}"), &format!("{LOOK}; echo ready; exec /bin/sleep 1000"))
                };
                let config = ContainerConfig {
                    command: vec!["/bin/sh".into(), "-c".into()],
                    args: config.command[2..].to_vec(),
                    ..config
                };
                said.push(look(&mut node, &pod, &sandbox, confined(config, &options, attempt)).await);
                canary.assert_alive();
            }
            assert!(!(*never && said[0].is_some()), "{kind}: {image} ran");
            // The second attempt is no other than the first.
            let both: Vec<_> = said.iter().map(|text| text.as_deref().map(who)).collect();
            assert_eq!(both[0], both[1], "{kind}: {image}");
            ran += usize::from(said[0].is_some());
        }
        assert!(ran >= 8, "{kind}: {ran} of {} ran: nothing is tested", images.len());
        assert_no_socket_is_reachable(&node);
        node.remove_pod(&pod).await.expect("remove");
    }
    canary.assert_alive();
    node.assert_clean().await;
}

#[test]
fn an_image_that_means_harm_is_confined_or_never_runs_as_init_container_and_as_sidecar() {
    canary::apart();
    let mut machine = Machine::with_busybox();
    let canary = Canary::plant(&machine.dir("canary"));
    let images = images(&mut machine, &canary);
    let kinds = ["", "  hostNetwork: true\n", "  hostUsers: false\n"];
    let mut ran = 0;
    let manifest = |name: &str, kind: usize, image: &str, fields: &str, then: &str, app: &str| {
        let more = kinds[kind % kinds.len()];
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{more}  restartPolicy: Never\n  \
             terminationGracePeriodSeconds: 0\n  volumes: [{{name: v, emptyDir: {{}}}}, {{name: d, emptyDir: {{}}}}]\n  \
             initContainers:\n  - {{name: i, image: '{image}', imagePullPolicy: Never, {fields}command: [/bin/sh, -c, '{LOOK}; {then}'], \
             volumeMounts: [{{name: v, mountPath: /data/vol}}, {{name: d, mountPath: /done}}]}}\n  \
             containers:\n  - {{name: a, image: busybox, command: [sh, -c, '{app}'], volumeMounts: [{{name: d, mountPath: /done}}]}}\n"
        )
    };
    let mut judge = |what: &str, never: bool, ended: &Finished| {
        // Without the names before the lines.
        let lines = ended.stdout.lines();
        let text: String = lines
            .map(|line| line.strip_prefix("i | ").or(line.strip_prefix("a | ")).unwrap_or(line).to_owned() + "\n")
            .collect();
        if !text.contains("== status") {
            assert!(!text.contains("== "), "{what} began: {ended:?}");
            return false;
        }
        assert_confined(what, &text);
        assert!(!never, "{what} ran");
        ran += 1;
        true
    };
    let sidecar = ("restartPolicy: Always, ", "touch /done/x; exec /bin/sleep 1000");
    let mut waiting = Vec::new();
    // Each image in each role, in one kind of pod each: all of them are met by some image.
    for (number, (image, never)) in images.iter().enumerate() {
        let init = manifest("init", number, image, "", "true", "true");
        if judge(&format!("{image} as init container"), *never, &machine.run(&init)) {
            // An app that waits for its sidecar.
            let wait = "until [ -e /done/x ]; do sleep 0.05; done";
            let text = manifest("sidecar", number + 1, image, sidecar.0, sidecar.1, wait);
            assert!(
                judge(&format!("{image} as sidecar"), *never, &machine.run(&text)),
                "{image} did as init container"
            );
        } else {
            // One that cannot start is tried again for ever.
            let text = manifest(&format!("sidecar{number}"), number + 1, image, sidecar.0, sidecar.1, "true");
            waiting.push((image, machine.start(&text, &["--timeout", "2s"])));
        }
        canary.assert_alive();
    }
    for (image, run) in waiting {
        assert!(!judge(&format!("{image} as sidecar"), true, &run.wait()), "{image} did not as init container");
    }
    canary.assert_alive();
    assert!(ran >= 12, "{ran} ran: nothing is tested");
    machine.assert_as_before();
}

#[tokio::test]
async fn a_neighbour_that_renames_wins_nothing_in_any_kind_of_pod_nor_by_an_exec() {
    /// Starts of the victim in each kind of pod; tests/root_launch.rs does 480 in one.
    const STARTS: u32 = 8;
    canary::apart();
    let machine = Machine::with_busybox();
    let outside = machine.dir("canary");
    fs::create_dir(outside.join("deep")).expect("mkdir");
    let canary = Canary::plant(&outside);
    let (shared, inner, probe) = (machine.dir("shared"), machine.dir("inner"), probe_dir(&machine));
    fs::create_dir_all(shared.join("target/deep")).expect("mkdir");
    let up = format!("../../../../../../../..{}", outside.display());
    std::os::unix::fs::symlink(up, shared.join("link")).expect("symlink");
    let mut node = Node::of(machine, |_| {}).await;
    let mount = |path: &str, host: &Path| Mount {
        container_path: path.to_owned(),
        host_path: host.display().to_string(),
        ..Default::default()
    };
    let own = node.sandbox("racer");
    let racing = node.run_pod(own.clone()).await.expect("run");
    let racer = ContainerConfig {
        command: ["/probe/probe", "--race", "/shared/target", "/shared/link"].map(str::to_owned).to_vec(),
        mounts: vec![mount("/shared", &shared), mount("/probe", &probe)],
        ..script("racer", "")
    };
    let racer = node.create(&racing, racer, own).await.expect("create");
    node.start_container(&racer).await.expect("start");
    until(PATIENCE, || match (0..200).any(|_| fs::symlink_metadata(shared.join("link")).is_ok_and(|m| m.is_dir())) {
        true => Ok(()),
        false => Err("it does not race".to_owned()),
    });
    for (kind, options) in kinds() {
        let (pod, sandbox) = pod_of(&mut node, kind, &options).await;
        let mut started = 0;
        for attempt in 0..STARTS {
            let config = ContainerConfig {
                mounts: vec![mount("/shared", &shared), mount("/shared/target/deep", &inner)],
                working_dir: "/shared/target/deep".to_owned(),
                ..script("victim", "echo > /shared/target/deep/new; exec sleep 1000")
            };
            let mut config = confined(config, &options, attempt);
            let context = config.linux.as_mut().and_then(|l| l.security_context.as_mut()).expect("one");
            context.masked_paths.push("/shared/target/deep/masked".to_owned());
            context.readonly_paths.push("/shared/target".to_owned());
            let id = node.create(&pod, config, sandbox.clone()).await.expect("create");
            if node.start_container(&id).await.is_ok() {
                started += 1;
                for _ in 0..2 {
                    // Whether it finds its directory is the racer's luck.
                    let _ = node.exec(&id, &["sh", "-c", "echo > new2; echo > /shared/target/deep/new3"], 60).await;
                }
            }
            node.remove_container(&id).await.expect("remove");
            canary.assert_alive();
        }
        assert!(started > 0, "{kind}: the victim was never started");
        node.remove_pod(&pod).await.expect("remove");
    }
    node.remove_pod(&racing).await.expect("remove");
    assert_eq!(fs::read_dir(outside.join("deep")).expect("list").count(), 0);
    node.assert_clean().await;
}

/// Where a client may put a string: its name, and how.
type Field<T> = (&'static str, fn(&mut T, String));

fn sandbox_fields() -> Vec<Field<PodSandboxConfig>> {
    fn dns(config: &mut PodSandboxConfig) -> &mut DnsConfig {
        config.dns_config.get_or_insert_default()
    }
    fn linux(config: &mut PodSandboxConfig) -> &mut LinuxPodSandboxConfig {
        config.linux.get_or_insert_default()
    }
    vec![
        ("name", |c, s| c.metadata.get_or_insert_default().name = s),
        ("uid", |c, s| c.metadata.get_or_insert_default().uid = s),
        ("namespace", |c, s| c.metadata.get_or_insert_default().namespace = s),
        ("hostname", |c, s| c.hostname = s),
        ("log_directory", |c, s| c.log_directory = s),
        ("dns.servers", |c, s| dns(c).servers.push(s)),
        ("dns.searches", |c, s| dns(c).searches.push(s)),
        ("dns.options", |c, s| dns(c).options.push(s)),
        ("label", |c, s| drop(c.labels.insert(s.clone(), s))),
        ("annotation", |c, s| drop(c.annotations.insert(s.clone(), s))),
        ("cgroup_parent", |c, s| linux(c).cgroup_parent = s),
        ("sysctl", |c, s| drop(linux(c).sysctls.insert(s, "1".to_owned()))),
        ("sysctl's value", |c, s| drop(linux(c).sysctls.insert("kernel.shm_rmid_forced".to_owned(), s))),
        ("port_mapping.host_ip", |c, s| {
            c.port_mappings.push(PortMapping { host_ip: s, host_port: 65_000, container_port: 1, ..Default::default() })
        }),
    ]
}

fn container_fields() -> Vec<Field<ContainerConfig>> {
    fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
        config.linux.get_or_insert_default().security_context.get_or_insert_default()
    }
    fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
        config.linux.get_or_insert_default().resources.get_or_insert_default()
    }
    fn profile(localhost_ref: String) -> Option<SecurityProfile> {
        Some(SecurityProfile { profile_type: security_profile::ProfileType::Localhost as i32, localhost_ref })
    }
    vec![
        ("name", |c, s| c.metadata.get_or_insert_default().name = s),
        ("image", |c, s| c.image.get_or_insert_default().image = s),
        ("user_specified_image", |c, s| c.image.get_or_insert_default().user_specified_image = s),
        ("command", |c, s| c.command = vec![s]),
        ("args", |c, s| c.args = vec![s]),
        ("working_dir", |c, s| c.working_dir = s),
        ("env", |c, s| c.envs.push(KeyValue { key: s.clone(), value: s.into_bytes() })),
        ("mount.container_path", |c, s| {
            c.mounts.push(Mount {
                container_path: s,
                host_path: "/usr/share".to_owned(),
                readonly: true,
                ..Default::default()
            })
        }),
        ("mount.image", |c, s| {
            let image = Some(ImageSpec { image: s.clone(), ..Default::default() });
            c.mounts.push(Mount {
                container_path: "/m".into(),
                image,
                image_sub_path: s,
                readonly: true,
                ..Default::default()
            })
        }),
        ("label", |c, s| drop(c.labels.insert(s.clone(), s))),
        ("annotation", |c, s| drop(c.annotations.insert(s.clone(), s))),
        ("log_path", |c, s| c.log_path = s),
        ("run_as_username", |c, s| security(c).run_as_username = s),
        ("add_capabilities", |c, s| security(c).capabilities.get_or_insert_default().add_capabilities = vec![s]),
        ("drop_capabilities", |c, s| security(c).capabilities.get_or_insert_default().drop_capabilities = vec![s]),
        ("add_ambient_capabilities", |c, s| {
            security(c).capabilities.get_or_insert_default().add_ambient_capabilities = vec![s]
        }),
        ("device", |c, s| {
            c.devices.push(Device { container_path: s.clone(), host_path: s, permissions: "rw".to_owned() })
        }),
        ("device's permissions", |c, s| {
            c.devices.push(Device { container_path: "/dev/x".into(), host_path: "/dev/null".into(), permissions: s })
        }),
        ("CDI_device", |c, s| c.cdi_devices.push(CdiDevice { name: s })),
        ("CDI annotation", |c, s| drop(c.annotations.insert("cdi.k8s.io/x".to_owned(), s))),
        ("masked_paths", |c, s| security(c).masked_paths = vec![s]),
        ("readonly_paths", |c, s| security(c).readonly_paths = vec![s]),
        ("seccomp", |c, s| security(c).seccomp = profile(s)),
        ("apparmor", |c, s| security(c).apparmor = profile(s)),
        ("target_id", |c, s| {
            let target = NamespaceMode::Target as i32;
            security(c).namespace_options = Some(NamespaceOption { pid: target, target_id: s, ..Default::default() })
        }),
        ("cpuset_cpus", |c, s| resources(c).cpuset_cpus = s),
        ("hugepage", |c, s| resources(c).hugepage_limits.push(HugepageLimit { page_size: s, limit: 1 })),
        ("unified", |c, s| drop(resources(c).unified.insert(s.clone(), s))),
    ]
}

#[tokio::test]
async fn no_string_of_a_client_reaches_anything_but_what_it_names() {
    canary::apart();
    let mut machine = Machine::with_busybox();
    let canary = Canary::plant(&machine.dir("canary"));
    machine.remember();
    let outside = canary.file().display().to_string();
    let strings: Vec<String> = [
        "\0",
        "a\nb",
        "a\0b",
        "+",
        "..",
        "-rf",
        "%n%s$(reboot)`id`;|&",
        "\u{7f}\t\r\u{1b}[2J",
        "*",
        "@a",
        "a:b\\:c,d",
        "\u{202e}é",
        "a/../b",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([
        format!("../../../../../../../../../..{outside}"),
        format!("x\n[Service]\nExecStart=/bin/touch {outside}"),
        "a".repeat(1 << 20),
    ])
    .collect();
    let mut node = Node::of(machine, |_| {}).await;
    let mut wrong = Vec::new();
    let mut accepted = 0;
    // An error is one of what was asked for; not of podwright's own, nor of a file of the kernel that took what it should not have got.
    let told = |what: &str, s: &str, e: &tonic::Status, wrong: &mut Vec<String>| {
        let start: String = s.chars().take(20).collect();
        if matches!(
            e.code(),
            Code::Unknown | Code::Internal | Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded
        ) || e.message().len() > 64 << 10
        {
            wrong.push(format!("{what} {start:?}: {:?}: {:.300}", e.code(), e.message()));
        }
    };
    let before = size_of(node.pid());
    for (field, put) in sandbox_fields() {
        for text in &strings {
            let mut config = node.sandbox("p");
            put(&mut config, text.clone());
            match node.run_pod(config).await {
                Ok(pod) => {
                    accepted += 1;
                    node.pod_status(&pod).await.expect("status");
                    node.remove_pod(&pod).await.expect("remove");
                }
                Err(e) => told(&format!("sandbox {field}"), text, &e, &mut wrong),
            }
        }
        canary.assert_alive();
    }
    let sandbox = node.sandbox("q");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    for (field, put) in container_fields() {
        for text in &strings {
            let mut config = script("c", "true");
            put(&mut config, text.clone());
            match node.create(&pod, config, sandbox.clone()).await {
                Ok(id) => {
                    accepted += 1;
                    match node.start_container(&id).await {
                        Ok(()) => drop(node.exited(&id).await),
                        Err(e) => told(&format!("start with {field}"), text, &e, &mut wrong),
                    }
                    node.remove_container(&id).await.expect("remove");
                }
                Err(e) => told(&format!("container {field}"), text, &e, &mut wrong),
            }
        }
        canary.assert_alive();
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(accepted > 100, "{accepted} were accepted: nothing is tested");
    node.remove_pod(&pod).await.expect("remove");
    // F: whatever came, it is as large as before, but for what its allocator keeps of the largest.
    until(PATIENCE, || {
        let after = size_of(node.pid());
        let same = after.rss_kib < before.rss_kib + (48 << 10) && after.fds <= before.fds + 4;
        if same { Ok(()) } else { Err(format!("{before:?} became {after:?}")) }
    });
    node.assert_clean().await;
}
