//! Cgroups on any host with cgroup v2, also one whose controllers v1 holds: made, killed, removed; limits that nobody enforces.

mod cgroup_area;

use cgroup_area::{Area, BOUND, set, shell_in};
use podwright::cgroup::stats::{self, Depth};
use podwright::cgroup::{Cgroup, CgroupPath, Hierarchy, apply, limits, oom};
use podwright::error::Kind;
use podwright::state::model::Resources;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

fn memory_128mi() -> Vec<limits::Setting> {
    limits::settings(&Resources { memory_limit_bytes: 128 << 20, ..Resources::default() }, 4096).expect("valid")
}

#[test]
fn everything_in_a_cgroup_is_killed_and_nothing_is_left_of_it() {
    let area = Area::new();
    let container = area.create("pod/c", &[]);
    let exec = container.child("exec-1").expect("child");
    let mut children = [shell_in(&container, "sleep 1000 & sleep 1000"), shell_in(&exec, "exec sleep 1000")];
    assert!(container.is_populated().expect("events"));
    assert!(exec.procs().expect("procs").contains(&children[1].id()));

    area.host.remove(&area.at("pod"), BOUND).expect("remove");
    for child in &mut children {
        assert_eq!(child.wait().expect("wait").signal(), Some(9));
    }
    assert_eq!(area.host.open(&area.at("pod")).expect_err("removed").kind(), Kind::NotFound);
    area.host.remove(&area.at("pod"), BOUND).expect("again is no error");
    container.kill().expect("nor is killing what is gone");
    container.wait_empty(Duration::ZERO).expect("it is empty");
}

#[test]
fn waiting_ends_with_the_last_process_and_not_later() {
    let area = Area::new();
    let cgroup = area.create("c", &[]);
    let mut child = shell_in(&cgroup, "exec sleep 1000");
    let e = cgroup.wait_empty(Duration::from_millis(20)).expect_err("it sleeps");
    assert_eq!(e.kind(), Kind::DeadlineExceeded);
    assert!(e.to_string().contains(&child.id().to_string()), "{e}");

    let began = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cgroup.wait_empty(BOUND));
        child.kill().expect("kill");
        child.wait().expect("wait");
        waiting.join().expect("thread").expect("empty");
    });
    assert!(began.elapsed() < BOUND / 2, "{:?}", began.elapsed());
}

#[test]
fn many_make_and_remove_the_same_parents_at_once() {
    let area = Area::new();
    area.create("keep", &[]);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let area = &area;
            scope.spawn(move || {
                let host = Hierarchy::discover().expect("discover");
                for round in 0..50 {
                    let pod = area.at(&format!("shared/pods/{thread}-{round}"));
                    host.create(&pod, &set(&["memory", "hugetlb"]), &area.path).expect("create");
                    assert!(host.remove_if_empty(&pod, &area.at("shared")).expect("remove"));
                }
            });
        }
    });
    assert_eq!(area.host.open(&area.at("shared")).expect_err("the last one removed it").kind(), Kind::NotFound);
}

#[test]
fn an_exec_that_left_something_running_keeps_its_cgroup_until_that_is_killed() {
    let area = Area::new();
    let container = area.create("c", &[]);
    let exec = container.child("exec-1").expect("child");
    let mut child = shell_in(&exec, "exec sleep 1000");
    assert!(!container.remove_child_if_empty("exec-1").expect("in use"));
    container.remove_child("exec-1", BOUND).expect("kill and remove");
    assert_eq!(child.wait().expect("wait").signal(), Some(9));
    assert!(container.remove_child_if_empty("exec-1").expect("gone"));
    assert!(container.remove_child_if_empty("../c").is_err());
}

#[test]
fn cgroups_nested_deep_by_a_container_are_removed_with_it() {
    let area = Area::new();
    area.create(&["d"; 200].join("/"), &[]);
    area.host.remove(&area.at("d"), BOUND).expect("remove");
    assert!(area.host.open(&area.at("d")).is_err());
}

#[test]
fn a_cgroup_moved_into_by_its_descriptor_is_the_one_that_was_opened() {
    let area = Area::new();
    let cgroup = area.create("c", &[]);
    let sent = Cgroup::from_fd(cgroup.path().clone(), cgroup.dup().expect("dup"));
    area.host.remove(cgroup.path(), BOUND).expect("remove");
    let again = area.create("c", &[]);
    assert!(sent.write("cgroup.procs", "0").is_err(), "the old one is gone");
    assert!(sent.child("exec-1").is_err());
    assert!(!again.is_populated().expect("events"));
}

