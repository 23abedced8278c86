//! CNI: Debian's plugins as they are, and plugins that do what no plugin should. Each test has a network namespace of its own as its host.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod fixtures;

use fixtures::cni::{Bound, DEBIAN, answer, debian, made, own_host, page};
use fixtures::machine::{PATIENCE, until};
use podwright::error::{Error, Kind};
use podwright::id::PodId;
use podwright::network::cni::{Cni, Limits, Places};
use podwright::network::{Attachment, Bandwidth, HostPort, Netns, Protocol, Request, Status};
use podwright::state::paths::Paths;
use podwright::state::record::{self, Durability};
use podwright::sys::ns::{self, NsFlags};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Of scripts that do not hang on purpose.
const LONG: Duration = Duration::from_secs(30);
/// Of those that do.
const SHORT: Duration = Duration::from_secs(3);
/// Of those that none hangs in.
const LIMITS: Limits = Limits { add: LONG, del: LONG, check: LONG, gc: LONG, status: LONG };
/// What a script answers to ADD.
const RESULT: &str = r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}],
    "ips": [{"address": "10.9.0.5/24", "interface": 0}]}"#;

/// An engine's side of CNI, with directories of its own.
struct Place {
    _bound: Bound,
    dir: tempfile::TempDir,
    cni: Cni,
}

/// A network namespace that lives by a process, as that of a pod does.
struct Pod {
    id: PodId,
    process: Child,
}

