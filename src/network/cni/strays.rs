//! Plugins that a killed engine has left running: found by their environment, and waited for or killed before anybody works on the same pod.
//!
//! A plugin and those that it delegates to have CNI_CONTAINERID in their environment, with an id that is nobody else's. Engines that end
//! by themselves leave none: only for an attachment that this process did not make itself is there a look. One that is at work is given
//! time to end, for what it would leave half done a DEL may not be able to delete.

use crate::id::PodId;
use crate::sys;
use crate::sys::poll::Interest;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// asm-generic/signal.h.
const SIGKILL: i32 = 9;
/// How long they may take to end by themselves, all together. A plugin takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one may take to die of SIGKILL.
const DEATH: Duration = Duration::from_secs(5);
/// Bytes of an environment that are looked at.
const MAX_ENVIRONMENT: u64 = 256 << 10;

/// Waits for the end of the plugins that work on a pod, and kills those that take too long. Blocks. How many there were.
pub fn end(pod: &PodId) -> usize {
    end_within(pod, PATIENCE)
}

fn end_within(pod: &PodId, patience: Duration) -> usize {
    end_with(&format!("CNI_CONTAINERID={pod}"), patience, false)
}

/// The same for processes with this `NAME=value` in their environment, which may take so long to end by themselves; `failing`: they are to fail at
/// once, for they can write no files any more ([`super::exec::Call::patience`]).
pub fn end_with(wanted: &str, patience: Duration, failing: bool) -> usize {
    let until = Instant::now() + patience;
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut ended = 0;
    for pid in pids.filter(|pid| *pid != std::process::id() && has(*pid, wanted)) {
        // It may have ended meanwhile, and the number be another's: judged again with the pidfd open.
        let Ok(pidfd) = sys::pidfd::pidfd_open(pid) else { continue };
        if !has(pid, wanted) {
            continue;
        }
        ended += 1;
        if failing {
            let _ = sys::rlimit::forbid_files(pid); // ESRCH: it has ended in this moment
        }
        let has_ended = |within| sys::poll::poll_until(pidfd.as_fd(), Interest::Read, within).unwrap_or(true);
        if !has_ended(until.saturating_duration_since(Instant::now())) {
            let _ = sys::session::pidfd_send_signal(pidfd.as_fd(), SIGKILL); // ESRCH: it has ended in this moment
            let _ = has_ended(DEATH); // one that hangs in the kernel is not waited for
        }
    }
    ended
}

fn has(pid: u32, wanted: &str) -> bool {
    use std::io::Read;
    let mut bytes = Vec::new();
    // ENOENT, ESRCH: it has ended; a thread of the kernel has none.
    let read = std::fs::File::open(format!("/proc/{pid}/environ"))
        .and_then(|f| f.take(MAX_ENVIRONMENT).read_to_end(&mut bytes));
    read.is_ok() && bytes.split(|b| *b == 0).any(|variable| variable == wanted.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_works_on_that_pod_is_ended() {
        let (one, other) = (PodId::random(), PodId::random());
        let start = |pod: &PodId| {
            let mut command = std::process::Command::new("sleep");
            command.arg("1000").env("CNI_CONTAINERID", pod.as_str()).spawn().expect("sleep")
        };
        let (mut first, mut second) = (start(&one), start(&other));
        assert_eq!(end_within(&one, Duration::ZERO), 1);
        assert!(!first.wait().expect("wait").success());
        assert!(second.try_wait().expect("wait").is_none());
        assert_eq!((end(&one), end_within(&other, Duration::ZERO)), (0, 1));
        second.wait().expect("wait");
    }

    #[test]
    fn what_ends_by_itself_is_not_killed() {
        let pod = PodId::random();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "sleep 2; exit 7"]).env("CNI_CONTAINERID", pod.as_str());
        let mut child = command.spawn().expect("sh");
        assert!(end(&pod) >= 1);
        assert_eq!(child.wait().expect("wait").code(), Some(7));
    }
}
