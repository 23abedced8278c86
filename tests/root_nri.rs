//! Plugins of the Node Resource Interface on a real daemon: what they are told, what they change, and what becomes of those that hang, die,
//! lie or want the same.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{Machine, PATIENCE};
use podwright::nri::link::{Link, Side};
use podwright::nri::ttrpc::Request;
use podwright::nriapi::*;
use prost::Message;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// What a plugin answers by the method it is asked: nothing special for most.
type Answers = Arc<dyn Fn(&str, &[u8]) -> Answer + Send + Sync>;

enum Answer {
    Bytes(Vec<u8>),
    Refuse(&'static str),
    Hang,
}

/// An answer that changes nothing.
fn nothing() -> Answer {
    Answer::Bytes(Vec::new())
}

/// What a plugin was told, in order: method, pod, container and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    method: String,
    pod: String,
    container: String,
    name: String,
}

struct Plugin {
    link: Link,
    told: watch::Receiver<Vec<Told>>,
    /// How often each container was in a synchronisation, and told as new.
    seen: Arc<Mutex<BTreeMap<String, (u32, u32)>>>,
}

impl Plugin {
    /// Connects, and returns when it is synchronised.
    async fn connect(machine: &Machine, index: &str, answers: Answers) -> Plugin {
        let socket = UnixStream::connect(machine.nri_socket()).await.expect("the daemon serves NRI");
        let (link, mut asked) = Link::new(socket, Side::Plugin).expect("link");
        let (tell, told) = watch::channel(Vec::new());
        let seen = Arc::<Mutex<BTreeMap<String, (u32, u32)>>>::default();
        let (here, noted) = (link.clone(), seen.clone());
        tokio::spawn(async move {
            while let Some(question) = asked.recv().await {
                // All that have a pod and a container have them as these two fields.
                let payload = question.payload.as_slice();
                let about = PostCreateContainerRequest::decode(payload).unwrap_or_default();
                let container = about.container.unwrap_or_default();
                let method = question.method.clone();
                if method == "Synchronize" {
                    let all = SynchronizeRequest::decode(payload).expect("decodes").containers;
                    all.into_iter().for_each(|c| noted.lock().expect("no panic").entry(c.id).or_default().0 += 1);
                } else if method == "CreateContainer" {
                    noted.lock().expect("no panic").entry(container.id.clone()).or_default().1 += 1;
                }
                let pod = about.pod.unwrap_or_default().id;
                let now = Told { method: method.clone(), pod, container: container.id, name: container.name };
                let answer = answers(&method, payload);
                tell.send_modify(|told| told.push(now));
                match answer {
                    Answer::Bytes(bytes) => here.answer(&question, Ok(bytes)).await,
                    Answer::Refuse(why) => here.answer(&question, Err((2, why.to_owned()))).await,
                    Answer::Hang => {}
                }
            }
        });
        let mut plugin = Plugin { link, told, seen };
        let who =
            RegisterPluginRequest { plugin_name: "test".into(), plugin_idx: index.into(), nri_version: String::new() };
        plugin.ask("RegisterPlugin", who.encode_to_vec()).await.expect("registered");
        plugin.until("Synchronize").await;
        plugin
    }

    async fn ask(&self, method: &str, payload: Vec<u8>) -> Result<Vec<u8>, podwright::nri::link::Failure> {
        let service = "nri.pkg.api.v1alpha1.Runtime".to_owned();
        self.link.call(Request { service, method: method.to_owned(), payload, timeout_nano: 0 }, PATIENCE).await
    }

    /// Waits until it was told of that; everything that it was told by then.
    async fn until(&mut self, method: &str) -> Vec<Told> {
        let told = self.told.wait_for(|told| told.iter().any(|told| told.method == method));
        tokio::time::timeout(PATIENCE, told).await.expect(method).expect("it runs").clone()
    }

    /// What it was told of a pod or its containers.
    fn of(&self, pod: &str) -> Vec<String> {
        self.told.borrow().iter().filter(|told| told.pod == pod).map(|told| told.method.clone()).collect()
    }
}