impl Pod {
    fn netns(&self) -> Netns {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.process.id()));
        Netns { fd: fs::File::open(&path).unwrap().into(), path }
    }

    fn request(&self) -> Request {
        Request {
            pod: self.id.clone(),
            name: "web".into(),
            namespace: "default".into(),
            uid: "u1".into(),
            netns: self.netns(),
            hostname: "web".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            dns: None,
            bandwidth: Bandwidth::default(),
            cgroup: String::new(),
        }
    }

    /// Does something on a thread that is inside.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let netns = self.netns();
        let thread = std::thread::spawn(move || {
            ns::setns(netns.fd.as_fd(), NsFlags::NET).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    /// A command inside.
    fn run(&self, script: &str) -> String {
        let netns = format!("--net=/proc/{}/ns/net", self.process.id());
        let output = Command::new("nsenter").args([&netns, "sh", "-c", script]).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have been ended by the test
        let _ = self.process.wait(); // as above
    }
}

impl Place {
    fn new() -> Place {
        Place::with(&[], LIMITS)
    }

    /// With further directories of plugins after its own.
    fn with(more: &[&str], limits: Limits) -> Place {
        let dir = tempfile::tempdir().unwrap();
        for name in ["conf", "bin", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let cni = engine(dir.path(), more, limits);
        Place { _bound: Bound(dir.path().join("netns")), dir, cni }
    }

    /// As another process has it that is started now.
    fn restart(&mut self, more: &[&str], limits: Limits) {
        self.cni = engine(self.dir.path(), more, limits);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn paths(&self) -> Paths {
        paths(self.dir.path())
    }

    /// A network of these plugins.
    fn network(&self, version: &str, plugins: Value) {
        let conf = json!({"cniVersion": version, "name": "testnet", "plugins": plugins});
        fixtures::put(self.path("conf/10-test.conflist"), conf.to_string());
    }

    /// A plugin that notes its calls and what it is given, and then does what `script` says.
    fn plugin(&self, name: &str, script: &str) {
        let log = self.path("log");
        let text = format!(
            "#!/bin/sh\ninput=$(cat)\n\
             [ $CNI_COMMAND = VERSION ] || printf '%s %s netns=%s %s\\n' $CNI_COMMAND {name} \"$CNI_NETNS\" \"$input\" >>{}\n\
             RESULT='{RESULT}'\n{script}\n",
            log.display()
        );
        // Beside and renamed: a copy of a process that is being started by another test has the file open for writing otherwise.
        record::write_bytes(&self.path("bin").join(name), text.as_bytes(), 0o755, Durability::Boot).unwrap();
    }

    /// The calls so far, `ADD a`; and empties the list.
    fn calls(&self) -> Vec<String> {
        self.inputs().into_iter().map(|(call, _, _)| call).collect()
    }

    /// Each with its `CNI_NETNS` and its input.
    fn inputs(&self) -> Vec<(String, String, Value)> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let _ = fs::remove_file(self.path("log")); // nobody may have been called
        let call = |line: &str| {
            let (call, rest) = line.split_once(" netns=").unwrap();
            let (netns, input) = rest.split_once(' ').unwrap();
            (call.to_owned(), netns.to_owned(), serde_json::from_str(input).unwrap_or_default())
        };
        text.lines().map(call).collect()
    }

    fn pod(&self) -> Pod {
        let mut process =
            Command::new("unshare").args(["--net", "sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
        let netns = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/net")).map(|meta| meta.ino()).unwrap_or_default();
        let own = netns("thread-self");
        until(PATIENCE, || {
            assert!(process.try_wait().unwrap().is_none());
            if ![0, own].contains(&netns(&process.id().to_string())) { Ok(()) } else { Err("no namespace".into()) }
        });
        let id = PodId::random();
        let record = self.paths().pod_record(&id);
        fs::create_dir_all(record.parent().unwrap()).unwrap();
        fixtures::put(record, "{}");
        Pod { id, process }
    }

    async fn attach(&self, pod: &Pod) -> Result<Attachment, Error> {
        self.attach_as(pod.request()).await
    }

    async fn attach_as(&self, request: Request) -> Result<Attachment, Error> {
        self.cni.attach(&request).await
    }

    async fn detach(&self, pod: &Pod) -> Result<(), Error> {
        self.cni.detach(&pod.id).await
    }

    /// Where the pod's namespace is bound.
    fn bound(&self, pod: &Pod) -> PathBuf {
        self.path("netns").join(format!("podwright-{}", pod.id))
    }

    /// Whether there is anything of an attachment.
    fn is_recorded(&self, pod: &Pod) -> bool {
        let (record, answer) = (self.paths().cni_record(&pod.id), self.paths().cni_answer(&pod.id));
        let there = record.exists();
        assert!(there || !(answer.exists() || self.bound(pod).exists()), "something is left without its record");
        there
    }

    /// Why pods cannot be attached.
    async fn not_ready(&self) -> String {
        match self.cni.status().await {
            Status::Ready => String::new(),
            Status::NotReady(why) => why,
        }
    }
}

fn paths(dir: &Path) -> Paths {
    Paths { root: dir.join("root"), state: dir.join("state"), instance: None }
}

fn engine(dir: &Path, more: &[&str], limits: Limits) -> Cni {
    let mut bin_dirs = vec![dir.join("bin")];
    bin_dirs.extend(more.iter().map(PathBuf::from));
    let places = Places { conf_dir: dir.join("conf"), bin_dirs, netns_dir: dir.join("netns") };
    Cni::with(places, paths(dir), limits)
}

fn a_and_b() -> Value {
    json!([{"type": "a"}, {"type": "b", "capabilities": {"portMappings": true}}])
}

#[tokio::test]
async fn a_chain_is_added_in_order_and_deleted_in_reverse_with_what_was_answered() {
    let place = Place::new();
    place.network("1.0.0", a_and_b());
    place.plugin("a", r#"[ $CNI_COMMAND != ADD ] || echo "$RESULT""#);
    place.plugin("b", r#"[ $CNI_COMMAND != ADD ] || echo "$RESULT" | sed s/10.9.0.5/10.9.0.6/"#);
    let pod = place.pod();
    let port = HostPort { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None };
    let request = Request { ports: vec![port], ..pod.request() };
    let attachment = place.attach_as(request).await.unwrap();
    assert_eq!(attachment.ips, ["10.9.0.6".parse::<IpAddr>().unwrap()]);
    assert_eq!((attachment.network.as_str(), attachment.ports.len()), ("testnet", 1));

    let path = place.bound(&pod).display().to_string();
    let inputs = place.inputs();
    assert_eq!((inputs[0].0.as_str(), inputs[1].0.as_str(), inputs.len()), ("ADD a", "ADD b", 2));
    assert_eq!((&inputs[0].1, &inputs[1].1), (&path, &path));
    let first = json!({"name": "testnet", "cniVersion": "1.0.0", "type": "a"});
    assert_eq!(inputs[0].2, first, "the first has no result, and gets no capability that it has not declared");
    assert_eq!(inputs[1].2["prevResult"]["ips"][0]["address"], "10.9.0.5/24");
    assert_eq!(inputs[1].2["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);
    assert_eq!(inputs[1].2.get("capabilities"), None);

    place.cni.check(&pod.id).await.unwrap();
    let inputs = place.inputs();
    assert_eq!((inputs[0].0.as_str(), inputs[1].0.as_str()), ("CHECK a", "CHECK b"));
    assert_eq!(inputs[0].2["prevResult"]["ips"][0]["address"], "10.9.0.6/24", "the last one's");

    assert!(place.is_recorded(&pod));
    place.detach(&pod).await.unwrap();
    let inputs = place.inputs();
    assert_eq!((inputs[0].0.as_str(), inputs[1].0.as_str(), inputs.len()), ("DEL b", "DEL a", 2));
    for (_, netns, input) in &inputs {
        assert_eq!((netns, &input["prevResult"]["ips"][0]["address"]), (&path, &json!("10.9.0.6/24")));
    }
    assert_eq!(inputs[0].2["runtimeConfig"]["portMappings"][0]["containerPort"], 80);
    assert!(!place.is_recorded(&pod));
    place.detach(&pod).await.unwrap();
    assert_eq!(place.calls(), Vec::<String>::new(), "it is detached already");
}

#[tokio::test]
async fn the_first_pods_of_a_network_do_not_stumble_over_each_other() {
    let place = Place::new();
    place.network("1.0.0", json!([{"type": "a"}]));
    // As Debian's portmap: what all pods share must not be made twice at once.
    let script = "[ $CNI_COMMAND = ADD ] || exit 0\ncd $(dirname $0)\n\
                  [ -e made ] || { mkdir making || exit 1; sleep 0.3; touch made; rmdir making; }\necho \"$RESULT\"";
    place.plugin("a", script);
    let pods = [place.pod(), place.pod(), place.pod()];
    let [one, two, three] = &pods;
    let (one, two, three) = tokio::join!(place.attach(one), place.attach(two), place.attach(three));
    for attached in [one, two, three] {
        attached.unwrap();
    }
}

#[tokio::test]
async fn a_second_plugin_that_fails_has_the_first_deleted_by_its_result() {
    let place = Place::new();
    place.network("1.0.0", json!([{"type": "a"}, {"type": "b"}, {"type": "c"}]));
    place.plugin("a", r#"[ $CNI_COMMAND != ADD ] || echo "$RESULT""#);
    place.plugin(
        "b",
        r#"[ $CNI_COMMAND != ADD ] || { echo '{"code": 7, "msg": "no room", "details": "in 10.9.0.0/24"}'; exit 1; }"#,
    );
    place.plugin("c", "");
    let pod = place.pod();
    let e = place.attach(&pod).await.unwrap_err();
    assert_eq!(e.to_string(), "network testnet: ADD of plugin b: no room: in 10.9.0.0/24 (code 7)");
    let inputs = place.inputs();
    let calls: Vec<&str> = inputs.iter().map(|(call, _, _)| call.as_str()).collect();
    assert_eq!(calls, ["ADD a", "ADD b", "DEL b", "DEL a"], "and c was never asked");
    assert_eq!(inputs[3].2["prevResult"]["ips"][0]["address"], "10.9.0.5/24");
    assert!(!place.is_recorded(&pod));
}

#[tokio::test]
async fn what_no_plugin_should_say_is_told_in_a_sentence_and_taken_back() {
    let place = Place::new();
    place.network("1.0.0", json!([{"type": "a"}]));
    let pod = place.pod();
    for (script, kind, words) in [
        ("echo garbage", Kind::Internal, "its answer is no result"),
        ("head -c 10000000 /dev/zero", Kind::ResourceExhausted, "printed more than 1048576 bytes and was killed"),
        ("", Kind::Internal, "its answer is no result"),
        ("echo boom >&2; exit 3", Kind::Internal, "exit code 3, without an error of CNI; it says: boom"),
        ("exit 4", Kind::Internal, "exit code 4, without a word"),
        ("kill -9 $$", Kind::Internal, "signal: 9"),
        (r#"echo '{"code": 11, "msg": "later"}'; exit 1"#, Kind::Unavailable, "later (code 11)"),
        (r#"echo '{"cniVersion": "1.0.0"}'"#, Kind::Internal, "gave the pod no address"),
        (r#"echo '{"ips": [{"address": "10.0.0.300/8"}]}'"#, Kind::Internal, "10.0.0.300/8, which is none"),
    ] {
        place.plugin("a", &format!("[ $CNI_COMMAND != ADD ] || {{ {script}\n}}").replace("{ \n}", "true"));
        let e = place.attach(&pod).await.expect_err(script);
        assert!(e.to_string().starts_with("network testnet: "), "{e}");
        assert!(e.to_string().contains(words) && e.to_string().len() < 500, "{words:?} is not in: {e}");
        assert_eq!((e.kind(), place.calls()), (kind, vec!["ADD a".to_owned(), "DEL a".to_owned()]), "{script}");
        assert!(!place.is_recorded(&pod), "{script}");
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_within_its_time_with_all_that_it_has_started() {
    let place = Place::with(&[], Limits { add: SHORT, ..LIMITS });
    place.network("1.0.0", json!([{"type": "a"}]));
    let mark = place.dir.path().display().to_string();
    place.plugin("a", "[ $CNI_COMMAND != ADD ] || { sleep 1234 & sleep 1234; }");
    let pod = place.pod();
    let begun = Instant::now();
    let e = place.attach(&pod).await.unwrap_err();
    assert_eq!(e.kind(), Kind::DeadlineExceeded, "{e}");
    assert!(
        e.to_string().contains("ADD of plugin a: it had not ended after ")
            && e.to_string().ends_with("s and was killed"),
        "{e}"
    );
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    assert_eq!(place.calls(), ["ADD a", "DEL a"]);
    let of_ours = |pid: &u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environ).contains(&format!("CNI_PATH={mark}"))
    };
    // Killed is not yet dead.
    until(PATIENCE, || match fixtures::machine::pids().filter(of_ours).count() {
        0 => Ok(()),
        n => Err(format!("{n} of its processes are there")),
    });
    assert!(!place.is_recorded(&pod));
}

#[tokio::test]
async fn a_del_that_fails_is_tried_again_and_holds_up_no_pod_for_ever() {
    let mut place = Place::with(&[], Limits { del: SHORT, ..LIMITS });
    place.network("1.0.0", json!([{"type": "a"}]));
    let add = r#"[ $CNI_COMMAND = ADD ] && { echo "$RESULT"; exit 0; }"#;
    for broken in ["exit 1", "sleep 1234"] {
        place.plugin("a", &format!("{add}\n{broken}"));
        let pod = place.pod();
        place.attach(&pod).await.unwrap();
        for _ in 0..2 {
            let e = place.detach(&pod).await.expect_err("it fails");
            assert!(e.to_string().starts_with("network testnet: DEL of plugin a: "), "{e}");
        }
        place.detach(&pod).await.expect("it is owed, and no error any more");
        assert!(place.is_recorded(&pod));
        assert_eq!(place.cni.info()["owed"].as_object().unwrap().len(), 1);
        place.cni.pay().await;
        assert!(place.is_recorded(&pod), "it fails still");
        place.calls();
        place.plugin("a", &format!("{add}\ntrue"));
        place.cni.pay().await;
        assert_eq!(place.calls(), ["DEL a"]);
        assert!(!place.is_recorded(&pod));
        assert_eq!(place.cni.info()["owed"], json!({}));
    }
    // What is owed is not forgotten with the process, nor when the plugin and the network are gone.
    let pod = place.pod();
    place.attach(&pod).await.unwrap();
    fs::remove_file(place.path("bin/a")).unwrap();
    fs::remove_file(place.path("conf/10-test.conflist")).unwrap();
    let e = place.detach(&pod).await.unwrap_err();
    assert_eq!(e.kind(), Kind::FailedPrecondition, "{e}");
    assert!(
        e.to_string().contains("there is no program a in ") && e.to_string().contains("network.cni_bin_dirs"),
        "{e}"
    );
    fs::remove_file(place.paths().pod_record(&pod.id)).unwrap();
    place.restart(&[], LIMITS);
    place.cni.collect(true).await.expect_err("there is still no program");
    place.calls();
    place.plugin("a", &format!("{add}\ntrue"));
    place.restart(&[], LIMITS);
    place.cni.collect(true).await.unwrap();
    assert_eq!(place.calls(), ["DEL a"]);
    assert!(!place.is_recorded(&pod));
}

#[tokio::test]
async fn what_is_left_of_a_pod_without_a_namespace_or_of_another_boot_is_deleted() {
    let mut place = Place::new();
    place.network("1.0.0", json!([{"type": "a"}]));
    place.plugin("a", r#"[ $CNI_COMMAND != ADD ] || echo "$RESULT""#);
    // Its pause is gone, and the namespace is not; then the namespace is gone.
    let mut pod = place.pod();
    place.attach(&pod).await.unwrap();
    pod.process.kill().unwrap();
    pod.process.wait().unwrap();
    place.calls();
    place.cni.detach(&pod.id).await.unwrap();
    let bound = place.bound(&pod).display().to_string();
    assert_eq!((place.inputs()[0].1.as_str(), place.is_recorded(&pod)), (bound.as_str(), false));
    let pod = place.pod();
    place.attach(&pod).await.unwrap();
    place.calls();
    podwright::sys::mount::unmount(&place.bound(&pod)).unwrap();
    place.cni.detach(&pod.id).await.unwrap();
    let inputs = place.inputs();
    assert_eq!((inputs[0].0.as_str(), inputs[0].1.as_str()), ("DEL a", ""));
    assert_eq!(inputs[0].2["prevResult"]["ips"][0]["address"], "10.9.0.5/24");
    // Three pods: one that is there, one that is gone, one of another boot.
    let (here, gone, old) = (place.pod(), place.pod(), place.pod());
    for pod in [&here, &gone, &old] {
        place.attach(pod).await.unwrap();
    }
    place.calls();
    fs::remove_dir_all(place.paths().pod(&gone.id)).unwrap();
    let path = place.paths().cni_record(&old.id);
    let mut begun: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    begun["boot_id"] = json!("11111111-2222-3333-4444-555555555555");
    fixtures::put(&path, begun.to_string());
    podwright::sys::mount::unmount(&place.bound(&old)).unwrap();
    place.restart(&[], LIMITS);
    place.cni.collect(true).await.unwrap();
    let mut inputs = place.inputs();
    inputs.sort_by(|one, other| one.1.cmp(&other.1));
    let bound = place.bound(&gone).display().to_string();
    let calls: Vec<_> = inputs.iter().map(|(call, netns, _)| (call.as_str(), netns.as_str())).collect();
    assert_eq!(calls, [("DEL a", ""), ("DEL a", bound.as_str())]);
    assert_eq!(inputs[0].2.get("prevResult"), None, "what it was told in another boot is of no use");
    assert_eq!([&here, &gone, &old].map(|pod| place.is_recorded(pod)), [true, false, false]);
    // A record that nobody can read is told, and stays.
    fixtures::put(&path, "{");
    place.cni.collect(true).await.expect_err("unreadable");
    assert!(path.exists());
}

#[tokio::test]
async fn a_plugin_of_an_engine_that_was_killed_has_ended_before_the_del() {
    let mut place = Place::new();
    place.network("1.0.0", json!([{"type": "a"}]));
    place.plugin("a", r#"[ $CNI_COMMAND != ADD ] || echo "$RESULT""#);
    let pod = place.pod();
    place.attach(&pod).await.unwrap();
    let log = place.path("log").display().to_string();
    let script = format!("sleep 0.5; echo 'END stray netns= {{}}' >>{log}");
    let mut stray = Command::new("sh");
    stray.args(["-c", &script]).env("CNI_CONTAINERID", pod.id.as_str()).stdin(Stdio::null());
    let _stray = Pod { id: pod.id.clone(), process: stray.spawn().unwrap() };
    place.restart(&[], LIMITS);
    place.detach(&pod).await.unwrap();
    assert_eq!(place.calls(), ["ADD a", "END stray", "DEL a"]);
}

#[tokio::test]
async fn a_network_that_is_not_there_or_not_valid_says_so_with_the_remedy() {
    let place = Place::new();
    let why = place.not_ready().await;
    assert!(why.starts_with("cni config uninitialized: there is no network configuration in "), "{why}");
    assert!(why.contains("install a network add-on, or set network.mode = \"bridge\""), "{why}");
    assert!(!place.cni.is_configured());

    place.network("1.0.0", json!([{"type": "../../bin/sh"}]));
    let why = place.not_ready().await;
    assert!(why.contains("10-test.conflist: plugins[0]: type \"../../bin/sh\" must be"), "{why}");
    let pod = place.pod();
    let e = place.attach(&pod).await.unwrap_err();
    assert!(e.kind() == Kind::FailedPrecondition && e.to_string().contains("../../bin/sh"), "{e}");
    assert!(!place.is_recorded(&pod));

    // An add-on arrives: no restart, no watch that could be missed.
    place.network("1.0.0", json!([{"type": "a"}]));
    assert!(place.cni.is_configured());
    let why = place.not_ready().await;
    assert!(why.contains("network testnet of ") && why.contains("there is no program a in "), "{why}");
    place.plugin("a", r#"[ $CNI_COMMAND != ADD ] || echo "$RESULT""#);
    assert_eq!(place.not_ready().await, "");
    fixtures::put(place.path("conf/00-broken.conf"), "{");
    assert_eq!(place.not_ready().await, "", "the next valid one is the network");
    assert!(place.cni.info()["skipped"][0].as_str().unwrap().contains("00-broken.conf: is no JSON object"));
    fs::remove_dir_all(place.path("conf")).unwrap();
    assert!(place.not_ready().await.contains("uninitialized"));
}

#[tokio::test]
async fn the_verbs_of_1_1_are_used_where_all_plugins_have_them() {
    let place = Place::new();
    let conf = |versions: Value| {
        let conf =
            json!({"cniVersion": "1.0.0", "cniVersions": versions, "name": "testnet", "plugins": [{"type": "a"}]});
        fixtures::put(place.path("conf/10-test.conflist"), conf.to_string());
    };
    let plugin = |supported: &str, script: &str| {
        place.plugin(
            "a",
            &format!("case $CNI_COMMAND in ADD) echo \"$RESULT\";; VERSION) echo '{{\"supportedVersions\": [{supported}]}}';; {script} esac"),
        );
    };
    conf(json!(["1.1.0"]));
    plugin(r#""1.0.0""#, "");
    assert_eq!(place.not_ready().await, "");
    place.cni.collect(true).await.unwrap();
    assert_eq!(place.calls(), Vec::<String>::new(), "it speaks 1.0.0 only");

    plugin(r#""1.0.0", "1.1.0""#, "");
    let (here, gone) = (place.pod(), place.pod());
    place.attach(&here).await.unwrap();
    place.attach(&gone).await.unwrap();
    assert_eq!(place.inputs()[0].2["cniVersion"], "1.1.0");
    place.cni.detach(&gone.id).await.unwrap();
    place.calls();
    place.cni.collect(true).await.unwrap();
    let inputs = place.inputs();
    assert_eq!((inputs[0].0.as_str(), inputs.len()), ("GC a", 1));
    let valid = json!([{"containerID": here.id.as_str(), "ifname": "eth0"}]);
    assert_eq!(inputs[0].2["cni.dev/valid-attachments"], valid);

    place.cni.collect(false).await.unwrap();
    assert_eq!(place.calls(), Vec::<String>::new(), "it is not for our pods");

    // STATUS, which is asked once and then behind.
    let fresh = |place: &mut Place| place.restart(&[], LIMITS);
    let mut place = place;
    fresh(&mut place);
    assert_eq!((place.not_ready().await, place.calls()), (String::new(), vec!["STATUS a".to_owned()]));
    assert_eq!((place.not_ready().await, place.calls()), (String::new(), vec![]));
    fresh(&mut place);
    place.plugin("a", r#"case $CNI_COMMAND in VERSION) echo '{"supportedVersions": ["1.1.0"]}';; STATUS) echo '{"code": 50, "msg": "no daemon"}'; exit 1;; esac"#);
    assert_eq!(place.not_ready().await, "network testnet: STATUS of plugin a: no daemon (code 50)");
    fresh(&mut place);
    let conf = json!({"cniVersion": "1.1.0", "name": "testnet", "disableGC": true, "plugins": [{"type": "a"}]});
    fixtures::put(place.path("conf/10-test.conflist"), conf.to_string());
    place.calls();
    place.cni.collect(true).await.unwrap();
    assert_eq!(place.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn the_pod_cidr_is_kept_and_given_to_plugins_that_ask_for_ranges() {
    let mut place = Place::new();
    place.network("1.0.0", json!([{"type": "a", "capabilities": {"ipRanges": true}}]));
    place.plugin("a", r#"[ $CNI_COMMAND != ADD ] || echo "$RESULT""#);
    place.cni.set_pod_cidr("10.244.3.0/24, fd00:3::/64").await.unwrap();
    place.cni.set_pod_cidr("").await.unwrap();
    place.cni.set_pod_cidr("10.244.3.0/99").await.unwrap_err();
    place.restart(&[], LIMITS);
    place.attach(&place.pod()).await.unwrap();
    let ranges = json!([[{"subnet": "10.244.3.0/24"}], [{"subnet": "fd00:3::/64"}]]);
    assert_eq!(place.inputs()[0].2["runtimeConfig"]["ipRanges"], ranges);
}

#[tokio::test]
async fn debians_plugins_connect_a_pod_to_its_host_and_to_another_in_both_families() {
    own_host();
    let place = Place::with(&[DEBIAN], LIMITS);
    // The oldest form of a result and the newest that these plugins have; the first pod leaves what the plugins make once and keep.
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        place.network(version, debian(&place.path("leases"), version));
        let port = |protocol, host_port| HostPort { protocol, container_port: 80, host_port, host_ip: None };
        let asking_for_all = |pod: &Pod| Request {
            ports: vec![port(Protocol::Tcp, 18080), port(Protocol::Udp, 18053)],
            bandwidth: Bandwidth { ingress: Some(100_000_000), egress: Some(100_000_000) },
            ..pod.request()
        };
        let first = place.pod();
        place.attach_as(asking_for_all(&first)).await.unwrap();
        place.detach(&first).await.unwrap();
        let before = made(&place.path("leases"));

        let (one, two) = (place.pod(), place.pod());
        let attached = place.attach_as(asking_for_all(&one)).await.unwrap();
        let limits = Command::new("tc").args(["qdisc", "show"]).output().unwrap();
        let limits = String::from_utf8_lossy(&limits.stdout).matches("qdisc tbf").count();
        assert_eq!(limits, 2, "one for each way");
        let other = place.attach(&two).await.unwrap();
        assert_eq!((attached.ips.len(), other.ips.len()), (2, 2), "{attached:?}");
        let addresses = one.run("ip -o addr show dev eth0");
        for ip in &attached.ips {
            assert!(addresses.contains(&ip.to_string()), "{ip} is not in {addresses}");
        }
        serve(&one, &attached.ips);
        for ip in &attached.ips {
            assert_eq!(page(&format!("{}", std::net::SocketAddr::new(*ip, 80))), "hello", "{ip}");
            let address = std::net::SocketAddr::new(*ip, 80).to_string();
            assert_eq!(two.inside(move || page(&address)), "hello", "{ip} from another pod");
        }
        assert_eq!(page("127.0.0.1:18080"), "hello", "a host port from the loopback");
        place.detach(&one).await.unwrap();
        place.detach(&two).await.unwrap();
        place.detach(&two).await.unwrap();
        assert_eq!(made(&place.path("leases")), before, "{version}");
        assert!(!place.is_recorded(&one) && !place.is_recorded(&two));
    }
}

#[tokio::test]
async fn check_tells_of_an_address_that_is_gone() {
    own_host();
    let place = Place::with(&[DEBIAN], LIMITS);
    // Without the others, whose CHECK fails in this version for a pod that has addresses of both families, or no bandwidth.
    place.network("1.0.0", json!([debian(&place.path("leases"), "1.0.0")[0]]));
    let pod = place.pod();
    let attached = place.attach(&pod).await.unwrap();
    place.cni.check(&pod.id).await.unwrap();
    pod.run("ip addr flush dev eth0");
    let e = place.cni.check(&pod.id).await.unwrap_err();
    assert!(e.to_string().contains("CHECK of plugin bridge: "), "{e}");
    assert!(e.to_string().contains(&attached.ips[0].to_string()) || e.to_string().contains("IP"), "{e}");
    place.detach(&pod).await.unwrap();
}

/// Has a pod answer on port 80 of its addresses.
fn serve(pod: &Pod, ips: &[IpAddr]) {
    let ips = ips.to_vec();
    pod.inside(move || {
        for ip in ips {
            let mut listener = Err(std::io::Error::other("never tried"));
            // An address of IPv6 is tentative at first.
            until(PATIENCE, || {
                listener = TcpListener::bind((ip, 80));
                listener.as_ref().map(|_| ()).map_err(ToString::to_string)
            });
            let listener = listener.unwrap();
            std::thread::spawn(move || listener.incoming().flatten().for_each(answer));
        }
    });
}

#[test]
fn scripts_of_this_test_are_executable() {
    let place = Place::new();
    place.plugin("a", "");
    assert_eq!(fs::metadata(place.path("bin/a")).unwrap().permissions().mode() & 0o777, 0o755);
}
