//! What the host gives everyone: limits, the clock, security modules; and this program's own build.

use super::{Finding, Verdict, not_readable, read};
use crate::engine::{apparmor, cdi, checkpoint, selinux};
use crate::error::describe_io;
use crate::sys::probe;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const AREA: &str = "host";

/// The engine holds 4 to 5 descriptors a container, a shim up to 8: 1,000 containers want this many.
const WANTED_NOFILE: u64 = 8192;
/// The kernel's smallest default; a node of Kubernetes with 110 pods of 100 processes is beyond a third of it.
const WANTED_PIDS: u64 = 32_768;
/// A pod takes one of most kinds and a container one or two: for a full node, with room.
const WANTED_NAMESPACES: u64 = 1024;
/// A clock before this is a machine without a battery; 2026-01-01 in seconds since 1970.
const PLAUSIBLE_SECS: u64 = 1_767_225_600;
/// elf(5): the type of a program header that names the dynamic linker.
const PT_INTERP: u32 = 3;

pub(super) fn check(cdi_dirs: &[PathBuf], criu_program: Option<&Path>, enable_selinux: bool) -> Vec<Finding> {
    vec![
        nofile(),
        sysctl("kernel.pid_max", WANTED_PIDS, "the number of processes and threads of the whole host"),
        sysctl("kernel.threads-max", WANTED_PIDS, "the number of threads of the whole host"),
        namespaces(),
        apparmor(),
        selinux(enable_selinux),
        criu(criu_program),
        cdi(cdi_dirs),
        clock(),
        build(),
    ]
}

fn nofile() -> Finding {
    let (soft, hard) = probe::rlimit_nofile();
    let text = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    let why = "the engine holds a few descriptors for each container";
    let finding = Finding::ok(AREA, "open files", format!("{}, at most {}", text(soft), text(hard)), why);
    if hard.is_some_and(|hard| hard < WANTED_NOFILE) {
        return finding.but(Verdict::Warn, format!("ulimit -Hn {WANTED_NOFILE} (LimitNOFILE= in a systemd unit)"));
    }
    finding
}

/// A number of /proc/sys that should not be below `wanted`.
fn sysctl(name: &'static str, wanted: u64, why: &str) -> Finding {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    match read(&path).map(|text| text.parse::<u64>()) {
        Ok(Ok(value)) if value >= wanted => Finding::ok(AREA, name, value.to_string(), why),
        Ok(Ok(value)) => Finding::ok(AREA, name, value.to_string(), why)
            .but(Verdict::Warn, format!("sysctl {name}={wanted} or more")),
        Ok(Err(_)) => Finding::ok(AREA, name, "not a number", why).but(Verdict::Warn, format!("look at {path}")),
        Err(e) => Finding::ok(AREA, name, not_readable(&path, &e), why).but(Verdict::Warn, "mount /proc"),
    }
}

/// user.max_*_namespaces together: which are too low for a node.
fn namespaces() -> Finding {
    let why = "how many namespaces of each kind may exist: pods fail to start at the limit";
    let kinds = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let read = |kind: &&str| read(&format!("/proc/sys/user/max_{kind}_namespaces")).ok()?.parse::<u64>().ok();
    let values: Vec<_> = kinds.iter().filter_map(|kind| Some((*kind, read(kind)?))).collect();
    let least = values.iter().map(|(_, value)| *value).min();
    let finding =
        Finding::ok(AREA, "user.max_*_namespaces", least.map_or(String::new(), |n| format!("at least {n}")), why);
    let low: Vec<_> = values.iter().filter(|(_, value)| *value < WANTED_NAMESPACES).collect();
    if values.len() < kinds.len() {
        return Finding { found: "not readable".into(), ..finding }.but(Verdict::Warn, "mount /proc");
    }
    if low.is_empty() {
        return finding;
    }
    let found: Vec<_> = low.iter().map(|(kind, value)| format!("{kind} {value}")).collect();
    Finding { found: found.join(", "), ..finding }
        .but(Verdict::Warn, format!("sysctl user.max_*_namespaces={WANTED_NAMESPACES} or more"))
}

fn apparmor() -> Finding {
    let why = "a second wall around containers, beside seccomp and capabilities";
    let finding = Finding::ok(AREA, "AppArmor", apparmor::state().to_string(), why);
    match (apparmor::state(), apparmor::parser()) {
        (apparmor::State::Off | apparmor::State::Loaded, _) | (_, Some(_)) => finding,
        (apparmor::State::NotLoaded(_), None) => finding.but(
            Verdict::Warn,
            "install the package apparmor (apparmor_parser): until then containers run unconfined by AppArmor, and one that asks for the default profile is refused",
        ),
    }
}

