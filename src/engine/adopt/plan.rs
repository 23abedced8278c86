//! What is to become of a pod whose shim has died, told from what is left of it. No I/O.

use std::time::{Duration, Instant};

/// How many shims of one pod may die in [`DEATHS_WITHIN`] until it counts as hopeless: something kills them, or the pod does.
const MAX_DEATHS: usize = 5;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// What is left of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// StopPodSandbox has ended.
    pub stopped: bool,
    /// Its records are of this boot.
    pub this_boot: bool,
    pub pause: Pause,
}

/// The pause process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// It was never made.
    None,
    Runs,
    /// And with it the pod's namespaces have ended.
    Ended,
}

/// What a pod gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pod {
    /// It holds nothing that a shim would be needed for.
    Nothing,
    /// A new shim.
    Shim,
    /// All of it is killed, and why.
    Death(&'static str),
}

/// What is to be done with a pod; `deaths` are those of its shims, this one's last.
pub fn pod(left: Left, deaths: &[Instant], now: Instant) -> Pod {
    let recent = deaths.iter().filter(|at| now.saturating_duration_since(**at) < DEATHS_WITHIN).count();
    match left {
        Left { stopped: true, .. } | Left { pause: Pause::None, .. } => Pod::Nothing,
        Left { this_boot: false, .. } => Pod::Death("it is of another boot"),
        Left { pause: Pause::Ended, .. } => Pod::Death("its pause process has died, too"),
        _ if recent > MAX_DEATHS => Pod::Death("its shims die again and again"),
        _ => Pod::Shim,
    }
}

/// What is left of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remains {
    /// `exit.json` is there.
    pub exit: bool,
    /// `process.json` is there.
    pub process: bool,
    /// There is a pidfd, of a process that runs or has ended.
    pub pidfd: bool,
}

/// What a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// It was not started, or whoever starts it sees that it cannot: there is nothing to hand over.
    Nothing,
    /// It has ended, as its record says.
    Ended,
    /// The new shim gets it, and finds out how it ends or has ended.
    Shim,
    /// It has ended and nobody saw it: what is left of it is killed.
    Death,
}

/// What is to be done with a container of a pod that gets a new shim.
pub fn container(remains: Remains) -> Container {
    match remains {
        Remains { exit: true, .. } => Container::Ended,
        Remains { process: false, .. } => Container::Nothing,
        Remains { pidfd: true, .. } => Container::Shim,
        Remains { pidfd: false, .. } => Container::Death,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: Left = Left { stopped: false, this_boot: true, pause: Pause::Runs };

    #[test]
    fn a_pod_whose_pause_runs_gets_a_shim_and_one_without_needs_none_or_dies() {
        let now = Instant::now();
        let of = |left| pod(left, &[now], now);
        assert_eq!(of(RUNS), Pod::Shim);
        assert!(matches!(of(Left { pause: Pause::Ended, ..RUNS }), Pod::Death(why) if why.contains("pause")));
        assert!(matches!(of(Left { this_boot: false, ..RUNS }), Pod::Death(_)));
        assert_eq!(of(Left { pause: Pause::None, ..RUNS }), Pod::Nothing, "whoever makes it takes it back");
        for pause in [Pause::Runs, Pause::Ended] {
            assert_eq!(of(Left { stopped: true, pause, ..RUNS }), Pod::Nothing);
        }
    }

    #[test]
    fn shims_that_die_again_and_again_are_not_replaced_for_ever() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let often: Vec<Instant> = (0..6).map(at).collect();
        assert_eq!(pod(RUNS, &often[..5], at(5)), Pod::Shim);
        assert!(matches!(pod(RUNS, &often, at(6)), Pod::Death(why) if why.contains("again")));
        let seldom: Vec<Instant> = (0..100).map(|n| at(n * 30)).collect();
        assert_eq!(pod(RUNS, &seldom, at(2970)), Pod::Shim);
    }

    #[test]
    fn a_container_is_handed_over_if_its_process_can_be_named_and_its_end_is_not_known() {
        let of = |exit, process, pidfd| container(Remains { exit, process, pidfd });
        assert_eq!(of(false, true, true), Container::Shim);
        assert_eq!(of(false, true, false), Container::Death);
        for pidfd in [false, true] {
            assert_eq!(of(true, true, pidfd), Container::Ended);
            assert_eq!(of(true, false, pidfd), Container::Ended, "it could not be started");
            assert_eq!(of(false, false, pidfd), Container::Nothing);
        }
    }
}
