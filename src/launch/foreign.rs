//! Containers of other OCI runtimes (runc, crun): the same pod, cgroup, root, user and streams; only who makes the process is another.
//!
//! Such a runtime gets a bundle below the container's own directory: the spec (`foreign_oci`), and the root and the pod's /dev/shm, attached in a
//! mount namespace that ends with the runtime, so that nothing of it is ever in the host's mount table. It keeps its own state
//! there as well, and all of it goes with the container's directory. It is called for `create`, `start`, `exec` and `delete`, and killed when it
//! takes too long, for a call holds up all of the pod. A container's first process, and an exec's, is this process's child when the call ends, for this is a subreaper. Its
//! terminals it makes itself, and sends their masters over a socket in the bundle.
//!
//! Not here: signals and cgroup.kill, limits, statistics: they are the kernel's, and the same whoever made the process.

use super::foreign_label;
use super::foreign_mounts::{self, View, image_volumes};
use super::foreign_oci::{self, Facts, ROOT, SHM};
use super::plan::Plan;
use super::report::{self, At, Failed, Message, Reporter};
use super::spawn::finish;
use super::trees;
use super::user::{self, Resolved};
use super::{Child, ChildStdio, StartError, Started, Step, libc_errno};
use crate::state::model::NamespaceMode;
use crate::state::record::{self, Durability, User};
use crate::sys::mount;
use crate::sys::openat2::{self, Open};
use crate::sys::poll::{Interest, poll_until};
use crate::sys::wait::{self, Wait};
use crate::sys::{clone, confine};
use crate::sys::{exec, fs, pidfd, session, socket};
use crate::wire::{self, Launch, Runtime};
use serde::Deserialize;
use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a runtime may take to start a container, from the first look at it to the end of the second call. runc takes 100 ms; while it does,
/// the pod's other containers wait for their logs. With 10 s to kill what takes too long, and `delete` after that, it is within what the
/// engine allows a start, 60 s.
const START_TIMEOUT: Duration = Duration::from_secs(40);
/// The same for an exec, unless its own time is shorter.
const EXEC_TIMEOUT: Duration = Duration::from_secs(25);
/// The same for forgetting a container, which is a matter of order: what is left goes with its directory.
const DELETE_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of a list of processes, in bytes: of a container that has one.
const MAX_PROCS_BYTES: usize = 4096;
/// What is read of a runtime's log, in bytes: its last words are what is told.
const MAX_LOG_BYTES: u64 = 64 << 10;
/// What is told of them, in bytes.
const MAX_TOLD_BYTES: usize = 1024;
/// The longest file with a pid, in bytes.
const MAX_PID_BYTES: u64 = 32;
/// What a runtime is looked up with, and its helpers.
const ENVIRONMENT: &[&str] = &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
/// Where a pure cgroup v2 host has it: these runtimes do not look anywhere else.
const CGROUP2: &str = "/sys/fs/cgroup";
/// In the bundle: what the runtime keeps of its containers.
const STATE: &str = "runtime";
/// The umask of a runtime: not the shim's, whose logs are for a group only.
const UMASK: u32 = 0o022;

/// One container as its runtime knows it.
struct Bundle<'a> {
    runtime: &'a Runtime,
    id: String,
    /// Absolute.
    path: PathBuf,
}

/// Starts a container with `launch.runtime`: returns when its program runs. Parameters as of [`super::spawn::start`].
///
/// # Errors
/// The step that failed, with the runtime's own words; nothing is left of the container but its directory.
pub fn start(
    launch: &Launch,
    runtime: &Runtime,
    pause: BorrowedFd<'_>,
    pid_target: Option<BorrowedFd<'_>>,
    cgroup: BorrowedFd<'_>,
    stdio: ChildStdio,
) -> Result<Started, StartError> {
    let bundle = Bundle::of(runtime, &launch.dir, launch.container.as_str());
    let started = bundle.start(launch, pause, pid_target, cgroup, stdio).inspect_err(|_| {
        let _ = fs::write_file_at(cgroup, "cgroup.kill", b"1"); // it may have made its process; without one there is nothing to kill
        let _ = bundle.delete(); // what is left goes with the directory
    });
    started.map_err(|e| e.context(&format!("start container {} with {}", launch.container.short(), runtime.name)))
}

