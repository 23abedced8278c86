//! `podwright config` and the settings behind every command: precedence, provenance, and what is refused. No root needed.

use std::process::{Command, Output};

/// The binary with an empty configuration environment and the given additions.
fn podwright(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podwright"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PODWRIGHT_")) {
        command.env_remove(name);
    }
    command.args(args).envs(env.iter().copied()).output().expect("the binary was built for this test")
}

/// The error of a command that must fail with podwright's own exit code and print nothing else.
fn refusal(args: &[&str], env: &[(&str, &str)]) -> String {
    let output = podwright(args, env);
    assert_eq!(output.status.code(), Some(125), "{args:?}");
    assert_eq!(output.stdout, b"", "{args:?}");
    let text = String::from_utf8(output.stderr).expect("errors are UTF-8");
    let text = text.strip_prefix("podwright: ").unwrap_or_else(|| panic!("{text:?} does not say who speaks"));
    text.trim_end().to_owned()
}

/// A directory with a `config.toml` of this text, and the file's path.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("config.toml");
    std::io::Write::write_all(
        &mut std::fs::OpenOptions::new().create_new(true).write(true).open(&path).expect("new"),
        text.as_bytes(),
    )
    .expect("written");
    let path = path.to_str().expect("UTF-8").to_owned();
    (dir, path)
}

fn setting(args: &[&str], env: &[(&str, &str)], key: &str) -> serde_json::Value {
    let output = podwright(args, env);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("-o json is JSON");
    let settings = document["settings"].as_array().expect("a list").iter();
    settings.clone().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("no {key}")).clone()
}

#[test]
fn a_flag_wins_over_the_environment_which_wins_over_the_file_which_wins_over_the_default() {
    let (_dir, path) = file("# ours\n[cgroup]\nroot = \"/from-file\"\n");
    let base = ["config", "-o", "json", "--config", &path];
    let state = |args: &[&str], env: &[(&str, &str)]| setting(args, env, "state");

    assert_eq!(state(&base, &[])["source"]["kind"], "default");
    let env = [("PODWRIGHT_STATE", "/from-env")];
    assert_eq!(state(&base, &env)["value"], "/from-env");
    assert_eq!(state(&base, &env)["source"]["name"], "PODWRIGHT_STATE");
    let flagged = [&base[..], &["--state", "/from-flag"]].concat();
    assert_eq!(state(&flagged, &env)["value"], "/from-flag");
    assert_eq!(state(&flagged, &env)["source"]["name"], "--state");

    let root = setting(&base, &[], "cgroup.root");
    assert_eq!((&root["value"], &root["source"]["line"]), (&"/from-file".into(), &3.into()));
    let root = setting(&base, &[("PODWRIGHT_CGROUP_ROOT", "/from-env")], "cgroup.root");
    assert_eq!(root["value"], "/from-env");
}

#[test]
fn the_table_names_the_line_of_the_file() {
    let (_dir, path) = file("root = \"/srv/podwright\"\n\nlog.level = \"debug\"\n");
    let output = podwright(&["config"], &[("PODWRIGHT_CONFIG", &path)]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let line = text.lines().find(|line| line.starts_with("log.level")).expect("every key is shown");
    assert!(line.contains("debug") && line.contains(&format!("{path}:3")), "{line}");
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_its_line_and_remedy() {
    for (text, expected) in [
        ("\nrot = \"/x\"\n", ":2: unknown key rot; did you mean root?"),
        ("[cgroup]\ndriver = \"systemdd\"\n", ":2: cgroup.driver = \"systemdd\": must be"),
        (
            "[agent]\nmanifests = \"/etc/kubernetes/manifests\"\n",
            ":2: agent.manifests = \"/etc/kubernetes/manifests\": not honoured by this version; remove it",
        ),
        ("[cgroup]\nallow_unenforced = \"yes\"\n", ":2: cgroup.allow_unenforced: is a string, must be true or false"),
        ("root = \"relative\"\n", ":1: root = \"relative\": must be an absolute path"),
        ("root = /x\n", ":1: "),
    ] {
        let (_dir, path) = file(text);
        let error = refusal(&["config", "--config", &path], &[]);
        assert!(error.starts_with(&format!("{path}{expected}")), "{error}");
    }
}

#[test]
fn every_command_refuses_a_wrong_file_before_it_does_anything() {
    let (_dir, path) = file("unknown = 1\n");
    for command in ["ps", "pods", "images", "doctor"] {
        assert!(refusal(&[command], &[("PODWRIGHT_CONFIG", &path)]).contains(":1: unknown key unknown"), "{command}");
    }
    // What works on any machine goes on working: a broken file must not hide the manual.
    assert_eq!(podwright(&["man"], &[("PODWRIGHT_CONFIG", &path)]).status.code(), Some(0));
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let error = refusal(&["config", "--config", "/nonexistent/podwright.toml"], &[]);
    assert_eq!(error, "open /nonexistent/podwright.toml: ENOENT (no such file or directory)");
}

#[test]
fn a_file_without_end_is_not_read_to_its_end() {
    assert!(refusal(&["config", "--config", "/dev/zero"], &[]).contains("larger than 256 KiB"));
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    let error = refusal(&["config"], &[("PODWRIGHT_CGROUP_ROOT", "../../etc")]);
    assert!(
        error.starts_with("environment PODWRIGHT_CGROUP_ROOT: cgroup.root = \"../../etc\": must start with /"),
        "{error}"
    );
    let error = refusal(&["config"], &[("PODWRIGHT_STAET", "/x")]);
    assert_eq!(error, "environment PODWRIGHT_STAET sets nothing; did you mean PODWRIGHT_STATE?");
    let error = refusal(&["config", "--log-level", "wran"], &[]);
    assert!(error.starts_with("flag --log-level: log.level = \"wran\": must be one of off, error, warn"), "{error}");
    assert!(error.ends_with("did you mean warn?"), "{error}");
    let error = refusal(&["config", "--root", "/x", "--state", "/x"], &[]);
    assert!(error.starts_with("root and state are both /x"), "{error}");
}
