//! `image: nginx` of a manifest as Kubernetes' documentation has it, unchanged: pulled from a mirror of docker.io, its page fetched from the
//! host, from another host and from another pod, by the pod's address and by a port of the host, over IPv4 and IPv6, on the built-in bridge and
//! on Debian's plugins of CNI. Each test is on a host of its own, which has no way to docker.io.

mod fixtures;

use fixtures::cni::{Bound, DEBIAN, NETWORK, made};
use fixtures::machine::{Finished, GONE_WITHIN, Machine, PATIENCE, Running, image, until};
use fixtures::network::{self, get};
use fixtures::registry::DockerRegistry;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

const NGINX: &str = include_str!("manifests/nginx.yaml");
/// From where another pod asks; busybox comes by the same mirror.
const CLIENT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: busybox, command: [sh, -c, 'echo ready; sleep 1000']}
";
/// What Debian's nginx says.
const PAGE: &str = "<title>Welcome to nginx!</title>";
/// This host, and its neighbour, on the cable between them.
const OURS: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const THEIRS: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

/// A host with a network, a neighbour, and a mirror of docker.io on its loopback.
struct Host {
    machine: Machine,
    neighbour: File,
    _registry: DockerRegistry,
    env: Vec<(&'static str, PathBuf)>,
    _bound: Option<Bound>,
}

impl Host {
    /// In the thread's own namespace.
    fn new(network: &'static str) -> Host {
        let mut machine = Machine::new();
        machine.network = network;
        let registry = DockerRegistry::start("");
        for name in ["nginx", "busybox"] {
            registry.push(&image(name), &format!("library/{name}"), "latest");
        }
        let hosts = machine.dir("certs.d");
        fs::create_dir(hosts.join("docker.io")).expect("mkdir");
        let rule = format!(
            "server = \"https://registry-1.docker.io\"\n\n[host.\"http://127.0.0.1:{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
            registry.port
        );
        fixtures::put(hosts.join("docker.io/hosts.toml"), rule);
        let neighbour = network::neighbour(OURS[0], THEIRS[0]);
        ip(&format!("address add {}/64 dev cable0 nodad", OURS[1]));
        network::inside(&neighbour, || ip(&format!("address add {}/64 dev cable0 nodad", THEIRS[1])));
        let env = vec![("PODWRIGHT_IMAGE_HOSTS_DIR", hosts)];
        Host { machine, neighbour, _registry: registry, env, _bound: None }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.machine.podwright(args.iter().copied());
        command.envs(self.env.iter().map(|(name, value)| (*name, value)));
        command
    }

    fn ask(&self, args: &[&str]) -> Finished {
        Running::of(self.command(args)).wait()
    }

    /// `podwright run`, until its container has said so.
    fn run(&self, manifest: &str, container: &str, says: &str) -> Running {
        let path = self.machine.manifest(manifest);
        let mut running = Running::of(self.command(&["run", path.to_str().expect("utf-8")]));
        running.until("it runs", || {
            let asked = self.ask(&["logs", container]);
            asked.status.success() && asked.stdout.contains(says)
        });
        running
    }

    /// The story. `loopbacks`: by which of the host's own loopback addresses its ports are reached too.
    fn tells(&self, loopbacks: &[&str]) {
        let nginx = self.run(NGINX, "nginx/nginx", "");
        let client = self.run(CLIENT, "client/c", "ready");
        let listed: Value = serde_json::from_str(&self.ask(&["pods", "nginx", "-o", "json"]).stdout).expect("JSON");
        let ips: Vec<&str> =
            listed["pods"][0]["ips"].as_array().expect("ips").iter().filter_map(Value::as_str).collect();
        assert!(ips.len() == 2 && !ips[0].contains(':') && ips[1].contains(':'), "{ips:?}");
        let by_address = ips.iter().map(|ip| at(ip, 80));
        let by_port = OURS.iter().map(|ip| at(ip, 8080));
        for to in by_address.chain(by_port.clone()).chain(loopbacks.iter().map(|ip| at(ip, 8080))) {
            until(PATIENCE, || welcomes("the host", &to, get(&to)));
        }
        // It has no way to pods.
        for to in by_port.clone() {
            until(PATIENCE, || welcomes("another host", &to, network::inside(&self.neighbour, || get(&to))));
        }
        for to in ips.iter().map(|ip| at(ip, 80)).chain(by_port) {
            let url = format!("http://{to}/");
            until(PATIENCE, || {
                let asked = self.ask(&["exec", "client/c", "--", "timeout", "5", "wget", "-q", "-O", "-", &url]);
                let why = format!("{} {}", asked.status, asked.stderr);
                welcomes("another pod", &to, if asked.status.success() { Ok(asked.stdout) } else { Err(why) })
            });
        }
        let access = self.ask(&["logs", "nginx/nginx"]).stdout;
        for from in THEIRS {
            assert!(access.contains(&format!("{from} - - ")), "{from} is not in the log of who came:\n{access}");
        }
        client.signal(15);
        client.wait();
        // By SIGQUIT, as its image says.
        nginx.signal(15);
        nginx.wait().code(0);
        let pulled = self.ask(&["images"]).stdout;
        assert!(pulled.contains("docker.io/library/nginx "), "by the name that it has in a cluster: {pulled}");
    }
}

/// An address and a port, as people write them.
fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn welcomes(who: &str, to: &str, page: Result<String, String>) -> Result<(), String> {
    match page {
        Ok(page) if page.contains(PAGE) => Ok(()),
        other => Err(format!("{who} gets from {to}: {other:?}")),
    }
}

/// ip(8), here.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_unchanged_manifest_serves_its_page_on_the_built_in_bridge() {
    network::own();
    let host = Host::new("bridge");
    let links = network::links();
    host.tells(&["127.0.0.1", "::1"]);
    until(GONE_WITHIN, || if network::links() == links { Ok(()) } else { Err(format!("{:?}", network::links())) });
    assert!(!network::has_table("podwright0") && !host.machine.state().join("network").exists());
}

#[test]
fn an_unchanged_manifest_serves_its_page_on_debians_plugins() {
    fixtures::cni::own_host();
    let mut host = Host::new("cni");
    let (conf, leases) = (host.machine.dir("net.d"), host.machine.dir("leases"));
    let netns = host.machine.dir("netns");
    let ranges = json!([[{"subnet": "10.77.0.0/16"}], [{"subnet": "fd77::/64"}]]);
    let network = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
         "ipam": {"type": "host-local", "dataDir": leases, "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    fixtures::put(conf.join("10-debian.conflist"), network.to_string());
    host.env.push(("PODWRIGHT_NETWORK_CNI_CONF_DIR", conf));
    host.env.push(("PODWRIGHT_NETWORK_CNI_BIN_DIRS", DEBIAN.into()));
    host.env.push(("PODWRIGHT_NETWORK_NETNS_DIR", netns.clone()));
    host._bound = Some(Bound(netns.clone()));
    // A bridge and chains, which plugins make once and keep.
    let first = host.run(NGINX, "nginx/nginx", "");
    first.signal(15);
    first.wait();
    let before = made(&leases);
    host.tells(&["127.0.0.1"]);
    until(GONE_WITHIN, || if made(&leases) == before { Ok(()) } else { Err(format!("{:#?}", made(&leases))) });
    assert_eq!(fs::read_dir(netns).expect("there").count(), 0);
}
