//! Every request in every state, every event in every order; the kernel is not asked.

use super::*;
use crate::state::model::{NamespaceMode, Namespaces};
use crate::state::record::{Process, ProcessRecord, User};
use crate::wire::{Exec as ExecRequest, Launch, Root, Sandbox, Seccomp, Stdio, UserChoice};

const OTHER: u64 = 1;

fn id(letter: char) -> ContainerId {
    letter.to_string().repeat(64).parse().expect("hex")
}

fn hello() -> Request {
    Request::Hello { versions: wire::VERSIONS, owner: false }
}

fn create() -> Request {
    Request::CreateSandbox(Box::new(Sandbox {
        pod: "0".repeat(64).parse().expect("hex"),
        dir: "/".into(),
        namespaces: Namespaces::default(),
        hostname: String::new(),
        sysctls: Vec::new(),
        shm_bytes: 0,
        oom_score_adj: 0,
        file_label: None,
    }))
}

fn prepare(letter: char) -> Request {
    let root = Root { layers: Vec::new(), upper: "/".into(), work: "/".into(), readonly: false };
    Request::Prepare { container: id(letter), root }
}

fn start(letter: char, pid: NamespaceMode) -> Request {
    Request::Start(Box::new(Launch {
        container: id(letter),
        dir: "/".into(),
        spec: crate::state::spec::SpecText::of(&()).expect("null"),
        root: Root { layers: Vec::new(), upper: "/".into(), work: "/".into(), readonly: false },
        user: UserChoice::default(),
        namespaces: Namespaces { pid, ..Namespaces::default() },
        seccomp: Seccomp::Unconfined,
        stdio: Stdio { tty: false, stdin: false, stdin_once: false, log: None },
        init: false,
        allow_unenforced: false,
        runtime: None,
    }))
}

fn adopt() -> Request {
    let pod = "0".repeat(64).parse().expect("hex");
    Request::Adopt(Box::new(wire::Adopt { pod, dir: "/".into(), sandbox: sandbox() }))
}

fn adopt_container(letter: char) -> Request {
    let Request::Start(launch) = start(letter, NamespaceMode::Target(id('f'))) else { panic!("a start") };
    let adopt =
        wire::AdoptContainer { launch: *launch, process: state(letter).process, warnings: vec![], streams: vec![] };
    Request::AdoptContainer(Box::new(adopt))
}

fn exec(letter: char, n: u32) -> Request {
    Request::Exec(Box::new(ExecRequest {
        container: id(letter),
        exec: ExecId(n),
        args: Vec::new(),
        env: Vec::new(),
        cwd: String::new(),
        user: None,
        timeout_ns: 0,
        tty: false,
        size: None,
    }))
}

fn sandbox() -> SandboxState {
    SandboxState { pause: Process { pid: 2, start_time: 0 }, started_at_ns: 0, exit: None }
}

fn state(letter: char) -> ContainerState {
    let process = Process { pid: 3, start_time: 0 };
    let process = ProcessRecord { process, started_at_ns: 0, user: User::default(), pipes: Vec::new() };
    ContainerState { container: id(letter), process, exit: None, warnings: Vec::new() }
}

fn end(populated: bool) -> End {
    End { status: ExitStatus::Exited(0), finished_at_ns: 7, oom: None, populated }
}

fn ticket(id: u32) -> Ticket {
    Ticket { connection: FIRST, id }
}

/// With a sandbox, greeted, and the containers `running` running.
fn up(running: &str) -> Machine {
    let mut machine = Machine::new(true);
    machine.greeted(FIRST, true);
    machine.listening();
    machine.sandbox_started(sandbox());
    for letter in running.chars() {
        machine.container_started(state(letter));
    }
    machine
}

