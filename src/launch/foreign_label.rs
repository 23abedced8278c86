//! Whether a process that another OCI runtime has made has the SELinux label that was asked for.
//!
//! The label comes with the program that is executed (proc_pid_attr(5), `exec`), after the runtime's own call has ended: so it is looked at when
//! the program is. A runtime that knows nothing of labels, or was built without them, starts it with the shim's own, which may do nearly
//! everything: that it was started must not be the answer.

use super::{Child, StartError, Step, libc_errno};
use crate::sys::has_executed;
use crate::sys::poll::{Interest, poll_until};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How often it is asked whether the program is executed: the kernel tells that to tracers only. As a rule it is at once.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The longest label: a page, as the kernel writes it.
const MAX_LABEL_BYTES: u64 = 4096;

/// Waits until the program of `child` is executed, and compares its label. Without one to be had nothing is looked at.
///
/// # Errors
/// [`Step::Selinux`]: another label, or none was to be read; its `errno` is ETIMEDOUT when the program was not executed until then. The process is
/// the caller's to kill.
pub(super) fn check(child: &Child, asked: Option<&str>, until: Instant) -> Result<(), StartError> {
    let Some(asked) = asked else { return Ok(()) };
    let os = |e: io::Error| StartError::os(Step::Selinux, asked, e.raw_os_error().unwrap_or(0));
    let pid = child.process.pid; // not reaped yet, so it is nobody else's
    let mut ended = false;
    // Asked once more after its end: it may have had its program in between.
    while !has_executed(pid).map_err(os)? {
        if ended {
            return Ok(()); // without a program; whoever waits for it tells how
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let late = StartError::refused(Step::Selinux, "the runtime has ended, and the program is not executed");
            return Err(StartError { errno: libc_errno::ETIMEDOUT, ..late });
        }
        ended = poll_until(child.pidfd.as_fd(), Interest::Read, LOOK_EVERY.min(left)).map_err(os)?;
    }
    let mut found = Vec::new();
    let file = File::open(format!("/proc/{pid}/attr/current")).map_err(os)?;
    file.take(MAX_LABEL_BYTES).read_to_end(&mut found).map_err(os)?;
    compare(asked, &String::from_utf8_lossy(&found))
}

/// Labels are asked for as the kernel writes them.
fn compare(asked: &str, found: &str) -> Result<(), StartError> {
    let found = found.trim_end_matches(['\0', '\n']);
    if found == asked {
        return Ok(());
    }
    Err(StartError::refused(
        Step::Selinux,
        format!("the program runs as {found} and not as {asked}: the runtime does not heed process.selinuxLabel"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_the_same_as_the_kernel_ends_it_or_another() {
        assert!(compare("u:r:container_t:s0:c1,c2", "u:r:container_t:s0:c1,c2\0").is_ok());
        assert!(compare("u:r:container_t:s0:c1,c2", "u:r:container_t:s0:c1,c2\n").is_ok());
        for other in
            ["u:r:container_t:s0:c1,c23", "u:r:container_t:s0:c1", "kernel\n", "", "u:r:container_t:s0:c1,c2 x"]
        {
            let e = compare("u:r:container_t:s0:c1,c2", other).expect_err(other);
            assert!(e.step == Step::Selinux && e.message.contains("process.selinuxLabel"), "{e:?}");
        }
    }
}
