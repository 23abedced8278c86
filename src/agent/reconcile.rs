//! What to do next with a pod, from what its containers are doing: [`decide`]. Pure; the loop that observes and acts is thin.
//!
//! The rules are the kubelet's (pkg/kubelet/kuberuntime, pkg/kubelet/kubelet_pods.go), with the phase of a pod from a file:
//!
//! * init containers one after another, each to its success; a sidecar is passed when it runs; then all app containers at once;
//! * an ended container starts again as its policy says: at once the first time, then after 10 s, 20 s, ... 300 s since its end;
//!   ten minutes of running make the next one the first again;
//! * an init container that failed and may not be retried fails the pod, and no app container ever starts;
//! * sidecars are restarted whatever the policy, do not keep the pod alive, and stop last, in reverse order.
//!
//! Times are durations on one clock of the caller that does not jump.

use super::convert::Role;
use super::pod::RestartPolicy;
use std::time::Duration;

/// Back-off before the second restart; it doubles from there (pkg/kubelet/kubelet.go).
const FIRST_DELAY: Duration = Duration::from_secs(10);
/// Longest back-off.
const MAX_DELAY: Duration = Duration::from_secs(300);

/// What does not change while a pod lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// As in the plan: init containers and sidecars, then app containers.
    pub roles: Vec<Role>,
    pub restart_policy: RestartPolicy,
    /// Since the pod's start.
    pub deadline: Option<Duration>,
}

/// What is known of a container now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Observed {
    pub state: State,
    /// How often it was started again.
    pub restarts: u32,
    /// As [`Action::Start`] gave it last.
    pub backoff: Option<Backoff>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Never started.
    #[default]
    Waiting,
    /// A start is under way.
    Starting,
    Running,
    /// A stop is under way.
    Stopping,
    Exited(End),
}

/// How a container ended, or why it could not start (128).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub code: i32,
    /// Something in it was killed for memory.
    pub oom_killed: bool,
    pub at: Duration,
}

/// The kubelet's back-off entry of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub delay: Duration,
    pub updated_at: Duration,
}

/// Something to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start container `index`; its state is [`State::Starting`] from now on and it keeps `backoff`. `restart`: count one more.
    Start { index: usize, restart: bool, backoff: Option<Backoff> },
    /// Stop it gracefully; its state is [`State::Stopping`] from now on.
    Stop { index: usize },
}

/// pod.status.phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

/// What a round decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub actions: Vec<Action>,
    /// When to decide again if nothing is observed before.
    pub wake_at: Option<Duration>,
    pub phase: Phase,
    /// Nothing runs and nothing will: the sandbox can go.
    pub finished: bool,
    /// `DeadlineExceeded` of a pod that took too long.
    pub reason: Option<&'static str>,
}

/// What the pod was asked beside its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// When its sandbox was ready.
    pub started_at: Duration,
    /// It is to end: `stop`, Ctrl-C, a removed file.
    pub stop: bool,
}

impl Observed {
    /// Ended with success. An init container in which something was killed for memory has failed even with 0, as in the kubelet.
    fn succeeded(&self, role: Role) -> bool {
        matches!(self.state, State::Exited(end) if end.code == 0 && !(role == Role::Init && end.oom_killed))
    }

    fn ever_started(&self) -> bool {
        self.state != State::Waiting || self.restarts > 0
    }

    fn is_live(&self) -> bool {
        matches!(self.state, State::Starting | State::Running | State::Stopping)
    }
}

impl Backoff {
    /// Whether an end at `at` is too long after the last restart to count with it.
    fn expired(&self, at: Duration) -> bool {
        at.saturating_sub(self.updated_at) > 2 * MAX_DELAY
    }
}

impl Rules {
    /// Whether an ended container starts again.
    fn restarts(&self, role: Role, container: &Observed) -> bool {
        match (role, self.restart_policy) {
            (Role::Sidecar, _) => true,
            (_, RestartPolicy::Never) => false,
            (Role::Init, _) | (_, RestartPolicy::OnFailure) => !container.succeeded(role),
            (Role::App, RestartPolicy::Always) => true,
        }
    }

    fn indices(&self, apps: bool) -> impl DoubleEndedIterator<Item = usize> + '_ {
        (0..self.roles.len()).filter(move |i| (self.roles[*i] == Role::App) == apps)
    }
}

/// One round.
struct Round<'a> {
    rules: &'a Rules,
    containers: &'a [Observed],
    now: Duration,
    decision: Decision,
}

