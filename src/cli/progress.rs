//! What people see of layers while they come: bars on a terminal, lines in a log.

use super::{output, units};
use crate::id::Digest;
use crate::image::store::session::{Event, Progress, Silent};
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Columns of a bar.
const BAR: usize = 30;
/// Layers that have a bar at once; a terminal has more lines than that.
const MAX_BARS: usize = 16;
/// Between two drawings that show nothing but more bytes.
const REDRAW: Duration = Duration::from_millis(100);
/// Digits of a layer's digest that are shown.
const DIGITS: usize = 12;

/// What stderr is fit for. `verb` is what happens to a layer: pulling, unpacking.
pub(super) fn of(quiet: bool, verb: &'static str) -> Arc<dyn Progress + Send> {
    match quiet {
        true => Arc::new(Silent),
        false if std::io::stderr().is_terminal() => Arc::new(Bars(Mutex::new(Drawing::new(verb)))),
        false => Arc::new(Lines(verb)),
    }
}

/// A line on stderr for each layer: it stays readable in a log, and stdout is the images.
struct Lines(&'static str);

impl Progress for Lines {
    fn layer(&self, diff_id: &Digest, event: Event) {
        if let Some(text) = line(self.0, event) {
            output::note(&format!("layer {}: {text}", &diff_id.hex()[..DIGITS]));
        }
    }
}

fn line(verb: &str, event: Event) -> Option<String> {
    match event {
        Event::Exists => Some("in the store already".to_owned()),
        Event::Started { bytes: Some(bytes) } => Some(format!("{verb} {}", units::size(bytes))),
        Event::Started { bytes: None } => Some(verb.to_owned()),
        Event::Done => Some("done".to_owned()),
        Event::Read { .. } => None,
    }
}

/// A bar for each layer that is at work, drawn over again.
struct Bars(Mutex<Drawing>);

struct Drawing {
    verb: &'static str,
    rows: Vec<Row>,
    /// Lines that are on the terminal.
    drawn: usize,
    last: Option<Instant>,
}

struct Row {
    name: String,
    bytes: Option<u64>,
    read: u64,
    done: bool,
}

impl Progress for Bars {
    fn layer(&self, diff_id: &Digest, event: Event) {
        let mut drawing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let news = drawing.hear(&diff_id.hex()[..DIGITS], event);
        if news || drawing.last.is_none_or(|last| last.elapsed() >= REDRAW) {
            drawing.last = Some(Instant::now());
            let text = drawing.text();
            let _ = std::io::stderr().write_all(text.as_bytes()); // nobody is left to tell
        }
    }
}

impl Drawing {
    fn new(verb: &'static str) -> Drawing {
        Drawing { verb, rows: Vec::new(), drawn: 0, last: None }
    }

    /// Whether it is more than bytes.
    fn hear(&mut self, name: &str, event: Event) -> bool {
        let row = match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row,
            None => {
                self.rows.push(Row { name: name.to_owned(), bytes: None, read: 0, done: false });
                let last = self.rows.len() - 1;
                &mut self.rows[last]
            }
        };
        match event {
            Event::Started { bytes } => (row.bytes, row.read, row.done) = (bytes, 0, false),
            Event::Read { bytes } => row.read = bytes,
            Event::Exists | Event::Done => row.done = true,
        }
        !matches!(event, Event::Read { .. })
    }

    /// What takes the place of what was drawn before.
    fn text(&mut self) -> String {
        let done = self.rows.iter().filter(|row| row.done).count();
        let mut lines: Vec<String> = self.rows.iter().filter(|row| !row.done).take(MAX_BARS).map(Row::line).collect();
        lines.push(format!("{}: {done} of {} layers done", self.verb, self.rows.len()));
        // Up to the first line, and clear what is below: ECMA-48 CUU and ED.
        let mut text = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        text.push_str("\r\x1b[J");
        self.drawn = lines.len();
        lines.iter().for_each(|line| {
            text.push_str(line);
            text.push('\n');
        });
        text
    }
}

impl Row {
    fn line(&self) -> String {
        let Some(bytes) = self.bytes else { return format!("{}  {}", self.name, units::size(self.read)) };
        let part = u128::from(self.read.min(bytes)) * BAR as u128 / u128::from(bytes.max(1));
        let full = usize::try_from(part).unwrap_or(BAR);
        let bar: String = (0..BAR).map(|n| if n < full { '=' } else { ' ' }).collect();
        format!("{}  [{bar}]  {}/{}", self.name, units::size(self.read), units::size(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_a_line_a_change_and_none_a_chunk() {
        assert_eq!(line("unpacking", Event::Read { bytes: 1 }), None);
        assert_eq!(line("unpacking", Event::Started { bytes: Some(2 << 20) }).as_deref(), Some("unpacking 2Mi"));
    }

    #[test]
    fn bars_are_drawn_over_and_a_layer_that_is_done_has_none() {
        let mut drawing = Drawing::new("pulling");
        assert!(drawing.hear("aaaa", Event::Started { bytes: Some(2 << 20) }));
        assert!(!drawing.hear("aaaa", Event::Read { bytes: 1 << 20 }));
        drawing.hear("bbbb", Event::Exists);
        let bar = format!("aaaa  [{}{}]  1Mi/2Mi", "=".repeat(15), " ".repeat(15));
        assert_eq!(drawing.text(), format!("\r\x1b[J{bar}\npulling: 1 of 2 layers done\n"));
        drawing.hear("aaaa", Event::Done);
        assert_eq!(drawing.text(), "\x1b[2A\r\x1b[Jpulling: 2 of 2 layers done\n");
    }
}
