//! Sentences for people from what a child reported: the step, its object out of the plan, the errno, and the reason where an errno
//! has one here.

use super::plan::{Plan, Process};
use super::report::Failed;
use super::{StartError, Step, libc_errno};
use std::ffi::CStr;

/// A failed step of a container's start.
pub(super) fn start_error(failed: Failed, plan: &Plan, process: &Process) -> StartError {
    let index = usize::from(failed.object);
    let object = match failed.step {
        Step::Mount => plan.mounts.get(index).map(|m| format!("/{}", m.target.to_string_lossy())),
        Step::DeviceNode => plan.devices.get(index).map(|d| format!("/dev/{}", d.path.to_string_lossy())),
        Step::Mask => plan.masked.get(index).map(|p| format!("/{}", p.to_string_lossy())),
        Step::ReadonlyPath => plan.readonly.get(index).map(|p| format!("/{}", p.to_string_lossy())),
        _ => None,
    };
    match object {
        Some(object) => with_reason(failed, StartError::os(failed.step, &object, failed.errno)),
        None => process_error(failed, process),
    }
}

/// A failed step of what containers and execs have in common.
pub(super) fn process_error(failed: Failed, process: &Process) -> StartError {
    let object = match failed.step {
        Step::Workdir => format!("/{}", process.cwd.to_string_lossy()),
        Step::Rlimit => process.rlimits.get(usize::from(failed.object)).map_or_else(String::new, |limit| {
            let number = |n: u64| if n == u64::MAX { "unlimited".to_owned() } else { n.to_string() };
            format!("{} to {}:{}", limit.resource.name(), number(limit.soft), number(limit.hard))
        }),
        Step::OomScoreAdj => process.oom_score_adj.to_string(),
        Step::AppArmor => process.apparmor.as_ref().map_or_else(String::new, |p| p.to_string_lossy().into_owned()),
        Step::Selinux => shown(process.selinux.as_deref()),
        Step::Exec => match (process.programs.get(usize::from(failed.object)), failed.errno) {
            (_, libc_errno::ENOENT) | (None, _) => {
                process.argv.first().map_or_else(String::new, |arg| format!("{:?}", arg.to_string_lossy()))
            }
            (Some(program), _) => program.to_string_lossy().into_owned(),
        },
        _ => String::new(),
    };
    let mut e = with_reason(failed, StartError::os(failed.step, &object, failed.errno));
    if let (Step::Exec | Step::Init, libc_errno::EACCES | libc_errno::EPERM, Some(label)) =
        (failed.step, failed.errno, &process.selinux)
    {
        e.message.push_str(&format!(
            ": if it is executable by its mode, SELinux does not let it become {}; the kernel's log says why (avc: denied)",
            label.to_string_lossy()
        ));
    }
    if failed.step == Step::Exec && failed.errno == libc_errno::ENOENT {
        let bare = process.argv.first().is_some_and(|arg| !arg.to_bytes().contains(&b'/'));
        e.message.push_str(if bare {
            ": not found in PATH"
        } else {
            ": not found, or the interpreter that it names is not"
        });
    }
    e
}

fn shown(text: Option<&CStr>) -> String {
    text.map_or_else(String::new, |text| text.to_string_lossy().into_owned())
}

/// Adds what an errno means at a step, where that is more than its own words say.
fn with_reason(failed: Failed, mut e: StartError) -> StartError {
    let reason = match (failed.step, failed.errno) {
        (Step::Mount | Step::Console, libc_errno::ELOOP) => "the image has a symbolic link where a directory must be",
        (Step::Mount, libc_errno::ENOTDIR) => "a directory and a file cannot be mounted on each other",
        (Step::Mount, libc_errno::EPERM) => "a link of the image leads into /proc, or the host forbids the mount",
        (Step::Workdir, libc_errno::ELOOP) => "it goes through links that lead out of the container or in a circle",
        (Step::Workdir, libc_errno::EXDEV) => "it is not inside the container's root",
        (Step::Workdir, libc_errno::EROFS) => "it does not exist, and the root is read-only",
        (Step::Rlimit, libc_errno::EPERM) => {
            "the host's limit is lower and CAP_SYS_RESOURCE is missing; give it that, or --allow-unenforced-limits"
        }
        (Step::OomScoreAdj, libc_errno::EACCES) => {
            "to lower it takes CAP_SYS_RESOURCE; give it that, or --allow-unenforced-limits"
        }
        (Step::AppArmor, libc_errno::ENOENT) => "the kernel has no such profile (any more), or no AppArmor",
        (Step::Selinux, libc_errno::EINVAL) => "the loaded policy has no such label (any more)",
        (Step::Selinux, libc_errno::EACCES) => "the loaded policy does not let podwright set labels of processes",
        (Step::Clone, libc_errno::EBUSY) => "threads in this process, or controllers enabled below the cgroup",
        (Step::Report, libc_errno::ETIMEDOUT) => "it did not get to its program in time, and was killed",
        _ => return e,
    };
    e.message.push_str(": ");
    e.message.push_str(reason);
    e
}