/// What a list of actions reads as.
fn told(actions: &[Action]) -> Vec<String> {
    let short = |id: &ContainerId| id.as_str()[..1].to_owned();
    actions
        .iter()
        .map(|action| match action {
            Action::KillContainer(id) => format!("kill {}", short(id)),
            Action::Record(id, record) => format!("record {} {}", short(id), record.message).trim_end().to_owned(),
            Action::KillExec(key, _) => format!("kill {} of {}", key.1, short(&key.0)),
            Action::RemoveExec(key) => format!("remove {} of {}", key.1, short(&key.0)),
            Action::Forget(id, ..) => format!("forget {}", short(id)),
            Action::KillPause => "kill pause".to_owned(),
            Action::Reply(ticket, Reply::Done) => format!("done {}", ticket.id),
            Action::Reply(ticket, Reply::Executed(e)) => {
                format!("executed {} {}{}", ticket.id, e.status.code(), if e.timed_out { " timed out" } else { "" })
            }
            Action::Reply(_, other) => format!("{other:?}"),
            Action::Broadcast(Event::ContainerExited { container, .. }) => format!("told {}", short(container)),
            Action::Broadcast(Event::SandboxExited { .. }) => "told pause".to_owned(),
            Action::Broadcast(Event::ChildOom { container }) => format!("oom {}", short(container)),
            Action::Broadcast(Event::InputClosed { container }) => format!("input of {} closed", short(container)),
            Action::Sweep => "sweep".to_owned(),
            Action::Exit => "exit".to_owned(),
        })
        .collect()
}

fn recorded(machine: &mut Machine, letter: char) -> Vec<String> {
    let record = ExitRecord { status: ExitStatus::Exited(0), finished_at_ns: 7, oom: None, message: String::new() };
    told(&machine.recorded(&id(letter), record))
}

/// A container in each phase: a runs, b ends, c has ended, d failed; e was never heard of.
fn every_phase() -> Machine {
    let mut machine = up("abc");
    machine.container_ended(&id('b'), end(true), Instant::now());
    machine.container_ended(&id('c'), end(false), Instant::now());
    recorded(&mut machine, 'c');
    machine.container_failed(id('d'));
    machine
}

#[test]
fn the_first_message_is_hello_and_no_other_is() {
    let machine = Machine::new(true);
    for request in [Request::Join, create(), Request::List, Request::StopSandbox, Request::Shutdown] {
        assert_eq!(machine.accept(FIRST, &request).expect_err("no hello").kind(), Kind::FailedPrecondition);
    }
    assert_eq!(machine.accept(FIRST, &hello()).expect("hello"), Accept::Do);
    let mut machine = up("");
    assert_eq!(machine.accept(FIRST, &hello()).expect_err("twice").kind(), Kind::FailedPrecondition);
    machine.connected(OTHER);
    assert_eq!(machine.accept(OTHER, &Request::List).expect_err("each for itself").kind(), Kind::FailedPrecondition);
    machine.greeted(OTHER, false);
    assert_eq!(machine.accept(OTHER, &Request::List).expect("greeted"), Accept::Do);
}

#[test]
fn every_request_about_a_container_in_every_phase_of_it() {
    use Kind::{AlreadyExists, FailedPrecondition, NotFound};
    type Make = fn(char) -> Request;
    type Expected = Result<Accept, Kind>;
    const DO: Expected = Ok(Accept::Do);
    const ALREADY: Expected = Ok(Accept::Already);
    let table: [(Make, [Expected; 5]); 9] = [
        // running, ending, ended, failed, unknown
        (
            |c| start(c, NamespaceMode::Pod),
            [Err(AlreadyExists), Err(AlreadyExists), Err(AlreadyExists), Err(AlreadyExists), DO],
        ),
        (prepare, [Err(AlreadyExists), Err(AlreadyExists), Err(AlreadyExists), Err(AlreadyExists), DO]),
        // Whose processes it sees was settled when it was started: the target may have ended since.
        (adopt_container, [Err(AlreadyExists), Err(AlreadyExists), Err(AlreadyExists), Err(AlreadyExists), DO]),
        (
            |c| Request::Duplicate { container: Some(id(c)) },
            [DO, Err(FailedPrecondition), Err(FailedPrecondition), Err(FailedPrecondition), Err(NotFound)],
        ),
        (
            |c| exec(c, 1),
            [DO, Err(FailedPrecondition), Err(FailedPrecondition), Err(FailedPrecondition), Err(NotFound)],
        ),
        (|c| Request::Signal { container: id(c), signal: 15 }, [DO, ALREADY, ALREADY, ALREADY, Err(NotFound)]),
        (|c| Request::Kill { container: id(c) }, [DO, ALREADY, ALREADY, ALREADY, Err(NotFound)]),
        (|c| Request::ReopenLog { container: id(c) }, [DO, ALREADY, ALREADY, ALREADY, Err(NotFound)]),
        (|c| Request::Forget { container: id(c) }, [Err(FailedPrecondition), Err(FailedPrecondition), DO, DO, ALREADY]),
    ];
    let machine = every_phase();
    for (make, expected) in table {
        for (letter, expected) in "abcde".chars().zip(expected) {
            let request = make(letter);
            let got = machine.accept(FIRST, &request).map_err(|e| e.kind());
            assert_eq!(got, expected, "{request:?}");
        }
    }
}

