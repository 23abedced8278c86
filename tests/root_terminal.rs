//! What people at a terminal do with the pod of a living `podwright run`, without a daemon: exec -it, attach, port-forward. The terminal is
//! one of our own; what it was like before is how it has to be after.

mod fixtures;

use fixtures::machine::{Machine, PATIENCE, Running, ask, script, until};
use podwright::sys::poll::{Interest, poll_until};
use podwright::sys::{exec::kill, fs, pty, terminal};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// A command at a terminal.
struct Typed {
    child: Child,
    master: File,
    slave: OwnedFd,
    /// All that was shown.
    shown: String,
}

impl Typed {
    fn new(machine: &Machine, args: &[&str]) -> Typed {
        let devpts = fs::open_dir(Path::new("/dev/pts")).expect("devpts");
        let (master, slave) = pty::open_pty(devpts.as_fd()).expect("a terminal");
        terminal::set_size(master.as_fd(), 91, 17).expect("set");
        let own = || Stdio::from(slave.try_clone().expect("dup"));
        let mut command = machine.podwright(args.iter().copied());
        let child = command.env("TERM", "vt100").stdin(own()).stdout(own()).stderr(own()).spawn().expect("podwright");
        Typed { child, master: master.into(), slave, shown: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("write");
    }

    /// Reads until it shows that.
    fn until(&mut self, text: &str) {
        while !self.shown.contains(text) {
            assert!(
                poll_until(self.master.as_fd(), Interest::Read, PATIENCE).expect("poll"),
                "{text:?}: {:?}",
                self.shown
            );
            let mut bytes = [0; 4096];
            let n = self.master.read(&mut bytes).expect("read");
            self.shown.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    }

    /// The terminal's modes, as stty(1) says them.
    fn modes(&self) -> String {
        let stty = Command::new("stty").arg("-a").stdin(self.slave.try_clone().expect("dup")).output().expect("stty");
        let text = String::from_utf8(stty.stdout).expect("text");
        text.lines().filter(|line| !line.starts_with("speed")).collect()
    }

    fn ended(&mut self) -> ExitStatus {
        let mut ended = None;
        until(PATIENCE, || {
            ended = self.child.try_wait().expect("wait");
            ended.map(|_| ()).ok_or_else(|| "it runs on".to_owned())
        });
        ended.expect("it has ended")
    }
}

fn running(machine: &Machine, text: &str, more: &str) -> Running {
    let mut run = machine.start(&script(text, more), &[]);
    run.until("it runs", || ask(machine, &["exec", "p", "--", "true"]).status.success());
    run
}

const STREAMS: &str = "for n in 0 1 2; do readlink /proc/self/fd/$n; done";

#[test]
fn a_command_without_a_terminal_has_neither_ours_nor_a_file_of_the_host() {
    let machine = Machine::with_busybox();
    let run = running(&machine, "trap 'exit 0' TERM; while :; do sleep 0.1; done", "");
    let command = format!("{STREAMS}; read line; echo got $line; echo do''ne >&2");
    let mut typed = Typed::new(&machine, &["exec", "-i", "p", "--", "sh", "-c", &command]);
    typed.types("what is typed\r");
    typed.until("got what is typed");
    typed.until("done");
    assert_eq!(typed.ended().code(), Some(0));
    assert_eq!(typed.shown.matches("pipe:[").count(), 3, "{}", typed.shown);
    assert!(typed.modes().contains(" icanon"), "{}", typed.modes());

    let dir = machine.dir("files");
    let (input, output) = (dir.join("in"), dir.join("out"));
    std::fs::write(&input, "a line\n").expect("write");
    let into = |output: File| {
        let command = format!("{STREAMS}; cat; echo first; echo then >&2");
        let mut exec = machine.podwright(["exec", "-i", "p", "--", "sh", "-c", &command]);
        exec.stdin(File::open(&input).expect("open")).stderr(output.try_clone().expect("dup")).stdout(output);
        exec.status().expect("podwright")
    };
    assert_eq!(into(File::create(&output).expect("create")).code(), Some(0));
    let text = std::fs::read_to_string(&output).expect("read");
    assert_eq!(text.matches("pipe:[").count(), 3, "{text}");
    assert!(text.ends_with("]\na line\nfirst\nthen\n"), "{text}");
    // What cannot be written is an error of ours, not a success.
    assert_eq!(into(File::options().write(true).open("/dev/full").expect("open")).code(), Some(125));
    run.signal(15);
    run.wait().code(0);
    machine.assert_as_before();
}

#[test]
fn a_shell_has_this_terminal_and_leaves_it_as_it_was() {
    let machine = Machine::with_busybox();
    let run = running(&machine, "trap 'exit 0' TERM; while :; do sleep 0.1; done", "");
    let mut typed = Typed::new(&machine, &["exec", "-it", "p", "--", "sh"]);
    typed.until("# ");
    assert!(typed.modes().contains("-icanon") && typed.modes().contains("-echo"), "{}", typed.modes());
    typed.types("stty size; echo $TERM; tty\r");
    typed.until("17 91");
    typed.until("vt100");
    typed.until("/dev/pts/0");
    terminal::set_size(typed.master.as_fd(), 100, 40).expect("set");
    kill(typed.child.id(), 28).expect("SIGWINCH"); // which a terminal tells its own session only
    typed.types("while [ \"$(stty size)\" != '40 ''100' ]; do :; done; echo resi''zed\r");
    typed.until("resized");
    typed.types("exit 7\r");
    assert_eq!(typed.ended().code(), Some(7));
    assert!(typed.modes().contains(" icanon") && typed.modes().contains(" echo "), "{}", typed.modes());

    // A signal from elsewhere ends it, and what it has started; the terminal is as before.
    let mut typed = Typed::new(&machine, &["exec", "-it", "p", "--", "sh"]);
    typed.until("# ");
    typed.types("trap '' HUP TERM; echo rea''dy; sleep 4321; sleep 4321\r");
    typed.until("ready");
    kill(typed.child.id(), 15).expect("SIGTERM");
    assert_eq!(typed.ended().code(), Some(143));
    assert!(typed.modes().contains(" icanon") && typed.modes().contains(" echo "), "{}", typed.modes());
    until(PATIENCE, || {
        match ask(&machine, &["exec", "p", "--", "sh", "-c", "ps | grep '[s]leep 4321'"]).stdout.as_str() {
            "" => Ok(()),
            left => Err(left.to_owned()),
        }
    });

    // Without a terminal here there is one there all the same.
    let ended = ask(&machine, &["exec", "-t", "p", "--", "sh", "-c", "tty; exit 3"]);
    assert!(ended.code(3).stdout.starts_with("/dev/pts/"), "{}", ended.stdout);
    ask(&machine, &["exec", "-t", "p", "--", "nothing"]).code(127);
    ask(&machine, &["stop", "p"]).code(0);
    run.wait().code(0);
    machine.assert_as_before();
}

#[test]
fn a_container_is_attached_to_and_left_and_its_exit_code_is_that_of_the_attachment() {
    let machine = Machine::with_busybox();
    let run = running(&machine, "exec sh", "stdin: true\ntty: true");
    for last in [false, true] {
        let mut typed = Typed::new(&machine, &["attach", "-i", "p"]);
        until(PATIENCE, || if typed.modes().contains("-icanon") { Ok(()) } else { Err(typed.modes()) });
        typed.types("while [ \"$(stty size)\" != '17 ''91' ]; do :; done; echo he''re\r");
        typed.until("here");
        if last {
            typed.types("exit 6\r");
            assert_eq!(typed.ended().code(), Some(6));
        } else {
            typed.types("\x10\x11");
            assert_eq!(typed.ended().code(), Some(0));
            typed.until("detached");
        }
        assert!(typed.modes().contains(" icanon") && typed.modes().contains(" echo "), "{}", typed.modes());
    }
    run.wait().code(6);

    // A pipe's end is the end of an input that has one client.
    let run = running(&machine, "cat; echo ended >&2; exit 5", "stdin: true\nstdinOnce: true");
    let mut command = machine.podwright(["attach", "-i", "p"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("podwright");
    child.stdin.take().expect("piped").write_all(b"some text\n").expect("write");
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("some text\n", "ended\n"));
    assert_eq!(output.status.code(), Some(5));
    run.wait().code(5);

    let run = running(&machine, "trap 'exit 0' TERM; while :; do echo tick; sleep 0.05; done", "");
    ask(&machine, &["attach", "-i", "p"]).refused(&["has no input"]);
    let mut typed = Typed::new(&machine, &["attach", "p"]);
    typed.until("tick");
    kill(typed.child.id(), 2).expect("SIGINT");
    assert_eq!(typed.ended().code(), Some(130));
    ask(&machine, &["stop", "p"]).code(0);
    run.wait().code(0);
    machine.assert_as_before();
}

#[test]
fn ports_lead_into_the_pod_until_the_command_ends() {
    let machine = Machine::with_busybox();
    let text = "while :; do nc -l -p 4567 -e cat; done & trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let run = running(&machine, text, "");
    let listens = "while :; do netstat -ltn | grep -q ':4567 ' && break; done";
    ask(&machine, &["exec", "p", "--", "sh", "-c", listens]).code(0);
    let mut command = machine.podwright(["port-forward", "p", ":4567", ":4568"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("podwright");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut address = |to: &str| {
        let line = lines.next().expect("a line").expect("text");
        let (address, port) = line.split_once(" -> ").expect("an arrow");
        assert_eq!(port, to);
        address.to_owned()
    };
    let (echo, nobody) = (address("4567"), address("4568"));
    let mut stream = TcpStream::connect(&echo).expect("connect");
    stream.write_all(b"there and back").expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut back = String::new();
    stream.read_to_string(&mut back).expect("read");
    assert_eq!(back, "there and back");
    let mut stream = TcpStream::connect(&nobody).expect("connect");
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "nobody listens there");
    kill(child.id(), 2).expect("SIGINT");
    let ended = child.wait_with_output().expect("wait");
    assert_eq!(ended.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("127.0.0.1:4568"), "{ended:?}");
    ask(&machine, &["port-forward", "p", "0"]).refused(&["is not [LOCAL:]PORT"]);
    ask(&machine, &["stop", "p"]).code(0);
    run.wait().code(0);
    machine.assert_as_before();
}

#[test]
fn files_go_in_and_come_out_and_nothing_leads_out_of_the_container() {
    let machine = Machine::with_busybox();
    let run = running(
        &machine,
        "trap 'exit 0' TERM; while :; do sleep 0.1; done",
        "securityContext: {runAsUser: 33, runAsGroup: 34}",
    );
    let own = machine.dir("own");
    let path = |name: &str| own.join(name).display().to_string();
    std::fs::create_dir_all(own.join("tree/deep")).expect("mkdir");
    std::fs::write(own.join("tree/one"), "one").expect("write");
    std::fs::write(own.join("tree/deep/two"), vec![7; 3 << 20]).expect("write");
    ask(&machine, &["cp", &path("tree"), "p:/tmp"]).code(0);
    let said = ask(
        &machine,
        &[
            "exec",
            "p",
            "--",
            "sh",
            "-c",
            "cat /tmp/tree/one; stat -c %u:%g:%s /tmp/tree/deep/two; touch /tmp/tree/mine",
        ],
    );
    assert_eq!(said.code(0).stdout, "one33:34:3145728\n");
    ask(&machine, &["cp", "p/c:/tmp/tree/", &path("back")]).code(0);
    assert_eq!(std::fs::read(own.join("back/deep/two")).expect("read"), vec![7; 3 << 20]);
    assert!(own.join("back/mine").exists());
    ask(&machine, &["cp", "p:tmp/tree/one", &path("")]).code(0);
    assert_eq!(std::fs::read_to_string(own.join("one")).expect("read"), "one");

    // Links of the container stay inside, on the way and at the end, and none comes out.
    let outside = machine.dir("outside");
    std::fs::write(outside.join("secret"), "secret").expect("write");
    let links = format!(
        "cd /tmp; mkdir bad; ln -s {0} bad/dir; ln -s {0}/secret bad/file; mkfifo bad/fifo; ln -s /proc/self/fd/1 fd; ln -s {0} dir",
        outside.display()
    );
    ask(&machine, &["exec", "p", "--", "sh", "-c", &links]).code(0);
    let said = ask(&machine, &["cp", "p:/tmp/bad", &path("")]);
    assert_eq!(said.code(1).stderr.lines().count(), 3, "{}", said.stderr);
    assert_eq!(std::fs::read_dir(own.join("bad")).expect("made").count(), 0);
    ask(&machine, &["cp", &path("one"), "p:/tmp/dir/new"]).refused(&["ENOENT"]);
    ask(&machine, &["cp", &path("one"), "p:/tmp/bad/file"]).refused(&["ELOOP"]);
    ask(&machine, &["cp", &path("one"), "p:/proc/1/comm"]).refused(&["no ordinary file"]);
    ask(&machine, &["cp", "p:/dev/zero", &path("zero")]).code(1);
    ask(&machine, &["cp", "p:/tmp/dir/secret", &path("stolen")]).refused(&["ENOENT"]);
    // Nor does one of ours that is in the way of what comes out.
    std::os::unix::fs::symlink(outside.join("secret"), own.join("link")).expect("symlink");
    ask(&machine, &["cp", "p:/tmp/tree/one", &path("link")]).refused(&["ELOOP"]);
    assert_eq!(std::fs::read_to_string(outside.join("secret")).expect("read"), "secret");
    ask(&machine, &["cp", &path("one"), &path("two")]).refused(&["one of the two is POD:PATH"]);
    ask(&machine, &["stop", "p"]).code(0);
    run.wait().code(0);
    std::fs::remove_dir_all(&outside).expect("remove");
    machine.assert_as_before();
}
