//! The built-in bridge: pods are reached by their addresses and by ports of the host, in both families, from wherever that is asked for; and
//! nothing of it is left, however a pod ended. Each test is on a host of its own.

mod fixtures;

use fixtures::kubelet::{Kubelet, Start, Supervisor};
use fixtures::machine::{GONE_WITHIN, Machine, PATIENCE, Running, ask, json, killed, pod, until};
use fixtures::network::{self, get};
use podwright::criapi::{PodSandboxStatusRequest, PortMapping, RunPodSandboxRequest, StatusRequest};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

const BRIDGE: &str = "podwright0";

/// A pod that serves a page which says its name, until it is asked to end.
fn web(name: &str, spec: &str) -> String {
    let script = format!(
        "mkdir /www; echo {name} > /www/index.html; httpd -p 80 -h /www; trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    );
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 5\n  restartPolicy: Never\n  \
         containers:\n  - name: c\n    image: busybox\n    command: [sh, -c, {script:?}]\n{spec}"
    )
}

fn ports(ports: &str) -> String {
    format!("    ports: [{ports}]\n")
}

/// A pod that runs, and what it has.
struct Web {
    running: Running,
    ips: Vec<String>,
}

fn serve(machine: &Machine, name: &str, spec: &str) -> Web {
    let mut running = machine.start(&web(name, spec), &[]);
    let serves = || ask(machine, &["logs", &format!("{name}/c")]).stdout.contains("ready");
    running.until("it serves", serves);
    let entry = json(machine, &["pods", name]);
    let ips = entry["pods"][0]["ips"].as_array().expect("ips").iter();
    Web { ips: ips.map(|ip| ip.as_str().expect("text").to_owned()).collect(), running }
}

/// The network namespace of a pod that runs.
fn netns(machine: &Machine, pod: &str) -> File {
    let inspected = json(machine, &["inspect", pod]);
    File::open(format!("/proc/{}/ns/net", inspected["pods"][0]["pausePid"])).expect("a namespace")
}

impl Web {
    fn end(self) {
        self.running.signal(15);
        let ended = self.running.wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    }
}

/// Everything that a bridge leaves on a host and on the disk.
fn assert_nothing_left(machine: &Machine) {
    // A pod's own go with its namespace, which the kernel removes behind everybody's back.
    until(GONE_WITHIN, || match network::links() {
        links if links.iter().any(|link| link.starts_with("podwr")) => Err(format!("{links:?}")),
        _ => Ok(()),
    });
    assert!(!network::has_table(BRIDGE), "the table is there");
    assert!(!machine.state().join("network").exists(), "{:?}", fs::read_dir(machine.state().join("network")));
}