/// Decides what to do now. `containers` are as many as the rules' roles, in their order.
pub fn decide(rules: &Rules, containers: &[Observed], wish: Wish, now: Duration) -> Decision {
    let decision =
        Decision { actions: Vec::new(), wake_at: None, phase: Phase::Pending, finished: false, reason: None };
    let mut round = Round { rules, containers, now, decision };
    debug_assert_eq!(rules.roles.len(), containers.len(), "one state for each container");
    let deadline = rules.deadline.map(|d| wish.started_at + d);
    round.decision.phase = phase(rules, containers);
    // A pod that was complete in time stays so, however late that is looked at.
    let in_time = |d: Duration| {
        round.is_complete() && containers.iter().all(|c| !matches!(c.state, State::Exited(end) if end.at > d))
    };
    let over = deadline.is_some_and(|d| now >= d && !in_time(d));
    if over {
        round.decision.phase = Phase::Failed;
        round.decision.reason = Some("DeadlineExceeded");
    }
    if over || wish.stop || round.is_complete() {
        round.end();
        return round.decision;
    }
    round.decision.wake_at = deadline;
    if round.initialize() {
        round.apps();
    }
    round.decision
}

impl Round<'_> {
    fn get(&self, index: usize) -> (Role, &Observed) {
        (self.rules.roles[index], &self.containers[index])
    }

    /// Whether the pod has done all it will: an init container failed for good, or every app container ended for good.
    fn is_complete(&self) -> bool {
        let ended_for_good = |i: usize| {
            let (role, container) = self.get(i);
            matches!(container.state, State::Exited(_)) && !self.rules.restarts(role, container)
        };
        let failed = |i: usize| {
            let (role, container) = self.get(i);
            role == Role::Init && ended_for_good(i) && !container.succeeded(role)
        };
        let no_app_ran = self.rules.indices(true).all(|i| !self.containers[i].ever_started());
        (no_app_ran && self.rules.indices(false).any(failed)) || self.rules.indices(true).all(ended_for_good)
    }

    /// Stops what runs: everything but sidecars at once, then the sidecars, the last first.
    fn end(&mut self) {
        let live = |i: &usize| self.containers[*i].is_live();
        let sidecar = |i: &usize| self.rules.roles[*i] == Role::Sidecar;
        let others: Vec<usize> = (0..self.rules.roles.len()).filter(|i| live(i) && !sidecar(i)).collect();
        let last = (0..self.rules.roles.len()).rev().find(|i| live(i) && sidecar(i));
        let turn = if others.is_empty() { last.into_iter().collect() } else { others };
        self.decision.finished = turn.is_empty();
        for index in turn {
            // One that is starting is stopped when it is seen to run.
            if self.containers[index].state == State::Running {
                self.decision.actions.push(Action::Stop { index });
            }
        }
    }

    /// Goes through the init containers and sidecars as far as they let; `true`: app containers may run.
    fn initialize(&mut self) -> bool {
        let apps_ran = self.rules.indices(true).any(|i| self.containers[i].ever_started());
        let reached = self.rules.indices(false).rev().find(|i| self.containers[*i].ever_started());
        for index in self.rules.indices(false).collect::<Vec<_>>() {
            let (role, container) = self.get(index);
            match role {
                // Once an app container was started, init containers are history, even those whose records are gone.
                Role::Init if apps_ran || container.succeeded(role) => continue,
                Role::Init => {
                    self.start(index);
                    return false;
                }
                _ => {
                    let running = container.state == State::Running;
                    let passed = apps_ran || reached.is_some_and(|r| r > index);
                    self.start(index);
                    if !running && !passed {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn apps(&mut self) {
        for index in self.rules.indices(true).collect::<Vec<_>>() {
            self.start(index);
        }
    }

    /// Starts a container that waits, or has ended and may start again, unless its back-off lasts.
    fn start(&mut self, index: usize) {
        let (role, container) = self.get(index);
        match container.state {
            State::Waiting => {
                self.decision.actions.push(Action::Start { index, restart: false, backoff: None });
            }
            State::Exited(end) if self.rules.restarts(role, container) => {
                let backoff = match container.backoff.filter(|b| !b.expired(end.at)) {
                    None => Backoff { delay: FIRST_DELAY, updated_at: self.now },
                    Some(b) if self.now.saturating_sub(end.at) < b.delay => {
                        let at = end.at + b.delay;
                        self.decision.wake_at = Some(self.decision.wake_at.map_or(at, |w| w.min(at)));
                        return;
                    }
                    Some(b) => Backoff { delay: (2 * b.delay).min(MAX_DELAY), updated_at: self.now },
                };
                self.decision.actions.push(Action::Start { index, restart: true, backoff: Some(backoff) });
            }
            _ => {}
        }
    }
}

/// The pod's phase (kubelet_pods.go, getPhase): a container that ended and will start again counts as stopped, which is why a
/// crash-looping pod is Running.
pub fn phase(rules: &Rules, containers: &[Observed]) -> Phase {
    let get = |i: usize| (rules.roles[i], &containers[i]);
    let ended = |i: usize| matches!(containers[i].state, State::Exited(_));
    let apps_ran = rules.indices(true).any(|i| containers[i].ever_started());
    for index in rules.indices(false) {
        let (role, container) = get(index);
        match role {
            _ if apps_ran => {}
            Role::Init if container.succeeded(role) => {}
            Role::Init if ended(index) && !rules.restarts(role, container) => return Phase::Failed,
            Role::Init => return Phase::Pending,
            _ if !container.ever_started() => return Phase::Pending,
            _ => {}
        }
    }
    if rules
        .indices(true)
        .any(|i| !containers[i].ever_started() || containers[i].state == State::Starting && containers[i].restarts == 0)
    {
        return Phase::Pending;
    }
    if rules.indices(true).any(|i| !ended(i) || rules.restarts(Role::App, &containers[i])) {
        return Phase::Running;
    }
    if rules.indices(true).all(|i| containers[i].succeeded(Role::App)) { Phase::Succeeded } else { Phase::Failed }
}

/// A condition of the pod: its type, whether it is True, and the reason when it is not.
pub type Condition = (&'static str, bool, Option<&'static str>);

/// The pod's conditions (pkg/kubelet/status/generate.go). Without probes a container is ready when it runs.
pub fn conditions(rules: &Rules, containers: &[Observed], sandbox_ready: bool) -> [Condition; 5] {
    let phase = phase(rules, containers);
    let apps_ran = rules.indices(true).any(|i| containers[i].ever_started());
    let init_done = |i: usize| match rules.roles[i] {
        Role::Init => containers[i].succeeded(Role::Init),
        _ => containers[i].state == State::Running,
    };
    let initialized = apps_ran || rules.indices(false).all(init_done);
    let ready = (0..rules.roles.len()).filter(|i| rules.roles[*i] != Role::Init);
    let ready = ready.clone().count() > 0 && ready.clone().all(|i| containers[i].state == State::Running);
    let unready = match phase {
        _ if ready => None,
        Phase::Succeeded => Some("PodCompleted"),
        Phase::Failed => Some("PodFailed"),
        _ => Some("ContainersNotReady"),
    };
    [
        ("PodReadyToStartContainers", sandbox_ready, None),
        ("Initialized", initialized, (!initialized).then_some("ContainersNotInitialized")),
        ("ContainersReady", ready, unready),
        ("Ready", ready, unready),
        ("PodScheduled", true, None),
    ]
}

/// Why a container is not running: state.waiting of its status, as kubectl shows it.
pub fn waiting(rules: &Rules, index: usize, container: &Observed, now: Duration) -> Option<(&'static str, String)> {
    match container.state {
        State::Waiting if rules.indices(false).next().is_some() && rules.roles.get(index) == Some(&Role::App) => {
            Some(("PodInitializing", String::new()))
        }
        State::Waiting if rules.indices(false).next().is_some() => Some(("PodInitializing", String::new())),
        State::Waiting | State::Starting => Some(("ContainerCreating", String::new())),
        State::Exited(end) => {
            let role = *rules.roles.get(index)?;
            let backoff = container.backoff.filter(|b| !b.expired(end.at) && rules.restarts(role, container))?;
            let left = (end.at + backoff.delay).saturating_sub(now);
            (!left.is_zero()).then(|| {
                ("CrashLoopBackOff", format!("back-off {}s restarting failed container", backoff.delay.as_secs()))
            })
        }
        State::Running | State::Stopping => None,
    }
}

/// The exit code of a pod that has ended, as `run` gives it on: that of the first container in the file that failed, init
/// containers first; 0 if none did. Sidecars do not count, they are killed.
pub fn exit_code(rules: &Rules, containers: &[Observed]) -> i32 {
    let counted = rules.roles.iter().zip(containers).filter(|(role, _)| **role != Role::Sidecar);
    let code = |(role, container): (&Role, &Observed)| match container.state {
        State::Exited(end) if !container.succeeded(*role) => Some(if end.code == 0 { 137 } else { end.code }),
        _ => None,
    };
    counted.filter_map(code).next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    /// A pod whose containers do what a test says.
    struct Pod {
        rules: Rules,
        containers: Vec<Observed>,
        wish: Wish,
        now: Duration,
    }

    impl Pod {
        fn new(roles: &[Role], restart_policy: RestartPolicy) -> Self {
            Pod {
                rules: Rules { roles: roles.to_vec(), restart_policy, deadline: None },
                containers: vec![Observed::default(); roles.len()],
                wish: Wish::default(),
                now: S(0),
            }
        }

        fn decide(&self) -> Decision {
            decide(&self.rules, &self.containers, self.wish, self.now)
        }

        /// Does what is decided, starts succeeding at once, and says which were started.
        fn step(&mut self) -> Vec<usize> {
            let mut started = Vec::new();
            for action in self.decide().actions {
                if let Action::Start { index, restart, backoff } = action {
                    let container = &mut self.containers[index];
                    *container = Observed {
                        state: State::Running,
                        restarts: container.restarts + u32::from(restart),
                        backoff: backoff.or(container.backoff),
                    };
                    started.push(index);
                }
            }
            started
        }

        fn exit(&mut self, index: usize, code: i32) {
            self.containers[index].state = State::Exited(End { code, oom_killed: false, at: self.now });
        }

        fn stops(&self) -> Vec<usize> {
            let stop = |a: &Action| if let Action::Stop { index } = a { Some(*index) } else { None };
            self.decide().actions.iter().filter_map(stop).collect()
        }
    }

    use Role::{App, Init, Sidecar};

    #[test]
    fn init_containers_run_one_after_another_and_app_containers_all_at_once() {
        let mut pod = Pod::new(&[Init, Init, App, App], RestartPolicy::Always);
        assert_eq!(pod.step(), [0]);
        assert_eq!((pod.step(), pod.decide().phase), (vec![], Phase::Pending), "the second waits for the first's end");
        pod.exit(0, 0);
        assert_eq!(pod.step(), [1]);
        pod.exit(1, 0);
        assert_eq!(pod.decide().actions.len(), 2, "both apps in one round");
        assert_eq!(pod.step(), [2, 3]);
        assert_eq!(pod.decide().phase, Phase::Running);
    }

    #[test]
    fn a_failed_init_container_ends_a_pod_that_may_not_restart_and_no_app_ever_starts() {
        let mut pod = Pod::new(&[Sidecar, Init, Init, App], RestartPolicy::Never);
        assert_eq!((pod.step(), pod.step()), (vec![0], vec![1]));
        pod.exit(1, 3);
        assert_eq!((pod.stops(), pod.decide().finished), (vec![0], false), "the sidecar goes first");
        pod.exit(0, 143);
        let decision = pod.decide();
        assert_eq!((decision.actions.len(), decision.finished, decision.phase), (0, true, Phase::Failed));
        assert_eq!(exit_code(&pod.rules, &pod.containers), 3);
    }

    #[test]
    fn a_failed_init_container_is_retried_under_always_and_on_failure() {
        for policy in [RestartPolicy::Always, RestartPolicy::OnFailure] {
            let mut pod = Pod::new(&[Init, App], policy);
            pod.step();
            pod.exit(0, 1);
            assert_eq!((pod.step(), pod.containers[0].restarts), (vec![0], 1), "{policy:?}");
            pod.exit(0, 0);
            assert_eq!(pod.step(), [1], "{policy:?}");
        }
    }

    #[test]
    fn an_init_container_with_a_memory_kill_has_failed_even_with_zero() {
        let mut pod = Pod::new(&[Init, App], RestartPolicy::Never);
        pod.step();
        pod.containers[0].state = State::Exited(End { code: 0, oom_killed: true, at: S(0) });
        assert_eq!((pod.decide().phase, pod.decide().finished), (Phase::Failed, true));
        assert_eq!(exit_code(&pod.rules, &pod.containers), 137);
    }

    #[test]
    fn the_back_off_doubles_from_ten_seconds_to_five_minutes_and_the_first_restart_is_at_once() {
        let mut pod = Pod::new(&[App], RestartPolicy::Always);
        pod.step();
        let mut waits = Vec::new();
        for _ in 0..9 {
            pod.exit(0, 0); // success is no exception
            let ended = pod.now;
            if pod.step().is_empty() {
                pod.now = pod.decide().wake_at.expect("it says when");
                let just_before =
                    Pod { now: pod.now - Duration::from_nanos(1), ..Pod::new(&[App], RestartPolicy::Always) };
                let early = decide(&pod.rules, &pod.containers, pod.wish, just_before.now);
                assert!(early.actions.is_empty(), "not a nanosecond before");
                assert_eq!(pod.decide().phase, Phase::Running, "a crash loop is Running");
                assert_eq!(pod.step(), [0]);
            }
            waits.push((pod.now - ended).as_secs());
            pod.now += S(1);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_running_make_the_next_restart_the_first_again() {
        let mut pod = Pod::new(&[App], RestartPolicy::Always);
        pod.step();
        for _ in 0..3 {
            pod.exit(0, 1);
            pod.now = pod.decide().wake_at.unwrap_or(pod.now);
            pod.step();
        }
        pod.now += S(601);
        pod.exit(0, 1);
        assert_eq!(pod.step(), [0]);
        assert_eq!(pod.containers[0].backoff.expect("kept").delay, FIRST_DELAY);
        pod.now += S(5);
        pod.exit(0, 1);
        let (reason, message) = waiting(&pod.rules, 0, &pod.containers[0], pod.now).expect("it waits");
        assert_eq!((reason, message.as_str()), ("CrashLoopBackOff", "back-off 10s restarting failed container"));
    }

    #[test]
    fn policies_decide_what_an_end_means() {
        for (policy, code, restarted, phase) in [
            (RestartPolicy::Always, 0, true, Phase::Running),
            (RestartPolicy::Always, 1, true, Phase::Running),
            (RestartPolicy::OnFailure, 0, false, Phase::Succeeded),
            (RestartPolicy::OnFailure, 1, true, Phase::Running),
            (RestartPolicy::Never, 0, false, Phase::Succeeded),
            (RestartPolicy::Never, 1, false, Phase::Failed),
        ] {
            let mut pod = Pod::new(&[App], policy);
            pod.step();
            pod.exit(0, code);
            let decision = pod.decide();
            assert_eq!((decision.phase, decision.finished), (phase, !restarted), "{policy:?} {code}");
            assert_eq!(!pod.step().is_empty(), restarted, "{policy:?} {code}");
        }
    }

    #[test]
    fn a_pod_lasts_as_long_as_its_last_app_container() {
        let mut pod = Pod::new(&[App, App], RestartPolicy::Never);
        pod.step();
        pod.exit(1, 4);
        assert_eq!((pod.decide().phase, pod.decide().finished), (Phase::Running, false));
        pod.exit(0, 5);
        assert_eq!((pod.decide().phase, pod.decide().finished), (Phase::Failed, true));
        assert_eq!(exit_code(&pod.rules, &pod.containers), 5, "the first in the file, not in time");
    }

    #[test]
    fn a_sidecar_starts_in_its_turn_is_kept_running_and_does_not_keep_the_pod() {
        let mut pod = Pod::new(&[Init, Sidecar, Init, App], RestartPolicy::Never);
        pod.step();
        pod.exit(0, 0);
        assert_eq!(pod.step(), [1]);
        pod.containers[1].state = State::Starting;
        assert_eq!(pod.step(), Vec::<usize>::new(), "it must run before the next starts");
        pod.containers[1].state = State::Running;
        assert_eq!(pod.step(), [2]);
        pod.exit(1, 0);
        assert_eq!(pod.step(), [1], "restarted in spite of Never and of 0, while an init container runs");
        pod.exit(2, 0);
        assert_eq!(pod.step(), [3]);
        pod.exit(1, 1);
        assert_eq!(pod.step(), Vec::<usize>::new(), "now it backs off");
        pod.now += S(10);
        assert_eq!(pod.step(), [1]);
        pod.exit(3, 0);
        assert_eq!((pod.stops(), pod.decide().phase), (vec![1], Phase::Succeeded));
        pod.exit(1, 137);
        assert!(pod.decide().finished);
        assert_eq!(exit_code(&pod.rules, &pod.containers), 0, "how a sidecar was killed is nobody's failure");
    }

    #[test]
    fn a_crashed_sidecar_that_nothing_has_passed_holds_the_rest_back() {
        let mut pod = Pod::new(&[Sidecar, App], RestartPolicy::Always);
        pod.step();
        pod.exit(0, 1);
        assert_eq!(pod.step(), [0]);
        pod.exit(0, 1);
        assert_eq!((pod.step(), pod.decide().wake_at), (vec![], Some(S(10))));
    }

    #[test]
    fn a_stop_takes_apps_together_and_then_sidecars_from_the_last() {
        let mut pod = Pod::new(&[Sidecar, Sidecar, App, App], RestartPolicy::Always);
        pod.step();
        pod.step();
        pod.step();
        pod.wish.stop = true;
        assert_eq!(pod.stops(), [2, 3]);
        pod.containers[2].state = State::Stopping;
        pod.exit(3, 143);
        assert_eq!((pod.stops(), pod.decide().finished), (vec![], false), "one app is still stopping");
        pod.exit(2, 143);
        assert_eq!(pod.stops(), [1]);
        pod.exit(1, 143);
        assert_eq!(pod.stops(), [0]);
        pod.exit(0, 143);
        assert!(pod.decide().finished && pod.decide().actions.is_empty(), "and nothing is restarted");
    }

    #[test]
    fn a_deadline_fails_the_pod_unless_it_was_complete_in_time() {
        let mut pod = Pod::new(&[App], RestartPolicy::Never);
        pod.rules.deadline = Some(S(60));
        pod.wish.started_at = S(5);
        pod.step();
        assert_eq!(pod.decide().wake_at, Some(S(65)));
        pod.now = S(65);
        assert_eq!(
            (pod.stops(), pod.decide().phase, pod.decide().reason),
            (vec![0], Phase::Failed, Some("DeadlineExceeded"))
        );
        pod.now = S(66);
        pod.exit(0, 0);
        let decision = pod.decide();
        assert_eq!((decision.finished, decision.phase), (true, Phase::Failed), "ending well afterwards is too late");
        pod.containers[0].state = State::Exited(End { code: 0, oom_killed: false, at: S(64) });
        assert_eq!((pod.decide().phase, pod.decide().reason), (Phase::Succeeded, None));
    }

    #[test]
    fn conditions_tell_how_far_a_pod_is() {
        let mut pod = Pod::new(&[Init, App], RestartPolicy::Always);
        let show = |pod: &Pod| conditions(&pod.rules, &pod.containers, true).map(|(_, on, reason)| (on, reason));
        pod.step();
        assert_eq!(show(&pod)[1], (false, Some("ContainersNotInitialized")));
        assert_eq!(waiting(&pod.rules, 1, &pod.containers[1], pod.now), Some(("PodInitializing", String::new())));
        pod.exit(0, 0);
        pod.step();
        assert_eq!(show(&pod), [(true, None); 5]);
        pod.exit(1, 1);
        assert_eq!(
            show(&pod)[1..4],
            [(true, None), (false, Some("ContainersNotReady")), (false, Some("ContainersNotReady"))]
        );
    }

    proptest::proptest! {
        /// Whatever happens to the containers, init order holds and a finished pod has nothing to do.
        #[test]
        fn invariants_hold_in_every_state(
            roles in proptest::collection::vec(0u8..3, 1..6),
            states in proptest::collection::vec((0u8..6, 0u32..2), 6),
            policy in 0u8..3, stop: bool, now in 0u64..1000,
        ) {
            let mut roles: Vec<Role> = roles.iter().map(|r| [Init, Sidecar, App][usize::from(*r)]).collect();
            roles.sort_by_key(|r| *r == App);
            roles.push(App);
            let policy = [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never][usize::from(policy)];
            let mut pod = Pod::new(&roles, policy);
            for (container, (state, code)) in pod.containers.iter_mut().zip(&states) {
                let end = End { code: i32::from(*code != 0), oom_killed: false, at: S(now / 2) };
                container.state = [State::Waiting, State::Starting, State::Running, State::Stopping, State::Exited(end),
                    State::Exited(end)][usize::from(*state)];
            }
            pod.wish.stop = stop;
            pod.now = S(now);
            let decision = pod.decide();
            let apps_before = pod.containers.iter().zip(&roles).any(|(c, r)| *r == App && c.ever_started());
            for action in &decision.actions {
                match action {
                    Action::Start { index, .. } => {
                        proptest::prop_assert!(!stop && !decision.finished);
                        let earlier = roles[..*index].iter().zip(&pod.containers);
                        let init_done = earlier.filter(|(r, _)| **r == Init).all(|(r, c)| c.succeeded(*r));
                        proptest::prop_assert!(apps_before || roles[*index] == Sidecar || init_done);
                    }
                    Action::Stop { index } => proptest::prop_assert_eq!(pod.containers[*index].state, State::Running),
                }
            }
            let live = pod.containers.iter().any(Observed::is_live);
            proptest::prop_assert!(!(decision.finished && live));
        }
    }
}
