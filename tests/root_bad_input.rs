//! Bad input to the binary: manifests, images, commands and disks that are wrong, each refused with where, what and the remedy,
//! and nothing left behind; images and volumes that mean harm change nothing outside of the container.

mod fixtures;

use fixtures::canary::{self, Canary};
use fixtures::evil_images::{known, programs_layer};
use fixtures::evil_tar::{Image, Layer, Tar, layout, write_dir};
use fixtures::machine::{Finished, Machine, Running, binary, image, pod, probe_dir, script};
use fixtures::pod::section;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The container of the manifests below begins in this line.
const CONTAINER_LINE: u32 = 6;

/// A pod of one container with further fields, whose first is in line 8.
fn with(fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("    {line}\n")).collect();
    let text = pod(&format!("  containers:\n  - name: c\n    image: busybox\n{fields}"));
    assert_eq!(text.lines().position(|line| line == "  - name: c"), Some(CONTAINER_LINE as usize - 1));
    text
}

#[test]
fn a_wrong_manifest_is_refused_with_line_value_and_remedy() {
    let machine = Machine::with_busybox();
    let cases: [(String, &[&str]); 9] = [
        (with("").replace("apiVersion", "apiversion"), &[":1:1:", "\"apiversion\"", "did you mean apiVersion?"]),
        (with("comand: [x]"), &[":8:5:", "containers[0].comand", "did you mean command?"]),
        (with("resources: {limits: {cpu: \"250m \"}}"), &[":8:31:", "limits.cpu", "\"250m \"", "write \"250m\""]),
        (with("resources:\n  limits:\n    memory: 500x"), &[":10:17:", "\"500x\"", "units are", "Mi"]),
        (
            with("resources:\n  requests: {memory: 128Mi}\n  limits: {memory: 64Mi}"),
            &[":9:26:", "requests.memory", "\"128Mi\"", "raise the limit in line 10 or lower the request"],
        ),
        (with("resources: {limits: {memory: 511Ki}}"), &[":8:34:", "\"511Ki\"", "at least 512Ki"]),
        (with("resources: {limits: {memory: 100m}}"), &[":8:34:", "\"100m\"", "512Ki"]),
        (with("workingDir: relative"), &[":8:17:", "\"relative\""]),
        (with("securityContext: {capabilities: {add: [SYS_ADMINN]}}"), &[":8:", "SYS_ADMINN", "SYS_ADMIN"]),
    ];
    for (manifest, words) in cases {
        machine.run(&manifest).refused(words);
        machine.assert_as_before();
    }
}

#[test]
fn an_image_that_is_not_there_is_refused_before_anything_is_made() {
    let machine = Machine::with_busybox();
    let never = "example.com/none:1\n    imagePullPolicy: Never";
    machine.run(&with("").replace("busybox", never)).refused(&[
        "imagePullPolicy is Never",
        "pod \"p\"",
        "container \"c\"",
        "\"example.com/none:1\"",
        "podwright import",
    ]);
    machine.assert_as_before();
}

#[test]
fn a_sandbox_that_cannot_be_made_is_an_error_and_takes_everything_back() {
    let machine = Machine::with_busybox();
    let sysctl = with("") + "  securityContext: {sysctls: [{name: net.ipv4.ip_forward, value: nonsense}]}\n";
    machine.run(&sysctl).refused(&["net.ipv4.ip_forward=nonsense", "EINVAL"]);
    machine.assert_as_before();
}

fn import(machine: &Machine, path: &Path) -> Finished {
    let mut command = machine.podwright(["import"]);
    command.arg(path);
    Running::of(command).wait()
}

/// A layout of one image in a directory of the machine's.
fn put(machine: &Machine, name: &str, layers: &[Layer]) -> PathBuf {
    let dir = machine.dir(&format!("layout-{name}"));
    write_dir(&layout(&[Image::new(&format!("example.com/{name}:1"), layers)]), &dir);
    dir
}

#[test]
fn an_image_that_is_wrong_is_refused_and_nothing_of_it_is_kept() {
    canary::apart();
    let mut machine = Machine::new();
    // The store's own directories are made by its first use.
    import(&machine, Path::new("/nonexistent")).refused(&["/nonexistent"]);
    machine.remember();
    let canary = Canary::plant(&machine.dir("canary"));
    let outside = canary.file();
    let outside = outside.to_str().expect("utf-8");
    let good = Layer::gzip(&Tar::new().file("f", b"1"));
    let mut wrong = good.clone();
    *wrong.blob.last_mut().expect("not empty") ^= 1;
    let cases: [(&str, Vec<Layer>, &[&str]); 5] = [
        ("digest", vec![wrong], &["sha256:"]),
        (
            "dots",
            vec![Layer::plain(&Tar::new().file("../../x", b"1"))],
            &["\"../../x\"", "rebuild the image without it"],
        ),
        (
            "symlink",
            vec![Layer::plain(&Tar::new().symlink("l", "../../../..").file("l/x", b"1"))],
            &["\"l/x\"", "symlink", "rebuild"],
        ),
        ("link", vec![Layer::plain(&Tar::new().hard_link("h", outside))], &["\"h\"", "outside", "rebuild"]),
        ("second", vec![good, Layer::plain(&Tar::new().hard_link("h", "../x"))], &["outside"]),
    ];
    for (name, layers, words) in cases {
        import(&machine, &put(&machine, name, &layers)).refused(words);
        machine.assert_as_before();
    }
    canary.assert_alive();
}

