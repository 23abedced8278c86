//! A container's start, exec and end with a real kernel, as the shim asks for them. Root; a static busybox of Debian's.

mod fixtures;

use fixtures::pod::{self, Pod, bind, edit, own, section, status};
use fixtures::{canary, runner};
use podwright::wire::Seccomp;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if podwright::launch::reaper::is_role(args.next().as_ref()) {
        podwright::launch::reaper::run(args);
    }
    // As a shim does, which is who launches.
    podwright::sys::exec::ignore_nothing_inherited();
    podwright::sys::prctl::set_not_dumpable().expect("prctl");
    runner::main(cases![
        a_container_runs_with_an_overlay_root,
        a_container_is_confined_as_the_spec_says,
        an_exec_is_confined_as_the_container,
        pid_namespaces_are_the_pods_own_the_hosts_or_a_targets,
        host_network_and_ipc_are_the_hosts,
        sysctls_and_hostname_are_the_pods,
        users_names_and_groups_are_resolved_in_the_image,
        no_new_privs_and_a_plain_user_have_no_capabilities,
        volumes_are_bound_with_their_options,
        propagation_reaches_the_volumes_that_ask_for_it,
        shm_is_shared_within_the_pod,
        a_read_only_root_is_one,
        a_hundred_and_twenty_seven_layers_are_one_root,
        evil_images_change_nothing_outside,
        commands_that_cannot_run_say_why_and_leave_nothing,
        specs_that_cannot_be_honoured_are_refused_by_field,
        a_terminal_is_the_containers_own,
        an_own_init_reaps_and_passes_on_signals_and_status,
        every_program_comes_under_its_quota,
        ten_thousand_orphans_leave_no_zombie,
        pause_is_worthless,
        nobody_in_the_pod_looks_into_a_process_on_its_way_to_its_program,
        devices_are_the_default_ones,
        devices_that_are_not_allowed_cannot_be_opened,
        a_renamer_in_a_shared_volume_wins_nothing,
    ])
}

fn a_container_runs_with_an_overlay_root() {
    canary::apart();
    let before = canary::host_mounts();
    let mut pod = Pod::new(own());
    let (code, text) = pod.run(&["sh", "-c", "echo hello; echo > /new; ls /; exit 3"], |_| {});
    assert_eq!(code, 3, "{text}");
    assert!(text.starts_with("hello\n") && text.contains("new\n"), "{text}");
    drop(pod);
    assert_eq!(before, canary::host_mounts());
}

fn probe(pod: &mut Pod, edit: impl FnOnce(&mut podwright::wire::Launch)) -> String {
    let (code, text) = pod.run(&["/bin/probe", "/proc/keys", "/sys/firmware", "/proc/sys/kernel/core_pattern"], edit);
    assert_eq!(code, 0, "{text}");
    text
}

/// What every probe must show, container or exec.
fn assert_confined(text: &str) {
    let caps = "00000000a80425fb"; // Docker's and containerd's default set
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(text, set), caps, "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status(text, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(text, "SigBlk"), "0000000000000000");
    assert_eq!(status(text, "Seccomp"), "2");
    let fds = section(text, "fd");
    let numbers: Vec<&str> = fds.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(numbers, ["0", "1", "2"], "{fds}");
    assert_eq!(section(text, "oom_score_adj"), "500");
    assert!(
        section(text, "limits").lines().any(|l| l.starts_with("Max open files") && l.contains("512       ")),
        "{text}"
    );
    assert_eq!(section(text, "path /proc/keys"), "read 0\nwritable", "masked by /dev/null");
    assert!(section(text, "path /sys/firmware").starts_with("dir 0"), "masked by an empty directory");
    assert!(
        section(text, "path /proc/sys/kernel/core_pattern").ends_with("Read-only file system (os error 30)"),
        "{text}"
    );
    assert_eq!(section(text, "hostname"), "web-0");
}

fn a_container_is_confined_as_the_spec_says() {
    let mut pod = Pod::new(own());
    let text = probe(&mut pod, |launch| launch.user.user = "root".into());
    assert_confined(&text);
    assert_eq!(section(&text, "cwd"), "/");
    assert_eq!(section(&text, "cgroup").lines().last(), Some("0::/"), "the container's cgroup is the root it sees");
    assert_eq!((section(&text, "pid"), section(&text, "sid")), ("1".into(), "1".into()));
    assert_eq!(status(&text, "Uid"), "0 0 0 0");
    assert_eq!(status(&text, "Groups"), "0");
    assert_eq!(status(&text, "Umask"), "0022");
    // PROBE-IN's own runtime ignores SIGPIPE; cat does not.
    let (_, plain) = pod.run(&["cat", "/proc/self/status"], |_| {});
    assert!(plain.contains("SigIgn:\t0000000000000000"), "{plain}");
    let env = section(&text, "env");
    assert!(env.contains("A=1") && env.contains("HOME=/root"), "{env}");
    let mounts = section(&text, "mountinfo");
    let root = mounts.lines().next().expect("a root");
    assert!(root.contains(" / / rw") && root.contains("overlay") && root.contains("volatile"), "{root}");
    assert!(!mounts.contains("shared:") && !mounts.contains("master:"), "{mounts}");
    assert!(!mounts.contains("/shm\n") || mounts.contains("/dev/shm"), "{mounts}");
    let host = std::fs::read_link("/proc/self/ns/mnt").expect("ns").display().to_string();
    assert!(!section(&text, "ns").contains(&host));
}