/// A node whose plugins have as long as a test on a busy machine needs.
async fn node() -> Node {
    node_with(|command| {
        command.env("PODWRIGHT_NRI_REQUEST_TIMEOUT", "60s").env("PODWRIGHT_NRI_REGISTRATION_TIMEOUT", "60s");
    })
    .await
}

async fn node_with(edit: impl FnOnce(&mut Command)) -> Node {
    Node::of(Machine::with_busybox(), edit).await
}

fn adjusts(adjust: ContainerAdjustment) -> Answers {
    Arc::new(move |method, _| match method {
        "CreateContainer" => {
            let adjust = Some(adjust.clone());
            Answer::Bytes(CreateContainerResponse { adjust, ..CreateContainerResponse::default() }.encode_to_vec())
        }
        _ => nothing(),
    })
}

fn env(key: &str, value: &str) -> ContainerAdjustment {
    let env = vec![KeyValue { key: key.into(), value: value.into() }];
    ContainerAdjustment { env, ..ContainerAdjustment::default() }
}

#[tokio::test]
async fn a_plugin_is_told_of_everything_in_order_and_what_it_adjusts_is_what_runs() {
    let mut node = node().await;
    let source = node.machine.dir("volume");
    std::fs::write(source.join("file"), "of the host").expect("write");
    let mut plugin = Plugin::connect(
        &node.machine,
        "10",
        adjusts(ContainerAdjustment {
            annotations: [("by".to_owned(), "nri".to_owned())].into(),
            mounts: vec![Mount {
                destination: "/data".into(),
                r#type: "bind".into(),
                source: source.display().to_string(),
                options: vec!["rbind".into(), "ro".into()],
            }],
            rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 77, soft: 66 }],
            linux: Some(LinuxContainerAdjustment {
                oom_score_adj: Some(OptionalInt { value: 777 }),
                ..LinuxContainerAdjustment::default()
            }),
            ..env("ADDED", "1")
        }),
    )
    .await;
    let config = node.sandbox("web");
    let pod = node.run_pod(config.clone()).await.expect("run");
    let text = "echo $ADDED; cat /data/file; echo; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; sleep 1000";
    let asked = script("c", text);
    let id = node.create(&pod, asked.clone(), config.clone()).await.expect("create");
    let again = node.create(&pod, asked, config.clone()).await.expect("as it was asked for before");
    assert_eq!(again, id, "a retry finds it, whatever plugins have made of it");
    node.start_container(&id).await.expect("start");
    node.stop_container(&id, 0).await.expect("stop");
    node.remove_container(&id).await.expect("remove");
    node.stop_pod(&pod).await.expect("stop");
    node.stop_pod(&pod).await.expect("twice is as once");
    let log = Path::new(&config.log_directory).join("c/0.log");
    node.remove_pod(&pod).await.expect("remove");
    assert_eq!(
        plugin.of(&pod),
        [
            "RunPodSandbox",
            "CreateContainer",
            "ValidateContainerAdjustment",
            "PostCreateContainer",
            "StartContainer",
            "PostStartContainer",
            "StopContainer",
            "RemoveContainer",
            "StopPodSandbox",
            "RemovePodSandbox",
        ]
    );
    let told = plugin.until("RemovePodSandbox").await;
    assert!(
        told.iter().filter(|told| !told.container.is_empty()).all(|t| (&t.container, t.name.as_str()) == (&id, "c"))
    );
    let said = log_text(&log, "stdout");
    // It may have been stopped before it had said all of it; what it said is so.
    let wanted = "1\nof the host\n66\n77\n777\n";
    assert!(wanted.starts_with(&said), "{said:?}");
    drop(plugin);
    node.assert_clean().await;
}

