//! The log: tracing to stderr, so that stdout stays what was asked for. Quiet (`warn`) unless told otherwise. When stderr is the
//! journal, each line says its priority, and leaves the time to it (sd-daemon(3)).

use std::fmt;
use std::os::unix::fs::MetadataExt;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts the log once for this process. Both words were checked by [`crate::config`].
pub(super) fn start(level: &str, format: &str) {
    let level = level.parse::<LevelFilter>().unwrap_or(LevelFilter::WARN);
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let started = match format {
        "json" => builder.json().try_init(),
        _ if stderr_is_journal() => builder.with_ansi(false).event_format(Journal).try_init(),
        _ => builder.with_ansi(colour).try_init(),
    };
    let _ = started; // a second start in one process (tests) keeps the first
}

/// Whether what systemd says of the journal's stream, `device:inode`, is our stderr: systemd.exec(5), `$JOURNAL_STREAM`.
fn stderr_is_journal() -> bool {
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|told| told == format!("{}:{}", stderr.dev(), stderr.ino()))
}

struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // Priorities of syslog(3).
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
