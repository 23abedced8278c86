//! The records of pods: those that cannot be read.

use super::{Finding, Verdict};
use crate::config::Settings;
use crate::engine::sweep;
use crate::id::PodId;
use crate::state::paths::Paths;
use crate::state::record::{self, PodRecord};

const AREA: &str = "records";

pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let why = "a pod whose record cannot be read is not ready, and can only be stopped and removed";
    let daemon = Paths { root: settings.root.clone(), state: settings.state.clone(), instance: None };
    let runs = sweep::instances(&daemon).unwrap_or_default(); // without the directory there are none
    let all = runs.into_iter().map(|(instance, _)| daemon.of_instance(instance)).chain([daemon.clone()]);
    let (mut readable, mut findings) = (0, Vec::new());
    for paths in all {
        let names = std::fs::read_dir(paths.pods()).into_iter().flatten().flatten();
        for id in names.filter_map(|entry| entry.file_name().to_string_lossy().parse::<PodId>().ok()) {
            match record::read::<PodRecord>(&paths.pod_record(&id)) {
                Ok(_) => readable += 1,
                Err(e) => {
                    let remedy = format!("podwright rm -f {}, or the podwright that wrote it", id.short());
                    findings.push(Finding::ok(AREA, id.short(), e.to_string(), why).but(Verdict::Warn, remedy));
                }
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, "pods", format!("{readable}, all readable"), why));
    }
    findings
}
