//! Clients of the streaming server that are cut at any moment, read nothing, or send what no client should: the daemon goes on, and has after
//! them what it had before them.
//!
//! Short by default. `PODWRIGHT_STREAM_TROUBLE=CONNECTIONS,FRAMES` sets how many.

mod fixtures;

use fixtures::cri::{Node, script};
use fixtures::machine::{PATIENCE, until};
use fixtures::size::{Size, size_of};
use fixtures::streams::{
    self, Came, ERROR, RESIZE, STDERR, STDIN, STDOUT, Session, Spdy, Speak, closed, control, message,
};
use podwright::criapi::*;
use podwright::state::record::{self, PodRecord};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Connections that are cut, and frames of one, when nobody asks for others.
const SHORT: [u32; 2] = [60, 50_000];
/// What the daemon may have grown by at the end: what its allocator keeps for later.
const MAX_GROWN_KIB: u64 = 4096;
const SPDY: Speak = Speak::Spdy("v4.channel.k8s.io");
const WEBSOCKET: Speak = Speak::WebSocket("v5.channel.k8s.io");

fn asked() -> [u32; 2] {
    let Ok(text) = std::env::var("PODWRIGHT_STREAM_TROUBLE") else { return SHORT };
    let numbers: Vec<u32> = text.split(',').map(|number| number.parse().expect("a number")).collect();
    numbers.try_into().expect("CONNECTIONS,FRAMES")
}

/// Numbers that look like chance and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// A pod whose container writes, reads, and has an input to be attached to.
async fn pod(node: &mut Node) -> (String, String) {
    let sandbox = node.sandbox("web");
    let pod = node.run_pod(sandbox.clone()).await.expect("run");
    let text = "while :; do nc -l -p 4567 -e cat; done & while :; do echo tick; sleep 0.01; done";
    let asked = ContainerConfig { stdin: true, ..script("c", text) };
    let id = node.create(&pod, asked, sandbox).await.expect("create");
    node.start_container(&id).await.expect("start");
    (pod, id)
}

async fn exec_url(node: &mut Node, id: &str, cmd: &[&str], stdin: bool, tty: bool) -> String {
    let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
    let request = ExecRequest { container_id: id.to_owned(), cmd, tty, stdin, stdout: true, stderr: !tty };
    node.runtime.exec(request).await.expect("a URL").into_inner().url
}

fn shim_of(node: &Node, pod: &str) -> u32 {
    let path = node.machine.state().join("pods").join(pod).join("pod.json");
    let record: Option<PodRecord> = record::read(&path).expect("readable");
    record.expect("it is there").shim.pid
}

/// Waits until a process has what it had.
fn as_before(pid: u32, before: Size) {
    until(PATIENCE, || {
        let now = size_of(pid);
        let same = now.fds <= before.fds && now.threads <= before.threads + 32;
        if same { Ok(()) } else { Err(format!("{now:?}, before {before:?}")) }
    });
    let now = size_of(pid);
    assert!(now.rss_kib <= before.rss_kib + MAX_GROWN_KIB, "{now:?}, before {before:?}");
}

/// Everything that a client does, cut after so many bytes of it.
fn bytes_of(speak: Speak, tty: bool) -> Vec<u8> {
    let size = b"{\"Width\":80,\"Height\":24}";
    match speak {
        Speak::WebSocket(_) => {
            let mut all = Vec::new();
            for part in [&[STDIN, b'x', b'\n'][..], &[&[RESIZE][..], size].concat(), &[255, STDIN]] {
                all.extend(message(2, true, part));
                all.extend(message(9, true, b"ping"));
            }
            all
        }
        Speak::Spdy(_) => {
            let mut spdy = Spdy::new(std::io::Cursor::new(Vec::new()));
            let mut names = vec!["error", "stdin", "stdout"];
            names.push(if tty { "resize" } else { "stderr" });
            let frames: Vec<Vec<u8>> = names.iter().map(|name| spdy.syn(&[("streamtype", name)]).1).collect();
            spdy.send(3, false, &[b'x'; 5000]).expect("a vector");
            spdy.send(3, true, b"").expect("a vector");
            let data = spdy.socket.into_inner();
            [frames.concat(), control(6, &1_u32.to_be_bytes()), data].concat()
        }
    }
}

