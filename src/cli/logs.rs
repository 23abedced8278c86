//! `podwright logs`: reads a container's log file.

use super::find::{self, Found};
use super::{Session, units};
use crate::agent::logs::{Line, Stream, Tail};
use crate::engine::pod::State;
use crate::engine::query::ContainerStatus;
use crate::error::{Context, Error, Result};
use crate::id::ContainerId;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const EXAMPLES: &str = "\
Examples:
  podwright logs web/nginx
  podwright logs web -c nginx --tail 20 -f  the last 20 lines, then new ones as they come
  podwright logs web/nginx --since 10m -t
  podwright logs web/nginx --previous       of the attempt before the last restart";

/// How often a container without a shim is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Bytes that are collected before they are written.
const BUFFER_BYTES: usize = 64 << 10;

/// Prints what a container has written to stdout and stderr
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LogsArgs {
    /// POD, POD/CONTAINER, or the first digits of an id; a pod of one container needs no more
    target: String,
    /// Container of the pod
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Go on with new lines until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only lines younger than this (90s, 10m, 2h)
    #[arg(long, value_name = "DURATION")]
    since: Option<String>,
    /// The time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Of the attempt before this one, while its log is there
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
}

pub(super) fn run(args: &LogsArgs, session: &Session) -> Result<u8> {
    let since = args.since.as_deref().map(|text| units::duration("--since", text)).transpose()?;
    let since = since.map(|ago| SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)).map(cutoff);
    super::require_root("logs")?;
    super::runtime()?.block_on(async {
        let all = find::all(session).await?;
        let (found, container) = find::container(&all, &args.target, args.container.as_deref())?;
        let path = log_path(&container, args.previous)?;
        if !path.exists() && (!args.follow || container.state == State::Exited) {
            return Ok(0); // it has written nothing yet
        }
        let mut printer = Printer::new(args.timestamps, since, io::stdout().lock(), io::stderr().lock());
        if let Some(lines) = args.tail {
            printer.skip = count(&path)?.saturating_sub(lines);
        }
        print(&found, &container, &path, args.follow, &mut printer).await.map(|()| 0)
    })
}