#[test]
fn every_request_about_the_pod_in_every_phase_of_it() {
    let none = Machine { sandbox: None, ..up("") };
    let mut stopping = up("a");
    stopping.stop(ticket(1));
    let mut down = up("");
    down.pause_ended(ExitStatus::Signaled(9));
    let kinds = |request: &Request| {
        [&none, &up(""), &stopping, &down].map(|machine| machine.accept(FIRST, request).err().map(|e| e.kind()))
    };
    let refused = Some(Kind::FailedPrecondition);
    let again = Some(Kind::AlreadyExists);
    assert_eq!(kinds(&create()), [None, again, again, again]);
    assert_eq!(kinds(&adopt()), [None, again, again, again]);
    assert_eq!(kinds(&adopt_container('b')), [refused, None, refused, refused]);
    assert_eq!(kinds(&Request::Duplicate { container: None }), [refused, None, refused, refused]);
    assert_eq!(kinds(&start('b', NamespaceMode::Pod)), [refused, None, refused, refused]);
    assert_eq!(kinds(&prepare('b')), [refused, None, refused, refused]);
    assert_eq!(kinds(&Request::StopSandbox), [None; 4]);
    assert_eq!(kinds(&Request::Shutdown), [None, refused, refused, None]);
    assert_eq!(kinds(&Request::List), [None; 4]);
    assert_eq!(kinds(&Request::Join), [None; 4]);
    let mut stopped_unmade = Machine { sandbox: None, ..up("") };
    assert_eq!(told(&stopped_unmade.stop(ticket(1))), ["done 1"]);
    assert_eq!(stopped_unmade.accept(FIRST, &create()).expect_err("stopped").kind(), Kind::FailedPrecondition);
}

#[test]
fn signals_beyond_the_kernel_s_and_a_target_that_does_not_run_are_refused() {
    let machine = every_phase();
    for signal in [-1, 0, 65] {
        let request = Request::Signal { container: id('a'), signal };
        assert_eq!(machine.accept(FIRST, &request).expect_err("no signal").kind(), Kind::InvalidArgument);
    }
    for (target, legal) in [('a', true), ('b', false), ('c', false), ('d', false), ('e', false)] {
        let request = start('f', NamespaceMode::Target(id(target)));
        assert_eq!(machine.accept(FIRST, &request).is_ok(), legal, "{target}");
    }
}

#[test]
fn containers_and_execs_are_bounded() {
    let mut machine = up("a");
    for n in 0..u32::try_from(wire::MAX_EXECS).expect("small") {
        machine.exec_started((id('a'), ExecId(n)), ticket(n), None);
    }
    assert_eq!(machine.accept(FIRST, &exec('a', 9999)).expect_err("full").kind(), Kind::ResourceExhausted);
    assert_eq!(machine.accept(FIRST, &exec('a', 1)).expect_err("twice").kind(), Kind::AlreadyExists);
    for n in 0..wire::MAX_CONTAINERS {
        machine.container_failed(format!("{n:064x}").parse().expect("hex"));
    }
    let full = machine.accept(FIRST, &start('b', NamespaceMode::Pod)).expect_err("full");
    assert_eq!(full.kind(), Kind::ResourceExhausted);
}

