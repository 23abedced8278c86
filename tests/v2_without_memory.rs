//! A host whose kernel was booted with cgroup_disable=memory. This test needs one and fails elsewhere:
//! `hack/vm --append cgroup_disable=memory`.

mod cgroup_area;
mod fixtures;

use cgroup_area::Area;
use fixtures::machine::{Machine, ask, json, script};
use podwright::cgroup::{apply, limits};
use podwright::error::Kind;
use podwright::state::model::Resources;

#[test]
fn a_memory_limit_is_refused_naming_the_file_and_the_boot_argument() {
    let area = Area::new();
    let has = area.host.controllers().expect("controllers");
    assert!(has.contains("cpu") && !has.contains("memory"), "cgroup v2 here has {has:?}");
    let cgroup = area.create("c", &["cpu", "memory"]);
    let asked = Resources { memory_limit_bytes: 128 << 20, cpu_quota_us: 50_000, ..Resources::default() };
    let settings = limits::settings(&asked, 4096).expect("valid");

    let e = apply::apply(&area.host, &cgroup, &settings, false).expect_err("refused");
    assert_eq!(e.kind(), Kind::Unsupported);
    assert!(e.to_string().contains("memory.max 128Mi"), "{e}");
    assert!(e.to_string().contains("cgroup_disable="), "{e}");

    let report = apply::apply(&area.host, &cgroup, &settings, true).expect("allowed");
    let enforced: Vec<_> = report.rows.iter().filter(|row| row.kernel.is_some()).map(|row| &*row.file).collect();
    assert_eq!(enforced, ["cpu.max"]);
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
}

#[test]
fn a_pod_with_a_memory_limit_is_refused_by_the_binary_and_leaves_nothing() {
    let mut machine = Machine::with_busybox();
    let manifest = script("cat /sys/fs/cgroup/cpu.max", "resources: {limits: {cpu: 250m, memory: 128Mi}}");
    assert_eq!(
        machine.run(&manifest).code(0).stdout,
        "25000 100000\n",
        "what there is is enforced when that is allowed"
    );
    machine.globals.clear();
    machine.run(&manifest).refused(&["memory.max", "128Mi", "cgroup_disable=", "boot without it"]);
    machine.assert_as_before();
}

#[test]
fn a_pod_that_asks_for_no_memory_limit_runs_and_shows_what_is_not_available() {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    let manifest = script("cat /sys/fs/cgroup/cpu.max; exec sleep 1000", "resources: {limits: {cpu: 250m}}");
    let planned = machine.podwright(["check"]).arg(machine.manifest(&manifest)).output().expect("podwright");
    let plan = String::from_utf8(planned.stdout).expect("text");
    assert!(planned.status.success() && plan.contains("not available"), "{plan}");

    let mut run = machine.start(&manifest, &[]);
    run.until("it has written", || ask(&machine, &["logs", "p"]).stdout == "25000 100000\n");
    let inspected = json(&machine, &["inspect", "p/c"]);
    let limits = inspected["containers"][0]["limits"].as_array().expect("a list");
    let missing: Vec<_> = limits.iter().filter(|limit| limit["kernel"].is_null()).collect();
    assert_eq!(missing.iter().map(|l| &l["file"]).collect::<Vec<_>>(), ["memory.oom.group", "memory.swap.max"]);
    for limit in missing {
        let why = limit["notAvailable"].as_str().expect("why");
        assert!(why.contains("cgroup_disable="), "{why}");
    }
    let verified = ask(&machine, &["verify", "p"]);
    assert!(verified.code(0).stdout.contains("not available"), "{}", verified.stdout);
    ask(&machine, &["stop", "--grace", "0s", "p"]).code(0);
    run.wait();
    machine.assert_as_before();
}
