//! Cgroup v2: where it is mounted, which controllers can be had there, and who keeps them from us.

use super::{Finding, Verdict, not_readable, read};
use crate::cgroup::systemd;
use crate::config::{CgroupDriver, Settings};
use crate::error::describe_io;
use crate::sys::{is_root, probe};
use std::path::{Path, PathBuf};

const AREA: &str = "cgroups";

/// A controller, what is not enforced without it, and whether most pods ask for that.
const CONTROLLERS: &[(&str, &str, Verdict)] = &[
    ("cpu", "CPU limits (cpu.max) and shares between containers (cpu.weight)", Verdict::Fail),
    ("memory", "memory limits, memory.oom.group, out-of-memory detection, and memory statistics", Verdict::Fail),
    ("pids", "limits on the number of processes: a fork bomb takes the host along", Verdict::Warn),
    ("cpuset", "pinning to CPUs and memory nodes", Verdict::Warn),
    ("io", "limits and weights of disk I/O, and I/O statistics", Verdict::Warn),
    ("hugetlb", "limits on huge pages", Verdict::Warn),
];

pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let why = "limits are cgroup v2 limits; there is no support for v1";
    let mountinfo = match read("/proc/self/mountinfo") {
        Ok(text) => text,
        Err(e) => {
            let finding = Finding::ok(AREA, "cgroup v2", not_readable("/proc/self/mountinfo", &e), why);
            return vec![finding.but(Verdict::Fail, "mount /proc")];
        }
    };
    let Some(mount) = find(&mountinfo) else {
        let remedy = "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 cgroup2 /sys/fs/cgroup";
        return vec![Finding::ok(AREA, "cgroup v2", "not mounted", why).but(Verdict::Fail, remedy)];
    };
    let mut findings = vec![mounted(&mount, why), own_cgroup(&mount.path)];
    let available = read(&mount.path.join("cgroup.controllers").to_string_lossy()).unwrap_or_default();
    let known = read("/proc/cgroups").unwrap_or_default();
    for (controller, without, verdict) in CONTROLLERS {
        findings.push(self::controller(controller, without, *verdict, &available, &known, settings.allow_unenforced));
    }
    findings.push(match settings.cgroup_driver {
        CgroupDriver::Cgroupfs => delegated(&mount.path, settings),
        CgroupDriver::Systemd => driver(),
    });
    findings.push(pressure());
    findings
}

/// Pressure stall information, which the kernel may have built in and switched off.
fn pressure() -> Finding {
    let why = "how long containers waited for CPU, memory and I/O: without it a slow pod is only seen to be slow";
    if Path::new("/proc/pressure").is_dir() {
        return Finding::ok(AREA, "pressure (PSI)", "available", why);
    }
    Finding::ok(AREA, "pressure (PSI)", "not available", why)
        .but(Verdict::Warn, "boot with psi=1, or a kernel with CONFIG_PSI")
}

/// Where cgroup v2 is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    path: PathBuf,
    read_only: bool,
    /// v1 hierarchies are mounted too.
    hybrid: bool,
}

/// The first cgroup2 mount in proc_pid_mountinfo(5) text. Paths there have octal escapes, but none that holds a cgroup mount.
fn find(mountinfo: &str) -> Option<Mount> {
    let types = mountinfo.lines().filter_map(|line| line.split_once(" - ").map(|(_, rest)| rest));
    let hybrid = types.filter_map(|rest| rest.split(' ').next()).any(|fs| fs == "cgroup");
    mountinfo.lines().find_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(4);
        let (path, options) = (fields.next()?, fields.next()?);
        let read_only = options.split(',').any(|option| option == "ro");
        (rest.split(' ').next() == Some("cgroup2")).then(|| Mount { path: path.into(), read_only, hybrid })
    })
}

fn mounted(mount: &Mount, why: &str) -> Finding {
    let path = mount.path.display();
    let finding = Finding::ok(AREA, "cgroup v2", format!("at {path}"), why);
    if mount.read_only {
        let remedy = "a container with --privileged --cgroupns=host, or remount it writable";
        return Finding { found: format!("at {path}, read-only"), ..finding }.but(Verdict::Fail, remedy);
    }
    if mount.hybrid {
        let remedy = "boot with systemd.unified_cgroup_hierarchy=1 (or cgroup_no_v1=all)";
        let found = format!("at {path}, beside v1 hierarchies that may hold controllers");
        return Finding { found, ..finding }.but(Verdict::Warn, remedy);
    }
    finding
}

/// Tries CLONE_INTO_CGROUP where nothing moves: into the cgroup that we are in.
fn own_cgroup(mount: &Path) -> Finding {
    let why = "a container starts inside its cgroup, never beside it: not a moment without limits";
    let finding = Finding::ok(AREA, "clone3 into a cgroup", "works", why);
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    if !is_root() {
        return Finding { found: "not tried without root".into(), ..finding }.but(Verdict::Warn, "run doctor as root");
    }
    match probe::clone3_into_cgroup(&mount.join(own)) {
        Ok(()) => finding,
        Err(e) => Finding { found: describe_io(&e), ..finding }
            .but(Verdict::Fail, "Linux 5.7 or newer, and as root in the host's cgroup namespace"),
    }
}

