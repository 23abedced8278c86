//! `podwright run`, the binary, on the real kernel: exit codes, output, order, restarts, sharing, confinement. After each test
//! the machine is as it was before.

mod fixtures;

use fixtures::machine::{Machine, PATIENCE, ask, pod, probe_dir, script, until};
use fixtures::pod::{section, status};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// A manifest with these containers (`name: script`), restarted never.
fn containers(list: &str, of: &[(&str, &str)]) -> String {
    let items = of.iter().map(|(name, script)| {
        format!("  - name: {name}\n    image: busybox\n    command: [sh, -c, {script:?}]\n    volumeMounts: [{{name: work, mountPath: /scratch}}]\n")
    });
    format!("  {list}:\n{}", items.collect::<String>())
}

fn pod_of(init: &[(&str, &str)], apps: &[(&str, &str)], more: &str) -> String {
    let init = if init.is_empty() { String::new() } else { containers("initContainers", init) };
    let volume = "  volumes: [{name: work, emptyDir: {}}]\n";
    pod(&format!("{more}{init}{}{volume}", containers("containers", apps)))
}

const NEVER: &str = "  restartPolicy: Never\n";

#[test]
fn output_and_exit_code_are_the_command_s() {
    let machine = Machine::with_busybox();
    let ended = machine.run(&script("echo out; echo err >&2; printf unended", ""));
    ended.code(0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\nunended", "err\n"));
    let ended = machine.run(&script("exit 7", ""));
    ended.code(7);
    assert_eq!(ended.stderr, "podwright: container c ended with 7 (Error)\n");
    let ended = machine.run_with(&script("echo out; exit 3", ""), &["--quiet"]);
    ended.code(3);
    assert_eq!(ended.stdout, "");
    machine.assert_as_before();
}

#[test]
fn of_a_job_one_pod_of_its_template_is_run_when_that_is_asked_for() {
    let machine = Machine::with_busybox();
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: sum}\nspec:\n  completions: 3\n  template:\n    spec:\n      \
               restartPolicy: Never\n      containers: [{name: c, image: busybox, command: [sh, -c, 'echo $((1+2)) $(hostname)']}]\n";
    machine.run(job).refused(&["Job", "--template"]);
    assert_eq!(machine.run_with(job, &["--template"]).code(0).stdout, "3 sum\n");
    machine.assert_as_before();
}

#[test]
fn a_pod_that_asks_for_nothing_runs_on_any_host() {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    assert_eq!(machine.run(&script("echo out", "")).code(0).stdout, "out\n");
    machine.assert_as_before();
}

#[test]
fn a_command_that_cannot_run_is_126_or_127_and_says_so() {
    let machine = Machine::with_busybox();
    let command = |path: &str| {
        pod(&format!("  restartPolicy: Never\n  containers:\n  - {{name: c, image: busybox, command: [{path}]}}\n"))
    };
    for (path, code) in [("/bin/nothing", 127), ("nothing", 127), ("/etc/passwd", 126), ("/etc", 126)] {
        let ended = machine.run(&command(path));
        ended.code(code);
        assert!(ended.stderr.contains("container c ended with 128 (StartError): "), "{}", ended.stderr);
        assert!(ended.stderr.contains(path), "{}", ended.stderr);
        machine.assert_as_before();
    }
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    let machine = Machine::with_busybox();
    for signal in [9, 15] {
        let shared = "  shareProcessNamespace: true\n";
        machine.run(&(script(&format!("kill -{signal} $$$$; sleep 1000"), "") + shared)).code(128 + signal);
    }
    machine.assert_as_before();
}

#[test]
fn lines_of_several_containers_have_their_names_before_them() {
    let machine = Machine::with_busybox();
    let ended = machine.run(&pod_of(
        &[("prepare", "echo 0")],
        &[("a", "echo 1; echo 2 >&2"), ("longer", "echo 3; exit 4")],
        NEVER,
    ));
    ended.code(4);
    let mut lines: Vec<_> = ended.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["a       | 1", "longer  | 3", "prepare | 0"]);
    assert!(ended.stderr.lines().any(|line| line == "a       | 2"), "{}", ended.stderr);
    machine.assert_as_before();
}

