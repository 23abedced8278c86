//! The documents of an image, and what is taken from them: OCI image-spec 1.1 (index, manifest, config) with Docker's media types,
//! and the `manifest.json` of `docker save`. Pure: bytes in, decisions out.
//!
//! Only the fields that are used are read, for writers disagree about the rest (`null` for an absent list, dates, histories). A document
//! that could be two things is refused (CVE-2021-41190).

use crate::error::{Error, Result};
use crate::id::Digest;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// Bytes of an index, a manifest or a config, at most (distribution's own limit for manifests).
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Layers of an image, at most: what one overlay mount of this program holds (ARCHITECTURE: 127 layers and a writable one).
pub const MAX_LAYERS: usize = 127;
/// Descriptors of an index, at most.
const MAX_MANIFESTS: usize = 1024;

/// The annotation containerd and docker write a whole name into.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// The image-spec's annotation: a tag, or with some writers a whole name.
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// An operating system and a processor, as Go spells them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub variant: String,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", ""),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// How well an image for `self` runs where `wanted` is asked for: higher is better, `None` not at all.
    ///
    /// A variant is a level that includes the lower ones (`arm/v7` runs `v6`); amd64 and arm64 count from v1 and v8, which is also what no
    /// variant means. When none is asked for, only the lowest is sure to run.
    fn rank(&self, wanted: &Platform) -> Option<u32> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        let (have, want) = (self.level()?, wanted.level()?);
        (have <= want).then_some(have)
    }

    fn level(&self) -> Option<u32> {
        match (self.variant.as_str(), self.architecture.as_str()) {
            ("", "amd64") => Some(1),
            ("", "arm64") => Some(8),
            ("", "arm") => Some(7),
            ("", _) => Some(0),
            (variant, _) => variant.strip_prefix('v')?.parse().ok(),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl std::str::FromStr for Platform {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os @ "linux", arch] | [os @ "linux", arch, ""] if !arch.is_empty() => {
                Ok(Platform { os: (*os).to_owned(), architecture: (*arch).to_owned(), variant: String::new() })
            }
            [os @ "linux", arch, variant] if !arch.is_empty() => {
                Ok(Platform { os: (*os).to_owned(), architecture: (*arch).to_owned(), variant: (*variant).to_owned() })
            }
            _ => Err(Error::invalid(format!("platform {text:?} is not linux/ARCH or linux/ARCH/VARIANT"))),
        }
    }
}

/// A pointer to a blob (image-spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The whole name an index gives the image, if it does. A bare tag names nothing.
    pub fn name(&self) -> Option<&str> {
        let reference = self.annotations.get(REF_ANNOTATION).filter(|r| r.contains(['/', ':']));
        self.annotations.get(NAME_ANNOTATION).or(reference).map(String::as_str)
    }
}

/// What a document fetched as "the image" turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// An image manifest, its layers lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    media_type: String,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Reads an index or a manifest. `media_type` is what the pointer to it said, empty when nothing pointed.
///
/// # Errors
/// `InvalidArgument`: not JSON, both or neither, a media type that differs from the pointer's, too many layers, not an image.
pub fn document(bytes: &[u8], media_type: &str) -> Result<Document> {
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|e| Error::invalid(e.to_string()))?;
    if raw.schema_version.is_some_and(|v| v != 2) {
        return Err(Error::invalid(
            "schemaVersion is not 2: images of Docker schema 1 are not supported; push it again with a current tool",
        ));
    }
    if !media_type.is_empty() && !raw.media_type.is_empty() && raw.media_type != media_type {
        return Err(Error::invalid(format!(
            "it says it is {:?}, what points to it says {media_type:?}",
            raw.media_type
        )));
    }
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), None, None) if manifests.len() <= MAX_MANIFESTS => Ok(Document::Index(manifests)),
        (Some(manifests), None, None) => {
            Err(Error::invalid(format!("{} manifests in one index, at most {MAX_MANIFESTS}", manifests.len())))
        }
        (None, Some(config), Some(layers)) => manifest(config, layers).map(Document::Manifest),
        (Some(_), _, _) => {
            Err(Error::invalid("it is an index and a manifest at once, so nobody can say what it means"))
        }
        _ => Err(Error::invalid("it is neither an index nor a manifest")),
    }
}

fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Result<Manifest> {
    if !config.media_type.is_empty() && !CONFIG_TYPES.contains(&config.media_type.as_str()) {
        return Err(Error::invalid(format!("its config is {:?}: an artifact, not an image", config.media_type)));
    }
    if layers.len() > MAX_LAYERS {
        return Err(Error::invalid(format!("{} layers, at most {MAX_LAYERS}; squash the image", layers.len())));
    }
    if let Some(layer) = layers.iter().find(|l| l.media_type.ends_with("+encrypted")) {
        return Err(Error::unsupported(format!("layer {} is encrypted", layer.digest)));
    }
    Ok(Manifest { config, layers })
}

/// The descriptors of an index that suit `wanted`, best first: an equal platform, then those that name none (their config says it).
pub fn choose<'a>(manifests: &'a [Descriptor], wanted: &Platform) -> Vec<&'a Descriptor> {
    let mut ranked: Vec<(u32, &Descriptor)> = manifests
        .iter()
        .filter_map(|d| match &d.platform {
            Some(platform) if platform.os == "unknown" => None, // an attestation of buildkit's
            Some(platform) => platform.rank(wanted).map(|rank| (rank + 1, d)),
            None => Some((0, d)),
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    ranked.into_iter().map(|(_, d)| d).collect()
}

/// The platforms an index has, for a message.
pub fn platforms(manifests: &[Descriptor]) -> String {
    let names: Vec<String> = manifests.iter().filter_map(|d| d.platform.as_ref()).map(Platform::to_string).collect();
    if names.is_empty() { "none named".to_owned() } else { names.join(", ") }
}

/// What a container takes from its image (image-spec, config.md).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Config {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Empty: `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid` and the mixed forms; empty: root.
    pub user: String,
    /// A name or number; empty: SIGTERM.
    pub stop_signal: String,
    pub labels: BTreeMap<String, String>,
    /// Paths.
    pub volumes: Vec<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
}

/// A parsed config blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    pub platform: Platform,
    pub config: Config,
    /// Lowest first.
    pub diff_ids: Vec<Digest>,
    /// RFC 3339, as written; for people.
    pub created: String,
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde_json::Value>,
}

/// Reads an image's config.
///
/// # Errors
/// `InvalidArgument`: not JSON, no rootfs, too many layers, an environment entry without `=` or a name, a NUL in a string.
pub fn config(bytes: &[u8]) -> Result<ImageConfig> {
    let raw: RawImage = serde_json::from_slice(bytes).map_err(|e| Error::invalid(e.to_string()))?;
    if raw.rootfs.diff_ids.len() > MAX_LAYERS {
        return Err(Error::invalid(format!("{} diff ids, at most {MAX_LAYERS}", raw.rootfs.diff_ids.len())));
    }
    let c = raw.config.unwrap_or_default();
    if let Some(bad) = c.env.iter().find(|e| e.split_once('=').is_none_or(|(name, _)| name.is_empty())) {
        return Err(Error::invalid(format!("environment entry {bad:?} is not NAME=value")));
    }
    let texts = || c.entrypoint.iter().chain(&c.cmd).chain(&c.env).chain([&c.working_dir, &c.user, &c.stop_signal]);
    if let Some(bad) = texts().find(|t| t.contains('\0')) {
        return Err(Error::invalid(format!("{bad:?} has a NUL in it")));
    }
    let config = Config {
        entrypoint: c.entrypoint,
        cmd: c.cmd,
        env: c.env,
        working_dir: c.working_dir,
        user: c.user,
        stop_signal: c.stop_signal,
        labels: c.labels,
        volumes: c.volumes.into_keys().collect(),
        exposed_ports: c.exposed_ports.into_keys().collect(),
    };
    Ok(ImageConfig {
        platform: raw.platform,
        config,
        diff_ids: raw.rootfs.diff_ids,
        created: raw.created.unwrap_or_default(),
    })
}

/// One image of `docker save`: paths in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    pub config: String,
    #[serde(default, deserialize_with = "or_default")]
    pub repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<String>,
}

/// Reads docker's `manifest.json`.
///
/// # Errors
/// `InvalidArgument`: not such a list, or too many layers.
pub fn docker_manifest(bytes: &[u8]) -> Result<Vec<DockerImage>> {
    let images: Vec<DockerImage> = serde_json::from_slice(bytes).map_err(|e| Error::invalid(e.to_string()))?;
    match images.iter().find(|i| i.layers.len() > MAX_LAYERS) {
        Some(image) => Err(Error::invalid(format!("{} layers, at most {MAX_LAYERS}", image.layers.len()))),
        None => Ok(images),
    }
}

