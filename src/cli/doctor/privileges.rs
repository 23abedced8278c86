//! Who we are: root, capabilities, and whose mount and pid namespace we are in.

use super::{Finding, Verdict, not_readable, read};
use crate::sys::is_root;

const AREA: &str = "privileges";

/// capabilities(7): number and name of each that a pod's setup uses, or that a container gets by default and must therefore be
/// ours to give.
const NEEDED: &[(u32, &str)] = &[
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (2, "DAC_READ_SEARCH"),
    (3, "FOWNER"),
    (4, "FSETID"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (10, "NET_BIND_SERVICE"),
    (12, "NET_ADMIN"),
    (13, "NET_RAW"),
    (18, "SYS_CHROOT"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    (27, "MKNOD"),
    (29, "AUDIT_WRITE"),
    (31, "SETFCAP"),
];
const SYS_RESOURCE: u32 = 24;

pub(super) fn check() -> Vec<Finding> {
    let mut findings = vec![root()];
    match effective() {
        Ok(effective) => findings.extend([capabilities(effective), sys_resource(effective)]),
        Err(why) => {
            let finding = Finding::ok(AREA, "capabilities", why, "what may be done to namespaces, mounts and cgroups");
            findings.push(finding.but(Verdict::Fail, "mount /proc"));
        }
    }
    findings.push(mount_namespace());
    findings
}

fn root() -> Finding {
    let why = "namespaces, mounts and cgroups are made as root in this version";
    if is_root() {
        return Finding::ok(AREA, "root", "yes", why);
    }
    Finding::ok(AREA, "root", "no", why).but(Verdict::Fail, "sudo podwright ..., or a privileged container")
}

/// The effective set, proc_pid_status(5).
fn effective() -> Result<u64, String> {
    let status = read("/proc/self/status").map_err(|e| not_readable("/proc/self/status", &e))?;
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).ok_or_else(|| "/proc/self/status has no CapEff".into())
}

fn capabilities(effective: u64) -> Finding {
    let why = "a pod's setup needs them, and a container can only be given what podwright has";
    let missing: Vec<_> = NEEDED.iter().filter(|(n, _)| effective & (1 << n) == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Finding::ok(AREA, "capabilities", format!("all {} that are needed", NEEDED.len()), why);
    }
    let finding = Finding::ok(AREA, "capabilities", format!("missing: {}", missing.join(", ")), why);
    finding.but(Verdict::Fail, "run as root of the host, or in a container with --privileged")
}

fn sys_resource(effective: u64) -> Finding {
    let why = "oom_score_adj may be lowered and hard rlimits raised only with it: which process the kernel kills first";
    if effective & (1 << SYS_RESOURCE) != 0 {
        return Finding::ok(AREA, "CAP_SYS_RESOURCE", "yes", why);
    }
    let remedy =
        "give podwright CAP_SYS_RESOURCE; or --allow-unenforced-limits, and a pod's status says what was not set";
    Finding::ok(AREA, "CAP_SYS_RESOURCE", "no", why).but(Verdict::Warn, remedy)
}

/// The host's mount namespace, or one that its mounts reach, is where volumes can be shared both ways.
fn mount_namespace() -> Finding {
    let why = "mounts spread between host and volumes (HostToContainer, Bidirectional) only from where / is shared";
    let host = match (std::fs::read_link("/proc/self/ns/mnt"), std::fs::read_link("/proc/1/ns/mnt")) {
        (Ok(own), Ok(first)) if own == first => "PID 1's",
        (Ok(_), Ok(_)) => "not PID 1's",
        _ => "PID 1's is not readable",
    };
    let mountinfo = match read("/proc/self/mountinfo") {
        Ok(text) => text,
        Err(e) => {
            let finding = Finding::ok(AREA, "mount namespace", not_readable("/proc/self/mountinfo", &e), why);
            return finding.but(Verdict::Fail, "mount /proc");
        }
    };
    let (propagation, verdict) = root_propagation(&mountinfo);
    let finding = Finding::ok(AREA, "mount namespace", format!("{host}; / is {propagation}"), why);
    match verdict {
        Verdict::Ok => finding,
        _ if propagation == "private" => finding.but(verdict, "mount --make-rshared / (systemd does so at boot)"),
        _ => finding.but(verdict, "run outside PrivateMounts=, PrivateTmp=, ProtectSystem= of a systemd unit"),
    }
}

/// The propagation of `/`, proc_pid_mountinfo(5): optional fields stand between the sixth field and a lone hyphen. The last
/// mount on `/` is the one that is seen.
fn root_propagation(mountinfo: &str) -> (&'static str, Verdict) {
    let root = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_default();
    let tags: Vec<_> = root.split(' ').skip(6).take_while(|field| *field != "-").collect();
    let has = |tag: &str| tags.iter().any(|field| field.starts_with(tag));
    match (has("shared:"), has("master:")) {
        (true, false) => ("shared", Verdict::Ok),
        (true, true) => ("shared and a slave: what a pod mounts stays from the host", Verdict::Warn),
        (false, true) => ("a slave: what a pod mounts does not reach the host", Verdict::Warn),
        (false, false) => ("private", Verdict::Warn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_is_that_of_the_topmost_mount_on_the_root() {
        let line = |tags: &str| format!("27 1 254:0 / / rw,relatime {tags}- ext4 /dev/vda rw");
        assert_eq!(root_propagation(&line("")).0, "private");
        assert_eq!(root_propagation(&line("shared:1 ")), ("shared", Verdict::Ok));
        assert_eq!(root_propagation(&line("master:1 ")).1, Verdict::Warn);
        let two = format!("{}\n{}\n28 27 0:3 / /proc rw - proc proc rw", line(""), line("shared:1 "));
        assert_eq!(root_propagation(&two).0, "shared");
    }

    #[test]
    fn a_missing_capability_is_named() {
        let all = u64::MAX;
        assert_eq!(capabilities(all).verdict, Verdict::Ok);
        let finding = capabilities(all & !(1 << 21));
        assert_eq!((finding.verdict, finding.found.as_str()), (Verdict::Fail, "missing: SYS_ADMIN"));
    }
}
