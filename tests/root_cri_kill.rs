//! The daemon killed with -9, at every step boundary of every verb ([`podwright::fault`]), of its start, its recovery and its end, and at
//! random moments under load, while a kubelet repeats what it was not answered: nothing is doubled, lost or left, and no exit code wrong.

mod fixtures;

use fixtures::cri::log_text;
use fixtures::kubelet::{Kubelet, Start, Supervisor};
use fixtures::machine::{GONE_WITHIN, Machine, until};
use podwright::criapi::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How many cases are tried at a time: each mostly waits.
const WORKERS: usize = 4;

/// Points of verbs that no method of the CRI comes to, each with why. What `run` passes of them is in `root_kill.rs`.
const NOT_OF_A_DAEMON: [(&str, &str); 16] = [
    ("engine.adopt.container", "a shim has died: tests/root_shim_death.rs"),
    ("engine.adopt.containers", "a shim has died"),
    ("engine.adopt.hello", "a shim has died"),
    ("engine.adopt.record", "a shim has died"),
    ("engine.adopt.sandbox", "a shim has died"),
    ("engine.checkpoint.dumped", "these containers are not checkpointed: tests/root_checkpoint.rs"),
    ("engine.checkpoint.frozen", "these containers are not checkpointed"),
    ("engine.checkpoint.written", "these containers are not checkpointed"),
    ("engine.release.cgroups", "an instance of run ends"),
    ("engine.release.directories", "an instance of run ends"),
    ("engine.release.directory", "an instance of run ends"),
    ("engine.release.released", "an instance of run ends"),
    ("engine.run_pod.network", "these pods have no network"),
    ("engine.run_pod.joined", "a shim of a daemon is born where it belongs"),
    ("engine.run_pod.pod_cgroup", "a pod's own cgroup is the kubelet's"),
    ("engine.run_pod.scope", "systemd makes no cgroups here: tests/v2_systemd.rs"),
];

/// Counts until it is told to end, and says so: once, for a stop that is asked for again signals again, and ash takes that in the midst of
/// its trap.
const COUNTS: &str = "trap 'trap \"\" TERM; echo end; exit 7' TERM; echo x >> /v/c; i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
const DEAF: &str = "trap '' TERM; echo x >> /v/d; while :; do sleep 0.1; done";
const SHORT: &str = "echo x >> /v/s; echo short; exit 3";