/// Runs a script in a mount namespace of its own, where the machine's root is a tmpfs of `size`.
fn on_small_disk(machine: &Machine, size: &str, script: &str) -> Finished {
    fs::create_dir_all(machine.root()).expect("mkdir");
    let mut command = Command::new("unshare");
    let script = format!("set -e; mount -t tmpfs -o size={size} none \"$PODWRIGHT_ROOT\"; {script}");
    command.args(["-m", "sh", "-c", &script]);
    machine.aim(&mut command);
    command.env("PW", binary()).env("BUSYBOX_IMAGE", image("busybox"));
    Running::of(command).wait()
}

#[test]
fn a_disk_that_is_full_in_mid_import_is_said_and_nothing_is_kept() {
    let mut machine = Machine::new();
    fs::create_dir_all(machine.root()).expect("mkdir");
    machine.remember();
    let ended = on_small_disk(
        &machine,
        "512k",
        "$PW import \"$BUSYBOX_IMAGE\" || echo code $?; find \"$PODWRIGHT_ROOT\" -type f -size +0; df --output=used \"$PODWRIGHT_ROOT\" | tail -1 | tr -d ' '",
    );
    assert_eq!(ended.stdout, "code 125\n0\n", "files left, then KiB used; {}", ended.stderr);
    assert!(ended.stderr.contains("ENOSPC"), "{}", ended.stderr);
    machine.assert_as_before();
}

#[test]
fn a_disk_that_is_full_in_mid_run_is_the_container_s_problem_and_not_the_end_s() {
    let mut machine = Machine::new();
    fs::create_dir_all(machine.root()).expect("mkdir");
    machine.remember();
    let fills = script("dd if=/dev/zero of=/fill bs=64k || echo full >&2; yes output | head -c 1000000; exit 3", "");
    let cannot = script("echo ran", "");
    let ended = on_small_disk(
        &machine,
        "4m",
        &format!(
            "$PW import -q \"$BUSYBOX_IMAGE\" >/dev/null
             find \"$PODWRIGHT_ROOT\" | sort > /dev/shm/$$.before
             $PW --allow-unenforced-limits run -q {fills} || echo code $?
             find \"$PODWRIGHT_ROOT\" | sort > /dev/shm/$$.after; diff /dev/shm/$$.before /dev/shm/$$.after
             dd if=/dev/zero of=\"$PODWRIGHT_ROOT/fill\" bs=4k 2>/dev/null || true
             $PW --allow-unenforced-limits run {cannot} || echo code $?
             find \"$PODWRIGHT_ROOT\" ! -name fill | sort > /dev/shm/$$.after; diff /dev/shm/$$.before /dev/shm/$$.after
             rm /dev/shm/$$.*",
            fills = machine.manifest(&fills).display(),
            cannot = machine.manifest(&cannot).display()
        ),
    );
    ended.code(0);
    let codes: Vec<_> = ended.stdout.lines().collect();
    assert_eq!(codes[0], "code 3", "{ended:?}");
    let lost = ended.stderr.lines().filter(|line| line.contains("bytes of its log could not be written")).count();
    assert_eq!(lost, 2, "each is told: {ended:?}");
    machine.assert_as_before();
}

#[test]
fn a_working_directory_that_is_a_descriptor_is_refused() {
    let machine = Machine::with_busybox();
    for dir in
        ["/proc/self/fd/3", "/proc/self/fd", "/proc/1/fd/7", "/proc/thread-self/fd/5", "/proc/1/root", "/proc/self/cwd"]
    {
        let ended = machine.run(&script("pwd; ls", &format!("workingDir: {dir}")));
        assert_ne!(ended.status.code(), Some(0), "{dir}: {ended:?}");
        assert_eq!(ended.stdout, "", "{dir}: nothing ran");
        assert!(ended.stderr.contains("(StartError)") && ended.stderr.contains(dir), "{}", ended.stderr);
    }
    machine.assert_as_before();
}