fn leases(machine: &Machine) -> BTreeSet<String> {
    let dir = machine.state().join("network").join(BRIDGE).join("leases");
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[test]
fn a_page_is_fetched_by_address_and_host_port_from_the_host_and_from_another_pod_in_both_families() {
    let machine = Machine::with_bridge();
    let one = serve(&machine, "one", &ports("{containerPort: 80, hostPort: 8080}"));
    assert_eq!(one.ips, ["10.118.0.2", "fd70:6f64:7772::2"]);
    let two = serve(&machine, "two", &ports("{containerPort: 80, hostPort: 8081, hostIP: 127.0.0.1}"));
    assert_eq!(two.ips, ["10.118.0.3", "fd70:6f64:7772::3"]);
    // As soon as both ends are up the kernel has yet to say so to its own bridge, by a work of its own.
    until(PATIENCE, || get("10.118.0.2:80").map(|_| ()));
    for at in ["10.118.0.2:80", "127.0.0.1:8080", "10.118.0.1:8080"] {
        assert_eq!(get(at).as_deref(), Ok("one"), "{at}");
    }
    for at in ["[fd70:6f64:7772::2]:80", "[fd70:6f64:7772::1]:8080", "[::1]:8080"] {
        assert_eq!(get(at).as_deref(), Ok("one"), "{at}");
    }
    assert_eq!(get("127.0.0.1:8081").as_deref(), Ok("two"));
    assert!(get("10.118.0.1:8081").is_err() && get("[::1]:8081").is_err(), "its hostIP is another");
    // From the other pod, and from the pod itself by its own host port.
    let from = |pod: &str, at: &str| network::inside(&netns(&machine, pod), || get(at));
    for (pod, at) in [
        ("two", "10.118.0.2:80"),
        ("two", "[fd70:6f64:7772::2]:80"),
        ("two", "10.118.0.1:8080"),
        ("two", "[fd70:6f64:7772::1]:8080"),
        ("one", "10.118.0.1:8080"),
        ("one", "[fd70:6f64:7772::1]:8080"),
    ] {
        assert_eq!(from(pod, at).as_deref(), Ok("one"), "{pod} {at}");
    }
    let hosts = ask(&machine, &["exec", "one/c", "--", "cat", "/etc/hosts"]).stdout;
    assert!(hosts.contains("10.118.0.2\tone\nfd70:6f64:7772::2\tone\n"), "{hosts}");
    let inspected = json(&machine, &["inspect", "one"]);
    let entry = &inspected["pods"][0];
    assert_eq!(
        (entry["network"].as_str(), &entry["hostPorts"]),
        (Some("bridge podwright0"), &serde_json::json!(["tcp 8080 to 80"]))
    );
    let stats = json(&machine, &["stats", "one"]);
    let traffic = stats["stats"].as_array().expect("readings").iter().map(|s| s["network"]["sentBytes"].as_u64());
    assert!(matches!(traffic.collect::<Vec<_>>()[..], [Some(1..), None]), "of the pod alone: {stats}");
    let verified = ask(&machine, &["verify", "one"]);
    assert_eq!(verified.status.code(), Some(0), "{}", verified.stdout);
    one.end();
    assert_eq!(get("10.118.0.3:80").as_deref(), Ok("two"), "the bridge is still needed");
    assert!(get("10.118.0.1:8080").is_err());
    two.end();
    assert_nothing_left(&machine);
}

#[test]
fn a_neighbour_reaches_host_ports_and_sees_the_hosts_address_when_a_pod_comes() {
    let machine = Machine::with_bridge();
    for (ours, theirs) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        let web = serve(&machine, "web", &ports("{containerPort: 80, hostPort: 8080}"));
        let neighbour = network::neighbour(ours, theirs);
        let at = |ip: &str| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        until(PATIENCE, || network::inside(&neighbour, || get(&format!("{}:8080", at(ours))).map(|_| ())));
        assert_eq!(network::inside(&neighbour, || get(&format!("{}:8080", at(ours)))).as_deref(), Ok("web"));
        // It has no way to the pods: only a masqueraded connection is answered.
        let heard =
            network::inside(&neighbour, || std::net::TcpListener::bind(format!("{}:9", at(theirs))).expect("bind"));
        let to = format!("{}:9", at(theirs));
        let called = network::inside(&netns(&machine, "web"), || std::net::TcpStream::connect(&to));
        let (_, from) = heard.accept().expect("it comes");
        assert_eq!(from.ip().to_string(), ours);
        drop(called.expect("a connection"));
        web.end();
        assert_nothing_left(&machine);
    }
}

#[test]
fn a_datagram_of_either_family_to_a_host_port_goes_to_the_pod_that_has_it_now() {
    let machine = Machine::with_bridge();
    let sleeps = |name: &str| {
        let spec = ports("{containerPort: 53, hostPort: 5353, protocol: UDP}");
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  restartPolicy: Never\n  \
                 containers:\n  - name: c\n    image: busybox\n    command: [sh, -c, 'echo ready; sleep 1000']\n{spec}"
        )
    };
    // The same sockets all the time: connections that the kernel remembers.
    let sockets = ["127.0.0.1", "[::1]"].map(|ip| (ip, UdpSocket::bind(format!("{ip}:0")).expect("bind")));
    for name in ["one", "two"] {
        let mut running = machine.start(&sleeps(name), &[]);
        running.until("it listens", || ask(&machine, &["logs", &format!("{name}/c")]).stdout.contains("ready"));
        let server = network::inside(&netns(&machine, name), || UdpSocket::bind("[::]:53").expect("bind"));
        let serving = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((n, from)) = server.recv_from(&mut buffer) {
                if &buffer[..n] == b"end" {
                    return;
                }
                let _ = server.send_to(name.as_bytes(), from); // who asks asks again
            }
        });
        for (ip, socket) in &sockets {
            let answered = || match network::ask(socket, &format!("{ip}:5353")) {
                Ok(answer) if answer == name => Ok(()),
                other => Err(format!("{name} at {ip}: {other:?}")),
            };
            until(PATIENCE, answered);
        }
        sockets[0].1.send_to(b"end", "127.0.0.1:5353").expect("send");
        serving.join().expect("no panic"); // its socket would keep the namespace
        running.signal(2);
        running.signal(2);
        running.wait();
    }
    assert_nothing_left(&machine);
}

