//! Devices of the host in containers: those that a client names by their nodes (CRI `Device`), and those that it names by the Container
//! Device Interface, with all that a vendor's specification adds. Each is used from inside.

mod fixtures;

use fixtures::cri::{Node, log_text, script};
use fixtures::machine::Machine;
use fixtures::put;
use podwright::criapi::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tonic::Code;

/// A node of a character device that is not among those of every container.
fn node_of(path: &Path, major: u32, minor: u32) {
    let made = Command::new("mknod").arg(path).args(["c", &major.to_string(), &minor.to_string()]).status();
    assert!(made.expect("mknod").success());
}

fn device(container: &str, host: &Path, permissions: &str) -> Device {
    Device {
        container_path: container.to_owned(),
        host_path: host.display().to_string(),
        permissions: permissions.to_owned(),
    }
}

/// Runs a container to its end, with an exec of the same in the middle of it; what it said, which is what the exec said.
async fn said(node: &mut Node, pod: &str, sandbox: &PodSandboxConfig, config: ContainerConfig, look: &str) -> String {
    let text = format!("({look}) 2>&1; echo end; exec sleep 1000");
    let config = ContainerConfig { command: ["sh", "-c", &text].map(str::to_owned).to_vec(), ..config };
    let id = node.create(pod, config, sandbox.clone()).await.expect("create");
    node.start_container(&id).await.expect("start");
    let log = PathBuf::from(node.status(&id).await.expect("status").log_path);
    fixtures::machine::until(fixtures::machine::PATIENCE, || {
        let said = log_text(&log, "stdout");
        if said.ends_with("end\n") { Ok(()) } else { Err(said) }
    });
    let first = log_text(&log, "stdout");
    let execed = node.exec(&id, &["sh", "-c", &format!("({look}) 2>&1; echo end")], 0).await.expect("exec");
    assert_eq!(String::from_utf8(execed.stdout).expect("text"), first, "an exec has other devices");
    node.remove_container(&id).await.expect("remove");
    fs::remove_file(&log).expect("remove the log"); // the next one's is added to it
    first
}

async fn refused(node: &mut Node, pod: &str, sandbox: &PodSandboxConfig, config: ContainerConfig, words: &[&str]) {
    let e = node.create(pod, config, sandbox.clone()).await.expect_err("refused");
    assert_ne!(e.code(), Code::Internal, "{e:?}");
    for word in words {
        assert!(e.message().contains(word), "{word:?} is not in {e:?}");
    }
    assert_eq!(node.containers(ContainerFilter::default()).await, [], "nothing is left of it");
}

