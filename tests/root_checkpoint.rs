//! CheckpointContainer: what is in the archive, that the container goes on, and that nothing is left of one that fails.

mod fixtures;

use fixtures::canary::{self, Canary};
use fixtures::cri::{Node, log_text, script};
use fixtures::evil_checkpoint;
use fixtures::evil_tar::{Image, Layer, Tar, layout, write_dir};
use fixtures::machine::{Machine, PATIENCE, until};
use fixtures::{programs, put};
use podwright::criapi::*;
use podwright::network::{netlink, tables};
use podwright::sys::netlink::Family;
use podwright::sys::ns::{NsFlags, setns};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tonic::{Code, Status};

/// Has a word in its memory that nobody wrote down for it, changes its files, and counts.
const COUNTS: &str = "p=ninety; w=$p-nine-$p; rm -r /usr; mkdir /made; echo one >/made/file; echo secret >/volume/secret; \
    dd if=/dev/null of=/made/holes bs=1M seek=64 2>/dev/null; echo end >>/made/holes; echo memory >/dev/shm/memory; exec 3<>/made/open; i=0; while :; do i=$((i+1)); echo $i; echo $i >/made/count; sleep 0.05; done";
const IN_MEMORY: &str = "ninety-nine-ninety";

async fn node(criu: &Path) -> Node {
    let criu = criu.to_owned();
    Node::of(Machine::with_busybox(), move |daemon| {
        daemon.env("PODWRIGHT_CHECKPOINT_CRIU", criu);
    })
    .await
}

async fn checkpoint(node: &mut Node, id: &str, location: &Path, timeout: i64) -> Result<(), Status> {
    let location = location.display().to_string();
    let request = CheckpointContainerRequest { container_id: id.to_owned(), location, timeout };
    node.runtime.checkpoint_container(request).await.map(|_| ())
}

/// The same, to be waited for elsewhere.
fn asking(node: &Node, id: &str, location: PathBuf) -> impl Future<Output = Result<(), Status>> + use<> {
    let (mut runtime, location) = (node.runtime.clone(), location.display().to_string());
    let request = CheckpointContainerRequest { container_id: id.to_owned(), location, timeout: 60 };
    async move { runtime.checkpoint_container(request).await.map(|_| ()) }
}

/// What a process says of itself in a file, once it is there.
async fn pid_in(file: &Path) -> u32 {
    let file = file.to_owned();
    let look = move || {
        until(PATIENCE, || if file.exists() { Ok(()) } else { Err("it does not run".to_owned()) });
        std::fs::read_to_string(file).expect("read").trim().parse().expect("a pid")
    };
    tokio::task::spawn_blocking(look).await.expect("joined")
}

fn own_pids(mut config: PodSandboxConfig) -> PodSandboxConfig {
    let namespaces = NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() };
    let context = LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    config.linux = Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
    config
}

/// Starts a container that counts, in a pod of its own.
async fn counting(node: &mut Node, name: &str, pids: bool, tty: bool) -> (PathBuf, String) {
    let sandbox = if pids { own_pids(node.sandbox(name)) } else { node.sandbox(name) };
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let volume = node.machine.dir("volume").display().to_string();
    let mut config = script("c", COUNTS);
    config.mounts = vec![Mount { container_path: "/volume".into(), host_path: volume, ..Mount::default() }];
    (config.tty, config.stdin) = (tty, tty);
    if pids {
        let options = NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() };
        let context = LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        config.linux = Some(LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    }
    let id = node.create(&pod, config, sandbox).await.expect("create");
    node.start_container(&id).await.expect("start");
    let log = PathBuf::from(node.status(&id).await.expect("status").log_path);
    goes_on(&log);
    (log, id)
}

/// Waits until it has counted further than now.
fn goes_on(log: &Path) {
    let lines = || log_text(log, "stdout").lines().count();
    let before = lines();
    until(PATIENCE, || if lines() > before + 2 { Ok(()) } else { Err(format!("it stands at {before}")) });
}