#[tokio::test]
async fn what_is_adjusted_is_seen_from_inside() {
    let mut node = node().await;
    let _plugin = Plugin::connect(&node.machine, "10", adjusts(env("ADDED", "yes"))).await;
    let (pod, id) = node.pod_with("web", "sleep 1000").await;
    let said = node.exec(&id, &["sh", "-c", "echo $ADDED"], 60).await.expect("exec");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "yes\n");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_device_of_a_vendor_that_a_plugin_adds_is_there_with_all_that_belongs_to_it() {
    let machine = Machine::with_busybox();
    let specifications = machine.dir("cdi");
    // fuse, which no container has; that the filter lets it be opened to be read, and no more, is looked at.
    let yaml = "cdiVersion: \"0.8.0\"\nkind: vendor.com/thing\ndevices:\n- name: one\n  containerEdits:\n    env: [ONE=of the vendor]\n    \
        deviceNodes:\n    - {path: /dev/thing0, type: c, major: 10, minor: 229, fileMode: 0640, permissions: r}\n    additionalGids: [4321]\n";
    std::fs::write(specifications.join("vendor.yaml"), yaml).expect("write");
    let mut node = Node::of(machine, |command| {
        command.env("PODWRIGHT_NRI_REQUEST_TIMEOUT", "60s").env("PODWRIGHT_NRI_REGISTRATION_TIMEOUT", "60s");
        command.env("PODWRIGHT_CDI_SPEC_DIRS", &specifications);
    })
    .await;
    let named = |name: &str| ContainerAdjustment {
        cdi_devices: vec![CdiDevice { name: format!("vendor.com/thing={name}") }],
        ..ContainerAdjustment::default()
    };
    let plugin = Plugin::connect(&node.machine, "10", adjusts(named("one"))).await;
    let (pod, id) = node.pod_with("web", "sleep 1000").await;
    let look = "echo $ONE; stat -c '%t:%T %a' /dev/thing0; (: < /dev/thing0) && echo read; (: > /dev/thing0) 2>/dev/null && echo written; id -G";
    let said = node.exec(&id, &["sh", "-c", look], 60).await.expect("exec");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "of the vendor\na:e5 640\nread\n0 4321\n");
    node.remove_pod(&pod).await.expect("remove");
    drop(plugin);

    let _plugin = Plugin::connect(&node.machine, "10", adjusts(named("two"))).await;
    let config = node.sandbox("other");
    let pod = node.run_pod(config.clone()).await.expect("run");
    let refused = node.create(&pod, script("c", "true"), config).await.expect_err("nobody has it");
    assert!(refused.message().contains("vendor.com/thing=two"), "{refused}");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn the_end_of_a_container_that_ends_by_itself_is_told_once() {
    let mut node = node().await;
    let mut plugin = Plugin::connect(&node.machine, "10", Arc::new(|_, _| nothing())).await;
    let (pod, id) = node.pod_with("web", "exit 1").await;
    assert_eq!(node.exited(&id).await.exit_code, 1);
    plugin.until("StopContainer").await;
    node.remove_pod(&pod).await.expect("remove");
    let of = plugin.of(&pod);
    assert_eq!(of.iter().filter(|method| *method == "StopContainer").count(), 1, "{of:?}");
    assert_eq!(of.last().map(String::as_str), Some("RemovePodSandbox"));
    node.assert_clean().await;
}

#[tokio::test]
async fn what_a_plugin_refuses_is_not_made_and_nothing_of_it_is_left() {
    let mut node = node().await;
    let refused = Arc::new(Mutex::new(vec!["RunPodSandbox", "CreateContainer", "StartContainer"]));
    let left = refused.clone();
    let plugin = Plugin::connect(
        &node.machine,
        "10",
        Arc::new(move |method, _| {
            let mut left = left.lock().expect("no panic");
            match left.iter().position(|refused| *refused == method) {
                Some(at) => {
                    left.remove(at);
                    Answer::Refuse("not today")
                }
                None => nothing(),
            }
        }),
    )
    .await;
    let config = node.sandbox("web");
    let e = node.run_pod(config.clone()).await.expect_err("refused");
    assert!(e.message().contains("NRI plugin 10-test") && e.message().contains("not today"), "{e:?}");
    assert!(node.pods(Default::default()).await.is_empty());
    let pod = node.run_pod(config.clone()).await.expect("the second time it is not");
    let e = node.create(&pod, script("c", "sleep 1000"), config.clone()).await.expect_err("refused");
    assert!(e.message().contains("not today"), "{e:?}");
    assert!(node.containers(Default::default()).await.is_empty());
    let id = node.create(&pod, script("c", "sleep 1000"), config.clone()).await.expect("the second time it is not");
    assert!(node.start_container(&id).await.expect_err("refused").message().contains("not today"));
    assert_eq!(node.status(&id).await.expect("status").exit_code, 128);
    node.remove_pod(&pod).await.expect("remove");
    assert!(refused.lock().expect("no panic").is_empty());
    drop(plugin);
    node.assert_clean().await;
}

