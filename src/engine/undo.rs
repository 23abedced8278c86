//! What a verb has done so far, so that a failure takes it back in reverse order. Explicit: nothing is undone by a drop.

use crate::error::{Error, Result};
use std::future::Future;
use std::pin::Pin;

type Step = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send>;

/// The steps to take back, in the order in which they were done.
#[derive(Default)]
pub struct Undo {
    steps: Vec<Step>,
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Undo").field("steps", &self.steps.len()).finish()
    }
}

impl Undo {
    /// Remembers how to take back what was just done.
    pub fn push<F>(&mut self, step: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.steps.push(Box::new(move || Box::pin(step())));
    }

    /// Takes everything back, the last step first, never stopping early; adds what could not be taken back to `cause`.
    pub async fn unwind(self, cause: Error) -> Error {
        let mut left = Vec::new();
        for step in self.steps.into_iter().rev() {
            if let Err(e) = step().await {
                left.push(e);
            }
        }
        match Error::collect(left) {
            None => cause,
            Some(left) => Error::new(cause.kind(), format!("{cause} (and then, taking it back: {left})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn everything_is_taken_back_in_reverse_order_even_past_a_failure() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for n in 1..=3 {
            let seen = seen.clone();
            undo.push(move || async move {
                seen.lock().expect("no panic").push(n);
                if n == 2 { Err(Error::internal("rmdir /two: EBUSY")) } else { Ok(()) }
            });
        }
        let rt = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let e = rt.block_on(undo.unwind(Error::not_found("no image x")));
        assert_eq!(*seen.lock().expect("no panic"), [3, 2, 1]);
        assert_eq!(e.to_string(), "no image x (and then, taking it back: rmdir /two: EBUSY)");
    }
}
