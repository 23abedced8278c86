//! `podwright run`, `exec`, an update and their shims killed with -9 at every step boundary ([`podwright::fault`]), and many of them side by side:
//! soon nothing is left, or at once when the command itself survives.

mod fixtures;

use fixtures::machine::{Finished, GONE_WITHIN, Machine, Running, ask, json, pids, pod, until};
use podwright::config::CgroupDriver;
use podwright::config::network::NetworkSettings;
use podwright::engine::{Engine, Options, Runtimes};
use podwright::state::model::Resources;
use podwright::state::paths::Paths;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// How many runs are tried at a time: each mostly waits.
const WORKERS: usize = 4;

/// A way through the verbs: a manifest and further arguments.
struct Story {
    manifest: String,
    args: &'static [&'static str],
    /// By SIGTERM, as soon as so many containers have said that they are up.
    stopped_at: usize,
    /// The codes that it ends with when nothing is in its way.
    codes: &'static [i32],
}

/// Init container, volume, a failure and a second attempt, a command that does not exist; it ends by itself.
fn ends_by_itself() -> Story {
    let manifest = pod("  restartPolicy: OnFailure
  initContainers:
  - {name: init, image: busybox, command: [sh, -c, 'echo init'], volumeMounts: [{name: work, mountPath: /scratch}]}
  containers:
  - name: again
    image: busybox
    command: [sh, -c, 'test -e /scratch/been && exit 0; touch /scratch/been; (setsid sleep 1000 &); exit 1']
    volumeMounts: [{name: work, mountPath: /scratch}]
  - {name: other, image: busybox, command: [sh, -c, 'until test -e /scratch/been; do sleep 0.02; done; echo done'], volumeMounts: [{name: work, mountPath: /scratch}]}
  volumes: [{name: work, emptyDir: {}}]
");
    Story { manifest, args: &[], stopped_at: 0, codes: &[0] }
}

/// The same beside a pod on the host's network: an instance of two shims.
fn two_pods() -> Story {
    let one = ends_by_itself();
    let second = one.manifest.replace("name: p}", "name: q}").replace("spec:\n", "spec:\n  hostNetwork: true\n");
    Story { manifest: format!("{}---\n{second}", one.manifest), ..one }
}

/// A command that does not exist, beside one that does.
fn cannot_start() -> Story {
    let manifest = pod("  restartPolicy: Never
  containers:
  - {name: wrong, image: busybox, command: [/bin/nothing]}
  - {name: right, image: busybox, command: [sleep, '0.2']}
");
    Story { manifest, args: &[], stopped_at: 0, codes: &[127] }
}

/// Stopped by the command: one container leaves when asked, one must be killed.
fn is_stopped() -> Story {
    let manifest = pod("  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: polite, image: busybox, command: [sh, -c, 'trap \"exit 0\" TERM; echo up; while :; do sleep 0.02; done']}
  - {name: deaf, image: busybox, command: [sh, -c, 'trap \"\" TERM; echo up; while :; do sleep 1; done']}
");
    // One that is not up may never be, when its shim was killed.
    Story { manifest, args: &["--timeout", "10s"], stopped_at: 2, codes: &[124, 137] }
}

/// How many logs say that their container is up.
fn ups(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .map(|path| match path.is_dir() {
            true => ups(&path),
            false => usize::from(fs::read_to_string(&path).is_ok_and(|text| text.contains(" F up\n"))),
        })
        .sum()
}

impl Story {
    fn tell(&self, machine: &Machine, fault: &str) -> Finished {
        let fault = |command: &mut Command| _ = command.env("PODWRIGHT_FAULT", fault);
        let mut running = machine.start_with(&self.manifest, self.args, fault);
        if self.stopped_at > 0 {
            let logs = machine.root().join("pods");
            if running.until_or_ended("all are up", || ups(&logs) == self.stopped_at) {
                running.signal(15);
            }
        }
        running.wait()
    }

    /// The points that are passed, by who passes them, and how often.
    fn points(&self, machine: &Machine, whose: &str) -> BTreeMap<String, u32> {
        let list = machine.dir("points").join("list");
        self.tell(machine, &format!("list:{}", list.display()));
        machine.assert_as_before();
        let mut points = BTreeMap::new();
        for point in fs::read_to_string(list).expect("some were passed").lines().filter(|p| p.starts_with(whose)) {
            *points.entry(point.to_owned()).or_insert(0) += 1;
        }
        points
    }
}

/// Tries every case, a few at a time. A worker keeps its machine until something was left on it.
fn each(cases: Vec<(usize, String)>, attempt: impl Fn(&Machine, usize, &str) + Sync) {
    let (cases, wrong) = (Mutex::new(cases), Mutex::new(Vec::new()));
    let next = || cases.lock().expect("no panic").pop();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut machine = Machine::with_busybox();
                while let Some((story, point)) = next() {
                    let tried = catch_unwind(AssertUnwindSafe(|| attempt(&machine, story, &point)));
                    if let Err(panic) = tried {
                        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        wrong.lock().expect("no panic").push(format!("{point}: {text}"));
                        machine = Machine::with_busybox();
                    }
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().expect("no panic");
    wrong.sort();
    assert!(wrong.is_empty(), "{} points:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// The first and the last pass of every point of `whose`, each with its story. A point that an earlier story has is not tried twice.
fn all_points(stories: &[Story], whose: &str) -> Vec<(usize, String)> {
    let machine = Machine::with_busybox();
    let mut all: BTreeMap<String, (usize, u32)> = BTreeMap::new();
    for (n, story) in stories.iter().enumerate() {
        for (point, passes) in story.points(&machine, whose) {
            all.entry(point).or_insert((n, passes));
        }
    }
    let mut cases = Vec::new();
    for (point, (n, passes)) in all {
        cases.push((n, point.clone()));
        if passes > 1 {
            cases.push((n, format!("{point}#{passes}")));
        }
    }
    cases
}

#[test]
fn a_run_killed_at_any_step_boundary_leaves_nothing() {
    let stories = [two_pods(), is_stopped()];
    let points = all_points(&stories, "engine.");
    let verbs = [
        "run_pod",
        "create_container",
        "start_container",
        "stop_container",
        "remove_container",
        "stop_pod",
        "remove_pod",
    ];
    for verb in verbs {
        assert!(points.iter().any(|(_, point)| point.contains(verb)), "{verb} is not in {points:?}");
    }
    each(points, |machine, story, point| {
        let ended = stories[story].tell(machine, &format!("kill:{point}"));
        assert_eq!(ended.status.signal(), Some(9), "{ended:?}");
        machine.assert_as_before_within(GONE_WITHIN);
    });
}

#[test]
fn a_run_whose_shim_is_killed_at_any_step_boundary_says_so_and_leaves_nothing() {
    let stories = [ends_by_itself(), cannot_start(), is_stopped()];
    let points = all_points(&stories, "shim.");
    assert!(points.len() >= 15, "{points:?}");
    each(points, |machine, story, point| {
        let ended = stories[story].tell(machine, &format!("kill:{point}"));
        let code = ended.status.code().unwrap_or_else(|| panic!("{ended:?}"));
        let as_ever = stories[story].codes.contains(&code);
        assert!(ended.stderr.contains("shim") || as_ever, "it says nothing of it: {ended:?}");
        machine.assert_as_before();
    });
}

/// A pod that runs until it is told to end.
fn waits() -> Story {
    let manifest = pod("  restartPolicy: Never
  containers:
  - {name: c, image: busybox, command: [sh, -c, 'trap \"exit 0\" TERM; echo up; while :; do sleep 0.02; done']}
");
    Story { manifest, args: &[], stopped_at: 0, codes: &[0] }
}

/// It runs, and takes execs and signals.
fn waiting(machine: &Machine, fault: &str) -> Running {
    let story = waits();
    let fault = |command: &mut Command| _ = command.env("PODWRIGHT_FAULT", fault);
    let mut run = machine.start_with(&story.manifest, story.args, fault);
    run.until("it runs", || ask(machine, &["logs", "p"]).stdout == "up\n");
    run
}

/// One that would run for ever, but for its deadline.
fn exec(machine: &Machine, fault: &str) -> Finished {
    let mut command =
        machine.podwright(["exec", "--timeout", "300ms", "p", "--", "sh", "-c", "(setsid sleep 4321 &); sleep 4321"]);
    command.env("PODWRIGHT_FAULT", fault);
    Running::of(command).wait()
}

/// The points in a list that begin so, each once.
fn listed(list: &Path, whose: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(list).expect("some were passed");
    text.lines().filter(|point| point.starts_with(whose)).map(str::to_owned).collect()
}

/// What a pod is: its container's pid and restarts, the processes in it, its cgroups.
fn condition(machine: &Machine) -> (Value, String, Vec<String>) {
    let container = json(machine, &["ps"])["containers"][0].take();
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let mut inside: Vec<String> = Vec::new();
    let mut below = vec![machine.cgroup_dir()];
    while let Some(dir) = below.pop() {
        inside.extend(fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().map(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            format!("{} {}", dir.display(), command.replace('\0', " "))
        }));
        below.extend(entries(dir).filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    // Its script is sometimes between two sleeps: one runs, is a copy of the shell still, or has no command any more.
    inside.retain(|process| !process.ends_with(" sleep 0.02 ") && process.trim_end().contains(' '));
    inside.sort();
    inside.dedup();
    let path = container["cgroup"].as_str().expect("text").trim_start_matches('/').to_owned();
    let mut execs: Vec<String> = entries(fixtures::pod::cgroup_root().join(path))
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.starts_with("exec-"))
        .collect();
    execs.extend(inside);
    (container["pid"].clone(), container["state"].to_string(), execs)
}

#[test]
fn an_exec_killed_at_any_step_boundary_leaves_the_pod_as_it_was() {
    let machine = Machine::with_busybox();
    let run = waiting(&machine, "");
    let list = machine.dir("points").join("list");
    exec(&machine, &format!("list:{}", list.display())).code(124);
    let points = listed(&list, "engine.exec.");
    assert_eq!(
        points.iter().map(String::as_str).collect::<Vec<_>>(),
        ["engine.exec.answered", "engine.exec.asked", "engine.exec.sent"]
    );
    // The cgroup of one that was killed goes when all of it is dead, which is after the answer.
    until(GONE_WITHIN, || match condition(&machine) {
        now if now.2.iter().any(|line| line.starts_with("exec-")) => Err(format!("{now:?}")),
        _ => Ok(()),
    });
    let before = condition(&machine);
    for point in points {
        let ended = exec(&machine, &format!("kill:{point}"));
        assert_eq!(ended.status.signal(), Some(9), "{point}: {ended:?}");
        until(GONE_WITHIN, || {
            let now = condition(&machine);
            if now == before { Ok(()) } else { Err(format!("{point}: {now:?}, before: {before:?}")) }
        });
        ask(&machine, &["exec", "p", "--", "true"]).code(0);
    }
    ask(&machine, &["stop", "p"]).code(0);
    run.wait().code(0);
    machine.assert_as_before();
}

#[test]
fn an_exec_whose_shim_is_killed_at_any_step_boundary_says_so_and_nothing_is_left() {
    let machine = Machine::with_busybox();
    let list = machine.dir("points").join("list");
    let run = waiting(&machine, &format!("list:{}", list.display()));
    exec(&machine, "").code(124);
    ask(&machine, &["stop", "p"]).code(0);
    run.wait().code(0);
    let points = listed(&list, "shim.exec.");
    assert_eq!(points.len(), 4, "{points:?}");
    each(points.into_iter().map(|point| (0, point)).collect(), |machine, _, point| {
        let run = waiting(machine, &format!("kill:{point}"));
        let before = json(machine, &["ps"])["containers"][0]["pid"].take();
        exec(machine, "").refused(&["shim is gone"]);
        // The pod goes on under another shim; what the exec had begun is gone.
        until(GONE_WITHIN, || {
            let (pid, _, execs) = condition(machine);
            let left = execs.iter().any(|line| line.starts_with("exec-") || line.contains("4321"));
            if pid == before && !left { Ok(()) } else { Err(format!("{point}: {execs:?}")) }
        });
        ask(machine, &["exec", "p", "--", "true"]).code(0);
        ask(machine, &["stop", "p"]).code(0);
        let ended = run.wait();
        ended.code(0);
        assert!(ended.stderr.contains("shim"), "it says nothing of it: {ended:?}");
        machine.assert_as_before();
    });
}

/// The other process of the test below, which is killed: changes the limits of all that its instance runs.
fn update(paths: &Paths, cgroup_root: String) {
    let options = Options {
        paths: paths.clone(),
        cgroup_root,
        cgroup_driver: CgroupDriver::Cgroupfs,
        allow_unenforced: true,
        node_name: String::new(),
        network: NetworkSettings::default(),
        owner: false,
        runtimes: Runtimes::new(),
        cdi_dirs: Vec::new(),
        selinux: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let engine = Engine::open(options).expect("engine");
        assert!(engine.observe().await.expect("pods").is_empty());
        for container in engine.list_containers() {
            let resources = Resources { cpu_quota_us: 50_000, ..container.record.config.resources.clone() };
            engine.update_container(&container.record.id, resources).await.expect("update");
        }
    });
}

#[test]
fn an_update_killed_at_any_step_boundary_leaves_the_pod_as_it_was_and_may_be_repeated() {
    const INSTANCE: &str = "PODWRIGHT_TEST_INSTANCE";
    if let Ok(instance) = std::env::var(INSTANCE) {
        let path = |name: &str| PathBuf::from(std::env::var_os(name).expect("aimed"));
        let paths = Paths { root: path("PODWRIGHT_ROOT"), state: path("PODWRIGHT_STATE"), instance: None };
        let cgroup_root = std::env::var("PODWRIGHT_CGROUP_ROOT").expect("aimed");
        return update(&paths.of_instance(instance.parse().expect("an instance")), cgroup_root);
    }
    let machine = Machine::with_busybox();
    let run = waiting(&machine, "");
    let instance = fs::read_dir(machine.state().join("run")).expect("instances").flatten().next().expect("one");
    let updated = |fault: &str| {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        machine.aim(&mut command);
        let own = "an_update_killed_at_any_step_boundary_leaves_the_pod_as_it_was_and_may_be_repeated";
        command.args(["--exact", own]).env(INSTANCE, instance.file_name()).env("PODWRIGHT_FAULT", fault);
        Running::of(command).wait()
    };
    let list = machine.dir("points").join("list");
    updated(&format!("list:{}", list.display())).code(0);
    let points = listed(&list, "engine.update_container.");
    assert_eq!(points.len(), 2, "{points:?}");
    let before = condition(&machine);
    for point in points {
        let ended = updated(&format!("kill:{point}"));
        assert_eq!(ended.status.signal(), Some(9), "{point}: {ended:?}");
        assert_eq!(condition(&machine), before, "{point}");
        updated("").code(0);
        ask(&machine, &["exec", "p", "--", "true"]).code(0);
    }
    ask(&machine, &["stop", "p"]).code(0);
    run.wait().code(0);
    machine.assert_as_before();
}

#[test]
fn twenty_runs_of_one_file_go_on_side_by_side() {
    let machine = Machine::with_busybox();
    let story = ends_by_itself();
    let file = machine.manifest(&story.manifest);
    let runs: Vec<Running> = (0..20)
        .map(|_| {
            let mut command = machine.podwright(["run"]);
            command.arg(&file);
            Running::of(command)
        })
        .collect();
    for run in runs {
        let ended = run.wait();
        ended.code(0);
        let mut lines: Vec<_> = ended.stdout.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["init  | init", "other | done"]);
    }
    machine.assert_as_before();
}

#[test]
fn what_a_killed_run_and_its_killed_shim_leave_the_next_command_sweeps() {
    let machine = Machine::with_busybox();
    let ended = is_stopped().tell(&machine, "kill:shim.sweep.killed");
    assert_ne!(ended.status.code(), None, "the shim's fault point is not the command's");
    machine.assert_as_before();
    let mut running = machine.start_with(&is_stopped().manifest, &[], |command| {
        command.env("PODWRIGHT_FAULT", "kill:shim.sweep.killed");
    });
    let logs = machine.root().join("pods");
    running.until("a container runs", || {
        logs.exists() && fs::read_dir(machine.root().join("containers")).is_ok_and(|d| d.count() == 2)
    });
    running.signal(9);
    assert_eq!(running.wait().status.signal(), Some(9));
    // While its shim lives it sweeps, and it dies over that.
    let state = machine.state().to_string_lossy().into_owned();
    let shims = || {
        let text = |pid: &u32, name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let is = |pid: &u32| {
            text(pid, "comm") == b"podwright-shim\n" && String::from_utf8_lossy(&text(pid, "cmdline")).contains(&state)
        };
        pids().filter(is).count()
    };
    until(GONE_WITHIN, || if shims() == 0 { Ok(()) } else { Err("its shim lives".to_owned()) });
    let pruned = machine.podwright(["prune"]).output().expect("podwright");
    assert!(pruned.status.success(), "{}", String::from_utf8_lossy(&pruned.stderr));
    machine.assert_as_before_within(GONE_WITHIN);
}
