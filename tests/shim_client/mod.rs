//! Drives a real shim as an engine does, blocking; and a pod's surroundings: directories, cgroups, a busybox root.
#![allow(dead_code)] // each test file that includes it uses a part

use podwright::id::{ContainerId, ExecId, PodId};
use podwright::state::model::{NamespaceMode, Namespaces};
use podwright::state::record::ExitRecord;
use podwright::state::spec::SpecText;
use podwright::sys::epoll::{Epoll, Interest};
use podwright::sys::socket::{recvmsg, sendmsg};
use podwright::wire::{
    self, Event, Exec, Launch, Reply, Request, Root, Sandbox, Seccomp, Stdio, ToEngine, ToShim, UserChoice,
};
use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ChildStdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes, so that a hang is a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);
const O_DIRECTORY: i32 = 0o200_000;

pub fn open_path(path: &Path) -> OwnedFd {
    let opened = OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(path);
    opened.unwrap_or_else(|e| panic!("open {}: {e}", path.display())).into()
}

/// A connection as an engine has it.
pub struct Client {
    socket: UnixStream,
    next: u32,
    pub events: VecDeque<Event>,
    replies: Vec<(u32, Reply, Vec<OwnedFd>)>,
}

impl Client {
    pub fn new(socket: UnixStream) -> Self {
        Client { socket, next: 0, events: VecDeque::new(), replies: Vec::new() }
    }

    pub fn send(&mut self, request: Request, fds: &[&OwnedFd]) -> u32 {
        self.next += 1;
        let bytes = wire::encode(&ToShim { id: self.next, request }).expect("encode");
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        // A shim that is gone shows when its answer is waited for.
        if let Ok(sent) = sendmsg(&self.socket, &bytes, &fds) {
            assert_eq!(sent, bytes.len(), "it fits the socket");
        }
        self.next
    }

    fn wait(&self, until: Instant) -> bool {
        let (epoll, mut ready) = (Epoll::new().expect("epoll"), Vec::new());
        epoll.add(&self.socket, 0, Interest::Read).expect("add");
        epoll.wait(Some(until.saturating_duration_since(Instant::now())), &mut ready).expect("wait");
        !ready.is_empty()
    }

    fn fill(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>, until: Instant) -> Option<()> {
        let mut filled = 0;
        while filled < buf.len() {
            assert!(self.wait(until), "the shim is silent");
            let mut got = recvmsg(&self.socket, &mut buf[filled..]).ok()?;
            if got.bytes == 0 {
                return None;
            }
            filled += got.bytes;
            fds.append(&mut got.fds);
        }
        Some(())
    }

    /// The next message; `None` when the shim has closed.
    fn receive(&mut self, until: Instant) -> Option<()> {
        let (mut header, mut fds) = ([0; wire::HEADER_BYTES], Vec::new());
        self.fill(&mut header, &mut fds, until)?;
        let mut text = vec![0; wire::frame_len(header).expect("short")];
        self.fill(&mut text, &mut fds, until)?;
        match serde_json::from_slice(&text).expect("decode") {
            ToEngine::Reply { id, reply } => self.replies.push((id, reply, fds)),
            ToEngine::Event(event) => self.events.push_back(event),
        }
        Some(())
    }

    pub fn answer(&mut self, id: u32) -> (Reply, Vec<OwnedFd>) {
        self.answer_unless_closed(id).expect("the shim has closed")
    }

    pub fn answer_unless_closed(&mut self, id: u32) -> Option<(Reply, Vec<OwnedFd>)> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.replies.iter().position(|(of, ..)| *of == id) {
                let (_, reply, fds) = self.replies.remove(at);
                return Some((reply, fds));
            }
            self.receive(until)?;
        }
    }

    pub fn call(&mut self, request: Request) -> Reply {
        let id = self.send(request, &[]);
        self.answer(id).0
    }

    pub fn hello(&mut self, owner: bool) -> Reply {
        self.call(Request::Hello { versions: wire::VERSIONS, owner })
    }

    pub fn event(&mut self) -> Event {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            self.receive(until).expect("the shim has closed");
        }
    }

    /// The exit of one container; other events before it are dropped.
    pub fn exit(&mut self, of: &ContainerId) -> ExitRecord {
        loop {
            if let Event::ContainerExited { container, exit } = self.event()
                && container == *of
            {
                return exit;
            }
        }
    }

    pub fn closed(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        while self.receive(until).is_some() {}
        true
    }
}

