//! Exec, attach and port-forward through the CRI, by a client of our own that speaks as kubectl, crictl and kubelets do, over every protocol
//! that they may choose. What a container got or wrote is looked for in its log and its files.

mod fixtures;

use fixtures::cri::{self, Node, log_text, script};
use fixtures::machine::{Machine, PATIENCE, until};
use fixtures::streams::{self, ALL, Came, ERROR, Frame, RESIZE, STDERR, STDIN, STDOUT, Session, Spdy, Speak, Tunnel};
use podwright::criapi::*;
use podwright::state::record::{self, PodRecord};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::PathBuf;
use tonic::{Code, Status};

/// What most tests are about, for each transport once.
const BOTH: [Speak; 2] = [Speak::Spdy("v4.channel.k8s.io"), Speak::WebSocket("v5.channel.k8s.io")];

/// Whether any server has to know it: v5, which brought the end of an input to WebSockets, is for API servers.
fn any_server_has(speak: Speak) -> bool {
    speak != BOTH[1]
}

fn both() -> Vec<Speak> {
    BOTH.into_iter().filter(|speak| any_server_has(*speak) || cri::other().is_none()).collect()
}

/// Removes all pods, and asserts that nothing is left.
async fn clean(mut node: Node) {
    for pod in node.pods(PodSandboxFilter::default()).await {
        node.remove_pod(&pod.id).await.expect("remove");
    }
    node.assert_clean().await;
}

async fn exec_url(node: &mut Node, id: &str, cmd: &[&str], stdin: bool, tty: bool) -> Result<String, Status> {
    let request = ExecRequest {
        container_id: id.to_owned(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    Ok(node.runtime.exec(request).await?.into_inner().url)
}

async fn exec(node: &mut Node, speak: Speak, id: &str, cmd: &[&str], stdin: bool) -> Session {
    let url = exec_url(node, id, cmd, stdin, false).await.expect("a URL");
    let channels: &[u8] = if stdin { &[STDIN, STDOUT, STDERR] } else { &[STDOUT, STDERR] };
    Session::open(&url, speak, channels).expect("upgraded")
}

async fn attach(node: &mut Node, speak: Speak, id: &str, stdin: bool, tty: bool) -> Session {
    let filter = ContainerFilter { id: id.to_owned(), ..ContainerFilter::default() };
    let pod = node.containers(filter).await[0].pod_sandbox_id.clone();
    let shim = cri::other().is_none().then(|| shim_of(node, &pod));
    let before = shim.map(pipes).unwrap_or_default();
    let container_id = id.to_owned();
    let request = AttachRequest { container_id, stdin, tty, stdout: true, stderr: !tty };
    let url = node.runtime.attach(request).await.expect("a URL").into_inner().url;
    let mut channels = vec![STDOUT];
    channels.extend(stdin.then_some(STDIN));
    channels.push(if tty { RESIZE } else { STDERR });
    let session = Session::open(&url, speak, &channels).expect("upgraded");
    // What is written before its pipe is at the shim is not copied; no protocol tells a client when that is.
    match shim {
        Some(shim) => {
            until(
                PATIENCE,
                || if pipes(shim).is_subset(&before) { Err("it is not attached".to_owned()) } else { Ok(()) },
            )
        }
        // Nor does any file tell of another server's.
        None => tokio::time::sleep(std::time::Duration::from_millis(500)).await,
    }
    session
}

/// The pid of a pod's shim.
fn shim_of(node: &Node, pod: &str) -> u32 {
    let path = node.machine.state().join("pods").join(pod).join("pod.json");
    let record: Option<PodRecord> = record::read(&path).expect("readable");
    record.expect("it is there").shim.pid
}

/// The pipes that a process has open; no two that ever were have the same name.
fn pipes(pid: u32) -> BTreeSet<PathBuf> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("pipe:")).collect()
}

async fn forward_url(node: &mut Node, pod: &str, ports: &[i32]) -> Result<String, Status> {
    let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: ports.to_vec() };
    Ok(node.runtime.port_forward(request).await?.into_inner().url)
}

fn log_of(node: &Node, pod: &str) -> PathBuf {
    node.machine.dir("logs").join(pod).join("c/0.log")
}

