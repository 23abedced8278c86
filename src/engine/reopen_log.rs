//! ReopenContainerLog: after its file was renamed, a container's log goes on in a new one.

use super::Engine;
use super::pod::State;
use crate::error::{Error, Result};
use crate::fault;
use crate::id::ContainerId;
use crate::wire::Request;

impl Engine {
    /// Opens the log of a running container anew, at its path. No line is lost: what comes meanwhile waits.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition`, and no file is made, unless it runs; what the shim says.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<()> {
        let pod = self.reachable_of(id).await?;
        let running = pod.facts().containers.get(id).is_some_and(|c| c.state() == State::Running);
        if !running {
            return Err(Error::precondition(format!("container {} does not run; its log is not reopened", id.short())));
        }
        fault::point("engine.reopen_log.asked");
        pod.shim_soon().await?.done(Request::ReopenLog { container: id.clone() }, &[]).await?;
        fault::point("engine.reopen_log.reopened");
        Ok(())
    }
}
