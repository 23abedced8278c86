//! The ConfigMaps and Secrets that stand in the file beside the pods: found by namespace and name.

use super::pod::Metadata;
use super::problem::Mark;
use std::collections::BTreeMap;

/// The data of one ConfigMap or Secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Source {
    pub at: Mark,
    /// Of variables and files.
    pub text: BTreeMap<String, Vec<u8>>,
    /// binaryData: of files only.
    pub binary: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for Source {
    /// Without the values: they may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.text.keys().chain(self.binary.keys())).finish()
    }
}

impl Source {
    /// The bytes of a key, of either kind.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.text.get(key).or_else(|| self.binary.get(key)).map(Vec::as_slice)
    }
}

/// All of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects(BTreeMap<(bool, String, String), Source>);

impl Objects {
    /// Adds one; the place of the first if there is one of the name already.
    pub(super) fn add(&mut self, secret: bool, metadata: &Metadata, source: Source) -> Option<Mark> {
        let key = (secret, metadata.namespace.clone(), metadata.name.clone());
        if let Some(first) = self.0.get(&key) {
            return Some(first.at);
        }
        self.0.insert(key, source);
        None
    }

    /// The ConfigMap or Secret of this name.
    pub fn find(&self, secret: bool, namespace: &str, name: &str) -> Option<&Source> {
        self.0.get(&(secret, namespace.to_owned(), name.to_owned()))
    }

    /// The names of those of a kind and namespace.
    pub fn names<'a>(&'a self, secret: bool, namespace: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.keys().filter(move |(s, ns, _)| *s == secret && ns == namespace).map(|(_, _, name)| name.as_str())
    }
}

/// Standard base64 with padding (RFC 4648), line breaks ignored as Go's decoder does.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let symbols: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\n' | b'\r')).collect();
    if !symbols.len().is_multiple_of(4) {
        return None;
    }
    let padding = symbols.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut result = Vec::with_capacity(symbols.len() / 4 * 3);
    for group in symbols[..symbols.len() - padding].chunks(4) {
        let mut bits: u32 = 0;
        for symbol in group {
            let value = match symbol {
                b'A'..=b'Z' => symbol - b'A',
                b'a'..=b'z' => symbol - b'a' + 26,
                b'0'..=b'9' => symbol - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let missing = 4 - group.len();
        bits <<= 6 * missing;
        let [_, a, b, c] = bits.to_be_bytes();
        result.extend_from_slice(&[a, b, c][..3 - missing]);
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9v\nYg==\n", "foob"), ("+/+/", "\u{0}")]
        {
            let decoded = base64(text).expect(text);
            assert!(
                decoded == bytes.as_bytes() || text == "+/+/" && decoded == [0xfb, 0xff, 0xbf],
                "{text}: {decoded:?}"
            );
        }
        for bad in ["Z", "Zg", "Zg=", "Zg===", "====", "Z g=", "Zg=a", "\u{e9}==="] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn values_do_not_show_in_debug_output() {
        let source = Source { text: [("k".to_owned(), b"hunter2".to_vec())].into(), ..Source::default() };
        assert_eq!(format!("{source:?}"), "{\"k\"}");
    }
}
