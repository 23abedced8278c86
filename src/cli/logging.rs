//! The log: tracing to stderr, so that stdout stays what was asked for. Quiet (`warn`) unless told otherwise.

use tracing::level_filters::LevelFilter;

/// Starts the log once for this process. Both words were checked by [`crate::config`].
pub(super) fn start(level: &str, format: &str) {
    let level = level.parse::<LevelFilter>().unwrap_or(LevelFilter::WARN);
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let started = match format {
        "json" => builder.json().try_init(),
        _ => builder.with_ansi(colour).try_init(),
    };
    let _ = started; // a second start in one process (tests) keeps the first
}
