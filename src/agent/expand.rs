//! `$(VAR)`, and the environment of a container in the kubelet's order (pkg/kubelet/kubelet_pods.go, third_party expansion).

use super::objects::Objects;
use super::pod::{Container, EnvValue, FieldRef, Pod, ResourceRef};
use super::problem::{ManifestError, Spot};
use super::resources::NodeResources;
use std::collections::BTreeMap;

/// Bytes of one expanded text: more does not fit into a process (execve(2), MAX_ARG_STRLEN).
const MAX_EXPANDED: usize = 128 << 10;

/// What stands for a pod's address until it has one. No name or number can be it.
pub const NO_ADDRESS_YET: &str = "<the pod's address>";

/// What is known only when the pod starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    pub node_name: String,
    /// The pod's uid.
    pub uid: String,
    pub host_ips: Vec<String>,
    /// `None` before the sandbox was made: a placeholder stands for them. Empty: the pod has none and who asks is refused.
    pub pod_ips: Option<Vec<String>>,
    pub node: NodeResources,
}

/// Expands `$(NAME)`: unknown names stay as they are, `$$` is `$`, nothing is scanned twice. `None`: the result is too long.
pub fn expand(text: &str, value_of: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some(index) = rest.find('$') {
        result.push_str(&rest[..index]);
        let after = &rest[index + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            result.push('$');
            rest = escaped;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match value_of(name) {
                Some(value) => result.push_str(&value),
                None => result.push_str(&rest[index..index + name.len() + 3]),
            }
            rest = tail;
        } else {
            result.push('$');
            rest = after;
        }
        if result.len() > MAX_EXPANDED {
            return None;
        }
    }
    result.push_str(rest);
    (result.len() <= MAX_EXPANDED).then_some(result)
}

/// Where values of a container come from.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub pod: &'a Pod,
    pub objects: &'a Objects,
    pub facts: &'a Facts,
}

/// Variables in the order first set, and their final values.
pub type Environment = Vec<(String, String)>;

impl Scope<'_> {
    /// A problem at `spot`, found when the pod is planned.
    pub(super) fn wrong(&self, spot: &Spot, message: impl Into<String>, remedy: impl Into<String>) -> ManifestError {
        ManifestError::new(self.pod.file.clone(), spot, None, message, remedy)
    }

    /// The environment of `container`: envFrom in order, then env in order, a later one wins. A value sees the variables before
    /// it.
    ///
    /// # Errors
    /// A reference that cannot be resolved, a value that is not text or becomes too long.
    pub fn environment(&self, container: &Container) -> Result<Environment, ManifestError> {
        let mut order: Vec<String> = Vec::new();
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        let mut set = |name: &str, value: String, values: &mut BTreeMap<String, String>| {
            if values.insert(name.to_owned(), value).is_none() {
                order.push(name.to_owned());
            }
        };
        for from in &container.env_from {
            let found = self.objects.find(from.secret, &self.pod.metadata.namespace, &from.name);
            for (key, bytes) in found.iter().flat_map(|s| &s.text) {
                let value = self.text(bytes, key, &from.spot)?;
                set(&format!("{}{key}", from.prefix), value, &mut values);
            }
        }
        for env in &container.env {
            let value = match &env.value {
                EnvValue::Literal(text) => {
                    Some(expand(text, |name| values.get(name).cloned()).ok_or_else(|| self.too_long(&env.spot))?)
                }
                EnvValue::ConfigMap(r) => self.key(false, &r.name, &r.key, &env.spot)?,
                EnvValue::Secret(r) => self.key(true, &r.name, &r.key, &env.spot)?,
                EnvValue::Field(reference) => Some(self.field(reference, &env.spot)?),
                EnvValue::Resource(reference) => Some(self.resource(reference, container)),
            };
            if let Some(value) = value {
                set(&env.name, value, &mut values);
            }
        }
        Ok(order.into_iter().map(|name| (name.clone(), values.remove(&name).unwrap_or_default())).collect())
    }

    /// `texts` (a command, arguments) expanded with the whole environment.
    ///
    /// # Errors
    /// One that becomes too long.
    pub fn words(&self, texts: &[String], env: &Environment, spot: &Spot) -> Result<Vec<String>, ManifestError> {
        texts.iter().map(|t| expand(t, |name| lookup(env, name)).ok_or_else(|| self.too_long(spot))).collect()
    }

    /// subPathExpr: here a variable that is missing or empty is an error.
    ///
    /// # Errors
    /// That, or a path that leaves the volume.
    pub fn sub_path(&self, text: &str, env: &Environment, spot: &Spot) -> Result<String, ManifestError> {
        let missing = std::cell::RefCell::new(None);
        let value_of = |name: &str| {
            let value = lookup(env, name).filter(|v| !v.is_empty());
            if value.is_none() {
                missing.replace(Some(name.to_owned()));
            }
            value
        };
        let path = expand(text, value_of).ok_or_else(|| self.too_long(spot))?;
        if let Some(name) = missing.into_inner() {
            return Err(self.wrong(spot, format!("variable {name} is not set"), "set it in env"));
        }
        super::names::inside(&path)
            .map_err(|(message, remedy)| self.wrong(spot, format!("{path:?}: {message}"), remedy))?;
        Ok(path)
    }

    fn too_long(&self, spot: &Spot) -> ManifestError {
        self.wrong(spot, format!("more than {MAX_EXPANDED} bytes when expanded"), "no process can be given more")
    }

    fn text(&self, bytes: &[u8], key: &str, spot: &Spot) -> Result<String, ManifestError> {
        let text = String::from_utf8(bytes.to_vec()).ok().filter(|t| !t.contains('\0'));
        text.ok_or_else(|| {
            self.wrong(spot, format!("the value of key {key} is not text"), "mount it as a volume, a variable is text")
        })
    }

    fn key(&self, secret: bool, name: &str, key: &str, spot: &Spot) -> Result<Option<String>, ManifestError> {
        let source = self.objects.find(secret, &self.pod.metadata.namespace, name);
        // Absent means optional here: anything else was refused when the file was read.
        source.and_then(|s| s.text.get(key)).map(|bytes| self.text(bytes, key, spot)).transpose()
    }

    /// A field of the pod or its status.
    ///
    /// # Errors
    /// An address that the pod does not have.
    pub fn field(&self, reference: &FieldRef, spot: &Spot) -> Result<String, ManifestError> {
        let metadata = &self.pod.metadata;
        let pod_ips = || match &self.facts.pod_ips {
            _ if self.pod.spec.host_network => Ok(self.facts.host_ips.clone()),
            None => Ok(vec![NO_ADDRESS_YET.to_owned()]),
            Some(ips) if ips.is_empty() => Err(self.wrong(
                spot,
                "the pod has no address: network.mode is none",
                "use hostNetwork: true, or network.mode bridge",
            )),
            Some(ips) => Ok(ips.clone()),
        };
        let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
        Ok(match reference {
            FieldRef::Name => metadata.name.clone(),
            FieldRef::Namespace => metadata.namespace.clone(),
            FieldRef::Uid => self.facts.uid.clone(),
            FieldRef::Label(key) => metadata.labels.get(key).cloned().unwrap_or_default(),
            FieldRef::Annotation(key) => metadata.annotations.get(key).cloned().unwrap_or_default(),
            FieldRef::Labels => lines(&metadata.labels),
            FieldRef::Annotations => lines(&metadata.annotations),
            FieldRef::NodeName => self.facts.node_name.clone(),
            FieldRef::ServiceAccountName => self.pod.spec.service_account.clone(),
            FieldRef::HostIp => first(&self.facts.host_ips),
            FieldRef::HostIps => self.facts.host_ips.join(","),
            FieldRef::PodIp => first(&pod_ips()?),
            FieldRef::PodIps => pod_ips()?.join(","),
        })
    }

    /// A request or limit over its divisor, rounded up. A limit that is not set is what the node has, a request 0.
    pub fn resource(&self, reference: &ResourceRef, own: &Container) -> String {
        let spec = &self.pod.spec;
        let named = |name: &String| spec.init_containers.iter().chain(&spec.containers).find(|c| c.name == *name);
        let container = reference.container.as_ref().and_then(named).unwrap_or(own);
        let list = if reference.limit { &container.limits } else { &container.requests };
        let set = list.get(&reference.resource).map(|q| q.value).filter(|q| *q > super::quantity::Quantity::ZERO);
        let quantity = set.or_else(|| {
            let text = match reference.resource.as_str() {
                "cpu" if reference.limit => format!("{}m", self.facts.node.cpu_millis),
                "memory" if reference.limit => self.facts.node.memory_bytes.to_string(),
                _ => return None,
            };
            text.parse().ok()
        });
        quantity.unwrap_or_default().divided_by(reference.divisor).to_string()
    }
}

