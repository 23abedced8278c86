//! A real shim, driven over its socket as an engine would: sandbox, containers, logs, exits, execs, the death of its owner.

mod shim_client;

use podwright::state::flight::{Flight, Source};
use podwright::state::model::NamespaceMode;
use podwright::state::record::{self, ExitRecord, ExitStatus, ProcessRecord, SandboxRecord};
use podwright::state::spec::SpecText;
use podwright::wire::{Event, FailureKind, Reply, Request};
use shim_client::{PATIENCE, Pod, eventually, populated};
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

const INSTANCE: &str = "0123abcd";

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_podwright"))
}

fn stop(pod: &mut Pod) {
    assert!(matches!(pod.client.call(Request::StopSandbox), Reply::Done));
    assert!(matches!(pod.client.call(Request::Shutdown), Reply::Done));
    assert!(pod.client.closed());
    assert!(pod.shim.wait().expect("wait").success());
    assert!(!populated(&pod.cgroup));
}

#[test]
fn a_container_s_lines_are_in_its_log_and_its_exit_on_disk_before_it_is_told() {
    let mut pod = Pod::up(binary(), None);
    let sandbox: SandboxRecord = record::read(&pod.dir().join("sandbox.json")).expect("read").expect("written");
    assert_eq!(podwright::sys::start_time(sandbox.pause.pid).expect("pause runs"), sandbox.pause.start_time);
    let id = pod.start("echo one; echo two >&2; printf three; exit 3");
    let exit = pod.client.exit(&id);
    assert_eq!(exit.status, ExitStatus::Exited(3));
    let on_disk: Option<ExitRecord> = record::read(&pod.container(&id).join("exit.json")).expect("read");
    assert_eq!(on_disk, Some(exit.clone()));
    let process: ProcessRecord =
        record::read(&pod.container(&id).join("process.json")).expect("read").expect("written");
    assert!(process.started_at_ns <= exit.finished_at_ns);
    let mut lines = pod.logged(&id);
    lines.sort();
    assert_eq!(lines, ["stderr F two", "stdout F one", "stdout P three"]);
    assert!(matches!(pod.client.call(Request::Forget { container: id }), Reply::Done));
    stop(&mut pod);
}

#[test]
fn a_container_starts_without_the_shim_s_signals_and_files() {
    let mut pod = Pod::up(binary(), None);
    let id =
        pod.start("grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l; cat /proc/self/oom_score_adj");
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(0));
    let lines = pod.logged(&id);
    assert_eq!(lines[0], "stdout F SigBlk:\t0000000000000000");
    // 32 and 33 are the C library's own (nptl(7)): it neither ignores nor resets them.
    let ignored = lines[1].strip_prefix("stdout F SigIgn:\t").expect("SigIgn");
    assert_eq!(u64::from_str_radix(ignored, 16).expect("hex") & !(3 << 31), 0);
    assert_eq!(lines[2], "stdout F 4", "0, 1, 2 and the directory being listed");
    stop(&mut pod);
}

#[test]
fn a_signal_reaches_the_first_process_only_and_its_number_is_told() {
    let mut pod = Pod::up(binary(), None);
    let id = pod.start("trap 'echo term; exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    eventually("it is ready", || pod.logged(&id) == ["stdout F ready"]);
    assert!(matches!(pod.client.call(Request::Signal { container: id.clone(), signal: 15 }), Reply::Done));
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(7));
    let id = pod.start("exec sleep 1000");
    let mut second = pod.connect();
    assert!(matches!(second.call(Request::Signal { container: id.clone(), signal: 9 }), Reply::Done));
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Signaled(9));
    assert_eq!(second.exit(&id).status, ExitStatus::Signaled(9), "every connection is told");
    assert!(matches!(second.call(Request::Signal { container: id, signal: 9 }), Reply::Done));
    stop(&mut pod);
}