/// The files of an archive.
fn unpacked(archive: impl Read) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("a tar archive");
    entries
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("its bytes");
            (entry.path().expect("a path").display().to_string(), bytes)
        })
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        dir.read_dir().expect("listed").map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// That nothing of a checkpoint is left but what is in `archives`.
fn assert_nothing_but(node: &Node, archives: &Path, wanted: &[&str]) {
    assert_eq!(names(archives), wanted);
    for container in names(&node.machine.root().join("containers")) {
        assert_eq!(names(&node.machine.root().join("containers").join(&container)), ["upper", "work"]);
    }
}

async fn remove_all(node: &mut Node) {
    for pod in node.pods(PodSandboxFilter::default()).await {
        node.stop_pod(&pod.id).await.expect("stop");
        node.remove_pod(&pod.id).await.expect("remove");
    }
}

#[tokio::test]
async fn the_archive_has_memory_and_files_and_the_container_goes_on() {
    let mut node = node(&programs::criu()).await;
    let archives = node.machine.dir("checkpoints");
    for (name, pids, tty) in [("shared", false, false), ("own", true, false), ("terminal", true, true)] {
        let (log, id) = counting(&mut node, name, pids, tty).await;
        let location = archives.join(format!("{name}.tar"));
        checkpoint(&mut node, &id, &location, 60).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        goes_on(&log);
        let about = location.metadata().expect("it is there");
        assert_eq!(about.permissions().mode() & 0o7777, 0o600);

        let files = unpacked(File::open(&location).expect("open"));
        let json = |name: &str| serde_json::from_slice::<serde_json::Value>(&files[name]).expect("JSON");
        let config = json("config.dump");
        assert_eq!((&config["id"], &config["name"]), (&serde_json::json!(id), &serde_json::json!("c")));
        assert!(config["rootfsImageName"].as_str().expect("text").contains("busybox"), "{config}");
        assert!(json("spec.dump")["process"]["args"][2].as_str().expect("text").contains("ninety"));
        assert!(json("status.dump")["StartedAt"].as_i64() > Some(0));
        assert!(!files["stats-dump"].is_empty() && !files["dump.log"].is_empty());
        for image in ["inventory.img", "pstree.img", "files.img"] {
            assert!(files.contains_key(&format!("checkpoint/{image}")), "{image}: {:?}", files.keys());
        }
        let in_memory = |bytes: &[u8]| bytes.windows(IN_MEMORY.len()).any(|at| at == IN_MEMORY.as_bytes());
        let pages: Vec<_> = files.iter().filter(|(name, _)| name.starts_with("checkpoint/pages-")).collect();
        assert!(pages.iter().any(|(_, bytes)| in_memory(bytes)), "{name}: not among {} images of pages", pages.len());
        assert_eq!(json("deleted.files"), serde_json::json!(["usr"]));
        let changed = unpacked(files["rootfs-diff.tar"].as_slice());
        assert_eq!(changed["made/file"], b"one\n");
        // The reader here knows no holes, and sees a file of the map and the pieces.
        assert!(changed["GNUSparseFile.0"].ends_with(b"end\n") && changed["GNUSparseFile.0"].len() < 1 << 20);
        let stream = tempfile::NamedTempFile::new().expect("temp file");
        std::fs::write(stream.path(), &files["rootfs-diff.tar"]).expect("write");
        let holes = std::process::Command::new("tar")
            .arg("-xOf")
            .arg(stream.path())
            .arg("made/holes")
            .output()
            .expect("tar runs");
        assert_eq!((holes.stdout.len(), holes.stdout.ends_with(b"\0end\n")), ((64 << 20) + 4, true));
        assert!(about.len() < 32 << 20, "holes stay holes: {} bytes", about.len());
        assert!(changed.contains_key("made/open") && !changed.keys().any(|name| name.contains(".wh.")), "{changed:?}");
        assert!(!changed.keys().any(|name| name.contains("secret")), "a volume is not the container's: {changed:?}");
        // Its files are of the moment of its memory: the same number, or the one before if it was between two writes.
        let count: u64 = String::from_utf8_lossy(&changed["made/count"]).trim().parse().unwrap_or_default();
        assert!(count > 0 || changed["made/count"].is_empty(), "{count}");

        let again = checkpoint(&mut node, &id, &location, 60).await.expect_err("it is there");
        assert_eq!(again.code(), Code::AlreadyExists, "{again}");
        let second = archives.join("second.tar");
        checkpoint(&mut node, &id, &second, 0).await.expect("as often as one likes");
        std::fs::remove_file(second).expect("remove");
        std::fs::remove_file(&location).expect("remove");
        goes_on(&log);
        node.stop_container(&id, 0).await.expect("stop");
        let end = node.status(&id).await.expect("status");
        assert_eq!(
            (end.exit_code, end.state()),
            (137, ContainerState::ContainerExited),
            "its shim was there to see it"
        );
    }
    assert_nothing_but(&node, &archives, &[]);
    remove_all(&mut node).await;
    node.assert_clean().await;
}

