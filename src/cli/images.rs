//! `podwright images`: the table of images.

use super::output::{self, Format};
use super::{Session, units};
use crate::engine::in_use;
use crate::error::{Error, Result};
use crate::image::reference::Reference;
use crate::image::store::Image;
use crate::image::store::damaged::Damaged;
use serde::Serialize;

const EXAMPLES: &str = "\
Examples:
  podwright images
  podwright images -q                       only ids
  podwright images nginx -o json";

/// Lists images
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ImagesArgs {
    /// Only images of these names (whatever the tag, if none is given) or ids
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl ImagesArgs {
    /// What `podwright get images` asks for.
    pub(super) fn of(targets: Vec<String>) -> Self {
        ImagesArgs { images: targets, quiet: false, no_trunc: false }
    }
}

/// `-o json`: `{"images": [...]}`.
#[derive(Serialize)]
struct Document {
    images: Vec<Entry>,
    /// Images that cannot be used, for their record cannot be read.
    damaged: Vec<DamagedEntry>,
}

#[derive(Serialize)]
struct DamagedEntry {
    id: String,
    names: Vec<String>,
    why: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    id: String,
    /// `repository:tag`.
    names: Vec<String>,
    /// `repository@digest`.
    digests: Vec<String>,
    platform: String,
    /// As the image says, RFC 3339; may be empty.
    created: String,
    /// What its layers take on disk, those it shares with others included.
    unpacked_bytes: u64,
    compressed_bytes: u64,
    /// `prune` keeps it.
    pinned: bool,
    /// A container was made from it.
    in_use: bool,
}

pub(super) fn run(args: &ImagesArgs, session: &Session) -> Result<u8> {
    super::require_root("images")?;
    let store = session.store()?;
    let used = in_use::in_use(&session.paths())?;
    for why in &used.unknown {
        output::note(&format!("podwright: what a pod uses is not known: {why}"));
    }
    let in_use = used.images;
    let mut images = store.list()?;
    let mut damaged = store.damaged()?;
    if args.images.is_empty() {
        report(&damaged);
    } else {
        damaged.clear(); // whoever names one is told by the lookup
    }
    for wanted in &args.images {
        if !images.iter().any(|image| is_meant(image, wanted)) {
            // The store's own words for it, with names that are near.
            return Err(store.lookup(wanted).err().unwrap_or_else(|| Error::not_found(format!("no image {wanted:?}"))));
        }
    }
    images.retain(|image| args.images.is_empty() || args.images.iter().any(|wanted| is_meant(image, wanted)));
    let id = |image: &Image| if args.no_trunc { image.id.to_string() } else { image.id.hex()[..12].to_owned() };
    if args.quiet {
        let lines: String = images.iter().map(|image| format!("{}\n", id(image))).collect();
        output::print(&lines)?;
        return Ok(0);
    }
    let entry = |image: Image| Entry {
        in_use: in_use.contains(&image.id),
        id: image.id.to_string(),
        names: image.names,
        digests: image.digests,
        platform: image.platform.to_string(),
        created: image.created,
        unpacked_bytes: image.unpacked_bytes,
        compressed_bytes: image.compressed_bytes,
        pinned: image.pinned,
    };
    match session.format {
        Format::Json => {
            let damaged =
                damaged.into_iter().map(|d| DamagedEntry { id: d.id.to_string(), names: d.names, why: d.why });
            let images = images.into_iter().map(entry).collect();
            output::print_json(&Document { images, damaged: damaged.collect() })?;
        }
        Format::Table if images.is_empty() => {
            output::note("no images; `podwright pull` or `podwright import FILE` brings one")
        }
        Format::Table => {
            let rows = images.iter().flat_map(|image| {
                let used = if in_use.contains(&image.id) { "yes" } else { "no" };
                names(image).into_iter().map(move |(repository, tag)| {
                    [
                        repository,
                        tag,
                        id(image),
                        created(&image.created),
                        units::size(image.unpacked_bytes),
                        used.to_owned(),
                    ]
                })
            });
            output::print(&output::table(["IMAGE", "TAG", "IMAGE ID", "CREATED", "SIZE", "IN USE"], sorted(rows)))?;
        }
    }
    Ok(0)
}

/// Says which images are damaged, why, and what to do.
pub(super) fn report(damaged: &[Damaged]) {
    for Damaged { id, names, why } in damaged {
        let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        output::note(&format!("podwright: image {}{names} is damaged: {why}", &id.hex()[..12]));
    }
}

fn sorted<const N: usize>(rows: impl Iterator<Item = [String; N]>) -> Vec<[String; N]> {
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows
}

/// Repository and tag, a row each.
fn names(image: &Image) -> Vec<(String, String)> {
    let none = || "<none>".to_owned();
    let split = |name: &String| match name.rsplit_once(':') {
        Some((repository, tag)) => (repository.to_owned(), tag.to_owned()),
        None => (name.clone(), none()),
    };
    if !image.names.is_empty() {
        return image.names.iter().map(split).collect();
    }
    let repository = image.digests.first().and_then(|d| d.split('@').next());
    vec![(repository.map_or_else(none, str::to_owned), none())]
}

/// How long ago, of what an image says of itself.
fn created(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        // Reproducible builds say 1970, or 1 January 1980 where zip files are made.
        Ok(time) if time.as_second() > 0 => {
            i64::try_from(time.as_nanosecond()).map(units::age_of).unwrap_or_else(|_| "<unknown>".to_owned())
        }
        _ => "<unknown>".to_owned(),
    }
}