/// Starts `exec` in a running container of `runtime`: returns when its program runs. `user` is whom the container was started as, `init` the
/// pidfd of its first process. With [`ChildStdio::Terminal`] the master of its terminal comes with it.
///
/// # Errors
/// As [`start`].
pub fn exec(
    exec: &wire::Exec,
    launch: &Launch,
    runtime: &Runtime,
    user: &User,
    init: BorrowedFd<'_>,
    stdio: ChildStdio,
) -> Result<(Child, Option<OwnedFd>), StartError> {
    let bundle = Bundle::of(runtime, &launch.dir, launch.container.as_str());
    let started = bundle.exec(exec, launch, user, init, &stdio);
    started.map_err(|e| e.context(&format!("exec in container {} with {}", exec.container.short(), runtime.name)))
}

/// Has the runtime forget a container whose processes are gone.
///
/// # Errors
/// Its own words; what it keeps is below `dir` and goes with that.
pub fn delete(runtime: &Runtime, dir: &Path, container: &str) -> Result<(), StartError> {
    Bundle::of(runtime, dir, container).delete()
}

fn os(step: Step, object: &str) -> impl FnOnce(io::Error) -> StartError + '_ {
    move |e| StartError::os(step, object, e.raw_os_error().unwrap_or(0))
}

fn c_path(path: &Path) -> Result<CString, StartError> {
    super::plan::text("runtime", path.as_os_str().as_bytes())
}

impl<'a> Bundle<'a> {
    fn of(runtime: &'a Runtime, dir: &Path, container: &str) -> Self {
        Bundle { runtime, id: container.to_owned(), path: dir.join("bundle") }
    }