#[tokio::test]
async fn connections_that_are_cut_at_any_point_leave_nothing() {
    let [connections, _] = asked();
    let mut node = Node::new().await;
    let (pod, id) = pod(&mut node).await;
    let (daemon, shim) = (node.pid(), shim_of(&node, &pod));
    let mut dice = Dice(7);
    let mut before = None;
    for n in 0..connections + 20 {
        // The first ones fill what is filled once: threads, caches, the allocator.
        if n == 20 {
            before = Some([size_of(daemon), size_of(shim)]);
        }
        let (speak, tty) = (if dice.roll(2) == 0 { SPDY } else { WEBSOCKET }, dice.roll(2) == 0);
        let url = match dice.roll(3) {
            0 => {
                let request = PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![] };
                node.runtime.port_forward(request).await.expect("a URL").into_inner().url
            }
            1 => {
                let request =
                    AttachRequest { container_id: id.clone(), stdin: true, stdout: true, stderr: true, tty: false };
                node.runtime.attach(request).await.expect("a URL").into_inner().url
            }
            _ => exec_url(&mut node, &id, &["sh", "-c", "yes & cat; sleep 60"], true, tty).await,
        };
        cut(&url, speak, tty, &mut dice);
    }
    let [daemon_before, shim_before] = before.expect("there were more");
    as_before(daemon, daemon_before);
    as_before(shim, shim_before);
    // The last ones may have been cut a moment ago.
    let end = Instant::now() + PATIENCE;
    loop {
        let left = node.exec(&id, &["sh", "-c", "ps | grep -c '[y]es'"], 60).await.expect("exec");
        let left = String::from_utf8_lossy(&left.stdout).trim().to_owned();
        if left == "0" {
            break;
        }
        assert!(Instant::now() < end, "{left} of what they ran are there still");
    }
    let url = exec_url(&mut node, &id, &["echo", "well"], false, false).await;
    let rest = Session::open(&url, SPDY, &[STDOUT, STDERR]).expect("upgraded").rest();
    assert_eq!((rest.text().0.as_str(), rest.code()), ("well\n", Ok(0)));
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

/// Cut in the request, in what the client sends, or after some of what comes.
fn cut(url: &str, speak: Speak, tty: bool, dice: &mut Dice) {
    let (host, path) = url.strip_prefix("http://").expect("http").split_once('/').expect("a path");
    let forward = path.starts_with("portforward");
    let asked = match (forward, speak) {
        (true, Speak::Spdy(_)) => Speak::Spdy("portforward.k8s.io"),
        (true, Speak::WebSocket(_)) => Speak::WebSocket("SPDY/3.1+portforward.k8s.io"),
        _ => speak,
    };
    if dice.roll(5) == 0 {
        let text = format!("POST /{path} HTTP/1.1\r\nHost: x\r\n{}\r\n", streams::upgrade(asked));
        let mut socket = TcpStream::connect(host).expect("connect");
        let length = usize::try_from(dice.roll(text.len() as u64)).expect("short");
        socket.write_all(&text.as_bytes()[..length]).expect("write");
        return;
    }
    let mut socket = streams::connect(url, asked).expect("upgraded");
    let all = match (forward, speak) {
        (false, _) => bytes_of(speak, tty && path.starts_with("exec")),
        (true, speak) => forward_bytes(speak),
    };
    let length = usize::try_from(dice.roll(all.len() as u64 + 1)).expect("short");
    socket.write_all(&all[..length]).expect("write");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    let mut bytes = [0; 4096];
    for _ in 0..dice.roll(20) {
        if !matches!(socket.read(&mut bytes), Ok(1..)) {
            break;
        }
    }
}

fn forward_bytes(speak: Speak) -> Vec<u8> {
    let mut spdy = Spdy::new(std::io::Cursor::new(Vec::new()));
    let mut all = Vec::new();
    for id in 0..4_u32 {
        let id = id.to_string();
        for part in ["error", "data"] {
            let (stream, frame) = spdy.syn(&[("streamtype", part), ("port", "4567"), ("requestid", &id)]);
            all.extend(frame);
            let mut data = stream.to_be_bytes().to_vec();
            data.extend_from_slice(&[0, 0, 0, 3, 1, 2, 3]);
            all.extend(data);
        }
    }
    match speak {
        Speak::Spdy(_) => all,
        Speak::WebSocket(_) => all.chunks(100).flat_map(|part| message(2, true, part)).collect(),
    }
}