fn an_exec_is_confined_as_the_container() {
    let mut pod = Pod::new(own());
    let launch = pod.launch(&["sleep", "1000"], |_| {});
    let running = pod.start(launch).expect("start");
    let args = ["probe", "/proc/keys", "/sys/firmware", "/proc/sys/kernel/core_pattern"];
    let (code, text) = running.exec(&args, |exec| exec.env = vec!["A=2".into(), "B=3".into()]).expect("exec");
    assert_eq!(code, 0);
    assert_confined(&text);
    let env = section(&text, "env");
    assert!(env.contains("A=2") && env.contains("B=3") && !env.contains("A=1"), "{env}");
    assert!(section(&text, "cgroup").lines().last().is_some_and(|line| line.starts_with("0::/exec-")), "{text}");
    // The same namespaces, by what the container itself sees.
    let (_, mine) = running
        .exec(&["sh", "-c", "for n in net ipc uts mnt cgroup pid; do readlink /proc/1/ns/$n; done"], |_| {})
        .expect("exec");
    for line in mine.lines().filter(|line| line.contains('[')) {
        assert!(section(&text, "ns").contains(line), "{line}: {text}");
    }
    let web = |exec: &mut podwright::wire::Exec| {
        exec.user = Some(podwright::wire::UserChoice { user: "web".into(), ..Default::default() });
        exec.cwd = "/var/www".into();
    };
    let (_, text) = running.exec(&["sh", "-c", "id; pwd; echo $HOME; cat /proc/self/status"], web).expect("exec");
    assert!(text.starts_with("uid=33(web) gid=34(www) groups=34(www),50(log)\n/var/www\n/var/www\n"), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    let e = running.exec(&["nosuch"], |_| {}).expect_err("no such program");
    assert_eq!((e.errno, e.step), (2, podwright::launch::Step::Exec));
    for cwd in ["/proc/self/fd/7", "/proc/self/fd/0/..", "relative"] {
        assert!(running.exec(&["true"], |exec| exec.cwd = cwd.into()).is_err(), "{cwd}");
    }
    running.kill();
}

fn ns_of(pid: u32, kind: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("ns").display().to_string()
}

fn pid_namespaces_are_the_pods_own_the_hosts_or_a_targets() {
    use podwright::state::model::{NamespaceMode, Namespaces};
    let me = std::process::id();
    let mut shared = Pod::new(Namespaces::default());
    let launch = shared.launch(&["sh", "-c", "cat /proc/1/comm; echo $$; exec sleep 1000"], |_| {});
    let mut first = shared.start(launch).expect("start");
    assert_eq!((first.line().as_str(), first.line().as_str()), ("pause", "2"));
    assert_eq!(ns_of(first.pid(), "pid"), ns_of(shared.pause.process.pid, "pid"));
    first.kill();
    drop(shared);

    let mut pod = Pod::new(own());
    let launch = pod.launch(&["sleep", "1000"], |_| {});
    let first = pod.start(launch).expect("start");
    assert_ne!(ns_of(first.pid(), "pid"), ns_of(me, "pid"));
    let id = first.launch.container.clone();
    let target = pod.launch(&["sh", "-c", "cat /proc/1/comm"], |launch| {
        launch.namespaces.pid = NamespaceMode::Target(id);
    });
    let mut second = pod.start_target(target, Some(&first)).expect("start");
    assert_eq!(second.read(), "sleep\n");
    second.wait();
    first.kill();
    // And this process's children are the host's again.
    assert_eq!(ns_of(me, "pid"), ns_of(me, "pid_for_children"));
    drop(pod);

    let mut host = Pod::new(Namespaces { pid: NamespaceMode::Node, ..Namespaces::default() });
    let launch = host.launch(&["sh", "-c", "echo $$"], |_| {});
    let mut first = host.start(launch).expect("start");
    assert_eq!(first.read().trim(), first.pid().to_string());
    first.wait();
}

fn host_network_and_ipc_are_the_hosts() {
    use podwright::state::model::{NamespaceMode, Namespaces};
    let node = Namespaces {
        network: NamespaceMode::Node,
        ipc: NamespaceMode::Node,
        pid: NamespaceMode::Container,
        ..Namespaces::default()
    };
    let mut pod = Pod::new(node);
    let shared = tempfile::NamedTempFile::new_in("/dev/shm").expect("shm");
    let name = format!("/dev/shm/{}", shared.path().file_name().expect("name").to_string_lossy());
    let launch = pod.launch(&["sh", "-c", "ls $1; exec sleep 1000", "-", &name], |_| {});
    let mut running = pod.start(launch).expect("start");
    assert_eq!(running.line(), name);
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(ns_of(running.pid(), kind), ns_of(std::process::id(), kind), "{kind}");
    }
    for kind in ["mnt", "pid", "cgroup"] {
        assert_ne!(ns_of(running.pid(), kind), ns_of(std::process::id(), kind), "{kind}");
    }
    running.kill();
}

