//! `podwright attach`: the output of a running container from now on, and its input.

use super::terminal::{self, Left, Own};
use super::{Session, find, output};
use crate::engine::Engine;
use crate::engine::attach::{Attached, Wanted};
use crate::error::{Context, Error, Result};
use crate::id::ContainerId;
use crate::state::record::ExitStatus;
use crate::sys::async_fd::AsyncFile;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  podwright attach web/nginx                 what it writes from now on; the log has what it wrote before (podwright logs)
  podwright attach -i shell                  and what is typed here goes to it; Ctrl-P Ctrl-Q leaves its terminal

Exit codes:
  the container's when it ends meanwhile; 0 after Ctrl-P Ctrl-Q; 130 after Ctrl-C; 125 podwright's own.";

/// Shows the output of a running container as it comes, and gives it what is typed
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct AttachArgs {
    /// POD, POD/CONTAINER, or the first digits of an id; a pod of one container needs no more
    target: String,
    /// Container of the pod
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Give it this command's standard input; its manifest says `stdin: true`
    #[arg(short, long)]
    interactive: bool,
}

pub(super) fn run(args: &AttachArgs, session: &Session) -> Result<u8> {
    super::require_root("attach")?;
    super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let (found, container) = find::container(&all, &args.target, args.container.as_deref())?;
        let (id, config) = (&container.record.id, &container.record.config);
        if args.interactive && !config.stdin && !config.tty {
            let remedy = "leave -i out, or run it with stdin: true";
            return Err(Error::precondition(format!("container {} has no input: {remedy}", config.name)));
        }
        let wanted = Wanted { stdin: args.interactive, stdout: true, stderr: true };
        let left = attached(&found.engine, id, wanted, config.tty).await?;
        if args.interactive {
            found.engine.input_ended(id).await;
        }
        match left {
            Left::Done(result) => {
                result?;
                code(found.engine.wait_container(id).await?.status)
            }
            Left::Detached => {
                output::note("podwright: detached; it runs on");
                Ok(0)
            }
            Left::Signaled(code) => Ok(code),
        }
    })
}

async fn attached(engine: &Engine, id: &ContainerId, wanted: Wanted, tty: bool) -> Result<Left<Result<()>>> {
    let mut attached = engine.attach(id, wanted).await?;
    let own = Own::new(wanted.stdin && tty)?;
    let to = attached.stdin.take().map(watched).transpose()?;
    let terminal = attached.terminal.take().map(watched).transpose()?;
    if let (Some(terminal), Some(size)) = (&terminal, Own::size().filter(|_| wanted.stdin)) {
        size.apply(terminal.as_fd())?;
    }
    let input = match &to {
        Some(to) => {
            let (typed, to, engine, id) = (terminal::typed()?, to.clone(), engine.clone(), id.clone());
            Some(tokio::spawn(async move {
                let detached = terminal::keys(typed, to, tty).await;
                if !detached {
                    engine.input_ended(&id).await;
                }
                detached
            }))
        }
        None => None,
    };
    drop(to); // the task's is the last one here, so that its end is that of the input
    let work = async {
        let mut next = Some(attached);
        while let Some(Attached { stdout, stderr, .. }) = next.take() {
            let (out, err) = (stdout.map(watched).transpose()?, stderr.map(watched).transpose()?);
            let show_out = async {
                if let Some(out) = &out {
                    terminal::show(out, std::io::stdout()).await;
                }
            };
            let show_err = async {
                if let Some(err) = &err {
                    terminal::show(err, std::io::stderr()).await;
                }
            };
            tokio::join!(show_out, show_err);
            next = engine.attach_again(id, wanted).await?;
        }
        Ok(())
    };
    let left = terminal::join(terminal, async {}, input, work).await;
    drop(own);
    left
}

fn watched(fd: OwnedFd) -> Result<Arc<AsyncFile>> {
    AsyncFile::new(fd).map(Arc::new).context(|| "watch a stream")
}

fn code(status: ExitStatus) -> Result<u8> {
    match status {
        ExitStatus::Unknown => Err(Error::internal("attach: how the container ended was not seen")),
        status => Ok(u8::try_from(status.code()).unwrap_or(u8::MAX)),
    }
}