#[test]
fn init_containers_run_one_after_another_and_before_all_others() {
    let machine = Machine::with_busybox();
    let slow =
        "test ! -e /scratch/running; touch /scratch/running; sleep 0.3; rm /scratch/running; echo $0 >> /scratch/order";
    let ended = machine.run(&pod_of(
        &[("one", &slow.replace("$0", "one")), ("two", &slow.replace("$0", "two"))],
        &[("app", "cat /scratch/order; ls /scratch")],
        NEVER,
    ));
    ended.code(0);
    assert_eq!(ended.stdout, "app | one\napp | two\napp | order\n");
    machine.assert_as_before();
}

#[test]
fn a_failing_init_container_means_that_no_app_ever_existed() {
    let machine = Machine::with_busybox();
    let told = machine.dir("told");
    let manifest = pod_of(
        &[("first", "exit 0"), ("fails", "exit 9"), ("third", "touch /scratch/third")],
        &[("app", "touch /scratch/app"), ("other", "touch /scratch/other")],
        NEVER,
    );
    let manifest = manifest.replace("emptyDir: {}", &format!("hostPath: {{path: {}}}", told.display()));
    let ended = machine.run(&manifest);
    ended.code(9);
    assert_eq!(fs::read_dir(&told).expect("list").count(), 0, "nothing after it ran");
    machine.assert_as_before();
}

#[test]
fn a_sidecar_that_cannot_start_holds_the_app_back() {
    let machine = Machine::with_busybox();
    let told = machine.dir("told");
    let sidecar = "  initContainers:\n  - {name: s, image: busybox, restartPolicy: Always, command: [/bin/nothing]}\n";
    let manifest = pod_of(&[], &[("app", "touch /scratch/app")], &format!("{NEVER}{sidecar}"));
    let manifest = manifest.replace("emptyDir: {}", &format!("hostPath: {{path: {}}}", told.display()));
    let mut running = machine.start(&manifest, &[]);
    running.until("it is tried again, for it could not start", || {
        let listed = ask(&machine, &["ps", "-a", "p", "-o", "json"]).stdout;
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap_or_default();
        listed["containers"].as_array().is_some_and(|all| all.iter().any(|c| c["attempt"].as_u64() > Some(0)))
    });
    running.signal(SIGTERM);
    let ended = running.wait();
    assert!(ended.stderr.contains("container s ended with 128 (StartError): "), "{}", ended.stderr);
    assert_eq!(fs::read_dir(&told).expect("list").count(), 0, "nothing after it ran");
    machine.assert_as_before();
}

#[test]
fn a_container_is_started_again_only_when_its_policy_says_so() {
    let machine = Machine::with_busybox();
    let second_time_ok = "test -e /scratch/been && echo again && exit 0; touch /scratch/been; echo first; exit 5";
    let ended = machine.run(&pod_of(&[], &[("c", second_time_ok)], "  restartPolicy: OnFailure\n"));
    ended.code(0);
    assert_eq!(ended.stdout, "first\nagain\n");
    let ended = machine.run(&pod_of(&[], &[("c", second_time_ok)], NEVER));
    ended.code(5);
    assert_eq!(ended.stdout, "first\n");
    let ended =
        machine.run_with(&pod_of(&[], &[("c", "echo x >> /scratch/n; wc -l < /scratch/n")], ""), &["--timeout", "10s"]);
    ended.code(124);
    assert!(ended.stdout.contains('1') && ended.stderr.contains("container c is started again in 10 s"), "{ended:?}");
    machine.assert_as_before();
}

#[test]
fn two_containers_that_wait_for_each_other_at_fifos_both_end() {
    let machine = Machine::with_busybox();
    let ended = machine.run(&pod_of(
        &[("make", "mkfifo /scratch/a /scratch/b")],
        &[("left", "echo l > /scratch/a; cat /scratch/b"), ("right", "read x < /scratch/a; echo r$x > /scratch/b")],
        NEVER,
    ));
    ended.code(0);
    assert_eq!(ended.stdout, "left  | rl\n");
    machine.assert_as_before();
}