/// A pod with one container that has an input.
async fn with_input(node: &mut Node, name: &str, text: &str, tty: bool, once: bool) -> (String, String) {
    let sandbox = node.sandbox(name);
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let asked = ContainerConfig { stdin: true, stdin_once: once, tty, ..script("c", text) };
    let id = node.create(&pod, asked, sandbox).await.expect("create");
    node.start_container(&id).await.expect("start");
    (pod, id)
}

#[tokio::test]
async fn every_protocol_carries_both_outputs_the_input_and_how_it_ended() {
    let mut node = Node::new().await;
    let (_, id) = node.pod_with("web", "while :; do sleep 1; done").await;
    for speak in ALL.into_iter().filter(|speak| any_server_has(*speak) || cri::other().is_none()) {
        let session = exec(&mut node, speak, &id, &["sh", "-c", "echo out; echo err >&2; exit 7"], false).await;
        let rest = session.rest();
        assert_eq!(rest.text(), ("out\n".into(), "err\n".into()), "{speak:?}");
        match speak.json() {
            true => assert_eq!(rest.code(), Ok(7), "{speak:?}"),
            false => assert!(String::from_utf8_lossy(&rest.error).trim_end().ends_with('7'), "{speak:?}: {rest:?}"),
        }
        let session = exec(&mut node, speak, &id, &["true"], false).await;
        let rest = session.rest();
        match speak.json() {
            true => assert_eq!(rest.code(), Ok(0), "{speak:?}"),
            false => assert!(rest.error.is_empty(), "{speak:?}: {rest:?}"),
        }
        let mut session = exec(&mut node, speak, &id, &["sh", "-c", "read line; echo \"got $line\"; cat"], true).await;
        session.send(STDIN, b"a li").expect("write");
        session.send(STDIN, b"ne\nand ").expect("write");
        assert_eq!(session.until(STDOUT, "and "), "got a line\nand ");
        if speak.ends() {
            session.send(STDIN, b"more").expect("write");
            session.end(STDIN);
            let rest = session.rest();
            assert_eq!(rest.text().0, "more", "{speak:?}");
        } else {
            session.cut();
        }
        let missing = exec(&mut node, speak, &id, &["nonesuch"], false).await.rest();
        assert!(String::from_utf8_lossy(&missing.error).contains("nonesuch"), "{speak:?}: {missing:?}");
        let killed = exec(&mut node, speak, &id, &["sh", "-c", "kill -9 $$"], false).await.rest();
        assert!(String::from_utf8_lossy(&killed.error).contains("137"), "{speak:?}: {killed:?}");
    }
    clean(node).await;
}

#[tokio::test]
async fn nothing_is_lost_or_reordered_of_much_in_both_directions() {
    let mut node = Node::new().await;
    let (_, id) = node.pod_with("web", "while :; do sleep 1; done").await;
    let sent: Vec<u8> = (0..4 << 20).map(|n: u64| u8::try_from(n * n / 7 % 251).expect("small")).collect();
    for speak in both() {
        let mut session = exec(&mut node, speak, &id, &["cat"], true).await;
        let mut writer = exec_writer(&session);
        let copy = sent.clone();
        let thread = std::thread::spawn(move || {
            copy.chunks(30_000).for_each(&mut writer);
            writer(b"");
        });
        let mut got = Vec::new();
        let mut code = None;
        while let Some(came) = session.next() {
            match came {
                Came::Data(STDOUT, bytes) => got.extend_from_slice(&bytes),
                Came::Data(ERROR, bytes) => code = Some(String::from_utf8(bytes).expect("text")),
                _ => {}
            }
        }
        thread.join().expect("written");
        assert!(got == sent, "{speak:?}: {} of {} bytes", got.len(), sent.len());
        assert!(code.is_some_and(|code| code.contains("Success")), "{speak:?}");
    }
    clean(node).await;
}

/// Writes to an input; empty is the end.
type Put = Box<dyn FnMut(&[u8]) + Send>;

