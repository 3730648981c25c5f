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

use crate::figures::Figures;
use crate::spool::Spool;
use crate::status::{Board, Health, MachineStatus, Status};

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
        ("landfall_machine_cycles_total", "Cycles taken.", (|m| m.cycles) as fn(&MachineStatus) -> u64),
        ("landfall_machine_resyncs_total", "Times that everything had to be compared.", |m| m.resyncs),
        ("landfall_machine_failures_total", "Cycles and commits that failed.", |m| m.failures),
    ] {
        family(&mut out, name, "counter", help, machines().map(|(n, m)| (label(n), number(value(m)))));
    }
    configuration(&mut out, status);
    work(&mut out, status);
    figures(&mut out, status);
    out
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing but doubles")]
fn double(n: u64) -> f64 {
    n as f64
}

/// What is configured, and holds now.
fn configuration(out: &mut String, status: &Status) {
    let one = |value: Option<u64>| value.map(|v| (String::new(), double(v))).into_iter();
    let refused = Some(u64::from(status.configuration.refused.is_some()));
    let name = "landfall_configuration_refused";
    family(out, name, "gauge", "1 while a changed configuration is not taken, because it is wrong.", one(refused));
    let waits = Some(status.configuration.needs_restart.len() as u64);
    let name = "landfall_configuration_restart_keys";
    family(out, name, "gauge", "Keys that were changed and hold after a restart.", one(waits));
    let name = "landfall_upload_limit_bytes_per_second";
    family(
        out,
        name,
        "gauge",
        "Most bytes uploaded in a second, now; absent where there is no limit.",
        one(status.rate),
    );
}

/// What machines do now.
fn work(out: &mut String, status: &Status) {
    let mut each = |name: &str, kind: &str, help: &str, value: fn(&MachineStatus) -> Option<f64>| {
        let samples = status.machines.iter().filter_map(|(n, m)| Some((format!("{{machine=\"{n}\"}}"), value(m)?)));
        family(out, name, kind, help, samples);
    };
    each("landfall_machine_backlog_points", "gauge", "Points that wait for the store.", |m| {
        Some(double(m.waiting_points as u64))
    });
    each("landfall_machine_backlog_bytes", "gauge", "Bytes of disks in cycles that wait for the store.", |m| {
        Some(double(m.waiting_bytes))
    });
    each("landfall_machine_received_bytes_total", "counter", "Bytes of disks in cycles that were taken.", |m| {
        Some(double(m.received_bytes))
    });
    each(
        "landfall_machine_receive_limit_bytes_per_second",
        "gauge",
        "Most bytes received in a second, now; absent where there is no limit.",
        |m| m.rate.map(double),
    );
    each(
        "landfall_machine_receiving_ratio",
        "gauge",
        "How far the cycle is that arrives, of 1; absent where none does.",
        |m| m.receiving.as_ref().map(|r| double(r.reached_bytes) / double(r.of_bytes.max(1))),
    );
    each("landfall_machine_resync_waits", "gauge", "1 while a full comparison waits for its window.", |m| {
        Some(double(u64::from(m.waits.is_some())))
    });
}