#[test]
fn a_host_port_that_another_pod_has_is_refused_by_its_name() {
    let machine = Machine::with_bridge();
    let one = serve(&machine, "one", &ports("{containerPort: 80, hostPort: 8080}"));
    let refused = machine.run(&web("two", &ports("{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}")));
    assert_eq!(refused.status.code(), Some(125));
    assert!(refused.stderr.contains("host port tcp 127.0.0.1:8080 is pod default/one's"), "{}", refused.stderr);
    assert_eq!(leases(&machine).len(), 1, "what was refused has nothing");
    let other = serve(&machine, "other", &ports("{containerPort: 80, hostPort: 8080, protocol: UDP}"));
    assert_eq!((network::elements(BRIDGE, "ports4"), network::elements(BRIDGE, "ports6")), (2, 2));
    other.end();
    assert_eq!((network::elements(BRIDGE, "ports4"), network::elements(BRIDGE, "ports6")), (1, 1));
    one.end();
    // A pod without a network has no port to give.
    let mut machine = machine;
    machine.network = "none";
    let refused = machine.run(&web("none", &ports("{containerPort: 80, hostPort: 8080}")));
    assert!(refused.stderr.contains("network.mode is none"), "{}", refused.stderr);
    assert_nothing_left(&machine);
}

fn with_subnets(machine: &Machine, name: &str, subnet4: &str, subnet6: &str) -> Running {
    machine.start_with(&web(name, ""), &[], |command| {
        command.env("PODWRIGHT_NETWORK_SUBNET4", subnet4).env("PODWRIGHT_NETWORK_SUBNET6", subnet6);
    })
}

#[test]
fn the_last_address_and_a_range_that_the_host_has_are_refused_with_the_remedy() {
    let machine = Machine::with_bridge();
    let mut first = with_subnets(&machine, "first", "10.118.0.8/30", "");
    first.until("it serves", || ask(&machine, &["logs", "first/c"]).stdout.contains("ready"));
    let entry = json(&machine, &["pods", "first"]);
    assert_eq!(entry["pods"][0]["ips"], serde_json::json!(["10.118.0.10"]));
    let refused = with_subnets(&machine, "second", "10.118.0.8/30", "").wait();
    assert_eq!(refused.status.code(), Some(125));
    let expected = "10.118.0.8/30 has no address left for a pod; remove pods, or give network.subnet4 a shorter prefix";
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    first.signal(15);
    first.wait();
    assert_nothing_left(&machine);
    let _neighbour = network::neighbour("10.118.7.1", "10.118.7.2");
    let refused = machine.run(&web("p", ""));
    let expected =
        "pods cannot have 10.118.0.0/16: the host has the route 10.118.7.0/24 by cable0; set network.subnet4";
    assert!(refused.stderr.contains(expected) || refused.stderr.contains("10.118.7.1/32 by"), "{}", refused.stderr);
    assert_nothing_left(&machine);
}

/// A pod with host ports that ends by itself.
fn short() -> String {
    pod("  restartPolicy: Never
  containers:
  - {name: c, image: busybox, command: ['true'], ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 53, hostPort: 53, protocol: UDP}]}
")
}