/// What writes to a session's input from another thread.
fn exec_writer(session: &Session) -> Put {
    let mut socket = session.socket().try_clone().expect("dup");
    match session {
        Session::Spdy { streams, .. } => {
            let stream = streams[&STDIN];
            let mut spdy = Spdy::new(socket);
            Box::new(move |bytes| spdy.send(stream, bytes.is_empty(), bytes).expect("write"))
        }
        Session::WebSocket { .. } => Box::new(move |bytes| {
            let whole = if bytes.is_empty() { vec![255, STDIN] } else { [&[STDIN], bytes].concat() };
            // In fragments, as a client may.
            let (first, second) = whole.split_at(whole.len() / 2);
            socket.write_all(&streams::message(2, false, first)).expect("write");
            socket.write_all(&streams::message(9, true, b"between")).expect("write");
            socket.write_all(&streams::message(0, true, second)).expect("write");
        }),
    }
}

#[tokio::test]
async fn a_terminal_has_the_size_of_its_client_and_signals_and_ends_with_its_shell() {
    let mut node = Node::new().await;
    let (_, id) = node.pod_with("web", "while :; do sleep 1; done").await;
    for speak in both() {
        let url = exec_url(&mut node, &id, &["sh"], true, true).await.expect("a URL");
        let mut session = Session::open(&url, speak, &[STDIN, STDOUT, RESIZE]).expect("upgraded");
        session.send(RESIZE, b"{\"Width\":91,\"Height\":17}\n").expect("write");
        session.send(STDIN, b"tty; echo $TERM\n").expect("write");
        // Of which number is the kernel's affair: that of the session before is free once its shim has closed it.
        assert!(session.until(STDOUT, "xterm\r\n").contains("/dev/pts/"), "{speak:?}");
        session.send(STDIN, b"while [ \"$(stty size)\" != '17 ''91' ]; do :; done; echo si''zed\n").expect("write");
        session.until(STDOUT, "sized");
        session.send(RESIZE, b"{\"Width\":100,\"Height\":40}\n{\"Width\":0,\"Height\":0}\n").expect("write");
        session.send(STDIN, b"while [ \"$(stty size)\" != '40 100' ]; do :; done; echo resi''zed\n").expect("write");
        session.until(STDOUT, "resized");
        let text = "sh -c \"trap 'echo trap''ped; exit' INT; echo rea''dy; while :; do sleep 0.1; done\"\n";
        session.send(STDIN, text.as_bytes()).expect("write");
        session.until(STDOUT, "ready");
        session.send(STDIN, &[3]).expect("write"); // ^C
        session.until(STDOUT, "trapped");
        session.send(STDIN, b"exit 9\n").expect("write");
        assert_eq!(session.rest().code(), Ok(9), "{speak:?}");
    }
    clean(node).await;
}

#[tokio::test]
async fn a_command_whose_client_goes_is_killed_with_all_it_has_started() {
    let mut node = Node::new().await;
    let (_, id) = node.pod_with("web", "while :; do sleep 1; done").await;
    for speak in both() {
        for tty in [false, true] {
            let text = "sleep 4321 & trap '' HUP; echo up; sleep 4321; sleep 4321";
            let url = exec_url(&mut node, &id, &["sh", "-c", text], true, tty).await.expect("a URL");
            let channels: &[u8] = if tty { &[STDIN, STDOUT, RESIZE] } else { &[STDIN, STDOUT, STDERR] };
            let mut session = Session::open(&url, speak, channels).expect("upgraded");
            session.until(STDOUT, "up");
            // More than what waits for a program that reads nothing (1 MiB and a pipe), so that the end comes behind it; and little more, for
            // a socket that is full lets no end in either, and how much fills it is the kernel's affair.
            for _ in 0..if tty { 0 } else { 38 } {
                session.send(STDIN, &[b'x'; 30_000]).expect("write");
            }
            session.cut();
            let execs = || {
                let dirs = std::fs::read_dir(cgroup_of(&node, &id)).expect("its cgroup");
                dirs.filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with("exec-"))).count()
            };
            until(PATIENCE, || if execs() == 0 { Ok(()) } else { Err(format!("{speak:?}, tty {tty}: it runs on")) });
        }
    }
    clean(node).await;
}

fn cgroup_of(node: &Node, id: &str) -> PathBuf {
    fn find(dir: &std::path::Path, id: &str) -> Option<PathBuf> {
        let entries = std::fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        let mut dirs = entries.filter(|path| path.is_dir());
        dirs.find_map(|path| if path.ends_with(id) { Some(path) } else { find(&path, id) })
    }
    find(&node.machine.cgroup_dir(), id).expect("its cgroup")
}

