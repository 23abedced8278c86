//! Limits that the kernel is seen to enforce. These tests need cgroup v2 with its controllers, and fail where there are none: run
//! them with hack/vm, or on a host with unified cgroups.

mod cgroup_area;

use cgroup_area::{Area, BOUND, set, shell_in};
use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cgroup::Cgroup as Oracle;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::hierarchies::V2;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use podwright::cgroup::apply::{apply, update, verify};
use podwright::cgroup::compare::Compare;
use podwright::cgroup::limits::{DEFAULT_PERIOD_US, Setting, quota_us, settings, shares};
use podwright::cgroup::stats::{self, Depth};
use podwright::cgroup::{Cgroup, CgroupPath, Report, Row, oom};
use podwright::error::Kind;
use podwright::state::model::Resources;
use podwright::state::record::Oom;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

const ALL: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];
const MIB: i64 = 1 << 20;

/// An area on a host that has every controller these tests need.
fn area() -> Area {
    let area = Area::new();
    let has = area.host.controllers().expect("controllers");
    assert!(set(&ALL).is_subset(&has), "cgroup v2 here has only {has:?}: run this with hack/vm");
    area
}

fn of(asked: Resources) -> Vec<Setting> {
    settings(&asked, podwright::sys::page_bytes()).expect("valid")
}

fn memory(bytes: i64) -> Resources {
    Resources { memory_limit_bytes: bytes, ..Resources::default() }
}

fn cpu(millicores: u64) -> Resources {
    Resources { cpu_quota_us: quota_us(millicores, DEFAULT_PERIOD_US), ..Resources::default() }
}

fn with_unified(file: &str, value: &str) -> Resources {
    Resources { unified: [(file.to_owned(), value.to_owned())].into(), ..Resources::default() }
}

fn row<'a>(report: &'a Report, file: &str) -> &'a Row {
    report.rows.iter().find(|row| row.file == file).expect(file)
}

/// (asked, written, kernel, effective)
type Shown<'a> = (&'a str, &'a str, &'a str, &'a str);

fn shown<'a>(report: &'a Report, file: &str) -> Shown<'a> {
    let row = row(report, file);
    let (kernel, effective) = (row.kernel.as_deref(), row.effective.as_deref());
    (&row.asked, &row.written, kernel.expect("enforced"), effective.expect("enforced"))
}

#[test]
fn limits_are_accepted_and_shown_as_the_kernel_rounds_them() {
    let area = area();
    let cases: [(Resources, &str, Shown); 8] = [
        (memory(100_000_000), "memory.max", ("100M", "100000000", "99999744", "99999744")),
        (memory(1_000_000_000), "memory.max", ("1G", "1000000000", "999997440", "999997440")),
        (memory(128 * MIB), "memory.max", ("128Mi", "134217728", "134217728", "134217728")),
        (memory(128 * MIB), "memory.swap.max", ("no swap", "0", "0", "0")),
        (
            Resources { cpu_quota_us: 100, ..Resources::default() },
            "cpu.max",
            ("1m", "1000 100000", "1000 100000", "1000 100000"),
        ),
        (
            Resources { cpuset_cpus: "0,1".to_owned(), ..Resources::default() },
            "cpuset.cpus",
            ("0,1", "0,1", "0-1", "0-1"),
        ),
        (
            Resources { cpu_shares: shares(250), pids_limit: 64, ..Resources::default() },
            "cpu.weight",
            ("256 shares", "35", "35", "35"),
        ),
        (
            Resources { hugepage_limits: [("2MB".to_owned(), 3_000_000)].into(), ..Resources::default() },
            "hugetlb.2MB.max",
            ("3M", "3000000", "2097152", "2097152"),
        ),
    ];
    for (i, (asked, file, expected)) in cases.into_iter().enumerate() {
        let cgroup = area.create(&format!("c{i}"), &ALL);
        let list = of(asked);
        let report = apply(&area.host, &cgroup, &list, false).expect(file);
        assert_eq!(shown(&report, file), expected);
        assert_eq!(report.warnings, Vec::<String>::new());
        assert_eq!(verify(&area.host, &cgroup, &list).expect("still so"), report);
        assert!(report.rows.iter().all(|row| row.holds), "{report:?}");
    }
}

