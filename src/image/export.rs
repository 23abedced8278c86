//! `podwright save`: images as an OCI archive, which [`super::import`], skopeo and podman read; with docker's `manifest.json` in it, as `docker save`
//! writes it, for `docker load`.
//!
//! Blobs are not kept ([`super::pull`]), so that layers are written anew from their files, uncompressed: the same files, owners, times and attributes,
//! in another order than the registry's. Their digests are others, and so are the manifest's and the config's, which is the image's id.

use super::found::{blob_path, sha256};
use super::layer_tar;
use super::reference::Reference;
use super::store::session::Session;
use super::store::{ImageRecord, Store};
use crate::error::{Context, Error, Result};
use crate::id::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Bytes that are written at once.
const BUFFER: usize = 256 << 10;

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The id that it has here.
    pub id: Digest,
    /// The id that it has in the archive.
    pub saved_id: Digest,
    pub names: Vec<String>,
}

/// What is in the archive, digest by digest.
enum Blob {
    Bytes(Vec<u8>),
    /// A file without a name, and its length.
    File(File, u64),
}

/// Writes images, named as for [`Store::lookup`], as one archive. Blocks; layers pass through the store's file system.
///
/// # Errors
/// Those of [`Store::lookup`]; `ResourceExhausted` for a full disk; `Internal`, naming the file.
pub fn save(store: &Store, images: &[String], out: &mut dyn Write) -> Result<Vec<Saved>> {
    let session = store.session()?;
    let (mut blobs, mut saved) = (Vec::new(), Vec::new());
    let (mut index, mut docker) = (Vec::new(), Vec::new());
    for text in images {
        let (record, names) = store.keep(text, &session)?;
        let told = || format!("save {text}");
        let made = Made::of(store, &session, &record, &mut blobs).context(told)?;
        let image_names = wanted(text, &names);
        for name in image_names.iter().map(Some).chain(image_names.is_empty().then_some(None)) {
            index.push(made.descriptor(name));
        }
        docker.push(json!({
            "Config": blob_path(&made.config),
            "RepoTags": image_names,
            "Layers": made.layers.iter().map(blob_path).collect::<Vec<_>>(),
        }));
        saved.push(Saved { id: record.id, saved_id: made.config, names: image_names });
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": index});
    let mut archive = tar::Builder::new(BufWriter::with_capacity(BUFFER, out));
    let mut add = |path: &str, size: u64, from: &mut dyn io::Read| {
        let mut header = layer_tar::header_of(size, 0o644)?;
        archive.append_data(&mut header, path, from).context(|| format!("write {path}"))
    };
    let documents = [
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json", text_of(&index)?),
        ("manifest.json", text_of(&Value::Array(docker))?),
    ];
    for (path, bytes) in &documents {
        add(path, bytes.len() as u64, &mut bytes.as_slice())?;
    }
    for (digest, blob) in &mut blobs {
        match blob {
            Blob::Bytes(bytes) => add(&blob_path(digest), bytes.len() as u64, &mut bytes.as_slice())?,
            Blob::File(file, size) => {
                file.rewind().context(|| "rewind a layer")?;
                add(&blob_path(digest), *size, file)?;
            }
        }
    }
    let mut out = archive.into_inner().context(|| "write the archive")?;
    out.flush().context(|| "write the archive")?;
    Ok(saved)
}

/// The names that go along: the one that was asked for, or of an id all.
fn wanted(text: &str, names: &[String]) -> Vec<String> {
    let asked = text.parse::<Reference>().ok().map(|name| name.key());
    match names.iter().find(|name| Some(*name) == asked.as_ref()) {
        Some(name) => vec![name.clone()],
        None => names.to_vec(),
    }
}

fn text_of(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::internal(format!("encode a document: {e}")))
}

/// One image, its blobs among those of the archive.
struct Made {
    manifest: Digest,
    manifest_bytes: usize,
    config: Digest,
    layers: Vec<Digest>,
    platform: Value,
}

impl Made {
    fn of(store: &Store, session: &Session<'_>, image: &ImageRecord, blobs: &mut Vec<(Digest, Blob)>) -> Result<Made> {
        let mut layers = Vec::new();
        for layer in &image.layers {
            layers.push(add_layer(store, session, layer, blobs)?);
        }
        let (digests, described): (Vec<Digest>, Vec<Value>) = layers
            .into_iter()
            .map(|(digest, size)| (digest.clone(), json!({"mediaType": LAYER, "digest": digest, "size": size})))
            .unzip();
        let gone = || Error::internal(format!("the config of image {} is not there", image.id));
        let config = store.document(&image.id).ok_or_else(gone)?;
        let mut config: Value =
            serde_json::from_slice(&config).map_err(|e| Error::internal(format!("its config: {e}")))?;
        config["rootfs"] = json!({"type": "layers", "diff_ids": digests});
        let config = text_of(&config)?;
        let (config_digest, config_bytes) = (sha256(&config), config.len());
        let manifest = text_of(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": config_bytes},
            "layers": described,
        }))?;
        let made = Made {
            manifest: sha256(&manifest),
            manifest_bytes: manifest.len(),
            config: config_digest,
            layers: digests,
            platform: json!({"os": image.platform.os, "architecture": image.platform.architecture}),
        };
        for (digest, bytes) in [(&made.config, config), (&made.manifest, manifest)] {
            if blobs.iter().all(|(known, _)| known != digest) {
                blobs.push((digest.clone(), Blob::Bytes(bytes)));
            }
        }
        Ok(made)
    }

    fn descriptor(&self, name: Option<&String>) -> Value {
        let mut descriptor = json!({
            "mediaType": MANIFEST, "digest": self.manifest, "size": self.manifest_bytes, "platform": self.platform,
        });
        if let Some(name) = name {
            let tag = name.rsplit(':').next().unwrap_or_default();
            let annotations = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
            descriptor["annotations"] = annotations;
        }
        descriptor
    }
}

/// Writes a layer into a file of the session; its digest and length.
fn add_layer(
    store: &Store,
    session: &Session<'_>,
    layer: &super::store::LayerRecord,
    blobs: &mut Vec<(Digest, Blob)>,
) -> Result<(Digest, u64)> {
    let fs = store.layer(&layer.diff_id).join("fs");
    let root = File::open(&fs).context(|| format!("open {}", fs.display()))?;
    let path = session.file(layer.diff_id.hex())?;
    let mut open = std::fs::OpenOptions::new();
    let file = open.read(true).write(true).create(true).truncate(true).open(&path);
    let file = file.context(|| format!("create {}", path.display()))?;
    let mut out = Hashed { out: BufWriter::with_capacity(BUFFER, file), hash: Sha256::new(), bytes: 0 };
    layer_tar::write(&root, layer.opaque_root, &mut out).context(|| format!("layer {}", layer.diff_id))?;
    let file = out.out.into_inner().map_err(|e| Error::internal(format!("write {}: {}", path.display(), e.error())))?;
    let (digest, bytes) = (Digest::from_sha256(&out.hash.finalize().into()), out.bytes);
    std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?; // it stays for as long as it is open
    if blobs.iter().all(|(known, _)| *known != digest) {
        blobs.push((digest.clone(), Blob::File(file, bytes)));
    }
    Ok((digest, bytes))
}

struct Hashed<W> {
    out: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
