//! `WWW-Authenticate`: what a registry wants to be shown (RFC 9110, 11.6.1; distribution's token specification). Pure.

use std::collections::BTreeMap;

/// Challenges and parameters in one answer, at most.
const MAX_PARTS: usize = 32;

/// A way to show who one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer {
        /// Who gives tokens, as written.
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenge to answer: a token before a password, what nobody here knows not at all.
pub fn choose<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, mut parameters) in headers.into_iter().flat_map(parse).take(MAX_PARTS) {
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = parameters.remove("realm")
        {
            let (service, scope) = (parameters.remove("service"), parameters.remove("scope"));
            return Some(Challenge::Bearer { realm, service, scope });
        }
        if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// The challenges of one header: a scheme, and parameters with lower-case names. What cannot be read ends it.
fn parse(header: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut challenges: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rest = header;
    for _ in 0..MAX_PARTS {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = rest.split_at(rest.find(|c| !is_token(c)).unwrap_or(rest.len()));
        if word.is_empty() {
            break;
        }
        match (after.trim_start().strip_prefix('='), challenges.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                let Some((value, after)) = value_of(value.trim_start()) else { break };
                parameters.insert(word.to_ascii_lowercase(), value);
                rest = after;
            }
            (Some(_), None) => break,
            (None, _) => {
                challenges.push((word.to_owned(), BTreeMap::new()));
                rest = after;
            }
        }
    }
    challenges
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()));
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, c)) = letters.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) })
    }

    #[test]
    fn a_bearer_challenge_is_read_as_registries_write_it() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#;
        let scope = Some("repository:library/nginx:pull");
        assert_eq!(choose([hub]), bearer("https://auth.docker.io/token", Some("registry.docker.io"), scope));
        let commas = r#"bearer Realm = "https://a/?x,y" , scope="repository:a:pull,push",error=invalid_token"#;
        assert_eq!(choose([commas]), bearer("https://a/?x,y", None, Some("repository:a:pull,push")));
        assert_eq!(choose([r#"Bearer realm="a\"b""#]), bearer("a\"b", None, None));
    }

    #[test]
    fn a_token_is_preferred_and_the_unknown_is_passed_over() {
        assert_eq!(
            choose([r#"Negotiate, Basic realm="x", Bearer realm="https://a""#]),
            bearer("https://a", None, None)
        );
        assert_eq!(choose([r#"Basic realm="x""#, r#"Bearer realm="https://a""#]), bearer("https://a", None, None));
        assert_eq!(choose([r#"Basic realm="Registry Realm""#]), Some(Challenge::Basic));
        for none in ["", "Negotiate", "Bearer", "Bearer scope=\"x\"", "Bearer realm=\"open", "=", "\u{0}"] {
            assert_eq!(choose([none]), None, "{none:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_server_sends_is_read_without_harm(text in "[a-zA-Z=,\" \\\\\u{e9}]{0,80}") {
            choose([text.as_str()]);
        }
    }
}