/// Everything around a shim that an engine would have made; gone with it.
pub struct Pod {
    pub temp: tempfile::TempDir,
    pub id: PodId,
    pub cgroup: PathBuf,
    pub shim: Child,
    pub client: Client,
    ordinal: u32,
}

pub fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is mounted");
    line.split(' ').nth(4).expect("mount point").into()
}

impl Pod {
    /// A shim and its first connection, which has said nothing.
    pub fn born(binary: &Path, instance: Option<&str>) -> Pod {
        Pod::born_to(binary, instance, "")
    }

    /// The same with a fault, see [`podwright::fault`].
    pub fn born_to(binary: &Path, instance: Option<&str>, fault: &str) -> Pod {
        let temp = tempfile::tempdir().expect("tempdir");
        let id = PodId::random();
        let cgroup = cgroup2_mount().join(format!("podwright-test-{}", id.short()));
        fs::create_dir(&cgroup).expect("make cgroup");
        fs::create_dir(cgroup.join("pause")).expect("make cgroup");
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        let mut command = Command::new(binary);
        command.arg0("podwright-shim").arg("shim").arg(id.as_str());
        command.arg("--state").arg(temp.path().join("state")).arg("--root").arg(temp.path().join("root"));
        if !fault.is_empty() {
            command.env("PODWRIGHT_FAULT", fault);
        }
        if let Some(instance) = instance {
            command.arg("--instance").arg(instance);
        }
        let shim = command.stdin(OwnedFd::from(theirs)).stdout(ChildStdio::null()).spawn().expect("spawn shim");
        busybox_root(&temp.path().join("layer"));
        Pod { temp, id, cgroup, shim, client: Client::new(ours), ordinal: 0 }
    }

    /// A pod with its sandbox.
    pub fn up(binary: &Path, instance: Option<&str>) -> Pod {
        let mut pod = Pod::born(binary, instance);
        assert!(
            matches!(pod.client.hello(instance.is_some()), Reply::Hello { version, .. } if version == wire::VERSIONS.1)
        );
        match pod.sandbox() {
            Reply::Sandbox(_) => pod,
            other => panic!("{other:?}"),
        }
    }

    pub fn dir(&self) -> &Path {
        self.temp.path()
    }

    pub fn sandbox(&mut self) -> Reply {
        let id = self.send_sandbox();
        let (reply, fds) = self.client.answer(id);
        assert_eq!(fds.len(), usize::from(matches!(reply, Reply::Sandbox(_))), "the pidfd of pause: {reply:?}");
        reply
    }

    pub fn send_sandbox(&mut self) -> u32 {
        let sandbox = Sandbox {
            pod: self.id.clone(),
            dir: self.dir().to_owned(),
            namespaces: Namespaces::default(),
            hostname: "shimtest".to_owned(),
            sysctls: Vec::new(),
            shm_bytes: 1 << 20,
            oom_score_adj: 0,
            file_label: None,
        };
        podwright::state::flight::Flight::create(&self.dir().join("flight"), podwright::state::flight::Source::Engine)
            .expect("flight");
        let listener = UnixListener::bind(self.dir().join("shim.sock")).expect("bind");
        let (cgroup, listener) = (open_path(&self.cgroup.join("pause")), OwnedFd::from(listener));
        self.client.send(Request::CreateSandbox(Box::new(sandbox)), &[&cgroup, &listener])
    }

    /// Another connection, greeted.
    pub fn connect(&self) -> Client {
        let mut client = Client::new(UnixStream::connect(self.dir().join("shim.sock")).expect("connect"));
        assert!(matches!(client.hello(false), Reply::Hello { .. }));
        client
    }

