"""What a CRI runtime costs, over its socket: podwright beside containerd with runc, in one run and asked by one client (cri.rs).

containerd is the host's where it is installed with runc, else Debian's from a chroot (containerd.sh). It has its defaults, but for
what a machine without CAP_SYS_RESOURCE needs, and a mount namespace of its own, so that nothing of it stays. Both keep what survives
a reboot on the same disk and the rest on a tmpfs. All processes of a runtime, its pods among them, are in one v2 cgroup: the CPU time
told here is that cgroup's, so that neither the client nor anything else on the machine is in it.
"""

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

LIB = Path(__file__).resolve().parent
IMAGE = "docker.io/library/busybox:latest"
PAUSE = "localhost/bench-pause:1"
VERBS = ["sandbox", "create", "start", "exec", "stop", "stop pod", "remove"]
CALLS = {"list pods": "ListPodSandbox", "list containers": "ListContainers",
         "container stats": "ListContainerStats", "pod stats": "ListPodSandboxStats"}
# A block's rounds: short beside the machine's moods. Each begins when what the other runtime has left behind is done (its exits, the
# kernel's own work for them), and with rounds that do not count, for the other's seconds have left nothing of ours in the caches.
BLOCK = 20
BREAK_SECONDS = 1
WARM = 5
WIDTHS = [1, 8, 32]
PARALLEL_PODS = 64
# Pods that are there, and how often all are listed then.
FILLS = {100: 20, 500: 10}
IDLE_AT = 100
IDLE_SECONDS = 10
# After output a shim gives its buffers back within half a second.
SETTLE_SECONDS = 3
LOG_LINES = 1_000_000
LOG_TIMES = 3
PATIENCE_SECONDS = 60
# What the project wants to be at least: so many times less than containerd. Rows without one have no goal.
GOALS = {"pod": 40, "execs": 20, "cycle cpu": 20, "exec cpu": 20, "pss": 15, "container stats": 50, "logs": 4}


class Runtime:
    """A daemon in a cgroup of its own, and the client that asks it."""

    def __init__(self, name, base, group, client, parent=""):
        self.name, self.base, self.group = name, Path(base) / name, group.with_name(f"{group.name}-{name}")
        self.state = Path(tempfile.mkdtemp(prefix="pw-bench-", dir="/dev/shm"))
        self.socket, self.parent, self.client_program = self.state / "cri.sock", parent, client
        self.base.mkdir()
        self.group.mkdir()
        self.daemon = self.client = None

    def start(self, command, env=None):
        inside = lambda: (self.group / "cgroup.procs").write_text("0")
        with open(self.base / "log", "w") as log:
            self.daemon = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                                           stdout=log, stderr=log, preexec_fn=inside)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.socket.exists():
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"hack/bench: {self.name} does not start:\n{(self.base / 'log').read_text()}")
            time.sleep(0.05)
        if self.client_program is None:  # who starts it asks it
            return
        logs = self.base / "logs"
        self.client = subprocess.Popen([self.client_program, self.socket, IMAGE, logs, self.group, self.parent],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command):
        """What the client measured: lists of numbers by what they are of."""
        self.client.stdin.write(command + "\n")
        self.client.stdin.flush()
        answer = {}
        for line in self.client.stdout:
            if line == "end\n":
                return answer
            what, number = line.rsplit(maxsplit=1)
            answer.setdefault(what, []).append(float(number))
        raise SystemExit(f"hack/bench: {self.name}: {command}: the client ended with {self.client.wait()}")

    def cpu_us(self):
        return int((self.group / "cpu.stat").read_text().split()[1])

    def pss_kib(self):
        """Of the daemon, and of all others but what the pods are there for."""
        pids = [int(pid) for file in self.group.rglob("cgroup.procs") for pid in file.read_text().split()]
        pids += [int(pid) for pid in (self.group / "cgroup.procs").read_text().split()]
        daemon, others = 0, 0
        for pid in set(pids):
            pss = sum(int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                      if line.startswith("Pss:"))
            if pid == self.daemon.pid:
                daemon = pss
            elif Path(f"/proc/{pid}/comm").read_text().strip() != "sleep":
                others += pss
        return daemon, others

    def stop(self):
        if self.client:
            self.client.stdin.close()
            self.client.wait(PATIENCE_SECONDS)
        if self.daemon:
            self.daemon.send_signal(signal.SIGTERM)
            try:
                self.daemon.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.daemon.kill()

    def clean(self):
        """What is left when something has failed, too."""
        (self.group / "cgroup.kill").write_text("1")
        remove_groups(self.group)
        shutil.rmtree(self.state)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            self.clean()