#[test]
fn namespaces_are_the_pod_s_or_the_host_s() {
    let machine = Machine::with_busybox();
    let kinds = ["net", "ipc", "uts", "pid", "mnt", "cgroup"];
    let of_host = kinds.map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).expect("ns").display().to_string());
    let look = "for n in net ipc uts pid mnt cgroup; do readlink /proc/self/ns/$n; done";
    let shared_with_host = |fields: &str| {
        let ended = machine.run(&(script(look, "") + fields));
        ended.code(0);
        let seen: Vec<_> = ended.stdout.lines().collect();
        assert_eq!(seen.len(), kinds.len(), "{seen:?}");
        kinds
            .iter()
            .zip(seen)
            .zip(&of_host)
            .filter(|((_, seen), host)| seen == host)
            .map(|((k, _), _)| *k)
            .collect::<Vec<_>>()
    };
    assert_eq!(shared_with_host(""), Vec::<&str>::new());
    assert_eq!(shared_with_host("  hostNetwork: true\n"), ["net", "uts"]);
    assert_eq!(shared_with_host("  hostIPC: true\n"), ["ipc"]);
    assert_eq!(shared_with_host("  hostPID: true\n"), ["pid"]);
    machine.assert_as_before();
}

#[test]
fn containers_of_a_pod_see_each_other_s_processes_only_when_they_share_them() {
    let machine = Machine::with_busybox();
    let both = [
        ("a", "touch /scratch/a; until test -e /scratch/done; do sleep 0.05; done"),
        (
            "b",
            "until test -e /scratch/a; do sleep 0.05; done; grep -l a; grep -hc /scratch/done /proc/[0-9]*/cmdline | sort -u; touch /scratch/done",
        ),
    ];
    let both = [
        both[0],
        (
            both[1].0,
            "until test -e /scratch/a; do sleep 0.05; done; cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l; touch /scratch/done",
        ),
    ];
    let ended = machine.run(&pod_of(&[], &both, &format!("{NEVER}  shareProcessNamespace: true\n")));
    ended.code(0);
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_ne!(lines[0], "b | sh", "the first process is pause");
    assert!(lines[1].trim_start_matches("b | ").parse::<u32>().expect("a number") >= 4, "{lines:?}");
    let ended = machine.run(&pod_of(&[], &both, NEVER));
    assert_eq!(ended.stdout.lines().next(), Some("b | sh"), "{ended:?}");
    machine.assert_as_before();
}

#[test]
fn a_host_path_that_is_read_only_is_so_with_all_below_it() {
    let machine = Machine::with_busybox();
    let dir = machine.dir("data");
    fs::write(dir.join("file"), "of the host\n").expect("write");
    let manifest = script(
        "cat /ro/file; echo x > /ro/file; echo y > /rw/new; mount -o remount,rw /ro",
        "volumeMounts:\n- {name: v, mountPath: /ro, readOnly: true}\n- {name: v, mountPath: /rw}",
    ) + &format!("  volumes: [{{name: v, hostPath: {{path: {}, type: Directory}}}}]\n", dir.display());
    let ended = machine.run(&manifest);
    assert_eq!(ended.stdout, "of the host\n");
    assert!(ended.stderr.contains("can't create /ro/file: Read-only file system"), "{}", ended.stderr);
    assert_eq!(fs::read_to_string(dir.join("file")).expect("read"), "of the host\n");
    assert_eq!(fs::read_to_string(dir.join("new")).expect("read"), "y\n");
    machine.assert_as_before();
}

#[test]
fn places_that_an_image_lacks_are_made_for_every_user() {
    let machine = Machine::with_busybox();
    let look = "umask; cd /made/a/b && touch here && stat -c %a /made /made/a /wd /wd/c && cd /wd/c";
    for user in ["", "  hostUsers: false\n"] {
        let fields = "securityContext: {runAsUser: 1000, runAsGroup: 1000}\nworkingDir: /wd/c\n\
                      volumeMounts: [{name: v, mountPath: /made/a/b}]";
        let ended = machine.run(&(script(look, fields) + "  volumes: [{name: v, emptyDir: {}}]\n" + user));
        assert_eq!(ended.code(0).stdout, "0022\n755\n755\n755\n755\n", "{user:?}");
    }
    machine.assert_as_before();
}