#[test]
fn an_exit_is_told_once_the_record_is_there_and_only_once() {
    let mut machine = up("a");
    assert_eq!(told(&machine.container_ended(&id('a'), end(false), Instant::now())), ["record a"]);
    assert!(machine.container_ended(&id('a'), end(false), Instant::now()).is_empty());
    assert!(machine.container_empty(&id('a')).is_empty(), "it is being recorded already");
    assert_eq!(recorded(&mut machine, 'a'), ["told a"]);
    match machine.list() {
        Reply::List { containers, .. } => {
            assert_eq!(containers[0].exit.as_ref().map(|exit| exit.status), Some(ExitStatus::Exited(0)));
        }
        other => panic!("{other:?}"),
    }
    machine.forget(&id('a'));
    assert!(matches!(machine.list(), Reply::List { containers, .. } if containers.is_empty()));
}

#[test]
fn what_a_container_leaves_behind_is_killed_and_waited_for_but_not_for_ever() {
    let now = Instant::now();
    let mut machine = up("ab");
    assert!(machine.container_empty(&id('a')).is_empty(), "its first process is about to be reaped");
    assert_eq!(told(&machine.container_ended(&id('a'), end(true), now)), ["kill a"]);
    assert_eq!(told(&machine.container_empty(&id('a'))), ["record a"]);
    assert_eq!(told(&machine.container_ended(&id('b'), end(true), now)), ["kill b"]);
    assert_eq!(machine.next_deadline(), Some(now + KILL_GRACE));
    assert!(machine.tick(now).is_empty());
    let stuck = told(&machine.tick(now + KILL_GRACE));
    assert_eq!(stuck, ["record b processes of it are left that SIGKILL did not end in 10 s"]);
    assert!(machine.tick(now + KILL_GRACE * 2).is_empty());
    assert_eq!(machine.next_deadline(), None);
}

#[test]
fn a_stop_ends_containers_then_pause_and_is_answered_when_all_are_gone() {
    let mut machine = up("ab");
    assert_eq!(told(&machine.stop(ticket(1))), ["kill a", "kill b"]);
    assert!(machine.stop(ticket(2)).is_empty(), "nothing is killed twice");
    machine.container_ended(&id('a'), end(false), Instant::now());
    assert_eq!(recorded(&mut machine, 'a'), ["told a"]);
    machine.container_ended(&id('b'), end(false), Instant::now());
    assert_eq!(recorded(&mut machine, 'b'), ["told b", "kill pause"]);
    assert!(machine.stop(ticket(3)).is_empty());
    let gone = told(&machine.pause_ended(ExitStatus::Signaled(9)));
    assert_eq!(gone, ["told pause", "done 1", "done 2", "done 3"]);
    assert!(machine.pause_ended(ExitStatus::Signaled(9)).is_empty());
    assert_eq!(told(&machine.stop(ticket(4))), ["done 4"], "a stop of what is stopped is done");
}

#[test]
fn a_stop_without_containers_kills_pause_and_one_whose_sender_left_is_not_answered() {
    let mut machine = up("");
    machine.connected(OTHER);
    machine.greeted(OTHER, false);
    assert_eq!(told(&machine.stop(Ticket { connection: OTHER, id: 1 })), ["kill pause"]);
    assert!(machine.closed(OTHER).is_empty());
    assert_eq!(told(&machine.pause_ended(ExitStatus::Signaled(9))), ["told pause"]);
}

#[test]
fn a_pause_that_dies_by_itself_is_told_and_a_stop_still_waits_for_the_containers() {
    let mut machine = up("a");
    assert_eq!(told(&machine.pause_ended(ExitStatus::Signaled(11))), ["told pause"]);
    assert_eq!(told(&machine.stop(ticket(1))), ["kill a"]);
    machine.container_ended(&id('a'), end(false), Instant::now());
    assert_eq!(recorded(&mut machine, 'a'), ["told a", "done 1"]);
}

