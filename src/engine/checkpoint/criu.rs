//! criu: where it is, what it is told of a container, what it says when it cannot.
//!
//! What a container has from outside is named to it as external: it would look for the rest in vain, or write a host's volume into the archive.

use crate::error::{Context, Error, Result};
use crate::id::ContainerId;
use crate::network::cni::exec::{self, Call};
use crate::network::cni::strays;
use crate::state::record::{ContainerRecord, Process};
use crate::sys;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Where it is looked for besides PATH, which a service need not have; and its own PATH.
const DIRECTORIES: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin"];
/// The log, in its working directory, as in other runtimes' archives.
const LOG: &str = "dump.log";
/// The largest file that is open and has no name any more which goes into the archive; criu refuses a container with a larger one.
const GHOST_LIMIT: &str = "256M";
/// Bytes of a /proc file: 100 000 mounts.
const MAX_PROC: u64 = 16 << 20;
/// Bytes of the log's end in which errors are looked for, and how many of them are told.
const LOG_TAIL: u64 = 64 << 10;
const ERRORS_TOLD: usize = 3;
/// File systems that a container's mount namespace has of its own, and criu makes anew.
const OWN: [&str; 4] = ["proc", "sysfs", "tmpfs", "devpts"];
/// How long one whose time is over may take to put back what it has changed. One that is killed has code of its own in processes that it traces:
/// of 70 that were killed within the tenth of a second that a dump takes, 4 took the container with them; of 28 that could write no more, none.
const LAST_WORK: Duration = Duration::from_secs(5);
/// The same for the criu of a killed daemon.
const STRAYS_PATIENCE: Duration = Duration::from_secs(5);
/// What is the pod's.
const OF_THE_POD: [&str; 2] = ["/dev/shm", "/dev/mqueue"];

/// The program: the configured one, else the first that PATH has.
///
/// # Errors
/// `Unsupported`, with the remedy, when there is none.
pub fn find(configured: Option<&Path>) -> Result<PathBuf> {
    let is_program = |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if let Some(path) = configured {
        let found = Some(path.to_owned()).filter(is_program);
        return found
            .ok_or_else(|| Error::unsupported(format!("checkpoint.criu is {}, which is no program", path.display())));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).chain(DIRECTORIES.map(PathBuf::from));
    all.map(|dir| dir.join("criu")).find(is_program).ok_or_else(|| {
        Error::unsupported(
            "there is no criu on this host; install the package criu, or name the program with checkpoint.criu",
        )
    })
}

/// Waits for the criu that a killed daemon left at work on a container, and kills one that takes too long. Blocks.
pub(super) fn end_strays(id: &ContainerId) {
    strays::end_with(&mark(id), STRAYS_PATIENCE, true);
}

/// In the environment of a criu: whose it is.
fn mark(id: &ContainerId) -> String {
    format!("PODWRIGHT_CHECKPOINT_OF={id}")
}

/// Whether a pid is still that process's.
pub(super) fn is_same(process: Process) -> bool {
    sys::start_time(process.pid).is_ok_and(|start| start == process.start_time)
}

