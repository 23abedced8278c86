//! How a command or an attachment ended, as its client is told on the error stream: text, or from `v4` on a `metav1.Status` (k8s.io/cri-streaming,
//! exec.go and status.go). Pure.

use super::negotiate::Version;
use crate::error::{Error, Result};
use serde_json::json;

/// What goes on the error stream; empty for nothing. `result`: the exit code (128 + n after signal n), or what kept it from having one.
pub fn message(version: Version, doing: &str, result: &Result<i32>) -> String {
    let failed = |what: String| format!("Internal error occurred: {doing}: {what}");
    if version < Version::V4 {
        return match result {
            Ok(0) => String::new(),
            Ok(code) => failed(format!("command terminated with non-zero exit code: {code}")),
            Err(e) => failed(e.to_string()),
        };
    }
    let status = match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: {code}"),
            // The key of a cause's type is `reason`.
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(e) => internal(&failed(e.to_string())),
    };
    status.to_string()
}

fn internal(message: &str) -> serde_json::Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "reason": "InternalError",
        "message": message,
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

/// The error of a port that could not be forwarded, as Kubernetes' own server words it.
pub fn forward(port: u16, pod: &str, error: &Error) -> String {
    format!("error forwarding port {port} to pod {pod}, uid : {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_exit_code_where_clients_look_for_it() {
        let parsed =
            |result| serde_json::from_str::<serde_json::Value>(&message(Version::V4, "exec", &result)).expect("JSON");
        assert_eq!(parsed(Ok(0))["status"], "Success");
        let failed = parsed(Ok(137));
        assert_eq!((&failed["status"], &failed["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "137"}));
        let error = parsed(Err(Error::invalid("no such file")));
        assert_eq!((&error["reason"], &error["code"]), (&json!("InternalError"), &json!(500)));
        assert_eq!(error["message"], "Internal error occurred: exec: no such file");
    }

    #[test]
    fn before_v4_there_is_text_and_none_when_all_went_well() {
        assert_eq!(message(Version::V3, "exec", &Ok(0)), "");
        assert!(message(Version::V1, "exec", &Ok(7)).ends_with("exit code: 7"));
    }
}