#[tokio::test]
async fn an_attached_client_sees_what_comes_and_the_log_has_all_however_slow_it_reads() {
    let mut node = Node::new().await;
    let text = "read go; echo first; echo err >&2; read go; yes 'one line of many, to fill what is in between' | head -n 40000; echo last; read go; exit 3";
    for (speak, name) in both().into_iter().zip(["a", "b"]) {
        let (_, id) = with_input(&mut node, name, text, false, false).await;
        let mut quick = attach(&mut node, speak, &id, true, false).await;
        let slow = attach(&mut node, speak, &id, false, false).await; // reads nothing at all
        quick.send(STDIN, b"go\n").expect("write");
        quick.until(STDOUT, "first\n");
        quick.send(STDIN, b"go\n").expect("write");
        quick.until(STDOUT, "last\n");
        quick.send(STDIN, b"go\n").expect("write");
        let rest = quick.rest();
        assert_eq!(rest.code(), Ok(0), "an attachment has no exit code: {speak:?}");
        assert_eq!(node.exited(&id).await.exit_code, 3);
        let logged = log_text(&log_of(&node, name), "stdout");
        assert_eq!(logged.lines().count(), 40_002, "{speak:?}");
        assert!(logged.ends_with("one line of many, to fill what is in between\nlast\n"));
        // What it missed is told, and it ends like the other.
        let got = String::from_utf8_lossy(&slow.rest().stdout).into_owned();
        assert!(got.starts_with("first\n"), "{speak:?}");
        let told = "bytes are left out here: read too slowly]\r\n";
        assert!(got.len() == logged.len() || got.contains(told) || logged.starts_with(&got), "{speak:?}");
    }
    clean(node).await;
}

#[tokio::test]
async fn input_ends_with_its_first_client_only_where_that_is_asked_for() {
    let mut node = Node::new().await;
    for (speak, [once, again]) in both().into_iter().zip([["a", "b"], ["c", "d"]]) {
        let (_, id) = with_input(&mut node, once, "cat; echo ended; exit 4", false, true).await;
        let mut other = attach(&mut node, speak, &id, true, false).await;
        let mut first = attach(&mut node, speak, &id, true, false).await;
        first.send(STDIN, b"text\n").expect("write");
        other.until(STDOUT, "text\n");
        first.end(STDIN);
        assert!(first.rest().text().0.ends_with("ended\n"), "{speak:?}");
        assert!(other.rest().text().0.ends_with("ended\n"), "whoever else holds it lets go: {speak:?}");
        assert_eq!(node.exited(&id).await.exit_code, 4);

        let (_, id) =
            with_input(&mut node, again, "while read line; do echo \"got $line\"; done; exit 5", false, false).await;
        for (n, ends) in [(1, true), (2, false), (3, true)] {
            let mut session = attach(&mut node, speak, &id, true, false).await;
            session.send(STDIN, format!("{n}\n").as_bytes()).expect("write");
            session.until(STDOUT, &format!("got {n}\n"));
            if ends {
                session.end(STDIN);
            }
            session.cut();
        }
        assert_eq!(node.status(&id).await.expect("status").state(), ContainerState::ContainerRunning);
    }
    // A client that is cut is gone as well.
    let (_, id) = with_input(&mut node, "e", "cat; exit 6", false, true).await;
    attach(&mut node, BOTH[0], &id, true, false).await.cut();
    assert_eq!(node.exited(&id).await.exit_code, 6);
    clean(node).await;
}

#[tokio::test]
async fn a_containers_own_terminal_is_attached_to_and_left_and_attached_to_again() {
    let mut node = Node::new().await;
    let (_, id) = with_input(&mut node, "web", "exec sh", true, true).await;
    for speak in both() {
        let mut session = attach(&mut node, speak, &id, true, true).await;
        session.send(RESIZE, b"{\"Width\":77,\"Height\":33}\n").expect("write");
        session
            .send(STDIN, b"while [ \"$(stty size)\" != '33 ''77' ]; do :; done; echo si''zed; stty size\n")
            .expect("write");
        session.until(STDOUT, "33 77");
        session.send(RESIZE, b"{\"Width\":70,\"Height\":30}\n").expect("write");
        session.send(STDIN, b"while [ \"$(stty size)\" != '30 ''70' ]; do :; done; echo sma''ller\n").expect("write");
        session.until(STDOUT, "smaller");
        session.cut();
    }
    let mut session = attach(&mut node, BOTH[0], &id, true, true).await;
    session.send(STDIN, b"exit 8\n").expect("write");
    assert_eq!(session.rest().code(), Ok(0));
    assert_eq!(node.exited(&id).await.exit_code, 8);
    clean(node).await;
}