#[test]
fn an_exec_is_answered_at_the_end_of_its_first_process_and_its_cgroup_goes_with_the_last() {
    let mut machine = up("a");
    let (one, two) = ((id('a'), ExecId(1)), (id('a'), ExecId(2)));
    machine.exec_started(one.clone(), ticket(1), None);
    machine.exec_started(two.clone(), ticket(2), None);
    assert_eq!(machine.next_deadline(), None);
    assert_eq!(told(&machine.exec_ended(&one, ExitStatus::Exited(3), false)), ["executed 1 3", "remove exec-1 of a"]);
    machine.exec_removed(&one);
    assert!(machine.exec_empty(&two).is_empty(), "its first process is about to be reaped");
    assert_eq!(told(&machine.exec_ended(&two, ExitStatus::Exited(0), true)), ["executed 2 0"]);
    assert_eq!(machine.execs_of(&id('a')), std::slice::from_ref(&two));
    assert_eq!(told(&machine.exec_empty(&two)), ["remove exec-2 of a"]);
    machine.exec_removed(&two);
    assert!(machine.execs_of(&id('a')).is_empty());
    assert!(machine.exec_ended(&two, ExitStatus::Exited(0), false).is_empty());
}

#[test]
fn at_its_deadline_an_exec_is_killed_and_answered_even_if_it_does_not_die() {
    let now = Instant::now();
    let mut machine = up("a");
    let (one, two) = ((id('a'), ExecId(1)), (id('a'), ExecId(2)));
    for (key, n) in [(&one, 1), (&two, 2)] {
        machine.exec_started(key.clone(), ticket(n), Some(now + Duration::from_secs(1)));
    }
    assert!(machine.tick(now).is_empty());
    let due = now + Duration::from_secs(1);
    assert_eq!(told(&machine.tick(due)), ["kill exec-1 of a", "kill exec-2 of a"]);
    let ended = told(&machine.exec_ended(&one, ExitStatus::Signaled(9), false));
    assert_eq!(ended, ["executed 1 137 timed out", "remove exec-1 of a"]);
    machine.exec_removed(&one);
    assert!(machine.tick(due).is_empty());
    assert_eq!(told(&machine.tick(due + KILL_GRACE)), ["executed 2 255 timed out"]);
    assert_eq!(machine.next_deadline(), None);
    assert!(machine.exec_empty(&two).is_empty(), "its first process is not reaped yet");
    assert_eq!(told(&machine.exec_ended(&two, ExitStatus::Signaled(9), false)), ["remove exec-2 of a"]);
}

#[test]
fn what_a_failed_exec_has_left_is_waited_for_and_at_its_deadline_before_that_is_told() {
    let now = Instant::now();
    let mut machine = up("a");
    let (one, two) = ((id('a'), ExecId(1)), (id('a'), ExecId(2)));
    machine.exec_failed(one.clone(), ticket(1), false, now);
    machine.exec_failed(two.clone(), ticket(2), true, now);
    assert_eq!(told(&machine.exec_empty(&one)), ["remove exec-1 of a"]);
    assert!(machine.exec_removed(&one).is_empty(), "it was answered");
    assert_eq!(machine.next_deadline(), Some(now + KILL_GRACE));
    assert_eq!(told(&machine.exec_empty(&two)), ["remove exec-2 of a"]);
    assert_eq!(told(&machine.exec_removed(&two)), ["executed 2 255 timed out"]);
    machine.exec_failed(two, ticket(2), true, now);
    assert_eq!(told(&machine.tick(now + KILL_GRACE)), ["executed 2 255 timed out"], "but not for ever");
    assert_eq!(machine.next_deadline(), None);
}

