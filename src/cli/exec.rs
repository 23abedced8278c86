//! `podwright exec`: a command in a container, with this one's streams or a terminal. Without a daemon in between: it asks the pod's shim.

use super::terminal::{self, Left, Own};
use super::{Session, find, streams, units};
use crate::engine::Engine;
use crate::engine::exec::ExecConfig;
use crate::error::{Context, Error, Kind, Result};
use crate::id::ContainerId;
use crate::state::record::ExitStatus;
use crate::sys::async_fd::AsyncFile;
use crate::wire::{Failure, UserChoice};
use std::sync::Arc;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  podwright exec web/nginx -- nginx -t
  podwright exec -it web -- sh
  podwright exec web -c nginx --timeout 5s -- cat /etc/nginx/nginx.conf
  podwright exec -i db -- psql < schema.sql
  podwright exec --user 65534 -e LANG=C --workdir /tmp web/nginx -- ls

Exit codes:
  the command's, 128+n when signal n ended it; 124 when --timeout was over; 126 not executable; 127 not found; 125 podwright's own.";

/// Exit code when `--timeout` was over, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// Exit codes for a command that is not executable, and for one that is not there, as env(1) has them; and their errnos.
const NOT_EXECUTABLE: (u8, [i32; 2]) = (126, [13, 8]);
const NOT_FOUND: (u8, i32) = (127, 2);

/// Runs a command in a running container and exits with its code
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExecArgs {
    /// POD, POD/CONTAINER, or the first digits of an id; a pod of one container needs no more
    target: String,
    /// Container of the pod
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Give it this command's standard input; else it has /dev/null
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal: of the size of this one, and this one's if -i is given
    #[arg(short, long)]
    tty: bool,
    /// Kill the command and all it started after this long (90s, 5m), and exit with 124
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// USER[:GROUP], numbers or names of the image, instead of the container's
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Directory to run it in, instead of the container's
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// NAME=VALUE, added to the container's environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) fn run(args: &ExecArgs, session: &Session) -> Result<u8> {
    let config = config(args)?;
    super::require_root("exec")?;
    super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let (found, container) = find::container(&all, &args.target, args.container.as_deref())?;
        let timed = config.timeout > Duration::ZERO;
        let id = &container.record.id;
        let ended = match args.tty {
            false => {
                let (streams, copies) = streams::new(args.interactive)?;
                copies.during(found.engine.try_exec(id, config, streams)).await?
            }
            true => match with_terminal(&found.engine, id, config, args.interactive).await? {
                Left::Signaled(code) => return Ok(code),
                Left::Detached => return Ok(0), // it is not looked for
                Left::Done(ended) => ended,
            },
        };
        match ended {
            Err(e) if timed && e.kind() == Kind::DeadlineExceeded => {
                super::output::note(&format!("podwright: {e}"));
                Ok(TIMED_OUT)
            }
            Err(e) => Err(e),
            Ok(Err(failure)) => not_run(failure),
            Ok(Ok(status)) => code(status),
        }
    })
}

fn config(args: &ExecArgs) -> Result<ExecConfig> {
    if let Some(bad) = args.env.iter().find(|entry| entry.split_once('=').is_none_or(|(name, _)| name.is_empty())) {
        return Err(Error::invalid(format!("--env {bad:?} is not NAME=VALUE")));
    }
    let timeout = units::timeout(args.timeout.as_deref())?;
    let mut env = args.env.clone();
    if args.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push(format!("TERM={}", std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned())));
    }
    Ok(ExecConfig {
        args: args.command.clone(),
        env,
        cwd: args.workdir.clone().unwrap_or_default(),
        user: args.user.as_ref().map(|user| UserChoice { user: user.clone(), ..UserChoice::default() }),
        timeout: timeout.unwrap_or_default(),
    })
}

/// Joins this terminal with one of the container's. After a signal nobody waits for the command, and its shim kills it.
async fn with_terminal(
    engine: &Engine,
    id: &ContainerId,
    config: ExecConfig,
    interactive: bool,
) -> Result<Left<Result<std::result::Result<ExitStatus, Failure>>>> {
    let own = Own::new(interactive)?;
    let (master, command) = engine.exec_at_terminal(id, config, Own::size()).await?;
    let master = Arc::new(AsyncFile::new(master).context(|| "watch a terminal")?);
    let input = match interactive {
        true => Some(tokio::spawn(terminal::keys(terminal::typed()?, master.clone(), false))),
        false => None,
    };
    let shown = terminal::show(&master, std::io::stdout());
    let left = terminal::join(Some(master.clone()), shown, input, command.ended(std::future::pending())).await;
    drop(own); // before anything is said
    left
}

/// The command could not be run.
fn not_run(failure: Failure) -> Result<u8> {
    let code = match failure.errno {
        errno if errno == NOT_FOUND.1 => NOT_FOUND.0,
        errno if NOT_EXECUTABLE.1.contains(&errno) => NOT_EXECUTABLE.0,
        _ => return Err(failure.into()),
    };
    super::output::note(&format!("podwright: {}", failure.message));
    Ok(code)
}

fn code(status: ExitStatus) -> Result<u8> {
    match status {
        ExitStatus::Unknown => Err(Error::internal("exec: how the command ended was not seen")),
        status => Ok(u8::try_from(status.code()).unwrap_or(u8::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::FailureKind;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(code(ExitStatus::Exited(3)).expect("seen"), 3);
        assert_eq!(code(ExitStatus::Signaled(9)).expect("seen"), 137);
        assert!(code(ExitStatus::Unknown).is_err());
        let failed =
            |errno| not_run(Failure { kind: FailureKind::InvalidArgument, message: "execve: x".into(), errno });
        assert_eq!((failed(2).expect("code"), failed(13).expect("code"), failed(8).expect("code")), (127, 126, 126));
        assert!(failed(12).is_err());
    }
}
