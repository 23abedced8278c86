//! Features of the kernel, each tried ([`crate::sys::probe`]).

use super::{Finding, Verdict};
use crate::error::describe_io;
use crate::sys::{is_root, probe};
use std::io;

const AREA: &str = "kernel";

/// A feature, whether trying it takes root, and what it means when it is missing.
struct Feature {
    name: &'static str,
    privileged: bool,
    attempt: fn() -> io::Result<()>,
    missing: Verdict,
    why: &'static str,
    remedy: &'static str,
}

const FEATURES: &[Feature] = &[
    Feature {
        name: "clone3, pidfd",
        privileged: false,
        attempt: probe::clone3_pidfd,
        missing: Verdict::Fail,
        why: "a process is held by a descriptor, so that no signal ever goes to another that got its number",
        remedy: "Linux 5.4 or newer; in a container, a seccomp profile that allows clone3 (--privileged)",
    },
    Feature {
        name: "exit status from a pidfd",
        privileged: false,
        attempt: probe::pidfd_exit_info,
        missing: Verdict::Warn,
        why: "the exit code of a container whose shim and engine were both killed is told only by this call",
        remedy: "Linux 6.15 or newer; until then such a container ends as Unknown, exit code 255",
    },
    Feature {
        name: "open_tree, move_mount",
        privileged: true,
        attempt: probe::detached_mount,
        missing: Verdict::Fail,
        why: "roots and volumes are attached as detached mounts, so that none is left on the host",
        remedy: "Linux 5.2 or newer, and CAP_SYS_ADMIN",
    },
    Feature {
        name: "fsopen, fsmount",
        privileged: true,
        attempt: probe::fsopen,
        missing: Verdict::Fail,
        why: "a container's /proc, /sys, /dev/shm and mqueue are made this way",
        remedy: "Linux 5.2 or newer, and CAP_SYS_ADMIN",
    },
    Feature {
        name: "mount_setattr",
        privileged: true,
        attempt: probe::mount_setattr,
        missing: Verdict::Fail,
        why: "a read-only volume is read-only with everything mounted below it",
        remedy: "Linux 5.12 or newer",
    },
    Feature {
        name: "openat2",
        privileged: false,
        attempt: probe::openat2,
        missing: Verdict::Fail,
        why: "paths of an image are resolved inside its root, whatever its links say",
        remedy: "Linux 5.6 or newer; in a container, a seccomp profile that allows openat2",
    },
    Feature {
        name: "overlay",
        privileged: true,
        attempt: probe::overlay,
        missing: Verdict::Fail,
        why: "a container's root is its image's layers with a writable one on top",
        remedy: "modprobe overlay (and `echo overlay > /etc/modules-load.d/overlay.conf`)",
    },
    Feature {
        name: "program from a sealed memfd",
        privileged: false,
        attempt: probe::memfd_exec,
        missing: Verdict::Warn,
        why: "shims run from memory that no container can write; without it from a read-only mount, which is weaker",
        remedy: "sysctl vm.memfd_noexec=0 or 1; or allow it in the security module's policy",
    },
    Feature {
        name: "seccomp filters",
        privileged: false,
        attempt: probe::seccomp,
        missing: Verdict::Fail,
        why: "the default profile of a container is a seccomp filter",
        remedy: "a kernel with CONFIG_SECCOMP_FILTER",
    },
    Feature {
        name: "BPF device filters",
        privileged: true,
        attempt: probe::bpf_cgroup_device,
        missing: Verdict::Fail,
        why: "cgroup v2 limits a container's devices with a BPF program and nothing else",
        remedy: "a kernel with CONFIG_CGROUP_BPF, and CAP_BPF or CAP_SYS_ADMIN",
    },
];

const NAMESPACES: &[(probe::Namespace, &str, &str)] = &[
    (probe::Namespace::Mnt, "mnt", "user.max_mnt_namespaces"),
    (probe::Namespace::Pid, "pid", "user.max_pid_namespaces"),
    (probe::Namespace::Net, "net", "user.max_net_namespaces"),
    (probe::Namespace::Ipc, "ipc", "user.max_ipc_namespaces"),
    (probe::Namespace::Uts, "uts", "user.max_uts_namespaces"),
    (probe::Namespace::Cgroup, "cgroup", "user.max_cgroup_namespaces"),
];

pub(super) fn check() -> Vec<Finding> {
    let root = is_root();
    let mut findings = vec![release()];
    for feature in FEATURES {
        let finding = Finding::ok(AREA, feature.name, "works", feature.why);
        findings.push(if feature.privileged && !root {
            Finding { found: "not tried without root".into(), ..finding }.but(Verdict::Warn, "run doctor as root")
        } else {
            match (feature.attempt)() {
                Ok(()) => finding,
                Err(e) => Finding { found: describe_io(&e), ..finding }.but(feature.missing, feature.remedy),
            }
        });
    }
    findings.push(namespaces(root));
    findings.push(user_namespaces(root));
    findings
}

/// For the reader only: what works is found by trying.
fn release() -> Finding {
    let (release, machine) = probe::uname();
    Finding::ok(AREA, "release", format!("Linux {release} {machine}"), "podwright is tested on 6.1, 6.12 and newer")
}

fn namespaces(root: bool) -> Finding {
    let why = "a container has its own mount, pid and cgroup namespace, a pod its own net, ipc and uts namespace";
    let names: Vec<_> = NAMESPACES.iter().map(|(_, name, _)| *name).collect();
    let finding = Finding::ok(AREA, "namespaces", names.join(", "), why);
    if !root {
        return Finding { found: "not tried without root".into(), ..finding }.but(Verdict::Warn, "run doctor as root");
    }
    let tried = NAMESPACES.iter().map(|(namespace, name, limit)| (probe::unshare(*namespace), name, limit));
    let missing: Vec<_> = tried.filter_map(|(tried, name, limit)| Some((tried.err()?, name, limit))).collect();
    if missing.is_empty() {
        return finding;
    }
    let found: Vec<_> = missing.iter().map(|(e, name, _)| format!("{name}: {}", describe_io(e))).collect();
    let limits: Vec<_> = missing.iter().map(|(_, _, limit)| **limit).collect();
    let remedy = format!("raise {} (sysctl), or a kernel that has them", limits.join(", "));
    Finding { found: found.join("; "), ..finding }.but(Verdict::Fail, remedy)
}

fn user_namespaces(root: bool) -> Finding {
    let why = "pods with hostUsers: false get a user namespace";
    let finding = Finding::ok(AREA, "user namespaces", "works", why);
    match probe::user_namespace_with_idmapped_tmpfs() {
        Ok(()) => finding,
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
            Finding { found: "tmpfs cannot map ids".into(), ..finding }.but(
                Verdict::Warn,
                "Linux 6.3 or newer: volumes on a tmpfs fail in such pods, and the kubelet is told that there are none",
            )
        }
        Err(e) => {
            let who = if root { "" } else { ", or run doctor as root" };
            let remedy = format!(
                "raise user.max_user_namespaces (sysctl); kernel.unprivileged_userns_clone=1 on old Debian{who}"
            );
            Finding { found: describe_io(&e), ..finding }.but(Verdict::Warn, remedy)
        }
    }
}