#[test]
fn a_run_killed_at_any_step_of_its_network_leaves_nothing() {
    let machine = Machine::with_bridge();
    let list = machine.dir("points").join("list");
    let tell =
        |fault: &str| machine.start_with(&short(), &[], |command| _ = command.env("PODWRIGHT_FAULT", fault)).wait();
    let listed = tell(&format!("list:{}", list.display()));
    assert!(listed.status.success(), "{}", listed.stderr);
    let text = fs::read_to_string(list).expect("points");
    let points: BTreeSet<&str> = text.lines().filter(|point| point.starts_with("network.")).collect();
    assert!(points.len() >= 12, "{points:?}");
    let links = network::links();
    for point in points {
        let killed = tell(&format!("kill:{point}"));
        assert_eq!(killed.status.signal(), Some(9), "{point}");
        machine_is_clean_soon(&machine, point);
        assert_eq!(network::links(), links, "{point}");
    }
}

/// Its shim sweeps within seconds; what a `run` had not yet begun with a pod goes with the next command.
fn machine_is_clean_soon(machine: &Machine, point: &str) {
    until(GONE_WITHIN, || match machine.state().join("run").exists() {
        true => Err(format!("{point}: the instance is there")),
        false => Ok(()),
    });
    let next =
        machine.run(&pod("  restartPolicy: Never\n  containers: [{name: c, image: busybox, command: ['true']}]\n"));
    assert!(next.status.success(), "{point}: {}", next.stderr);
    assert_nothing_left(machine);
}

#[test]
fn a_container_is_told_the_address_that_its_pod_has() {
    let machine = Machine::with_bridge();
    let told = machine.run(&pod("  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'echo is $(IP) $IPS; cat /etc/resolv.conf']
    env:
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
  dnsPolicy: None
  dnsConfig: {nameservers: [10.1.1.1], searches: [example.org]}
"));
    assert!(told.status.success(), "{}", told.stderr);
    assert!(told.stdout.contains("is 10.118.0.2 10.118.0.2,fd70:6f64:7772::2"), "{}", told.stdout);
    assert!(told.stdout.contains("nameserver 10.1.1.1"), "{}", told.stdout);
    assert_nothing_left(&machine);
}

/// Runs ip(8) in a pod, as a container with `NET_ADMIN` may.
fn ip(netns: &File, arguments: &str) {
    let run = || Command::new("ip").args(arguments.split(' ')).output().expect("iproute2");
    let output = network::inside(netns, run);
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_pod_does_not_reach_what_listens_on_the_hosts_loopback() {
    let machine = Machine::with_bridge();
    let web = serve(&machine, "web", "");
    let pod = netns(&machine, "web");
    until(PATIENCE, || get("10.118.0.2:80").map(|_| ())); // the bridge lets it through by now
    ip(&pod, "address flush dev lo");
    ip(&pod, "route add 127.0.0.0/8 via 10.118.0.1");
    let host = UdpSocket::bind("0.0.0.0:0").expect("bind");
    host.set_read_timeout(Some(PATIENCE)).expect("set");
    let port = host.local_addr().expect("an address").port();
    let pods = network::inside(&pod, || UdpSocket::bind("10.118.0.2:0").expect("bind"));
    let send = |to: &str| pods.send_to(to.as_bytes(), (to, port)).expect("it leaves the pod");
    let heard = || {
        let mut buffer = [0; 64];
        let n = host.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    send("127.0.0.1");
    send("10.118.0.1");
    assert_eq!(heard(), "10.118.0.1", "the one before it was dropped");
    // Nothing else was in its way: CVE-2020-8558.
    network::delete_table(BRIDGE);
    send("127.0.0.1");
    assert_eq!(heard(), "127.0.0.1");
    drop((pod, pods)); // they would keep the namespace
    web.end();
    assert_nothing_left(&machine);
}

#[test]
fn a_table_that_somebody_flushes_is_whole_again_with_the_next_pod() {
    let machine = std::sync::Arc::new(Machine::with_bridge());
    let supervisor = Supervisor::new(&machine, []);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let kubelet = Kubelet::new(&machine, "kubelet");
        let mut config = kubelet.sandbox("p");
        config.port_mappings = vec![PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() }];
        let run = kubelet.ask(|mut client| {
            let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
            async move { client.run_pod_sandbox(request).await }
        });
        let pod = run.await.expect("run").pod_sandbox_id;
        network::delete_table(BRIDGE);
        let next = kubelet.run_pod("q").await;
        assert_eq!((network::elements(BRIDGE, "ports4"), network::elements(BRIDGE, "ports6")), (1, 1));
        for pod in [pod, next] {
            kubelet.stop_pod(&pod).await;
            kubelet.remove_pod(&pod).await;
        }
    });
    assert!(supervisor.stop().iter().all(std::process::ExitStatus::success));
    assert_nothing_left(&machine);
}

#[test]
fn doctor_tries_the_bridge_and_names_what_is_in_its_way() {
    let machine = Machine::with_bridge();
    let found = || {
        let report = json(&machine, &["doctor"]);
        let checks = report["checks"].as_array().expect("checks").clone();
        let network = checks.into_iter().filter(|check| check["area"] == "network");
        let of = |check: Value| {
            let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            (text("check"), (text("verdict"), text("found"), text("remedy")))
        };
        network.map(of).collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = found();
    assert!(before.values().all(|(verdict, _, _)| verdict == "ok"), "{before:?}");
    network::drop_forwarded();
    let _neighbour = network::neighbour("10.118.7.1", "10.118.7.2");
    let after = found();
    let (verdict, what, remedy) = &after["host firewall"];
    assert_eq!(verdict, "warn", "{after:?}");
    assert!(what.contains("chain FORWARD of table ip filter"), "{what}");
    assert!(remedy.contains("nft insert rule ip filter FORWARD iifname podwright0 accept"), "{remedy}");
    let (verdict, what, _) = &after["addresses"];
    assert!(verdict == "fail" && what.contains("10.118.7."), "{after:?}");
    assert_nothing_left(&machine);
}

/// The life of a pod with host ports, with daemons that are started as `starts` says; whether the last one ended as it was told to.
fn life(machine: &std::sync::Arc<Machine>, starts: Vec<Start>) -> bool {
    let supervisor = Supervisor::new(machine, starts);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let kubelet = Kubelet::new(machine, "kubelet");
        let mut config = kubelet.sandbox("p");
        let port = |container_port, protocol| PortMapping {
            container_port,
            host_port: 8080,
            protocol,
            ..PortMapping::default()
        };
        config.port_mappings = vec![port(80, 0), port(53, 1)];
        let run = kubelet.ask(|mut client| {
            let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
            async move { client.run_pod_sandbox(request).await }
        });
        let pod = run.await.expect("run").pod_sandbox_id;
        assert_eq!((leases(machine).len(), network::elements(BRIDGE, "ports4")), (1, 2));
        kubelet.stop_pod(&pod).await;
        kubelet.remove_pod(&pod).await;
        assert_eq!((leases(machine).len(), network::elements(BRIDGE, "ports4")), (0, 0));
    });
    supervisor.stop().last().is_some_and(std::process::ExitStatus::success)
}