#[test]
fn a_limit_that_somebody_changed_since_no_longer_holds() {
    let area = area();
    let cgroup = area.create("c", &ALL);
    let list = of(Resources { pids_limit: 64, ..memory(64 * MIB) });
    apply(&area.host, &cgroup, &list, false).expect("apply");
    cgroup.write("memory.max", "max").expect("write");
    let report = verify(&area.host, &cgroup, &list).expect("verify");
    let holds: Vec<_> = report.rows.iter().filter(|row| row.holds).map(|row| &*row.file).collect();
    assert_eq!(holds, ["memory.swap.max", "pids.max"]);
    assert_eq!(row(&report, "memory.max").kernel.as_deref(), Some("max"));
}

#[test]
fn what_was_written_is_what_cgroups_rs_reads() {
    let area = area();
    let cgroup = area.create("c", &ALL);
    let asked = Resources { pids_limit: 64, memory_limit_bytes: 100_000_000, ..cpu(250) };
    apply(&area.host, &cgroup, &of(asked), false).expect("apply");
    let oracle = Oracle::load(Box::new(V2::new()), cgroup.path().as_str().trim_start_matches('/'));
    let cpu: &CpuController = oracle.controller_of().expect("cpu");
    assert_eq!((cpu.cfs_quota().expect("quota"), cpu.cfs_period().expect("period")), (25_000, 100_000));
    let pids: &PidController = oracle.controller_of().expect("pids");
    assert_eq!(pids.get_pid_max().expect("pids"), MaxValue::Value(64));
    let memory: &MemController = oracle.controller_of().expect("memory");
    assert_eq!(memory.memory_stat().limit_in_bytes, 99_999_744);
}

#[test]
fn a_number_that_wraps_is_caught_by_reading_it_back() {
    let area = area();
    let cgroup = area.create("c", &ALL);
    let wraps = Setting {
        file: "memory.max".to_owned(),
        asked: "99999999999999999999".to_owned(),
        value: "99999999999999999999".to_owned(),
        compare: Compare::Bytes { unit: 4096 },
        default: false,
    };
    let e = apply(&area.host, &cgroup, &[wraps], true).expect_err("it is another number");
    assert_eq!(e.kind(), Kind::InvalidArgument);
    assert!(e.to_string().contains("the kernel shows \"7766279631452237824\""), "{e}");
}

#[test]
fn what_the_kernel_refuses_is_told_with_file_and_value() {
    let area = area();
    let cgroup = area.create("c", &ALL);
    for (asked, expected) in [
        (Resources { cpuset_cpus: "7000".to_owned(), ..Resources::default() }, "cpuset.cpus of"),
        (with_unified("cpu.weight", "10001"), "wrote \"10001\": ERANGE"),
        (with_unified("memory.nonesuch", "1"), "this kernel has no file memory.nonesuch"),
    ] {
        let e = apply(&area.host, &cgroup, &of(asked), false).expect_err(expected);
        assert!(e.to_string().contains(expected), "{e}");
    }
}

#[test]
fn the_least_limit_above_a_cgroup_is_the_one_in_effect() {
    let area = area();
    let pod = area.create("pod", &ALL);
    let container = area.create("pod/c", &ALL);
    let of_pod = Resources { memory_limit_bytes: 64 * MIB, pids_limit: 10, ..cpu(500) };
    apply(&area.host, &pod, &of(of_pod), false).expect("pod");
    let of_container = Resources { memory_limit_bytes: 128 * MIB, pids_limit: 5, ..cpu(1000) };
    let report = apply(&area.host, &container, &of(of_container), false).expect("container");
    assert_eq!(row(&report, "memory.max").effective.as_deref(), Some("67108864"));
    assert_eq!(row(&report, "cpu.max").effective.as_deref(), Some("50000 100000"));
    assert_eq!(row(&report, "pids.max").effective.as_deref(), Some("5"));
}

#[test]
fn a_cpuset_of_which_nothing_is_left_is_refused() {
    let area = area();
    let pod = area.create("pod", &ALL);
    let container = area.create("pod/c", &ALL);
    let only = |cpus: &str| of(Resources { cpuset_cpus: cpus.to_owned(), ..Resources::default() });
    apply(&area.host, &pod, &only("0"), false).expect("pod");
    let e = apply(&area.host, &container, &only("1"), false).expect_err("cpu 1 is not the pod's");
    assert!(e.to_string().contains("leave none of these"), "{e}");
}

