//! Ctrl-C and SIGTERM: the first asks, the second ends.

use landfall_gateway::Cancel;
use landfall_model::{Error, ErrorKind, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Ends after so many signals; never where the host has none.
async fn signals(mut count: u32, heard: impl Fn()) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    while count > 0 {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        heard();
        count -= 1;
    }
}

/// What the first signal sets, and a future that ends at the second.
pub(crate) fn cancel() -> (Cancel, impl Future<Output = ()>) {
    let cancel = Cancel::default();
    let asked = cancel.clone();
    (cancel, signals(2, move || asked.cancel()))
}

/// Ends at the first signal.
pub(crate) async fn first() {
    signals(1, || ()).await;
}

/// Runs work that a crash cannot hurt until the first signal.
///
/// # Errors
/// Those of the work; `Unavailable` where it was interrupted.
pub(crate) async fn or_interrupted<T>(work: impl Future<Output = Result<T>>, what_is_left: &str) -> Result<T> {
    tokio::select! {
        outcome = work => outcome,
        () = signals(1, || ()) => Err(Error::new(ErrorKind::Unavailable, format!("interrupted: {what_is_left}"))),
    }
}
