//! AppArmor, on a machine that was booted with it and has its parser: the profile that containers get, who gets which, and what happens
//! where one is not there. Run with hack/vm; on a host without AppArmor it fails, and hack/test says how it is booted.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{self, Machine, ask};
use podwright::criapi::security_profile::ProfileType;
use podwright::criapi::*;
use podwright::engine::apparmor::{self, DEFAULT_PROFILE, State};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tokio::sync::{Mutex, MutexGuard};
use tonic::Code;

/// One kernel has one list of profiles, and one test takes the default one out of it.
static PROFILES: Mutex<()> = Mutex::const_new(());

/// A node with its default profile loaded.
async fn node() -> (Node, MutexGuard<'static, ()>) {
    let alone = PROFILES.lock().await;
    assert!(apparmor::is_enabled(), "boot with apparmor=1 security=apparmor");
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    let mut node = Node::of(machine, |_| {}).await;
    // Any container of the first pod waits for it.
    let (pod, _) = node.pod_with("first", "true").await;
    node.remove_pod(&pod).await.expect("remove");
    assert_eq!(apparmor::state(), State::Loaded);
    (node, alone)
}

/// A pod whose containers are each PID 1, and may be privileged.
fn sandbox(node: &Node) -> PodSandboxConfig {
    let options = NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() };
    let context =
        LinuxSandboxSecurityContext { namespace_options: Some(options), privileged: true, ..Default::default() };
    let linux = LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
    PodSandboxConfig { linux: Some(linux), ..node.sandbox("p") }
}

fn parser(arguments: &[&str], text: &str) {
    let mut command = Command::new(apparmor::parser().expect("the package apparmor"));
    let mut child = command.args(arguments).stdin(Stdio::piped()).spawn().expect("apparmor_parser");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("write");
    assert!(child.wait().expect("wait").success(), "apparmor_parser {arguments:?}");
}

fn profile(kind: ProfileType, name: &str) -> SecurityProfile {
    SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() }
}

fn with(config: ContainerConfig, context: LinuxContainerSecurityContext) -> ContainerConfig {
    let linux = LinuxContainerConfig { security_context: Some(context), resources: None };
    ContainerConfig { linux: Some(linux), ..config }
}

/// The label of a container's first process, and of an exec in it.
async fn labels(node: &mut Node, pod: &str, sandbox: &PodSandboxConfig, config: ContainerConfig) -> (String, String) {
    let id = node.create(pod, config, sandbox.clone()).await.expect("create");
    node.start_container(&id).await.expect("start");
    let said = node.exec(&id, &["sh", "-c", "cat /proc/1/attr/current; cat /proc/self/attr/current"], 0).await;
    let said = String::from_utf8(said.expect("exec").stdout).expect("text");
    let mut lines = said.lines().map(str::to_owned);
    let labels = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    node.stop_container(&id, 0).await.expect("stop");
    node.remove_container(&id).await.expect("remove");
    labels
}

#[tokio::test]
async fn each_kind_of_profile_is_that_of_the_first_process_and_of_execs() {
    let (mut node, _alone) = node().await;
    parser(
        &["--replace"],
        "profile podwright-test-own flags=(attach_disconnected) { file, signal, ptrace, capability, }",
    );
    let sandbox = sandbox(&node);
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let context = LinuxContainerSecurityContext::default;
    let default = format!("{DEFAULT_PROFILE} (enforce)");
    let own = "podwright-test-own (enforce)".to_owned();
    let (localhost, runtime_default) = (ProfileType::Localhost, ProfileType::RuntimeDefault);
    #[allow(deprecated)]
    let cases = [
        ("unset", context(), &default),
        ("no-new-privs", LinuxContainerSecurityContext { no_new_privs: true, ..context() }, &default),
        (
            "default",
            LinuxContainerSecurityContext { apparmor: Some(profile(runtime_default, "")), ..context() },
            &default,
        ),
        (
            "old-default",
            LinuxContainerSecurityContext { apparmor_profile: "runtime/default".into(), ..context() },
            &default,
        ),
        (
            "own",
            LinuxContainerSecurityContext { apparmor: Some(profile(localhost, "podwright-test-own")), ..context() },
            &own,
        ),
        (
            "prefixed",
            LinuxContainerSecurityContext {
                apparmor: Some(profile(localhost, "localhost/podwright-test-own")),
                // The new field counts.
                apparmor_profile: "localhost/there-is-none".into(),
                ..context()
            },
            &own,
        ),
        (
            "old-own",
            LinuxContainerSecurityContext { apparmor_profile: "localhost/podwright-test-own".into(), ..context() },
            &own,
        ),
        (
            "privileged-own",
            LinuxContainerSecurityContext {
                privileged: true,
                apparmor: Some(profile(localhost, "podwright-test-own")),
                ..context()
            },
            &own,
        ),
        ("privileged", LinuxContainerSecurityContext { privileged: true, ..context() }, &"unconfined".to_owned()),
        (
            "unconfined",
            LinuxContainerSecurityContext { apparmor: Some(profile(ProfileType::Unconfined, "")), ..context() },
            &"unconfined".to_owned(),
        ),
        (
            "user",
            LinuxContainerSecurityContext { run_as_user: Some(Int64Value { value: 1000 }), ..context() },
            &default,
        ),
    ];
    for (name, context, label) in cases {
        let config = with(script(name, "exec sleep 1000"), context);
        assert_eq!(labels(&mut node, &pod, &sandbox, config).await, (label.clone(), label.clone()), "{name}");
    }
    node.remove_pod(&pod).await.expect("remove");
    parser(&["--remove"], "profile podwright-test-own flags=(attach_disconnected) { file, }");
    node.assert_clean().await;
}