fn sysctls_and_hostname_are_the_pods() {
    let mut sandbox = pod::sandbox(&own());
    sandbox.sysctls = vec![
        ("net.ipv4.ip_unprivileged_port_start".into(), "99".into()),
        ("kernel.shm_rmid_forced".into(), "1".into()),
    ];
    let mut pod = Pod::of(&sandbox).expect("pause");
    let script = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range kernel/shm_rmid_forced kernel/hostname; cat /sys/class/net/lo/flags";
    let (_, text) = pod.run(&["sh", "-c", script], |_| {});
    assert_eq!(text, "99\n0\t2147483647\n1\nweb-0\n0x9\n");
    drop(pod);
    sandbox.pod = podwright::id::PodId::random();
    sandbox.sysctls = vec![("net.ipv4.no_such".into(), "1".into())];
    let Err(e) = Pod::of(&sandbox) else { panic!("a sysctl that is not there was set") };
    assert!(e.message.ends_with("write sysctl net.ipv4.no_such=1: ENOENT (no such file or directory)"), "{e}");
    sandbox.sysctls = vec![("kernel.core_pattern".into(), "|/bin/evil".into())];
    let Err(e) = Pod::of(&sandbox) else { panic!("the host was changed") };
    assert!(e.message.contains("kernel.core_pattern"), "{e}");
}

fn users_names_and_groups_are_resolved_in_the_image() {
    let mut pod = Pod::new(own());
    let mut as_user = |user: &str| {
        pod.run(&["sh", "-c", "id; echo $HOME; echo x > /dev/stdout; touch /tmp/x"], |launch| {
            launch.user.user = user.into();
            launch.user.supplemental_groups = vec![70];
        })
    };
    assert!(as_user("web").1.starts_with("uid=33(web) gid=34(www) groups=34(www),50(log),70\n/var/www\nx\n"));
    assert!(as_user("4000:5000").1.starts_with("uid=4000 gid=5000 groups=70,5000\n/\nx\n"));
    for user in ["ghost", "-1", "4294967295"] {
        let e = pod.refused(&["true"], |launch| launch.user.user = user.into());
        assert!(e.step == podwright::launch::Step::User && e.message.contains(user), "{e}");
    }
    let e = pod.refused(&["true"], |launch| launch.user.non_root = true);
    assert!(e.message.contains("must not run as root"), "{e}");
    pod.layers[0].sparse("etc/group", 100 << 20);
    assert!(pod.refused(&["true"], |_| {}).message.contains("larger than"));
    std::fs::remove_file(pod.layers[0].0.join("etc/group")).expect("rm");
    pod.layers[0].fifo("etc/group");
    assert!(pod.refused(&["true"], |_| {}).message.contains("not a regular file"));
}

fn no_new_privs_and_a_plain_user_have_no_capabilities() {
    let mut pod = Pod::new(own());
    let text = probe(&mut pod, |launch| {
        launch.user.user = "4000".into();
        edit(&mut launch.spec, |spec| spec["process"]["noNewPrivileges"] = true.into());
    });
    assert_eq!((status(&text, "NoNewPrivs").as_str(), status(&text, "CapEff").as_str()), ("1", "0000000000000000"));
    assert_eq!((status(&text, "Uid").as_str(), status(&text, "Gid").as_str()), ("4000 4000 4000 4000", "0 0 0 0"));
    let text = probe(&mut pod, |launch| {
        launch.user.user = "4000".into();
        edit(&mut launch.spec, |spec| {
            spec["process"]["capabilities"]["ambient"] = serde_json::json!(["CAP_NET_BIND_SERVICE"])
        });
    });
    assert_eq!(
        (status(&text, "CapAmb").as_str(), status(&text, "CapEff").as_str()),
        ("0000000000000400", "0000000000000400")
    );
    assert_eq!(status(&text, "CapInh"), "0000000000000400");
}