    pub fn log(&self, id: &ContainerId) -> PathBuf {
        self.container(id).join("log")
    }

    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.dir().join(id.short())
    }

    pub fn cgroup_of(&self, id: &ContainerId) -> PathBuf {
        self.cgroup.join(id.short())
    }

    /// A request for a container that runs `script` in busybox's shell, and its cgroup.
    pub fn launch(&self, args: &[&str]) -> (Box<Launch>, OwnedFd) {
        let container = ContainerId::random();
        let dir = self.container(&container);
        for below in ["upper", "work"] {
            fs::create_dir_all(dir.join(below)).expect("mkdir");
        }
        fs::create_dir(self.cgroup_of(&container)).expect("make cgroup");
        let cgroup = open_path(&self.cgroup_of(&container));
        let launch = Launch {
            spec: SpecText::of(&spec(args)).expect("JSON"),
            root: Root {
                layers: vec![self.dir().join("layer")],
                upper: dir.join("upper"),
                work: dir.join("work"),
                readonly: false,
            },
            user: UserChoice { user: "0".to_owned(), ..UserChoice::default() },
            namespaces: Namespaces { pid: podwright::state::model::NamespaceMode::Container, ..Namespaces::default() },
            seccomp: Seccomp::Unconfined,
            stdio: Stdio { tty: false, stdin: false, stdin_once: false, log: Some(dir.join("log")) },
            init: false,
            allow_unenforced: true,
            runtime: None,
            container,
            dir,
        };
        (Box::new(launch), cgroup)
    }

    pub fn start_launch(&mut self, launch: Box<Launch>, cgroup: &OwnedFd) -> (Reply, Vec<OwnedFd>) {
        let id = self.client.send(Request::Start(launch), &[cgroup]);
        self.client.answer(id)
    }

    /// Runs `script` in a pid namespace of its own.
    pub fn start(&mut self, script: &str) -> ContainerId {
        self.start_in(NamespaceMode::Container, script)
    }

    pub fn start_in(&mut self, pid: NamespaceMode, script: &str) -> ContainerId {
        let (mut launch, cgroup) = self.launch(&["/bin/busybox", "sh", "-c", script]);
        if pid == NamespaceMode::Node {
            let mut spec = launch.spec.value();
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("an array");
            namespaces.retain(|namespace| namespace["type"] != "pid");
            launch.spec = SpecText::of(&spec).expect("JSON");
        }
        launch.namespaces.pid = pid;
        let container = launch.container.clone();
        let (reply, fds) = self.start_launch(launch, &cgroup);
        assert!(matches!(reply, Reply::Started(_)), "{reply:?}");
        assert_eq!(fds.len(), 3, "pidfd, stdout, stderr");
        container
    }

    /// Begins an exec of `script`; its number, the request's, and what reads its output.
    pub fn exec(
        &mut self,
        container: &ContainerId,
        script: &str,
        timeout: Duration,
    ) -> (ExecId, u32, std::io::PipeReader) {
        self.ordinal += 1;
        let (reader, writer) = std::io::pipe().expect("pipe");
        let null = OwnedFd::from(fs::File::open("/dev/null").expect("open"));
        let writer = OwnedFd::from(writer);
        let exec = Exec {
            container: container.clone(),
            exec: ExecId(self.ordinal),
            args: ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec(),
            env: Vec::new(),
            cwd: String::new(),
            user: None,
            timeout_ns: u64::try_from(timeout.as_nanos()).expect("short"),
            tty: false,
            size: None,
        };
        let number = self.client.send(Request::Exec(Box::new(exec)), &[&null, &writer, &writer]);
        (ExecId(self.ordinal), number, reader)
    }

    /// What the log has, without times.
    pub fn logged(&self, id: &ContainerId) -> Vec<String> {
        let text = fs::read_to_string(self.log(id)).expect("read log");
        text.lines().map(|line| line[31..].to_owned()).collect()
    }
}

impl Pod {
    /// SIGKILL to everything in the pod's cgroup, as whoever comes after a shim that died would.
    pub fn kill_all(&self) {
        if let Ok(mut kill) = OpenOptions::new().write(true).open(self.cgroup.join("cgroup.kill")) {
            std::io::Write::write_all(&mut kill, b"1").expect("cgroup.kill");
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.shim.kill(); // it may have ended
        let _ = self.shim.wait(); // as above
        let until = Instant::now() + PATIENCE;
        self.kill_all();
        while remove_cgroups(&self.cgroup).is_err() && Instant::now() < until {
            std::thread::yield_now();
        }
    }
}

fn remove_cgroups(dir: &Path) -> std::io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Whether the cgroup or one below has a living process.
pub fn populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
}

/// Waits until `true`, watching as an event would be missed otherwise: the other side is another process.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn busybox_root(layer: &Path) {
    for dir in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        fs::create_dir_all(layer.join(dir)).expect("mkdir");
    }
    fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox-static is installed");
    symlink("busybox", layer.join("bin/sh")).expect("symlink");
}

fn spec(args: &[&str]) -> serde_json::Value {
    let capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
    serde_json::json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
        ]},
    })
}