#[test]
fn a_container_that_cannot_start_has_a_record_that_says_why() {
    let mut pod = Pod::up(binary(), None);
    let (launch, cgroup) = pod.launch(&["/bin/nothing"]);
    let id = launch.container.clone();
    match pod.start_launch(launch, &cgroup).0 {
        Reply::Failed(failure) => assert_eq!(failure.errno, 2, "{}", failure.message),
        other => panic!("{other:?}"),
    }
    let exit: ExitRecord = record::read(&pod.container(&id).join("exit.json")).expect("read").expect("written");
    assert_eq!(exit.status, ExitStatus::StartFailed { errno: 2 });
    assert!(!exit.message.is_empty() && !pod.container(&id).join("process.json").exists());
    fs::remove_dir(pod.cgroup_of(&id)).expect("nothing is left in it");
    stop(&mut pod);
}

#[test]
fn what_a_container_leaves_behind_goes_with_it_though_it_holds_the_pipe() {
    let mut pod = Pod::up(binary(), None);
    for pid in [NamespaceMode::Container, NamespaceMode::Node] {
        let id = pod.start_in(pid, "(setsid sleep 1000 &) ; echo out; exit 0");
        assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(0));
        assert_eq!(pod.logged(&id), ["stdout F out"]);
        assert!(!populated(&pod.cgroup_of(&id)));
        fs::remove_dir(pod.cgroup_of(&id)).expect("nothing is left in it");
    }
    stop(&mut pod);
}

#[test]
fn a_rotated_log_is_written_on_without_a_lost_line() {
    let mut pod = Pod::up(binary(), None);
    // It lives until the last rotation: the log of one that has ended is not opened again.
    let lines = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let id = pod.start(&format!("trap 'exit 0' TERM; {lines}; while :; do sleep 0.05; done"));
    let mut old = Vec::new();
    for n in 0..5 {
        let aside = pod.log(&id).with_extension(n.to_string());
        fs::rename(pod.log(&id), &aside).expect("rotate");
        old.push(aside);
        assert!(matches!(pod.client.call(Request::ReopenLog { container: id.clone() }), Reply::Done));
        eventually("the new file is there", || pod.log(&id).exists());
    }
    old.push(pod.log(&id));
    let text = || old.iter().map(|path| fs::read_to_string(path).expect("read")).collect::<String>();
    eventually("it has written all", || text().lines().count() == 20_000);
    assert!(matches!(pod.client.call(Request::Signal { container: id.clone(), signal: 15 }), Reply::Done));
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(0));
    let text = text();
    assert_eq!(text.lines().count(), 20_000);
    for (n, line) in text.lines().enumerate() {
        assert!(line.ends_with(&format!(" stdout F line {n}")), "{line}");
    }
    stop(&mut pod);
}

#[test]
fn an_exec_s_answer_comes_with_its_first_process_and_background_ones_live_on() {
    let mut pod = Pod::up(binary(), None);
    let id = pod.start("exec sleep 1000");
    let (exec, number, mut output) = pod.exec(&id, "(sleep 1000 &); echo out; exit 5", Duration::ZERO);
    match pod.client.answer(number).0 {
        Reply::Executed(executed) => {
            assert_eq!((executed.status, executed.timed_out), (ExitStatus::Exited(5), false));
        }
        other => panic!("{other:?}"),
    }
    let mut four = [0; 4];
    output.read_exact(&mut four).expect("read");
    assert_eq!(&four, b"out\n");
    let cgroup = pod.cgroup_of(&id).join(exec.to_string());
    assert!(populated(&cgroup));
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).expect("procs");
    podwright::sys::exec::kill(pids.trim().parse().expect("one pid"), 9).expect("kill it");
    eventually("the cgroup goes with the last process", || !cgroup.exists());
    let (exec, number, _output) = pod.exec(&id, "(sleep 1000 &); sleep 1000", Duration::ZERO);
    assert!(matches!(pod.client.call(Request::Kill { container: id.clone() }), Reply::Done));
    assert!(matches!(pod.client.answer(number).0, Reply::Executed(e) if e.status == ExitStatus::Signaled(9)));
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Signaled(9));
    assert!(!pod.cgroup_of(&id).join(exec.to_string()).exists());
    fs::remove_dir(pod.cgroup_of(&id)).expect("nothing is left in it");
    stop(&mut pod);
}

