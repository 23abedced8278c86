//! What was called, how it ended and how long that took: counted at the connection, so that no method can be forgotten.
//!
//! The names are those of the gRPC middleware that other runtimes have, so that their dashboards fit. Of a method that streams
//! answers the time is that until it began.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper bounds of a histogram's buckets, in seconds: a start is some milliseconds, a stop may be a grace period.
const BUCKETS: [f64; 15] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Methods that are told apart, at most: the interfaces have half as many, and a client can ask for any name.
const MAX_METHODS: usize = 128;
/// What the others are counted as.
const OTHER: (&str, &str) = ("other", "other");
/// Names of the codes of gRPC, by number (status codes, grpc.io).
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Of one method.
#[derive(Debug, Default)]
struct Method {
    started: u64,
    handled: BTreeMap<usize, u64>,
    /// How many took at most the bucket's bound and more than that of the one before.
    buckets: [u64; BUCKETS.len()],
    total: Duration,
}

/// All calls since the daemon started.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<BTreeMap<(String, String), Method>>);

impl Calls {
    fn all(&self) -> MutexGuard<'_, BTreeMap<(String, String), Method>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` on the method of a path, `/runtime.v1.RuntimeService/Version`.
    fn of(&self, path: &str, change: impl FnOnce(&mut Method)) {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or(OTHER);
        let key = |(service, method): (&str, &str)| (service.to_owned(), method.to_owned());
        let mut all = self.all();
        let name = key((service, method));
        let full = all.len() >= MAX_METHODS && !all.contains_key(&name);
        change(all.entry(if full { key(OTHER) } else { name }).or_default());
    }

    pub(super) fn started(&self, path: &str) {
        self.of(path, |method| method.started += 1);
    }

    /// A call has ended, with this code of gRPC.
    pub(super) fn handled(&self, path: &str, code: usize, took: Duration) {
        self.of(path, |method| {
            *method.handled.entry(code).or_default() += 1;
            method.total += took;
            if let Some(at) = BUCKETS.iter().position(|bound| took.as_secs_f64() <= *bound) {
                method.buckets[at] += 1;
            }
        });
    }

    /// In the text format of Prometheus.
    pub(super) fn write(&self, page: &mut String) {
        let all = self.all();
        let labels = |(service, method): &(String, String)| {
            format!("grpc_service=\"{}\",grpc_method=\"{}\"", escaped(service), escaped(method))
        };
        head(page, "grpc_server_started_total", "counter", "Calls that were begun");
        for (name, method) in all.iter() {
            line(page, "grpc_server_started_total", &labels(name), method.started);
        }
        head(page, "grpc_server_handled_total", "counter", "Calls that have ended, by the code of gRPC");
        for (name, method) in all.iter() {
            for (code, count) in &method.handled {
                let code = CODES.get(*code).unwrap_or(&"Unknown");
                line(page, "grpc_server_handled_total", &format!("{},grpc_code=\"{code}\"", labels(name)), count);
            }
        }
        head(page, "grpc_server_handling_seconds", "histogram", "How long calls took");
        for (name, method) in all.iter() {
            let (labels, count) = (labels(name), method.handled.values().sum::<u64>());
            let mut below = 0;
            for (bound, of_bucket) in BUCKETS.iter().zip(method.buckets) {
                below += of_bucket;
                line(page, "grpc_server_handling_seconds_bucket", &format!("{labels},le=\"{bound}\""), below);
            }
            line(page, "grpc_server_handling_seconds_bucket", &format!("{labels},le=\"+Inf\""), count);
            line(page, "grpc_server_handling_seconds_sum", &labels, method.total.as_secs_f64());
            line(page, "grpc_server_handling_seconds_count", &labels, count);
        }
    }
}

/// What stands above a metric's lines.
pub(super) fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}"); // a string takes everything
}

/// One value; `labels` without braces, and empty for none.
pub(super) fn line(page: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ =
        if labels.is_empty() { writeln!(page, "{name} {value}") } else { writeln!(page, "{name}{{{labels}}} {value}") }; // as above
}

/// A label's value: backslash, quote and newline are escaped.
pub(super) fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_by_its_code_and_in_every_bucket_above_its_time() {
        let calls = Calls::default();
        let path = "/runtime.v1.RuntimeService/Version";
        for (code, ms) in [(0, 3), (0, 40_000), (5, 1)] {
            calls.started(path);
            calls.handled(path, code, Duration::from_millis(ms));
        }
        let mut page = String::new();
        calls.write(&mut page);
        let of = "grpc_service=\"runtime.v1.RuntimeService\",grpc_method=\"Version\"";
        for expected in [
            format!("grpc_server_started_total{{{of}}} 3"),
            format!("grpc_server_handled_total{{{of},grpc_code=\"OK\"}} 2"),
            format!("grpc_server_handled_total{{{of},grpc_code=\"NotFound\"}} 1"),
            format!("grpc_server_handling_seconds_bucket{{{of},le=\"0.0025\"}} 1"),
            format!("grpc_server_handling_seconds_bucket{{{of},le=\"0.005\"}} 2"),
            format!("grpc_server_handling_seconds_bucket{{{of},le=\"30\"}} 2"),
            format!("grpc_server_handling_seconds_bucket{{{of},le=\"+Inf\"}} 3"),
            format!("grpc_server_handling_seconds_sum{{{of}}} 40.004"),
            format!("grpc_server_handling_seconds_count{{{of}}} 3"),
        ] {
            assert!(page.lines().any(|line| line == expected), "{expected} is not in\n{page}");
        }
    }

    #[test]
    fn names_that_a_client_makes_up_are_bounded() {
        let calls = Calls::default();
        (0..1000).for_each(|n| calls.started(&format!("/made.up/{n}\"\n")));
        let mut page = String::new();
        calls.write(&mut page);
        assert!(calls.all().len() <= MAX_METHODS + 1);
        assert!(page.contains("grpc_method=\"other\"} 872") && page.contains("0\\\"\\n"), "{page}");
    }
}