#[test]
fn the_environment_is_expanded_as_kubernetes_does() {
    let machine = Machine::with_busybox();
    let more = "args: [\"$(B)\", \"$$(B)\", \"$(NONE)\"]
env:
- {name: A, value: one}
- {name: B, value: \"$(A)-two\"}
- {name: C, value: \"$(LATER) $$(A)\"}
- {name: LATER, value: x}
- {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
resources: {limits: {cpu: 250m}}";
    let ended = machine.run(&script("echo \"$B|$C|$NAME|$CPU|$0 $1 $2|$HOSTNAME|$PATH\"", more));
    ended.code(0);
    assert_eq!(
        ended.stdout,
        "one-two|$(LATER) $(A)|p|250|one-two $(B) $(NONE)|p|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    machine.assert_as_before();
}

/// What PROBE-IN prints in a container with these fields.
fn probe(machine: &Machine, pod_fields: &str, container_fields: &str) -> String {
    let dir = probe_dir(machine);
    let fields: String = container_fields.lines().map(|line| format!("    {line}\n")).collect();
    let ended = machine.run(&pod(&format!(
        "{NEVER}{pod_fields}  containers:
  - name: c
    image: busybox
    command: [/probe/probe, /new-file, /etc/passwd]
    volumeMounts: [{{name: probe, mountPath: /probe, readOnly: true}}]
{fields}  volumes: [{{name: probe, hostPath: {{path: {}}}}}]
",
        dir.display()
    )));
    ended.code(0);
    machine.assert_as_before();
    ended.stdout
}

/// The lines of /proc/self/status that say what a process may do, in one string.
fn powers(text: &str) -> String {
    let keys = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    keys.map(|key| format!("{key} {}", status(text, key))).join("\n")
}

const NO_CAPABILITIES: &str = "0000000000000000";

#[test]
fn a_container_that_asks_for_nothing_is_confined_as_in_every_runtime() {
    let machine = Machine::with_busybox();
    let text = probe(&machine, "", "");
    let default = "00000000a80425fb";
    assert_eq!(
        powers(&text),
        format!(
            "Uid 0 0 0 0\nGid 0 0 0 0\nGroups 0\nCapInh {NO_CAPABILITIES}\nCapPrm {default}\nCapEff {default}\n\
             CapBnd {default}\nCapAmb {NO_CAPABILITIES}\nNoNewPrivs 0\nSeccomp 2"
        )
    );
    assert_eq!(section(&text, "fd").lines().map(|l| &l[..1]).collect::<String>(), "012");
    assert_eq!(section(&text, "cwd"), "/");
    assert_eq!(section(&text, "cgroup").lines().last(), Some("0::/"));
    assert_eq!(section(&text, "path /etc/passwd").lines().last(), Some("writable"));
    assert_eq!(section(&text, "hostname"), "p");
    assert_eq!(section(&text, "pid"), "1");
}

#[test]
fn a_container_has_the_user_groups_and_capabilities_that_it_asks_for() {
    let machine = Machine::with_busybox();
    let text = probe(
        &machine,
        "  securityContext: {runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [4000, 5000], fsGroup: 6000, seccompProfile: {type: Unconfined}}\n",
        "securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}",
    );
    let one = "0000000000000400"; // CAP_NET_BIND_SERVICE, capability.h
    assert_eq!(
        powers(&text),
        format!(
            "Uid 1000 1000 1000 1000\nGid 3000 3000 3000 3000\nGroups 3000 4000 5000 6000\nCapInh {NO_CAPABILITIES}\n\
             CapPrm {NO_CAPABILITIES}\nCapEff {NO_CAPABILITIES}\nCapBnd {one}\nCapAmb {NO_CAPABILITIES}\nNoNewPrivs 1\nSeccomp 0"
        )
    );
    let root = section(&text, "mountinfo").lines().next().expect("root").to_owned();
    assert!(root.split(' ').nth(5).expect("options").split(',').any(|option| option == "ro"), "{root}");
    assert!(section(&text, "path /new-file").ends_with("(os error 2)"), "{text}");
}

#[test]
fn a_container_s_own_security_context_wins_over_the_pod_s() {
    let machine = Machine::with_busybox();
    let text = probe(
        &machine,
        "  securityContext: {runAsUser: 1000, runAsNonRoot: true, seccompProfile: {type: Unconfined}}\n",
        "securityContext: {runAsUser: 1001, seccompProfile: {type: RuntimeDefault}, privileged: false}",
    );
    assert_eq!(status(&text, "Uid"), "1001 1001 1001 1001");
    assert_eq!((status(&text, "Gid"), status(&text, "Groups")), ("0 0 0 0".into(), "0".into()));
    assert_eq!(status(&text, "Seccomp"), "2");
    assert_eq!(status(&text, "CapEff"), NO_CAPABILITIES);
}

#[test]
fn an_image_that_would_run_as_root_is_refused_where_root_is() {
    let machine = Machine::with_busybox();
    let ended = machine.run(&script("echo ran", "securityContext: {runAsNonRoot: true}"));
    assert_ne!(ended.status.code(), Some(0));
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("runAsNonRoot") || ended.stderr.contains("root"), "{}", ended.stderr);
    machine.assert_as_before();
}

#[test]
fn a_privileged_container_has_every_capability_that_podwright_has() {
    let machine = Machine::with_busybox();
    let text = probe(&machine, "", "securityContext: {privileged: true}");
    let own = fs::read_to_string("/proc/self/status").expect("status");
    let bounding = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("CapBnd").trim();
    assert_eq!((status(&text, "CapEff").as_str(), status(&text, "Seccomp").as_str()), (bounding, "0"));
}

/// A container that says so in its log, and what it does at SIGTERM.
fn waits(at_term: &str, grace: u32) -> String {
    script(&format!("trap '{at_term}' TERM; echo up; while :; do sleep 0.05; done"), "")
        + &format!("  terminationGracePeriodSeconds: {grace}\n")
}

/// Whether some log of the machine has a line.
fn logged(dir: &Path, line: &str) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| match path.is_dir() {
        true => logged(&path, line),
        false => fs::read_to_string(&path).is_ok_and(|text| text.lines().any(|l| l.ends_with(&format!(" F {line}")))),
    })
}

fn up(machine: &Machine, manifest: &str, args: &[&str]) -> fixtures::machine::Running {
    let mut running = machine.start(manifest, args);
    let logs = machine.root().join("pods");
    running.until("the container is up", || logged(&logs, "up"));
    running
}

#[test]
fn ctrl_c_stops_gracefully_and_is_130() {
    let machine = Machine::with_busybox();
    let running = up(&machine, &waits("echo stopping; exit 0", 30), &[]);
    running.signal(SIGINT);
    let ended = running.wait();
    ended.code(130);
    assert_eq!(ended.stdout, "up\nstopping\n");
    machine.assert_as_before();
}

#[test]
fn sigterm_stops_gracefully_with_the_container_s_code() {
    let machine = Machine::with_busybox();
    let running = up(&machine, &waits("exit 6", 30), &[]);
    running.signal(SIGTERM);
    running.wait().code(6);
    machine.assert_as_before();
}

#[test]
fn a_second_ctrl_c_kills_at_once() {
    let machine = Machine::with_busybox();
    let running = up(&machine, &waits("echo not yet", 3600), &[]);
    running.signal(SIGINT);
    until(PATIENCE, || if logged(&machine.root().join("pods"), "not yet") { Ok(()) } else { Err("no SIGTERM".into()) });
    running.signal(SIGINT);
    running.wait().code(130); // long before the hour is over
    machine.assert_as_before();
}

#[test]
fn a_second_ctrl_c_kills_what_is_only_being_started_too() {
    let machine = Machine::with_busybox();
    let names: Vec<_> = (0..30).map(|n| format!("c{n}")).collect();
    let deaf: Vec<_> = names.iter().map(|name| (name.as_str(), "trap '' TERM; echo up; sleep 3600")).collect();
    let running = up(&machine, &pod_of(&[], &deaf, "  terminationGracePeriodSeconds: 3600\n"), &[]);
    running.signal(SIGINT);
    running.signal(SIGTERM); // as a second one, which two SIGINT at once may not be
    running.wait().code(130);
    machine.assert_as_before();
}

/// `run` as a shell with this disposition of SIGHUP starts it, whatever that of these tests is.
fn up_with_hangup(machine: &Machine, disposition: &str, manifest: &str) -> fixtures::machine::Running {
    let mut command = std::process::Command::new("env");
    machine.aim(&mut command);
    command.arg(disposition).arg(fixtures::machine::binary()).args(&machine.globals);
    command.arg("run").arg(machine.manifest(manifest));
    let mut running = fixtures::machine::Running::of(command);
    let logs = machine.root().join("pods");
    running.until("the container is up", || logged(&logs, "up"));
    running
}

#[test]
fn a_terminal_that_is_closed_stops_gracefully_and_is_129() {
    let machine = Machine::with_busybox();
    let running = up_with_hangup(&machine, "--default-signal=HUP", &waits("echo stopping; sleep 1; exit 0", 30));
    running.signal(SIGHUP);
    running.signal(SIGHUP); // the kernel's and the shell's
    let ended = running.wait();
    ended.code(129);
    assert_eq!(ended.stdout, "up\nstopping\n");
    machine.assert_as_before();
}

#[test]
fn a_run_that_is_to_outlive_its_terminal_does() {
    let machine = Machine::with_busybox();
    let running = up_with_hangup(&machine, "--ignore-signal=HUP", &waits("exit 6", 30));
    running.signal(SIGHUP);
    running.signal(SIGTERM);
    running.wait().code(6);
    machine.assert_as_before();
}

/// `run` with a stdout that nobody reads.
fn unread(machine: &Machine, manifest: &str) -> std::process::Child {
    let mut command = machine.podwright(["run"]);
    command.arg(machine.manifest(manifest)).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    command.spawn().expect("podwright")
}

/// Its exit code after Ctrl-C.
fn interrupted(mut child: std::process::Child) -> Option<i32> {
    podwright::sys::exec::kill(child.id(), SIGINT).expect("kill");
    let mut ended = None;
    until(PATIENCE, || {
        ended = child.try_wait().expect("wait");
        if ended.is_some() { Ok(()) } else { Err("it hangs after Ctrl-C".to_owned()) }
    });
    ended.and_then(|status| status.code())
}

#[test]
fn output_that_nobody_reads_holds_up_neither_restarts_nor_ctrl_c() {
    let machine = Machine::with_busybox();
    let told = machine.dir("told");
    let host_path =
        |manifest: String| manifest.replace("emptyDir: {}", &format!("hostPath: {{path: {}}}", told.display()));
    // More than a pipe holds.
    let chatty = "trap 'exit 0' TERM; seq 1 100000; touch /scratch/written; while :; do sleep 0.05; done";
    let child = unread(
        &machine,
        &host_path(pod_of(&[], &[("c", chatty), ("other", "exit 1")], "  restartPolicy: OnFailure\n")),
    );
    until(PATIENCE, || {
        let listed = ask(&machine, &["ps", "-a", "p", "-o", "json"]).stdout;
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap_or_default();
        let all = listed["containers"].as_array().cloned().unwrap_or_default();
        let again = |c: &serde_json::Value| c["name"] == "other" && c["attempt"].as_u64() > Some(0);
        if told.join("written").exists() && all.iter().any(again) { Ok(()) } else { Err(listed.to_string()) }
    });
    assert_eq!(interrupted(child), Some(130));
    machine.assert_as_before();

    // And when the pod has ended by itself, and only its output is left.
    let child = unread(&machine, &host_path(pod_of(&[], &[("c", "seq 1 100000; touch /scratch/all")], NEVER)));
    until(PATIENCE, || {
        let there = ask(&machine, &["pods", "-q"]).stdout;
        if told.join("all").exists() && there.is_empty() { Ok(()) } else { Err(there) }
    });
    assert_eq!(interrupted(child), Some(130));
    machine.assert_as_before();
}

#[test]
fn following_a_log_ends_with_a_pod_whose_run_was_killed() {
    let machine = Machine::with_busybox();
    let running = up(&machine, &waits("exit 0", 30), &[]);
    let mut follower = fixtures::machine::Running::of(machine.podwright(["logs", "-f", "p"]));
    let fds = Path::new("/proc").join(follower.pid().to_string()).join("fd");
    follower.until("it follows", || {
        let open = fs::read_dir(&fds).into_iter().flatten().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path.ends_with("0.log"))
    });
    running.signal(SIGKILL);
    assert_eq!(follower.wait().code(0).stdout, "up\n");
    running.wait();
    machine.assert_as_before_within(fixtures::machine::GONE_WITHIN);
}

