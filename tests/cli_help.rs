//! The command line itself: help, completions, manual pages, wrong usage, exit codes. No root needed.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

fn podwright(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_podwright")).args(args).output().expect("the binary was built for this test")
}

fn stdout(args: &[&str]) -> String {
    let output = podwright(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

/// The error of a command that must fail with podwright's own exit code and print nothing else.
fn refusal(args: &[&str]) -> String {
    let output = podwright(args);
    assert_eq!(output.status.code(), Some(125), "{args:?}");
    assert_eq!(output.stdout, b"", "{args:?}");
    let text = String::from_utf8(output.stderr).expect("errors are UTF-8");
    text.strip_prefix("podwright: ").unwrap_or_else(|| panic!("{text:?} does not say who speaks")).trim_end().to_owned()
}

/// The names in the list of commands that `--help` prints.
fn commands() -> Vec<String> {
    let help = stdout(&["--help"]);
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A description that goes on is indented further than a name.
    let names = list.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn the_commands_are_those_that_are_promised() {
    let promised = "run check verify pods ps get logs exec attach port-forward cp inspect stats stop rm images pull import save login logout rmi prune daemon doctor \
                    config completions man version";
    assert_eq!(commands(), promised.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn every_command_has_help_with_an_example_that_names_it() {
    for command in commands() {
        let help = stdout(&[&command, "--help"]);
        let examples = help.split("Examples:\n").nth(1).unwrap_or_else(|| panic!("{command} --help has no examples"));
        assert!(examples.contains(&format!("podwright {command}")), "{command}: {examples}");
    }
}

#[test]
fn kubectl_names_mean_the_same_commands() {
    for (alias, command) in [("describe", "inspect"), ("top", "stats"), ("delete", "rm")] {
        assert_eq!(stdout(&[alias, "--help"]), stdout(&[command, "--help"]));
    }
}

/// What a program says to the given input; `None` when it is not installed.
fn filter(program: &str, args: &[&str], input: &str) -> Option<Output> {
    let mut child = Command::new(program);
    let child = child.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.ok()?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("it was started");
    writer.join().expect("no panic").expect("all was read");
    Some(output)
}

#[test]
fn completions_are_accepted_by_their_shells_and_know_every_command() {
    for (shell, start, check) in [
        ("bash", "_podwright() {", Some(("bash", ["-n", "/dev/stdin"]))),
        ("zsh", "#compdef podwright", None),
        ("fish", "# Print an optspec", None),
    ] {
        let script = stdout(&["completions", shell]);
        assert!(script.starts_with(start), "{shell}: {}", &script[..80]);
        for command in commands() {
            assert!(script.contains(&command), "{shell} does not know {command}");
        }
        if let Some((program, args)) = check {
            let output = filter(program, &args, &script).expect("bash is there");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn every_manual_page_has_its_sections_and_renders_without_a_warning() {
    for command in commands() {
        let page = stdout(&["man", &command]);
        for section in [".TH podwright-", ".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", ".SH EXAMPLES"] {
            assert!(page.contains(section), "{command} lacks {section}");
        }
        match filter("groff", &["-man", "-Tutf8", "-ww"], &page) {
            Some(output) => assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}"),
            None => println!("groff is not installed: the page of {command} was not rendered"),
        }
    }
}

#[test]
fn manual_pages_are_written_one_a_command() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    stdout(&["man", "--dir", dir.path().to_str().expect("UTF-8")]);
    let entries = std::fs::read_dir(dir.path()).expect("it is there").map(|e| e.expect("readable").file_name());
    let found: BTreeSet<_> = entries.map(|name| name.into_string().expect("UTF-8")).collect();
    let pages = commands().into_iter().map(|command| format!("podwright-{command}.1"));
    assert_eq!(found, pages.chain(["podwright.1".to_owned()]).collect());
}

#[test]
fn a_wrong_command_line_is_podwrights_own_failure_and_says_what_was_meant() {
    assert_eq!(refusal(&[]), "a command is needed; `podwright --help` lists them");
    assert!(refusal(&["rn"]).starts_with("unrecognized subcommand 'rn'"));
    assert!(refusal(&["ps", "--al"]).contains("a similar argument exists: '--all'"));
    assert!(refusal(&["run"]).contains("<FILE>"));
    assert!(refusal(&["ps", "-o", "jsn"]).contains("'json'"));
    assert_eq!(refusal(&["man", "imprt"]), "there is no command imprt; did you mean import?");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let script = "set -o pipefail; \"$0\" completions bash 2>&1 | head -c 1 >/dev/null; echo ${PIPESTATUS[0]}";
    let output =
        Command::new("bash").args(["-c", script, env!("CARGO_BIN_EXE_podwright")]).output().expect("bash is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a Linux device");
    let output = Command::new(env!("CARGO_BIN_EXE_podwright")).arg("man").stdout(full).output().expect("it was built");
    assert_eq!(output.status.code(), Some(125));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(error, "podwright: write to stdout: ENOSPC (no space left on device)\n");
}

/// The binary as somebody who is not root, from a place that everybody may reach.
fn unprivileged(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let copy = dir.path().join("podwright");
    // cp(1), not fs::copy: a child that another test forks would inherit our writable descriptor, and exec gives ETXTBSY.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_podwright")).arg(&copy).status().expect("cp is there");
    assert!(copied.success());
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("ours");
    let mut command = Command::new(copy);
    let status = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
    if status.contains("\nUid:\t0\t") {
        command.uid(65534).gid(65534);
    }
    command.args(args).current_dir("/").output().expect("everybody may run it")
}

#[test]
fn the_first_line_says_that_root_is_needed() {
    for args in [&["ps"][..], &["run", "pod.yaml"], &["import", "image.tar"], &["pull", "nginx"], &["stop", "web"]] {
        let output = unprivileged(args);
        assert_eq!(output.status.code(), Some(125), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.starts_with("podwright: root is required"), "{text}");
    }
    assert_eq!(unprivileged(&["version"]).status.code(), Some(0));
    assert_eq!(unprivileged(&["config"]).status.code(), Some(0));
}

#[test]
fn doctor_works_for_anybody_and_names_what_is_missing() {
    let output = unprivileged(&["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("-o json is JSON");
    let checks = report["checks"].as_array().expect("a list");
    let root = checks.iter().find(|check| check["check"] == "root").expect("the first question");
    assert_eq!(root["verdict"], "fail");
    for check in checks {
        assert_eq!(check["remedy"].is_null(), check["verdict"] == "ok", "a remedy for all but what is well: {check}");
        assert_ne!(check["why"], "", "{check}");
    }
    let fail = checks.iter().filter(|check| check["verdict"] == "fail").count();
    assert_eq!(report["fail"], fail);
}

#[test]
fn doctor_leaves_nothing_behind() {
    let traces = || {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let mounts: BTreeSet<_> =
            read("/proc/self/mountinfo").lines().filter(|l| l.contains("podwright-probe")).map(str::to_owned).collect();
        let leftovers: Vec<_> =
            ["/proc/fs/upper", "/proc/fs/to"].into_iter().filter(|p| std::fs::exists(p).expect("proc")).collect();
        (mounts, leftovers)
    };
    let before = traces();
    podwright(&["doctor"]);
    assert_eq!(traces(), before);
}
