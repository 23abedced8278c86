//! Pods of a daemon and of `run` on Debian's CNI plugins, as a node with an add-on has them: addresses, pages, host ports; and what is left
//! of leases, links and rules when pods have gone, the daemon was killed, or a plugin is no more. What plugins are asked is in `root_cni`.

mod fixtures;

use fixtures::cni::{Bound, DEBIAN, NETWORK, debian, made, own_host, page};
use fixtures::cri::{Node, script};
use fixtures::machine::{Machine, PATIENCE, Running, until};
use podwright::criapi::*;
use serde_json::json;
use std::fs;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Answers each request with `hello`.
const SERVE: &str = "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 80 -h /www";
/// How many pods come and go, unless TEST_PODS says another number; and how many at a time.
const PODS: usize = 200;
const AT_A_TIME: usize = 8;

/// A node whose pods are on Debian's plugins, on a host of this thread's own.
struct OnCni {
    _bound: Bound,
    node: Node,
    conf: PathBuf,
    leases: PathBuf,
    bin: PathBuf,
}

/// Has a command use the plugins.
fn with_cni(command: &mut Command, conf: &Path, bin: &Path) {
    command.env("PODWRIGHT_NETWORK_MODE", "cni").env("PODWRIGHT_NETWORK_CNI_CONF_DIR", conf);
    command.env("PODWRIGHT_NETWORK_CNI_BIN_DIRS", bin).env("PODWRIGHT_NETWORK_NETNS_DIR", bin.with_file_name("netns"));
}

/// The network of a machine: its directories of configuration, leases and plugins.
fn network(machine: &Machine) -> (PathBuf, PathBuf, PathBuf) {
    let (conf, leases, bin) = (machine.dir("net.d"), machine.dir("leases"), machine.dir("bin"));
    for plugin in fs::read_dir(DEBIAN).expect(DEBIAN).flatten() {
        std::os::unix::fs::symlink(plugin.path(), bin.join(plugin.file_name())).expect("link");
    }
    let network = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": debian(&leases, "1.0.0")});
    fixtures::put(conf.join("10-test.conflist"), network.to_string());
    (conf, leases, bin)
}

impl OnCni {
    async fn new() -> OnCni {
        own_host();
        let machine = Machine::with_busybox();
        let (conf, leases, bin) = network(&machine);
        let node = Node::of(machine, |command| with_cni(command, &conf, &bin)).await;
        let _bound = Bound(bin.with_file_name("netns"));
        let mut cni = OnCni { _bound, node, conf, leases, bin };
        // What is made once and kept: a bridge and its rules, a lock.
        let first = cni.run("first").await.expect("run");
        cni.remove(&first).await;
        cni.node.stop().await;
        cni.node.machine.remember();
        cni.start(None);
        cni
    }

    fn start(&mut self, fault: Option<&str>) {
        let (conf, bin) = (self.conf.clone(), self.bin.clone());
        self.node.start_with(|command| {
            with_cni(command, &conf, &bin);
            if let Some(point) = fault {
                command.env("PODWRIGHT_FAULT", format!("kill:{point}"));
            }
        });
    }

    fn sandbox(&self, name: &str) -> PodSandboxConfig {
        let port = |protocol: Protocol, host_port| PortMapping {
            protocol: protocol as i32,
            container_port: 80,
            host_port,
            host_ip: String::new(),
        };
        let mut sandbox = self.node.sandbox(name);
        sandbox.port_mappings = vec![port(Protocol::Tcp, 18080), port(Protocol::Udp, 18053)];
        for way in ["ingress", "egress"] {
            sandbox.annotations.insert(format!("kubernetes.io/{way}-bandwidth"), "100M".into());
        }
        sandbox
    }

    async fn run(&mut self, name: &str) -> Result<String, tonic::Status> {
        let sandbox = self.sandbox(name);
        self.node.run_pod(sandbox).await
    }

    async fn remove(&mut self, pod: &str) {
        self.node.stop_pod(pod).await.expect("stop");
        self.node.remove_pod(pod).await.expect("remove");
    }

    fn made(&self) -> Vec<String> {
        made(&self.leases)
    }

