//! The pod agent: Pod manifests, with no API server.
pub mod problem;
pub mod yaml;
pub mod quantity;
pub mod names;
pub mod fnv;
pub mod schema;
pub mod read;
pub mod pod;
pub mod objects;
mod decode;
mod decode_container;
mod decode_security;
mod decode_volume;
pub mod manifest;
mod validate;
pub mod logs;