/// What machines did in the last 12 hours.
fn figures(out: &mut String, status: &Status) {
    type Count = fn(&Figures) -> u64;
    let results: [(&str, Count); 3] = [("good", |f| f.good), ("failed", |f| f.failed), ("missed", |f| f.missed)];
    let of = |(n, m): (&String, &MachineStatus)| {
        results.map(|(result, count)| (format!("{{machine=\"{n}\",result=\"{result}\"}}"), double(count(&m.window))))
    };
    let help = "Cycles of the last 12 hours: taken, failed (commits too), and due but not begun.";
    family(out, "landfall_machine_window_cycles", "gauge", help, status.machines.iter().flat_map(of));
    let mut each = |name: &str, help: &str, value: fn(&Figures) -> Option<f64>| {
        let samples = status.machines.iter();
        let samples = samples.filter_map(|(n, m)| Some((format!("{{machine=\"{n}\"}}"), value(&m.window)?)));
        family(out, name, "gauge", help, samples);
    };
    each("landfall_machine_window_change_average_bytes", "Average size of a cycle of the last 12 hours.", |f| {
        f.change_average_bytes.map(double)
    });
    each("landfall_machine_window_change_largest_bytes", "Largest cycle of the last 12 hours.", |f| {
        f.change_largest_bytes.map(double)
    });
    each(
        "landfall_machine_window_latency_average_seconds",
        "From cut to vault, on average, in the last 12 hours.",
        |f| f.latency_average_ms.map(|ms| double(ms) / 1000.0),
    );
    each(
        "landfall_machine_window_latency_largest_seconds",
        "The longest from cut to vault in the last 12 hours.",
        |f| f.latency_largest_ms.map(|ms| double(ms) / 1000.0),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::Became;

    #[test]
    fn what_a_machine_does_and_did_is_told_and_every_family_has_its_help_and_type_before_its_samples() {
        let mut machine =
            MachineStatus { linked: true, rate: Some(2048), waits: Some("Sat".to_owned()), ..MachineStatus::default() };
        machine.spooled(now(), Timestamp::from_millis(now().millis() - 1500), 1000, Became::Point);
        machine.spooled(now(), now(), 500, Became::Point);
        machine.committed(landfall_model::Seq(1), now());
        machine.failed("why".to_owned(), false);
        machine.window = machine.recent.figures(now());
        machine.receiving =
            Some(crate::Receiving { full: true, since: now(), bytes: 5, reached_bytes: 250, of_bytes: 1000 });
        let status = Status { machines: [("web".to_owned(), machine)].into(), ..Status::default() };
        let text = text(&status, now());
        for line in [
            "landfall_configuration_refused 0",
            "landfall_machine_backlog_points{machine=\"web\"} 1",
            "landfall_machine_backlog_bytes{machine=\"web\"} 500",
            "landfall_machine_received_bytes_total{machine=\"web\"} 1500",
            "landfall_machine_receive_limit_bytes_per_second{machine=\"web\"} 2048",
            "landfall_machine_receiving_ratio{machine=\"web\"} 0.25",
            "landfall_machine_resync_waits{machine=\"web\"} 1",
            "landfall_machine_window_cycles{machine=\"web\",result=\"good\"} 2",
            "landfall_machine_window_cycles{machine=\"web\",result=\"failed\"} 1",
            "landfall_machine_window_cycles{machine=\"web\",result=\"missed\"} 0",
            "landfall_machine_window_change_average_bytes{machine=\"web\"} 750",
            "landfall_machine_window_change_largest_bytes{machine=\"web\"} 1000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let latency = text
            .lines()
            .find_map(|l| l.strip_prefix("landfall_machine_window_latency_average_seconds{machine=\"web\"} "));
        assert!(latency.is_some_and(|l| l.parse::<f64>().is_ok_and(|l| l >= 1.5)), "{text}");
        // As a scraper reads it: HELP, TYPE, then samples of that name; counters end in _total and nothing else does.
        let mut known = std::collections::BTreeSet::new();
        let mut lines = text.lines().peekable();
        while let Some(help) = lines.next() {
            let name = help.strip_prefix("# HELP ").and_then(|l| l.split(' ').next()).expect(help);
            assert!(known.insert(name.to_owned()), "{name} twice");
            let kind = lines.next().and_then(|l| l.strip_prefix(&format!("# TYPE {name} "))).expect(name);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            while let Some(sample) = lines.next_if(|l| !l.starts_with('#')) {
                let (sample, value) = sample.rsplit_once(' ').expect(sample);
                assert_eq!(sample.split('{').next(), Some(name));
                assert!(value.parse::<f64>().is_ok(), "{sample} {value}");
            }
        }
    }

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