#[test]
fn at_its_deadline_the_whole_tree_of_an_exec_is_killed_and_the_container_lives() {
    let mut pod = Pod::up(binary(), None);
    let id = pod.start("exec sleep 1000");
    let began = Instant::now();
    let (exec, number, mut output) =
        pod.exec(&id, "(setsid sleep 1000 &); trap '' TERM; sleep 1000; sleep 1000", Duration::from_millis(300));
    match pod.client.answer(number).0 {
        Reply::Executed(executed) => {
            assert_eq!((executed.status, executed.timed_out), (ExitStatus::Signaled(9), true));
        }
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < PATIENCE / 2);
    assert_eq!(output.read_to_end(&mut Vec::new()).expect("all writers are gone"), 0);
    eventually("its cgroup goes", || !pod.cgroup_of(&id).join(exec.to_string()).exists());
    assert!(populated(&pod.cgroup_of(&id)));
    let (_, number, mut output) = pod.exec(&id, "echo again", Duration::from_secs(20));
    assert!(matches!(pod.client.answer(number).0, Reply::Executed(e) if e.status == ExitStatus::Exited(0)));
    let mut text = String::new();
    output.read_to_string(&mut text).expect("read");
    assert_eq!(text, "again\n");
    stop(&mut pod);
}

#[test]
fn the_pod_outlives_its_first_engine_and_the_next_one_finds_everything() {
    let mut pod = Pod::up(binary(), None);
    let (running, ended) = (pod.start("exec sleep 1000"), pod.start("exit 4"));
    assert_eq!(pod.client.exit(&ended).status, ExitStatus::Exited(4));
    pod.client = pod.connect(); // the first connection is closed
    match pod.client.call(Request::List) {
        Reply::List { sandbox, containers } => {
            assert!(sandbox.is_some_and(|sandbox| sandbox.exit.is_none()));
            let mut seen: Vec<_> =
                containers.into_iter().map(|c| (c.container, c.exit.map(|exit| exit.status))).collect();
            let mut expected = vec![(running.clone(), None), (ended.clone(), Some(ExitStatus::Exited(4)))];
            seen.sort_by(|a, b| a.0.cmp(&b.0));
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            assert_eq!(seen, expected);
        }
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(pod.client.call(Request::Shutdown), Reply::Failed(f) if f.kind == FailureKind::FailedPrecondition)
    );
    stop(&mut pod);
}

#[test]
fn a_stop_ends_what_runs_tells_it_and_is_answered_when_pause_is_gone() {
    let mut pod = Pod::up(binary(), None);
    let id = pod.start("trap '' TERM; sleep 1000; sleep 1000");
    let number = pod.client.send(Request::StopSandbox, &[]);
    assert!(matches!(pod.client.answer(number).0, Reply::Done));
    assert!(!populated(&pod.cgroup));
    assert!(matches!(pod.client.event(), Event::ContainerExited { container, .. } if container == id));
    assert!(matches!(pod.client.event(), Event::SandboxExited { status: ExitStatus::Signaled(9) }));
    stop(&mut pod);
}