/// The digest in a docker archive's path, when the path has one (`<hex>.json`, `blobs/sha256/<hex>`).
pub fn digest_in_path(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next()?;
    let blob = path.strip_prefix("blobs/sha256/").or_else(|| name.strip_suffix(".json"))?;
    format!("sha256:{blob}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(platform: Option<&str>, digit: &str) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: format!("sha256:{}", digit.repeat(64)).parse().expect("digest"),
            size: 1,
            platform: platform.map(|p| match p.split('/').collect::<Vec<_>>().as_slice() {
                [os, arch] => Platform { os: (*os).into(), architecture: (*arch).into(), variant: String::new() },
                [os, arch, v] => Platform { os: (*os).into(), architecture: (*arch).into(), variant: (*v).into() },
                _ => panic!("{p}"),
            }),
            annotations: BTreeMap::new(),
        }
    }

    fn chosen(have: &[&str], wanted: &str) -> Option<String> {
        let have: Vec<Descriptor> = have.iter().map(|p| descriptor(Some(p), "a")).collect();
        choose(&have, &wanted.parse().expect("platform"))
            .first()
            .map(|d| d.platform.clone().expect("given").to_string())
    }

    #[test]
    fn the_best_platform_that_runs_is_chosen() {
        let all = [
            "unknown/unknown",
            "windows/amd64",
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/amd64",
            "linux/amd64/v3",
        ];
        assert_eq!(chosen(&all, "linux/amd64").as_deref(), Some("linux/amd64"));
        assert_eq!(chosen(&all, "linux/amd64/v4").as_deref(), Some("linux/amd64/v3"));
        assert_eq!(chosen(&all, "linux/arm64").as_deref(), Some("linux/arm64/v8"));
        assert_eq!(chosen(&all, "linux/arm/v6").as_deref(), Some("linux/arm/v5"));
        assert_eq!(chosen(&all, "linux/s390x"), None);
        let unnamed = [descriptor(None, "b"), descriptor(Some("linux/amd64"), "a")];
        let order = choose(&unnamed, &"linux/amd64".parse().expect("platform"));
        assert_eq!(order.iter().map(|d| &d.digest.hex()[..1]).collect::<String>(), "ab");
    }

    #[test]
    fn a_document_that_is_two_things_is_refused() {
        let d = serde_json::to_string(&descriptor(None, "a")).expect("json");
        let both = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{d},"layers":[]}}"#);
        assert!(document(both.as_bytes(), "").expect_err("ambiguous").to_string().contains("at once"));
        let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"a","config":{d},"layers":[{d}]}}"#);
        assert!(matches!(document(manifest.as_bytes(), "a"), Ok(Document::Manifest(m)) if m.layers.len() == 1));
        assert!(document(manifest.as_bytes(), "b").expect_err("differs").to_string().contains("\"a\""));
        assert!(document(br#"{"schemaVersion":1}"#, "").expect_err("old").to_string().contains("schema 1"));
        let many = format!(r#"{{"config":{d},"layers":[{}]}}"#, vec![d.as_str(); 128].join(","));
        assert!(document(many.as_bytes(), "").expect_err("deep").to_string().contains("128 layers"));
    }

    #[test]
    fn nulls_are_empty_and_a_bad_environment_is_refused() {
        let text = r#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":null},
            "config":{"Entrypoint":null,"Cmd":["a"],"Labels":null,"ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}}}}"#;
        let image = config(text.as_bytes()).expect("valid");
        assert_eq!(image.config.cmd, ["a"]);
        assert_eq!((image.config.exposed_ports, image.config.volumes), (vec!["80/tcp".into()], vec!["/v".into()]));
        for env in ["", "=x", "A"] {
            let text = format!(r#"{{"rootfs":{{"diff_ids":[]}},"config":{{"Env":[{env:?}]}}}}"#);
            assert!(config(text.as_bytes()).expect_err(env).to_string().contains("NAME=value"));
        }
        assert!(config(br#"{"os":"linux"}"#).is_err());
    }

    #[test]
    fn only_a_whole_name_in_an_annotation_is_a_name() {
        let mut d = descriptor(None, "a");
        d.annotations.insert(REF_ANNOTATION.into(), "latest".into());
        assert_eq!(d.name(), None);
        d.annotations.insert(REF_ANNOTATION.into(), "a/b:c".into());
        assert_eq!(d.name(), Some("a/b:c"));
        d.annotations.insert(NAME_ANNOTATION.into(), "x.example/b:c".into());
        assert_eq!(d.name(), Some("x.example/b:c"));
    }
}
