//! Stopping in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use landfall_model::{Error, ErrorKind, Result};

/// Asks a running operation to stop.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops it soon.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_set() {
            let why = "interrupted: no point was committed; what was uploaded is kept; run again to go on";
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        Ok(())
    }
}