/// The life of two pods by every verb that changes something, each answer beside a second source. `grace`: seconds that a container
/// which does not listen is given.
async fn story(kubelet: &Kubelet, grace: i64) {
    let (volume, logs) = (kubelet.dir.join("volume"), kubelet.dir.join("logs/p"));
    let pod = kubelet.run_pod("p").await;
    let counts = kubelet.create(&pod, "p", kubelet.container("c", &["sh", "-c", COUNTS])).await;
    kubelet.start(&counts).await.expect("start");
    let deaf = kubelet.create(&pod, "p", kubelet.container("d", &["sh", "-c", DEAF])).await;
    kubelet.start(&deaf).await.expect("start");
    let short = kubelet.create(&pod, "p", kubelet.container("s", &["sh", "-c", SHORT])).await;
    let started = kubelet.start(&short).await;
    // It may have ended before it was asked for again.
    assert!(started.is_ok() || started.as_ref().is_err_and(|e| e.message().contains("ended with 3")), "{started:?}");
    let wrong = kubelet.create(&pod, "p", kubelet.container("w", &["/bin/nothing"])).await;
    let refused = kubelet.start(&wrong).await.expect_err("there is no such program");
    assert!(refused.message().contains("/bin/nothing"), "{refused:?}");
    let other = kubelet.run_pod("q").await;
    let in_other =
        kubelet.create(&other, "q", kubelet.container("o", &["sh", "-c", "echo x >> /v/o; sleep 1000"])).await;
    kubelet.start(&in_other).await.expect("start");

    let said = kubelet.exec(&counts, &["sh", "-c", "echo out; echo err >&2; exit 4"], 30).await.expect("exec");
    assert_eq!((said.stdout.as_slice(), said.stderr.as_slice(), said.exit_code), (&b"out\n"[..], &b"err\n"[..], 4));
    kubelet.update(&counts, 512).await;
    let limits = kubelet.status(&counts).await.resources.and_then(|r| r.linux).expect("limits");
    assert_eq!(limits.cpu_shares, 512);
    let (log, first) = (logs.join("c.log"), logs.join("c.log.1"));
    kubelet.rotate(&counts, &log, &first).await;
    assert!(log.exists(), "there at once");

    // They have said what they do with a signal.
    for name in ["c", "d", "o"] {
        kubelet.until(name, || fs::read_to_string(volume.join(name)).is_ok_and(|text| !text.is_empty())).await;
    }
    kubelet.stop(&counts, 30).await;
    kubelet.stop(&deaf, grace).await;
    let code = |status: ContainerStatus| (status.exit_code, status.reason);
    assert_eq!(code(kubelet.exited(&short).await), (3, "Error".to_owned()));
    assert_eq!(code(kubelet.status(&counts).await), (7, "Error".to_owned()));
    assert_eq!(code(kubelet.status(&deaf).await), (137, "Error".to_owned()));
    assert_eq!(code(kubelet.status(&wrong).await), (128, "StartError".to_owned()));
    assert_counted(&[&first, &log]);
    assert_eq!(log_text(&logs.join("s.log"), "stdout"), "short\n");

    kubelet.remove(&counts).await;
    let mut left: Vec<String> = kubelet.containers(&pod).await.into_iter().map(|c| c.id).collect();
    left.sort();
    let mut expected = vec![deaf, short, wrong];
    expected.sort();
    assert_eq!(left, expected);
    kubelet.stop_pod(&pod).await;
    let state = |pods: Vec<PodSandbox>, id: &str| pods.into_iter().find(|p| p.id == id).expect("listed").state();
    assert_eq!(state(kubelet.pods().await, &pod), PodSandboxState::SandboxNotready);
    kubelet.remove_pod(&pod).await;
    assert_eq!(state(kubelet.pods().await, &other), PodSandboxState::SandboxReady, "it has nothing to do with that");
    kubelet.stop_pod(&other).await;
    assert_eq!(code(kubelet.status(&in_other).await), (137, "Error".to_owned()));
    kubelet.remove(&in_other).await;
    kubelet.remove_pod(&other).await;
    assert_eq!(kubelet.pods().await, []);
    assert_eq!(kubelet.containers("").await, []);
    for name in ["c", "d", "s", "o"] {
        assert_eq!(fs::read_to_string(volume.join(name)).expect("it ran"), "x\n", "{name} was started once");
    }
}

/// Every number in its place and the last word behind them: no line was lost, doubled or cut.
fn assert_counted(logs: &[&Path]) {
    let all: String = logs.iter().map(|log| log_text(log, "stdout")).collect();
    let numbers = all.strip_suffix("end\n").unwrap_or_else(|| panic!("its last word is missing: {all:?}"));
    let wanted: String = (0..numbers.lines().count()).map(|n| format!("{n}\n")).collect();
    assert_eq!(numbers, wanted);
}

/// A machine on which a daemon has been: its lock stays.
fn machine() -> Arc<Machine> {
    let mut machine = Machine::with_busybox();
    fs::create_dir_all(machine.state()).expect("mkdir");
    fs::write(machine.state().join("lock"), "").expect("write");
    as_a_daemon_makes_them(&machine);
    machine.remember();
    Arc::new(machine)
}

fn as_a_daemon_makes_them(machine: &Machine) {
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    set(&machine.state(), 0o700);
    set(&machine.state().join("lock"), 0o600);
}

/// Tells the story once, the first daemons started with these faults; how all of them ended.
fn tell(machine: &Arc<Machine>, faults: &[&str]) -> Vec<ExitStatus> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let kubelet_name = format!("kubelet-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    // Only who waits for it has something to see in its grace period.
    let grace =
        i64::from(faults.iter().any(|fault| fault.contains("engine.stop_container") || fault.starts_with("list:")));
    let starts: Vec<Start> = faults.iter().map(|fault| Start::with(fault)).collect();
    let supervisor = Supervisor::new(machine, starts);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async { story(&Kubelet::new(machine, &kubelet_name), grace).await });
    drop(runtime); // and with it the connection, which the daemon waits for
    supervisor.stop()
}