#[test]
fn a_timeout_stops_with_the_grace_period_and_is_124() {
    let machine = Machine::with_busybox();
    // Long enough to have a trap by then; side by side.
    const TIMEOUT: [&str; 2] = ["--timeout", "10s"];
    let began = Instant::now();
    let polite = machine.start(&waits("echo bye; exit 0", 30), &TIMEOUT);
    let deaf = machine.start(&waits("echo no", 2).replace("name: p}", "name: q}"), &TIMEOUT);
    let ended = polite.wait();
    ended.code(124);
    assert!(began.elapsed() >= Duration::from_secs(10));
    assert_eq!(ended.stdout, "up\nbye\n");
    let ended = deaf.wait();
    ended.code(124);
    assert!(ended.stderr.contains("137"), "the grace period is over: {}", ended.stderr);
    machine.assert_as_before();
}

#[test]
fn a_pod_on_its_own_network_has_a_loopback_and_nothing_else() {
    let machine = Machine::with_busybox();
    let ended = machine.run(&script(
        "echo served > /tmp/page; (nc -l -p 8080 < /tmp/page &); until nc 127.0.0.1 8080 </dev/null; do sleep 0.05; done 2>/dev/null; ls /sys/class/net",
        "",
    ));
    ended.code(0);
    assert_eq!(ended.stdout, "served\nlo\n");
    machine.assert_as_before();
}