#[test]
fn a_peer_that_talks_nonsense_or_does_not_read_costs_the_others_nothing() {
    let mut pod = Pod::up(binary(), None);
    let raw = |bytes: &[u8]| {
        let mut socket = std::os::unix::net::UnixStream::connect(pod.dir().join("shim.sock")).expect("connect");
        socket.write_all(bytes).expect("write");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        assert_eq!(socket.read(&mut [0; 16]).unwrap_or(0), 0, "it is hung up on");
    };
    raw(&u32::MAX.to_le_bytes());
    raw(b"\x02\0\0\0{}");
    raw(b"\x05\0\0\0\xff\xff\xff\xff\xff");
    let mut silent = pod.connect();
    for _ in 0..200 {
        silent.send(Request::List, &[]);
    }
    let id = pod.start("echo fine");
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(0));
    stop(&mut pod);
}

#[test]
fn the_death_of_the_owner_takes_every_process_of_the_pod_and_the_shim_with_it() {
    let mut pod = Pod::up(binary(), Some(INSTANCE));
    let own = pod.start("(setsid sleep 1000 &); sleep 1000");
    pod.start_in(NamespaceMode::Node, "exec sleep 1000");
    let (_, _, _output) = pod.exec(&own, "sleep 1000", Duration::ZERO);
    let mut other = Pod::up(binary(), Some("89abcdef"));
    let bystander_s = other.start("exec sleep 1000");
    let (bystander, _reader) = std::os::unix::net::UnixStream::pair().expect("pair");
    pod.client = shim_client::Client::new(bystander); // the owner hangs up
    let began = Instant::now();
    pod.shim.wait().expect("wait");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!populated(&pod.cgroup));
    assert!(populated(&other.cgroup_of(&bystander_s)), "nobody else's processes are touched");
    stop(&mut other);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(pod.dir().to_str().expect("utf-8")));
}

#[test]
fn an_owner_that_dies_before_the_sandbox_leaves_no_shim() {
    for say_hello in [false, true] {
        let mut pod = Pod::born(binary(), Some(INSTANCE));
        if say_hello {
            assert!(matches!(pod.client.hello(true), Reply::Hello { .. }));
        }
        let (bystander, _reader) = std::os::unix::net::UnixStream::pair().expect("pair");
        pod.client = shim_client::Client::new(bystander);
        pod.shim.wait().expect("wait");
    }
}

#[test]
fn orphans_of_a_container_in_the_host_s_pid_namespace_leave_no_zombies() {
    let mut pod = Pod::up(binary(), None);
    let id = pod.start_in(
        NamespaceMode::Node,
        "i=0; while [ $i -lt 500 ]; do (sh -c 'true &' &); i=$((i+1)); done; echo all; exec sleep 1000",
    );
    eventually("all have run", || pod.logged(&id) == ["stdout F all"]);
    let children = format!("/proc/{0}/task/{0}/children", pod.shim.id());
    let zombies = || {
        let text = fs::read_to_string(&children).expect("children");
        let is_zombie =
            |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        text.split_whitespace().filter(|pid| is_zombie(pid)).count()
    };
    eventually("they are reaped", || zombies() == 0);
    assert!(matches!(pod.client.call(Request::Kill { container: id.clone() }), Reply::Done));
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Signaled(9));
    stop(&mut pod);
}

#[test]
fn a_terminal_is_logged_as_stdout_and_its_end_is_the_end_of_the_container() {
    let mut pod = Pod::up(binary(), None);
    let (mut launch, cgroup) = pod.launch(&["/bin/busybox", "sh", "-c", "tty >/dev/null && echo terminal"]);
    launch.stdio.tty = true;
    let mut spec = launch.spec.value();
    spec["process"]["terminal"] = true.into();
    launch.spec = SpecText::of(&spec).expect("JSON");
    let id = launch.container.clone();
    let (reply, fds) = pod.start_launch(launch, &cgroup);
    assert!(matches!(reply, Reply::Started(_)), "{reply:?}");
    assert_eq!(fds.len(), 2, "pidfd and the terminal");
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(0));
    let text = fs::read_to_string(pod.log(&id)).expect("read");
    assert!(text.ends_with(" stdout F terminal\r\n"), "{text:?}");
    stop(&mut pod);
}