/// The time before which lines are left out, in the log's own form: it compares as text.
fn cutoff(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    units::timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

fn log_path(container: &ContainerStatus, previous: bool) -> Result<PathBuf> {
    let (record, attempt) = (&container.record, container.record.config.attempt);
    let name = &record.config.name;
    let Some(log) = &record.log else {
        return Err(Error::precondition(format!("container {name} has no log: its pod has no log directory")));
    };
    if !previous {
        return Ok(log.clone());
    }
    let Some(before) = attempt.checked_sub(1) else {
        return Err(Error::not_found(format!(
            "container {name} was never restarted, so there is no attempt before this"
        )));
    };
    let path = log.with_file_name(format!("{before}.log"));
    if path.exists() { Ok(path) } else { Err(Error::not_found(format!("{} is gone", path.display()))) }
}

/// How many lines a log has.
fn count(path: &Path) -> Result<u64> {
    let mut lines = 0;
    if path.exists() {
        Tail::open(path)?.read(|line| lines += u64::from(!line.partial))?;
    }
    Ok(lines)
}

async fn print(
    found: &Found,
    container: &ContainerStatus,
    path: &Path,
    follow: bool,
    printer: &mut Printer<impl Write, impl Write>,
) -> Result<()> {
    let mut tail = Tail::open(path)?;
    let ended = ended(found, &container.record.id);
    tokio::pin!(ended);
    let mut follow = follow;
    loop {
        tail.read(|line| printer.line(&line))?;
        printer.flush();
        if !follow || printer.is_done() {
            return printer.result();
        }
        tokio::select! {
            changed = tail.changed() => changed?,
            // The shim writes the last line before it tells the end: one more reading has all.
            () = &mut ended => follow = false,
        }
    }
}

/// Waits for a container's end. Removed is ended as well. When its shim has gone, whoever sees to the pod then does so on disk: another shim
/// writes how it ended, a sweeper takes all of it away.
async fn ended(found: &Found, id: &ContainerId) {
    let (engine, pod) = (&found.engine, &found.pod.record.id);
    tokio::select! {
        _ = engine.wait_container(id) => return,
        _ = engine.wait_lost(pod) => {}
    }
    let exit = engine.paths().exit_record(pod, id);
    while exit.parent().is_some_and(Path::exists) && !exit.exists() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Writes lines where they came from. A reader who has gone ends it quietly.
struct Printer<O: Write, E: Write> {
    timestamps: bool,
    since: Option<String>,
    /// Lines to leave out.
    skip: u64,
    out: io::BufWriter<O>,
    err: E,
    /// Whether each stream is within a line.
    within: [bool; 2],
    failed: Option<io::Error>,
}

impl<O: Write, E: Write> Printer<O, E> {
    fn new(timestamps: bool, since: Option<String>, out: O, err: E) -> Self {
        let out = io::BufWriter::with_capacity(BUFFER_BYTES, out);
        Printer { timestamps, since, skip: 0, out, err, within: [false; 2], failed: None }
    }

    fn line(&mut self, line: &Line<'_>) {
        if self.skip > 0 {
            self.skip -= u64::from(!line.partial);
            return;
        }
        if self.failed.is_some() || self.since.as_deref().is_some_and(|since| line.time < since) {
            return;
        }
        let within = &mut self.within[usize::from(line.stream == Stream::Stderr)];
        let stamp = if self.timestamps && !*within { format!("{} ", line.time) } else { String::new() };
        *within = line.partial;
        let newline: &[u8] = if line.partial { b"" } else { b"\n" };
        let bytes = [stamp.as_bytes(), line.text, newline].concat();
        let written = match line.stream {
            Stream::Stdout => self.out.write_all(&bytes),
            // What was written to stdout before it is to be seen before it.
            Stream::Stderr => self.out.flush().and_then(|()| self.err.write_all(&bytes)),
        };
        self.failed = self.failed.take().or(written.err());
    }

    fn flush(&mut self) {
        if self.failed.is_none() {
            self.failed = self.out.flush().err();
        }
    }

    fn is_done(&self) -> bool {
        self.failed.is_some()
    }

    /// What went wrong; that nobody reads any more did not.
    fn result(&mut self) -> Result<()> {
        match self.failed.take() {
            Some(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context(|| "write the log"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::logs::parse;

    const LOG: [&str; 5] = [
        "2026-01-01T00:00:00.000000001Z stdout P one ",
        "2026-01-01T00:00:00.000000002Z stderr F oops",
        "2026-01-01T00:00:00.000000003Z stdout F line",
        "2026-01-01T00:00:00.000000004Z stdout F ",
        "2026-01-01T00:00:00.000000005Z stdout F end",
    ];

    fn printed(timestamps: bool, since: Option<&str>, skip: u64) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(timestamps, since.map(str::to_owned), &mut out, &mut err);
        printer.skip = skip;
        LOG.iter().for_each(|line| printer.line(&parse(line.as_bytes()).expect("a line")));
        printer.flush();
        printer.result().expect("all was written");
        drop(printer);
        (String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text"))
    }

    #[test]
    fn streams_stay_apart_and_a_cut_line_is_put_together() {
        assert_eq!(printed(false, None, 0), ("one line\n\nend\n".into(), "oops\n".into()));
    }

    #[test]
    fn the_time_stands_once_before_a_line_and_not_within_it() {
        let (out, err) = printed(true, None, 0);
        assert!(out.starts_with("2026-01-01T00:00:00.000000001Z one line\n2026-01-01T00:00:00.000000004Z \n"), "{out}");
        assert_eq!(err, "2026-01-01T00:00:00.000000002Z oops\n");
    }

    #[test]
    fn the_last_lines_and_the_young_ones_are_whole_lines() {
        assert_eq!(printed(false, None, 3), ("end\n".into(), String::new()));
        assert_eq!(printed(false, Some("2026-01-01T00:00:00.000000004Z"), 0), ("\nend\n".into(), String::new()));
    }

    #[test]
    fn a_reader_who_goes_is_no_error_and_a_full_disk_is() {
        struct Failing(io::ErrorKind);
        impl Write for Failing {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for (kind, is_ok) in [(io::ErrorKind::BrokenPipe, true), (io::ErrorKind::StorageFull, false)] {
            let mut printer = Printer::new(false, None, Failing(kind), io::sink());
            printer.line(&parse(LOG[2].as_bytes()).expect("a line"));
            printer.flush();
            assert!(printer.is_done());
            assert_eq!(printer.result().is_ok(), is_ok, "{kind}");
        }
    }
}