#[tokio::test]
async fn an_attachment_goes_on_when_the_shim_dies() {
    let mut node = Node::new().await;
    let (pod, id) = with_input(&mut node, "web", "while read line; do echo \"got $line\"; done", false, false).await;
    let mut session = attach(&mut node, BOTH[0], &id, true, false).await;
    session.send(STDIN, b"one\n").expect("write");
    session.until(STDOUT, "got one\n");
    podwright::sys::exec::kill(shim_of(&node, &pod), 9).expect("kill");
    // Until another shim copies the output, an answer may be in the log only.
    let mut n = 0;
    session.socket().set_read_timeout(Some(std::time::Duration::from_millis(200))).expect("timeout");
    let answered = loop {
        n += 1;
        assert!(n < 150, "nothing comes any more");
        session.send(STDIN, format!("more {n}\n").as_bytes()).expect("write");
        if let Some(Came::Data(STDOUT, bytes)) = session.next() {
            break bytes;
        }
    };
    assert!(String::from_utf8_lossy(&answered).contains("got more"), "{answered:?}");
    session.cut();
    clean(node).await;
}

/// Answers every line that it gets on a port, by netcat.
const ECHO: &str =
    "while :; do nc -l -p 4567 -e cat; done & while :; do nc -l -p 4568 -e echo bye; done & sleep 100000";

async fn forwards(node: &mut Node, sandbox: PodSandboxConfig) {
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let id = node.create(&pod, script("c", ECHO), sandbox).await.expect("create");
    node.start_container(&id).await.expect("start");
    // Listening is what netcat tells nobody.
    let listens = "while :; do n=$(netstat -ltn | grep -c ':456[78] '); [ $n = 2 ] && break; done";
    // The tunnel is what kubectl speaks with an API server, and other servers need not.
    for tunnel in [false, true].into_iter().filter(|tunnel| !tunnel || cri::other().is_none()) {
        node.exec(&id, &["sh", "-c", listens], 60).await.expect("listening");
        let url = forward_url(node, &pod, &[]).await.expect("a URL");
        match tunnel {
            false => {
                let socket = streams::connect(&url, Speak::Spdy("portforward.k8s.io")).expect("upgraded");
                forward_over(Spdy::new(socket));
            }
            true => {
                let speak = Speak::WebSocket("SPDY/3.1+portforward.k8s.io");
                forward_over(Spdy::new(Tunnel::new(streams::connect(&url, speak).expect("upgraded"))));
            }
        }
    }
    node.exec(&id, &["sh", "-c", listens], 60).await.expect("listening");
    let url = forward_url(node, &pod, &[4567, 4568]).await.expect("a URL");
    let mut socket = streams::connect(&url, Speak::WebSocket("v4.channel.k8s.io")).expect("upgraded");
    let mut seen = vec![Vec::new(); 4];
    socket.write_all(&streams::message(2, true, b"\0hello")).expect("write");
    while seen[0].len() < 7 || seen[2].len() < 6 {
        let (_, payload) = streams::read_message(&mut socket).expect("an answer");
        seen[usize::from(payload[0])].extend_from_slice(&payload[1..]);
    }
    let with = |port: u16, text: &[u8]| [&port.to_le_bytes()[..], text].concat();
    assert_eq!(seen, [with(4567, b"hello"), with(4567, b""), with(4568, b"bye\n"), with(4568, b"")]);
    drop(socket);
    node.stop_pod(&pod).await.expect("stop");
    forward_url(node, &pod, &[]).await.expect_err("not ready");
}

/// The two streams of a connection that is forwarded.
fn pair<S: Read + Write>(spdy: &mut Spdy<S>, port: &str, id: &str) -> (u32, u32) {
    let error = spdy.open(&[("streamtype", "error"), ("port", port), ("requestid", id)]);
    let data = spdy.open(&[("streamtype", "data"), ("port", port), ("requestid", id)]);
    assert!(error.1 && data.1);
    spdy.send(error.0, true, b"").expect("write");
    (error.0, data.0)
}