#[test]
fn that_an_exec_was_killed_at_its_deadline_is_answered_when_nothing_of_it_is_left() {
    let now = Instant::now();
    let due = now + Duration::from_secs(1);
    let key = |n| (id('a'), ExecId(n));
    let killed = || {
        let mut machine = up("a");
        machine.exec_started(key(1), ticket(1), Some(due));
        machine.tick(due);
        assert!(machine.exec_ended(&key(1), ExitStatus::Signaled(9), true).is_empty(), "others of it are left");
        assert!(machine.accept(FIRST, &Request::Shutdown).is_err());
        machine
    };
    let mut machine = killed();
    assert_eq!(told(&machine.exec_empty(&key(1))), ["remove exec-1 of a"]);
    assert_eq!(told(&machine.exec_removed(&key(1))), ["executed 1 137 timed out"]);
    assert!(machine.exec_removed(&key(1)).is_empty());

    let mut machine = killed();
    assert_eq!(told(&machine.tick(due + KILL_GRACE)), ["executed 1 137 timed out"], "but not for ever");
    assert_eq!(told(&machine.exec_empty(&key(1))), ["remove exec-1 of a"]);
    assert!(machine.exec_removed(&key(1)).is_empty(), "it was answered");

    let mut machine = killed();
    assert_eq!(told(&machine.closed(FIRST))[0], "sweep");
    let mut machine = killed();
    machine.container_ended(&id('a'), end(false), due);
    assert_eq!(told(&machine.exec_removed(&key(1))), ["executed 1 137 timed out"], "its container's end is its own");
}

#[test]
fn an_exec_is_killed_when_whoever_asked_for_it_hangs_up_and_its_cgroup_goes() {
    let mut machine = up("a");
    machine.connected(OTHER);
    machine.greeted(OTHER, false);
    let key = |n| (id('a'), ExecId(n));
    for (n, connection) in [(1, OTHER), (2, FIRST), (3, OTHER)] {
        machine.exec_started(key(n), Ticket { connection, id: n }, None);
    }
    machine.exec_ended(&key(3), ExitStatus::Exited(0), true);
    assert_eq!(told(&machine.closed(OTHER)), ["kill exec-1 of a"], "neither another's nor one that was answered");
    assert_eq!(told(&machine.exec_ended(&key(1), ExitStatus::Signaled(9), true)), [""; 0], "there is nobody to tell");
    assert_eq!(told(&machine.exec_empty(&key(1))), ["remove exec-1 of a"]);
    assert_eq!(
        told(&machine.exec_ended(&key(2), ExitStatus::Exited(0), false)),
        ["executed 2 0", "remove exec-2 of a"]
    );
}

#[test]
fn a_cancelled_exec_is_killed_and_answered_once() {
    let mut machine = up("a");
    let (key, now) = ((id('a'), ExecId(1)), Instant::now());
    machine.exec_started(key.clone(), ticket(1), None);
    assert_eq!(told(&machine.cancel_exec(&key, now)), ["kill exec-1 of a"]);
    assert!(machine.cancel_exec(&key, now).is_empty(), "twice is as once");
    assert_eq!(machine.next_deadline(), Some(now + KILL_GRACE), "whether it dies or not, it is answered");
    let ended = told(&machine.exec_ended(&key, ExitStatus::Signaled(9), false));
    assert_eq!(ended, ["executed 1 137 timed out", "remove exec-1 of a"]);
    machine.exec_removed(&key);
    assert!(machine.cancel_exec(&key, now).is_empty(), "it has ended");
}

#[test]
fn an_exec_that_has_been_answered_has_no_deadline() {
    let now = Instant::now();
    let mut machine = up("a");
    let key = (id('a'), ExecId(1));
    machine.exec_started(key.clone(), ticket(1), Some(now + Duration::from_secs(1)));
    machine.exec_ended(&key, ExitStatus::Exited(0), true);
    assert_eq!(machine.next_deadline(), None);
    assert!(machine.tick(now + Duration::from_secs(2)).is_empty(), "what it left in the background lives on");
}