fn volumes_are_bound_with_their_options() {
    let mut pod = Pod::new(own());
    let dir = pod.temp.path().join("volume");
    std::fs::create_dir_all(dir.join("sub")).expect("volume");
    fixtures::put(dir.join("file"), "content");
    let script = "cat /data/file /etc/app/one; touch /data/new && echo rw; touch /ro/new; touch /etc/app/one && echo wrong; cat /made/deep/file";
    let (_, text) = pod.run(&["sh", "-c", script], |launch| {
        edit(&mut launch.spec, |spec| bind(spec, &dir, "/data", &["rbind", "rprivate", "rw"]));
        edit(&mut launch.spec, |spec| bind(spec, &dir, "/ro", &["rbind", "rprivate", "ro"]));
        edit(&mut launch.spec, |spec| bind(spec, &dir.join("file"), "/etc/app/one", &["bind", "ro"]));
        edit(&mut launch.spec, |spec| bind(spec, &dir, "/made/deep", &["rbind", "rro"]));
    });
    let expected =
        "contentcontentrw\ntouch: /ro/new: Read-only file system\ntouch: /etc/app/one: Read-only file system\ncontent";
    assert_eq!(text, expected);
    let e = pod.refused(&["true"], |launch| edit(&mut launch.spec, |spec| bind(spec, &dir, "/bin/sh", &["bind"])));
    assert!(e.message.contains("mount /bin/sh: ENOTDIR") || e.message.contains("a directory and a file"), "{e}");
    let e = pod
        .refused(&["true"], |launch| edit(&mut launch.spec, |spec| bind(spec, &dir.join("nosuch"), "/x", &["bind"])));
    assert!(e.message.contains("nosuch for /x: ENOENT"), "{e}");
}

fn shell(script: &str) {
    let status = std::process::Command::new("sh").args(["-ec", script]).status().expect("sh");
    assert!(status.success(), "{script}");
}

fn propagation_reaches_the_volumes_that_ask_for_it() {
    let mut pod = Pod::new(own());
    let dir = pod.temp.path().join("volume");
    std::fs::create_dir_all(&dir).expect("volume");
    let at = dir.display();
    shell(&format!("mount -t tmpfs none {at}; mount --make-shared {at}; mkdir {at}/sub {at}/out"));
    let script = "echo ready; read x; for v in private slave shared; do ls /$v/sub; done; mount -t tmpfs none /shared/out && touch /shared/out/up; echo done; read x";
    let launch = pod.launch(&["sh", "-c", script], |launch| {
        edit(&mut launch.spec, |spec| bind(spec, &dir, "/private", &["rbind", "rprivate"]));
        edit(&mut launch.spec, |spec| bind(spec, &dir, "/slave", &["rbind", "rslave"]));
        edit(&mut launch.spec, |spec| bind(spec, &dir, "/shared", &["rbind", "rshared"]));
        let caps = serde_json::json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
        edit(&mut launch.spec, |spec| {
            spec["process"]["capabilities"] =
                serde_json::json!({"bounding": caps, "permitted": caps, "effective": caps})
        });
    });
    let mut running = pod.start(launch).expect("start");
    assert_eq!(running.line(), "ready");
    shell(&format!("mount -t tmpfs none {at}/sub; touch {at}/sub/down"));
    running.write("go\n");
    assert_eq!((running.line(), running.line(), running.line()), ("down".into(), "down".into(), "done".into()));
    assert!(dir.join("out/up").exists(), "the container's mount reaches the host");
    running.kill();
    shell(&format!("umount {at}/out {at}/sub {at}; mount -t tmpfs none {at}; mount --make-private {at}"));
    let e = pod
        .refused(&["true"], |launch| edit(&mut launch.spec, |spec| bind(spec, &dir, "/shared", &["rbind", "rshared"])));
    assert!(e.message.contains("Bidirectional propagation needs it shared"), "{e}");
    shell(&format!("umount {at}"));
}

fn shm_is_shared_within_the_pod() {
    let mut pod = Pod::new(own());
    assert_eq!(
        pod.run(&["sh", "-c", "echo kept > /dev/shm/x; stat -f -c %T /dev/shm; stat -c %a /dev/shm"], |_| {}).1,
        "tmpfs\n1777\n"
    );
    assert_eq!(pod.run(&["cat", "/dev/shm/x"], |_| {}).1, "kept\n");
    let mut other = Pod::new(own());
    assert_eq!(other.run(&["ls", "/dev/shm"], |_| {}).1, "");
}

fn a_read_only_root_is_one() {
    let mut pod = Pod::new(own());
    let script = "touch /x; touch /dev/x && touch /dev/shm/y && echo rw; pwd";
    let (_, text) = pod.run(&["sh", "-c", script], |launch| {
        launch.root.readonly = true;
        edit(&mut launch.spec, |spec| spec["process"]["cwd"] = "/made/here".into());
    });
    assert_eq!(text, "touch: /x: Read-only file system\nrw\n/made/here\n");
}

