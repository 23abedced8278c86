//! How results reach people and scripts: tables, JSON, and a reader who goes away early.
//!
//! Tables look like kubectl's: upper-case headings, two spaces between columns, no lines, no wrapping. JSON is what scripts
//! parse: camelCase names, stable within a major version; a field may be added, none changes its meaning.

use crate::error::{Context, Error, Result};
use comfy_table::{ContentArrangement, Table, TableStyle};
use serde::Serialize;
use std::io::Write;

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    #[default]
    Table,
    Json,
}

/// Prints `text` to stdout. A reader who has gone (`podwright ps | head -1`) has what he wanted: no error, no noise.
///
/// # Errors
/// Whatever else write(2) says, a full disk behind a redirection for instance.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context(|| "write to stdout"),
    }
}

/// Prints `value` as indented JSON, and a newline.
///
/// # Errors
/// As [`print`].
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(format!("print as JSON: {e}")))?;
    text.push('\n');
    print(&text)
}

/// A table as text. What stands in a cell may come from images and containers: control characters are shown, not obeyed.
pub(super) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| harmless(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// `text` with each control character written as an escape, so that it stays on its line and cannot drive a terminal.
pub(super) fn harmless(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_two_spaces_between_columns_and_none_at_the_end() {
        let text = table(["NAME", "STATE"], [["a".into(), "Running".into()], ["longer".into(), String::new()]]);
        assert_eq!(text, "NAME    STATE\na       Running\nlonger\n");
    }

    #[test]
    fn a_cell_cannot_drive_the_terminal_or_forge_a_row() {
        let text = table(["NAME"], [["a\x1b[2J\nb".into()]]);
        assert_eq!(text, "NAME\na\\u{1b}[2J\\nb\n");
    }

    #[test]
    fn a_long_cell_is_never_wrapped() {
        let long = "x ".repeat(400);
        assert_eq!(table(["NAME"], [[long.clone()]]).lines().count(), 2);
    }
}
