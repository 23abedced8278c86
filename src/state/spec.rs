//! The OCI runtime spec of a container as it is kept and sent: JSON text. It is made once, copied into record and message as it
//! is, and parsed once, by who starts the container. As a tree of values it was a tenth of a container's start (hack/bench).

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::Arc;

/// A spec's text; a clone shares it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpecText(Arc<RawValue>);

impl SpecText {
    /// The text of a spec.
    ///
    /// # Errors
    /// `Internal`: a value that JSON cannot say, which ours never is.
    pub fn of(spec: &impl Serialize) -> Result<SpecText> {
        let text =
            serde_json::value::to_raw_value(spec).map_err(|e| Error::internal(format!("encode OCI spec: {e}")))?;
        Ok(SpecText(text.into()))
    }

    /// What it says.
    ///
    /// # Errors
    /// `InvalidArgument`, with what `T` (a [`Value`], the types of `oci_spec`) cannot hold.
    pub fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T> {
        serde_json::from_str(self.0.get()).map_err(|e| Error::invalid(format!("OCI spec: {e}")))
    }

    /// Its tree, for those who show it or look into it.
    pub fn value(&self) -> Value {
        self.parse().unwrap_or_default() // every JSON text is a Value
    }
}

impl PartialEq for SpecText {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_into_a_record_and_out_of_it_as_it_is() {
        let spec = SpecText::of(&serde_json::json!({"process": {"args": ["a\"b"]}})).expect("JSON");
        let text = serde_json::to_string(&spec).expect("JSON");
        assert_eq!(text, r#"{"process":{"args":["a\"b"]}}"#);
        assert_eq!(serde_json::from_str::<SpecText>(&text).expect("JSON"), spec);
        // As the records are read: by way of a Value.
        assert_eq!(serde_json::from_value::<SpecText>(spec.value()).expect("JSON"), spec);
    }
}
