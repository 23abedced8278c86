//! `podwright run` on a host whose cgroup v2 has its controllers: limits are what the kernel says they are, or the pod is refused.
//! Run with hack/vm. The table itself is tested in tests/v2_limits.rs.

mod fixtures;

use fixtures::machine::{GONE_WITHIN, Machine, Running, binary, script};
use podwright::sys::ns::{NsFlags, unshare};
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// A machine on which nothing unenforced is allowed.
fn strict() -> Machine {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    machine
}

/// A container that prints its own limits, which are the root of its cgroup namespace.
fn limited(limits: &str) -> String {
    script(
        // Only what the shell does itself: with a thousandth of a processor another program takes seconds to start.
        "cd /sys/fs/cgroup; read c < cpu.max; read m < memory.max; read o < memory.oom.group; echo cpu $c; echo memory $m; echo oom $o",
        &format!("resources: {{limits: {limits}}}"),
    )
}

#[test]
fn quantities_are_enforced_as_the_kernel_rounds_them() {
    let machine = strict();
    for (limits, expected) in [
        ("{cpu: 500m, memory: 100M}", "cpu 50000 100000\nmemory 99999744\noom 1\n"),
        ("{cpu: 1m, memory: 1G}", "cpu 1000 100000\nmemory 999997440\noom 1\n"),
        ("{cpu: 2, memory: 128Mi}", "cpu 200000 100000\nmemory 134217728\noom 1\n"),
    ] {
        let ended = machine.run(&limited(limits));
        assert_eq!(ended.code(0).stdout, expected, "{limits}");
    }
    machine.assert_as_before();
}

#[test]
fn a_limit_is_shown_as_asked_written_read_back_and_effective() {
    let machine = strict();
    let manifest = script("exec sleep 1000", "resources: {limits: {cpu: 1m, memory: 100M}}")
        + "  terminationGracePeriodSeconds: 1\n";
    let mut running = machine.start(&manifest, &[]);
    let ask = |verb: &[&str]| machine.podwright(verb.iter().copied()).output().expect("podwright");
    running.until("the container runs", || String::from_utf8_lossy(&ask(&["ps"]).stdout).contains("Running"));
    let inspected = ask(&["inspect", "p", "-o", "json"]);
    let text = String::from_utf8_lossy(&inspected.stdout);
    let document: Value = serde_json::from_str(&text).expect("JSON");
    for (file, kernel) in [("memory.max", "99999744"), ("cpu.max", "1000 100000")] {
        let row = find(&document, file).unwrap_or_else(|| panic!("no {file} in {text}"));
        assert!(row.to_string().contains(kernel), "{file}: {row}");
    }
    let verified = ask(&["verify", "p"]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
    running.signal(15);
    running.wait().code(137);
    machine.assert_as_before();
}

/// A container that takes all that it gets, which is a thousandth of a processor.
fn slowest() -> String {
    script("while :; do :; done", "resources: {limits: {cpu: 1m}}")
}

#[test]
fn the_way_to_a_program_is_not_throttled() {
    let machine = strict();
    let mut running = machine.start(&slowest(), &[]);
    let mut counts = None;
    running.until("the container runs", || {
        counts = throttled(&machine.cgroup_dir());
        counts.is_some()
    });
    let (usage_us, periods) = counts.expect("just now");
    // A period for each millisecond is what the quota allows; what was used beyond that was used on the way.
    assert!(usage_us > periods * 1250, "{usage_us} us in {periods} throttled periods");
    running.signal(9);
    running.wait();
    machine.assert_as_before_within(GONE_WITHIN);
}

/// Microseconds used by the first cgroup below `dir` that has been throttled and has a process that is not podwright's, and in how many
/// periods it was.
fn throttled(dir: &std::path::Path) -> Option<(u64, u64)> {
    let below = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let here = || {
        let stat = fs::read_to_string(dir.join("cpu.stat")).ok()?;
        let field = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let procs = fs::read_to_string(dir.join("cgroup.procs")).ok()?;
        let program = fs::read_to_string(format!("/proc/{}/cmdline", procs.lines().next()?)).ok()?;
        let counts = (field("usage_usec")?, field("nr_throttled")?);
        (program.starts_with("sh\0") && counts.1 > 0).then_some(counts)
    };
    here().or_else(|| below.into_iter().find_map(|path| throttled(&path)))
}

#[test]
fn a_run_of_the_slowest_pod_that_is_killed_at_any_moment_is_soon_gone() {
    std::thread::scope(|scope| {
        for seconds in [1, 3, 8] {
            scope.spawn(move || {
                let machine = strict();
                let began = Instant::now();
                let mut running = machine.start(&slowest(), &[]);
                running.until("its moment", || began.elapsed() >= Duration::from_secs(seconds));
                running.signal(9);
                running.wait();
                machine.assert_as_before_within(GONE_WITHIN);
            });
        }
    });
}

/// The first object that speaks of a file.
fn find<'a>(value: &'a Value, file: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) if map.values().any(|v| v == file) => Some(value),
        Value::Object(map) => map.values().find_map(|v| find(v, file)),
        Value::Array(list) => list.iter().find_map(|v| find(v, file)),
        _ => None,
    }
}

