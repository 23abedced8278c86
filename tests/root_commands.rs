//! The commands that look at pods of a living `podwright run`, or stop it: what they print, and their exit codes.

mod fixtures;

use fixtures::machine::{Machine, PATIENCE, Running, ask, json, pod, script, until};
use fixtures::put;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

/// A pod whose container `c` writes two lines and waits.
fn waiting(machine: &Machine, more: &str) -> Running {
    let text = script("trap 'exit 0' TERM; echo one; echo two; echo bad >&2; while :; do sleep 0.1; done", more);
    let mut run = machine.start(&text, &[]);
    run.until("it has written", || {
        let logs = ask(machine, &["logs", "p"]);
        (logs.stdout.as_str(), logs.stderr.as_str()) == ("one\ntwo\n", "bad\n")
    });
    run
}

#[test]
fn a_pod_is_listed_read_entered_and_stopped_and_nothing_is_left() {
    let machine = Machine::with_busybox();
    ask(&machine, &["ps"]).code(0);
    let run = waiting(&machine, "");

    let pods = json(&machine, &["pods"]);
    let listed = &pods["pods"][0];
    assert_eq!((listed["name"].as_str(), listed["status"].as_str()), (Some("p"), Some("Running")), "{pods}");
    assert_eq!((listed["containersReady"].as_u64(), listed["containersTotal"].as_u64()), (Some(1), Some(1)));
    let containers = json(&machine, &["ps", "p/c"]);
    let id = containers["containers"][0]["id"].as_str().expect("an id");
    assert_eq!(ask(&machine, &["ps", "-q", "--no-trunc"]).stdout, format!("{id}\n"));

    assert_eq!(ask(&machine, &["logs", "p/c"]).stdout, "one\ntwo\n");
    assert_eq!(ask(&machine, &["logs", &id[..6], "--tail", "1"]).stderr, "bad\n", "the last line of all");
    ask(&machine, &["logs", "p", "--previous"]).refused(&["was never restarted"]);

    for (command, code, out) in
        [("exit 7", 7, ""), ("kill -9 $$", 137, ""), ("echo $A; pwd; id -u", 0, "b c\n/tmp\n33\n"), ("cat", 0, "")]
    {
        let flags = ["exec", "-e", "A=b c", "-w", "/tmp", "-u", "33", "p", "--", "sh", "-c", command];
        let ended = ask(&machine, &flags);
        assert_eq!(ended.code(code).stdout, out, "{command}");
    }
    ask(&machine, &["exec", "p", "--", "nothing"]).code(127);
    ask(&machine, &["exec", "p", "--", "/etc"]).code(126);
    ask(&machine, &["exec", "--timeout", "200ms", "p", "--", "sleep", "60"]).code(124);

    assert_eq!(json(&machine, &["stats"])["stats"].as_array().map(Vec::len), Some(2), "the pod and its container");
    ask(&machine, &["rmi", "busybox"]).refused(&["used by a container"]);
    ask(&machine, &["stop", "q"]).refused(&["no pod or container \"q\""]);
    assert_eq!(ask(&machine, &["stop", "p"]).code(0).stdout, "p stopped\n");
    run.wait().code(0);
    assert_eq!(ask(&machine, &["pods"]).stderr, "no pods; `podwright run FILE` runs one\n");
    machine.assert_as_before();
}

#[test]
fn an_exec_that_is_interrupted_or_killed_takes_its_command_along_and_nothing_else() {
    let machine = Machine::with_busybox();
    let run = waiting(&machine, "");
    ask(&machine, &["exec", "p", "--", "sh", "-c", "sleep 1234 >/dev/null 2>&1 &"]).code(0);
    let deaf = "trap '' INT TERM HUP PIPE; (setsid sleep 4321 &); touch /tmp/up; while :; do sleep 0.1; done";
    let count = |argument: &str| {
        let shown = ask(&machine, &["exec", "p", "--", "ps", "-o", "args"]);
        shown.stdout.lines().filter(|line| *line == format!("sleep {argument}")).count()
    };
    for signal in [2, 15, 9] {
        let mut exec = Running::of(machine.podwright(["exec", "p", "--", "sh", "-c", deaf]));
        exec.until("it is up", || ask(&machine, &["exec", "p", "--", "test", "-e", "/tmp/up"]).status.success());
        exec.until("its child runs", || count("4321") == 1);
        exec.signal(signal);
        assert_eq!(exec.wait().status.signal(), Some(signal));
        until(PATIENCE, || match count("4321") {
            0 => Ok(()),
            n => Err(format!("{n} processes of it run on after signal {signal}")),
        });
        ask(&machine, &["exec", "p", "--", "rm", "/tmp/up"]).code(0);
    }
    assert_eq!(count("1234"), 1, "what a finished exec left in the background is the container's");
    ask(&machine, &["stop", "p"]).code(0);
    run.wait().code(0);
    machine.assert_as_before();
}

