//! The flight recorder: one bounded ring of steps per pod, written by engine and shim at once, read by `inspect` and `why`.
//!
//! A file of 16 KiB, mapped shared by both, of slots of 128 bytes; the first slot is the header:
//!
//! ```text
//! header   magic | next ticket | zeroes
//! slot     state | time, ns since the epoch | duration, ns + 1, or 0 | text length, source, checksum | 96 bytes of text
//! ```
//! A writer takes a ticket (one atomic add), which names its slot, and writes the slot as a seqlock: state is odd while it
//! writes, `2 * ticket + 2` afterwards. A reader believes a slot whose state was the same before and after, belongs to that slot,
//! and whose checksum fits: a writer killed in the middle, two that met in one slot a whole ring apart, and a file of
//! garbage are all told as "no entry there". Nobody waits for anybody. What is written is the reader's to judge: no decision is
//! made from it.

use crate::error::{Context, Error, Result};
use crate::sys::mmap::SharedWords;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of the file.
pub const FILE_BYTES: usize = 16 << 10;
/// The longest text of an entry, in bytes; a longer one is cut at a character.
pub const TEXT_BYTES: usize = WORDS_OF_TEXT * 8;

const SLOT_WORDS: usize = 16;
const WORDS_OF_TEXT: usize = 12;
/// Slots that hold entries: one of the file's is the header.
const SLOTS: u64 = (FILE_BYTES / (SLOT_WORDS * 8) - 1) as u64;
/// Tickets, as a mask: twice one, and two, fit a word even when the header was garbage.
const TICKETS: u64 = u64::MAX >> 2;
/// "podwfly" and the version of the format.
const MAGIC: u64 = u64::from_le_bytes(*b"podwfly1");

/// Who wrote an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Source {
    Engine,
    Shim,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Entry {
    /// Increases by one with each entry of the ring, whoever wrote it.
    pub ticket: u64,
    /// Nanoseconds since the epoch, CLOCK_REALTIME: when it was written.
    pub time_ns: u64,
    /// How long the step took, when that was measured.
    pub took: Option<Duration>,
    pub source: Source,
    pub step: String,
}

/// A pod's ring, mapped.
#[derive(Debug)]
pub struct Flight {
    words: SharedWords,
    source: Source,
}

impl Flight {
    /// Makes the file, mode 0600, and maps it. An old one of that name is an error.
    ///
    /// # Errors
    /// Naming the path.
    pub fn create(path: &Path, source: Source) -> Result<Self> {
        let made = std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = made.context(|| format!("create {}", path.display()))?;
        file.set_len(FILE_BYTES as u64).context(|| format!("size {}", path.display()))?;
        let flight = Self::from_file(&file, source).map_err(|e| e.context(path.display().to_string()))?;
        flight.words.words()[0].store(MAGIC, Ordering::Release);
        Ok(flight)
    }

    /// Maps a file made by [`Flight::create`].
    ///
    /// # Errors
    /// Naming the path; `Internal` when it is shorter than [`FILE_BYTES`].
    pub fn open(path: &Path, source: Source) -> Result<Self> {
        let opened = std::fs::OpenOptions::new().read(true).write(true).open(path);
        let file = opened.context(|| format!("open {}", path.display()))?;
        Self::from_file(&file, source).map_err(|e| e.context(path.display().to_string()))
    }

    /// Maps an open file; it may be closed afterwards.
    ///
    /// # Errors
    /// `Internal` when it is shorter than [`FILE_BYTES`].
    pub fn from_file(file: &File, source: Source) -> Result<Self> {
        let words = SharedWords::map(file, FILE_BYTES / 8).context(|| "map flight recorder")?;
        Ok(Flight { words, source })
    }

    /// Writes an entry: what was just done.
    pub fn note(&self, step: &str) {
        self.write(step, None);
    }

    /// Writes an entry for a step that was measured.
    pub fn note_timed(&self, step: &str, took: Duration) {
        self.write(step, Some(took));
    }

    fn slot(&self, ticket: u64) -> &[AtomicU64] {
        let index = usize::try_from(ticket % SLOTS).unwrap_or(0) + 1;
        &self.words.words()[index * SLOT_WORDS..(index + 1) * SLOT_WORDS]
    }

    fn write(&self, step: &str, took: Option<Duration>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut payload = [0; SLOT_WORDS - 1];
        payload[0] = nanoseconds(now);
        payload[1] = took.map_or(0, |took| nanoseconds(took).saturating_add(1));
        let text = &step.as_bytes()[..step.floor_char_boundary(TEXT_BYTES)];
        for (word, bytes) in payload[3..].iter_mut().zip(text.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(padded);
        }
        payload[2] = text.len() as u64 | u64::from(self.source == Source::Shim) << 8;
        payload[2] |= u64::from(checksum(&payload)) << 32;
        let ticket = self.words.words()[1].fetch_add(1, Ordering::Relaxed) & TICKETS;
        let slot = self.slot(ticket);
        slot[0].store(2 * ticket + 1, Ordering::Relaxed);
        fence(Ordering::Release); // the odd state is seen before any word of the new entry
        for (word, value) in slot[1..].iter().zip(payload) {
            word.store(value, Ordering::Relaxed);
        }
        slot[0].store(2 * ticket + 2, Ordering::Release);
    }