#[test]
fn an_empty_parent_goes_and_one_in_use_stays() {
    let area = Area::new();
    area.create("a/b/c", &[]);
    area.create("a/d", &[]);
    assert!(area.host.remove_if_empty(&area.at("a/b/c"), &area.at("a")).expect("remove"));
    assert!(area.host.open(&area.at("a/b")).is_err());
    assert!(area.host.open(&area.at("a/d")).is_ok());
    assert!(!area.host.remove_if_empty(&area.at("a"), &area.at("a")).expect("in use"));
}

#[test]
fn a_limit_that_is_not_enforced_is_refused_naming_the_file_and_the_cgroup_to_look_at() {
    let area = Area::new();
    let cgroup = area.create("c", &[]);
    let e = apply::apply(&area.host, &cgroup, &memory_128mi(), false).expect_err("refused");
    assert_eq!(e.kind(), Kind::Unsupported);
    let text = e.to_string();
    assert!(text.contains(&format!("memory.max 128Mi of {} cannot be enforced", cgroup.path())), "{text}");
    assert!(text.contains("cgroup v1 at ") || text.contains("echo +memory > "), "{text}");
    assert!(text.contains("--allow-unenforced-limits"), "{text}");
}

#[test]
fn a_limit_that_is_not_enforced_is_a_warning_where_that_is_allowed() {
    let area = Area::new();
    let cgroup = area.create("c", &[]);
    let report = apply::apply(&area.host, &cgroup, &memory_128mi(), true).expect("allowed");
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
    assert!(report.warnings[0].contains("memory.max"), "{:?}", report.warnings);
    assert!(report.rows.iter().all(|row| row.kernel.is_none() && row.effective.is_none() && !row.holds));
    assert_eq!(report.rows[0].written, "134217728");
    let report = apply::update(&area.host, &cgroup, &memory_128mi(), true).expect("allowed");
    assert_eq!(report.rows.len(), 2);
}

#[test]
fn limits_of_a_cgroup_that_is_gone_are_not_taken_for_unenforced_ones() {
    let area = Area::new();
    let cgroup = area.create("c", &[]);
    area.host.remove(cgroup.path(), BOUND).expect("remove");
    for allow in [false, true] {
        let e = apply::apply(&area.host, &cgroup, &memory_128mi(), allow).expect_err("gone");
        assert_eq!(e.kind(), Kind::NotFound, "{e}");
    }
    assert_eq!(stats::read(&cgroup, Depth::Full).expect_err("gone").kind(), Kind::NotFound);
    assert!(oom::read(cgroup.as_fd(), None).is_err());
}

#[test]
fn numbers_that_the_kernel_does_not_give_are_absent_and_not_zero() {
    let area = Area::new();
    let cgroup = area.create("c", &[]);
    let stats = stats::read(&cgroup, Depth::Full).expect("read");
    assert_eq!((&stats.memory, &stats.swap, &stats.pids, &stats.io), (&None, &None, &None, &None));
    assert_eq!(stats.cpu.as_ref().expect("cpu.stat needs no controller").throttled_periods, None);
    assert_eq!(oom::read(cgroup.as_fd(), None).expect("read"), oom::OomCounts::default());

    let mut child = shell_in(&cgroup, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done");
    child.wait().expect("wait");
    let after = stats::read(&cgroup, Depth::Container).expect("read");
    assert!(after.cpu.expect("cpu").usage_us > stats.cpu.expect("cpu").usage_us);
    area.host.remove(cgroup.path(), BOUND).expect("remove");
    assert_eq!(stats::read(&cgroup, Depth::Container).expect_err("gone").kind(), Kind::NotFound);
}

#[test]
fn the_root_is_neither_killed_nor_removed() {
    let host = Hierarchy::discover().expect("discover");
    assert_eq!(host.remove(&CgroupPath::root(), BOUND).expect_err("root").kind(), Kind::InvalidArgument);
    assert_eq!(host.root().expect("root").kill().expect_err("root").kind(), Kind::InvalidArgument);
}

#[test]
fn a_parent_that_admits_no_more_cgroups_is_a_bound_that_was_reached() {
    let area = Area::new();
    area.create("p", &[]).write("cgroup.max.descendants", "0").expect("write");
    let e = area.host.create(&area.at("p/c"), &set(&[]), &CgroupPath::root()).expect_err("none admitted");
    assert_eq!(e.kind(), Kind::ResourceExhausted);
    assert!(e.to_string().contains("cgroup.max.descendants"), "{e}");
}