#[tokio::test]
async fn two_plugins_that_want_the_same_and_what_nobody_can_do_fail_the_container_by_name() {
    let mut node = node().await;
    let second = Plugin::connect(&node.machine, "20", adjusts(env("SAME", "2"))).await;
    let first = Plugin::connect(&node.machine, "10", adjusts(env("SAME", "1"))).await;
    let config = node.sandbox("web");
    let pod = node.run_pod(config.clone()).await.expect("run");
    let e = node.create(&pod, script("c", "true"), config.clone()).await.expect_err("a conflict");
    assert!(e.message().contains("NRI plugins 10-test and 20-test both set Env SAME"), "{e:?}");
    first.link.close("done");
    second.link.close("done");
    let hooks = Hooks { prestart: vec![Hook { path: "/bin/true".into(), ..Hook::default() }], ..Hooks::default() };
    let adjust = ContainerAdjustment { hooks: Some(hooks), ..ContainerAdjustment::default() };
    let _third = Plugin::connect(&node.machine, "30", adjusts(adjust)).await;
    let e = node.create(&pod, script("c", "true"), config.clone()).await.expect_err("no hooks");
    assert!(e.message().contains("hooks") && e.message().contains("not supported"), "{e:?}");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_that_hangs_is_waited_for_once_and_one_that_dies_not_at_all() {
    let mut node = node_with(|command| {
        command.env("PODWRIGHT_NRI_REQUEST_TIMEOUT", "500ms").env("PODWRIGHT_NRI_REGISTRATION_TIMEOUT", "60s");
    })
    .await;
    let dies = Plugin::connect(&node.machine, "00", Arc::new(|_, _| nothing())).await;
    dies.link.close("as the test wants it");
    let hangs = Plugin::connect(
        &node.machine,
        "10",
        Arc::new(|method, _| if method == "RunPodSandbox" { Answer::Hang } else { nothing() }),
    )
    .await;
    let (pod, id) = node.pod_with("web", "sleep 1000").await;
    let why = tokio::time::timeout(PATIENCE, hangs.link.until_closed()).await.expect("it was closed");
    assert!(why.contains("closed"), "{why}");
    assert_eq!(hangs.of(&pod), ["RunPodSandbox"], "it was asked nothing more");
    assert_eq!(node.exec(&id, &["true"], 60).await.expect("it runs").exit_code, 0);
    node.remove_pod(&pod).await.expect("remove");
    let said = node.stop().await;
    assert!(said.contains("RunPodSandbox was not answered within 500 ms"), "{said}");
    node.machine.assert_as_before();
}

#[tokio::test]
async fn a_peer_that_sends_too_much_or_nonsense_is_closed_and_the_next_is_served() {
    let mut node = node().await;
    let socket = node.machine.nri_socket();
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().expect("a directory"))), (0o600, 0o700));
    let too_long = [0, 0, 0, 2, 0, 0x10, 0, 11];
    let nonsense = [0, 0, 0, 2, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 9, 9];
    for bytes in [&too_long[..], &nonsense[..]] {
        let path = socket.clone();
        let bytes = bytes.to_vec();
        let read = tokio::task::spawn_blocking(move || {
            let mut peer = std::os::unix::net::UnixStream::connect(path).expect("connect");
            peer.set_read_timeout(Some(PATIENCE)).expect("timeout");
            peer.write_all(&bytes).expect("write");
            peer.read(&mut [0]).expect("an end, in time")
        });
        assert_eq!(read.await.expect("joined"), 0);
    }
    let mut plugin = Plugin::connect(&node.machine, "10", Arc::new(|_, _| nothing())).await;
    let again = plugin.ask("RegisterPlugin", Vec::new()).await;
    assert!(again.is_err(), "once");
    let pod = node.run_pod(node.sandbox("web")).await.expect("run");
    plugin.until("RunPodSandbox").await;
    node.remove_pod(&pod).await.expect("remove");
    drop(plugin);
    node.stop().await;
    assert!(!socket.exists());
    node.machine.assert_as_before();
}

