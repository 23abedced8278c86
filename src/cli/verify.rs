//! `podwright verify`: a live pod against its plan. Reads the kernel's files; what they should say is `live`'s.

use super::Session;
use super::find::{self, Found, Target};
use super::live::{self, Check, Namespaces};
use super::output::{self, Format};
use crate::cgroup::Report;
use crate::engine::oci;
use crate::engine::pod::State;
use crate::engine::query::ContainerStatus;
use crate::error::{Context, Error, Kind, Result};
use crate::network;
use crate::state::record::Process;
use crate::sys;
use serde::Serialize;
use std::path::Path;

const EXAMPLES: &str = "\
Examples:
  podwright verify web                      limits, capabilities, mounts, namespaces of all its containers
  podwright verify -q web/nginx             only what differs
  podwright verify -o json web | jq .       exit code 1 when anything differs";

/// Compares a running pod with what it asked for: limits, users, capabilities, seccomp, mounts and namespaces, as the kernel has them
///
/// Exits with 1 when anything differs. A limit that the host cannot enforce differs, whether or not that was allowed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct VerifyArgs {
    /// POD, POD/CONTAINER, or the first digits of an id
    #[arg(required = true, value_name = "POD")]
    targets: Vec<String>,
    /// Have the plugins of a pod's CNI network check it too (CHECK); some, like Debian's, find fault with pods that are all right
    #[arg(long)]
    cni: bool,
    /// Print only what differs
    #[arg(short, long)]
    quiet: bool,
}

/// `-o json`.
#[derive(Serialize)]
struct Document {
    checks: Vec<Check>,
    differ: usize,
}

/// Namespaces of a spec and their names below /proc/PID/ns, namespaces(7).
const NAMESPACES: [(&str, &str); 7] = [
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("network", "net"),
    ("uts", "uts"),
    ("ipc", "ipc"),
    ("pid", "pid"),
    ("user", "user"),
];
/// The longest file of /proc that is read, in bytes: the mountinfo of the most mounts a container may have.
const MAX_FILE_BYTES: u64 = 4 << 20;

pub(super) fn run(args: &VerifyArgs, session: &Session) -> Result<u8> {
    super::require_root("verify")?;
    let mut checks = super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let mut checks = Vec::new();
        for target in find::targets(&all, &args.targets)? {
            match target {
                Target::Container(found, container) => checks.extend(verify_container(&found, &container)?),
                Target::Pod(found) => {
                    checks.extend(verify_pod(&found)?);
                    if args.cni {
                        checks.extend(check_network(&found).await);
                    }
                    for container in found.current().into_iter().filter(|c| c.state == State::Running) {
                        checks.extend(verify_container(&found, container)?);
                    }
                }
            }
        }
        Ok::<_, Error>(checks)
    })?;
    let (count, differ) = (checks.len(), checks.iter().filter(|check| !check.ok).count());
    checks.retain(|check| !args.quiet || !check.ok);
    match session.format {
        Format::Json => output::print_json(&Document { checks, differ })?,
        Format::Table => {
            if !checks.is_empty() {
                output::print(&output::table(
                    ["SUBJECT", "CHECK", "RESULT", "KERNEL", "NOTE"],
                    checks.iter().map(row),
                ))?;
            }
            let sum = if differ == 0 { "all ok".to_owned() } else { format!("{differ} differ") };
            output::note(&format!("{count} checks, {sum}"));
        }
    }
    Ok(u8::from(differ > 0))
}

/// A row of the table: what was expected only where it is not what was found.
fn row(check: &Check) -> [String; 5] {
    /// Characters of a value; `-o json` has all of them.
    const MAX_SHOWN: usize = 48;
    let shown = |text: &str| match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    };
    let (result, note) = match (check.ok, check.note.as_str()) {
        (true, note) => ("ok", note.to_owned()),
        (false, "") => ("DIFFERS", format!("expected {}", check.expected)),
        (false, note) => ("DIFFERS", format!("expected {}; {note}", check.expected)),
    };
    [check.subject.clone(), check.check.clone(), result.to_owned(), shown(&check.found), note]
}

fn verify_pod(found: &Found) -> Result<Vec<Check>> {
    let report = found.engine.verify_pod(&found.pod.record.id)?;
    let mut checks = limits(&report);
    checks.push(Check::new("sandbox", "ready", if found.pod.ready { "ready" } else { "not ready" }));
    Ok(named(checks, &found.name()))
}

/// What the plugins say of a pod on CNI; nothing of others.
async fn check_network(found: &Found) -> Vec<Check> {
    let attached = found.pod.network.as_ref().filter(|attachment| attachment.kind == network::Kind::Cni);
    let Some(attachment) = attached else { return Vec::new() };
    let said = match found.engine.network().cni().check(&found.pod.record.id).await {
        Ok(()) => "as attached".to_owned(),
        Err(e) => e.to_string(),
    };
    let check = Check::new(format!("CHECK of network {}", attachment.network), "as attached", said);
    named(vec![check], &found.name())
}