#[tokio::test]
async fn devices_that_are_named_are_there_with_what_may_be_done_and_no_others() {
    let machine = Machine::with_busybox();
    let dir = machine.dir("devices");
    // fuse, which no container has; that the filter lets it be opened is looked at.
    node_of(&dir.join("fuse"), 10, 229);
    fs::create_dir(dir.join("below")).expect("mkdir");
    node_of(&dir.join("below/zero"), 1, 5);
    put(dir.join("file"), "x");
    std::os::unix::fs::symlink(dir.join("fuse"), dir.join("link")).expect("symlink");
    let mut node = Node::of(machine, |_| {}).await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let config = |devices: Vec<Device>| ContainerConfig { devices, ..script("c", "true") };
    let look = "stat -c '%t:%T' /dev/one /dev/many/below/zero; head -c 3 /dev/many/below/zero | wc -c; \
                (: < /dev/one) && echo read; (: > /dev/one) && echo written";
    let asked = vec![device("/dev/one", &dir.join("link"), "r"), device("/dev/many", &dir, "r")];
    let first = said(&mut node, &pod, &sandbox, config(asked), look).await;
    assert!(first.starts_with("a:e5\n1:5\n3\nread\n") && first.contains("not permitted"), "{first}");
    assert!(!first.contains("written"), "{first}");
    let none = said(&mut node, &pod, &sandbox, config(vec![]), "ls /dev/one /dev/many").await;
    assert_eq!(none.matches("No such file").count(), 2, "{none}");
    let file = config(vec![device("/dev/x", &dir.join("file"), "r")]);
    refused(&mut node, &pod, &sandbox, file, &["file", "neither a device nor"]).await;
    let missing = config(vec![device("/dev/x", &dir.join("missing"), "r")]);
    refused(&mut node, &pod, &sandbox, missing, &["missing", "load its driver"]).await;
    let above = config(vec![device("/dev/../etc/x", &dir.join("fuse"), "r")]);
    refused(&mut node, &pod, &sandbox, above, &["below /dev"]).await;
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

const YAML: &str = "# by a vendor
cdiVersion: \"0.8.0\"
kind: vendor.com/thing
containerEdits:
  env: [FOR_ALL=yes]
  mounts:
  - {hostPath: LIB, containerPath: /usr/lib/vendor, options: [ro, nosuid, nodev, rbind, rprivate]}
devices:
- name: one
  containerEdits:
    env: [\"ONE=a=b\"]
    deviceNodes:
    - {path: /dev/thing0, hostPath: NODE, permissions: r}
    - {path: /dev/things/zero, type: c, major: 1, minor: 5, fileMode: 0640}
    additionalGids: [4321]
- name: hooked
  containerEdits: {hooks: [{hookName: createContainer, path: /usr/bin/vendor-hook, args: [a]}]}
- name: old
  containerEdits: {env: [OLD=etc]}
";

#[tokio::test]
async fn devices_of_a_vendor_bring_what_their_specification_says_to_every_process() {
    let machine = Machine::with_busybox();
    let (etc, run, lib) = (machine.dir("etc"), machine.dir("run"), machine.dir("lib"));
    put(lib.join("library"), "of the vendor\n");
    node_of(&lib.join("node"), 10, 229);
    let yaml = YAML.replace("NODE", &lib.join("node").display().to_string());
    put(etc.join("vendor.yaml"), yaml.replace("LIB", &lib.display().to_string()));
    let json = |device: &str, value: &str| {
        format!(
            r#"{{"cdiVersion": "1.0.0", "kind": "vendor.com/thing", "devices": [{{"name": "{device}", "containerEdits": {{"env": ["{value}"]}}}}]}}"#
        )
    };
    put(run.join("new.json"), json("old", "OLD=run"));
    put(etc.join("twice1.json"), json("twice", "A=1"));
    put(etc.join("twice2.json"), json("twice", "A=2"));
    put(etc.join("bad.json"), "{\"cdiVersion\": \"77\"}");
    put(etc.join("README"), "not one");
    let dirs = format!("{},{},/nonexistent", etc.display(), run.display());
    let mut node = Node::of(machine, |command| {
        command.env("PODWRIGHT_CDI_SPEC_DIRS", &dirs);
    })
    .await;
    let sandbox = node.sandbox("p");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let config = |names: &[&str], annotation: &str| {
        let cdi_devices = names.iter().map(|name| CdiDevice { name: format!("vendor.com/thing={name}") }).collect();
        let annotations = match annotation {
            "" => Default::default(),
            names => [("cdi.k8s.io/plugin".to_owned(), names.to_owned())].into(),
        };
        ContainerConfig { cdi_devices, annotations, ..script("c", "true") }
    };
    let look = "echo $FOR_ALL $ONE $OLD; stat -c '%t:%T %a' /dev/thing0 /dev/things/zero; (: < /dev/thing0) && echo read; \
                [ -c /dev/thing0 ] && (: > /dev/thing0) && echo written; cat /usr/lib/vendor/library; touch /usr/lib/vendor/x; \
                grep Groups /proc/self/status | tr -d '\\t'";
    let both = config(&["one"], "vendor.com/thing=one,vendor.com/thing=old");
    let first = said(&mut node, &pod, &sandbox, both, look).await;
    assert!(first.starts_with("yes a=b run\na:e5 ") && first.contains("1:5 640\nread\n"), "{first}");
    assert!(first.contains("of the vendor\n") && first.contains("Read-only file system"), "{first}");
    assert!(!first.contains("written"), "{first}");
    assert!(first.contains("Groups:0 4321 \n"), "{first}");
    let none = said(&mut node, &pod, &sandbox, config(&[], ""), look).await;
    assert!(!none.contains("yes") && !none.contains("4321") && !none.contains("vendor\n"), "{none}");
    for (names, annotation, words) in [
        (&["nine"][..], "", &["vendor.com/thing=nine", "in no specification", "bad.json", "missing field"][..]),
        (&["twice"], "", &["vendor.com/thing=twice", "twice1.json", "twice2.json"]),
        (&["one", "hooked"], "", &["vendor.com/thing=hooked", "createContainer", "/usr/bin/vendor-hook"]),
        (&["a b"], "", &["VENDOR/CLASS=NAME"]),
        (&[], "nothing", &["\"nothing\""]),
    ] {
        refused(&mut node, &pod, &sandbox, config(names, annotation), words).await;
    }
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}
