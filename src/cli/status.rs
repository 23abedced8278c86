//! A pod and its containers in a word each, as kubectl has them. Pure.

use super::find::Found;
use crate::agent::convert::{GRACE_SECONDS, RESTART_POLICY, ROLES};
use crate::engine::pod::State;
use crate::state::model::{PodCgroup, PodConfig};
use crate::state::record::ExitRecord;
use std::time::Duration;

/// Grace of a pod that does not say, as in Kubernetes.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// Name and role of each container, in the manifest's order; empty for a pod of somebody else.
pub(super) fn roles(config: &PodConfig) -> Vec<(&str, &str)> {
    let text = config.annotations.get(ROLES).map_or("", String::as_str);
    text.split(',').filter_map(|pair| pair.split_once('=')).collect()
}

/// `Always`, `OnFailure`, `Never`; empty when it is not known.
pub(super) fn restart_policy(config: &PodConfig) -> &str {
    config.annotations.get(RESTART_POLICY).map_or("", String::as_str)
}

/// How long containers may take to stop.
pub(super) fn grace(config: &PodConfig) -> Duration {
    let seconds = config.annotations.get(GRACE_SECONDS).and_then(|s| s.parse().ok());
    seconds.map_or(DEFAULT_GRACE, Duration::from_secs)
}

/// The pod's class, which is where its cgroup is.
pub(super) fn qos(config: &PodConfig) -> &'static str {
    match &config.cgroup {
        PodCgroup::Own { path, .. } if path.starts_with("burstable/") => "Burstable",
        PodCgroup::Own { path, .. } if path.starts_with("besteffort/") => "BestEffort",
        PodCgroup::Own { .. } => "Guaranteed",
        PodCgroup::Default | PodCgroup::Given(_) => "",
    }
}

/// What a table says of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summary {
    /// App containers and sidecars that run, and how many there are to be.
    pub ready: usize,
    pub total: usize,
    pub status: String,
    pub restarts: u32,
}

/// What is asked of one container for that.
#[derive(Debug, Clone, Copy)]
struct Seen<'a> {
    role: &'a str,
    /// `None`: it was not made yet.
    state: Option<State>,
    exit: Option<&'a ExitRecord>,
    attempt: u32,
}

pub(super) fn summary(found: &Found) -> Summary {
    let config = &found.pod.record.config;
    let current = found.current();
    let mut roles = roles(config);
    if roles.is_empty() {
        roles = current.iter().map(|c| (c.record.config.name.as_str(), "app")).collect();
    }
    let seen: Vec<Seen<'_>> = roles
        .iter()
        .map(|(name, role)| {
            let container = current.iter().find(|c| c.record.config.name == *name);
            Seen {
                role,
                state: container.map(|c| c.state),
                exit: container.and_then(|c| c.exit.as_ref()),
                attempt: container.map_or(0, |c| c.record.config.attempt),
            }
        })
        .collect();
    let mut summary = summarise(&seen, restart_policy(config));
    if found.pod.damaged.is_some() {
        summary.status = "Unreadable".to_owned();
    } else if found.pod.shim_lost {
        summary.status = "ShimLost".to_owned();
    } else if !found.pod.ready {
        summary.status = "NotReady".to_owned();
    }
    summary
}

fn summarise(seen: &[Seen<'_>], restart_policy: &str) -> Summary {
    let running = |s: &Seen<'_>| s.state == Some(State::Running);
    let lasting = || seen.iter().filter(|s| s.role != "init");
    Summary {
        ready: lasting().filter(|s| running(s)).count(),
        total: lasting().count(),
        restarts: seen.iter().map(|s| s.attempt).sum(),
        status: status(seen, restart_policy),
    }
}

/// How it failed, if it did; a kill for memory is a failure whatever the code.
fn failed<'a>(seen: &Seen<'a>) -> Option<&'a ExitRecord> {
    seen.exit.filter(|e| e.status.code() != 0 || e.oom.is_some())
}