#[test]
fn a_child_killed_for_memory_is_told_unless_the_container_goes_with_it() {
    let now = Instant::now();
    let mut machine = up("ab");
    machine.memory_killed(&id('a'), now);
    machine.memory_killed(&id('a'), now + OOM_GRACE / 2);
    machine.memory_killed(&id('b'), now);
    machine.container_ended(&id('b'), end(false), now);
    assert_eq!(machine.next_deadline(), Some(now + OOM_GRACE));
    assert_eq!(told(&machine.tick(now + OOM_GRACE)), ["oom a"]);
    assert!(machine.tick(now + OOM_GRACE * 2).is_empty());
    machine.memory_killed(&id('a'), now + OOM_GRACE * 3);
    assert_eq!(told(&machine.tick(now + OOM_GRACE * 4)), ["oom a"], "the next one is told again");
}

#[test]
fn the_pod_lives_on_without_connections_but_not_without_its_owner() {
    let mut daemon = Machine::new(false);
    daemon.greeted(FIRST, false);
    daemon.listening();
    daemon.connected(OTHER);
    assert!(daemon.closed(FIRST).is_empty());
    assert!(daemon.closed(OTHER).is_empty());
    assert!(daemon.closed(OTHER).is_empty());
    let mut owned = up("a");
    owned.connected(OTHER);
    assert!(owned.closed(OTHER).is_empty());
    assert_eq!(told(&owned.closed(FIRST)), ["sweep"]);
}

#[test]
fn an_engine_that_dies_before_its_first_word_leaves_no_shim() {
    assert_eq!(told(&Machine::new(true).closed(FIRST)), ["sweep"], "there may be files of the instance");
    assert_eq!(told(&Machine::new(false).closed(FIRST)), ["exit"], "nobody can ever reach it");
    let mut greeted = Machine::new(false);
    greeted.greeted(FIRST, false);
    assert_eq!(told(&greeted.closed(FIRST)), ["exit"]);
}

#[test]
fn a_shim_does_not_shut_down_under_anything_that_runs() {
    let mut machine = up("a");
    machine.exec_started((id('a'), ExecId(1)), ticket(1), None);
    machine.pause_ended(ExitStatus::Signaled(9));
    let legal = |machine: &Machine| machine.accept(FIRST, &Request::Shutdown).is_ok();
    assert!(!legal(&machine));
    machine.container_ended(&id('a'), end(true), Instant::now());
    assert!(!legal(&machine), "it is not recorded yet");
    recorded(&mut machine, 'a');
    assert!(!legal(&machine), "an exec runs");
    machine.exec_ended(&(id('a'), ExecId(1)), ExitStatus::Signaled(9), true);
    assert!(legal(&machine), "an empty cgroup may be left to the engine");
}

