//! The log of a container in the CRI's format: `2026-01-02T15:04:05.123456789Z stdout F line`, a line each.
//!
//! Kubernetes reads it (`kubelet/kuberuntime/logs`, design proposal kubelet-cri-logging.md): a tag `P` says that the line goes
//! on in the next entry, `F` that it ends here. As with containerd, a line is cut after 16 KiB, and output that ends without a
//! newline is left as `P`. [`Lines`] formats and does no I/O; [`Log`] is the file.

use crate::error::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest line in one entry, in bytes: containerd's max_container_log_line_size.
pub const MAX_LINE_BYTES: usize = 16 << 10;
/// When a batch of entries is written: as much as a pipe holds (pipe(7)).
pub const BATCH_BYTES: usize = 64 << 10;
/// Bytes of `2026-01-02T15:04:05.123456789Z`.
const STAMP_BYTES: usize = 30;

/// Which output a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// RFC 3339 in UTC with nine digits, the second's part made once a second.
#[derive(Debug, Default)]
pub struct Stamp {
    second: Option<u64>,
    text: [u8; STAMP_BYTES],
}

impl Stamp {
    /// The text of a time since the epoch.
    fn format(&mut self, time: Duration) -> &[u8; STAMP_BYTES] {
        if self.second != Some(time.as_secs()) {
            self.second = Some(time.as_secs());
            self.text = second_text(time.as_secs());
        }
        digits(&mut self.text[20..29], u64::from(time.subsec_nanos()));
        &self.text
    }
}

fn second_text(second: u64) -> [u8; STAMP_BYTES] {
    let (days, of_day) = (second / 86_400, second % 86_400);
    // Days to a civil date, with years that begin in March so that the leap day is the last (Hinnant, chrono-compatible
    // low-level date algorithms); 719 468 days lie between 0000-03-01 and 1970-01-01, 146 097 in an era of 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], of_day / 3600);
    digits(&mut text[14..16], of_day / 60 % 60);
    digits(&mut text[17..19], of_day % 60);
    text
}

fn digits(text: &mut [u8], mut number: u64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

/// Cuts one stream into entries; keeps what has no newline yet.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    partial: Vec<u8>,
}

impl Lines {
    pub fn new(stream: Stream) -> Self {
        Lines { stream, partial: Vec::new() }
    }

    /// Appends the entries that `chunk` completes, from its start on, to `out`, until `out` is a batch; says how much was used.
    pub fn take(&mut self, chunk: &[u8], out: &mut Batch) -> usize {
        let mut used = 0;
        while used < chunk.len() && out.bytes.len() < BATCH_BYTES {
            let rest = &chunk[used..];
            let room = MAX_LINE_BYTES - self.partial.len();
            // One byte beyond the room: a newline there ends a line that just fits.
            let seen = &rest[..rest.len().min(room + 1)];
            if let Some(end) = crate::sys::memchr(b'\n', seen) {
                out.entry(self.stream, b'F', &self.partial, &rest[..end]);
                used += end + 1;
            } else if seen.len() > room {
                out.entry(self.stream, b'P', &self.partial, &rest[..room]);
                used += room;
            } else {
                self.partial.extend_from_slice(rest);
                return chunk.len();
            }
            self.partial.clear();
        }
        used
    }

    /// Ends the stream: what has no newline becomes an entry of its own.
    pub fn end(&mut self, out: &mut Batch) {
        if !self.partial.is_empty() {
            out.entry(self.stream, b'P', &self.partial, b"");
        }
        self.partial = Vec::new();
    }

    /// Gives back memory that holds nothing.
    pub fn release(&mut self) {
        self.partial.shrink_to_fit();
    }
}

/// Entries on their way to a file. One for all containers of a shim.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    stamp: Stamp,
}

impl Batch {
    fn entry(&mut self, stream: Stream, tag: u8, start: &[u8], rest: &[u8]) {
        // A time for each line, not for each read: entries of both streams are in the order of their times.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.bytes.reserve(STAMP_BYTES + 11 + start.len() + rest.len());
        self.bytes.extend_from_slice(self.stamp.format(now));
        self.bytes.extend_from_slice(match stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        });
        self.bytes.extend_from_slice(&[tag, b' ']);
        self.bytes.extend_from_slice(start);
        self.bytes.extend_from_slice(rest);
        self.bytes.push(b'\n');
    }

    /// Gives the memory back.
    pub fn release(&mut self) {
        self.bytes = Vec::new();
    }
}

/// The file of a container's log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// The last write stopped inside an entry: the next one starts on a line of its own.
    torn: bool,
    /// Bytes that could not be written since the last success.
    lost_bytes: u64,
    /// And ever.
    lost_in_all_bytes: u64,
}