fn selinux(enable: bool) -> Finding {
    let state = selinux::state(enable);
    let why = "a second wall around containers: each pod's files are its own, whatever its users and capabilities";
    let finding = Finding::ok(AREA, "SELinux", state.to_string(), why);
    match &state {
        selinux::State::Off | selinux::State::TurnedOff => finding,
        selinux::State::NoTypes(_) => finding.but(Verdict::Warn, "install container-selinux, the policy of containers"),
        selinux::State::Unknown(_) => finding.but(Verdict::Fail, "see that podwright may read /sys/fs/selinux"),
        selinux::State::On(policy) => match policy.refuses() {
            None => finding,
            Some(problem) => finding.but(
                Verdict::Warn,
                format!(
                    "{problem}: give the program the type container_runtime_exec_t (semanage fcontext, restorecon)"
                ),
            ),
        },
    }
}

fn criu(configured: Option<&Path>) -> Finding {
    let why = "the program that CheckpointContainer is done with; nothing else needs it";
    match checkpoint::find_criu(configured) {
        Ok(path) => Finding::ok(AREA, "criu", path.display().to_string(), why),
        Err(_) if configured.is_none() => Finding::ok(AREA, "criu", "not installed: no checkpoints", why),
        Err(e) => Finding::ok(AREA, "criu", e.to_string(), why)
            .but(Verdict::Warn, "set checkpoint.criu to a program, or to nothing for criu of PATH"),
    }
}

fn cdi(directories: &[PathBuf]) -> Finding {
    let why = "devices that a kubelet's plugins name by the Container Device Interface";
    match cdi::survey(directories) {
        Ok((count, problems)) => {
            let finding = Finding::ok(AREA, "CDI devices", count.to_string(), why);
            match problems.first() {
                None => finding,
                Some(first) => finding.but(Verdict::Warn, format!("mend or remove {first}")),
            }
        }
        Err(e) => Finding::ok(AREA, "CDI devices", "not known", why).but(Verdict::Warn, e.to_string()),
    }
}

fn clock() -> Finding {
    let why = "times in logs and statuses are compared between nodes, and certificates of registries have dates";
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time =
        jiff::Timestamp::from_second(now.as_secs().cast_signed()).map(|time| time.to_string()).unwrap_or_default();
    let finding = Finding::ok(AREA, "clock", time, why);
    let remedy = "run a time service (systemd-timesyncd, chrony)";
    if now.as_secs() < PLAUSIBLE_SECS {
        return finding.but(Verdict::Warn, format!("set the clock, then {remedy}"));
    }
    match probe::clock_is_synchronised() {
        Ok(true) => Finding { found: format!("{}, kept in step", finding.found), ..finding },
        Ok(false) => Finding { found: format!("{}, kept in step by nothing", finding.found), ..finding }
            .but(Verdict::Warn, remedy),
        Err(e) => Finding { found: format!("{}; adjtimex: {}", finding.found, describe_io(&e)), ..finding },
    }
}

fn build() -> Finding {
    let why = "a static program needs nothing of the host, and its shims are as small as those that were measured";
    match is_static() {
        Ok(true) => Finding::ok(AREA, "this program", "static", why),
        Ok(false) => Finding::ok(AREA, "this program", "linked dynamically", why)
            .but(Verdict::Warn, "build for x86_64-unknown-linux-musl, as releases are"),
        Err(e) => {
            Finding::ok(AREA, "this program", not_readable("/proc/self/exe", &e), why).but(Verdict::Warn, "mount /proc")
        }
    }
}

/// Whether our own ELF file (64 bits, this machine's byte order) names no dynamic linker, elf(5).
fn is_static() -> std::io::Result<bool> {
    // The program headers follow the ELF header at once in what linkers make; a page holds more than 60 of them.
    let mut head = vec![];
    std::fs::File::open("/proc/self/exe")?.take(4096).read_to_end(&mut head)?;
    Ok(!program_headers(&head).any(|kind| kind == PT_INTERP))
}

/// The types of the program headers in the first bytes of an ELF file.
fn program_headers(head: &[u8]) -> impl Iterator<Item = u32> {
    let half = |at: usize| head.get(at..at + 2).map_or(0, |b| usize::from(u16::from_ne_bytes([b[0], b[1]])));
    // elf(5): e_phoff at 32 (its low half is enough), e_phentsize at 54, e_phnum at 56.
    let (offset, size, count) = (half(32), half(54), half(56));
    (0..count).filter_map(move |n| {
        let at = offset + n * size;
        head.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_linker_is_found_in_the_program_headers() {
        let mut head = vec![0u8; 64 + 2 * 56];
        head[32..34].copy_from_slice(&64u16.to_ne_bytes());
        head[54..56].copy_from_slice(&56u16.to_ne_bytes());
        head[56..58].copy_from_slice(&2u16.to_ne_bytes());
        head[64..68].copy_from_slice(&1u32.to_ne_bytes());
        head[120..124].copy_from_slice(&PT_INTERP.to_ne_bytes());
        assert_eq!(program_headers(&head).collect::<Vec<_>>(), [1, PT_INTERP]);
        assert_eq!(program_headers(&head[..70]).collect::<Vec<_>>(), [1]);
        assert_eq!(program_headers(&[]).count(), 0);
    }
}