    fn start(
        &self,
        launch: &Launch,
        pause: BorrowedFd<'_>,
        pid_target: Option<BorrowedFd<'_>>,
        cgroup: BorrowedFd<'_>,
        stdio: ChildStdio,
    ) -> Result<Started, StartError> {
        let until = Instant::now() + START_TIMEOUT;
        let pid = |of: BorrowedFd<'_>| pidfd::pid_of(of).map_err(os(Step::Namespace, ""));
        // Refuses what the built-in one refuses, by the same rules.
        let plan = Plan::new(launch)?;
        foreign_mounts::refuse_shared(&plan, &launch.dir)?;
        trees::watch(&plan)?;
        let cgroups_path = path_below_cgroup2(cgroup)?;
        let images = image_volumes(launch, &plan)?;
        self.make_directories(&images.iter().map(|(place, _)| place.clone()).collect::<Vec<_>>())?;
        let root = trees::overlay(&plan.root, None)?;
        let Resolved { user, home } = user::resolve(root.as_fd(), &launch.user)?;
        let facts = Facts {
            bundle: &self.path,
            user: &user,
            home: &home,
            pause: pid(pause)?,
            pid_target: pid_target.map(pid).transpose()?,
            cgroups_path: &cgroups_path,
        };
        self.write("config.json", &foreign_oci::config(launch, &facts)?)?;
        let shm = (launch.namespaces.ipc != NamespaceMode::Node).then_some(pause);
        let trees = std::iter::once((ROOT.to_owned(), root)).chain(images).collect();
        let view = View { bundle: c_path(&self.path)?, shm, trees };
        let console = Console::wanted(&stdio, &self.path, "console")?;
        let mut words = vec!["create", "--bundle", ".", "--pid-file", "pid"];
        words.extend(console.iter().flat_map(|console| ["--console-socket", console.name]));
        self.call(&words, &stdio, Some(&view), None, until)?;
        drop(stdio); // the container's are the only ones left
        let terminal = console.map(|console| console.master()).transpose()?;
        let child = self.child("pid")?;
        // It waits, so it is where it was put. These runtimes make a cgroup that is missing, without a limit: one that was removed, for the
        // engine has given this start up.
        let placed = match is_in(cgroup, child.process.pid) {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(StartError::refused(Step::Runtime, "its process is not in the cgroup that was made for it"))
            }
            Err(e) => Err(e),
        };
        if let Err(e) = placed {
            let _ = pidfd::kill_and_reap(child.pidfd.as_fd()); // ours, and in no cgroup of ours; if it stays, `delete` tries it again
            return Err(e);
        }
        foreign_mounts::check_read_only(&plan, child.pidfd.as_fd(), child.process.pid)?;
        self.call(&["start"], &ChildStdio::Terminal, None, None, until)?;
        let label = plan.process.selinux.as_deref().map(CStr::to_string_lossy);
        foreign_label::check(&child, label.as_deref(), until)?;
        Ok(Started { child, user, terminal, warnings: Vec::new() })
    }

    fn exec(
        &self,
        exec: &wire::Exec,
        launch: &Launch,
        user: &User,
        init: BorrowedFd<'_>,
        stdio: &ChildStdio,
    ) -> Result<(Child, Option<OwnedFd>), StartError> {
        // A container that has used up its CPU slows the runtime in it as well, and the pod waits meanwhile.
        let until = Instant::now()
            + match exec.timeout_ns {
                0 => EXEC_TIMEOUT,
                timeout => EXEC_TIMEOUT.min(Duration::from_nanos(timeout)),
            };
        let choice = exec.user.clone().unwrap_or_else(|| wire::UserChoice::resolved(user));
        let root = super::exec::root_of(init)?;
        let Resolved { user, home } = user::resolve(root.as_fd(), &choice)?;
        let name = exec.exec.to_string();
        let (process, pid, console) = (format!("{name}.json"), format!("{name}.pid"), format!("{name}.console"));
        let document = foreign_oci::process(exec, launch, &user, &home);
        self.write(&process, &document)?;
        // crun 1.8 leaves that of its caller, which is the shim's.
        let oom_score_adj = document["oomScoreAdj"].as_i64().unwrap_or_default();
        let listener = Console::wanted(stdio, &self.path, &console)?;
        // A cgroup of its own, made by the caller: what it leaves behind can be told and killed.
        let mut words = vec!["exec", "--detach", "--cgroup", &name, "--process", &process, "--pid-file", &pid];
        words.extend(listener.iter().flat_map(|console| ["--console-socket", console.name]));
        let started = self.call(&words, stdio, None, Some(oom_score_adj), until).and_then(|()| {
            let child = self.child(&pid)?;
            foreign_label::check(&child, document["selinuxLabel"].as_str(), until)?;
            Ok((child, listener.map(|console| console.master()).transpose()?))
        });
        for file in [process, pid, console] {
            let _ = std::fs::remove_file(self.path.join(file)); // else they go with the container's directory
        }
        started
    }

    fn delete(&self) -> Result<(), StartError> {
        let until = Instant::now() + DELETE_TIMEOUT;
        self.call(&["delete", "--force"], &ChildStdio::Terminal, None, None, until)
    }

    fn make_directories(&self, images: &[String]) -> Result<(), StartError> {
        let below = [ROOT, SHM, STATE].into_iter().chain(images.iter().map(String::as_str));
        for dir in std::iter::once(self.path.clone()).chain(below.map(|name| self.path.join(name))) {
            let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir);
            made.map_err(os(Step::Plan, &dir.to_string_lossy()))?;
        }
        Ok(())
    }

    fn write(&self, name: &str, json: &serde_json::Value) -> Result<(), StartError> {
        let path = self.path.join(name);
        record::write_bytes(&path, json.to_string().as_bytes(), 0o600, Durability::Boot)
            .map_err(|e| StartError::refused(Step::Plan, e.to_string()))
    }

    /// Calls the runtime, and waits for its end, at most `until` then, which has ETIMEDOUT. Its own streams are `stdio`, which a
    /// container keeps; /dev/null with a terminal. With `oom_score_adj`, that is what the process it makes inherits.
    fn call(
        &self,
        words: &[&str],
        stdio: &ChildStdio,
        view: Option<&View<'_>>,
        oom_score_adj: Option<i64>,
        until: Instant,
    ) -> Result<(), StartError> {
        let began = Instant::now();
        let verb = words.first().copied().unwrap_or_default();
        let told =
            |why: String| StartError::refused(Step::Runtime, format!("{} {verb}: {why}", self.runtime.path.display()));
        if self.runtime.path.as_os_str().is_empty() {
            let name = &self.runtime.name;
            let why = format!(
                "runtime handler {name:?} is not configured any more; set runtimes.{name}.path in the configuration file"
            );
            return Err(StartError::refused(Step::Runtime, why));
        }
        let log = self.path.join("log");
        let _ = std::fs::remove_file(&log); // of the call before; absent at the first
        let command = self.command(words, &log, oom_score_adj)?;
        let shim = std::process::id();
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(os(Step::Device, "/dev/null"))?;
        let streams = match stdio {
            ChildStdio::Fds { stdin, stdout, stderr } => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            ChildStdio::Terminal => [null.as_fd(); 3],
        };
        let (mut reports, reporter) = report::pipe_until(until)?;
        let forked = clone::fork().map_err(os(Step::Clone, ""))?;
        let Some(pid) = forked else {
            let failed = command.become_it(shim, streams, view, &reporter);
            reporter.send(Message::Failed(failed));
            clone::exit_now(1);
        };
        drop(reporter); // the child's is the only one left
        let child = pidfd::pidfd_open(pid).map_err(os(Step::Clone, "pidfd_open"))?; // not reaped yet, so it is ours
        let ran = match reports.next() {
            Ok(None) => Ok(()),
            Ok(Some(Message::Failed(failed))) | Err(failed) => {
                Err(StartError::os(failed.step, &self.runtime.path.to_string_lossy(), failed.errno))
            }
            Ok(Some(_)) => Err(told("an unexpected report".to_owned())),
        };
        let left = until.saturating_duration_since(Instant::now());
        let ended = ran.and_then(|()| match poll_until(child.as_fd(), Interest::Read, left) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let why = format!("it had not ended after {:.1} s and was killed", began.elapsed().as_secs_f64());
                Err(StartError { errno: libc_errno::ETIMEDOUT, ..told(why) })
            }
            Err(e) => Err(told(crate::error::describe_io(&e))),
        });
        if let Err(e) = ended {
            let _ = pidfd::kill_and_reap(child.as_fd()); // ours: it ends, or whoever reaps strays gets it
            return Err(e);
        }
        match wait::waitid_pidfd(child.as_fd()).map_err(os(Step::Runtime, "waitid"))? {
            Some(Wait::Exited(0)) => Ok(()),
            ended => {
                let words = last_words(&log).unwrap_or_else(|| format!("it ended with {ended:?} and said nothing"));
                Err(StartError { errno: errno_of(&words), ..told(words) })
            }
        }
    }

    fn command(&self, words: &[&str], log: &Path, oom_score_adj: Option<i64>) -> Result<Command, StartError> {
        let mut argv = vec![c_path(&self.runtime.path)?, c"--root".to_owned(), c_path(&self.path.join(STATE))?];
        argv.extend([c"--log".to_owned(), c_path(log)?, c"--log-format".to_owned(), c"json".to_owned()]);
        for word in words.iter().copied().chain([self.id.as_str()]) {
            argv.push(c_path(Path::new(word))?);
        }
        let environment = ENVIRONMENT.iter().map(|line| c_path(Path::new(line))).collect::<Result<_, _>>()?;
        let (program, directory) = (c_path(&self.runtime.path)?, c_path(&self.path)?);
        Ok(Command { program, directory, argv, oom_score_adj, environment })
    }

    /// The process that a call has made and left behind.
    fn child(&self, file: &str) -> Result<Child, StartError> {
        let path = self.path.join(file);
        let shown = path.to_string_lossy();
        let mut text = String::new();
        let read = std::fs::File::open(&path).and_then(|file| file.take(MAX_PID_BYTES).read_to_string(&mut text));
        read.map_err(os(Step::Runtime, &shown))?;
        let pid = text
            .trim()
            .parse()
            .map_err(|_| StartError::refused(Step::Runtime, format!("{shown} says {text:?}, which is no pid")))?;
        let pidfd = pidfd::pidfd_open(pid).map_err(os(Step::Runtime, &shown))?;
        // A zombie of ours counts: its end is told by whoever waits for it. Anybody else's process must not be taken for it.
        if !wait::is_child(pidfd.as_fd()) {
            return Err(StartError::refused(
                Step::Runtime,
                format!("{shown} names {pid}, which is no child of this shim"),
            ));
        }
        finish(super::spawn::Born { pid, pidfd })
    }
}