#[test]
fn a_controller_missing_in_the_parents_subtree_control_is_refused_naming_file_and_parent() {
    let area = area();
    area.create("given/pod", &["cpu"]);
    let pod = area.at("given/pod");
    let cgroup = area.host.create(&area.at("given/pod/c"), &set(&ALL), &pod).expect("create");
    let e = apply(&area.host, &cgroup, &of(memory(128 * MIB)), false).expect_err("refused");
    assert_eq!(e.kind(), Kind::Unsupported);
    for part in [
        format!("memory.max 128Mi of {} cannot be enforced", cgroup.path()),
        format!("memory is not in cgroup.subtree_control of {}", area.path),
        format!("echo +memory > {}", area.host.file(&area.path, "cgroup.subtree_control").display()),
    ] {
        assert!(e.to_string().contains(&part), "{e}");
    }
    apply(&area.host, &cgroup, &of(cpu(500)), false).expect("cpu is passed on");
}

#[test]
fn a_parent_with_processes_of_its_own_is_named_as_the_reason() {
    let area = area();
    let pod = area.create("pod", &ALL);
    let mut child = shell_in(&pod, "exec sleep 1000");
    let cgroup = area.create("pod/c", &ALL);
    let e = apply(&area.host, &cgroup, &of(memory(128 * MIB)), false).expect_err("refused");
    assert!(e.to_string().contains("which has processes of its own"), "{e}");
    pod.kill().expect("kill");
    child.wait().expect("wait");
}

/// Takes so much anonymous memory in a process of its own, and ends.
fn hog(mebibytes: u32) -> String {
    format!("dd if=/dev/zero of=/dev/null bs={mebibytes}M count=1")
}

fn judge_in(cgroup: &Cgroup, pod: &Cgroup, script: &str) -> (std::process::ExitStatus, Option<Oom>) {
    let before = oom::read(cgroup.as_fd(), Some(pod.as_fd())).expect("read");
    let status = shell_in(cgroup, script).wait().expect("wait");
    let now = oom::read(cgroup.as_fd(), Some(pod.as_fd())).expect("read");
    (status, oom::judge(before, now))
}

#[test]
fn memory_above_a_limit_is_killed_and_the_limit_that_ran_out_is_named() {
    let area = area();
    let pod = area.create("pod", &ALL);
    let container = area.create("pod/c", &ALL);
    let neighbour = area.create("pod/n", &ALL);
    let mut sleeper = shell_in(&neighbour, "exec sleep 1000");
    apply(&area.host, &container, &of(memory(32 * MIB)), false).expect("container");

    let (status, whose) = judge_in(&container, &pod, &format!("exec {}", hog(100)));
    assert_eq!((status.signal(), whose), (Some(9), Some(Oom::Container)));

    let (status, whose) = judge_in(&container, &pod, &format!("{}; exit 0", hog(100)));
    assert_eq!((status.code(), whose), (Some(0), Some(Oom::Container)), "a child, under a parent that exits 0");

    let (status, whose) = judge_in(&container, &pod, "kill -9 $$");
    assert_eq!((status.signal(), whose), (Some(9), None), "a SIGKILL is no OOM");

    apply(&area.host, &pod, &of(memory(24 * MIB)), false).expect("pod");
    let (status, whose) = judge_in(&container, &pod, &format!("exec {}", hog(28)));
    assert_eq!((status.signal(), whose), (Some(9), Some(Oom::Pod)));
    assert_eq!(sleeper.try_wait().expect("wait"), None, "the neighbour lives");

    apply(&area.host, &pod, &of(memory(-1)), false).expect("pod");
    let above = area.host.open(&area.path).expect("open");
    apply(&area.host, &above, &of(memory(24 * MIB)), false).expect("above the pod");
    let before = oom::read(container.as_fd(), Some(pod.as_fd())).expect("read");
    let small = area.create("pod/small", &ALL);
    apply(&area.host, &small, &of(memory(4 * MIB)), false).expect("small");
    assert_eq!(shell_in(&small, &format!("exec {}", hog(16))).wait().expect("wait").signal(), Some(9));
    let status = shell_in(&container, &format!("exec {}", hog(28))).wait().expect("wait");
    let now = oom::read(container.as_fd(), Some(pod.as_fd())).expect("read");
    let whose = oom::judge(before, now);
    assert_eq!((status.signal(), whose), (Some(9), Some(Oom::Node)), "a neighbour's own limit is not the pod's");
    neighbour.kill().expect("kill");
    sleeper.wait().expect("wait");
}