fn lookup(env: &Environment, name: &str) -> Option<String> {
    env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
}

/// `key="value"` a line, sorted, the value quoted as Go's %q does for what stands in labels.
fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(k, v)| format!("{k}={}", go_quoted(v))).collect::<Vec<_>>().join("\n")
}

/// Go's strconv.Quote for printable text, control characters and what stands between.
fn go_quoted(text: &str) -> String {
    let mut result = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => result.extend(['\\', c]),
            '\u{7}' => result.push_str("\\a"),
            '\u{8}' => result.push_str("\\b"),
            '\u{c}' => result.push_str("\\f"),
            '\n' => result.push_str("\\n"),
            '\r' => result.push_str("\\r"),
            '\t' => result.push_str("\\t"),
            '\u{b}' => result.push_str("\\v"),
            c if c < ' ' || c == '\u{7f}' => result.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => result.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => result.push(c),
        }
    }
    result.push('"');
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_cases_of_expansion() {
        let value_of = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "B" => Some("$(A)".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("$(A)", "a"),
            ("x$(A)y$(A)", "xaya"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$$$$(A)", "$$(A)"),
            ("$A ${A}", "$A ${A}"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$$", "$"),
            ("$(B)", "$(A)"),
            ("$($(A))", "$($(A))"),
            ("[$(EMPTY)]", "[]"),
            ("$()", "$()"),
            ("\u{e9}$(A)\u{e9}", "\u{e9}a\u{e9}"),
        ] {
            assert_eq!(expand(text, value_of).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn expansion_is_bounded() {
        let kilobyte = |_: &str| Some("x".repeat(1024));
        assert_eq!(expand(&"$(A)".repeat(127), kilobyte).map(|t| t.len()), Some(127 << 10));
        assert_eq!(expand(&"$(A)".repeat(129), kilobyte), None);
    }

    #[test]
    fn labels_as_a_file_are_quoted_as_go_does() {
        let map = [("b".to_owned(), "1\n\"2\"".to_owned()), ("a".to_owned(), "\u{e9}\\\u{1}".to_owned())].into();
        assert_eq!(lines(&map), "a=\"\u{e9}\\\\\\x01\"\nb=\"1\\n\\\"2\\\"\"");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[$()A-C\u{e9}]{0,60}") {
            let _ = expand(&text, |name| (name == "A").then(|| "value".to_owned()));
        }

        #[test]
        fn a_text_without_a_dollar_stays(text in "[^$]{0,60}") {
            proptest::prop_assert_eq!(expand(&text, |_| Some("x".to_owned())), Some(text));
        }
    }
}