/// The points that the last of these daemons passes, in order.
fn passed(machine: &Arc<Machine>, faults: &[&str]) -> Vec<String> {
    let list = machine.dir("points").join("list");
    let _ = fs::remove_file(&list); // of the time before
    let listing = format!("list:{}", list.display());
    tell(machine, &[faults, &[&listing]].concat());
    machine.assert_as_before();
    let text = fs::read_to_string(list).expect("some were passed");
    text.lines().filter(|point| !point.starts_with("shim.")).map(str::to_owned).collect()
}

/// Passed by what goes on beside the verbs: how often depends on who was quicker.
const BESIDE: [&str; 1] = ["engine.run_pod.spare"];

/// The first and the last pass of each point.
fn first_and_last(points: &[String]) -> Vec<String> {
    let mut passes: BTreeMap<&String, u32> = BTreeMap::new();
    for point in points {
        *passes.entry(point).or_insert(0) += 1;
    }
    let mut cases = Vec::new();
    for (point, times) in passes {
        cases.push(point.clone());
        if times > 1 && !BESIDE.contains(&point.as_str()) {
            cases.push(format!("{point}#{times}"));
        }
    }
    cases
}

/// Tries every case, a few at a time. A worker keeps its machine until something went wrong on it.
fn each(cases: Vec<Vec<String>>, attempt: impl Fn(&Arc<Machine>, &[&str]) + Sync) {
    let (cases, wrong) = (Mutex::new(cases), Mutex::new(Vec::new()));
    let next = || cases.lock().expect("no panic").pop();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut worked_on = machine();
                while let Some(case) = next() {
                    let faults: Vec<&str> = case.iter().map(String::as_str).collect();
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| attempt(&worked_on, &faults))) {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                        wrong.lock().expect("no panic").push(format!("{case:?}: {}", text.unwrap_or_default()));
                        worked_on = machine();
                    }
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().expect("no panic");
    wrong.sort();
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Tells the story with these daemons killed, one after the other, and asserts that they were and that nothing is left.
fn killed(machine: &Arc<Machine>, faults: &[&str]) {
    let ends = tell(machine, faults);
    for (fault, end) in faults.iter().zip(&ends) {
        assert_eq!(end.signal(), Some(9), "{fault}");
    }
    assert_eq!(ends.len(), faults.len() + 1, "{ends:?}");
    assert!(ends.last().is_some_and(ExitStatus::success), "{ends:?}");
    machine.assert_as_before();
}