#[tokio::test]
async fn clients_that_read_nothing_hold_up_nobody_and_cost_a_bounded_amount() {
    let mut node = Node::new().await;
    let (pod, id) = pod(&mut node).await;
    let daemon = node.pid();
    let mut slow = Vec::new();
    for n in 0..20 {
        let speak = if n % 2 == 0 { SPDY } else { WEBSOCKET };
        let url = exec_url(&mut node, &id, &["yes", "a line that nobody reads"], false, false).await;
        slow.push(Session::open(&url, speak, &[STDOUT, STDERR]).expect("upgraded"));
        let request =
            AttachRequest { container_id: id.clone(), stdout: true, stderr: true, ..AttachRequest::default() };
        let url = node.runtime.attach(request).await.expect("a URL").into_inner().url;
        slow.push(Session::open(&url, speak, &[STDOUT, STDERR]).expect("upgraded"));
    }
    let full = size_of(daemon);
    // Others go on, and what waits does not grow.
    for _ in 0..20 {
        let url = exec_url(&mut node, &id, &["cat"], true, false).await;
        let mut session = Session::open(&url, WEBSOCKET, &[STDIN, STDOUT, STDERR]).expect("upgraded");
        session.send(STDIN, b"quick\n").expect("write");
        session.until(STDOUT, "quick\n");
        session.end(STDIN);
        assert_eq!(session.rest().code(), Ok(0));
    }
    let later = size_of(daemon);
    assert!(
        later.rss_kib <= full.rss_kib + 40 * 1024,
        "1 MiB for each of 40 is more than they may have: {full:?}, {later:?}"
    );
    slow.into_iter().for_each(Session::cut);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_million_frames_are_taken_one_after_another() {
    let [_, frames] = asked();
    let mut node = Node::new().await;
    let (pod, id) = pod(&mut node).await;
    let daemon = node.pid();
    for (speak, tty) in [(SPDY, false), (WEBSOCKET, false)] {
        let url = exec_url(&mut node, &id, &["wc", "-c"], true, tty).await;
        let mut session = Session::open(&url, speak, &[STDIN, STDOUT, STDERR]).expect("upgraded");
        let before = size_of(daemon);
        // Of a byte each, a thousand at a time.
        let one = match &session {
            Session::Spdy { streams, .. } => [&streams[&STDIN].to_be_bytes()[..], &[0, 0, 0, 1, b'x']].concat(),
            Session::WebSocket { .. } => message(2, true, &[STDIN, b'x']),
        };
        let thousand = one.repeat(1000);
        for _ in 0..frames / 1000 {
            session.socket().write_all(&thousand).expect("write");
        }
        session.end(STDIN);
        let rest = session.rest();
        assert_eq!(rest.text().0.trim(), (frames / 1000 * 1000).to_string(), "{speak:?}");
        let after = size_of(daemon);
        assert!(after.rss_kib <= before.rss_kib + MAX_GROWN_KIB, "{speak:?}: {before:?}, {after:?}");
    }
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

#[tokio::test]
async fn what_no_client_should_send_is_the_end_of_its_connection_only() {
    let mut node = Node::new().await;
    let (pod, id) = pod(&mut node).await;
    let daemon = node.pid();
    let url = exec_url(&mut node, &id, &["cat"], true, false).await;
    let mut good = Session::open(&url, SPDY, &[STDIN, STDOUT, STDERR]).expect("upgraded");
    let before = size_of(daemon);
    let mut spdy = Spdy::new(std::io::Cursor::new(Vec::new()));
    let many = [&10_000_u32.to_be_bytes()[..], &[0; 80_000]].concat();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("a bomb of headers", spdy.syn_with(1, &vec![0; 4 << 20])),
        ("ten thousand headers", Spdy::new(std::io::Cursor::new(Vec::new())).syn_with(1, &many)),
        ("headers that are none", control(1, &[&1_u32.to_be_bytes()[..], &[0; 6], b"no zlib"].concat())),
        ("16 MiB of headers", [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff].to_vec()),
        ("another version", [0x80, 2, 0, 1, 0, 0, 0, 10].to_vec()),
        ("a frame of no type", control(99, b"")),
        ("a short ping", control(6, b"x")),
        ("pings without end", control(6, &1_u32.to_be_bytes()).repeat(2_000_000)),
    ];
    for (what, bytes) in bad {
        let url = exec_url(&mut node, &id, &["cat"], true, false).await;
        ends(streams::connect(&url, SPDY).expect("upgraded"), what, &bytes);
    }
    let unmasked = [0x82, 2, STDIN, b'x'].to_vec();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("not masked", unmasked),
        ("an endless message", [0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4].to_vec()),
        (
            "a message in endless pieces",
            [message(2, false, &[STDIN; 60_000]), message(0, false, &[0; 60_000]).repeat(20)].concat(),
        ),
        ("the rest of no message", message(0, true, b"x")),
        ("a text", message(1, true, b"0text")),
        ("the end of no channel", message(2, true, &[255, 9])),
        ("pings without end", message(9, true, &[0; 125]).repeat(200_000)),
    ];
    for (what, bytes) in bad {
        let url = exec_url(&mut node, &id, &["cat"], true, false).await;
        ends(streams::connect(&url, WEBSOCKET).expect("upgraded"), what, &bytes);
    }
    good.send(STDIN, b"still there\n").expect("write");
    good.until(STDOUT, "still there\n");
    good.end(STDIN);
    loop {
        match good.next().expect("it is told") {
            Came::Data(ERROR, bytes) => {
                assert!(String::from_utf8_lossy(&bytes).contains("Success"));
                break;
            }
            Came::Data(..) | Came::End(_) => {}
        }
    }
    good.cut();
    as_before(daemon, before);
    node.remove_pod(&pod).await.expect("remove");
    node.assert_clean().await;
}

/// Sends it all, reading nothing, and finds that the server has hung up.
fn ends(mut socket: TcpStream, what: &str, bytes: &[u8]) {
    socket.set_write_timeout(Some(PATIENCE)).expect("timeout");
    if let Err(e) = socket.write_all(bytes) {
        assert!(!matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{what}: it waits");
    }
    assert!(closed(&socket), "{what}: it goes on");
}