/// Where a runtime sends the master of a terminal.
struct Console<'a> {
    /// In the bundle.
    name: &'a str,
    listener: UnixListener,
}

impl<'a> Console<'a> {
    /// One for a process with a terminal.
    fn wanted(stdio: &ChildStdio, bundle: &Path, name: &'a str) -> Result<Option<Self>, StartError> {
        if matches!(stdio, ChildStdio::Fds { .. }) {
            return Ok(None);
        }
        // By way of the descriptor: the path is longer than a socket's name may be.
        let dir = fs::open_dir(bundle).map_err(os(Step::Terminal, "console socket"))?;
        let path = Path::new(OsStr::from_bytes(mount::proc_path(dir.as_fd()).as_bytes())).join(name);
        let listener = UnixListener::bind(path).map_err(os(Step::Terminal, "console socket"))?;
        listener.set_nonblocking(true).map_err(os(Step::Terminal, "console socket"))?;
        Ok(Some(Console { name, listener }))
    }

    /// What was sent by a runtime that has ended: it is there, or never will be.
    fn master(&self) -> Result<OwnedFd, StartError> {
        let (peer, _) = self.listener.accept().map_err(os(Step::Terminal, "console socket"))?;
        // Its name comes with it.
        let received = socket::recvmsg(&peer, &mut [0; 4096]).map_err(os(Step::Terminal, "console socket"))?;
        let none = || StartError::refused(Step::Terminal, "the runtime sent no terminal");
        received.fds.into_iter().next().ok_or_else(none)
    }
}

