//! CheckpointContainer where the host has all that a container can ask for: another user, limits, seccomp, connections. Run with hack/vm:
//! criu needs CAP_SYS_RESOURCE for processes of other users.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::{Machine, PATIENCE, until};
use fixtures::programs;
use podwright::criapi::*;
use std::path::{Path, PathBuf};

/// A number a moment, there and back over one connection; from 1 again over another one.
const TALKS: &str = "nc -ll -p 7000 -e cat & while :; do { i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done; } | nc 127.0.0.1 7000; sleep 0.1; done";

fn numbers(log: &Path) -> Vec<u64> {
    log_text(log, "stdout").lines().filter_map(|line| line.parse().ok()).collect()
}

/// Waits until it has counted further than now; the numbers.
fn goes_on(log: &Path) -> Vec<u64> {
    let before = numbers(log).len();
    until(PATIENCE, || if numbers(log).len() > before + 2 { Ok(()) } else { Err(format!("it stands at {before}")) });
    numbers(log)
}

#[tokio::test]
async fn a_container_of_another_user_with_limits_goes_on_with_its_connections() {
    let mut machine = Machine::with_busybox();
    machine.globals.clear();
    let mut node = Node::of(machine, |daemon| {
        daemon.env("PODWRIGHT_CHECKPOINT_CRIU", programs::criu());
    })
    .await;
    let archives = node.machine.dir("checkpoints");
    let ids = vec![IdMapping { host_id: 1_400_000_000, container_id: 0, length: 65536 }];
    let own_users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    for (pid, user) in [
        (NamespaceMode::Pod, None),
        (NamespaceMode::Container, None),
        (NamespaceMode::Pod, Some(own_users.clone())),
        (NamespaceMode::Container, Some(own_users)),
    ] {
        let name = format!("{}-{}", pid as i32, user.is_some());
        let mut sandbox = node.sandbox(&name);
        let options = NamespaceOption { pid: pid.into(), userns_options: user, ..NamespaceOption::default() };
        let context = LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
        sandbox.linux = Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
        let pod = node.run_pod(sandbox.clone()).await.expect("run");
        let mut config = script("c", TALKS);
        config.linux = Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_period: 100_000,
                cpu_quota: 50_000,
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(options),
                run_as_user: Some(Int64Value { value: 1000 }),
                supplemental_groups: vec![44],
                no_new_privs: true,
                seccomp: Some(SecurityProfile {
                    profile_type: security_profile::ProfileType::RuntimeDefault as i32,
                    ..Default::default()
                }),
                masked_paths: ["/proc/kcore", "/proc/keys", "/proc/scsi", "/sys/firmware"].map(String::from).into(),
                readonly_paths: ["/proc/bus", "/proc/irq", "/proc/sys"].map(String::from).into(),
                ..Default::default()
            }),
        });
        let id = node.create(&pod, config, sandbox).await.expect("create");
        node.start_container(&id).await.expect("start");
        let log = PathBuf::from(node.status(&id).await.expect("status").log_path);
        goes_on(&log);
        for number in 0..2 {
            let location = archives.join(format!("{name}-{number}.tar")).display().to_string();
            let request = CheckpointContainerRequest { container_id: id.clone(), location, timeout: 120 };
            node.runtime.checkpoint_container(request).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let counted = goes_on(&log);
        assert_eq!(counted.iter().filter(|n| **n == 1).count(), 1, "over one connection: {counted:?}");
        node.stop_pod(&pod).await.expect("stop");
        node.remove_pod(&pod).await.expect("remove");
    }
    node.assert_clean().await;
}