class Podwright(Runtime):
    def __init__(self, base, group, client, program, network="none", around=()):
        super().__init__("podwright", base, group, client)
        self.program, self.network, self.around = program, network, around

    def __enter__(self):
        cgroup = "/" + str(self.group.relative_to(mount_of(self.group)))
        env = {"PODWRIGHT_ROOT": str(self.base / "root"), "PODWRIGHT_STATE": str(self.state / "state"),
               "PODWRIGHT_CGROUP_ROOT": f"{cgroup}/podwright", "PODWRIGHT_NETWORK_MODE": self.network}
        image = LIB.parent.parent / "target/images/busybox"
        image = Path(os.environ.get("PODWRIGHT_IMAGES") or image.parent) / "busybox"
        subprocess.run([self.program, "import", "--quiet", image], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, **env})
        self.start([*self.around, self.program, "daemon", "--socket", self.socket], env)
        return self


class Containerd(Runtime):
    def __init__(self, base, group, client, root, settings="", around=()):
        self.root = root  # of a chroot, or None
        self.settings, self.around = settings, around
        super().__init__("containerd", base, group, client, f"/{group.name}-containerd")

    def __enter__(self):
        config = self.base / "config.toml"
        # Version 2 is read by 1.6 to 2.x.
        config.write_text(f"""version = 2
root = "{self.base}/root"
state = "{self.state}/state"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  stream_server_port = "0"
{self.settings}""")
        self.start([*self.around, *self.inside(["containerd", "--config", config, "--log-level", "warn"])])
        make_pause_image(self.base)
        busybox = Path(os.environ.get("PODWRIGHT_IMAGES") or LIB.parent.parent / "target/images") / "busybox.docker.tar"
        shutil.copy(busybox, self.base / "busybox.tar")
        # In the daemon's namespace: what it has mounted is there.
        for image in ["pause", "busybox"]:
            enter = ["nsenter", f"--target={self.daemon.pid}", "--mount", "--root"]
            ctr = ["ctr", "--address", self.socket, "--namespace", "k8s.io", "images", "import", self.base / f"{image}.tar"]
            subprocess.run([*enter, *ctr], check=True, stdout=subprocess.DEVNULL)
        return self

    def inside(self, command):
        """The command in a mount namespace of its own, and in the chroot."""
        words = " ".join(f"'{word}'" for word in command)
        script = ["set -e"]
        if self.root:
            script += [f"mount --rbind '{self.root}' '{self.root}'"]  # runc wants its root to be a mount
            for path in ["/proc", "/sys", "/dev", self.base, self.state]:
                script += [f"mkdir -p '{self.root}{path}'", f"mount --rbind '{path}' '{self.root}{path}'"]
            script += [f"cp /etc/hosts /etc/hostname /etc/resolv.conf /etc/passwd /etc/group '{self.root}/etc/'"]
            # In place of the namespace's root and not only of this process's: there ends what joins the namespace, as runc's execs do.
            script += [f"cd '{self.root}'", "mount --move . /", f"exec chroot . {words}"]
        else:
            script += [f"exec {words}"]
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(script)]

    def clean(self):
        super().clean()
        for group in Path("/sys/fs/cgroup").glob(f"*{self.parent}"):  # of hybrid cgroups, or of v2 where that is all
            remove_groups(group)


