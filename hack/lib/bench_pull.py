"""What a pull costs, unpacked and ready to run: podwright beside containerd and podman, from one registry in one run.

The registry is Debian's docker-registry on loopback; everybody's storage is on the same disk, and empty before each pull but for what comes
with the program. containerd (`ctr images pull`, which fetches and unpacks) and podman are the host's where they are installed, else Debian's
from a chroot (containerd.sh). A round is a pull by each, one after the other; between two the images are removed and the disk is in sync. The
time is that of the command, the CPU time that of its cgroup: command, daemon and all that they start, but not the registry.

podwright has what it pulled on the disk when it says so; the two others leave the unpacked files to the kernel, and an empty file after a power cut.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import tarfile
import time
from pathlib import Path

import bench_cri

LIB = Path(__file__).resolve().parent
OCI = "application/vnd.oci.image."
# Name, layers, files a layer, bytes a file.
IMAGES = {"large": ("500 MB in 20 layers", 20, 25, 1_000_000), "small": ("100,000 files in 5 layers", 5, 20_000, 600)}
FILES_A_DIRECTORY = 50
PATIENCE_SECONDS = 60
GOAL = 2


def measure(top, program, base, group, rounds, note):
    base = Path(base)
    blobs = made_images(top / "target/bench-images", note)
    result = {"rounds": rounds, "images": {name: about[0] for name, about in IMAGES.items()}, "rows": {}}
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(Registry(base))
        for name in IMAGES:
            registry.push(blobs / name, name)
        pullers = [stack.enter_context(Podwright(base, group, program))]
        if found := bench_cri.find_containerd(top, note):
            pullers.append(stack.enter_context(Containerd(base, group, found)))
        if found := find_podman(top, note):
            pullers.append(stack.enter_context(Podman(base, group, found)))
        result["versions"] = {puller.name: puller.version for puller in pullers}
        for name in IMAGES:
            rows = {puller.name: {"seconds": [], "cpu": []} for puller in pullers}
            for number in range(rounds):
                note(f"pull of {IMAGES[name][0]}, round {number + 1} of {rounds}")
                for puller in pullers:
                    os.sync()
                    cpu, start = puller.cpu_us(), time.monotonic()
                    puller.pull(f"127.0.0.1:{registry.port}/{name}:1")
                    rows[puller.name]["seconds"].append(time.monotonic() - start)
                    rows[puller.name]["cpu"].append((puller.cpu_us() - cpu) / 1e6)
                    note(f"{puller.name}: {rows[puller.name]['seconds'][-1]:.1f} s")
                    puller.remove(f"127.0.0.1:{registry.port}/{name}:1")
            result["rows"][name] = rows
    return result


def tables(result):
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    out = [f"Pulled and unpacked from docker-registry on loopback, {result['rounds']} rounds; {versions}.", ""]
    others = [name for name in result["versions"] if name != "podwright"]
    heads = "".join(f" {name} | ratio |" for name in others)
    out += [f"| median | podwright |{heads} goal |", "|---|---:|" + "---:|---:|" * len(others) + "---:|"]
    for name, rows in result["rows"].items():
        for what, unit in (("seconds", "s"), ("cpu", "s of CPU")):
            own = statistics.median(rows["podwright"][what])
            cells = ""
            for other in others:
                theirs = statistics.median(rows[other][what])
                cells += f" {theirs:.2f} | {theirs / own:.1f} |"
            goal = GOAL if what == "seconds" else ""
            out.append(f"| {result['images'][name]}, {unit} | {own:.2f} |{cells} {goal} |")
    return "\n".join(out)


# --- who pulls


class Puller:
    def __init__(self, name, base, group):
        self.name, self.base, self.group = name, base / f"pull-{name}", group.with_name(f"{group.name}-pull-{name}")
        self.base.mkdir()
        self.group.mkdir()

    def run(self, command, env=None):
        inside = lambda: (self.group / "cgroup.procs").write_text("0")
        ended = subprocess.run(command, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, preexec_fn=inside)
        if ended.returncode != 0:
            raise SystemExit(f"hack/bench: {self.name}: {' '.join(map(str, command))}: {ended.stdout}")

    def cpu_us(self):
        return int((self.group / "cpu.stat").read_text().split()[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        (self.group / "cgroup.kill").write_text("1")
        bench_cri.remove_groups(self.group)


class Podwright(Puller):
    def __init__(self, base, group, program):
        super().__init__("podwright", base, group)
        self.program, self.version = program, None
        self.env = {"PODWRIGHT_ROOT": str(self.base / "root"), "PODWRIGHT_STATE": str(self.base / "state")}

    def pull(self, name):
        self.run([self.program, "pull", "--quiet", name], self.env)

    def remove(self, name):
        self.run([self.program, "rmi", name], self.env)


class Containerd(Puller):
    def __init__(self, base, group, found):
        super().__init__("containerd", base, group)
        self.version, self.root, self.daemon = found["version"].split()[1].rstrip(","), found["root"], None
        self.socket = self.base / "c.sock"

    def __enter__(self):
        config = self.base / "config.toml"
        config.write_text(f'version = 2\nroot = "{self.base}/root"\nstate = "{self.base}/state"\n'
                          f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\n  address = "{self.socket}"\n')
        inside = lambda: (self.group / "cgroup.procs").write_text("0")
        with open(self.base / "log", "w") as log:
            command = in_chroot(self.root, [self.base], ["containerd", "--config", config, "--log-level", "warn"])
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=inside)
        wait_for(lambda: self.socket.exists() and self.daemon.poll() is None, lambda: (self.base / "log").read_text())
        return self

    def ctr(self, *words):
        enter = ["nsenter", f"--target={self.daemon.pid}", "--mount", "--root"]
        self.run([*enter, "ctr", "--address", self.socket, *words])

    def pull(self, name):
        self.ctr("images", "pull", "--plain-http", name)

    def remove(self, name):
        self.ctr("images", "rm", "--sync", name)

    def __exit__(self, *_):
        self.daemon.terminate()
        self.daemon.wait(PATIENCE_SECONDS)
        super().__exit__()


class Podman(Puller):
    def __init__(self, base, group, found):
        super().__init__("podman", base, group)
        self.version, self.root = found

    def podman(self, *words):
        where = ["--root", self.base / "root", "--runroot", self.base / "run", "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"]
        self.run(in_chroot(self.root, [self.base], ["podman", *where, *words]))

    def pull(self, name):
        self.podman("pull", "--quiet", "--tls-verify=false", name)

    def remove(self, name):
        self.podman("rmi", "--force", name)


def find_podman(top, note):
    """(version, root of a chroot or None), or None when there is none to be had."""
    root = None
    if not shutil.which("podman"):
        root = top / "target/podman"
        if subprocess.run([LIB / "containerd.sh", root, "podman"]).returncode != 0:
            note("no podman here and none to be had from Debian")
            return None
    return subprocess.check_output(in_chroot(root, [], ["podman", "--version"]), text=True).split()[2], root


def in_chroot(root, binds, command):
    """The command in a mount namespace of its own, and in the chroot if there is one."""
    words = " ".join(f"'{word}'" for word in command)
    script = ["set -e"]
    if root:
        for path in ["/proc", "/sys", "/dev", *binds]:
            script += [f"mkdir -p '{root}{path}'", f"mount --rbind '{path}' '{root}{path}'"]
        script += [f"cp /etc/hosts /etc/resolv.conf /etc/passwd /etc/group '{root}/etc/'", f"exec chroot '{root}' {words}"]
    else:
        script += [f"exec {words}"]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(script)]


def wait_for(done, explain):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"hack/bench: it does not start: {explain()}")
        time.sleep(0.05)


# --- what is pulled


class Registry:
    def __init__(self, base):
        self.base, self.child = base / "registry", None
        self.base.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self):
        program = shutil.which("docker-registry")
        if not program:
            raise SystemExit("hack/bench: docker-registry is missing: apt-get install docker-registry")
        config = self.base / "config.yml"
        config.write_text(f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {self.base}/storage\n"
                          f"http:\n  addr: 127.0.0.1:{self.port}\n")
        self.child = subprocess.Popen([program, "serve", config], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL)
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", self.port)) == 0, lambda: "docker-registry")
        return self

    def push(self, made, name):
        """Puts the blobs where the registry has them: its own layout (docker/distribution: registry/storage/paths.go)."""
        v2 = self.base / "storage/docker/registry/v2"
        manifest = (made / "manifest").read_bytes()
        document = json.loads(manifest)
        for digest in [digest_of(manifest), document["config"]["digest"], *(layer["digest"] for layer in document["layers"])]:
            hex_digits = digest.removeprefix("sha256:")
            blob = v2 / f"blobs/sha256/{hex_digits[:2]}/{hex_digits}"
            blob.mkdir(parents=True)
            source = made / ("manifest" if digest == digest_of(manifest) else hex_digits)
            os.link(source, blob / "data") if source.stat().st_dev == blob.stat().st_dev else shutil.copy(source, blob / "data")
            self.link(v2 / f"repositories/{name}/_layers/sha256/{hex_digits}/link", digest)
        digest = digest_of(manifest)
        manifests = v2 / f"repositories/{name}/_manifests"
        self.link(manifests / f"revisions/sha256/{digest.removeprefix('sha256:')}/link", digest)
        self.link(manifests / "tags/1/current/link", digest)

    def link(self, path, digest):
        path.parent.mkdir(parents=True)
        path.write_text(digest)

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait(PATIENCE_SECONDS)


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def made_images(cache, note):
    recipe = hashlib.sha256(repr((IMAGES, FILES_A_DIRECTORY)).encode()).hexdigest()[:12]
    made = cache / recipe
    if made.exists():
        return made
    new = cache / "new"
    shutil.rmtree(new, ignore_errors=True)
    for name, (about, layers, files, size) in IMAGES.items():
        note(f"making the image of {about} (once)")
        make_image(new / name, layers, files, size)
    new.rename(made)
    return made


def make_image(out, layers, files, size):
    """Files that compress as programs do, to some 60 percent."""
    out.mkdir(parents=True)
    noise = random.Random(1)
    words = [noise.randbytes(noise.randrange(2, 24)) for _ in range(4000)]
    page = b"".join(noise.choice(words) for _ in range(400_000))
    diff_ids, descriptors = [], []
    for layer in range(layers):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(files):
                start = noise.randrange(len(page) - size) if size < len(page) else 0
                info = tarfile.TarInfo(f"usr/share/layer{layer}/{number // FILES_A_DIRECTORY}/file{number}")
                info.size, info.mtime, info.mode = size, 1_700_000_000, 0o644
                archive.addfile(info, io.BytesIO(page[start:start + size]))
        blob = gzip.compress(tar.getvalue(), compresslevel=6, mtime=0)
        digest = digest_of(blob)
        (out / digest.removeprefix("sha256:")).write_bytes(blob)
        diff_ids.append(digest_of(tar.getvalue()))
        descriptors.append({"mediaType": OCI + "layer.v1.tar+gzip", "digest": digest, "size": len(blob)})
    arch = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = json.dumps({"architecture": arch, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    (out / digest_of(config).removeprefix("sha256:")).write_bytes(config)
    (out / "manifest").write_text(json.dumps({
        "schemaVersion": 2, "mediaType": OCI + "manifest.v1+json",
        "config": {"mediaType": OCI + "config.v1+json", "digest": digest_of(config), "size": len(config)}, "layers": descriptors}))
