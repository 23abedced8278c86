//! The Node Resource Interface: plugins on the node that see what is made, adjust it, and change limits later (containerd/nri).
//!
//! * `mux`, `ttrpc`  what goes over a plugin's socket; pure
//! * `link`          the socket: calls both ways, each within its time

pub mod link;
pub mod mux;
pub mod ttrpc;
