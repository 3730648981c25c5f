//! What commands say: one JSON document, or text for people. Nothing else writes to stdout.

use std::io::Write;

use landfall_model::{Error, ErrorKind, Result};

/// Writes to stdout; a reader that went away (`| head`) is no error.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::with_source(ErrorKind::NoSpace, "cannot write to stdout", error))
        }
        _ => Ok(()),
    }
}

/// One JSON document, or the text that `people` makes.
pub(crate) fn document(json: bool, value: &serde_json::Value, people: impl FnOnce() -> String) -> Result<()> {
    if json { text(&format!("{value:#}\n")) } else { text(&people()) }
}

/// An error on stderr.
pub(crate) fn error_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "landfall: {line}");
}

/// What goes on, on stderr, where that is a terminal.
pub(crate) fn note(line: &str) {
    use std::io::IsTerminal;
    if std::io::stderr().is_terminal() {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// A size in IEC units.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(5);
    if unit == 0 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit as usize])
}

/// A duration.
pub(crate) fn seconds(ms: u64) -> String {
    if ms < 60_000 {
        return format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    }
    let (minutes, seconds) = (ms / 60_000, ms / 1000 % 60);
    if minutes < 60 { format!("{minutes} min {seconds} s") } else { format!("{} h {} min", minutes / 60, minutes % 60) }
}

/// Rows with aligned columns; the first is the heading. Columns whose heading begins with `>` are set to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let right: Vec<bool> = (0..columns).map(|c| rows[0][c].starts_with('>')).collect();
    let cell = |text: &str| text.trim_start_matches('>').to_owned();
    let width = |c: usize| rows.iter().map(|r| cell(&r[c]).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, text) in row.iter().enumerate() {
            let (text, width) = (cell(text), widths[c]);
            line.push_str(&if right[c] { format!("{text:>width$}  ") } else { format!("{text:<width$}  ") });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_write_them() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(8 << 30), "8.0 GiB");
        assert_eq!(size(u64::MAX), "16383.9 PiB");
        assert_eq!(seconds(1250), "1.2 s");
        assert_eq!(seconds(61_000), "1 min 1 s");
        assert_eq!(seconds(3_660_000), "1 h 1 min");
    }
}