#[test]
fn verify_finds_what_was_changed_behind_podwrights_back() {
    let machine = Machine::with_busybox();
    let run = waiting(&machine, "resources: {requests: {memory: 8Mi}}");
    // Limits differ where the host cannot enforce them; everything else must not.
    let differing = || -> Vec<String> {
        let checks = json(&machine, &["verify", "p/c"])["checks"].as_array().expect("a list").clone();
        let bad = checks.iter().filter(|c| c["ok"] == false && c["found"] != "not enforced");
        bad.map(|c| c["check"].as_str().expect("text").to_owned()).collect()
    };
    assert_eq!(differing(), [""; 0]);
    let pid = json(&machine, &["ps"])["containers"][0]["pid"].to_string();
    put(format!("/proc/{pid}/oom_score_adj"), "1000");
    let umount = ["-t", &pid, "-m", "/bin/busybox", "umount", "/proc/keys"];
    assert!(Command::new("nsenter").args(umount).status().expect("nsenter is there").success());
    assert_eq!(differing(), ["oom_score_adj", "masked /proc/keys"]);
    ask(&machine, &["verify", "-q", "p"]).code(1);
    ask(&machine, &["rm", "--force", "p"]).code(0);
    run.wait();
    machine.assert_as_before();
}

#[test]
fn inspect_tells_limits_spec_and_the_steps_that_made_a_pod() {
    let machine = Machine::with_busybox();
    let run = waiting(&machine, "resources: {limits: {memory: 64Mi, cpu: 500m}}");
    let container = &json(&machine, &["inspect", "p/c"])["containers"][0];
    let limits = container["limits"].as_array().expect("a list");
    let memory = limits.iter().find(|l| l["file"] == "memory.max").expect("asked for");
    assert_eq!((memory["asked"].as_str(), memory["written"].as_str()), (Some("64Mi"), Some("67108864")));
    assert_eq!(container["spec"]["process"]["args"][0], "sh");
    let of_pod = &json(&machine, &["inspect", "p"])["pods"][0];
    assert_eq!((of_pod["qos"].as_str(), of_pod["ownerPid"].as_u64()), (Some("Guaranteed"), Some(u64::from(run.pid()))));
    let steps = of_pod["steps"].as_array().expect("a list");
    assert!(steps.iter().any(|s| s["step"] == "pod ready"), "{steps:?}");
    assert!(ask(&machine, &["describe", "p"]).stdout.starts_with("pod default/p\n"));
    ask(&machine, &["rm", "p"]).code(0);
    run.wait().code(0);
    machine.assert_as_before();
}

#[test]
fn a_run_with_several_pods_is_stopped_as_a_whole_or_not_at_all() {
    let machine = Machine::with_busybox();
    let one = |name: &str| {
        let spec =
            "  containers: [{name: c, image: busybox, command: [sleep, '1000']}]\n  terminationGracePeriodSeconds: 1\n";
        pod(spec).replace("name: p", &format!("name: {name}"))
    };
    let mut run = machine.start(&format!("{}---\n{}", one("a"), one("b")), &[]);
    run.until("both run", || ask(&machine, &["ps", "-q"]).stdout.lines().count() == 2);
    ask(&machine, &["stop", "a"]).refused(&["several pods", "b"]);
    ask(&machine, &["logs", "c"]).refused(&["no pod or container \"c\""]);
    let stopped = ask(&machine, &["stop", "--grace", "0s", "a", "b"]);
    assert_eq!(stopped.code(0).stdout, "a stopped\nb stopped\n");
    run.wait().code(137);
    machine.assert_as_before();
}

#[test]
fn following_ends_with_the_container_and_shows_its_last_line() {
    let machine = Machine::with_busybox();
    let mut run = machine.start(&script("echo one; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo last", ""), &[]);
    run.until("it has written", || ask(&machine, &["logs", "p"]).stdout == "one\n");
    let mut follower = Running::of(machine.podwright(["logs", "-f", "p"]));
    let files = PathBuf::from(format!("/proc/{}/fd", follower.pid()));
    follower.until("it reads the log", || {
        let open = std::fs::read_dir(&files).into_iter().flatten().flatten();
        open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|file| file.starts_with(machine.root()))
    });
    ask(&machine, &["exec", "p", "--", "touch", "/tmp/go"]).code(0);
    assert_eq!(follower.wait().code(0).stdout, "one\nlast\n");
    run.wait().code(0);
    machine.assert_as_before();
}