#[test]
fn a_daemon_killed_at_any_step_of_a_pods_network_is_followed_by_one_that_goes_on() {
    let machine = std::sync::Arc::new(Machine::with_bridge());
    let list = machine.dir("points").join("list");
    assert!(life(&machine, vec![Start::with(&format!("list:{}", list.display()))]));
    let text = fs::read_to_string(list).expect("points");
    let points: BTreeSet<&str> = text.lines().filter(|point| point.starts_with("network.")).collect();
    assert!(points.len() >= 12, "{points:?}");
    let points = std::sync::Mutex::new(points.into_iter().collect::<Vec<_>>());
    let next = || points.lock().expect("no panic").pop();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let machine = std::sync::Arc::new(Machine::with_bridge());
                while let Some(point) = next() {
                    killed_at(&machine, point);
                }
            });
        }
    });
}

fn killed_at(machine: &std::sync::Arc<Machine>, point: &str) {
    eprintln!("{point}");
    if !life(machine, vec![Start::with(&format!("kill:{point}"))]) {
        // Killed on its way out: the next one takes away what it was about to.
        let supervisor = Supervisor::new(machine, []);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async { Kubelet::new(machine, "kubelet").pods().await }); // it serves
        assert!(supervisor.stop().iter().all(std::process::ExitStatus::success), "{point}");
    }
    assert_nothing_left(machine);
}

