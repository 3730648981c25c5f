//! The metrics of a gateway, as Prometheus reads them (text exposition format 0.0.4; names as OpenMetrics wants them: base units, `_total`).

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use landfall_model::{Error, ErrorKind, Result, Timestamp};
use landfall_vault::now;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::spool::Spool;
use crate::status::{Board, Health, Status};

/// Serves `/metrics`, and `/health`: 200, or 503 with the reasons where something is critical. Names of machines are in it, and no secret.
///
/// # Errors
/// `Unavailable` where the listener ends.
pub(crate) async fn serve(
    listener: TcpListener,
    board: Arc<Board>,
    spool: Arc<Spool>,
    mut ended: watch::Receiver<bool>,
) -> Result<()> {
    let (b, s) = (board.clone(), spool.clone());
    let metrics = move || async move {
        let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
        (kind, text(&b.now(s.bytes()), now())).into_response()
    };
    let health = move || async move {
        let why = critical(&board.now(spool.bytes()), now());
        let code = if why.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (code, if why.is_empty() { "ok\n".to_owned() } else { why }).into_response()
    };
    let router = Router::new().route("/metrics", get(metrics)).route("/health", get(health));
    let end = async move {
        let _ = ended.wait_for(|e| *e).await;
    };
    let served = axum::serve(listener, router).with_graceful_shutdown(end).await;
    served.map_err(|e| Error::with_source(ErrorKind::Unavailable, "metrics are no longer served", e))
}

/// What is critical, a line each.
fn critical(status: &Status, at: Timestamp) -> String {
    let machines = status.machines.iter().map(|(name, m)| (name.as_str(), m.health(at)));
    let all = machines.chain([("spool", status.spool_health())]);
    let line = |(what, (health, why)): (&str, (Health, Option<String>))| {
        (health == Health::Critical).then(|| format!("{what}: {}\n", why.unwrap_or_default()))
    };
    all.filter_map(line).collect()
}

const fn level(health: Health) -> u8 {
    match health {
        Health::Ok => 0,
        Health::Warning => 1,
        Health::Critical => 2,
    }
}

/// One family: its samples are labels and value.
fn family(out: &mut String, name: &str, kind: &str, help: &str, samples: impl Iterator<Item = (String, f64)>) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

/// All metrics at a moment.
pub(crate) fn text(status: &Status, at: Timestamp) -> String {
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing but doubles")]
    let number = |n: u64| n as f64;
    let one = |value: u64| std::iter::once((String::new(), number(value)));
    let mut out = String::new();
    family(
        &mut out,
        "landfall_spool_bytes",
        "gauge",
        "Bytes of objects that wait for the store.",
        one(status.spool_bytes),
    );
    family(
        &mut out,
        "landfall_spool_budget_bytes",
        "gauge",
        "Most bytes that may wait.",
        one(status.spool_budget_bytes),
    );
    family(
        &mut out,
        "landfall_uploaded_bytes_total",
        "counter",
        "Bytes uploaded from the spool since the gateway was started.",
        one(status.uploaded_bytes),
    );
    family(
        &mut out,
        "landfall_upload_failing",
        "gauge",
        "1 while the last upload failed.",
        one(u64::from(status.upload_error.is_some())),
    );
    let seconds = |since: Option<Timestamp>| since.map(|t| (at.millis() - t.millis()).max(0));
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing but doubles")]
    let age = |ms: i64| ms as f64 / 1000.0;
    // Names of machines have no character that would have to be escaped.
    let label = |name: &String| format!("{{machine=\"{name}\"}}");
    let machines = || status.machines.iter();
    family(
        &mut out,
        "landfall_machine_rpo_seconds",
        "gauge",
        "Age of what a failover would bring back.",
        machines().filter_map(|(n, m)| Some((label(n), age(seconds(m.committed)?)))),
    );
    family(
        &mut out,
        "landfall_machine_backlog_seconds",
        "gauge",
        "For how long points of the machine have waited for the store.",
        machines().map(|(n, m)| (label(n), age(seconds(m.waiting_since).unwrap_or(0)))),
    );
    family(
        &mut out,
        "landfall_machine_linked",
        "gauge",
        "1 while its agent has a link.",
        machines().map(|(n, m)| (label(n), number(u64::from(m.linked)))),
    );
    family(
        &mut out,
        "landfall_machine_health",
        "gauge",
        "0 ok, 1 warning, 2 critical.",
        machines().map(|(n, m)| (label(n), f64::from(level(m.health(at).0)))),
    );
    for (name, help, value) in [
        ("landfall_machine_cycles_total", "Cycles taken.", (|m| m.cycles) as fn(&crate::MachineStatus) -> u64),
        ("landfall_machine_resyncs_total", "Times that everything had to be compared.", |m| m.resyncs),
        ("landfall_machine_failures_total", "Cycles and commits that failed.", |m| m.failures),
    ] {
        family(&mut out, name, "counter", help, machines().map(|(n, m)| (label(n), number(value(m)))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MachineStatus;

    #[test]
    fn a_gateway_and_a_machine_are_told_in_base_units() {
        let machine = MachineStatus {
            linked: true,
            committed: Some(Timestamp::from_millis(1000)),
            cycles: 7,
            ..MachineStatus::default()
        };
        let status = Status { spool_bytes: 5, machines: [("web".to_owned(), machine)].into(), ..Status::default() };
        let text = text(&status, Timestamp::from_millis(3500));
        for line in [
            "# TYPE landfall_spool_bytes gauge",
            "landfall_spool_bytes 5",
            "landfall_machine_rpo_seconds{machine=\"web\"} 2.5",
            "landfall_machine_cycles_total{machine=\"web\"} 7",
            "landfall_machine_health{machine=\"web\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
