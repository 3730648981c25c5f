//! Ctrl-C and SIGTERM: the first asks, the second ends.

use landfall_gateway::Cancel;
use landfall_model::{Error, ErrorKind, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Ends after so many signals; never where the host has none. They are heard from the call on, not from when it is first waited for.
fn signals(mut count: u32, heard: impl Fn()) -> impl Future<Output = ()> {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) else {
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
}

/// What the first signal sets, and a future that ends at the second.
pub(crate) fn cancel() -> (Cancel, impl Future<Output = ()>) {
    let cancel = Cancel::default();
    let asked = cancel.clone();
    (cancel, signals(2, move || asked.cancel()))
}

/// Ends at the first signal from here on.
pub(crate) fn first() -> impl Future<Output = ()> {
    signals(1, || ())
}

/// Runs work that ends in order after the first signal; the second ends it at once.
///
/// # Errors
/// Those of the work; `Unavailable` where there was a second signal.
pub(crate) fn or_second<T>(
    work: impl Future<Output = Result<T>>,
    what_is_left: &str,
) -> impl Future<Output = Result<T>> {
    let twice = signals(2, || ());
    async move {
        tokio::select! {
            outcome = work => outcome,
            () = twice => {
                Err(Error::new(ErrorKind::Unavailable, format!("interrupted twice: stopped at once; {what_is_left}")))
            }
        }
    }
}

/// Does something at each SIGHUP. Ends only when it is dropped.
///
/// # Errors
/// `Unsupported` where the host has no signals.
pub(crate) fn at_hangup(mut heard: impl FnMut()) -> Result<impl Future<Output = ()>> {
    // From here on, so that one which comes early does not end the process.
    let mut hangups = signal(SignalKind::hangup())
        .map_err(|e| Error::with_source(ErrorKind::Unsupported, "this host has no signals", e))?;
    Ok(async move {
        while hangups.recv().await.is_some() {
            heard();
        }
        std::future::pending().await
    })
}

/// Runs work that a crash cannot hurt until the first signal.
///
/// # Errors
/// Those of the work; `Unavailable` where it was interrupted.
pub(crate) async fn or_interrupted<T>(work: impl Future<Output = Result<T>>, what_is_left: &str) -> Result<T> {
    let once = signals(1, || ());
    tokio::select! {
        outcome = work => outcome,
        () = once => Err(Error::new(ErrorKind::Unavailable, format!("interrupted: {what_is_left}"))),
    }
}
