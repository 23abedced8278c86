//! The built-in bridge. In this version: what it will leave on the disk.

use super::{Attachment, HostPort, Netns, Request, Status};
use crate::error::{Error, Result};
use crate::id::PodId;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What is made for one pod: all of it is decided before any of it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The bridge, and its nftables table.
    pub bridge: String,
    /// The lease: how far the pod's addresses are above the first of their subnets.
    pub number: u32,
    /// The host's end of the pod's interface.
    pub host_link: String,
    pub ips: Vec<IpAddr>,
    pub ports: Vec<HostPort>,
}

/// The bridge of one engine.
#[derive(Debug)]
pub struct Bridge;

impl Bridge {
    pub(super) async fn attach(&self, request: Request) -> Result<Attachment> {
        let pod = request.pod.short();
        Err(Error::unsupported(format!("pod {pod}: the built-in bridge is not in this version; use network.mode none")))
    }

    pub(super) async fn detach(&self, _pod: &PodId, _plan: Plan, _netns: Option<Netns>) -> Result<()> {
        Ok(())
    }

    pub(super) async fn status(&self) -> Status {
        Status::NotReady(
            "this version of podwright has no pod network: a pod has its own loopback, or the host's network"
                .to_owned(),
        )
    }
}