#[tokio::test]
async fn the_default_profile_denies_what_capabilities_and_mounts_would_allow_and_nothing_else() {
    let (mut node, _alone) = node().await;
    let sandbox = sandbox(&node);
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let all = Capability { add_capabilities: vec!["ALL".to_owned()], ..Default::default() };
    let context = LinuxContainerSecurityContext { capabilities: Some(all), ..Default::default() };
    // With every capability, without seccomp and with nothing masked or read-only, only the profile is left.
    let text = "try() { if sh -c \"$2\" 2>/dev/null; then echo $1 yes; else echo $1 no; fi; }
        try tmpfs 'mount -t tmpfs none /mnt'
        try sysrq 'echo h > /proc/sysrq-trigger'
        try core-pattern 'echo core > /proc/sys/kernel/core_pattern'
        try kcore 'head -c 1 /proc/kcore'
        try profiles 'cat /sys/kernel/security/apparmor/profiles'
        try own-file 'echo x > /tmp-file && cat /tmp-file'
        try signal 'sleep 1000 & kill -9 $!'
        try umount 'umount /sys/fs/cgroup'
        try dev 'echo x > /dev/null && head -c 1 /dev/urandom >/dev/null'
        try socket 'nc -l -p 1 -w 1 127.0.0.1 & kill $!'
        try fd 'echo x > /proc/self/fd/1'
        try cmdline 'cat /proc/1/cmdline /proc/1/environ >/dev/null'";
    let id = node.create(&pod, with(script("c", text), context), sandbox).await.expect("create");
    node.start_container(&id).await.expect("start");
    let status = node.exited(&id).await;
    let said = log_text(Path::new(&status.log_path), "stdout");
    let verdict =
        |what: &str| said.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' ')).map(str::to_owned);
    for (what, allowed) in [
        ("tmpfs", "no"),
        ("sysrq", "no"),
        ("core-pattern", "no"),
        ("kcore", "no"),
        ("profiles", "no"),
        ("own-file", "yes"),
        ("signal", "yes"),
        ("umount", "yes"),
        ("dev", "yes"),
        ("socket", "yes"),
        ("fd", "yes"),
        ("cmdline", "yes"),
    ] {
        assert_eq!(verdict(what).as_deref(), Some(allowed), "{what} in {said}");
    }
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_profile_that_is_not_loaded_fails_the_creation_and_says_which() {
    let (mut node, _alone) = node().await;
    let sandbox = sandbox(&node);
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let missing = LinuxContainerSecurityContext {
        apparmor: Some(profile(ProfileType::Localhost, "localhost/there-is-none")),
        ..Default::default()
    };
    let refused = node.create(&pod, with(script("c", "true"), missing), sandbox.clone()).await.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("\"there-is-none\" is not loaded"), "{}", refused.message());

    // One that goes between the creation and the start: the start fails, and no program runs without it.
    parser(&["--replace"], "profile podwright-test-brief flags=(attach_disconnected) { file, }");
    let brief = LinuxContainerSecurityContext {
        apparmor: Some(profile(ProfileType::Localhost, "podwright-test-brief")),
        ..Default::default()
    };
    let id = node.create(&pod, with(script("brief", "echo ran"), brief), sandbox).await.expect("create");
    parser(&["--remove"], "profile podwright-test-brief flags=(attach_disconnected) { file, }");
    let failed = node.start_container(&id).await.expect_err("no such profile");
    assert!(failed.message().contains("enter AppArmor profile podwright-test-brief"), "{}", failed.message());
    let status = node.status(&id).await.expect("status");
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert_eq!(log_text(Path::new(&status.log_path), "stdout"), "");
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

/// apparmor_parser out of its places, and podwright's profile out of the kernel, until this is dropped.
struct WithoutParser(Vec<(PathBuf, PathBuf)>);

impl WithoutParser {
    fn new() -> WithoutParser {
        parser(&["--remove"], &format!("profile {DEFAULT_PROFILE} flags=(attach_disconnected) {{ file, }}"));
        let mut moved = Vec::new();
        while let Some(path) = apparmor::parser() {
            let to = path.with_extension("away");
            std::fs::rename(path, &to).expect("rename");
            moved.push((path.to_owned(), to));
        }
        WithoutParser(moved)
    }
}