#[tokio::test]
async fn a_plugin_that_comes_while_containers_are_made_hears_of_each_once() {
    let mut node = node().await;
    let config = node.sandbox("web");
    let pod = node.run_pod(config.clone()).await.expect("run");
    let mut ids = Vec::new();
    for n in 0..2 {
        ids.push(node.create(&pod, script(&format!("before{n}"), "true"), config.clone()).await.expect("create"));
    }
    let mut making = tokio::task::JoinSet::new();
    for n in 0..6 {
        let (mut runtime, pod, config) = (node.runtime.clone(), pod.clone(), config.clone());
        making.spawn(async move {
            let request = podwright::criapi::CreateContainerRequest {
                pod_sandbox_id: pod,
                config: Some(script(&format!("during{n}"), "true")),
                sandbox_config: Some(config),
            };
            runtime.create_container(request).await.expect("create").into_inner().container_id
        });
    }
    let mut plugins = Vec::new();
    for index in ["00", "50", "99"] {
        plugins.push(Plugin::connect(&node.machine, index, Arc::new(|_, _| nothing())).await);
    }
    ids.extend(making.join_all().await);
    // The answer to a synchronisation is on its way when it is told of: the next one waits for it.
    ids.push(node.create(&pod, script("after", "true"), config.clone()).await.expect("create"));
    for plugin in &plugins {
        let seen = plugin.seen.lock().expect("no panic").clone();
        for id in &ids {
            let (synchronised, told) = seen.get(id).copied().unwrap_or_default();
            assert_eq!(synchronised + told, 1, "{id}: {synchronised} and {told}");
        }
    }
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_changes_limits_of_a_container_that_is_there() {
    let mut node = node_with(|command| {
        command.env("PODWRIGHT_NRI_REQUEST_TIMEOUT", "60s").env("PODWRIGHT_CGROUP_ALLOW_UNENFORCED", "true");
    })
    .await;
    let plugin = Plugin::connect(&node.machine, "10", Arc::new(|_, _| nothing())).await;
    let (pod, id) = node.pod_with("web", "sleep 1000").await;
    let update = |id: &str, bytes| {
        let memory = LinuxMemory { limit: Some(OptionalInt64 { value: bytes }), ..LinuxMemory::default() };
        let resources = LinuxResources { memory: Some(memory), ..LinuxResources::default() };
        ContainerUpdate {
            container_id: id.to_owned(),
            linux: Some(LinuxContainerUpdate { resources: Some(resources) }),
            ignore_failure: false,
        }
    };
    let unknown = "0".repeat(64);
    let request =
        UpdateContainersRequest { update: vec![update(&id, 64 << 20), update(&unknown, 1)], evict: Vec::new() };
    let answer = plugin.ask("UpdateContainers", request.encode_to_vec()).await.expect("answered");
    let failed = UpdateContainersResponse::decode(answer.as_slice()).expect("decodes").failed;
    assert_eq!(failed.iter().map(|update| update.container_id.as_str()).collect::<Vec<_>>(), [unknown.as_str()]);
    let status = node.status(&id).await.expect("status");
    let limit = status.resources.and_then(|resources| resources.linux).expect("linux").memory_limit_in_bytes;
    assert_eq!(limit, 64 << 20);
    node.remove_pod(&pod).await.expect("remove");
    drop(plugin);
    node.assert_clean().await;
}