#[test]
fn input_is_at_its_end_at_once_unless_it_is_to_be_attached() {
    let mut pod = Pod::up(binary(), None);
    let id = pod.start("cat; echo end");
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(0));
    let (mut launch, cgroup) = pod.launch(&["/bin/busybox", "cat"]);
    launch.stdio.stdin = true;
    let id = launch.container.clone();
    assert!(matches!(pod.start_launch(launch, &cgroup).0, Reply::Started(_)));
    let (_, number, _output) = pod.exec(&id, "true", Duration::ZERO);
    assert!(matches!(pod.client.answer(number).0, Reply::Executed(e) if e.status == ExitStatus::Exited(0)));
    assert!(pod.client.events.is_empty(), "it waits for input");
    assert!(matches!(pod.client.call(Request::Kill { container: id.clone() }), Reply::Done));
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Signaled(9));
    stop(&mut pod);
}

#[test]
fn a_log_that_cannot_be_opened_is_a_failed_start_and_no_process() {
    let mut pod = Pod::up(binary(), None);
    let (mut launch, cgroup) = pod.launch(&["/bin/busybox", "true"]);
    launch.stdio.log = Some(pod.dir().join("nowhere/log"));
    let id = launch.container.clone();
    let path = pod.container(&id).join("exit.json");
    match pod.start_launch(launch, &cgroup).0 {
        Reply::Failed(failure) => assert!(failure.message.contains("nowhere/log"), "{}", failure.message),
        other => panic!("{other:?}"),
    }
    let exit: ExitRecord = record::read(&path).expect("read").expect("written");
    assert!(matches!(exit.status, ExitStatus::StartFailed { .. }));
    stop(&mut pod);
}

#[test]
fn a_pause_that_is_killed_is_told() {
    let mut pod = Pod::up(binary(), None);
    let sandbox: SandboxRecord = record::read(&pod.dir().join("sandbox.json")).expect("read").expect("written");
    podwright::sys::exec::kill(sandbox.pause.pid, 9).expect("kill pause");
    assert!(matches!(pod.client.event(), Event::SandboxExited { status: ExitStatus::Signaled(9) }));
    let (launch, cgroup) = pod.launch(&["/bin/busybox", "true"]);
    assert!(
        matches!(pod.start_launch(launch, &cgroup).0, Reply::Failed(f) if f.kind == FailureKind::FailedPrecondition)
    );
    stop(&mut pod);
}

#[test]
fn a_shim_is_not_dumpable_has_its_name_and_holds_nothing_of_its_parent_s() {
    let pod = Pod::up(binary(), None);
    let proc = |file: &str| format!("/proc/{}/{file}", pod.shim.id());
    assert_eq!(fs::read_to_string(proc("comm")).expect("comm"), "podwright-shim\n");
    assert!(fs::read_to_string(proc("cmdline")).expect("cmdline").starts_with("podwright-shim\0"));
    assert_eq!(fs::read_link(proc("cwd")).expect("cwd"), Path::new("/"));
    assert_eq!(fs::read_link(proc("fd/0")).expect("fd 0"), Path::new("/dev/null"));
    let stat = fs::read_to_string(proc("stat")).expect("stat");
    let session = stat.rsplit_once(')').expect("name").1.split_whitespace().nth(3).expect("session").to_owned();
    assert_eq!(session, pod.shim.id().to_string());
    let open = fs::read_dir(proc("fd")).expect("fds").count();
    assert!(open <= 10, "{open} descriptors");
    assert_eq!(fs::read_dir(proc("task")).expect("tasks").count(), 1);
}