#[test]
fn an_image_that_means_harm_changes_nothing_outside_and_is_confined_or_never_runs() {
    canary::apart();
    let mut machine = Machine::new();
    let canary = Canary::plant(&machine.dir("canary"));
    let evil = known(&machine.dir("canary"), &canary.file());
    let base = programs_layer();
    let mut ran = Vec::new();
    for (name, tar) in &evil {
        let path = put(&machine, name, &[base.clone(), Layer::plain(tar)]);
        machine.import(&path);
        let manifest =
            script("exec /bin/probe /proc/keys /sys/firmware", "volumeMounts: [{name: v, mountPath: /data/vol}]")
                .replace("image: busybox", &format!("image: example.com/{name}:1\n    imagePullPolicy: Never"))
                + "  volumes: [{name: v, emptyDir: {}}]\n";
        let ended = machine.run(&manifest);
        if ended.status.code() == Some(0) {
            assert_confined(name, &ended.stdout);
            ran.push(*name);
        } else {
            assert_eq!(ended.stdout, "", "{name}");
            assert!(ended.stderr.contains("(StartError)"), "{name}: {}", ended.stderr);
        }
        canary.assert_alive();
        machine.assert_as_before();
    }
    for fine in ["names", "passwd-link", "hosts-link", "hosts-fifo", "mount-link", "etc-link"] {
        assert!(ran.contains(&fine), "{fine} harms nobody and did not run");
    }
    for bad in ["proc-link", "proc-up", "proc-loop", "proc-chain", "proc-file", "dev-loop", "passwd-fifo"] {
        assert!(!ran.contains(&bad), "{bad} ran");
    }
}

/// The default confinement in what PROBE-IN prints.
fn assert_confined(name: &str, text: &str) {
    let mounts = section(text, "mountinfo");
    let at = |place: &str| mounts.lines().find(|line| line.split(' ').nth(4) == Some(place)).map(str::to_owned);
    let of_kind = |place: &str, kind: &str| {
        let line = at(place).unwrap_or_else(|| panic!("{name}: nothing is mounted at {place}: {mounts}"));
        assert!(line.contains(&format!(" - {kind} ")), "{name}: {line}");
    };
    of_kind("/", "overlay");
    of_kind("/proc", "proc");
    assert_eq!(section(text, "path /proc/keys").lines().next(), Some("read 0"), "{name}: masked");
    let sys = section(text, "path /sys/firmware");
    assert!(sys.starts_with("dir 0") || sys.contains("os error 2"), "{name}: masked: {sys}");
    assert!(at("/proc/sys").is_some_and(|line| line.split(' ').nth(5).is_some_and(|o| o.starts_with("ro"))), "{name}");
}

#[test]
fn a_mount_target_that_a_neighbour_renames_leads_nowhere() {
    /// Starts of the victim; tests/root_launch.rs does more of them, without all that is around.
    const STARTS: u32 = 20;
    canary::apart();
    let machine = Machine::with_busybox();
    let canary = Canary::plant(&machine.dir("canary"));
    let (shared, inner) = (machine.dir("shared"), machine.dir("inner"));
    fs::create_dir_all(shared.join("target/deep")).expect("mkdir");
    std::os::unix::fs::symlink(
        format!("../../../../../../../..{}", machine.dir("canary").display()),
        shared.join("link"),
    )
    .expect("symlink");
    fs::create_dir(machine.dir("canary").join("deep")).expect("mkdir");
    let canary = {
        drop(canary);
        Canary::plant(&machine.dir("canary"))
    };
    let volumes = format!(
        "  volumes:\n  - {{name: shared, hostPath: {{path: {}}}}}\n  - {{name: inner, hostPath: {{path: {}}}}}\n  - {{name: probe, hostPath: {{path: {}}}}}\n",
        shared.display(),
        inner.display(),
        probe_dir(&machine).display()
    );
    let racer = pod(&format!(
        "  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: racer
    image: busybox
    command: [/probe/probe, --race, /shared/target, /shared/link]
    volumeMounts: [{{name: shared, mountPath: /shared}}, {{name: probe, mountPath: /probe}}]
{volumes}"
    ));
    let mut racing = machine.start(&racer, &[]);
    racing.until("it races", || (0..200).any(|_| fs::symlink_metadata(shared.join("link")).is_ok_and(|m| m.is_dir())));
    let victim = script(
        "echo > /shared/target/deep/new; exit 0",
        "workingDir: /shared/target/deep\nvolumeMounts: [{name: shared, mountPath: /shared}, {name: inner, mountPath: /shared/target/deep}]",
    ) + &volumes;
    let mut started = 0;
    for _ in 0..STARTS {
        let ended = machine.run(&victim);
        let code = ended.status.code();
        assert!(
            code == Some(0) || ended.stderr.contains("(StartError)") || ended.stderr.contains("(Error)"),
            "{ended:?}"
        );
        started += u32::from(!ended.stderr.contains("(StartError)"));
        canary.assert_alive();
    }
    racing.signal(2);
    racing.signal(2);
    racing.wait().code(130);
    canary.assert_alive();
    assert_eq!(fs::read_dir(machine.dir("canary").join("deep")).expect("list").count(), 0);
    assert!(started > 0, "the victim was never started");
    machine.assert_as_before();
}