#[test]
fn with_oom_group_the_whole_container_goes_and_its_exec_with_it() {
    let area = area();
    let container = area.create("c", &ALL);
    let asked = Resources { memory_limit_bytes: 32 * MIB, ..with_unified("memory.oom.group", "1") };
    apply(&area.host, &container, &of(asked), false).expect("apply");
    let exec = container.child("exec-1").expect("child");
    let mut sleeper = shell_in(&exec, "exec sleep 1000");
    let (status, whose) = judge_in(&container, &container, &format!("{}; sleep 1000", hog(100)));
    assert_eq!((status.signal(), whose), (Some(9), Some(Oom::Container)));
    assert_eq!(sleeper.wait().expect("wait").signal(), Some(9));
    assert_eq!(oom::read(container.as_fd(), None).expect("read").container.map(|c| c.oom_group_kill), Some(1));
}

#[test]
fn a_busy_loop_gets_no_more_than_its_quota_and_is_throttled() {
    let area = area();
    let cgroup = area.create("c", &ALL);
    apply(&area.host, &cgroup, &of(cpu(200)), false).expect("apply");
    let mut child = shell_in(&cgroup, "while :; do :; done");
    let began = Instant::now();
    let cpu = loop {
        let cpu = stats::read(&cgroup, Depth::Full).expect("read").cpu.expect("cpu");
        if cpu.periods.expect("periods") >= 30 || began.elapsed() > BOUND {
            break cpu;
        }
        std::thread::yield_now();
    };
    let elapsed_us = began.elapsed().as_micros();
    cgroup.kill().expect("kill");
    child.wait().expect("wait");
    assert!(cpu.throttled_periods.expect("throttled") > 0, "{cpu:?}");
    assert!(cpu.throttled_us.expect("throttled") > 0, "{cpu:?}");
    let permille = u128::from(cpu.usage_us) * 1000 / elapsed_us;
    // Above only: a machine that is itself short of time gives less.
    assert!(permille <= 240, "{permille} thousandths of a cpu: {cpu:?}");
}

#[test]
fn processes_above_the_limit_are_not_made() {
    let area = area();
    let cgroup = area.create("c", &ALL);
    apply(&area.host, &cgroup, &of(Resources { pids_limit: 3, ..Resources::default() }), false).expect("apply");
    let mut child = shell_in(&cgroup, "sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 & wait");
    child.wait().expect("the shell ends when it cannot fork");
    let max = cgroup.read("pids.events").expect("pids.events");
    assert!(max.trim() != "max 0", "{max}");
    cgroup.kill().expect("kill");
}