/// Whether a user who wrote `wanted` means this image: a name, a name without its tag, or the first digits of its id.
fn is_meant(image: &Image, wanted: &str) -> bool {
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    if digits.len() >= 4 && image.id.hex().starts_with(digits) {
        return true;
    }
    let Ok(reference) = wanted.parse::<Reference>() else { return false };
    let any_tag = !wanted.contains('@') && !wanted.rsplit('/').next().unwrap_or_default().contains(':');
    if any_tag {
        return names(image).iter().any(|(repository, _)| *repository == reference.repository());
    }
    image.names.contains(&reference.key()) || image.digests.contains(&reference.key())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(names: &[&str]) -> Image {
        Image {
            id: format!("sha256:0123456789ab{}", "0".repeat(52)).parse().expect("valid"),
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            digests: vec![],
            platform: crate::image::oci::Platform::host(),
            created: String::new(),
            config: crate::image::oci::Config::default(),
            layers: vec![],
            unpacked_bytes: 0,
            compressed_bytes: 0,
            pinned: false,
        }
    }

    #[test]
    fn an_image_is_meant_by_name_by_repository_and_by_its_first_digits() {
        let nginx = image(&["docker.io/library/nginx:1.27"]);
        for wanted in ["nginx", "nginx:1.27", "docker.io/library/nginx", "0123", "sha256:0123456789ab"] {
            assert!(is_meant(&nginx, wanted), "{wanted}");
        }
        for wanted in ["nginx:1.26", "ngin", "012", "sha256:1", "NGINX"] {
            assert!(!is_meant(&nginx, wanted), "{wanted}");
        }
    }

    #[test]
    fn an_image_without_a_name_has_a_row_all_the_same() {
        assert_eq!(names(&image(&[])), [("<none>".to_owned(), "<none>".to_owned())]);
        let port = image(&["localhost:5000/a:b"]);
        assert_eq!(names(&port), [("localhost:5000/a".to_owned(), "b".to_owned())]);
    }

    #[test]
    fn an_image_that_says_1970_or_nothing_has_no_age() {
        assert_eq!((created(""), created("1970-01-01T00:00:00Z")), ("<unknown>".to_owned(), "<unknown>".to_owned()));
        assert!(created("2020-01-02T03:04:05.123456789Z").contains('y'));
    }
}