fn a_hundred_and_twenty_seven_layers_are_one_root() {
    let mut pod = Pod::new(own());
    for number in 1..127 {
        let layer = fixtures::rootfs::Layer::new(&pod.temp.path().join(format!("layers/{number}")));
        layer.file(&format!("many/{number}"), b"", 0o644).file("top", number.to_string().as_bytes(), 0o644);
        pod.layers.push(layer);
    }
    assert_eq!(pod.run(&["sh", "-c", "ls /many | wc -l; cat /top"], |_| {}).1.trim(), "126\n126");
    pod.layers.push(pod.layers[1].clone());
    assert!(pod.refused(&["true"], |_| {}).message.contains("128 layers"));
}

fn evil_images_change_nothing_outside() {
    let mut pod = Pod::new(own());
    let canary = canary::Canary::plant(&pod.temp.path().join("canary"));
    let outside = canary.file();
    let outside = outside.display();
    let evil = pod.temp.path().join("evil");
    let mut round = 0;
    let mut with = |pod: &mut Pod, build: &dyn Fn(&fixtures::rootfs::Layer)| {
        round += 1;
        let layer = fixtures::rootfs::Layer::new(&evil.join(round.to_string()));
        build(&layer);
        pod.layers.truncate(1);
        pod.layers.push(layer);
    };
    // The kernel's file systems go where the spec says, or nowhere.
    for name in ["proc", "sys", "dev"] {
        for target in ["/tmp", "tmp", "../../../../etc", "/proc/self/root", "nowhere"] {
            with(&mut pod, &|layer| _ = layer.link(name, target));
            let e = pod.refused(&["true"], |_| {});
            assert!(e.message.contains(&format!("/{name}: ELOOP")) && e.message.contains("symbolic link"), "{e}");
        }
    }
    with(&mut pod, &|layer| _ = layer.file("proc", b"", 0o644));
    assert!(pod.refused(&["true"], |_| {}).message.contains("mount /proc: ENOTDIR"));
    // Mount targets through links end inside.
    let volume = pod.temp.path().join("volume");
    std::fs::create_dir_all(&volume).expect("volume");
    fixtures::put(volume.join("v"), "");
    for target in ["/../../../../..", "../../../../../..", &format!("/..{}", pod.temp.path().display())] {
        with(&mut pod, &|layer| _ = layer.link("link", target));
        let (code, text) = pod.run(&["ls", "/link/data"], |launch| {
            edit(&mut launch.spec, |spec| bind(spec, &volume, "/link/data", &["rbind"]))
        });
        assert_eq!((code, text.as_str()), (0, "v\n"), "{target}");
    }
    with(&mut pod, &|layer| _ = layer.link("a", "b").link("b", "a"));
    assert!(
        pod.refused(&["true"], |launch| edit(&mut launch.spec, |spec| bind(spec, &volume, "/a/x", &["rbind"])))
            .message
            .contains("ELOOP")
    );
    with(&mut pod, &|layer| _ = layer.link("into", "/proc/sys").link("etc/passwd", &format!("/proc/1/root{outside}")));
    let e = pod.refused(&["true"], |launch| edit(&mut launch.spec, |spec| bind(spec, &volume, "/into", &["rbind"])));
    assert!(e.message.contains("leads into /proc"), "{e}");
    // Masks and read-only paths through links, and masks' sources.
    with(&mut pod, &|layer| _ = layer.link("masked", "/../../../../etc").device("dev2/null", 1, 1));
    let (_, text) = pod.run(&["sh", "-c", "ls /etc | wc -l"], |launch| {
        edit(&mut launch.spec, |spec| spec["linux"]["maskedPaths"] = serde_json::json!(["/masked"]));
    });
    assert_eq!(text.trim(), "0", "what the link names inside is masked");
    // Working directories.
    with(&mut pod, &|layer| _ = layer.link("cwd", "/proc/self/fd/7").link("up", "../../../.."));
    for cwd in ["/proc/self/fd/7", "/proc/self/fd/7/../..", "/cwd", "/proc/self/cwd", "/proc/1/root"] {
        let e = pod.refused(&["true"], |launch| edit(&mut launch.spec, |spec| spec["process"]["cwd"] = cwd.into()));
        assert!(e.step == podwright::launch::Step::Workdir || e.message.contains("process.cwd"), "{cwd}: {e}");
    }
    assert_eq!(
        pod.run(&["sh", "-c", "pwd"], |launch| edit(&mut launch.spec, |spec| spec["process"]["cwd"] = "/up".into())).1,
        "/\n"
    );
    canary.assert_alive();
}

