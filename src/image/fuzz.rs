//! What holds whatever the documents of an image are; driven by [`crate::fuzz`]. The bytes of layers are in [`super::unpack`], those of
//! registries in [`super::registry`].

use super::oci::{self, Config, Document, MAX_LAYERS, Platform};
use super::reference::Reference;

/// Indexes, manifests, configs, docker's list and names: what is accepted is within the bounds, and is the same when it is written and read
/// again.
pub fn document(bytes: &[u8]) {
    match oci::document(bytes, "") {
        Ok(Document::Index(all)) => {
            let chosen = oci::choose(&all, &Platform::host());
            assert!(chosen.len() <= all.len() && oci::platforms(&all).len() <= bytes.len() + 16);
            let text = serde_json::to_vec(&serde_json::json!({"manifests": all})).expect("JSON");
            assert_eq!(oci::document(&text, "").expect("what was read before"), Document::Index(all));
        }
        Ok(Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= MAX_LAYERS);
            let again = serde_json::json!({"config": manifest.config, "layers": manifest.layers});
            let text = serde_json::to_vec(&again).expect("JSON");
            assert_eq!(oci::document(&text, "").expect("what was read before"), Document::Manifest(manifest));
        }
        Err(e) => assert!(e.to_string().len() <= 8 * bytes.len() + 256, "{e}"),
    }
    if let Ok(image) = oci::config(bytes) {
        assert!(image.diff_ids.len() <= MAX_LAYERS);
        let config = &image.config;
        assert!(config.env.iter().all(|entry| entry.find('=').is_some_and(|at| at > 0)));
        let mut texts = config.entrypoint.iter().chain(&config.cmd).chain(&config.env).chain([&config.user]);
        assert!(texts.all(|text| !text.contains('\0')));
        let text = serde_json::to_vec(config).expect("JSON");
        assert_eq!(serde_json::from_slice::<Config>(&text).expect("what was read before"), image.config);
    }
    if let Ok(images) = oci::docker_manifest(bytes) {
        for image in images {
            assert!(image.layers.len() <= MAX_LAYERS);
            image.layers.iter().chain([&image.config]).for_each(|path| drop(oci::digest_in_path(path)));
            image.repo_tags.iter().for_each(|tag| name(tag));
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        name(text);
    }
}

fn name(text: &str) {
    for read in [text.parse::<Reference>(), Reference::of_docker(text)].into_iter().flatten() {
        assert_eq!(read.to_string().parse::<Reference>().expect("a whole name"), read);
        assert!(!read.path().contains("..") && !read.path().starts_with('/') && read.repository().len() <= 512);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().expect("a platform"), platform);
    }
}