impl Log {
    /// Opens it for appending; made when it is not there, mode 0640 as with containerd.
    ///
    /// # Errors
    /// Naming the path.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Log { path: path.to_owned(), file: open(path)?, torn: false, lost_bytes: 0, lost_in_all_bytes: 0 })
    }

    /// Opens a log that another process has written until it was killed, perhaps in the middle of an entry: the next one starts on a line of
    /// its own.
    ///
    /// # Errors
    /// Naming the path.
    pub fn resume(path: &Path) -> Result<Self> {
        let log = Log::open(path)?;
        let doing = || format!("read the end of log {}", path.display());
        let len = log.file.metadata().context(doing)?.len();
        let mut last = [b'\n'];
        if let Some(at) = len.checked_sub(1) {
            File::open(path).and_then(|file| file.read_at(&mut last, at)).context(doing)?;
        }
        Ok(Log { torn: last != [b'\n'], ..log })
    }

    /// Opens the path again: it was renamed by whoever rotates. On an error the old file is written on.
    ///
    /// # Errors
    /// Naming the path.
    pub fn reopen(&mut self) -> Result<()> {
        self.file = open(&self.path)?;
        self.torn = false;
        Ok(())
    }

    /// How much of the log is missing, in bytes as they would be in the file.
    pub fn lost_in_all_bytes(&self) -> u64 {
        self.lost_in_all_bytes
    }

    /// Writes the batch and empties it. A container is not stopped for a disk that is full: what cannot be written is lost and
    /// counted.
    ///
    /// # Errors
    /// The first failure after a success, to be noted once.
    pub fn write(&mut self, batch: &mut Batch) -> Result<()> {
        if batch.bytes.is_empty() {
            return Ok(());
        }
        if self.torn {
            batch.bytes.insert(0, b'\n');
        }
        let mut written = 0;
        let result = loop {
            match self.file.write(&batch.bytes[written..]) {
                Ok(0) => break Err(std::io::ErrorKind::WriteZero.into()),
                Ok(n) if written + n == batch.bytes.len() => break Ok(()),
                Ok(n) => written += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        let lost_before = self.lost_bytes;
        self.torn = match result {
            Ok(()) => false,
            Err(_) if written == 0 => self.torn,
            Err(_) => batch.bytes[written - 1] != b'\n',
        };
        let lost = if result.is_ok() { 0 } else { (batch.bytes.len() - written) as u64 };
        self.lost_bytes = if result.is_ok() { 0 } else { lost_before + lost };
        self.lost_in_all_bytes += lost;
        batch.bytes.clear();
        match result {
            Err(e) if lost_before == 0 => Err(e).context(|| format!("write {}; output is lost", self.path.display())),
            _ => Ok(()),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    opened.context(|| format!("open log {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `chunks` as they came from one stream, formatted; the times cut off (and checked for order).
    fn formatted(chunks: &[&[u8]], ended: bool) -> String {
        let (mut lines, mut batch, mut text) = (Lines::new(Stream::Stdout), Batch::default(), Vec::new());
        for chunk in chunks {
            let mut used = 0;
            while used < chunk.len() {
                used += lines.take(&chunk[used..], &mut batch);
                text.append(&mut batch.bytes);
            }
        }
        if ended {
            lines.end(&mut batch);
            text.append(&mut batch.bytes);
        }
        let text = String::from_utf8(text).expect("utf-8 was given");
        let times: Vec<_> = text.lines().map(|line| &line[..STAMP_BYTES]).collect();
        assert!(times.is_sorted());
        text.lines().map(|line| format!("{}\n", &line[STAMP_BYTES..])).collect()
    }

    #[test]
    fn times_are_rfc_3339_with_nine_digits() {
        let mut stamp = Stamp::default();
        for (second, nanos, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_827_696, 5, "2000-02-29T12:34:56.000000005Z"),
            (1_767_366_245, 123_456_789, "2026-01-02T15:04:05.123456789Z"),
            (1_767_366_245, 120_000_000, "2026-01-02T15:04:05.120000000Z"),
            (4_107_542_399, 999_999_999, "2100-02-28T23:59:59.999999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(std::str::from_utf8(stamp.format(Duration::new(second, nanos))).expect("ascii"), text);
        }
    }

    #[test]
    fn every_day_of_four_hundred_years_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970u32, 1u32, 1u32);
        for days in 0..146_097u64 {
            let text = second_text(days * 86_400);
            let expected = format!("{year:04}-{month:02}-{day:02}T00:00:00.000000000Z");
            assert_eq!(std::str::from_utf8(&text).expect("ascii"), expected);
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = [31, 28 + u32::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month as usize - 1];
            (year, month, day) = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, last) if last == length => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }

    #[test]
    fn lines_are_full_wherever_the_reads_cut_them_and_an_unended_one_is_partial() {
        let expected = " stdout F one\n stdout F \n stdout F two \u{0}\r\n stdout P three\n";
        let text: &[u8] = b"one\n\ntwo \0\r\nthree";
        assert_eq!(formatted(&[text], true), expected.replace("\r\n", "\n"), "lines() hides the CR");
        for cut in 0..text.len() {
            let (head, tail) = text.split_at(cut);
            assert_eq!(formatted(&[head, tail], true), formatted(&[text], true));
        }
        assert_eq!(
            formatted(&[text], false),
            formatted(&[&text[..12]], true),
            "nothing is told of a line before its end"
        );
    }

    #[test]
    fn nul_bytes_carriage_returns_and_what_is_no_utf_8_are_kept() {
        let (mut lines, mut batch) = (Lines::new(Stream::Stderr), Batch::default());
        assert_eq!(lines.take(b"a\0\xff\r\n", &mut batch), 5);
        assert_eq!(&batch.bytes[STAMP_BYTES..], b" stderr F a\0\xff\r\n");
    }

    #[test]
    fn a_line_is_cut_after_sixteen_kib_and_one_that_just_fits_is_not() {
        let fits = "x".repeat(MAX_LINE_BYTES);
        let longer = format!("{fits}y");
        assert_eq!(formatted(&[format!("{fits}\n").as_bytes()], true), format!(" stdout F {fits}\n"));
        let cut = format!(" stdout P {fits}\n stdout F y\n");
        assert_eq!(formatted(&[format!("{longer}\n").as_bytes()], true), cut);
        assert_eq!(formatted(&[longer.as_bytes(), b"\n"], true), cut);
        assert_eq!(formatted(&[fits.as_bytes(), b"y\n"], true), cut);
        assert_eq!(formatted(&[fits.as_bytes(), b"\n"], true), format!(" stdout F {fits}\n"));
        assert_eq!(formatted(&[fits.as_bytes()], true), format!(" stdout P {fits}\n"));
        let long = formatted(&[&b"z".repeat(10 * MAX_LINE_BYTES)], true);
        assert_eq!((long.lines().count(), long.matches('z').count()), (10, 10 * MAX_LINE_BYTES));
    }

    #[test]
    fn a_batch_is_bounded_whatever_the_lines_are() {
        let (mut lines, mut batch) = (Lines::new(Stream::Stdout), Batch::default());
        let used = lines.take(&vec![b'\n'; BATCH_BYTES], &mut batch);
        assert!(used < BATCH_BYTES && batch.bytes.len() < BATCH_BYTES + MAX_LINE_BYTES);
    }

    #[test]
    fn a_rotated_log_loses_no_line_and_repeats_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.old"));
        let mut log = Log::open(&path).expect("open");
        let (mut lines, mut batch) = (Lines::new(Stream::Stdout), Batch::default());
        lines.take(b"one\ntw", &mut batch);
        log.write(&mut batch).expect("write");
        std::fs::rename(&path, &old).expect("rotate");
        log.reopen().expect("reopen");
        lines.take(b"o\n", &mut batch);
        log.write(&mut batch).expect("write");
        let read = |path| std::fs::read_to_string(path).expect("read")[STAMP_BYTES..].to_owned();
        assert_eq!((read(&old), read(&path)), (" stdout F one\n".to_owned(), " stdout F two\n".to_owned()));
    }

    #[test]
    fn a_log_that_ends_in_the_middle_of_an_entry_goes_on_in_the_next_line() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("0.log");
        let (mut lines, mut batch) = (Lines::new(Stream::Stdout), Batch::default());
        for (before, after) in [("", ""), ("whole\n", "whole\n"), ("whole\nto", "whole\nto\n")] {
            std::fs::write(&path, before).expect("plant");
            let mut log = Log::resume(&path).expect("resume");
            lines.take(b"next\n", &mut batch);
            log.write(&mut batch).expect("write");
            let text = std::fs::read_to_string(&path).expect("read");
            let written = text.strip_prefix(after).unwrap_or_else(|| panic!("{text:?}"));
            assert_eq!(&written[STAMP_BYTES..], " stdout F next\n");
        }
    }

    #[test]
    fn a_disk_that_is_full_is_told_once_and_the_next_entry_starts_a_line() {
        let full = Path::new("/dev/full");
        let mut log = Log::open(full).expect("open");
        let (mut lines, mut batch) = (Lines::new(Stream::Stdout), Batch::default());
        for told in [true, false, false] {
            lines.take(b"x\n", &mut batch);
            assert_eq!(log.write(&mut batch).is_err(), told);
            assert!(batch.bytes.is_empty());
        }
        let dir = tempfile::tempdir().expect("tempdir");
        log.path = dir.path().join("log");
        log.file = open(&log.path).expect("open");
        log.torn = true;
        lines.take(b"y\n", &mut batch);
        log.write(&mut batch).expect("write");
        assert!(std::fs::read_to_string(&log.path).expect("read").starts_with('\n'));
        assert_eq!(log.lost_bytes, 0);
        assert!(log.lost_in_all_bytes() > 0, "what is missing stays missing");
    }
}