fn commands_that_cannot_run_say_why_and_leave_nothing() {
    canary::apart();
    let before = canary::host_mounts();
    let mut pod = Pod::new(own());
    for (command, errno, words) in [
        ("nosuch", 2, r#"exec "nosuch": ENOENT (no such file or directory): not found in PATH"#),
        ("/bin/nosuch", 2, r#"exec "/bin/nosuch": ENOENT (no such file or directory): not found, or the interpreter"#),
        ("/bin/badinterp", 2, "or the interpreter that it names is not"),
        ("notexec", 13, "exec /bin/notexec: EACCES (permission denied)"),
        ("/etc", 13, "exec /etc: EACCES"),
    ] {
        let e = pod.refused(&[command], |_| {});
        assert_eq!((e.step, e.errno), (podwright::launch::Step::Exec, errno), "{e}");
        assert!(e.message.starts_with("start container ") && e.message.contains(words), "{e}");
    }
    drop(pod);
    assert_eq!(before, canary::host_mounts());
}

fn specs_that_cannot_be_honoured_are_refused_by_field() {
    let mut pod = Pod::new(own());
    type Edit = fn(&mut serde_json::Value);
    let edits: [(&str, Edit); 12] = [
        ("process.args", |s| s["process"]["args"] = serde_json::json!([])),
        ("process.env", |s| s["process"]["env"] = serde_json::json!(["NOEQUALS"])),
        ("process.cwd", |s| s["process"]["cwd"] = "relative".into()),
        ("process.apparmorProfile", |s| s["process"]["apparmorProfile"] = "two\nlines".into()),
        ("process.capabilities.inheritable", |s| {
            s["process"]["capabilities"]["inheritable"] = serde_json::json!(["CAP_KILL"])
        }),
        ("process.capabilities.effective", |s| {
            s["process"]["capabilities"]["effective"] = serde_json::json!(["CAP_SYS_ADMIN"])
        }),
        ("process.oomScoreAdj", |s| s["process"]["oomScoreAdj"] = 1001.into()),
        ("linux.uidMappings", |s| {
            s["linux"]["uidMappings"] = serde_json::json!([{"containerID": 0, "hostID": 1, "size": 1}])
        }),
        ("linux.sysctl", |s| s["linux"]["sysctl"] = serde_json::json!({"net.ipv4.ip_forward": "1"})),
        ("mounts: /x", |s| bind(s, std::path::Path::new("/tmp"), "/x", &["bind", "size=4k"])),
        ("mounts: /proc/sys", |s| bind(s, std::path::Path::new("/tmp"), "/proc/sys", &["bind"])),
        ("mounts: /a/../b", |s| bind(s, std::path::Path::new("/tmp"), "/a/../b", &["bind"])),
    ];
    for (field, change) in edits {
        let e = pod.refused(&["true"], |launch| edit(&mut launch.spec, change));
        assert_eq!(e.step, podwright::launch::Step::Plan, "{e}");
        assert!(e.message.contains(field), "{field}: {e}");
    }
}

fn a_terminal_is_the_containers_own() {
    let mut pod = Pod::new(own());
    let launch = pod.launch(
        &["sh", "-c", "tty; ls -l /dev/console /dev/pts; echo > /dev/tty; stat -c %u /dev/pts/0"],
        |launch| {
            launch.stdio.tty = true;
            launch.user.user = "web".into();
        },
    );
    let mut running = pod.start(launch).expect("start");
    let text = running.read();
    assert!(text.starts_with("/dev/pts/0\r\n") && text.contains("/dev/console") && text.ends_with("33\r\n"), "{text}");
    assert_eq!(running.wait(), 0);
}

/// The shared objects that this (dynamically linked) test binary needs, so that it can be a container's init.
fn with_own_libraries(layer: &fixtures::rootfs::Layer) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let mut paths: Vec<&str> =
        maps.lines().filter_map(|l| l.split_whitespace().nth(5)).filter(|p| p.contains(".so")).collect();
    paths.dedup();
    for path in paths {
        let name = std::path::Path::new(path).file_name().expect("name").to_string_lossy();
        layer
            .copy(&format!("lib/x86_64-linux-gnu/{name}"), path.as_ref())
            .copy(&format!("lib64/{name}"), path.as_ref());
    }
}

fn an_own_init_reaps_and_passes_on_signals_and_status() {
    let mut pod = Pod::new(own());
    with_own_libraries(&pod.layers[0].clone());
    let script = "trap 'echo got; exit 7' TERM; cat /proc/1/status | grep -E '^(CapEff|NoNewPrivs):'; ls /proc/1/fd | wc -l; \
        i=0; while [ $i -lt 20 ]; do (sleep 0 & ) ; i=$((i+1)); done; echo $$; while :; do sleep 0.05; done";
    let launch = pod.launch(&["sh", "-c", script], |launch| launch.init = true);
    let mut running = pod.start(launch).expect("start");
    let lines = [running.line(), running.line(), running.line(), running.line()];
    assert_eq!(lines, ["CapEff:\t00000000a80425fb", "NoNewPrivs:\t0", "3", "2"], "the app is not PID 1");
    let zombies = || running.exec(&["sh", "-c", "cat /proc/[0-9]*/stat | grep -c ') Z '"], |_| {}).expect("exec").1;
    while zombies().trim() != "0" {}
    podwright::sys::exec::kill(running.pid(), 15).expect("kill");
    assert_eq!(running.line(), "got");
    assert_eq!(running.wait(), 7);
    let e = pod.refused(&["nosuch"], |launch| launch.init = true);
    assert_eq!((e.step, e.errno), (podwright::launch::Step::Exec, 2), "{e}");
    assert_eq!(pod.run(&["sh", "-c", "kill -9 $$"], |launch| launch.init = true).0, 137);
}

/// On the way to the program a child is out of its quota by its scheduling policy: field 41 of /proc/PID/stat.
fn every_program_comes_under_its_quota() {
    let ordinary = "0 0\n"; // no real-time priority; SCHED_OTHER
    let of = |pid: &str| format!("read stat < /proc/{pid}/stat; set -- ${{stat##*) }}; echo ${{38}} ${{39}}");
    let (own_policy, inits) = (of("self"), of("1"));
    let own_policy = ["sh", "-c", &own_policy];
    let mut pod = Pod::new(own());
    with_own_libraries(&pod.layers[0].clone());
    assert_eq!(pod.run(&own_policy, |_| {}), (0, ordinary.to_owned()));
    assert_eq!(pod.run(&own_policy, |launch| launch.seccomp = Seccomp::Unconfined), (0, ordinary.to_owned()));
    assert_eq!(pod.run(&own_policy, |launch| launch.init = true), (0, ordinary.to_owned()), "below an own init");
    let (code, text) = pod.run(&["sh", "-c", &inits], |launch| launch.init = true);
    assert_eq!((code, text.as_str()), (0, ordinary), "the own init");
    let launch = pod.launch(&["sleep", "1000"], |_| {});
    let running = pod.start(launch).expect("start");
    assert_eq!(running.exec(&own_policy, |_| {}).expect("exec"), (0, ordinary.to_owned()));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pod.pause.process.pid)).expect("pause runs");
    let fields: Vec<&str> = stat.split(' ').collect();
    assert_eq!(fields[39..41], ["0", "0"], "pause: {stat}");
    running.kill();
}