/// Ids of the host that stand for a pod's own.
const HOST: u32 = 1_400_000_000;

/// Gives a file away, and counts.
const OWNS: &str = "mkdir /made; echo x >/made/file; chown 1000:2000 /made/file; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";

#[tokio::test]
async fn a_container_in_a_user_namespace_is_written_with_the_ids_that_it_has_in_there() {
    let mut node = node(&programs::criu()).await;
    let archives = node.machine.dir("checkpoints");
    for (pid, tty) in [(NamespaceMode::Container, false), (NamespaceMode::Container, true), (NamespaceMode::Pod, false)]
    {
        let name = format!("p{}{tty}", pid as i32);
        let ids = vec![IdMapping { host_id: HOST, container_id: 0, length: 65536 }];
        let user = UserNamespace { mode: NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids };
        let options = NamespaceOption { pid: pid as i32, userns_options: Some(user), ..Default::default() };
        let mut sandbox = node.sandbox(&name);
        let context = LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
        sandbox.linux = Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
        let pod = node.run_pod(sandbox.clone()).await.expect("run");
        let mut config = script("c", OWNS);
        (config.tty, config.stdin) = (tty, tty);
        let context = LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        config.linux = Some(LinuxContainerConfig { security_context: Some(context), ..Default::default() });
        let id = node.create(&pod, config, sandbox).await.expect("create");
        node.start_container(&id).await.expect("start");
        let log = PathBuf::from(node.status(&id).await.expect("status").log_path);
        goes_on(&log);
        let location = archives.join("a.tar");
        checkpoint(&mut node, &id, &location, 60).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        goes_on(&log);
        let files = unpacked(File::open(&location).expect("open"));
        assert!(files.keys().any(|name| name.starts_with("checkpoint/pages-")), "{name}: {:?}", files.keys());
        let mut changed = tar::Archive::new(files["rootfs-diff.tar"].as_slice());
        let mut owners = BTreeMap::new();
        for entry in changed.entries().expect("a tar archive") {
            let entry = entry.expect("an entry");
            let owner = (entry.header().uid().expect("uid"), entry.header().gid().expect("gid"));
            owners.insert(entry.path().expect("a path").display().to_string(), owner);
        }
        assert_eq!((owners["made/"], owners["made/file"]), ((0, 0), (1000, 2000)), "{name}");
        assert!(owners.values().all(|(uid, gid)| *uid < 65536 && *gid < 65536), "{name}: {owners:?}");
        std::fs::remove_file(location).expect("remove");
        node.stop_container(&id, 0).await.expect("stop");
        assert_eq!(node.status(&id).await.expect("status").exit_code, 137);
    }
    assert_nothing_but(&node, &archives, &[]);
    remove_all(&mut node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_nothing_is_left() {
    let mut node = node(&programs::criu()).await;
    let archives = node.machine.dir("checkpoints");
    put(archives.join("taken.tar"), "a");
    let fifo = archives.join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let (log, id) = counting(&mut node, "p", true, false).await;
    for (location, code) in [
        (PathBuf::new(), Code::InvalidArgument),
        ("relative.tar".into(), Code::InvalidArgument),
        (archives.join("../up.tar"), Code::InvalidArgument),
        (archives.join("directory/"), Code::InvalidArgument),
        (archives.join("missing/a.tar"), Code::InvalidArgument),
        (archives.join("taken.tar/a.tar"), Code::InvalidArgument),
        ("/".into(), Code::InvalidArgument),
        (fifo.join("a.tar"), Code::InvalidArgument),
        (fifo.clone(), Code::AlreadyExists),
        (archives.join("taken.tar"), Code::AlreadyExists),
    ] {
        let e = checkpoint(&mut node, &id, &location, 60).await.expect_err("refused");
        assert_eq!(e.code(), code, "{location:?}: {e}");
        assert!(e.message().contains("location"), "{e}");
    }
    let good = archives.join("good.tar");
    let e = checkpoint(&mut node, &id, &good, -1).await.expect_err("no time");
    assert_eq!((e.code(), e.message().contains("timeout")), (Code::InvalidArgument, true), "{e}");
    let e = checkpoint(&mut node, "0123456789abcdef", &good, 60).await.expect_err("unknown");
    assert_eq!(e.code(), Code::NotFound, "{e}");
    goes_on(&log);
    node.stop_container(&id, 0).await.expect("stop");
    let e = checkpoint(&mut node, &id, &good, 60).await.expect_err("it has ended");
    assert_eq!(e.code(), Code::FailedPrecondition, "{e}");
    assert_nothing_but(&node, &archives, &["fifo", "taken.tar"]);
    for status in [
        node.runtime.checkpoint_pod(CheckpointPodRequest::default()).await.map(|_| ()).expect_err("later"),
        node.runtime.restore_pod(RestorePodRequest::default()).await.map(|_| ()).expect_err("later"),
    ] {
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
    }
    remove_all(&mut node).await;
    node.assert_clean().await;
}

/// The network namespace of a container.
async fn netns(node: &mut Node, id: &str) -> File {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let info = node.runtime.container_status(request).await.expect("status").into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("JSON");
    File::open(format!("/proc/{}/ns/net", info["pid"])).expect("it runs")
}

/// Makes a table of nftables there, as criu does, which drops all packets.
fn add_table(netns: &File, name: &str) {
    let (nft, inet) = (10 << 8, [1, 0, 0, 0]);
    let frame = |kind| netlink::Message::new(kind, 0, "a batch").raw(&[0, 0, 0, 10]);
    let table = netlink::Message::new(nft, netlink::CREATE, "add a table").raw(&inet).text(1, name).acked();
    let make = || {
        setns(netns.as_fd(), NsFlags::NET).expect("setns");
        let mut socket = netlink::Socket::open(Family::Netfilter).expect("a socket");
        let refused = socket.send_until(vec![frame(16), table, frame(17)], 1).expect("sent");
        assert!(refused.is_empty(), "{refused:?}");
    };
    std::thread::scope(|scope| scope.spawn(make).join()).expect("made");
}

fn tables_of(netns: &File) -> Vec<String> {
    tables::named(netns.as_fd(), "").expect("listed").into_iter().collect()
}

/// A criu that does what the test wants.
fn stand_in(node: &Node, text: &str) -> PathBuf {
    let path = node.machine.temp.path().join("criu");
    put(&path, format!("#!/bin/sh\n{text}\n"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

#[tokio::test]
async fn a_criu_that_is_missing_fails_or_hangs_leaves_nothing_and_the_container_goes_on() {
    let machine = Machine::with_busybox();
    let program = machine.temp.path().join("criu");
    let set = program.clone();
    let mut node = Node::of(machine, move |daemon| {
        daemon.env("PODWRIGHT_CHECKPOINT_CRIU", set);
    })
    .await;
    let archives = node.machine.dir("checkpoints");
    let (log, id) = counting(&mut node, "p", false, false).await;
    let location = archives.join("a.tar");

    let e = checkpoint(&mut node, &id, &location, 60).await.expect_err("there is none");
    assert_eq!((e.code(), e.message().contains("checkpoint.criu")), (Code::Unimplemented, true), "{e}");
    let doctor =
        node.machine.podwright(["doctor"]).env("PODWRIGHT_CHECKPOINT_CRIU", &program).output().expect("doctor");
    let says = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(says.contains(&format!("checkpoint.criu is {}, which is no program", program.display())), "{says}");

    stand_in(
        &node,
        "while [ $1 != --work-dir ]; do shift; done; echo '(0.1) Error (a.c:1): it is Tuesday' >$2/dump.log; exit 3",
    );
    let e = checkpoint(&mut node, &id, &location, 60).await.expect_err("it fails");
    assert_eq!((e.code(), e.message().contains("a.c:1: it is Tuesday")), (Code::Internal, true), "{e}");
    goes_on(&log);

    let pids = node.machine.temp.path().join("pids");
    stand_in(&node, &format!("sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; sleep 1000", pids.display()));
    let begun = Instant::now();
    let e = checkpoint(&mut node, &id, &location, 10).await.expect_err("it hangs");
    assert_eq!(e.code(), Code::DeadlineExceeded, "{e}");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    let child = std::fs::read_to_string(&pids).expect("it ran");
    // Killed is not yet dead.
    until(PATIENCE, || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") || state.contains(") X ") { Ok(()) } else { Err(state) }
    });
    goes_on(&log);

    // One that writes is told by that, and can put back what it has changed of the container.
    let back = node.machine.temp.path().join("back");
    let work = "while [ $1 != --work-dir ]; do shift; done";
    stand_in(&node, &format!("{work}; while echo x >>$2/pages 2>/dev/null; do :; done; mkdir {}", back.display()));
    let e = checkpoint(&mut node, &id, &location, 2).await.expect_err("it writes without end");
    assert_eq!((e.code(), back.is_dir()), (Code::DeadlineExceeded, true), "{e}");
    goes_on(&log);
    assert_nothing_but(&node, &archives, &[]);
    remove_all(&mut node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn what_could_not_be_put_back_is_tried_again_and_then_there_are_execs() {
    let machine = Machine::with_busybox();
    let program = machine.temp.path().join("criu");
    let mut node = Node::of(machine, move |daemon| {
        daemon.env("PODWRIGHT_CHECKPOINT_CRIU", program);
    })
    .await;
    let archives = node.machine.dir("checkpoints");
    let (log, id) = counting(&mut node, "p", false, false).await;
    // What is mounted in there cannot be removed.
    let work = "while [ $1 != --work-dir ]; do shift; done";
    stand_in(&node, &format!("{work}; mkdir $2/held && mount -t tmpfs none $2/held; exit 3"));
    let e = checkpoint(&mut node, &id, &archives.join("a.tar"), 60).await.expect_err("it fails");
    let mark = node.machine.root().join("containers").join(&id).join("checkpoint");
    assert!(e.message().contains("checkpoint: EBUSY"), "it says what is left: {e}");
    assert!(mark.exists(), "{}", mark.display());
    goes_on(&log);
    let e = node.exec(&id, &["true"], 0).await.expect_err("it may be frozen again");
    assert_eq!((e.code(), e.message().contains("is being checkpointed")), (Code::Unavailable, true), "{e}");
    // Nobody asks for a checkpoint, or starts the daemon anew.
    let unmounted = std::process::Command::new("umount").arg(mark.join("held")).status().expect("umount");
    assert!(unmounted.success());
    tokio::task::spawn_blocking(move || {
        until(PATIENCE, || if mark.exists() { Err("it is there".to_owned()) } else { Ok(()) })
    })
    .await
    .expect("joined");
    assert_eq!(node.exec(&id, &["true"], 0).await.expect("an exec").exit_code, 0);
    goes_on(&log);
    assert_nothing_but(&node, &archives, &[]);
    remove_all(&mut node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_criu_that_is_killed_leaves_no_network_shut() {
    let machine = Machine::with_busybox();
    let program = machine.temp.path().join("criu");
    let mut node = Node::of(machine, move |daemon| {
        daemon.env("PODWRIGHT_CHECKPOINT_CRIU", program);
    })
    .await;
    let pid = node.machine.temp.path().join("pid");
    stand_in(&node, &format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 1000", pid.display()));
    let (log, id) = counting(&mut node, "p", true, false).await;
    let netns = netns(&mut node, &id).await;
    add_table(&netns, "CRIU-of-the-containers-own");
    add_table(&netns, "firewall");
    let asked = tokio::spawn(asking(&node, &id, node.machine.dir("checkpoints").join("a.tar")));
    let criu = pid_in(&pid).await;
    add_table(&netns, "CRIU-0123456789abcdef");
    podwright::sys::exec::kill(criu, 9).expect("kill");
    let e = asked.await.expect("asked").expect_err("it was killed");
    assert_eq!(e.code(), Code::Internal, "{e}");
    assert_eq!(tables_of(&netns), ["CRIU-of-the-containers-own", "firewall"]);
    goes_on(&log);
    assert_nothing_but(&node, &node.machine.dir("checkpoints"), &[]);
    drop(netns);
    remove_all(&mut node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_container_that_is_removed_meanwhile_stays_removed() {
    let machine = Machine::with_busybox();
    let program = machine.temp.path().join("criu");
    let mut node = Node::of(machine, move |daemon| {
        daemon.env("PODWRIGHT_CHECKPOINT_CRIU", program);
    })
    .await;
    let (pid, archives) = (node.machine.temp.path().join("pid"), node.machine.dir("checkpoints"));
    let text = "while [ $1 != --work-dir ]; do shift; done; until [ ! -d $2 ]; do sleep 0.05; done";
    stand_in(&node, &format!("echo $$ >{0}.new; mv {0}.new {0}; {text}", pid.display()));
    let (_, id) = counting(&mut node, "p", false, false).await;
    let asked = tokio::spawn(asking(&node, &id, archives.join("a.tar")));
    pid_in(&pid).await;
    node.remove_container(&id).await.expect("remove, frozen as it is");
    let e = asked.await.expect("asked").expect_err("it is gone");
    assert_eq!(e.code(), Code::FailedPrecondition, "{e}");
    assert_eq!((names(&node.machine.root().join("containers")).len(), names(&archives).len()), (0, 0));
    remove_all(&mut node).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_that_is_killed_at_it_leaves_no_container_frozen() {
    for point in ["frozen", "dumped", "written"] {
        let criu = programs::criu();
        let (set, fault) = (criu.clone(), format!("kill:engine.checkpoint.{point}"));
        let mut node = Node::of(Machine::with_busybox(), move |daemon| {
            daemon.env("PODWRIGHT_CHECKPOINT_CRIU", set).env("PODWRIGHT_FAULT", fault);
        })
        .await;
        let archives = node.machine.dir("checkpoints");
        let (log, id) = counting(&mut node, "p", true, false).await;
        let location = archives.join("a.tar");
        checkpoint(&mut node, &id, &location, 60).await.expect_err("its daemon dies");
        node.ended();
        assert_eq!(location.exists(), point == "written", "{point}");
        node.start_with(|daemon| {
            daemon.env("PODWRIGHT_CHECKPOINT_CRIU", &criu);
        });
        goes_on(&log);
        assert_nothing_but(&node, &archives, if point == "written" { &["a.tar"] } else { &[] });
        let second = archives.join("second.tar");
        checkpoint(&mut node, &id, &second, 60).await.expect("by the next one");
        std::fs::remove_file(second).expect("remove");
        let _ = std::fs::remove_file(location); // it may not have been made
        remove_all(&mut node).await;
        node.assert_clean().await;
    }
}

#[tokio::test]
async fn a_criu_that_outlives_its_daemon_freezes_nothing_again() {
    let machine = Machine::with_busybox();
    let program = machine.temp.path().join("criu");
    let set = program.clone();
    let mut node = Node::of(machine, move |daemon| {
        daemon.env("PODWRIGHT_CHECKPOINT_CRIU", set);
    })
    .await;
    let pid = node.machine.temp.path().join("pid");
    // As the real one does, which puts back what it found.
    let text = "while [ $1 != --freeze-cgroup ]; do shift; done; sleep 2; echo 1 >$2/cgroup.freeze";
    stand_in(&node, &format!("echo $$ >{0}.new; mv {0}.new {0}; {text}", pid.display()));
    let (log, id) = counting(&mut node, "p", false, false).await;
    let netns = netns(&mut node, &id).await;
    let asked = tokio::spawn(asking(&node, &id, node.machine.dir("checkpoints").join("a.tar")));
    let running = pid_in(&pid).await;
    add_table(&netns, "CRIU-0123456789abcdef");
    node.kill();
    asked.await.expect("asked").expect_err("its daemon is gone");
    node.start_with(|daemon| {
        daemon.env("PODWRIGHT_CHECKPOINT_CRIU", &program);
    });
    let criu = PathBuf::from(format!("/proc/{running}"));
    until(PATIENCE, || if criu.exists() { Err("it is still there".to_owned()) } else { Ok(()) });
    assert_eq!(tables_of(&netns), [""; 0]);
    drop(netns);
    goes_on(&log);
    remove_all(&mut node).await;
    node.assert_clean().await;
}

/// A word that is in a file of the host alone.
const CANARY: &str = "what-only-the-host-may-read";

/// Links to the host, and everything else that a file can be.
fn evil(host: &Path) -> String {
    let host = host.display();
    format!(
        "mkdir -p /evil; cd /evil; ln -s {host}/canary link; ln -s {host} directory; ln -s ../../../../../../../../{host}/canary up; \
         ln -s /proc/1/root/{host}/canary proc; ln -s .. loop; mknod fifo p; mknod null c 1 3; echo one >first; ln first second; \
         echo \"\" >'new\nline'; ln -s {host} upper; ln -s {host} /linked; echo ready; while :; do sleep 1; done"
    )
}

/// Puts one kind of file in the place of another in a neighbour, as fast as a shell can.
fn racer(host: &Path) -> String {
    let host = host.display();
    format!(
        "for p in /proc/[0-9]*; do [ -d $p/root/evil ] && [ ! -d $p/root/racer ] && break; done; cd $p/root/evil && mkdir /racer && echo ready; \
         while :; do echo data >r; rm r; mknod r p; rm r; ln -s {host}/canary r; rm r; mkdir r; echo x >r/f; rm -r r; ln -s {host} r; \
         rm r; mknod r c 1 5; rm r; done"
    )
}

#[tokio::test]
async fn nothing_of_the_host_is_in_an_archive_whatever_a_container_and_its_neighbour_do() {
    let mut node = node(&programs::criu()).await;
    let (archives, host) = (node.machine.dir("checkpoints"), node.machine.dir("host"));
    put(host.join("canary"), CANARY);
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let mut ids = Vec::new();
    for (name, text) in [("c", evil(&host)), ("racer", racer(&host))] {
        let id = node.create(&pod, script(name, &text), sandbox.clone()).await.expect("create");
        node.start_container(&id).await.expect("start");
        let log = PathBuf::from(node.status(&id).await.expect("status").log_path);
        let said = || log_text(&log, "stdout") + &log_text(&log, "stderr");
        until(PATIENCE, || if said().contains("ready") { Ok(()) } else { Err(format!("{name}: {}", said())) });
        ids.push(id);
    }
    let mut whole = 0;
    for number in 0..20 {
        let location = archives.join(format!("{number}.tar"));
        if let Err(e) = checkpoint(&mut node, &ids[0], &location, 120).await {
            // A file that was another one a moment ago may be an error. Never an end of time: nothing that is opened waits.
            assert_eq!(e.code(), Code::Internal, "{e}");
            continue;
        }
        whole += 1;
        let bytes = std::fs::read(&location).expect("read");
        assert!(
            !bytes.windows(CANARY.len()).any(|at| at == CANARY.as_bytes()),
            "archive {number} has a file of the host"
        );
        let mut archive = tar::Archive::new(bytes.as_slice());
        for entry in archive.entries().expect("a tar archive") {
            let entry = entry.expect("an entry");
            let (header, name) = (entry.header(), entry.path().expect("a path").display().to_string());
            let owner = (header.uid().expect("uid"), header.gid().expect("gid"), header.mode().expect("mode"));
            assert_eq!((header.entry_type(), owner), (tar::EntryType::Regular, (0, 0, 0o600)), "{name}");
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            assert!(name.strip_prefix("checkpoint/").unwrap_or(&name).chars().all(plain), "{name:?}");
        }
        let files = unpacked(bytes.as_slice());
        let mut changed = tar::Archive::new(files["rootfs-diff.tar"].as_slice());
        let mut links = BTreeMap::new();
        for entry in changed.entries().expect("a tar archive") {
            let entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."), "{path:?}");
            links.insert(
                path,
                (entry.header().entry_type(), entry.link_name().expect("a link").map(|l| l.into_owned())),
            );
        }
        for link in ["evil/link", "evil/directory", "evil/up", "evil/proc", "evil/upper", "linked"] {
            assert_eq!(links[link].0, tar::EntryType::Symlink, "{link}");
        }
        assert_eq!(links["evil/second"], (tar::EntryType::Link, Some("evil/first".into())));
        assert_eq!((links["evil/fifo"].0, links["evil/null"].0), (tar::EntryType::Fifo, tar::EntryType::Char));
    }
    assert!(whole > 0, "none of them could be written");
    remove_all(&mut node).await;
    node.assert_clean().await;
}

/// What a process is allowed and sees.
const ALLOWED: &str = "b=/bin/busybox; $b grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)' /proc/self/status; $b cut -d' ' -f5,6 /proc/self/mountinfo; \
    $b env | $b sort; umask; $b ls /proc/self/fd /dev; $b cat /proc/self/oom_score_adj; $b hostname; $b ls -d /host; echo end; exec $b sleep 1000";

#[tokio::test]
async fn nothing_of_an_archive_counts_given_as_a_path_or_as_an_image() {
    canary::apart();
    let mut machine = Machine::new();
    let canary = Canary::plant(&machine.dir("canary"));
    let (dir, file) = (machine.dir("canary"), canary.file());
    let busybox = std::fs::read(programs::busybox()).expect("read");
    let tar = Tar::new().dir("bin", 0o755).file_mode("bin/busybox", 0o755, &busybox).symlink("bin/sh", "busybox");
    let base = Layer::plain(&tar);
    let config = serde_json::json!({"Cmd": ["/bin/sh"], "Env": ["A=b"]});
    let plain = Image::with("docker.io/library/plain:latest", std::slice::from_ref(&base), config);
    let evil = evil_checkpoint::image("docker.io/library/evil:latest", &base, &dir, &file);
    let images = machine.dir("images");
    write_dir(&layout(&[plain, evil]), &images);
    machine.import(&images);
    let path = machine.dir("archives").join("evil.tar");
    put(&path, evil_checkpoint::archive(&dir, &file).finish());
    let fifo = machine.dir("archives").join("fifo.tar");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    for path in [&path, &dir] {
        let said = machine.podwright(["import"]).arg(path).output().expect("podwright");
        assert!(!said.status.success(), "{path:?} was imported: {said:?}");
    }
    let mut node = Node::of(machine, |_| {}).await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let of = |name: &str, image: &str| {
        let image = Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() });
        let command = ["/bin/sh", "-c", ALLOWED].map(str::to_owned).to_vec();
        ContainerConfig { image, command, ..script(name, "") }
    };
    for path in [&path, &fifo, &dir, &dir.join("missing.tar")] {
        let e = node.create(&pod, of("r", path.to_str().expect("utf-8")), sandbox.clone()).await.expect_err("a path");
        assert_eq!((e.code(), e.message().contains("checkpoint")), (Code::Unimplemented, true), "{e}");
    }
    let mut told = Vec::new();
    for name in ["plain", "evil"] {
        let id = node.create(&pod, of(name, name), sandbox.clone()).await.expect("create");
        node.start_container(&id).await.expect("start");
        let log = PathBuf::from(node.status(&id).await.expect("status").log_path);
        let said = || log_text(&log, "stdout");
        until(PATIENCE, || if said().ends_with("end\n") { Ok(()) } else { Err(said()) });
        assert!(said().contains("CapEff:") && log_text(&log, "stderr").contains("/host"), "{}", said());
        told.push(said());
        canary.assert_alive();
    }
    assert_eq!(told[0], told[1], "an image that says it is a checkpoint is an image like any other");
    remove_all(&mut node).await;
    canary.assert_alive();
    node.assert_clean().await;
}
