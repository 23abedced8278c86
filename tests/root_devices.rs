//! The device filter in the kernel: each test has a cgroup (v2, no controllers needed) and a directory of device nodes of its own,
//! and starts shells in that cgroup. The meaning of the rules is tested without root in `launch::devices`.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_spec::runtime::LinuxDeviceCgroup;
use podwright::launch::devices::{Attached, Devices, default_rules, everything};

/// A cgroup of the test's own, and a directory beside it for nodes; both go with it.
struct Cgroup {
    path: PathBuf,
    nodes: tempfile::TempDir,
}

impl Cgroup {
    fn new(test: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc");
        let root = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let path = Path::new(root.expect("a cgroup2 mount")).join(format!("podwright-{test}-{}", std::process::id()));
        fs::create_dir(&path).expect("make a cgroup: root is needed");
        Cgroup { path, nodes: tempfile::tempdir().expect("a directory") }
    }

    fn dir(&self) -> fs::File {
        fs::OpenOptions::new().read(true).custom_flags(0o200_000).open(&self.path).expect("O_DIRECTORY")
    }

    /// Runs a line of shell in the cgroup; its exit code and messages.
    fn sh(&self, line: &str) -> (Option<i32>, String) {
        let line = format!("echo $$ > {}/cgroup.procs && {line}", self.path.display());
        let output = Command::new("/bin/sh")
            .args(["-c", &line])
            .current_dir(self.nodes.path())
            .env("LC_ALL", "C")
            .output()
            .expect("a shell");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn denied(&self, line: &str) {
        let (code, messages) = self.sh(line);
        assert!(code != Some(0) && messages.contains("not permitted"), "{line}: {code:?}, {messages}");
    }

    fn allowed(&self, line: &str) {
        let (code, messages) = self.sh(line);
        assert_eq!((code, messages.as_str()), (Some(0), ""), "{line}");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.path);
        assert!(removed.is_ok() || std::thread::panicking(), "remove {}: {removed:?}", self.path.display());
    }
}

fn rules(json: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_value(json).expect("rules")
}

#[test]
fn the_default_rules_open_the_usual_devices_and_no_other() {
    let cgroup = Cgroup::new("default");
    // /dev/kmsg, which every kernel has: without the filter it opens.
    cgroup.allowed("mknod kmsg c 1 11 && : < kmsg");
    Devices::default().apply(cgroup.dir().as_fd(), &default_rules(), &Attached::default()).expect("attach");
    cgroup.allowed(": < /dev/null > /dev/null && : < /dev/zero && : < /dev/urandom && : < /dev/full");
    cgroup.allowed("mknod zero c 1 5 && : < zero");
    cgroup.denied(": < kmsg");
    cgroup.denied("mknod mem c 1 1 && : < mem");
    cgroup.denied("mknod console c 5 1 && : > console");
    cgroup.denied("mknod loop b 7 0 && : < loop");
}

#[test]
fn rules_are_replaced_not_added() {
    let cgroup = Cgroup::new("replace");
    let mut devices = Devices::default();
    let first = rules(serde_json::json!([{ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw" }]));
    let before = devices.apply(cgroup.dir().as_fd(), &first, &Attached::default()).expect("attach");
    cgroup.denied("mknod zero c 1 5");
    cgroup.denied(": < /dev/zero");
    let second = rules(serde_json::json!([
        { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rm" },
    ]));
    let before = devices.apply(cgroup.dir().as_fd(), &second, &before).expect("replace");
    cgroup.allowed("mknod zero c 1 5 && : < zero");
    cgroup.denied(": > zero");
    let before = devices.apply(cgroup.dir().as_fd(), &second, &before).expect("the same again");
    cgroup.denied(": > zero");
    devices.apply(cgroup.dir().as_fd(), &everything(), &before).expect("detach");
    cgroup.allowed("mknod kmsg c 1 11 && : < kmsg && : > zero");
}

#[test]
fn a_filter_outlives_whoever_attached_it_and_binds_the_cgroups_below() {
    let cgroup = Cgroup::new("outlive");
    {
        let mut devices = Devices::default();
        devices.apply(cgroup.dir().as_fd(), &default_rules(), &Attached::default()).expect("attach");
    }
    let below = cgroup.path.join("below");
    fs::create_dir(&below).expect("a cgroup below");
    let line = format!("echo $$ > {}/cgroup.procs && mknod kmsg c 1 11 && : < kmsg", below.display());
    cgroup.denied(&line);
    fs::remove_dir(below).expect("remove it");
}

#[test]
fn the_verifier_takes_the_longest_list() {
    let cgroup = Cgroup::new("longest");
    let list: Vec<_> = (0..1024)
        .map(|i| serde_json::json!({ "allow": i % 3 != 0, "type": if i % 2 == 0 { "b" } else { "c" }, "major": i, "minor": i, "access": "rw" }))
        .collect();
    let begin = std::time::Instant::now();
    Devices::default().apply(cgroup.dir().as_fd(), &rules(list.into()), &Attached::default()).expect("attach");
    println!("1024 rules: {:?}", begin.elapsed());
    let begin = std::time::Instant::now();
    Devices::default().apply(cgroup.dir().as_fd(), &default_rules(), &Attached::default()).expect("attach");
    println!("default rules, compiled, loaded and attached: {:?}", begin.elapsed());
}