fn ten_thousand_orphans_leave_no_zombie() {
    let mut pod = Pod::new(podwright::state::model::Namespaces::default());
    let script = "i=0; while [ $i -lt 10000 ]; do (true &) ; i=$((i+1)); done; echo done; \
        n=0; while cat /proc/[0-9]*/stat 2>/dev/null | grep -q ') Z '; do n=$((n+1)); [ $n = 1000 ] && exit 1; done; echo none";
    let (_, text) = pod.run(&["sh", "-c", script], |_| {});
    // The last ones end when the loop has ended already.
    assert_eq!(text, "done\nnone\n");
}

fn pause_is_worthless() {
    let mut pod = Pod::new(podwright::state::model::Namespaces::default());
    let pid = pod.pause.process.pid;
    let host = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Uid:\t65535\t65535",
        "Groups:\t \n",
        "Name:\tpause",
    ] {
        assert!(host.contains(line), "{line}: {host}");
    }
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).expect("fd").count(), 0);
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
    assert_eq!(mounts.lines().count(), 2, "a root and shm: {mounts}");
    assert!(mounts.lines().next().expect("root").contains(" ro,"), "{mounts}");
    // With SYS_PTRACE in a shared pid namespace, its root has nothing.
    let (_, text) = pod.run(
        &["sh", "-c", "ls /proc/1/root/ /proc/1/root/proc /proc/1/root/sys; ls /proc/1/fd | wc -l"],
        |launch| {
            let caps = serde_json::json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
            edit(&mut launch.spec, |spec| {
                spec["process"]["capabilities"] =
                    serde_json::json!({"bounding": caps, "permitted": caps, "effective": caps})
            });
        },
    );
    assert_eq!(text, "/proc/1/root/:\nproc\nroot\nshm\nsys\n\n/proc/1/root/proc:\n\n/proc/1/root/sys:\n0\n");
    let (_, text) = pod.run(&["sh", "-c", "ls /proc/1/root/ 2>&1"], |_| {});
    assert!(text.contains("Permission denied"), "{text}");
    podwright::sys::exec::kill(pid, 15).expect("kill");
    assert_eq!(pod::wait(pid), 0, "it ends on SIGTERM");
}