/// What the source has of points, but for those of others.
fn in_the_source() -> BTreeSet<String> {
    let (mut all, mut below) = (BTreeSet::new(), vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")]);
    while let Some(path) = below.pop() {
        if path.is_dir() {
            below.extend(fs::read_dir(&path).expect("list").flatten().map(|entry| entry.path()));
            continue;
        }
        let text = fs::read_to_string(&path).expect("source");
        all.extend(text.split("fault::point(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    }
    let ours = |point: &String| ["engine.", "daemon.", "cri."].iter().any(|whose| point.starts_with(whose));
    all.into_iter().filter(ours).collect()
}

/// The wrecks that a daemon finds at its start: a pod without pause, a container without a record, one and a pod half removed.
const WRECKS: [&str; 5] = [
    "kill:engine.run_pod.directory#2",
    "kill:engine.run_pod.sandbox_cgroup#2",
    "kill:engine.create_container.writable#2",
    "kill:engine.remove_container.record",
    "kill:engine.remove_pod.record",
];

#[test]
fn a_daemon_killed_at_any_step_boundary_is_followed_by_one_that_goes_on() {
    let first = machine();
    let verbs = passed(&first, &[]);
    let mut cases: Vec<Vec<String>> = first_and_last(&verbs)
        .into_iter()
        .filter(|point| !point.starts_with("daemon.drain."))
        .map(|point| vec![format!("kill:{point}")])
        .collect();
    let mut seen: BTreeSet<String> = verbs.into_iter().collect();
    for wreck in WRECKS {
        let mut recovery = passed(&first, &[wreck]);
        let ready = recovery.iter().position(|point| point == "daemon.start.ready").expect("it became ready");
        recovery.truncate(ready);
        recovery.retain(|point| !point.starts_with("daemon.start."));
        let kills = first_and_last(&recovery).into_iter().map(|point| vec![wreck.to_owned(), format!("kill:{point}")]);
        cases.extend(kills);
        seen.extend(recovery);
    }
    let not_ours: BTreeSet<String> = NOT_OF_A_DAEMON.iter().map(|(point, _)| (*point).to_owned()).collect();
    let source = in_the_source();
    assert!(not_ours.is_subset(&source), "points that are no more: {:?}", not_ours.difference(&source));
    let wanted: BTreeSet<String> = source.difference(&not_ours).cloned().collect();
    assert!(wanted.is_subset(&seen), "points that no verb comes to: {:?}", wanted.difference(&seen));
    assert!(not_ours.is_disjoint(&seen), "points that one does come to: {:?}", not_ours.intersection(&seen));
    eprintln!("{} points, {} cases", wanted.len(), cases.len());
    each(cases, killed);
}

#[test]
fn a_daemon_killed_while_it_ends_is_followed_by_one_that_goes_on() {
    for point in in_the_source().into_iter().filter(|point| point.starts_with("daemon.drain.")) {
        let machine = machine();
        let asked = |supervisor: Supervisor, work: &dyn Fn(&tokio::runtime::Runtime, &Kubelet)| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            let kubelet = runtime.block_on(async { Kubelet::new(&machine, "kubelet") });
            work(&runtime, &kubelet);
            drop((kubelet, runtime));
            supervisor.stop()
        };
        let container = Mutex::new(String::new());
        let ends = asked(Supervisor::new(&machine, [Start::with(&format!("kill:{point}"))]), &|runtime, kubelet| {
            runtime.block_on(async {
                let pod = kubelet.run_pod("p").await;
                let id = kubelet.create(&pod, "p", kubelet.container("c", &["sh", "-c", COUNTS])).await;
                kubelet.start(&id).await.expect("start");
                kubelet.until("c", || kubelet.dir.join("volume/c").exists()).await;
                *container.lock().expect("no panic") = id;
            });
        });
        assert_eq!(ends.iter().map(ExitStatusExt::signal).collect::<Vec<_>>(), [Some(9)], "{point}");
        let ends = asked(Supervisor::new(&machine, []), &|runtime, kubelet| {
            runtime.block_on(async {
                let pod = kubelet.run_pod("p").await;
                let id = container.lock().expect("no panic").clone();
                assert_eq!(kubelet.status(&id).await.state(), ContainerState::ContainerRunning, "{point}");
                kubelet.stop(&id, 30).await;
                assert_eq!(kubelet.status(&id).await.exit_code, 7, "{point}");
                assert_counted(&[&kubelet.dir.join("logs/p/c.log")]);
                kubelet.remove_pod(&pod).await;
            });
        });
        assert!(ends.iter().all(ExitStatus::success), "{point}: {ends:?}");
        machine.assert_as_before();
    }
}

/// Every path below the image store.
fn stored(machine: &Machine) -> BTreeSet<String> {
    let (mut all, mut below) = (BTreeSet::new(), vec![machine.root().join("images")]);
    while let Some(path) = below.pop() {
        below.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        all.insert(path.strip_prefix(machine.root()).expect("below").display().to_string());
    }
    all
}

#[test]
fn a_daemon_killed_while_it_removes_an_image_leaves_nothing_of_it() {
    let remove = |fault: &str| {
        let machine = machine();
        let supervisor = Supervisor::new(&machine, [Start::with(fault)]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let kubelet = Kubelet::new(&machine, "kubelet");
            let images = kubelet.images().await;
            // By its id, as the kubelet does.
            kubelet.remove_image(&images[0].id).await;
            assert_eq!(kubelet.images().await, [], "{fault}");
        });
        drop(runtime);
        (supervisor.stop(), machine)
    };
    let list = tempfile::NamedTempFile::new().expect("a file");
    let (_, clean) = remove(&format!("list:{}", list.path().display()));
    let points = fs::read_to_string(list.path()).expect("some were passed");
    let points: Vec<String> = points.lines().filter(|p| p.starts_with("image.")).map(str::to_owned).collect();
    for wanted in ["image.session.started", "image.remove.unnamed", "image.collect.layer"] {
        assert!(points.iter().any(|point| point == wanted), "{wanted} is not in {points:?}");
    }
    let wanted = stored(&clean);
    for point in first_and_last(&points) {
        let (ends, machine) = remove(&format!("kill:{point}"));
        assert_eq!(ends.iter().map(ExitStatusExt::signal).collect::<Vec<_>>(), [Some(9), None], "{point}");
        until(GONE_WITHIN, || {
            let now = stored(&machine);
            if now == wanted { Ok(()) } else { Err(format!("{point}: {:?}", now.symmetric_difference(&wanted))) }
        });
    }
}

/// Numbers that look random and come again with their seed (xorshift64*, Vigna).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}

/// A number from the environment.
fn given(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// So many kubelets work at a time.
const KUBELETS: usize = 4;
/// The longest life of a daemon that is killed, in milliseconds: some die before they are ready, some in the middle of a second story.
const LONGEST_LIFE_MS: u64 = 700;

/// `PODWRIGHT_KILLS` moments instead of 40; `PODWRIGHT_SEED` for other ones.
#[test]
fn a_daemon_killed_at_random_moments_under_load_loses_nothing() {
    let (kills, seed) = (given("PODWRIGHT_KILLS", 40), given("PODWRIGHT_SEED", 0x5eed));
    eprintln!("PODWRIGHT_KILLS={kills} PODWRIGHT_SEED={seed}");
    let machine = machine();
    let mut dice = Dice(seed);
    let lives: Vec<Duration> = (0..kills).map(|_| Duration::from_millis(dice.below(LONGEST_LIFE_MS))).collect();
    let over = Arc::new(AtomicBool::new(false));
    let done = over.clone();
    let starts = lives.into_iter().map(|life| Start { killed_after: Some(life), ..Start::default() });
    // The last one is not killed: when it is asked for, there were enough.
    let starts = starts.chain(std::iter::once_with(move || {
        done.store(true, Ordering::Relaxed);
        Start::default()
    }));
    let supervisor = Supervisor::new(&machine, starts);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let (stories, retries) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let began = Instant::now();
    runtime.block_on(async {
        let mut kubelets = tokio::task::JoinSet::new();
        for name in 0..KUBELETS {
            let (machine, over, stories, retries) = (machine.clone(), over.clone(), stories.clone(), retries.clone());
            kubelets.spawn(async move {
                // One more when the last daemon lives: it goes on with what the others have left.
                for round in 0.. {
                    let last = over.load(Ordering::Relaxed);
                    let kubelet = Kubelet::new(&machine, &format!("kubelet-{name}-{round}"));
                    story(&kubelet, 0).await;
                    stories.fetch_add(1, Ordering::Relaxed);
                    retries.fetch_add(kubelet.retries.load(Ordering::Relaxed), Ordering::Relaxed);
                    if last {
                        break;
                    }
                }
            });
        }
        kubelets.join_all().await;
    });
    drop(runtime);
    let ends = supervisor.stop();
    let killed = ends.iter().filter(|end| end.signal() == Some(9)).count();
    eprintln!("{killed} kills, {stories:?} stories, {retries:?} retries, {:?}", began.elapsed());
    assert_eq!(u64::try_from(killed).expect("few"), kills, "{ends:?}");
    assert!(ends.last().is_some_and(ExitStatus::success), "{ends:?}");
    machine.assert_as_before();
}