/// Whether `controller` can be enabled, and if not, who has it: a v1 hierarchy, the command line, nobody.
/// `known` is /proc/cgroups (cgroups(7)): name, v1 hierarchy (0 is v2), number of cgroups, enabled.
fn controller(name: &str, without: &str, verdict: Verdict, available: &str, known: &str, allowed: bool) -> Finding {
    let check = format!("controller {name}");
    if available.split_whitespace().any(|word| word == name) {
        return Finding::ok(AREA, check, "available", format!("without it: no {without}"));
    }
    // v1's name of the io controller.
    let v1 = if name == "io" { "blkio" } else { name };
    let row =
        known.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| row.first() == Some(&v1));
    let (found, remedy) = match row.as_deref() {
        Some([_, _, _, "0"]) => (
            format!("disabled at boot (cgroup_disable={name})"),
            format!("remove cgroup_disable={name} from the command line"),
        ),
        Some([_, hierarchy, ..]) if *hierarchy != "0" => (
            format!("held by v1 hierarchy {hierarchy}"),
            format!("boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1={v1}"),
        ),
        Some(_) => (
            "not delegated to this cgroup".to_owned(),
            format!("echo +{name} > cgroup.subtree_control of the parent cgroup, or --cgroupns=host"),
        ),
        None => ("not in this kernel".to_owned(), "a kernel that has it".to_owned()),
    };
    let (verdict, remedy) = match allowed {
        true => (Verdict::Warn, remedy),
        false => {
            (verdict, format!("{remedy}; or --allow-unenforced-limits, and a pod's status says what is not enforced"))
        }
    };
    let why = format!("without it: no {without}; a pod that asks for none of it runs all the same");
    Finding::ok(AREA, check, found, why).but(verdict, remedy)
}

/// Whether systemd is there to make cgroups.
fn driver() -> Finding {
    let why = "cgroup.driver is systemd: it makes each pod's scope";
    let finding = Finding::ok(AREA, "cgroup.driver", "systemd answers", why);
    match systemd::check() {
        Ok(()) => finding,
        Err(e) => Finding { found: e.to_string(), ..finding }
            .but(Verdict::Fail, "cgroup.driver = \"cgroupfs\", or boot systemd"),
    }
}

/// Whether `cgroup.root` can be made and given controllers: a cgroup with processes of its own passes none on, cgroups(7).
fn delegated(mount: &Path, settings: &Settings) -> Finding {
    let why = "pods live below it, and a cgroup with processes of its own cannot pass controllers on";
    let below = settings.cgroup_root.strip_prefix("/").unwrap_or(&settings.cgroup_root);
    let root = mount.join(below);
    let parent = root.ancestors().skip(1).find(|dir| dir.is_dir()).unwrap_or(mount);
    let finding = Finding::ok(AREA, "cgroup.root", format!("{}", settings.cgroup_root.display()), why);
    // Only the real root has no cgroup.type; it alone may have processes beside controllers.
    let processes = read(&parent.join("cgroup.procs").to_string_lossy()).unwrap_or_default();
    let enabled = read(&parent.join("cgroup.subtree_control").to_string_lossy()).unwrap_or_default();
    if parent.join("cgroup.type").exists() && !processes.is_empty() && enabled.is_empty() {
        let found = format!("{} has processes of its own", parent.display());
        let remedy = "move them to a cgroup below it, set cgroup.root elsewhere, or --cgroupns=host";
        return Finding { found, ..finding }.but(Verdict::Fail, remedy);
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_v2_is_found_alone_and_beside_v1() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let path = PathBuf::from("/sys/fs/cgroup");
        assert_eq!(find(unified), Some(Mount { path, read_only: false, hybrid: false }));
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified ro,relatime - cgroup2 cgroup2 rw";
        let path = PathBuf::from("/sys/fs/cgroup/unified");
        assert_eq!(find(hybrid), Some(Mount { path, read_only: true, hybrid: true }));
        assert_eq!(find("22 27 0:21 / /proc rw - proc proc rw"), None);
    }

    #[test]
    fn a_missing_controller_says_who_has_it() {
        let known = "#subsys_name hierarchy num_cgroups enabled\ncpu 3 1 1\nblkio 7 1 1\nmemory 0 1 0\npids 0 1 1";
        let found = |name| controller(name, "x", Verdict::Fail, "hugetlb", known, false).found;
        assert_eq!(found("cpu"), "held by v1 hierarchy 3");
        assert_eq!(found("io"), "held by v1 hierarchy 7");
        assert_eq!(found("memory"), "disabled at boot (cgroup_disable=memory)");
        assert_eq!(found("pids"), "not delegated to this cgroup");
        assert_eq!(found("cpuset"), "not in this kernel");
        assert_eq!(controller("hugetlb", "x", Verdict::Fail, "cpu hugetlb", known, false).verdict, Verdict::Ok);
        assert_eq!(controller("cpu", "x", Verdict::Fail, "", known, true).verdict, Verdict::Warn);
    }
}
