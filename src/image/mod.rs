//! Images: from a registry or an archive to overlay lower directories.
//!
//! * [`reference`] what people write for an image, and what it means
//! * [`oci`]       the documents: index, manifest, config, docker's `manifest.json`; pure
//! * [`tarball`]   the entries of a tar stream, with bounds; the one tar reader of the crate
//! * [`unpack`]    one layer: the confined process that extracts it, and the half that starts it
//! * [`store`]     what is on disk: names, images, layers; locks and sessions
//! * [`gc`]        what takes away: `rmi`, `prune`, the sweep after a crash
//! * [`archive`]   blobs of a directory or an archive, by name
//! * [`found`]     from documents to images, wherever they are
//! * [`import`]    `podwright import`
//! * [`export`]    `podwright save`; [`layer_tar`] a layer's files as a tar stream
//! * [`registry`]  registries, mirrors, credentials: bytes from the network
//! * [`pull`]      from a registry into the store, in one pass
//! * [`part`]      whether an image has a directory
//!
//! All of it blocks and none of it is async, but for [`registry`] and the waiting for a [`pull`]: a command calls it as it is, a server on a
//! thread that may block.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod reference;
pub mod oci;
pub mod tarball;
pub mod unpack;
pub mod store;
pub mod gc;
pub mod archive;
pub mod found;
pub mod import;
pub mod layer_tar;
pub mod export;
pub mod registry;
pub mod pull;
pub mod part;