impl Drop for WithoutParser {
    fn drop(&mut self) {
        for (path, away) in &self.0 {
            std::fs::rename(away, path).expect("rename");
        }
    }
}

#[tokio::test]
async fn without_a_parser_status_doctor_and_a_daemons_start_say_so_and_only_who_asks_is_refused() {
    let (mut node, _alone) = node().await;
    let without = WithoutParser::new();
    let sandbox = sandbox(&node);
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let unset = labels(&mut node, &pod, &sandbox, script("unset", "exec sleep 1000")).await;
    assert_eq!(unset.0, "unconfined");
    let asks = LinuxContainerSecurityContext {
        apparmor: Some(profile(ProfileType::RuntimeDefault, "")),
        ..Default::default()
    };
    let asks = || with(script("asks", "exec sleep 1000"), asks.clone());
    let refused = node.create(&pod, asks(), sandbox.clone()).await.expect_err("refused");
    assert!(refused.message().contains("apparmor_parser"), "{}", refused.message());
    let status = node.runtime.status(StatusRequest { verbose: false }).await.expect("status").into_inner();
    let conditions = status.status.expect("one").conditions;
    let told = conditions.iter().find(|c| c.r#type == "AppArmorDefaultProfileLoaded").expect("a condition");
    assert!(!told.status && told.message.contains("install the host's package apparmor"), "{told:?}");
    assert!(conditions.iter().all(|c| c.status || c.r#type != "RuntimeReady"), "the node is ready all the same");
    let doctor = ask(&node.machine, &["doctor"]).stdout;
    assert!(doctor.contains("podwright-default is not loaded: there is no apparmor_parser"), "{doctor}");

    // A daemon says it when it starts; what asks for no profile is not told at each pod.
    node.stop().await;
    let plain = machine::script("cat /proc/self/attr/current", "");
    let ran = node.machine.run(&plain);
    assert_eq!((ran.code(0).stdout.trim(), ran.stderr.contains("AppArmor")), ("unconfined", false), "{}", ran.stderr);
    let asks_by_manifest = machine::script("true", "securityContext: {appArmorProfile: {type: RuntimeDefault}}");
    let refused = node.machine.run(&asks_by_manifest);
    assert_eq!(refused.stderr.matches("there is no apparmor_parser").count(), 1, "{}", refused.stderr);
    node.start();
    let again = labels(&mut node, &pod, &sandbox, script("again", "exec sleep 1000")).await;
    assert_eq!(again.0, "unconfined");
    let said = node.stop().await;
    assert_eq!(said.matches("there is no apparmor_parser").count(), 1, "{said}");
    node.start();

    // It is installed: who asks gets it, without a restart.
    drop(without);
    let confined = labels(&mut node, &pod, &sandbox, asks()).await;
    assert_eq!(confined.0, format!("{DEFAULT_PROFILE} (enforce)"));
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_manifest_gives_each_container_its_profile_and_the_pods_to_those_that_have_none() {
    let (mut node, _alone) = node().await;
    node.stop().await;
    let machine = &node.machine;
    parser(&["--replace"], "profile podwright-test-pod flags=(attach_disconnected) { file, signal, capability, }");
    let manifest = |profile: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  restartPolicy: Never\n  securityContext: \
             {{appArmorProfile: {{type: Localhost, localhostProfile: {profile}}}}}\n  initContainers:\n  \
             - {{name: i, image: busybox, command: [cat, /proc/self/attr/current]}}\n  containers:\n  \
             - {{name: a, image: busybox, command: [cat, /proc/self/attr/current]}}\n  \
             - {{name: b, image: busybox, command: [cat, /proc/self/attr/current], \
             securityContext: {{appArmorProfile: {{type: RuntimeDefault}}}}}}\n  \
             - {{name: c, image: busybox, command: [cat, /proc/self/attr/current], \
             securityContext: {{privileged: true, appArmorProfile: {{type: Unconfined}}}}}}\n"
        )
    };
    let ran = machine.run(&manifest("podwright-test-pod")).code(0).stdout.clone();
    for (label, times) in
        [("podwright-test-pod (enforce)", 2), (&format!("{DEFAULT_PROFILE} (enforce)"), 1), ("unconfined", 1)]
    {
        assert_eq!(ran.matches(label).count(), times, "{label} in {ran}");
    }
    let refused = machine.run(&manifest("there-is-none"));
    for word in ["there-is-none", "not loaded", "apparmor_parser"] {
        assert!(refused.code(128).stderr.contains(word), "{}", refused.stderr);
    }
    parser(&["--remove"], "profile podwright-test-pod flags=(attach_disconnected) { file, }");
    node.start();
    node.assert_clean().await;
}