mod random {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Start(char),
        End(char, bool),
        Empty(char),
        Exec(char, u32, bool),
        ExecEnd(char, u32, bool),
        ExecEmpty(char, u32),
        Stop,
        PauseEnd,
        Tick(u64),
        Forget(char),
    }

    fn step() -> impl Strategy<Value = Step> {
        let letter = prop::sample::select(vec!['a', 'b', 'c']);
        let key = (letter.clone(), 1..3u32);
        prop_oneof![
            letter.clone().prop_map(Step::Start),
            (letter.clone(), any::<bool>()).prop_map(|(c, p)| Step::End(c, p)),
            letter.clone().prop_map(Step::Empty),
            (key.clone(), any::<bool>()).prop_map(|((c, n), d)| Step::Exec(c, n, d)),
            (key.clone(), any::<bool>()).prop_map(|((c, n), p)| Step::ExecEnd(c, n, p)),
            key.prop_map(|(c, n)| Step::ExecEmpty(c, n)),
            Just(Step::Stop),
            Just(Step::PauseEnd),
            (0..15u64).prop_map(Step::Tick),
            letter.prop_map(Step::Forget),
        ]
    }

    /// Drives a machine as the loop does: acts only on what was accepted, and does what it says.
    struct World {
        machine: Machine,
        now: Instant,
        next: u32,
        running: BTreeSet<ContainerId>,
        told: Vec<ContainerId>,
        asked: Vec<u32>,
        answered: Vec<u32>,
        pause_killed: usize,
    }

    impl World {
        fn apply(&mut self, actions: Vec<Action>) {
            for action in actions {
                let further = match action {
                    Action::Record(id, record) => self.machine.recorded(&id, record),
                    Action::RemoveExec(key) => self.machine.exec_removed(&key),
                    Action::Reply(ticket, _) => {
                        self.answered.push(ticket.id);
                        Vec::new()
                    }
                    Action::Broadcast(Event::ContainerExited { container, .. }) => {
                        self.told.push(container);
                        Vec::new()
                    }
                    Action::KillPause => {
                        self.pause_killed += 1;
                        Vec::new()
                    }
                    _ => Vec::new(),
                };
                self.apply(further);
            }
        }

        fn ask(&mut self) -> Ticket {
            self.next += 1;
            self.asked.push(self.next);
            ticket(self.next)
        }

        fn step(&mut self, step: Step) {
            let actions = match step {
                Step::Start(c) => {
                    if self.machine.accept(FIRST, &start(c, NamespaceMode::Pod)).is_ok() {
                        self.machine.container_started(state(c));
                        self.running.insert(id(c));
                    }
                    Vec::new()
                }
                Step::End(c, populated) => {
                    self.running.remove(&id(c));
                    self.machine.container_ended(&id(c), end(populated), self.now)
                }
                Step::Empty(c) => self.machine.container_empty(&id(c)),
                Step::Exec(c, n, deadline) => {
                    if self.machine.accept(FIRST, &exec(c, n)).is_ok() {
                        let ticket = self.ask();
                        let deadline = deadline.then(|| self.now + Duration::from_secs(5));
                        self.machine.exec_started((id(c), ExecId(n)), ticket, deadline);
                    }
                    Vec::new()
                }
                Step::ExecEnd(c, n, populated) => {
                    self.machine.exec_ended(&(id(c), ExecId(n)), ExitStatus::Exited(0), populated)
                }
                Step::ExecEmpty(c, n) => self.machine.exec_empty(&(id(c), ExecId(n))),
                Step::Stop => {
                    let ticket = self.ask();
                    self.machine.stop(ticket)
                }
                Step::PauseEnd => self.machine.pause_ended(ExitStatus::Signaled(9)),
                Step::Tick(seconds) => {
                    self.now += Duration::from_secs(seconds);
                    self.machine.tick(self.now)
                }
                Step::Forget(c) => {
                    if self.machine.accept(FIRST, &Request::Forget { container: id(c) }) == Ok(Accept::Do) {
                        self.machine.forget(&id(c));
                        self.told.retain(|told| *told != id(c));
                    }
                    Vec::new()
                }
            };
            self.apply(actions);
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_everything_is_answered_and_told_exactly_once(steps in prop::collection::vec(step(), 0..60)) {
            let mut world = World {
                machine: up(""),
                now: Instant::now(),
                next: 0,
                running: BTreeSet::new(),
                told: Vec::new(),
                asked: Vec::new(),
                answered: Vec::new(),
                pause_killed: 0,
            };
            for step in steps {
                world.step(step);
                prop_assert!(world.pause_killed <= 1);
                let runs = world.running.iter().any(|id| world.machine.is_running(id));
                prop_assert!(!(runs && world.machine.accept(FIRST, &Request::Shutdown).is_ok()));
            }
            // Now everything that runs ends.
            world.step(Step::Stop);
            for c in ['a', 'b', 'c'] {
                for n in 1..3 {
                    world.step(Step::ExecEnd(c, n, true));
                    world.step(Step::ExecEmpty(c, n));
                }
                world.step(Step::End(c, true));
                world.step(Step::Empty(c));
            }
            world.step(Step::PauseEnd);
            world.answered.sort_unstable();
            prop_assert_eq!(&world.answered, &world.asked);
            let once: BTreeSet<_> = world.told.iter().collect();
            prop_assert_eq!(once.len(), world.told.len());
            prop_assert!(world.machine.accept(FIRST, &Request::Shutdown).is_ok());
            prop_assert_eq!(world.machine.next_deadline(), None);
            prop_assert!(world.machine.execs.is_empty());
        }
    }
}