/// Root of the container, with the usual capabilities, and the pod's processes in sight. With SYS_PTRACE it could: see `launch::confine`.
fn nobody_in_the_pod_looks_into_a_process_on_its_way_to_its_program() {
    let mut pod = Pod::new(podwright::state::model::Namespaces::default());
    // On its way it still is the program that launches, this one; afterwards it is busybox.
    let script = "echo up; while [ ! -e /tmp/stop ]; do ls -l /proc/[0-9]*/exe; done 2>&1 | grep -e '->' | grep -v busybox; echo end";
    let launch = pod.launch(&["sh", "-c", script], |_| {});
    let mut watcher = pod.start(launch).expect("start");
    assert_eq!(watcher.line(), "up");
    for _ in 0..60 {
        let launch = pod.launch(&["true"], |_| {});
        pod.start(launch).expect("start").wait();
        watcher.exec(&["true"], |_| {}).expect("exec");
    }
    watcher.exec(&["touch", "/tmp/stop"], |_| {}).expect("exec");
    let seen = watcher.read();
    assert_eq!(watcher.wait(), 0);
    assert_eq!(seen, "end\n", "nothing but programs of the container");
}

fn devices_are_the_default_ones() {
    let mut pod = Pod::new(own());
    let script = "cd /dev; ls -d * | tr '\\n' ' '; echo x > null; cat /dev/full > /dev/null & kill $!; readlink ptmx; readlink fd; readlink stdin; stat -c '%t:%T %a' null tty; ls net";
    let (_, text) = pod.run(&["sh", "-c", script], |launch| {
        edit(&mut launch.spec, |spec| {
            spec["linux"]["devices"] =
                serde_json::json!([{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 438}])
        });
    });
    let expected = "fd full mqueue net null ptmx pts random shm stderr stdin stdout tty urandom zero pts/ptmx\n/proc/self/fd\n/proc/self/fd/0\n1:3 666\n5:0 666\ntun\n";
    assert_eq!(text, expected);
}

fn devices_that_are_not_allowed_cannot_be_opened() {
    let mut pod = Pod::new(own());
    pod.layers[0].device("dev2/kmsg", 1, 11).device("dev2/null", 1, 3);
    let script = "cat /dev2/null && echo null; cat /dev2/kmsg; mknod /x c 1 11 && cat /x";
    let (_, text) = pod.run(&["sh", "-c", script], |_| {});
    let refused = "can't open '/dev2/kmsg': Operation not permitted\ncat: can't open '/x': Operation not permitted\n";
    assert_eq!(text, format!("null\ncat: {refused}"));
}

/// RACER: another container renames a directory and a link to the outside back and forth, while victims mount through them.
fn a_renamer_in_a_shared_volume_wins_nothing() {
    /// Starts of the victim: with the 20 through the binary (tests/root_bad_input.rs) the 500 of the fixture.
    const STARTS: u32 = 480;
    let mut pod = Pod::new(own());
    let canary = canary::Canary::plant(&pod.temp.path().join("canary"));
    let volume = pod.temp.path().join("volume");
    std::fs::create_dir_all(volume.join("target/deep")).expect("volume");
    let up = format!("/../../../..{}", canary.file().parent().expect("a parent").display());
    std::os::unix::fs::symlink(&up, volume.join("link")).expect("link");
    let inner = pod.temp.path().join("inner");
    std::fs::create_dir_all(&inner).expect("inner");
    let racer = pod.launch(&["/bin/probe", "--race", "/v/target", "/v/link"], |launch| {
        edit(&mut launch.spec, |spec| bind(spec, &volume, "/v", &["rbind", "rw"]));
    });
    let mut racer = pod.start(racer).expect("start");
    assert_eq!(racer.line(), "racing");
    let mut started = 0;
    for _ in 0..STARTS {
        let victim = pod.launch(&["sh", "-c", "echo > /v/target/deep/new; cat /proc/1/comm"], |launch| {
            edit(&mut launch.spec, |spec| bind(spec, &volume, "/v", &["rbind", "rw"]));
            edit(&mut launch.spec, |spec| bind(spec, &inner, "/v/target/deep", &["rbind", "rw"]));
            edit(&mut launch.spec, |spec| spec["process"]["cwd"] = "/v/target/deep".into());
            edit(&mut launch.spec, |spec| {
                spec["linux"]["maskedPaths"] = serde_json::json!(["/v/target/deep/masked", "/proc/keys"])
            });
            edit(&mut launch.spec, |spec| {
                spec["linux"]["readonlyPaths"] = serde_json::json!(["/v/target", "/proc/sys"])
            });
        });
        match pod.start(victim) {
            Ok(running) => {
                started += 1;
                running.wait();
            }
            // What it may be: a link where a directory was, or nothing where something was.
            Err(e) => assert!([2, 17, 18, 20, 30, 40, 11].contains(&e.errno), "{e}"),
        }
    }
    racer.kill();
    assert!(started > 0, "the victim was never started");
    canary.assert_alive();
}
