//! From the tree to a [`Volume`].

use super::decode::checked;
use super::decode_container::{field_ref, image, pull_policy, resource_ref};
use super::names;
use super::pod::{DownwardFile, DownwardValue, FileSource, FilesFrom, HostPathType, KeyToPath, Volume, VolumeSource};
use super::read::{Field, Fields};
use super::schema::{self, Object, Use};

/// Mode of files made from keys (pkg/apis/core/v1/defaults.go).
const DEFAULT_MODE: u32 = 0o644;

/// A volume of the pod; without a source it is an emptyDir, as the API has it.
pub(super) fn volume(field: &Field<'_>) -> Option<Volume> {
    let fields = field.object(&schema::VOLUME)?;
    let name = fields.need("name").and_then(|f| checked(&f, names::label)).unwrap_or_default();
    let given: Vec<_> = schema::VOLUME
        .fields
        .iter()
        .filter(|(name, used)| *name != "name" && *used == Use::Honoured)
        .filter_map(|(name, _)| Some((*name, fields.get(name)?)))
        .collect();
    if let [_, (second, field), ..] = given.as_slice() {
        field.wrong("a second source", format!("remove {second}, or make it a volume of its own"));
    }
    let source = match given.first() {
        None => VolumeSource::EmptyDir,
        Some((source, field)) => match *source {
            "emptyDir" => empty_dir(field)?,
            "hostPath" => host_path(field)?,
            "image" => image_volume(field)?,
            "configMap" => keys_volume(field, &schema::CONFIG_MAP_VOLUME, false)?,
            "secret" => keys_volume(field, &schema::SECRET_VOLUME, true)?,
            "downwardAPI" => {
                let fields = field.object(&schema::DOWNWARD_VOLUME)?;
                let from = FilesFrom::Downward(downward_files(&fields));
                files(&fields, vec![FileSource { spot: field.spot(), from }], true)
            }
            _ => projected(field)?,
        },
    };
    Some(Volume { spot: field.spot(), name, source })
}

fn empty_dir(field: &Field<'_>) -> Option<VolumeSource> {
    let fields = field.object(&schema::EMPTY_DIR)?;
    if let Some(medium) = fields.get("medium").filter(|f| f.string().is_some_and(|m| !m.is_empty())) {
        let text = medium.string()?;
        let message = if text == "Memory" || text.starts_with("HugePages") {
            "not honoured by this podwright"
        } else {
            "not a medium"
        };
        medium.wrong(message, "leave it out: the volume is then on the disk of the pod's directory");
    }
    Some(VolumeSource::EmptyDir)
}

fn host_path(field: &Field<'_>) -> Option<VolumeSource> {
    let fields = field.object(&schema::HOST_PATH)?;
    let types = &[
        ("", HostPathType::Unchecked),
        ("DirectoryOrCreate", HostPathType::DirectoryOrCreate),
        ("Directory", HostPathType::Directory),
        ("FileOrCreate", HostPathType::FileOrCreate),
        ("File", HostPathType::File),
        ("Socket", HostPathType::Socket),
        ("CharDevice", HostPathType::CharDevice),
        ("BlockDevice", HostPathType::BlockDevice),
    ];
    let path = fields.need("path").and_then(|f| checked(&f, names::host_path));
    let check = fields.get("type").and_then(|f| f.choice(types)).unwrap_or_default();
    Some(VolumeSource::HostPath { path: path?, check })
}

fn image_volume(field: &Field<'_>) -> Option<VolumeSource> {
    let fields = field.object(&schema::IMAGE_VOLUME)?;
    let reference = fields.need("reference").and_then(|f| image(&f))?;
    let pull_policy = pull_policy(fields.get("pullPolicy"), &reference.value);
    Some(VolumeSource::Image { reference, pull_policy })
}

fn files(fields: &Fields<'_>, sources: Vec<FileSource>, secret: bool) -> VolumeSource {
    let default_mode = fields.get("defaultMode").and_then(|f| mode(&f)).unwrap_or(DEFAULT_MODE);
    VolumeSource::Files { sources, default_mode, secret }
}

fn mode(field: &Field<'_>) -> Option<u32> {
    field.unsigned(0o777)
}

fn keys_volume(field: &Field<'_>, object: &'static Object, secret: bool) -> Option<VolumeSource> {
    let fields = field.object(object)?;
    let name = fields.need(if secret { "secretName" } else { "name" }).and_then(|f| checked(&f, names::subdomain))?;
    let from = FilesFrom::Keys { secret, name, optional: fields.flag("optional"), items: key_items(&fields) };
    Some(files(&fields, vec![FileSource { spot: field.spot(), from }], secret))
}

fn key_items(fields: &Fields<'_>) -> Vec<KeyToPath> {
    let item = |field: &Field<'_>| {
        let fields = field.object(&schema::KEY_TO_PATH)?;
        let key = fields.need("key").and_then(|f| checked(&f, names::key));
        let path = fields.need("path").and_then(|f| checked(&f, names::file_inside));
        Some(KeyToPath { key: key?, path: path?, mode: fields.get("mode").and_then(|f| mode(&f)) })
    };
    fields.items("items").iter().filter_map(item).collect()
}

fn downward_files(fields: &Fields<'_>) -> Vec<DownwardFile> {
    fields.items("items").iter().filter_map(downward_file).collect()
}

fn downward_file(field: &Field<'_>) -> Option<DownwardFile> {
    let fields = field.object(&schema::DOWNWARD_FILE)?;
    let path = fields.need("path").and_then(|f| checked(&f, names::file_inside));
    let value = match (fields.get("fieldRef"), fields.get("resourceFieldRef")) {
        (Some(f), None) => DownwardValue::Field(field_ref(&f, true)?),
        (None, Some(f)) => DownwardValue::Resource(resource_ref(&f, true)?),
        _ => {
            field.wrong("not exactly one source", "write one of fieldRef and resourceFieldRef");
            return None;
        }
    };
    Some(DownwardFile { path: path?, mode: fields.get("mode").and_then(|f| mode(&f)), value })
}

fn projected(field: &Field<'_>) -> Option<VolumeSource> {
    let fields = field.object(&schema::PROJECTED_VOLUME)?;
    let sources = fields.items("sources").iter().filter_map(projection).collect();
    Some(files(&fields, sources, true))
}

fn projection(field: &Field<'_>) -> Option<FileSource> {
    let fields = field.object(&schema::PROJECTION)?;
    let keys = |f: &Field<'_>, secret| {
        let fields = f.object(&schema::PROJECTED_MAP)?;
        let name = fields.need("name").and_then(|f| checked(&f, names::subdomain))?;
        Some(FilesFrom::Keys { secret, name, optional: fields.flag("optional"), items: key_items(&fields) })
    };
    let (source, from) = match (fields.get("configMap"), fields.get("secret"), fields.get("downwardAPI")) {
        (Some(f), None, None) => (f.spot(), keys(&f, false)?),
        (None, Some(f), None) => (f.spot(), keys(&f, true)?),
        (None, None, Some(f)) => {
            let fields = f.object(&schema::PROJECTED_DOWNWARD)?;
            (f.spot(), FilesFrom::Downward(downward_files(&fields)))
        }
        _ => {
            field.wrong("not exactly one source", "write one of configMap, secret and downwardAPI");
            return None;
        }
    };
    Some(FileSource { spot: source, from })
}