    fn records(&self) -> usize {
        let names = fs::read_dir(self.node.machine.root().join("cni")).expect("there").flatten();
        let bound = fs::read_dir(self.bin.with_file_name("netns")).expect("there").flatten();
        names.filter(|entry| entry.file_name().len() > 60).chain(bound).count()
    }

    /// Waits until what plugins have made is as it was, and no record says otherwise.
    fn until_as_before(&self, before: &[String], what: &str) {
        until(PATIENCE, || {
            let now = self.made();
            let new: Vec<&String> = now.iter().filter(|line| !before.contains(line)).collect();
            let records = self.records();
            if now == before && records == 0 {
                Ok(())
            } else {
                Err(format!("{what}: {records} records, new: {new:#?}"))
            }
        });
    }
}

#[tokio::test]
async fn a_pod_on_debians_plugins_has_its_addresses_and_answers_on_them() {
    let mut cni = OnCni::new().await;
    let before = cni.made();
    let request = StatusRequest { verbose: true };
    let status = cni.node.runtime.status(request).await.expect("status").into_inner();
    let conditions = status.status.expect("status").conditions;
    let network = conditions.iter().find(|condition| condition.r#type == "NetworkReady").expect("it is always told");
    assert!(network.status, "{network:?}");
    assert!(status.info["cni"].contains("10-test.conflist"), "{}", status.info["cni"]);

    let config = cni.sandbox("web");
    let pod = cni.node.run_pod(config.clone()).await.expect("run");
    let container = cni.node.create(&pod, script("c", SERVE), config).await.expect("create");
    cni.node.start_container(&container).await.expect("start");
    let network = cni.node.pod_status(&pod).await.expect("status").network.expect("a network");
    let additional: Vec<String> = network.additional_ips.iter().map(|ip| ip.ip.clone()).collect();
    assert!(
        network.ip.starts_with("10.77.0.") && additional.len() == 1 && additional[0].starts_with("fd77::"),
        "{network:?}"
    );
    for ip in [&network.ip, &additional[0]] {
        let address: IpAddr = ip.parse().expect(ip);
        let address = std::net::SocketAddr::new(address, 80);
        until(PATIENCE, || std::net::TcpStream::connect(address).map(|_| ()).map_err(|e| e.to_string()));
        assert_eq!(page(&address.to_string()), "hello");
    }
    assert_eq!(page("127.0.0.1:18080"), "hello", "by its host port");
    let hosts = cni.node.exec(&container, &["cat", "/etc/hosts"], 30).await.expect("exec").stdout;
    let hosts = String::from_utf8_lossy(&hosts).into_owned();
    assert!(hosts.contains(&format!("{}\tweb", network.ip)), "{hosts}");

    let resolv = cni.node.exec(&container, &["cat", "/etc/resolv.conf"], 30).await.expect("exec").stdout;
    assert_eq!(String::from_utf8_lossy(&resolv), "search net.example\nnameserver 10.77.0.53\n");

    let ask = |args: &[&str]| {
        let mut command = cni.node.machine.podwright(args.iter().copied());
        with_cni(&mut command, &cni.conf, &cni.bin);
        Running::of(command).wait()
    };
    let checked = ask(&["verify", "--cni", "web"]);
    assert!(checked.stdout.contains("CHECK of network testnet"), "{}{}", checked.stdout, checked.stderr);
    let doctor = || {
        let report: serde_json::Value = serde_json::from_str(&ask(&["doctor", "-o", "json"]).stdout).expect("JSON");
        let checks = report["checks"].as_array().expect("checks").clone();
        let of = |name: &str| checks.iter().find(|check| check["check"] == name).expect(name).clone();
        (of("CNI network"), of("CNI plugins"))
    };
    let (found, plugins) = doctor();
    assert_eq!((&found["verdict"], &plugins["verdict"]), (&json!("ok"), &json!("ok")), "{found} {plugins}");
    assert!(found["found"].to_string().contains("10-test.conflist: bridge, portmap"), "{found}");
    // It is not told before a pod fails but by doctor: bridge itself executes it.
    let (ipam, away) = (cni.bin.join("host-local"), cni.bin.join("host-local.away"));
    fs::rename(&ipam, &away).expect("rename");
    fixtures::put(cni.conf.join("00-broken.conflist"), "{");
    let (found, plugins) = doctor();
    fs::rename(&away, &ipam).expect("rename");
    fs::remove_file(cni.conf.join("00-broken.conflist")).expect("remove");
    assert_eq!((&found["verdict"], &plugins["verdict"]), (&json!("warn"), &json!("fail")), "{found} {plugins}");
    assert!(plugins["found"].to_string().contains("there is no program host-local in "), "{plugins}");
    assert!(found["found"].to_string().contains("00-broken.conflist"), "{found}");

    // Another daemon knows it, and takes it down.
    cni.node.kill();
    cni.start(None);
    let again = cni.node.pod_status(&pod).await.expect("status").network.expect("a network");
    assert_eq!(again, network);
    assert_eq!(page(&format!("{}:80", network.ip)), "hello");
    cni.remove(&pod).await;
    cni.until_as_before(&before, "removed");
    cni.node.assert_clean().await;
}

#[tokio::test]
async fn pods_up_and_down_leave_leases_links_and_rules_as_before() {
    let cni = OnCni::new().await;
    let before = cni.made();
    let pods = std::env::var("TEST_PODS").map_or(PODS, |text| text.parse().expect("a number"));
    let begun = std::time::Instant::now();
    let mut at_work = tokio::task::JoinSet::new();
    for number in 0..pods {
        if at_work.len() >= AT_A_TIME {
            at_work.join_next().await.expect("one").expect("it goes well");
        }
        let (config, mut runtime) = (cni.node.sandbox(&format!("pod-{number}")), cni.node.runtime.clone());
        at_work.spawn(async move {
            let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
            let pod_sandbox_id = runtime.run_pod_sandbox(request).await.expect("run").into_inner().pod_sandbox_id;
            let request = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
            runtime.stop_pod_sandbox(request).await.expect("stop");
            runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.expect("remove");
        });
    }
    while let Some(done) = at_work.join_next().await {
        done.expect("it goes well");
    }
    println!("{pods} pods in {:?}", begun.elapsed());
    cni.until_as_before(&before, "all have gone");
    cni.node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_point_leaves_nothing_that_the_next_does_not_take_away() {
    let mut cni = OnCni::new().await;
    let before = cni.made();
    for point in [
        "network.cni.recorded",
        "network.cni.pinned",
        "network.cni.added",
        "network.cni.answered",
        "network.cni.added#2",
        "network.cni.added#4",
        "network.cni.answered#4",
        "network.attach.recorded",
        "engine.run_pod.network",
        "engine.stop_pod.containers",
        "network.cni.deleted",
        "network.cni.deleted#3",
        "network.cni.deleted#4",
        "network.cni.unpinned",
        "network.cni.forgotten",
        "engine.stop_pod.network",
        "engine.stop_pod.record",
    ] {
        cni.node.stop().await;
        cni.start(Some(point));
        // It dies in one of the two.
        let made = cni.run("killed").await;
        if let Ok(pod) = &made {
            cni.node.stop_pod(pod).await.expect_err(point);
        }
        assert_eq!(cni.node.ended().signal(), Some(9), "{point}");
        cni.start(None);
        for pod in cni.node.pods(PodSandboxFilter::default()).await {
            cni.remove(&pod.id).await;
        }
        cni.until_as_before(&before, point);
    }
    cni.node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_that_a_killed_daemon_left_at_work_leaves_nothing() {
    let mut cni = OnCni::new().await;
    let before = cni.made();
    // It says that it is at work, waits until the daemon is dead and some more, and then makes what nobody would delete any more.
    let (mark, go) = (cni.node.machine.dir("marks").join("at-work"), cni.node.machine.dir("marks").join("go"));
    let text = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = ADD ] && {{ echo $$ >{0}.new; mv {0}.new {0}; \
         until [ -e {1} ]; do sleep 0.05; done; sleep 3; }}\nexec {DEBIAN}/bridge\n",
        mark.display(),
        go.display()
    );
    fs::remove_file(cni.bin.join("bridge")).expect("remove");
    let slow = cni.bin.join("bridge");
    podwright::state::record::write_bytes(&slow, text.as_bytes(), 0o755, podwright::state::record::Durability::Boot)
        .expect("write");
    let (mut runtime, config) = (cni.node.runtime.clone(), cni.sandbox("slow"));
    let asked = tokio::spawn(async move {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        runtime.run_pod_sandbox(request).await
    });
    let end = tokio::time::Instant::now() + PATIENCE;
    while !mark.exists() {
        assert!(tokio::time::Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let plugin: u32 = fs::read_to_string(&mark).expect("there").trim().parse().expect("a pid");
    cni.node.kill();
    asked.await.expect("joined").expect_err("the daemon is dead");
    fixtures::put(&go, "");
    cni.start(None);
    for pod in cni.node.pods(PodSandboxFilter::default()).await {
        cni.remove(&pod.id).await;
    }
    cni.until_as_before(&before, "slow");
    // Dead, it is the host's init's to reap.
    let state = fs::read_to_string(format!("/proc/{plugin}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "the plugin is at work still: {state}");
    cni.node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_that_is_no_more_holds_up_no_pod_and_is_waited_for() {
    let mut cni = OnCni::new().await;
    let before = cni.made();
    let pod = cni.run("stuck").await.expect("run");
    let (bin, away) = (cni.bin.join("firewall"), cni.bin.join("firewall.away"));
    fs::rename(&bin, &away).expect("rename");
    for _ in 0..2 {
        let refused = cni.node.stop_pod(&pod).await.expect_err("no plugin");
        assert!(refused.message().contains("there is no program firewall in "), "{refused}");
    }
    cni.remove(&pod).await;
    let refused = cni.run("next").await.expect_err("no plugin");
    assert!(refused.message().contains("there is no program firewall in "), "{refused}");
    let why = cni.node.runtime.status(StatusRequest { verbose: true }).await.expect("status").into_inner();
    let network =
        why.status.expect("status").conditions.into_iter().find(|c| c.r#type == "NetworkReady").expect("told");
    assert_eq!((network.status, network.reason.as_str()), (false, "NetworkPluginNotReady"));
    assert!(network.message.contains("there is no program firewall in "), "{network:?}");
    assert!(why.info["cni"].contains(&pod), "what is owed is told: {}", why.info["cni"]);
    assert!(cni.records() > 0);
    fs::rename(&away, &bin).expect("rename");
    cni.node.stop().await;
    cni.start(None);
    cni.until_as_before(&before, "the plugin is back");
    cni.node.assert_clean().await;
}

#[test]
fn a_run_that_is_killed_takes_its_lease_along() {
    own_host();
    let mut machine = Machine::with_busybox();
    let (conf, leases, bin) = network(&machine);
    let _bound = Bound(bin.with_file_name("netns"));
    let sleeps = fixtures::machine::script("echo up; sleep 1000", "");
    let start =
        |machine: &Machine| machine.start_with(&sleeps, &["--no-daemon"], |command| with_cni(command, &conf, &bin));
    let until_there_are = |count: usize| {
        until(PATIENCE, || {
            let now = made(&leases).iter().filter(|line| line.starts_with("lease")).count();
            if now == count { Ok(()) } else { Err(format!("{now} leases")) }
        });
    };
    // What is made once and kept; then two that are killed, while plugins are at work and when all is up.
    let mut first = start(&machine);
    let firewall = |line: &String| line.contains("CNI-FORWARD -d fd77::");
    first.until("it is up", || made(&leases).iter().any(firewall));
    first.signal(15);
    first.wait();
    let before = made(&leases);
    machine.remember();
    for wait_for_it in [false, true] {
        let mut run = start(&machine);
        until_there_are(2);
        if wait_for_it {
            run.until("it is up", || made(&leases).iter().any(firewall));
        }
        run.signal(9);
        run.wait();
        // A plugin of one that was killed has 10 s to end.
        machine.assert_as_before_within(fixtures::machine::GONE_WITHIN * 2);
        assert_eq!(made(&leases), before, "{wait_for_it}");
    }
}