#[test]
fn a_root_made_in_advance_is_the_container_s_and_goes_with_what_it_was_made_for() {
    let mut pod = Pod::up(binary(), None);
    // What is attached nowhere is its own root.
    let roots = |pod: &Pod| {
        let files = fs::read_dir(format!("/proc/{}/fd", pod.shim.id())).expect("its files").flatten();
        files.filter(|file| fs::read_link(file.path()).is_ok_and(|to| to == Path::new("/"))).count()
    };
    let prepare = |launch: &podwright::wire::Launch| Request::Prepare {
        container: launch.container.clone(),
        root: launch.root.clone(),
    };
    let run = ["/bin/busybox", "sh", "-c", "echo hello > /written; ls /only-here"];
    assert_eq!(roots(&pod), 0);

    let (launch, cgroup) = pod.launch(&run);
    let (id, upper) = (launch.container.clone(), launch.root.upper.clone());
    assert!(matches!(pod.client.call(prepare(&launch)), Reply::Done));
    assert_eq!(roots(&pod), 1);
    assert!(matches!(pod.start_launch(launch, &cgroup).0, Reply::Started(_)));
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(1));
    assert_eq!(fs::read_to_string(upper.join("written")).expect("written by it"), "hello\n");
    assert!(matches!(pod.client.call(Request::Forget { container: id.clone() }), Reply::Done));
    assert_eq!(roots(&pod), 0);

    // Of another root than it is started with: not used.
    let (launch, cgroup) = pod.launch(&run);
    let id = launch.container.clone();
    let other = pod.dir().join("other");
    fs::create_dir_all(other.join("only-here")).expect("mkdir");
    let layers = vec![pod.dir().join("layer"), other];
    let root = podwright::wire::Root { layers, ..launch.root.clone() };
    assert!(matches!(pod.client.call(Request::Prepare { container: id.clone(), root }), Reply::Done));
    assert!(matches!(pod.start_launch(launch, &cgroup).0, Reply::Started(_)));
    assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(1), "there is nothing that only the other layer has");

    // Forgotten, and of a connection that is gone; what they have left on the disk is in nobody's way.
    for hang_up in [false, true] {
        let (launch, cgroup) = pod.launch(&run);
        let id = launch.container.clone();
        if hang_up {
            let mut second = pod.connect();
            assert!(matches!(second.call(prepare(&launch)), Reply::Done));
        } else {
            assert!(matches!(pod.client.call(prepare(&launch)), Reply::Done));
            assert!(matches!(pod.client.call(Request::Forget { container: id.clone() }), Reply::Done));
        }
        eventually("it is gone", || roots(&pod) == 0);
        assert!(launch.root.work.join("work/incompat/volatile").exists(), "overlayfs marks what may be incomplete");
        assert!(matches!(pod.start_launch(launch, &cgroup).0, Reply::Started(_)), "{hang_up}");
        assert_eq!(pod.client.exit(&id).status, ExitStatus::Exited(1));
    }
    let (mut launch, _cgroup) = pod.launch(&run);
    launch.root.layers.clear();
    assert!(matches!(pod.client.call(prepare(&launch)), Reply::Failed(_)));
    stop(&mut pod);
}

#[test]
fn what_was_done_is_in_the_flight_recorder() {
    let mut pod = Pod::up(binary(), None);
    let id = pod.start("exit 3");
    pod.client.exit(&id);
    let entries = Flight::open(&pod.dir().join("flight"), Source::Engine).expect("open").read().expect("read");
    let steps: Vec<_> = entries.iter().map(|entry| entry.step.as_str()).collect();
    let (start, end) = (format!("start {}", id.short()), format!("{} has ended: Exited(3)", id.short()));
    assert_eq!(steps, ["start pause", &start, &end]);
    assert!(entries[0].took.is_some() && entries.iter().all(|entry| entry.source == Source::Shim));
    stop(&mut pod);
}