/// What comes on a stream until its end.
fn read<S: Read + Write>(spdy: &mut Spdy<S>, stream: u32) -> String {
    let mut all = Vec::new();
    loop {
        match spdy.frame().expect("it is hung up on") {
            Frame::Data { stream: of, fin, bytes } if of == stream => {
                all.extend_from_slice(&bytes);
                if fin {
                    return String::from_utf8(all).expect("text");
                }
            }
            Frame::Reset { stream: of, .. } if of == stream => return String::from_utf8(all).expect("text"),
            Frame::Data { .. } | Frame::Reply { .. } | Frame::Ping(_) | Frame::Reset { .. } => {}
            Frame::GoAway => panic!("it goes away"),
        }
    }
}

/// Some connections over one.
fn forward_over<S: Read + Write>(mut spdy: Spdy<S>) {
    // The half that is closed arrives, and the answer after it.
    let (error, data) = pair(&mut spdy, "4567", "0");
    spdy.send(data, false, b"ping, ").expect("write");
    spdy.send(data, true, b"and the end").expect("write");
    assert_eq!(read(&mut spdy, data), "ping, and the end");
    assert_eq!(read(&mut spdy, error), "");
    let (_, data) = pair(&mut spdy, "4568", "1");
    assert_eq!(read(&mut spdy, data), "bye\n");
    for bad in [&[("streamtype", "data"), ("port", "0")][..], &[("streamtype", "data")], &[("port", "1")]] {
        assert!(!spdy.open(bad).1, "{bad:?}");
    }
    spdy.socket.write_all(&streams::control(6, &7_u32.to_be_bytes())).expect("write");
    while spdy.frame().expect("it is there") != Frame::Ping(7) {}
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told_and_costs_no_other_forward() {
    let mut node = Node::new().await;
    let (pod, _) = node.pod_with("web", "sleep 1000").await;
    let url = forward_url(&mut node, &pod, &[]).await.expect("a URL");
    let mut spdy = Spdy::new(streams::connect(&url, Speak::Spdy("portforward.k8s.io")).expect("upgraded"));
    for id in ["0", "1"] {
        let (error, _) = pair(&mut spdy, "4569", id);
        let told = read(&mut spdy, error);
        assert!(told.starts_with("error forwarding port 4569 to pod") && told.contains("refused"), "{told}");
    }
    clean(node).await;
}

#[tokio::test]
async fn ports_of_a_pod_are_forwarded_over_every_transport() {
    let mut node = Node::new().await;
    let sandbox = node.sandbox("own");
    forwards(&mut node, sandbox).await;
    clean(node).await;
}

#[tokio::test]
async fn ports_of_a_pod_on_the_hosts_network_are_forwarded_too() {
    if cri::other().is_none() {
        fixtures::network::own(); // whose ports are free
    }
    let mut node = Node::new().await;
    let mut sandbox = PodSandboxConfig { hostname: String::new(), ..node.sandbox("host") };
    let namespaces = NamespaceOption { network: NamespaceMode::Node as i32, ..NamespaceOption::default() };
    let security = LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    sandbox.linux = Some(LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() });
    forwards(&mut node, sandbox).await;
    clean(node).await;
}