/// How a container's processes are to be written, frozen as they are in `cgroup`; and where the log will be.
pub(super) fn dump(
    program: &Path,
    process: Process,
    record: &ContainerRecord,
    work: &Path,
    cgroup: &Path,
    until: Instant,
) -> Result<(Call, PathBuf)> {
    let proc = PathBuf::from(format!("/proc/{}", process.pid));
    let mut args: Vec<String> =
        ["dump", "--tree", &process.pid.to_string(), "--log-file", LOG, "-v3"].map(String::from).into();
    let images = work.join(super::archive::IMAGES);
    for (option, value) in [
        ("--images-dir", images.display().to_string()),
        ("--work-dir", work.display().to_string()),
        ("--freeze-cgroup", cgroup.display().to_string()),
        ("--timeout", until.saturating_duration_since(Instant::now()).as_secs().max(1).to_string()),
        ("--ghost-limit", GHOST_LIMIT.to_owned()),
        // Connections are written as they are; nftables, which criu does by itself, keeps their packets away meanwhile.
        ("--network-lock", "nftables".to_owned()),
    ] {
        args.extend([option.to_owned(), value]);
    }
    // What the host's /etc/criu says is for others.
    let switches = [
        "--leave-running",
        "--tcp-established",
        "--ext-unix-sk",
        "--file-locks",
        "--manage-cgroups=ignore",
        "--no-default-config",
    ];
    args.extend(switches.map(String::from));
    if record.config.tty {
        args.push("--shell-job".to_owned()); // the other end of its terminal is the shim's
    }
    let external = [namespaces(&proc)?, standard_files(&proc)?, mounts(&proc, record)?].concat();
    args.extend(external.into_iter().flat_map(|external| ["--external".to_owned(), external]));
    if !is_same(process) {
        return Err(Error::precondition("it has ended"));
    }
    let mut env = vec![("PATH".to_owned(), DIRECTORIES.join(":") + ":/bin")];
    env.extend(mark(&record.id).split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
    let call = Call { program: program.to_owned(), args, env, stdin: Vec::new(), until, patience: LAST_WORK };
    Ok((call, work.join(LOG)))
}

/// Executes it to its end.
///
/// # Errors
/// As [`exec::run`]; `Internal` with the last errors of its log.
pub(super) async fn run(call: Call, log: &Path) -> Result<()> {
    let program = call.program.display().to_string();
    let said = exec::run(call).await.context(|| program.clone())?;
    if said.status.success() {
        return Ok(());
    }
    let errors = tail(log).map(|text| errors(&text)).unwrap_or_default();
    let why = if errors.is_empty() { said.stderr } else { errors };
    Err(Error::internal(format!("{program}: {}: {why}", said.status)))
}

fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last errors of a log, without their times.
fn errors(log: &str) -> String {
    let mut found: Vec<&str> = log
        .lines()
        .rev()
        .filter_map(|line| line.split_once("Error (").map(|(_, rest)| rest))
        .take(ERRORS_TOLD)
        .collect();
    found.reverse();
    found.iter().map(|error| error.replacen("): ", ": ", 1)).collect::<Vec<_>>().join("; ")
}

fn read(path: &Path) -> Result<String> {
    let file = File::open(path).context(|| format!("open {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(MAX_PROC).read_to_end(&mut bytes).context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The pod's namespaces that criu is not to write: those of the network, and of processes unless the container is the first in its own.
/// Those of names and System V IPC have no external form: they are written, and whoever restores joins the new pod's instead.
fn namespaces(proc: &Path) -> Result<Vec<String>> {
    let inode = |path: &Path| path.metadata().map(|m| m.ino()).context(|| format!("look at {}", path.display()));
    let status = read(&proc.join("status"))?;
    let first =
        status.lines().find_map(|line| line.strip_prefix("NSpid:")).and_then(|pids| pids.split_whitespace().last());
    let mut external = Vec::new();
    for (kind, key) in [("net", "extRootNetNS"), ("pid", "extRootPidNS")] {
        let (theirs, ours) = (inode(&proc.join("ns").join(kind))?, inode(&Path::new("/proc/self/ns").join(kind))?);
        let own = kind == "pid" && first == Some("1");
        if theirs != ours && !own {
            external.push(format!("{kind}[{theirs}]:{key}"));
        }
    }
    Ok(external)
}

/// /dev/null of the host, which a container without input reads.
fn standard_files(proc: &Path) -> Result<Vec<String>> {
    let mut external = BTreeSet::new();
    for fd in ["0", "1", "2"] {
        let Ok(about) = std::fs::metadata(proc.join("fd").join(fd)) else { continue }; // it has closed it
        let info = read(&proc.join("fdinfo").join(fd))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u32>().ok());
        // Pipes have a mount as well, and no path: criu knows them by their own means.
        if let Some(mount) = mount.filter(|_| about.mode() & 0o170_000 == 0o020_000 && about.rdev() == NULL) {
            external.insert(format!("file[{mount:x}:{:x}]", about.ino()));
        }
    }
    Ok(external.into_iter().collect())
}

/// makedev(1, 3).
const NULL: u64 = 0x103;

fn mounts(proc: &Path, record: &ContainerRecord) -> Result<Vec<String>> {
    let spec = record.spec.value();
    let all = spec["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let binds = all.iter().filter(|mount| mount["type"] == "bind").filter_map(|mount| mount["destination"].as_str());
    let binds = binds.chain(OF_THE_POD).collect();
    Ok(external_mounts(&read(&proc.join("mountinfo"))?, &binds))
}

/// The mounts, proc_pid_mountinfo(5), that come from outside: those that were asked for as such and what is below them, and what is of a file
/// system that the container has no whole one of.
fn external_mounts(mountinfo: &str, binds: &BTreeSet<&str>) -> Vec<String> {
    struct Mount<'a> {
        device: &'a str,
        root: &'a str,
        path: String,
        kind: &'a str,
    }
    let mounts: Vec<Mount<'_>> = mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut fields = left.split(' ').skip(2);
            let (device, root, path) = (fields.next()?, fields.next()?, fields.next()?);
            Some(Mount { device, root, path: crate::cgroup::unescape(path), kind: right.split(' ').next()? })
        })
        .filter(|mount| mount.path != "/")
        .collect();
    let asked = |path: &str| {
        binds.iter().any(|bind| path.strip_prefix(bind).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    // /dev/console: its other end is the shim's.
    let is_terminal = |kind: &str, root: &str| kind == "devpts" && !["/", "/ptmx"].contains(&root);
    let own: BTreeSet<&str> = mounts
        .iter()
        .filter(|mount| mount.root == "/" && OWN.contains(&mount.kind) && !asked(&mount.path))
        .map(|mount| mount.device)
        .collect();
    let external: BTreeSet<&str> = mounts
        .iter()
        .filter(|mount| asked(&mount.path) || !own.contains(mount.device) || is_terminal(mount.kind, mount.root))
        .map(|mount| mount.path.as_str())
        .collect();
    external.into_iter().map(|path| format!("mnt[{path}]:{path}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_external_and_what_the_container_has_of_its_own_is_not() {
        let mountinfo = "\
47 53 0:45 / / rw,relatime - overlay none rw
49 47 254:0 /pods/p/etc/hosts /etc/hosts rw - ext4 /dev/vda rw
56 47 0:48 / /proc rw,nosuid - proc none rw
62 56 0:48 /sys /proc/sys ro,nosuid - proc none rw
63 56 0:49 /null /proc/kcore rw - tmpfs none rw
64 56 0:51 / /proc/scsi ro - tmpfs none ro
57 47 0:49 / /dev rw,nosuid - tmpfs none rw
48 57 0:47 / /dev/pts rw - devpts none rw
66 57 0:47 /ptmx /dev/ptmx rw - devpts none rw
67 57 0:47 /0 /dev/console rw - devpts none rw
59 57 0:42 / /dev/mqueue rw - mqueue none rw
60 57 0:44 / /dev/shm rw - tmpfs none rw
65 57 0:6 /fuse /dev/fuse rw - devtmpfs udev rw
58 47 0:22 / /sys ro - sysfs none rw
61 58 0:38 /pods/p/c /sys/fs/cgroup ro - cgroup2 none rw
70 47 0:60 / /memory rw - tmpfs none rw
71 70 0:61 / /memory/below\\040it rw - tmpfs none rw
72 47 0:62 / /memory2 rw - tmpfs none rw
";
        let external = external_mounts(mountinfo, &["/etc/hosts", "/memory"].into_iter().chain(OF_THE_POD).collect());
        let names: Vec<&str> = external
            .iter()
            .map(|e| e.strip_prefix("mnt[").and_then(|e| e.split_once("]:")).expect("a name").0)
            .collect();
        assert_eq!(
            names,
            [
                "/dev/console",
                "/dev/fuse",
                "/dev/mqueue",
                "/dev/shm",
                "/etc/hosts",
                "/memory",
                "/memory/below it",
                "/sys/fs/cgroup"
            ]
        );
    }

    #[test]
    fn the_last_errors_of_a_log_are_told() {
        let log = "(00.1) Error (criu/a.c:1): one\n(00.2) Warn  (criu/b.c:2): no\n(00.3) Error (criu/c.c:3): two: x\n";
        assert_eq!(errors(log), "criu/a.c:1: one; criu/c.c:3: two: x");
    }

    #[test]
    fn a_criu_that_is_not_there_is_named_with_the_remedy() {
        let e = find(Some(Path::new("/nonexistent/criu"))).expect_err("none");
        assert_eq!(e.kind(), crate::error::Kind::Unsupported);
        assert!(e.to_string().contains("checkpoint.criu"), "{e}");
    }
}