/// Every verb once, on a shim that may die at any moment; the container, if it came that far.
fn every_verb(pod: &mut Pod) -> Option<()> {
    let ask = |pod: &mut Pod, request: Request| {
        let number = pod.client.send(request, &[]);
        pod.client.answer_unless_closed(number)
    };
    ask(pod, Request::Hello { versions: podwright::wire::VERSIONS, owner: false })?;
    let number = pod.send_sandbox();
    pod.client.answer_unless_closed(number)?;
    for args in [&["/bin/nothing"][..], &["/bin/busybox", "sh", "-c", "echo out; (sleep 1000 &); exec sleep 1000"][..]]
    {
        let (launch, cgroup) = pod.launch(args);
        let container = launch.container.clone();
        ask(pod, Request::Prepare { container: container.clone(), root: launch.root.clone() })?;
        let number = pod.client.send(Request::Start(launch), &[&cgroup]);
        if !matches!(pod.client.answer_unless_closed(number)?.0, Reply::Started(_)) {
            ask(pod, Request::Forget { container })?;
            continue;
        }
        let (_, number, _output) = pod.exec(&container, "(sleep 1000 &); exit 0", Duration::ZERO);
        pod.client.answer_unless_closed(number)?;
        let (_, number, _output) = pod.exec(&container, "sleep 1000", Duration::from_millis(50));
        pod.client.answer_unless_closed(number)?;
        ask(pod, Request::ReopenLog { container: container.clone() })?;
        // Without a handler the first process of a pid namespace does not get it, pid_namespaces(7).
        ask(pod, Request::Signal { container: container.clone(), signal: 15 })?;
        ask(pod, Request::Kill { container })?;
    }
    ask(pod, Request::StopSandbox)?;
    let ended = match ask(pod, Request::List)?.0 {
        Reply::List { containers, .. } => containers,
        other => panic!("{other:?}"),
    };
    for container in ended {
        ask(pod, Request::Forget { container: container.container })?;
    }
    ask(pod, Request::Shutdown).map(|_| ())
}

/// A fault point is passed between two steps: wherever the shim dies, what is on disk is whole, and every process is in the pod's cgroup,
/// where whoever comes next finds it.
#[test]
fn a_shim_killed_at_any_step_boundary_leaves_whole_records_and_no_stray_process() {
    let points = tempfile::NamedTempFile::new().expect("temp file");
    let mut pod = Pod::born_to(binary(), None, &format!("list:{}", points.path().display()));
    every_verb(&mut pod).expect("it lives");
    pod.shim.wait().expect("wait");
    let text = fs::read_to_string(points.path()).expect("read");
    let passed: std::collections::BTreeSet<_> = text.lines().filter(|point| point.starts_with("shim.")).collect();
    assert!(passed.len() >= 20, "{passed:?}");
    for point in passed {
        let mut pod = Pod::born_to(binary(), None, &format!("kill:{point}"));
        let finished = every_verb(&mut pod).is_some();
        let status = pod.shim.wait().expect("wait");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point} {finished}");
        record::read::<SandboxRecord>(&pod.dir().join("sandbox.json")).expect(point);
        for entry in fs::read_dir(pod.dir()).expect("list").map(|entry| entry.expect("entry").path()) {
            record::read::<ProcessRecord>(&entry.join("process.json")).or_else(not_a_directory).expect(point);
            record::read::<ExitRecord>(&entry.join("exit.json")).or_else(not_a_directory).expect(point);
        }
        pod.kill_all();
        eventually("everything of the pod was in its cgroup", || !populated(&pod.cgroup));
        let strays = processes_below(pod.dir());
        assert!(strays.is_empty(), "{point}: {strays:?}");
    }
}

fn not_a_directory<T>(e: podwright::error::Error) -> podwright::error::Result<Option<T>> {
    if e.to_string().contains("ENOTDIR") { Ok(None) } else { Err(e) }
}

/// Processes that have something of `dir` mounted: those of its containers.
fn processes_below(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("utf-8");
    let pids = fs::read_dir("/proc").expect("proc").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mounted =
        |pid: &String| fs::read_to_string(format!("/proc/{pid}/mountinfo")).is_ok_and(|text| text.contains(dir));
    pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())).filter(mounted).collect()
}