#[tokio::test]
async fn a_url_is_good_once_and_only_for_what_it_was_given_for() {
    let mut node = Node::new().await;
    let (pod, id) = node.pod_with("web", "while :; do sleep 1; done").await;
    let spdy = BOTH[0];
    let url = exec_url(&mut node, &id, &["true"], false, false).await.expect("a URL");
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let other = url.replace("/exec/", "/attach/");
    assert_eq!(streams::connect(&other, spdy).err(), Some(404));
    // Refused for another reason, it is still good.
    assert_eq!(streams::connect(&url, Speak::Spdy("v9.channel.k8s.io")).err(), Some(403));
    assert_eq!(streams::request(&url, "GET", "").0, 400);
    assert_eq!(streams::request(&url, "PUT", "").0, 405);
    let first = Session::open(&url, spdy, &[STDOUT, STDERR]).expect("upgraded");
    assert_eq!(first.rest().code(), Ok(0));
    assert_eq!(streams::connect(&url, spdy).err(), Some(404));
    assert_eq!(streams::request(&url.replace("/exec/", "/"), "GET", "").0, 404);

    let code = |status: Status| status.code();
    let exec_with = |id: &str, cmd: &[&str], stdout: bool, stderr: bool, tty: bool| ExecRequest {
        container_id: id.to_owned(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        stdin: false,
        stdout,
        stderr,
    };
    for (request, expected) in [
        (exec_with(&id, &["true"], true, true, true), Code::InvalidArgument),
        (exec_with(&id, &["true"], false, false, false), Code::InvalidArgument),
        (exec_with(&id, &[], true, true, false), Code::InvalidArgument),
        (exec_with(&"0".repeat(64), &["true"], true, true, false), Code::NotFound),
    ] {
        assert_eq!(code(node.runtime.exec(request).await.map(|_| ()).expect_err("refused")), expected);
    }
    let tty = AttachRequest { container_id: id.clone(), tty: true, stdout: true, ..AttachRequest::default() };
    assert_eq!(code(node.runtime.attach(tty).await.map(|_| ()).expect_err("refused")), Code::InvalidArgument);
    assert_eq!(code(forward_url(&mut node, &pod, &[65536]).await.expect_err("refused")), Code::InvalidArgument);

    let late = exec_url(&mut node, &id, &["true"], false, false).await.expect("a URL");
    node.stop_container(&id, 0).await.expect("stop");
    let rest = Session::open(&late, spdy, &[STDOUT, STDERR]).expect("upgraded").rest();
    assert!(rest.code().expect_err("it has ended").contains("does not run"), "{rest:?}");
    let stopped = exec_url(&mut node, &id, &["true"], false, false).await.expect_err("it has ended");
    assert_eq!(stopped.code(), Code::FailedPrecondition);
    node.stop_pod(&pod).await.expect("stop");
    let gone = forward_url(&mut node, &pod, &[]).await.expect_err("not ready");
    assert_eq!(gone.code(), Code::FailedPrecondition);
    clean(node).await;
}

#[tokio::test]
async fn urls_that_nobody_fetches_are_bounded() {
    let mut node = Node::new().await;
    let (_, id) = node.pod_with("web", "while :; do sleep 1; done").await;
    for _ in 0..1000 {
        exec_url(&mut node, &id, &["true"], false, false).await.expect("a URL");
    }
    let refused = exec_url(&mut node, &id, &["true"], false, false).await.expect_err("one too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    clean(node).await;
}

#[tokio::test]
async fn with_a_certificate_it_is_https() {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types};
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
    let file = |name: &str| fixtures.join(name);
    let mut node = Node::of(Machine::with_busybox(), |command| {
        command.env("PODWRIGHT_CRI_STREAM_TLS_CERT", file("server.crt"));
        command.env("PODWRIGHT_CRI_STREAM_TLS_KEY", file("server.key"));
    })
    .await;
    let (_, id) = node.pod_with("web", "while :; do sleep 1; done").await;
    let url = exec_url(&mut node, &id, &["echo", "hello"], false, false).await.expect("a URL");
    let (host, path) = url.strip_prefix("https://").expect("https").split_once('/').expect("a path");
    let mut roots = RootCertStore::empty();
    let ca = pki_types::CertificateDer::from_pem_file(file("ca.crt")).expect("a certificate");
    roots.add(ca).expect("an authority");
    let provider = std::sync::Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = pki_types::ServerName::try_from("127.0.0.1").expect("an address");
    let tls = ClientConnection::new(std::sync::Arc::new(config), name).expect("a client");
    let socket = std::net::TcpStream::connect(host).expect("connect");
    let mut stream = StreamOwned::new(tls, socket);
    let (status, _) = streams::ask(&mut stream, host, path, "POST", &streams::upgrade(BOTH[0]));
    assert_eq!(status, 101);
    let mut spdy = Spdy::new(stream);
    let ids: Vec<u32> = ["error", "stdout", "stderr"].map(|name| spdy.open(&[("streamtype", name)]).0).to_vec();
    let mut said = Vec::new();
    while let Some(frame) = spdy.frame() {
        match frame {
            Frame::Data { stream, bytes, .. } if stream == ids[1] => said.extend_from_slice(&bytes),
            Frame::GoAway => break,
            _ => {}
        }
    }
    assert_eq!(said, b"hello\n");
    drop(spdy);
    clean(node).await;
}
