//! The per-pod process: parent of pause, of the containers' first processes and of execs. It holds their streams, writes their
//! logs, reaps them and records how they ended, and does what an engine asks over [`crate::wire`].
//!
//! One thread, one epoll loop, nothing that blocks for long. It outlives engines and knows nothing of them but connections.
//!
//! * `machine`     what is legal when, and what follows from what (pure)
//! * `event_loop`  epoll; carries out what the machine says
//! * `requests`    what an engine asks: each verb's steps, in order
//! * `connection`  frames and descriptors over a socket
//! * `stdio`, `log`  a container's streams, and the CRI's log format
//! * `roots`       what is made of a container before it is started
//! * `reap`        ends: of pause, containers, execs, strays; the record, then the event
//! * `adopt`       what a shim that died has left: pidfds, streams, logs
//! * `attach` copies of a container's output for those who look on
//! * `exec`        a further process in a container, its cgroup and its deadline
//!
//! Not here: how a process is confined ([`crate::launch`]), which cgroups there are and what limits they have (the engine).

mod adopt;
mod attach;
mod connection;
mod event_loop;
mod exec;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod log;
mod machine;
mod reap;
mod requests;
mod roots;
mod stdio;

use crate::error::{Context, Error, Result};
use crate::fault;
use crate::id::{InstanceId, PodId};
use crate::launch::seccomp_profile;
use crate::sys::exec::ignore_nothing_inherited;
use crate::sys::{prctl, sched, session};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

pub use connection::{Connection, Frame, Received};

/// What the kernel shows as the name; argv[0] is the engine's choice.
const NAME: &std::ffi::CStr = c"podwright-shim";
/// Written for the shim itself: as unlikely to be killed as a process can be that is not exempt. The containers' own values are
/// set for them by `launch`.
const OOM_SCORE_ADJ: &str = "-999";

/// The command line: `podwright shim POD --state DIR --root DIR [--instance HEX]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimArgs {
    /// [`PodId::none`] until the first request names it, for a spare.
    pub pod: PodId,
    /// Handed on to `podwright sweep`; the shim itself finds nothing by them.
    pub state: PathBuf,
    pub root: PathBuf,
    /// The instance of `run` that the pod belongs to; `None` for the daemon's.
    pub instance: Option<InstanceId>,
}

impl ShimArgs {
    /// Reads what comes after `shim`. The engine writes it, so the order is fixed and the errors are short.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self> {
        let mut args = args.into_iter();
        let text = |arg: Option<std::ffi::OsString>, what: &str| {
            let arg = arg.ok_or_else(|| Error::invalid(format!("shim: no {what}")))?;
            arg.into_string().map_err(|_| Error::invalid(format!("shim: {what} is not UTF-8")))
        };
        let pod = text(args.next(), "pod")?.parse()?;
        let (mut state, mut root, mut instance) = (None, None, None);
        while let Some(flag) = args.next() {
            match flag.to_str() {
                Some("--state") => state = args.next().map(PathBuf::from),
                Some("--root") => root = args.next().map(PathBuf::from),
                Some("--instance") => instance = Some(text(args.next(), "instance")?.parse()?),
                _ => return Err(Error::invalid(format!("shim: unknown argument {}", flag.display()))),
            }
        }
        let missing = |what: &str| Error::invalid(format!("shim: no {what}"));
        let (state, root) = (state.ok_or_else(|| missing("--state"))?, root.ok_or_else(|| missing("--root"))?);
        Ok(ShimArgs { pod, state, root, instance })
    }
}

/// Runs the shim until it is told to end. Descriptor 0 is the first connection. To be called before any thread exists.
///
/// # Errors
/// What keeps it from starting, and a sweep that could not be started; its last word.
pub fn run(args: &ShimArgs) -> Result<()> {
    let first = settle()?;
    fault::point("shim.run.settled");
    if args.pod.is_none() {
        // Nobody waits for a spare; its first start would be the longer by this.
        let _ = seccomp_profile::compile_default(seccomp_profile::USUAL); // it would fail there again, and be told
    }
    match event_loop::Shim::new(args.clone(), first)?.run()? {
        event_loop::Outcome::Exit => Ok(()),
        event_loop::Outcome::Sweep => Err(sweep(args)),
    }
}

/// Makes this process what a shim is, and takes its first connection.
fn settle() -> Result<UnixStream> {
    session::close_inherited().context(|| "close inherited files")?;
    prctl::set_name(NAME).context(|| "set name")?;
    // Others wait for it, and should not behind a container's first milliseconds.
    let _ = sched::answer_soon(); // refused it costs time and nothing else
    // Its memory has every container's environment: nobody but root may look.
    prctl::set_not_dumpable().context(|| "set not dumpable")?;
    session::setsid().context(|| "setsid")?;
    // Once for all of its children.
    ignore_nothing_inherited();
    // Orphans of containers that share the host's pid namespace come here, not to the engine, which may be gone.
    session::set_child_subreaper().context(|| "become subreaper")?;
    session::umask(0o027); // logs are 0640, for the group that reads them; records say 0600 themselves
    std::env::set_current_dir("/").context(|| "chdir /")?;
    let adjust = std::fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
    let _ = adjust.and_then(|mut file| std::io::Write::write_all(&mut file, OOM_SCORE_ADJ.as_bytes())); // needs CAP_SYS_RESOURCE
    let first = UnixStream::from(session::take_stdin().context(|| "take the first connection")?);
    first.peer_addr().context(|| "descriptor 0 is no connected unix socket")?;
    Ok(first)
}

/// Becomes `podwright sweep INSTANCE`, which removes the pod with the engine's own verbs. Returns only what went wrong.
fn sweep(args: &ShimArgs) -> Error {
    let Some(instance) = &args.instance else {
        return Error::precondition("the owner is gone, and there is no instance to sweep");
    };
    if let Err(e) = crate::sys::signalfd::ChildSignals::unblock() {
        return Error::internal(format!("unblock signals: {}", crate::error::describe_io(&e)));
    }
    fault::point("shim.sweep.killed");
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg0("podwright").arg("sweep").arg(instance.as_str());
    command.arg("--state").arg(&args.state).arg("--root").arg(&args.root);
    Error::internal(format!("exec podwright sweep {instance}: {}", crate::error::describe_io(&command.exec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_what_the_engine_writes_and_nothing_else() {
        let pod = "a".repeat(64);
        let parse = |args: &[&str]| ShimArgs::parse(args.iter().map(std::ffi::OsString::from));
        let args = parse(&[&pod, "--state", "/s", "--root", "/r", "--instance", "0123abcd"]).expect("valid");
        assert_eq!((args.pod.as_str(), args.state.to_str()), (pod.as_str(), Some("/s")));
        assert_eq!(args.instance.expect("given").as_str(), "0123abcd");
        assert_eq!(parse(&[&pod, "--state", "/s", "--root", "/r"]).expect("valid").instance, None);
        let bad: [&[&str]; 6] = [
            &[],
            &["x", "--state", "/s", "--root", "/r"],
            &[&pod, "--state", "/s"],
            &[&pod, "--state", "/s", "--root"],
            &[&pod, "--state", "/s", "--root", "/r", "--instance", "no"],
            &[&pod, "--state", "/s", "--root", "/r", "--what"],
        ];
        for args in bad {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
