//! Progress on stderr, where it is a terminal: how far, how fast, how long yet.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use landfall_model::Progress;

use crate::args::Common;
use crate::output;

/// Nothing is shown for what is done sooner.
const SHOW_AFTER: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_millis(200);

/// Shows a bar while `work` runs.
pub(crate) async fn shown<T>(
    common: &Common,
    what: &str,
    moved: &str,
    progress: Arc<Progress>,
    work: impl Future<Output = T>,
) -> T {
    if common.quiet || !std::io::stderr().is_terminal() {
        return work.await;
    }
    let (what, moved) = (what.to_owned(), moved.to_owned());
    let shower = tokio::spawn(async move {
        tokio::time::sleep(SHOW_AFTER).await;
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left, {msg}",
        ) {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        let bar = Bar(bar);
        loop {
            bar.0.set_length(progress.total());
            bar.0.set_position(progress.done());
            bar.0.set_message(format!("{} {moved}", output::size(progress.moved())));
            tokio::time::sleep(REFRESH).await;
        }
    });
    let out = work.await;
    shower.abort();
    let _ = shower.await;
    out
}

/// Takes the bar off the screen when it ends.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