#[test]
fn a_container_over_its_memory_limit_is_killed_and_its_neighbour_lives() {
    let machine = strict();
    let ended = machine.run(&fixtures::machine::pod(
        "  restartPolicy: Never
  containers:
  - {name: greedy, image: busybox, command: [sh, -c, 'tail /dev/zero'], resources: {limits: {memory: 16Mi}}}
  - {name: modest, image: busybox, command: [sh, -c, 'sleep 1; echo alive'], resources: {limits: {memory: 16Mi}}}
",
    ));
    ended.code(137);
    assert!(ended.stderr.contains("container greedy ended with 137 (OOMKilled)"), "{}", ended.stderr);
    assert_eq!(ended.stdout, "modest | alive\n");
    machine.assert_as_before();
}

/// Not a test by itself: the start of a container that was not given the memory controller. It is in its cgroup already, and runs
/// a script in namespaces of its own.
#[test]
fn child_in_a_container() {
    let Ok(script) = std::env::var("TEST_SCRIPT") else { return };
    unshare(NsFlags::CGROUP.with(NsFlags::MOUNT)).expect("unshare");
    let enter = "mount --make-rprivate / && umount /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && cd /sys/fs/cgroup \
                 && mkdir -p init && echo $PPID > init/cgroup.procs && echo $$ > init/cgroup.procs && exec \"$0\" \"$@\"";
    let status = Command::new("sh").args(["-c", enter, "sh", "-c", &script]).status().expect("sh");
    assert!(status.success(), "{status}");
}

#[test]
fn in_a_container_without_the_memory_controller_its_limit_is_refused_and_others_are_enforced_when_that_is_allowed() {
    let machine = strict();
    let outer = fixtures::pod::cgroup_root().join(format!("outer-{}", std::process::id()));
    fs::create_dir(&outer).expect("mkdir");
    fs::write(fixtures::pod::cgroup_root().join("cgroup.subtree_control"), "+cpu +memory +pids").expect("enable");
    fs::write(outer.join("cgroup.subtree_control"), "+cpu +pids").expect("enable all but memory");
    let in_container = |name: &str, flags: &str, manifest: &str| {
        let inner = outer.join(name);
        fs::create_dir(&inner).expect("mkdir");
        let script =
            format!("{} run {flags} {}; echo code $?; ls", binary().display(), machine.manifest(manifest).display());
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", inner.display());
        let mut command = Command::new("sh");
        let own = std::env::current_exe().expect("own path");
        command.args(["-c", &join]).arg(own).args(["--exact", "child_in_a_container", "--nocapture"]);
        machine.aim(&mut command);
        command.env("TEST_SCRIPT", script);
        let ended = Running::of(command).wait();
        fs::remove_dir(inner.join("init")).and_then(|()| fs::remove_dir(&inner)).expect("nothing is in it");
        ended
    };
    let refused = in_container("a", "", &limited("{memory: 128Mi}"));
    assert!(refused.stdout.contains("code 125"), "{refused:?}");
    for word in ["memory.max", "128Mi", "cgroup.controllers", "outside of it", "+memory", "cgroup.subtree_control"] {
        assert!(refused.stderr.contains(word), "{word:?}: {}", refused.stderr);
    }
    let script = script("cat /sys/fs/cgroup/cpu.max", "resources: {limits: {cpu: 250m}}");
    let ran = in_container("b", "--allow-unenforced-limits", &script);
    assert!(ran.stdout.contains("25000 100000\n") && ran.stdout.contains("code 0"), "{ran:?}");
    assert!(!ran.stdout.contains("\npw-"), "its own cgroup is gone: {ran:?}");
    machine.assert_as_before();
    fs::remove_dir(&outer).expect("rmdir");
}
