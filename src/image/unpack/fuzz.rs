//! What holds whatever a layer's blob is; driven by [`crate::fuzz`]. Without the worker's confinement: what is tried is that nothing needs it.

use super::stream::{Blob, Compression, Source, Stream, compression};
use super::tree::Tree;
use super::{MAX_ENTRIES, spawn};
use crate::error::Result;
use crate::image::layer_tar;
use crate::image::tarball::{Entry, Tarball};
use crate::sys::{is_root, memfd};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a blob: what decompresses a thousandfold is still quick.
const MAX_INPUT: usize = 64 << 10;
/// Bytes that its files may have, holes included, to be written out again as a tar stream.
const MAX_WRITTEN: u64 = 1 << 20;

/// Reading is bounded and gives sane entries; extracting changes nothing outside of the layer's directory, and what was extracted is the
/// same after it went through a tar stream of ours.
pub fn layer(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MAX_INPUT)];
    let read = entries(bytes);
    // Making files of any owner and device nodes is root's; a compressed one is the same again, and large.
    if let (Ok(entries), true, Ok(Compression::None)) = (&read, is_root(), compression(bytes)) {
        let scratch = Scratch::new();
        let Ok(opaque) = extract(bytes, &scratch.layer) else { return scratch.check() };
        scratch.check();
        if entries.iter().map(|entry| entry.size).sum::<u64>() > MAX_WRITTEN {
            return;
        }
        let once = tar(&scratch.layer, opaque);
        let again = Scratch::new();
        let opaque = extract(&once, &again.layer).expect("a tar stream of ours");
        again.check();
        assert!(tar(&again.layer, opaque) == once, "another tree after a tar stream of ours");
    }
}

fn stream(bytes: &[u8]) -> io::Result<Stream> {
    let mut file = memfd::scratch("layer")?;
    file.write_all(bytes)?;
    file.rewind()?;
    Stream::new(Blob::new(Source::At { file, offset: 0 }, Some(bytes.len() as u64)))
}

fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    let wrong = super::worker::stream_error;
    let mut tarball = Tarball::new(stream(bytes).map_err(wrong)?, MAX_ENTRIES);
    let mut entries = Vec::new();
    while let Some(entry) = tarball.next_entry()? {
        let names = [&entry.path, &entry.link];
        assert!(names.iter().all(|name| name.len() <= 4095 && !name.contains(&0)), "{entry:?}");
        assert!(
            entry.mode <= 0o7777 && entry.uid != u32::MAX && entry.gid != u32::MAX && entry.mtime.1 < 1_000_000_000
        );
        let pieces = entry.pieces.iter().flatten();
        let end = pieces.fold(0, |end, piece| {
            assert!(piece.offset >= end, "{entry:?}");
            piece.offset + piece.len
        });
        assert!(end <= entry.size, "{entry:?}");
        assert_eq!(entry.ordinal, entries.len() as u64 + 1);
        io::copy(&mut tarball, &mut io::sink()).map_err(wrong)?;
        assert_eq!(tarball.remaining(), 0);
        entries.push(entry);
    }
    let (diff_id, blob, len) = tarball.into_inner().finish().map_err(wrong)?;
    assert_eq!(len, bytes.len() as u64);
    assert!(compression(bytes) != Ok(Compression::None) || diff_id == blob);
    Ok(entries)
}

/// As the worker and its parent do.
fn extract(bytes: &[u8], to: &Path) -> Result<bool> {
    let root = File::open(to).expect("just made");
    let mut tree = Tree::new(root.try_clone().expect("a descriptor").into());
    let mut tarball = Tarball::new(stream(bytes).map_err(super::worker::stream_error)?, MAX_ENTRIES);
    while let Some(entry) = tarball.next_entry()? {
        tree.apply(&entry, &mut tarball)?;
    }
    let opaque = tree.finish()?;
    for path in opaque.iter().filter(|path| !path.is_empty()) {
        spawn::mark_opaque(&root, path)?;
    }
    Ok(opaque.contains(&Vec::new()))
}

fn tar(root: &Path, opaque: bool) -> Vec<u8> {
    let mut out = Vec::new();
    layer_tar::write(&File::open(root).expect("just filled"), opaque, &mut out).expect("a tree of ours");
    out
}

/// A directory that only root reads, with that of a layer in it and a file that nobody may touch.
struct Scratch {
    all: PathBuf,
    layer: PathBuf,
    canary: fs::Metadata,
}

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let all = std::env::temp_dir().join(format!("podwright-fuzz-{}-{number}", std::process::id()));
        let make = |path: &Path| DirBuilder::new().mode(0o700).create(path).expect("a new directory");
        make(&all);
        let layer = all.join("layer");
        make(&layer);
        let canary = all.join("canary");
        fs::OpenOptions::new().write(true).create_new(true).open(&canary).expect("a new file");
        let canary = fs::metadata(&canary).expect("it is there");
        Scratch { all, layer, canary }
    }

    fn check(&self) {
        let mut names: Vec<_> =
            fs::read_dir(&self.all).expect("it is there").map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["canary", "layer"]);
        let now = fs::metadata(self.all.join("canary")).expect("it is there");
        let of = |about: &fs::Metadata| (about.ino(), about.nlink(), about.mode(), about.uid(), about.ctime_nsec());
        assert_eq!(of(&now), of(&self.canary));
        let mut content = Vec::new();
        let read = File::open(self.all.join("canary")).and_then(|mut file| file.read_to_end(&mut content));
        assert_eq!(read.expect("it is ours"), 0);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.all); // a failed assertion is what matters
    }
}