    /// The entries that are there, oldest first; at most 127.
    ///
    /// # Errors
    /// `Internal` when the file is no flight recorder of this version.
    pub fn read(&self) -> Result<Vec<Entry>> {
        if self.words.words()[0].load(Ordering::Acquire) != MAGIC {
            return Err(Error::internal("flight recorder: not one, or one of another version"));
        }
        let mut entries: Vec<Entry> = (0..SLOTS).filter_map(|index| self.entry(index)).collect();
        entries.sort_by_key(|entry| entry.ticket);
        Ok(entries)
    }

    fn entry(&self, index: u64) -> Option<Entry> {
        let slot = self.slot(index);
        let state = slot[0].load(Ordering::Acquire);
        let mut payload = [0; SLOT_WORDS - 1];
        for (value, word) in payload.iter_mut().zip(&slot[1..]) {
            *value = word.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire); // the words above were read before the state is read again
        let ticket = (state / 2).checked_sub(1)?;
        if state % 2 == 1 || slot[0].load(Ordering::Relaxed) != state || ticket % SLOTS != index {
            return None;
        }
        let meta = payload[2];
        payload[2] = meta & 0xffff_ffff;
        if u64::from(checksum(&payload)) != meta >> 32 {
            return None;
        }
        let mut text: Vec<u8> = payload[3..].iter().flat_map(|word| word.to_le_bytes()).collect();
        text.truncate(usize::try_from(meta & 0xff).unwrap_or(0));
        Some(Entry {
            ticket,
            time_ns: payload[0],
            took: payload[1].checked_sub(1).map(Duration::from_nanos),
            source: if meta & 0x100 == 0 { Source::Engine } else { Source::Shim },
            step: String::from_utf8(text).ok()?,
        })
    }
}

/// FNV-1a over the words: enough to tell a torn entry, which is all it is for.
fn checksum(payload: &[u64]) -> u32 {
    let hash = payload.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3));
    u32::try_from(hash >> 32).unwrap_or(0)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (tempfile::TempDir, Flight, Flight) {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("flight");
        let engine = Flight::create(&path, Source::Engine).expect("create");
        let shim = Flight::open(&path, Source::Shim).expect("open");
        (dir, engine, shim)
    }

    #[test]
    fn both_sides_read_what_either_wrote_in_order() {
        let (_dir, engine, shim) = pair();
        engine.note("make cgroup");
        shim.note_timed("clone pause", Duration::from_nanos(0));
        let entries = engine.read().expect("read");
        assert_eq!(entries, shim.read().expect("read"));
        let seen: Vec<_> = entries.iter().map(|e| (e.ticket, e.source, e.step.as_str(), e.took)).collect();
        let zero = Some(Duration::ZERO);
        assert_eq!(seen, [(0, Source::Engine, "make cgroup", None), (1, Source::Shim, "clone pause", zero)]);
        assert!(entries[0].time_ns > 1_700_000_000_000_000_000 && entries[0].time_ns <= entries[1].time_ns);
    }

    #[test]
    fn the_ring_keeps_the_latest_and_a_long_step_is_cut_at_a_character() {
        let (_dir, engine, _) = pair();
        for n in 0..1000 {
            engine.note(&format!("step {n}"));
        }
        engine.note(&"ä".repeat(TEXT_BYTES));
        let entries = engine.read().expect("read");
        assert_eq!(entries.len() as u64, SLOTS);
        assert_eq!(entries.last().expect("some").step, "ä".repeat(TEXT_BYTES / 2));
        assert_eq!(entries[0].step, format!("step {}", 1001 - SLOTS));
    }

    #[test]
    fn a_torn_entry_is_no_entry_and_garbage_is_an_error_or_nothing() {
        let (dir, engine, shim) = pair();
        engine.note("one");
        engine.note("two");
        shim.slot(0)[0].store(1, Ordering::Relaxed); // a writer was killed here
        shim.slot(1)[5].fetch_xor(1, Ordering::Relaxed); // two met here
        assert_eq!(engine.read().expect("read"), []);
        let mut bytes = vec![0; FILE_BYTES];
        crate::sys::random(&mut bytes);
        let path = dir.path().join("garbage");
        crate::state::record::write_bytes(&path, &bytes, 0o600, crate::state::record::Durability::Boot).expect("plant");
        let garbage = Flight::open(&path, Source::Engine).expect("open");
        assert!(garbage.read().is_err());
        garbage.words.words()[0].store(MAGIC, Ordering::Relaxed);
        assert_eq!(garbage.read().expect("read"), []);
        garbage.note("still works");
        assert_eq!(garbage.read().expect("read").len(), 1);
        crate::state::record::write_bytes(&path, &bytes[1..], 0o600, crate::state::record::Durability::Boot)
            .expect("plant");
        assert!(Flight::open(&path, Source::Engine).expect_err("short").to_string().contains("garbage"));
    }

    #[test]
    fn two_writers_at_full_speed_never_show_a_reader_a_mixed_entry() {
        let (_dir, engine, shim) = pair();
        std::thread::scope(|scope| {
            for (flight, letter) in [(&engine, "e"), (&shim, "s")] {
                scope.spawn(move || {
                    for n in 0..20_000 {
                        flight.note(&letter.repeat(1 + n % TEXT_BYTES));
                    }
                });
            }
            for _ in 0..200 {
                for entry in engine.read().expect("read") {
                    let letter = if entry.source == Source::Engine { 'e' } else { 's' };
                    assert!(entry.step.chars().all(|c| c == letter), "{entry:?}");
                }
            }
        });
        let entries = engine.read().expect("read");
        assert_eq!(entries.last().expect("some").ticket, 39_999, "no entry was lost to another's");
    }
}