fn named(mut checks: Vec<Check>, subject: &str) -> Vec<Check> {
    checks.iter_mut().for_each(|check| subject.clone_into(&mut check.subject));
    checks
}

/// A row a file; what is not there is told with why.
fn limits(report: &Report) -> Vec<Check> {
    let check = |row: &crate::cgroup::Row| {
        if let Some(why) = &row.not_available {
            // Nobody asked for it: the pod is what its manifest says without it.
            let note = format!("nobody asked for it, and {why}");
            let check = Check::new(row.file.clone(), row.written.clone(), "not available");
            return Check { ok: true, note, ..check };
        }
        let kernel = row.kernel.clone().unwrap_or_else(|| "not enforced".to_owned());
        let why = report.warnings.iter().find(|w| w.starts_with(&format!("{} ", row.file)));
        let note = match (&row.kernel, &row.effective) {
            // The warning names file and cgroup, which stand in this row already.
            (None, _) => {
                why.map_or(String::new(), |w| w.split_once(": ").map_or(w.as_str(), |(_, why)| why).to_owned())
            }
            (Some(kernel), Some(effective)) if kernel != effective => {
                format!("in effect: {effective}, by a cgroup above")
            }
            _ => String::new(),
        };
        let check = Check::new(row.file.clone(), row.written.clone(), kernel);
        // What the kernel rounds is equal although it is written otherwise.
        Check { ok: row.holds, note, ..check }
    };
    report.rows.iter().map(check).collect()
}

fn verify_container(found: &Found, container: &ContainerStatus) -> Result<Vec<Check>> {
    let name = format!("{}/{}", found.name(), container.record.config.name);
    let running = container.process.as_ref().filter(|_| container.state == State::Running);
    let Some(process) = running else {
        return Err(Error::precondition(format!("container {name} does not run: there is nothing to verify")));
    };
    let mut checks = limits(&found.engine.verify_container(&container.record.id)?);
    checks.extend(verify_process(found, container, process.process, &process.user).context(|| name.clone())?);
    Ok(named(checks, &name))
}

fn verify_process(
    found: &Found,
    container: &ContainerStatus,
    process: Process,
    user: &crate::state::record::User,
) -> Result<Vec<Check>> {
    let (pid, spec) = (process.pid, &container.record.spec.value());
    let proc = |file: &str| read(&format!("/proc/{pid}/{file}"));
    let last: u32 = read("/proc/sys/kernel/cap_last_cap")?.trim().parse().unwrap_or(40);
    let mut checks = live::status(&proc("status")?, spec, user, &oci::seccomp(&container.record.config), last);
    let asked = spec["process"]["oomScoreAdj"].to_string();
    checks.push(Check::new("oom_score_adj", asked, proc("oom_score_adj")?.trim()));
    if let Some(label) = spec["process"]["selinuxLabel"].as_str() {
        checks.push(Check::new("SELinux label", label, proc("attr/current")?.trim_end_matches(['\0', '\n'])));
    }
    checks.extend(live::rlimits(&proc("limits")?, spec));
    checks.extend(live::namespaces(spec, &namespaces(found, container, pid)));
    // Links in the container's root would lead on from ours; masked and read-only paths are below /proc and /sys, which have none there.
    let exists = |path: &str| Path::new(&format!("/proc/{pid}/root{path}")).symlink_metadata().is_ok();
    checks.extend(live::mounts(&proc("mountinfo")?, spec, exists));
    // Only now is it certain that all of that was read of this process and not of one that got its pid.
    if !sys::start_time(pid).is_ok_and(|start| start == process.start_time) {
        return Err(Error::new(Kind::Unavailable, "it ended while it was looked at; try again"));
    }
    Ok(checks)
}

fn read(path: &str) -> Result<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).context(|| format!("open {path}"))?;
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).context(|| format!("read {path}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn namespaces(found: &Found, container: &ContainerStatus, pid: u32) -> Namespaces {
    let link = |pid: &str, ns: &str| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{ns}"));
        link.map(|l| l.to_string_lossy().into_owned()).unwrap_or_default()
    };
    // Of the shim, which left none of those it was started in: this command may run elsewhere.
    let host = found.pod.shim.pid.to_string();
    let pause = found.pod.sandbox.as_ref().map_or_else(String::new, |s| s.pause.pid.to_string());
    let target = container.record.config.security.pid_target.as_ref();
    let target = target.and_then(|id| found.containers.iter().find(|c| c.record.id == *id)?.process.as_ref());
    let target = target.map_or_else(String::new, |p| p.process.pid.to_string());
    let of = |(kind, ns): (&'static str, &'static str)| {
        (kind, [link(&pid.to_string(), ns), link(&pause, ns), link(&host, ns), link(&target, ns)])
    };
    Namespaces { links: NAMESPACES.map(of).to_vec() }
}