#[test]
fn standard_input_is_a_manifest_with_several_pods() {
    let machine = Machine::with_busybox();
    let list = script("echo one", "") + "---\n" + &script("echo two; exit 2", "").replace("name: p}", "name: q}");
    let mut command = machine.podwright(["run", "-"]);
    command.stdin(fs::File::open(machine.manifest(&list)).expect("open"));
    let ended = fixtures::machine::Running::of(command).wait();
    ended.code(2);
    let mut lines: Vec<_> = ended.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["c | one", "c | two"]);
    machine.assert_as_before();
}

/// What PROBE-IN prints in an exec.
fn exec_probe(machine: &Machine) -> String {
    let mut command = machine.podwright(["exec", "p", "--", "/probe/probe"]);
    let done = command.output().expect("podwright");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("utf-8")
}

#[test]
fn an_exec_has_exactly_the_container_s_powers_and_environment() {
    let machine = Machine::with_busybox();
    let dir = probe_dir(&machine);
    let contexts = [
        "{}",
        "{runAsUser: 1000, runAsGroup: 3000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}",
        "{runAsUser: 7, capabilities: {add: [NET_ADMIN]}, seccompProfile: {type: Unconfined}}",
        "{privileged: true}",
    ];
    for context in contexts {
        let manifest = pod(&format!(
            "{NEVER}  securityContext: {{supplementalGroups: [4000]}}\n  terminationGracePeriodSeconds: 0\n  containers:
  - name: c
    image: busybox
    command: [sh, -c, '/probe/probe; echo up; while :; do sleep 0.05; done']
    workingDir: /tmp
    env: [{{name: A, value: b}}]
    securityContext: {context}
    volumeMounts: [{{name: probe, mountPath: /probe, readOnly: true}}]
  volumes: [{{name: probe, hostPath: {{path: {}}}}}]
",
            dir.display()
        ));
        let running = up(&machine, &manifest, &[]);
        let of_exec = exec_probe(&machine);
        running.signal(SIGINT);
        running.signal(SIGINT);
        let of_start = running.wait().code(130).stdout.clone();
        assert_eq!(powers(&of_start), powers(&of_exec), "{context}");
        for same in ["cwd", "ns", "limits", "oom_score_adj"] {
            assert_eq!(section(&of_start, same), section(&of_exec, same), "{context}: {same}");
        }
        for variable in ["A=b", "HOSTNAME=p"] {
            assert!(section(&of_exec, "env").lines().any(|line| line == variable), "{context}: {of_exec}");
        }
        assert_eq!(section(&of_exec, "fd").lines().count(), 3, "{context}: {of_exec}");
        machine.assert_as_before();
    }
}
