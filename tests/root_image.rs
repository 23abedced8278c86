//! The image store on a real kernel: what is imported, what is refused, and that nothing is left behind.

#[path = "fixtures/evil_tar.rs"]
mod evil_tar;

use evil_tar::{Image as Made, Layer, Tar, archive, docker, gzip, layout, sha256, write_dir, zstd};
use podwright::error::Kind;
use podwright::image::gc::{InUse, Prune};
use podwright::image::import::{Imported, Request, import};
use podwright::image::oci::Platform;
use podwright::image::store::Store;
use podwright::image::store::session::Silent;
use podwright::image::unpack::spawn::Program;
use podwright::state::paths::Paths;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

const PODWRIGHT: &str = env!("CARGO_BIN_EXE_podwright");

/// A store of its own, and a place for archives.
struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

fn paths(dir: &Path) -> Paths {
    Paths { root: dir.join("root"), state: dir.join("state"), instance: None }
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_with(&paths(dir.path()), Program::at(PODWRIGHT)).unwrap();
        Place { dir, store }
    }

    fn put(&self, files: &[(String, Vec<u8>)]) -> PathBuf {
        let to = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        write_dir(files, &to);
        to
    }

    fn put_file(&self, bytes: &[u8]) -> PathBuf {
        let mut file = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        file.write_all(bytes).unwrap();
        file.into_temp_path().keep().unwrap()
    }

    fn import(&self, path: &Path) -> podwright::error::Result<Vec<Imported>> {
        let request = Request { path: path.to_owned(), name: None, platform: Platform::host() };
        import(&self.store, &request, &Silent)
    }

    /// Imports one layer as an image and gives its directory.
    fn unpack(&self, layer: Layer) -> PathBuf {
        let made = Made::new("t.example/a:1", &[layer]);
        self.import(&self.put(&layout(&[made]))).unwrap();
        self.store.lookup("t.example/a:1").unwrap().layers[0].clone()
    }

    /// What the store has, but for the lock that stays.
    fn snapshot(&self) -> BTreeMap<PathBuf, u64> {
        let mut all = BTreeMap::new();
        let mut todo = vec![self.dir.path().join("root")];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                if metadata.is_dir() {
                    todo.push(entry.path());
                }
                if entry.file_name() != "lock" {
                    all.insert(entry.path(), if metadata.is_dir() { 0 } else { metadata.len() });
                }
            }
        }
        all
    }

    /// Refused with these words, and nothing is left.
    fn refuses(&self, path: &Path, kind: Kind, words: &[&str]) {
        let before = self.snapshot();
        let e = self.import(path).expect_err(&words.join(" "));
        for word in words {
            assert!(e.to_string().contains(word), "{word:?} is not in: {e}");
        }
        assert_eq!(e.kind(), kind, "{e}");
        assert_eq!(self.snapshot(), before, "{e}");
    }

    fn refuses_layer(&self, tar: &Tar, kind: Kind, words: &[&str]) {
        self.refuses(&self.put(&layout(&[Made::new("t.example/a:1", &[Layer::gzip(tar)])])), kind, words);
    }
}

fn nothing() -> podwright::error::Result<InUse> {
    Ok(InUse::default())
}

fn simple() -> Tar {
    Tar::new().dir("bin", 0o755).file_mode("bin/sh", 0o755, b"#!")
}

#[test]
fn a_layout_and_a_docker_archive_are_imported_in_every_compression() {
    let place = Place::new();
    let layers =
        [Layer::plain(&simple()), Layer::gzip(&Tar::new().file("a", b"1")), Layer::zstd(&Tar::new().file("b", b"2"))];
    let made = Made::new("t.example/a:1", &layers);
    let files = layout(std::slice::from_ref(&made));
    let docker = docker(&[("t.example/d:1", &made), ("t.example/e:2", &made)]);
    let archives = [
        place.put(&files),
        place.put_file(&archive(&files)),
        place.put_file(&gzip(&archive(&files))),
        place.put_file(&zstd(&archive(&files))),
        place.put(&docker),
        place.put_file(&gzip(&archive(&docker))),
    ];
    for path in archives {
        let imported = place.import(&path).unwrap();
        assert_eq!(imported[0].id.to_string(), made.id(), "{}", path.display());
        let names: Vec<String> = imported.iter().flat_map(|i| &i.names).map(ToString::to_string).collect();
        for name in names {
            let image = place.store.lookup(&name).unwrap();
            assert_eq!((image.layers.len(), image.config.cmd[0].as_str()), (3, "/bin/sh"));
            assert_eq!(std::fs::read(image.layers[2].join("b")).unwrap(), b"2");
        }
        place.store.remove(&made.id(), &nothing).unwrap();
        assert!(place.store.list().unwrap().is_empty());
        assert_eq!(place.store.usage().unwrap().bytes, 0);
    }
}
