//! Registries: where an image's bytes come from over the network.
//!
//! * [`url`]         URLs and origins; pure
//! * [`challenge`]   `WWW-Authenticate`; pure
//! * [`credentials`] docker's `config.json`, CRI's AuthConfig
//! * [`credential_program`]  programs that keep passwords
//! * [`hosts`]       hosts.toml: mirrors, certificates, headers
//! * [`tls`], [`proxy`], [`transport`]  connections
//! * [`authorize`]   answers to challenges: passwords and tokens
//! * [`client`]      one repository: manifests and blobs, with mirrors, retries and resumption
//! * [`blob`]        a layer's blob, resumed and begun anew
//!
//! Only this is async in [`crate::image`]. What becomes of the bytes is [`super::pull`]'s.

pub mod authorize;
pub mod blob;
pub mod challenge;
pub mod client;
pub mod credential_program;
pub mod credentials;
pub mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hosts;
pub mod proxy;
pub mod tls;
pub mod transport;
pub mod url;