def remove_groups(group):
    """The group and all below, when what was in them is gone."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while group.exists():
        for path in sorted([group, *group.rglob("*/")], key=lambda p: len(p.parts), reverse=True):
            try:
                path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
        time.sleep(0.05)


def mount_of(path):
    while not path.is_mount():
        path = path.parent
    return path


def make_pause_image(base):
    """The least that can be a sandbox: a static program that waits."""
    program = base / "pause"
    source = "#include <unistd.h>\n#include <signal.h>\nint main(void) { signal(SIGTERM, _exit); for (;;) pause(); }\n"
    subprocess.run(["gcc", "-Os", "-static", "-x", "c", "-o", program, "-"], input=source, text=True, check=True)
    layer = BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(program, arcname="pause")
    diff_id = "sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()
    config = {"architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], "os": "linux",
              "config": {"Entrypoint": ["/pause"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]
    with tarfile.open(base / "pause.tar", mode="w") as tar:
        for name, data in [("manifest.json", json.dumps(manifest).encode()), ("config.json", json.dumps(config).encode()),
                           ("layer.tar", layer.getvalue())]:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, BytesIO(data))


def find_containerd(top, note, chroot="containerd", packages=()):
    """(version, root of a chroot or None), or None when there is none to be had; the chroot below target has these packages."""
    if all(shutil.which(program) for program in ["containerd", "containerd-shim-runc-v2", "ctr", "runc"]):
        root, run = None, []
    else:
        root = top / "target" / chroot
        if subprocess.run([LIB / "containerd.sh", root, *packages]).returncode != 0:
            note("no containerd here and none to be had from Debian: podwright alone")
            return None
        run = ["chroot", root]
    words = [subprocess.check_output([*run, program, "--version"], text=True).split() for program in ["containerd", "runc"]]
    return {"version": f"containerd {words[0][2].split('+')[0]}, runc {words[1][2].split('+')[0]}", "root": root}


def measure(top, program, client, base, group, rounds, note):
    """Everything; one runtime's rows by their names, under the runtime's name."""
    found = find_containerd(top, note)
    result = {"version": found["version"] if found else None, "rounds": rounds}
    with Podwright(base, group, client, program) as podwright:
        if not found:
            result["podwright"] = of_one([podwright], rounds, note)[podwright.name]
            return result
        with Containerd(base, group, client, found["root"]) as containerd:
            return {**result, **of_one([podwright, containerd], rounds, note)}


def of_one(runtimes, rounds, note):
    rows = {runtime.name: {} for runtime in runtimes}
    took = {runtime.name: {} for runtime in runtimes}
    note(f"{rounds} rounds over the socket")
    for runtime in runtimes:
        runtime.ask("fill 1")  # a node has other pods, and who comes first makes what all use
    for done in range(0, rounds, BLOCK):
        for runtime in runtimes:
            time.sleep(BREAK_SECONDS)
            runtime.ask(f"rounds {WARM}")
            for what, numbers in runtime.ask(f"rounds {min(BLOCK, rounds - done)}").items():
                took[runtime.name].setdefault(what, []).extend(numbers)
    for name, numbers in took.items():
        numbers["pod"] = [sum(three) for three in zip(numbers["sandbox"], numbers["create"], numbers["start"])]
        cpu = numbers.pop("cpu")
        rows[name] |= {what: quantiles(all) for what, all in numbers.items()}
        rows[name]["cycle cpu"] = statistics.mean(cpu)
    for runtime in runtimes:
        row = rows[runtime.name]
        note(f"{runtime.name}: execs, parallel starts, logs")
        execs = runtime.ask(f"exec {rounds}")
        row["execs"], row["exec cpu"] = quantiles(execs["exec"]), execs["cpu"][0]
        for width in WIDTHS:
            (microseconds,) = runtime.ask(f"parallel {width} {PARALLEL_PODS}")["parallel"]
            row[f"parallel {width}"] = PARALLEL_PODS / (microseconds / 1e6)
        row["logs"] = statistics.median(runtime.ask(f"logs {LOG_LINES}")["logs"][0] for _ in range(LOG_TIMES))
    for runtime in runtimes:
        row = rows[runtime.name]
        for pods, times in FILLS.items():
            note(f"{runtime.name}: {pods} pods")
            runtime.ask(f"fill {pods}")
            for call, numbers in runtime.ask(f"calls {times}").items():
                row[f"{call} {pods}"] = statistics.median(numbers)
            if pods == IDLE_AT:
                time.sleep(SETTLE_SECONDS)
                before = runtime.cpu_us()
                time.sleep(IDLE_SECONDS)
                row["idle"] = (runtime.cpu_us() - before) / IDLE_SECONDS
                daemon, others = runtime.pss_kib()
                row["daemon pss"], row["pss"] = daemon, others / pods
        runtime.ask("empty")
    return rows


def quantiles(values):
    p99 = statistics.quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]
    return {"p50": statistics.median(values), "p99": p99}


def tables(result):
    """The rows for README.md."""
    names = ["podwright"] + (["containerd"] if result["version"] else [])
    rows = [result[name] for name in names]
    beside = f" beside {result['version']}" if result["version"] else ""
    head = "".join(f" | {name} p50 | p99" for name in names)
    out = [f"Over the socket{beside}: {result['rounds']} pods of one container, host network, one after another beside one that is there.", "",
           f"| call, ms{head} | ratio of p50 | goal |", "|---|" + "---:|" * (2 * len(names) + 2)]
    labels = {"pod": "**sandbox + create + start**", "execs": "exec, in one container"}
    for what in [*VERBS, "pod", "execs"]:
        cells = "".join(f" | {row[what]['p50'] / 1000:.2f} | {row[what]['p99'] / 1000:.2f}" for row in rows)
        out.append(f"| {labels.get(what, what)}{cells} | {ratio([row[what]['p50'] for row in rows])} | {goal(what)} |")
    head = "".join(f" | {name}" for name in names)
    out += ["", f"| more{head} | ratio | goal |", "|---|" + "---:|" * (len(names) + 2)]

    def line(label, what, scale, digits, more=False):
        values = [row[what] * scale for row in rows]
        cells = "".join(f" | {value:,.{digits}f}" for value in values)
        compared = list(reversed(values)) if more else values
        out.append(f"| {label}{cells} | {ratio(compared)} | {goal(what)} |")

    line("CPU of a pod's life with one exec, ms", "cycle cpu", 1e-3, 2)
    line("CPU of an exec, ms", "exec cpu", 1e-3, 2)
    for width in WIDTHS:
        line(f"pods a second, {width} at a time", f"parallel {width}", 1, 1, more=True)
    for pods in FILLS:
        for call, name in CALLS.items():
            line(f"{name} of {pods} pods, ms", f"{call} {pods}", 1e-3, 2)
    line(f"CPU of all with {IDLE_AT} idle pods, ms a second", "idle", 1e-3, 2)
    line(f"PSS a pod with {IDLE_AT} pods, KiB", "pss", 1, 0)
    line(f"PSS of the daemon with {IDLE_AT} pods, KiB", "daemon pss", 1, 0)
    line("1,000,000 lines of 100 bytes into the log, s", "logs", 1e-6, 2)
    return "\n".join(out)


def ratio(values):
    if len(values) < 2:
        return ""
    own, other = values
    return f"{other / own:.0f}" if own and other / own >= 10 else f"{other / own:.1f}" if own else "∞"


def goal(what):
    known = GOALS.get(what) or GOALS.get(what.rstrip("0123456789 "))
    return str(known or "")
