//! What the commands for pods and images say before they need root: wrong arguments, and manifests that are checked. No root needed.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Nothing in these tests may make it.
const NOWHERE: &str = "/nonexistent-podwright-test";

/// Runs podwright with directories that are not there, and are not afterwards.
fn podwright(args: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podwright"));
    command.env("PODWRIGHT_ROOT", format!("{NOWHERE}/root")).env("PODWRIGHT_STATE", format!("{NOWHERE}/state"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary was built for this test");
    let mut pipe = child.stdin.take().expect("it is piped");
    let _ = pipe.write_all(stdin.as_bytes()); // a command that refuses its arguments reads nothing
    drop(pipe);
    let output = child.wait_with_output().expect("it was started");
    assert!(!std::fs::exists(NOWHERE).expect("the root can be looked at"), "{args:?} made something");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  restartPolicy: Never
  initContainers:
  - {name: first, image: 'example.com/a:1', command: [prepare]}
  containers:
  - name: app
    image: example.com/b:1
    args: ['--flag', 'two words']
    env: [{name: A, value: b}]
    resources: {limits: {cpu: 500m, memory: 64Mi}}
    securityContext: {runAsUser: 7, capabilities: {drop: [ALL], add: [CHOWN]}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
";

#[test]
fn wrong_arguments_are_refused_with_the_flag_and_what_to_write() {
    for (args, told) in [
        (&["port-forward", "web", "80:0"][..], "port \"80:0\" is not [LOCAL:]PORT"),
        (&["exec", "-e", "=x", "web", "--", "sh"], "--env \"=x\" is not NAME=VALUE"),
        (&["exec", "--timeout", "0", "web", "--", "sh"], "--timeout 0 would end it"),
        (&["run", "--timeout", "0s", "pod.yaml"], "--timeout 0 would end it"),
        (&["run", "--timeout", "5x", "pod.yaml"], "--timeout \"5x\" is no duration; write 90s"),
        (&["exec", "--timeout", "soon", "web", "--", "sh"], "--timeout \"soon\" is no duration; write 90s"),
        (&["exec", "web", "sh"], "unexpected argument 'sh'"),
        (&["logs", "--since", "yesterday", "web"], "--since \"yesterday\" is no duration"),
        (&["logs", "-f", "-p", "web"], "cannot be used with"),
        (&["logs", "--tail", "all", "web"], "'--tail <LINES>'"),
        (&["stop", "--grace", "1x", "web"], "--grace \"1x\" is no duration"),
        (&["stop"], "<POD>..."),
        (&["stats", "--interval", "fast"], "--interval \"fast\" is no duration"),
        (&["import", "--name", "x", "a.tar", "b.tar"], "--name names one image, and there are 2 paths"),
        (&["import", "--name", "Not A Name", "a.tar"], "image reference \"Not A Name\""),
        (&["import", "--platform", "windows", "a.tar"], "is not linux/ARCH"),
        (&["pull", "Not A Name"], "image reference \"Not A Name\""),
        (&["pull", "--platform", "windows", "a"], "is not linux/ARCH"),
        (&["login", "registry.example/team", "-u", "me", "--password-stdin"], "not the name of a registry"),
        (&["login", "-u", "me"], "--password-stdin"),
        (&["get", "services"], "'services'"),
    ] {
        let output = podwright(args, "");
        let error = text(&output.stderr);
        assert!(error.starts_with("podwright: ") && error.contains(told), "{args:?}: {error}");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0), "{args:?}");
    }
}

#[test]
fn a_socket_that_is_named_from_here_is_an_absolute_path_in_the_unit() {
    let output = podwright(&["daemon", "--socket", "pw.sock", "--systemd-unit"], "");
    let here = std::env::current_dir().expect("it is there").join("pw.sock");
    let unit = text(&output.stdout);
    assert!(unit.contains(&format!("--socket {}", here.display())), "{unit}{}", text(&output.stderr));
}

#[test]
fn check_prints_everything_that_a_pod_would_be() {
    let output = podwright(&["check", "-"], POD);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let plan = text(&output.stdout);
    for line in [
        "pod default/web",
        "  starts: first (to its end), then app",
        "    image        example.com/b:1 (not known here)",
        "    command            '<the image'\\''s command>' --flag 'two words'",
        "    capabilities       CHOWN",
        "    user         7",
        "      A=b",
    ] {
        assert!(plan.lines().any(|l| l == line), "{line:?} is not in\n{plan}");
    }
    for start in ["      memory.max        64Mi", "      /data ", "    data  emptyDir  ", "  qos class       Burstable"]
    {
        assert!(plan.lines().any(|l| l.starts_with(start)), "{start:?} is not in\n{plan}");
    }
    assert_eq!(text(&podwright(&["run", "--dry-run", "-"], POD).stdout), plan, "run --dry-run prints the same");
    assert_eq!(podwright(&["check", "-q", "-"], POD).stdout, b"");
}

#[test]
fn check_as_json_has_the_oci_specs_and_no_drawn_ids() {
    let output = podwright(&["check", "-o", "json", "-"], POD);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let pod = &document["pods"][0];
    assert_eq!((pod["uid"].as_str(), pod["qos"].as_str()), (Some("<uid>"), Some("Burstable")));
    let app = &pod["containers"][1];
    assert_eq!(app["spec"]["process"]["capabilities"]["bounding"], serde_json::json!(["CAP_CHOWN"]));
    assert_eq!(app["cgroup"], "/podwright/burstable/pod<uid>/<container>");
    let limit = app["limits"].as_array().expect("a list").iter().find(|l| l["file"] == "memory.max").expect("a limit");
    assert_eq!((limit["asked"].as_str(), limit["written"].as_str()), (Some("64Mi"), Some("67108864")));
    assert!(!text(&output.stdout).contains("00000000"), "an id that stands for none is named");
    assert_eq!(document["errors"], serde_json::json!([]));
}

#[test]
fn what_is_wrong_with_a_manifest_is_a_line_each_with_its_place() {
    let wrong = POD.replace("image: example.com/b:1", "imag: example.com/b:1").replace("kind: Pod", "kind: Pod\nx: 1");
    let output = podwright(&["check", "-"], &wrong);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let error = text(&output.stderr);
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 3, "{error}");
    assert!(lines.iter().all(|line| line.starts_with("<stdin>:") && line.contains(" \u{2014} ")), "{error}");
    assert!(error.contains("spec.containers[0].imag: ") && error.contains("did you mean image?"), "{error}");

    let output = podwright(&["check", "-o", "json", "-"], &wrong);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        (document["errors"][0]["line"].as_u64(), document["errors"][0]["file"].as_str()),
        (Some(3), Some("<stdin>"))
    );
}

#[test]
fn a_manifest_that_is_not_there_is_podwrights_own_failure() {
    let output = podwright(&["check", "/nonexistent/pod.yaml"], "");
    assert_eq!(output.status.code(), Some(125));
    let error = text(&output.stderr);
    assert!(error.starts_with("podwright: open manifest /nonexistent/pod.yaml: ENOENT"), "{error}");
}