/// A runtime's command line, decided before the fork.
struct Command {
    program: CString,
    directory: CString,
    argv: Vec<CString>,
    /// `None`: this process's own.
    oom_score_adj: Option<i64>,
    environment: Vec<CString>,
}

impl Command {
    /// In the child: returns only what went wrong.
    fn become_it(
        &self,
        shim: u32,
        streams: [BorrowedFd<'_>; 3],
        view: Option<&View<'_>>,
        reporter: &Reporter,
    ) -> Failed {
        let become_it = || {
            // Nobody would hear what it makes of a container that is given up.
            confine::die_with_parent(shim).at(Step::Exec)?;
            if let Some(view) = view {
                view.attach()?;
            }
            for (number, stream) in (0..).zip(streams) {
                exec::dup_to_standard(stream, number).at(Step::Stdio)?;
            }
            exec::close_all_but(&[reporter.0.as_fd()], true).at(Step::CloseInherited)?;
            // By its path, in this mount namespace.
            let directory = openat2::open_host_path(&self.directory).at(Step::Workdir)?;
            exec::fchdir(directory.as_fd()).at(Step::Workdir)?;
            session::umask(UMASK);
            if let Some(value) = self.oom_score_adj {
                openat2::open_proc(c"self/oom_score_adj", Open::Write)
                    .and_then(|file| openat2::write_all_once(file.as_fd(), value.to_string().as_bytes()))
                    .at(Step::OomScoreAdj)?;
            }
            exec::reset_signals().at(Step::Signals)?;
            Err(exec::execve(&self.program, &self.argv, &self.environment)).at(Step::Exec)
        };
        let Err(failed) = become_it() as Result<std::convert::Infallible, Failed>;
        failed
    }
}

/// A cgroup's path below the mount point of cgroup v2, which must be where these runtimes look for it.
fn path_below_cgroup2(cgroup: BorrowedFd<'_>) -> Result<String, StartError> {
    let link = OsStr::from_bytes(mount::proc_path(cgroup).as_bytes()).to_owned();
    let path = std::fs::read_link(link).map_err(os(Step::Plan, "cgroup"))?;
    let unified = fs::open_dir(Path::new(CGROUP2)).and_then(|dir| fs::is_cgroup2(dir.as_fd()));
    match path.strip_prefix(CGROUP2) {
        Ok(below) if matches!(unified, Ok(true)) => Ok(format!("/{}", below.display())),
        _ => Err(StartError::refused(
            Step::Plan,
            format!(
                "runtime handlers need cgroup v2 at {CGROUP2}, and here it is elsewhere; boot with cgroup_no_v1=all"
            ),
        )),
    }
}

/// Whether a process is in this very cgroup.
fn is_in(cgroup: BorrowedFd<'_>, pid: u32) -> Result<bool, StartError> {
    let procs = fs::read_file_at(cgroup, "cgroup.procs", MAX_PROCS_BYTES).map_err(os(Step::Runtime, "cgroup.procs"))?;
    Ok(procs.split(|byte| *byte == b'\n').any(|line| line == pid.to_string().as_bytes()))
}

/// One line of a runtime's log.
#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The last error in a runtime's log.
fn last_words(log: &Path) -> Option<String> {
    let mut text = Vec::new();
    std::fs::File::open(log).ok()?.take(MAX_LOG_BYTES).read_to_end(&mut text).ok()?;
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<LogLine>(line).ok());
    let mut said =
        lines.filter(|line| matches!(line.level.as_str(), "error" | "fatal")).map(|line| line.msg).next_back()?;
    while said.len() > MAX_TOLD_BYTES {
        said.pop();
    }
    Some(said)
}

