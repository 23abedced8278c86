//! Exec, Attach and PortForward: a URL each, and the rest is [`crate::stream`]'s.

use super::Cri;
use crate::criapi::{AttachRequest, ExecRequest, PortForwardRequest};
use crate::error::Result;
use crate::stream::Wanted;

impl Cri {
    pub(super) fn exec_url(&self, request: ExecRequest) -> Result<String> {
        let id = self.container_id(&request.container_id)?;
        let ExecRequest { tty, stdin, stdout, stderr, cmd, .. } = request;
        self.streams.exec(id, cmd, Wanted { stdin, stdout, stderr, tty })
    }

    pub(super) fn attach_url(&self, request: &AttachRequest) -> Result<String> {
        let id = self.container_id(&request.container_id)?;
        let AttachRequest { tty, stdin, stdout, stderr, .. } = *request;
        self.streams.attach(id, Wanted { stdin, stdout, stderr, tty })
    }

    pub(super) fn port_forward_url(&self, request: &PortForwardRequest) -> Result<String> {
        self.streams.port_forward(self.pod_id(&request.pod_sandbox_id)?, &request.port)
    }
}