/// How many pods come and go; `TEST_PODS` for more.
fn many() -> usize {
    std::env::var("TEST_PODS").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

#[test]
fn many_pods_up_and_down_leave_leases_links_elements_and_namespaces_as_before() {
    let machine = std::sync::Arc::new(Machine::with_bridge());
    let supervisor = Supervisor::new(&machine, []);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let kubelet = Kubelet::new(&machine, "kubelet");
        let keeper = kubelet.run_pod("keeper").await;
        let before = (leases(&machine), network::links(), network::elements(BRIDGE, "ports4"));
        let mut seen = BTreeSet::new();
        for n in 0..many() {
            let pod = kubelet.run_pod(&format!("p{n}")).await;
            seen.extend(leases(&machine));
            kubelet.stop_pod(&pod).await;
            kubelet.remove_pod(&pod).await;
        }
        assert_eq!(seen.len(), many() + 1, "no address was given again at once");
        assert_eq!((leases(&machine), network::elements(BRIDGE, "ports4")), (before.0, before.2));
        until(GONE_WITHIN, || match network::links() {
            links if links == before.1 => Ok(()),
            links => Err(format!("{links:?}")),
        });
        assert!(machine.state().join("network").join(BRIDGE).join("kept").exists());
        kubelet.stop_pod(&keeper).await;
        kubelet.remove_pod(&keeper).await;
    });
    assert!(network::links().contains(&BRIDGE.to_owned()), "the daemon keeps it for the next pod");
    assert!(supervisor.stop().iter().all(std::process::ExitStatus::success));
    assert_nothing_left(&machine);
}

#[test]
fn a_daemon_says_that_the_network_is_ready_and_takes_away_what_dead_pods_have_left() {
    let machine = std::sync::Arc::new(Machine::with_bridge());
    let supervisor = Supervisor::new(&machine, []);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let conditions = |kubelet: &Kubelet| {
        let status = kubelet.ask(|mut client| async move { client.status(StatusRequest { verbose: false }).await });
        let conditions = runtime.block_on(status).expect("status").status.expect("conditions").conditions;
        conditions.into_iter().find(|c| c.r#type == "NetworkReady").expect("there")
    };
    let kubelet = runtime.block_on(async { Kubelet::new(&machine, "kubelet") });
    assert!(conditions(&kubelet).status, "{:?}", conditions(&kubelet));
    let mut config = kubelet.sandbox("p");
    config.port_mappings = vec![PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() }];
    let run = kubelet.ask(|mut client| {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        async move { client.run_pod_sandbox(request).await }
    });
    let pod = runtime.block_on(run).expect("run").pod_sandbox_id;
    let status = kubelet.ask(|mut client| {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
        async move { client.pod_sandbox_status(request).await }
    });
    let ips = runtime.block_on(status).expect("status").status.expect("there").network.expect("a network");
    assert_eq!((ips.ip.as_str(), ips.additional_ips[0].ip.as_str()), ("10.118.0.2", "fd70:6f64:7772::2"));
    assert_eq!(network::elements(BRIDGE, "ports4"), 1);
    // The daemon ends, and somebody kills the pod and takes away its directory.
    let pid = |name: &str| {
        let record: PathBuf = machine.state().join("pods").join(&pod).join(name);
        let record: Value = serde_json::from_slice(&fs::read(record).expect("a record")).expect("JSON");
        record
    };
    let (shim, pause) = (pid("pod.json")["shim"]["pid"].clone(), pid("sandbox.json")["pause"]["pid"].clone());
    assert!(supervisor.stop().iter().all(std::process::ExitStatus::success));
    for pid in [shim, pause] {
        killed(u32::try_from(pid.as_u64().expect("a pid")).expect("a pid"));
    }
    fs::remove_dir_all(machine.state().join("pods").join(&pod)).expect("rm -r");
    assert_eq!(
        (leases(&machine).len(), network::elements(BRIDGE, "ports4")),
        (1, 1),
        "a lease is on the disk, and stays"
    );
    let supervisor = Supervisor::new(&machine, []);
    assert!(conditions(&kubelet).status);
    assert_eq!(leases(&machine).len(), 0);
    assert!(!network::has_table(BRIDGE) && !network::links().contains(&BRIDGE.to_owned()), "nobody needs it any more");
    assert!(supervisor.stop().iter().all(std::process::ExitStatus::success));
    assert_nothing_left(&machine);
}