#[test]
fn every_number_is_there_when_the_controllers_are() {
    let area = area();
    let cgroup = area.create("c", &["cpu", "io", "memory", "pids"]);
    apply(&area.host, &cgroup, &of(Resources { pids_limit: 64, ..memory(64 * MIB) }), false).expect("apply");
    shell_in(&cgroup, &hog(16)).wait().expect("wait");
    let mut child = shell_in(&cgroup, "exec sleep 1000");
    let stats = stats::read(&cgroup, Depth::Full).expect("read");
    let memory = stats.memory.expect("memory");
    assert_eq!(memory.limit_bytes, Some(64 << 20));
    assert!(memory.peak_bytes.expect("peak") >= 16 << 20, "{memory:?}");
    assert!(memory.working_set_bytes.expect("working set") <= memory.usage_bytes);
    assert!(memory.anon_bytes.is_some() && memory.file_bytes.is_some() && memory.kernel_bytes.is_some());
    let pids = stats.pids.expect("pids");
    assert_eq!((pids.current, pids.limit), (1, Some(64)));
    assert_eq!(stats.swap.expect("swap").limit_bytes, Some(0));
    assert!(stats.io.is_some());
    let usage = stats::read(&cgroup, Depth::Container).expect("read");
    assert!(usage.memory.as_ref().expect("memory").usage_bytes > 0);
    assert_eq!(usage.memory.map(|m| (m.limit_bytes, m.peak_bytes)), Some((Some(64 << 20), None)));
    assert_eq!((usage.pids, usage.io), (None, None), "what nobody asked for was not read");
    cgroup.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn a_resize_is_done_whole_or_not_at_all() {
    let area = area();
    let cgroup = area.create("c", &ALL);
    let first = Resources { pids_limit: 100, ..memory(64 * MIB) };
    apply(&area.host, &cgroup, &of(first.clone()), false).expect("apply");
    let values = || ["memory.max", "memory.swap.max", "pids.max"].map(|f| cgroup.read(f).expect("read"));
    let before = values();

    let mut half = of(Resources { pids_limit: 200, ..memory(128 * MIB) });
    half.extend(of(with_unified("cpu.weight", "10001")));
    let e = update(&area.host, &cgroup, &half, false).expect_err("the last one is refused");
    assert_eq!(e.kind(), Kind::InvalidArgument);
    assert_eq!(values(), before);

    let report = update(&area.host, &cgroup, &of(memory(128 * MIB)), false).expect("larger");
    assert_eq!(row(&report, "memory.max").kernel.as_deref(), Some("134217728"));
    update(&area.host, &cgroup, &of(first), false).expect("smaller, and nothing uses it");
    assert_eq!(values(), before);
}

#[test]
fn io_limits_are_compared_by_device_and_undone_by_device() {
    let area = area();
    let cgroup = area.create("c", &ALL);
    let disks = std::fs::read_dir("/sys/block")
        .expect("/sys/block")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let disk =
        disks.into_iter().find(|name| !["loop", "ram", "zram"].iter().any(|p| name.starts_with(p))).expect("a disk");
    let device = std::fs::read_to_string(format!("/sys/block/{disk}/dev")).expect("dev").trim().to_owned();
    let limit = |wiops: u32| of(with_unified("io.max", &format!("{device} wiops={wiops} rbps=2097152")));

    let mut list = limit(120);
    list.extend(of(with_unified("cpu.weight", "10001")));
    update(&area.host, &cgroup, &list, false).expect_err("the weight is refused");
    assert_eq!(cgroup.read("io.max").expect("read"), "", "what was new is unset");

    let report = apply(&area.host, &cgroup, &limit(120), false).expect("apply");
    let expected = format!("{device} rbps=2097152 wbps=max riops=max wiops=120");
    assert_eq!(row(&report, "io.max").kernel.as_deref(), Some(&*expected));
    let mut list = limit(60);
    list.extend(of(with_unified("cpu.weight", "10001")));
    update(&area.host, &cgroup, &list, false).expect_err("the weight is refused");
    assert_eq!(cgroup.read("io.max").expect("read").trim(), expected, "what was there is back");

    let nowhere = of(with_unified("io.max", "4095:1 wiops=1"));
    let e = apply(&area.host, &cgroup, &nowhere, false).expect_err("no such device");
    assert_eq!(e.kind(), Kind::InvalidArgument, "{e}");
}

#[test]
fn many_pods_with_limits_are_made_and_removed_side_by_side() {
    let area = area();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let area = &area;
            scope.spawn(move || {
                for round in 0..8 {
                    let container = area.at(&format!("shared/pods/{thread}-{round}/c"));
                    let list = of(Resources { pids_limit: 64, ..memory(64 * MIB) });
                    let controllers = podwright::cgroup::controllers_for(&list);
                    let cgroup = area.host.create(&container, &controllers, &CgroupPath::root()).expect("create");
                    apply(&area.host, &cgroup, &list, false).expect("the controllers are there");
                    assert!(area.host.remove_if_empty(&container, &area.at("shared")).expect("remove"));
                }
            });
        }
    });
    assert_eq!(area.host.open(&area.at("shared")).expect_err("the last one removed it").kind(), Kind::NotFound);
}

#[test]
fn a_controller_can_be_enabled_for_a_container_that_runs() {
    let area = area();
    let cgroup = area.create("pod/c", &["memory"]);
    let mut child = shell_in(&cgroup, "exec sleep 1000");
    let list = of(Resources { cpuset_cpus: "0".to_owned(), ..Resources::default() });
    update(&area.host, &cgroup, &list, false).expect_err("cpuset is not there yet");
    let cgroup = area.create("pod/c", &["cpuset"]);
    let report = update(&area.host, &cgroup, &list, false).expect("now it is");
    assert_eq!(shown(&report, "cpuset.cpus"), ("0", "0", "0", "0"));
    cgroup.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn a_resize_below_the_working_set_is_refused_and_kills_nobody() {
    let area = area();
    let cgroup = area.create("c", &ALL);
    apply(&area.host, &cgroup, &of(memory(128 * MIB)), false).expect("apply");
    let file = shell_in(&cgroup, "dd if=/dev/zero of=/dev/shm/podwright-v2 bs=1M count=32").wait().expect("wait");
    assert!(file.success(), "a tmpfs holds memory that is charged to the writer");
    let e = update(&area.host, &cgroup, &of(memory(8 * MIB)), false).expect_err("32 MiB are in use");
    std::fs::remove_file("/dev/shm/podwright-v2").expect("remove");
    assert_eq!(e.kind(), Kind::FailedPrecondition);
    assert!(e.to_string().contains("working set of") && e.to_string().contains("usage"), "{e}");
    assert_eq!(cgroup.read("memory.max").expect("read").trim(), "134217728");
}
