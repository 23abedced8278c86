"""What it costs to connect a pod: podwright's built-in bridge beside containerd with Debian's CNI plugins, in one run and asked by one client
(cri.rs) over their sockets.

Each runtime has a network namespace of its own, as a host has; its pods have addresses of both families behind a masquerading bridge. containerd's
network is the usual one: bridge, host-local and portmap, and the loopback plugin that it runs itself. What is timed is a pod without containers:
RunPodSandbox, StopPodSandbox, RemovePodSandbox, one pod after another beside one that is there, blocks of both alternating.
"""

import json
import shutil
import statistics
import subprocess
from pathlib import Path

from bench_cri import BLOCK, Containerd, Podwright, find_containerd, quantiles, ratio

PACKAGES = ["containerd", "runc", "containernetworking-plugins", "iptables"]
PLUGINS = "/usr/lib/cni"  # where Debian has them
ROWS = {"sandbox": "RunPodSandbox", "stop pod": "StopPodSandbox", "remove": "RemovePodSandbox", "all": "**all three**"}
# What the project wants: so many times less than containerd.
GOALS = {"sandbox": 30}
# Of containerd's, version 2. Its mounts are not to be those of the host.
SETTINGS = """  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{plugins}"
  conf_dir = "{conf}"
"""
# Its own network, with the loopback up.
OWN_NETWORK = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def measure(top, program, client, base, group, rounds, note):
    if not shutil.which("ip"):
        raise SystemExit("hack/bench: ip is missing: apt-get install iproute2")
    found = find_containerd(top, note, "containerd-network", PACKAGES)
    if found:
        has_plugins(found["root"])
    result = {"version": found["version"] if found else None, "rounds": rounds}
    base = Path(base) / "network"
    base.mkdir()
    with Podwright(base, group, client, program, "bridge", OWN_NETWORK) as podwright:
        if not found:
            return {**result, **of_all([podwright], rounds, note)}
        # What it reads and writes is below its own directory, which its chroot has.
        settings = SETTINGS.format(plugins=PLUGINS, conf=base / "containerd/net.d")
        other = Containerd(base, group, client, found["root"], settings, OWN_NETWORK)
        put_network(other.base)
        with other as containerd:
            return {**result, **of_all([podwright, containerd], rounds, note)}


def has_plugins(root):
    """Where it is the host's containerd, so are the plugins; in a chroot nothing has linked iptables."""
    if root is None:
        if not Path(PLUGINS, "bridge").exists() or not shutil.which("iptables"):
            raise SystemExit("hack/bench: apt-get install containernetworking-plugins iptables")
        return
    for name in ["iptables", "ip6tables"]:
        link = Path(root, "usr/sbin", name)
        if not link.is_symlink():
            link.symlink_to(f"{name}-nft")


def put_network(base):
    ranges = [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ipam = {"type": "host-local", "dataDir": str(base / "leases"), "ranges": ranges, "routes": routes}
    plugins = [{"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "ipam": ipam},
               {"type": "portmap", "capabilities": {"portMappings": True}}]
    network = {"cniVersion": "1.0.0", "name": "bench", "plugins": plugins}
    (base / "net.d").mkdir()
    (base / "net.d/10-bench.conflist").write_text(json.dumps(network))


def of_all(runtimes, rounds, note):
    note(f"{rounds} sandboxes with a network")
    took = {runtime.name: {} for runtime in runtimes}
    for runtime in runtimes:
        runtime.ask("network")
        runtime.ask("fill 1")  # a node has other pods, and who comes first makes what all use
        runtime.ask("sandboxes 2")
    for done in range(0, rounds, BLOCK):
        for runtime in runtimes:
            for what, numbers in runtime.ask(f"sandboxes {min(BLOCK, rounds - done)}").items():
                took[runtime.name].setdefault(what, []).extend(numbers)
    for runtime in runtimes:
        runtime.ask("empty")
    rows = {}
    for name, numbers in took.items():
        cpu = numbers.pop("cpu")
        rows[name] = {what: quantiles(all) for what, all in numbers.items()} | {"cpu": statistics.mean(cpu)}
    return rows


def tables(result):
    """The rows for README.md."""
    names = ["podwright"] + (["containerd"] if result["version"] else [])
    rows = [result[name] for name in names]
    beside = f" beside {result['version']}, with the CNI plugins bridge, host-local, portmap and loopback" if result["version"] else ""
    head = "".join(f" | {name} p50 | p99" for name in names)
    out = [f"The built-in bridge{beside}: {result['rounds']} pods without a container, with addresses of both families.", "",
           f"| call, ms{head} | ratio of p50 | goal |", "|---|" + "---:|" * (2 * len(names) + 2)]
    for what, label in ROWS.items():
        cells = "".join(f" | {row[what]['p50'] / 1000:.2f} | {row[what]['p99'] / 1000:.2f}" for row in rows)
        out.append(f"| {label}{cells} | {ratio([row[what]['p50'] for row in rows])} | {GOALS.get(what, '')} |")
    cells = "".join(f" | {row['cpu'] / 1000:.2f} |" for row in rows)
    out.append(f"| CPU of the three{cells} | {ratio([row['cpu'] for row in rows])} | |")
    return "\n".join(out)