fn status(seen: &[Seen<'_>], restart_policy: &str) -> String {
    let reason = |exit: &ExitRecord| exit.status.reason(exit.oom);
    let inits: Vec<&Seen<'_>> = seen.iter().filter(|s| s.role != "app").collect();
    let passed = |s: &&&Seen<'_>| match s.role {
        "sidecar" => s.state == Some(State::Running) || s.exit.is_some(),
        _ => s.exit.is_some() && failed(s).is_none(),
    };
    let done = inits.iter().filter(passed).count();
    let apps: Vec<&Seen<'_>> = seen.iter().filter(|s| s.role == "app").collect();
    if apps.iter().all(|s| s.state.is_none()) && done < inits.len() {
        return match inits.iter().find_map(|s| failed(s).filter(|_| s.role == "init")) {
            Some(_) if restart_policy != "Never" => "Init:CrashLoopBackOff".to_owned(),
            Some(exit) => format!("Init:{}", reason(exit)),
            None => format!("Init:{done}/{}", inits.len()),
        };
    }
    if apps.iter().any(|s| s.state.is_none() || s.state == Some(State::Created)) {
        return "ContainerCreating".to_owned();
    }
    let waits = |s: &&Seen<'_>| {
        s.exit.is_some() && (restart_policy == "Always" || restart_policy == "OnFailure" && failed(s).is_some())
    };
    if apps.iter().copied().any(|s| waits(&s)) {
        return "CrashLoopBackOff".to_owned();
    }
    if apps.iter().any(|s| s.state == Some(State::Running)) {
        return "Running".to_owned();
    }
    match apps.iter().find_map(|s| failed(s)) {
        Some(exit) => reason(exit).to_owned(),
        None => "Completed".to_owned(),
    }
}

/// How a container ended: `Exited (0)`, `Exited (137, OOMKilled)`.
pub(super) fn ended(code: i32, reason: &str) -> String {
    if reason == "Completed" { "Exited (0)".to_owned() } else { format!("Exited ({code}, {reason})") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::record::{ExitStatus, Oom};

    fn exit(code: u8) -> ExitRecord {
        ExitRecord { status: ExitStatus::Exited(code), finished_at_ns: 0, oom: None, message: String::new() }
    }

    #[test]
    fn a_pods_status_is_kubectls() {
        let (good, bad) = (exit(0), exit(3));
        let oom = ExitRecord { status: ExitStatus::Signaled(9), oom: Some(Oom::Container), ..exit(0) };
        let waiting = |role| Seen { role, state: None, exit: None, attempt: 0 };
        let running = |role| Seen { state: Some(State::Running), ..waiting(role) };
        let made = |role| Seen { state: Some(State::Created), ..waiting(role) };
        let ended = |role, exit| Seen { state: Some(State::Exited), exit: Some(exit), ..waiting(role) };
        for (seen, policy, expected) in [
            (vec![waiting("app")], "Always", "ContainerCreating"),
            (vec![made("app")], "Always", "ContainerCreating"),
            (vec![running("app"), waiting("app")], "Always", "ContainerCreating"),
            (vec![running("app")], "Always", "Running"),
            (vec![running("init"), waiting("app")], "Always", "Init:0/1"),
            (vec![ended("init", &good), waiting("init"), waiting("app")], "Never", "Init:1/2"),
            (vec![ended("init", &good), running("sidecar"), running("app")], "Never", "Running"),
            (vec![ended("init", &bad), waiting("app")], "Never", "Init:Error"),
            (vec![ended("init", &bad), waiting("app")], "Always", "Init:CrashLoopBackOff"),
            (vec![ended("app", &bad)], "Always", "CrashLoopBackOff"),
            (vec![ended("app", &good)], "Always", "CrashLoopBackOff"),
            (vec![ended("app", &good)], "OnFailure", "Completed"),
            (vec![ended("app", &bad), ended("app", &good)], "Never", "Error"),
            (vec![ended("app", &oom)], "Never", "OOMKilled"),
            (vec![ended("app", &good), running("app")], "Never", "Running"),
        ] {
            assert_eq!(status(&seen, policy), expected, "{policy} {seen:?}");
        }
    }

    #[test]
    fn init_containers_count_for_restarts_and_not_for_ready() {
        let good = exit(0);
        let seen = [
            Seen { role: "init", state: Some(State::Exited), exit: Some(&good), attempt: 2 },
            Seen { role: "sidecar", state: Some(State::Running), exit: None, attempt: 1 },
            Seen { role: "app", state: Some(State::Running), exit: None, attempt: 0 },
        ];
        let summary = summarise(&seen, "Always");
        assert_eq!((summary.ready, summary.total, summary.restarts), (2, 2, 3));
    }
}
