//! Exec, attach and port-forward for Kubernetes' clients: URLs that the CRI gives out, and the HTTP server behind them. The protocols are those
//! of k8s.io/streaming and k8s.io/cri-streaming: SPDY/3.1, and WebSockets.
//!
//! * `token`      what was asked for over the CRI and is still to be fetched; pure
//! * `server`     listener, TLS, HTTP, the upgrade
//! * `negotiate`  which transport and protocol both have; pure
//! * `spdy`, `websocket`  the two transports
//! * `flow`, `io`  what both are made of, and their bounds
//! * `session`    exec and attach: a client's streams, a process's streams
//! * `port_forward`  connections into a pod
//! * `outcome`    how it ended, as clients are told; pure
//!
//! Not here: processes, terminals, namespaces ([`crate::engine`]). podwright's own commands do without all this: they ask the engine.

mod flow;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod io;
mod negotiate;
mod outcome;
pub mod port_forward;
mod server;
mod session;
pub mod spdy;
mod token;
mod websocket;

pub use server::{Listener, Server, Settings, Wanted};