/// What runtimes begin with when they speak of the program, in small letters: runc with the first one, crun with the others.
const OF_THE_PROGRAM: [&str; 4] = ["exec: \"", "executable file `", "open executable", "exec container process"];

/// A program that is not there or not executable is told apart by callers; a runtime says it in words only, as one of several phrases
/// with `: ` between them. `exec failed` is what runc calls whatever fails in an exec.
fn errno_of(words: &str) -> i32 {
    let words = words.to_ascii_lowercase();
    let begins = |at: usize| at == 0 || words[..at].ends_with(": ");
    let says = |phrase: &&str| words.match_indices(*phrase).any(|(at, _)| begins(at));
    let reason = words.strip_suffix(": unknown").unwrap_or(&words); // containerd's way to end it
    if !OF_THE_PROGRAM.iter().any(says) {
        0 // of something else, like a volume
    } else if reason.ends_with("not found in $path") || reason.ends_with("no such file or directory") {
        libc_errno::ENOENT
    } else if reason.ends_with("permission denied") {
        libc_errno::EACCES
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_told() {
        let dir = tempfile::tempdir().expect("tempdir");
        let log = dir.path().join("log");
        assert_eq!(last_words(&log), None);
        let lines = [
            r#"{"level":"warning","msg":"w"}"#,
            r#"{"level":"error","msg":"a"}"#,
            "garbage",
            r#"{"level":"error","msg":"b"}"#,
        ];
        std::fs::write(&log, lines.join("\n")).expect("write");
        assert_eq!(last_words(&log).as_deref(), Some("b"));
        std::fs::write(&log, format!(r#"{{"level":"error","msg":"{}"}}"#, "ä".repeat(5000))).expect("write");
        assert!(last_words(&log).expect("an error").len() <= MAX_TOLD_BYTES);
    }

    #[test]
    fn a_missing_program_is_told_from_one_that_may_not_run() {
        assert_eq!(errno_of("exec: \"nope\": executable file not found in $PATH: unknown"), libc_errno::ENOENT);
        assert_eq!(
            errno_of("executable file `nope` not found in $PATH: No such file or directory"),
            libc_errno::ENOENT
        );
        assert_eq!(errno_of("exec: \"/etc/passwd\": permission denied"), libc_errno::EACCES);
        assert_eq!(errno_of("open executable: Permission denied"), libc_errno::EACCES);
        let start = "runc create failed: unable to start container process: ";
        let stat = format!("{start}exec: \"/nowhere\": stat /nowhere: no such file or directory");
        assert_eq!(errno_of(&stat), libc_errno::ENOENT);
        assert_eq!(errno_of("error mounting \"/data\": no such file or directory"), 0);
        assert_eq!(errno_of("error mounting \"/executable file `x\": no such file or directory"), 0);
        let cgroup = "exec failed: unable to start container process: open /sys/fs/cgroup/x/cgroup.procs";
        assert_eq!(errno_of(&format!("{cgroup}: no such file or directory")), 0);
        assert_eq!(errno_of("exec: \"/x\": exec format error"), 0);
        assert_eq!(errno_of("something else"), 0);
    }
}
