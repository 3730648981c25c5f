//! Configuration files: TOML whose errors name the file, the line and what to do. Unknown keys are refused: what is misspelt would
//! silently not hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use landfall_model::{Error, ErrorKind, Result};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A configuration is not longer; something else that was named by mistake may be.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
const DURATION_MIN: Duration = Duration::from_secs(1);
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// The text of a configuration file.
///
/// # Errors
/// `NotFound`; `Usage` where it cannot be read or is too large.
pub fn read(path: &Path) -> Result<String> {
    let fail = |e: std::io::Error| {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Usage };
        Error::with_source(kind, format!("cannot read the configuration {}", path.display()), e)
    };
    if fs::metadata(path).map_err(fail)?.len() > FILE_BYTES_MAX {
        let why = format!("{} is larger than 1 MiB: it is no configuration", path.display());
        return Err(Error::new(ErrorKind::Usage, why));
    }
    fs::read_to_string(path).map_err(fail)
}

/// A value with its place in the file.
pub type Value<'a> = Spanned<DeValue<'a>>;

/// The text of a file, for errors that name the place.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    text: &'a str,
    file: &'a Path,
}

/// A parsed file.
pub struct Document<'a>(Spanned<DeTable<'a>>);

/// A section of a file.
pub struct Table<'a> {
    source: Source<'a>,
    what: &'static str,
    at: usize,
    table: &'a DeTable<'a>,
}

impl<'a> Source<'a> {
    /// The text of a file; errors name the file.
    pub fn new(text: &'a str, file: &'a Path) -> Self {
        Self { text, file }
    }

    /// Parses it.
    ///
    /// # Errors
    /// `Usage`, naming the line.
    pub fn parse(&self) -> Result<Document<'a>> {
        DeTable::parse(self.text).map(Document).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.wrong(at, error.message().lines().collect::<Vec<_>>().join(": "))
        })
    }

    /// The root of a document.
    pub fn root(&self, document: &'a Document<'a>) -> Table<'a> {
        Table { source: *self, what: "the file", at: 0, table: document.0.get_ref() }
    }

    /// An error of the line that the byte `at` is on.
    pub fn wrong(&self, at: usize, why: impl std::fmt::Display) -> Error {
        let before = self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count();
        Error::new(ErrorKind::Usage, format!("{}:{}: {why}", self.file.display(), before + 1))
    }

    /// The place behind the last byte.
    pub fn end(&self) -> usize {
        self.text.len()
    }

    /// A section.
    ///
    /// # Errors
    /// `Usage`.
    pub fn table(&self, value: &'a Value<'a>, what: &'static str) -> Result<Table<'a>> {
        let at = value.span().start;
        let table = value.get_ref().as_table();
        let table =
            table.ok_or_else(|| self.wrong(at, format_args!("{what} is not a section: write it in brackets")))?;
        Ok(Table { source: *self, what, at, table })
    }

    /// A list of texts, each with its place.
    ///
    /// # Errors
    /// `Usage`.
    pub fn texts(&self, value: &Value<'_>) -> Result<Vec<(usize, String)>> {
        let wrong = |at| self.wrong(at, "expected a list of texts: [\"...\", \"...\"]");
        let list = value.get_ref().as_array().ok_or_else(|| wrong(value.span().start))?;
        let text = |item: &Value<'_>| {
            let at = item.span().start;
            item.get_ref().as_str().map(|text| (at, text.to_owned())).ok_or_else(|| wrong(at))
        };
        list.iter().map(text).collect()
    }

    /// An absolute path.
    ///
    /// # Errors
    /// `Usage` where it is relative.
    pub fn absolute(&self, at: usize, text: &str) -> Result<PathBuf> {
        let path = PathBuf::from(text);
        if !path.is_absolute() {
            return Err(self.wrong(at, format_args!("the path {text:?} is relative: write it from / on")));
        }
        Ok(path)
    }
}

impl<'a> Table<'a> {
    /// Its text.
    pub fn source(&self) -> Source<'a> {
        self.source
    }

    /// Where it begins.
    pub fn place(&self) -> usize {
        self.at
    }

    /// A value.
    pub fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        self.table.iter().find(|(k, _)| k.get_ref() == key).map(|(_, value)| value)
    }

    /// A value that must be there.
    ///
    /// # Errors
    /// `Usage`, with what to do.
    pub fn required(&self, key: &str, what_to_do: &str) -> Result<&'a Value<'a>> {
        self.get(key)
            .ok_or_else(|| self.source.wrong(self.at, format_args!("{} has no {key}: {what_to_do}", self.what)))
    }

    /// Refuses keys that are not known, naming the nearest that is.
    ///
    /// # Errors
    /// `Usage`.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        let Some(key) = self.table.keys().find(|key| !known.contains(&key.get_ref().as_ref())) else { return Ok(()) };
        let near = nearest(key.get_ref(), known);
        let why = format!("unknown key {:?} in {}: did you mean {near:?}?", key.get_ref(), self.what);
        Err(self.source.wrong(key.span().start, why))
    }

    /// A text, with its place.
    ///
    /// # Errors
    /// `Usage` where it is something else.
    pub fn text(&self, key: &str) -> Result<Option<(usize, String)>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let at = value.span().start;
        let text = value.get_ref().as_str();
        let wrong = || self.source.wrong(at, format_args!("{key} is a text: write it in quotes"));
        text.map(|text| Some((at, text.to_owned()))).ok_or_else(wrong)
    }

    /// A truth value.
    ///
    /// # Errors
    /// `Usage` where it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || self.source.wrong(value.span().start, format_args!("{key} is true or false, without quotes"));
        value.get_ref().as_bool().map(Some).ok_or_else(wrong)
    }

    /// A text that is parsed, if it is there.
    ///
    /// # Errors
    /// `Usage`.
    pub fn optional<T: FromStr<Err: std::fmt::Display>>(&self, key: &str) -> Result<Option<T>> {
        let Some((at, text)) = self.text(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error| self.source.wrong(at, error))
    }

    /// A text that must be there and is parsed.
    ///
    /// # Errors
    /// `Usage`.
    pub fn parsed<T: FromStr<Err: std::fmt::Display>>(&self, key: &str, what_to_do: &str) -> Result<T> {
        self.required(key, what_to_do)?;
        let parsed = self.optional(key)?;
        parsed.ok_or_else(|| self.source.wrong(self.at, what_to_do))
    }

    /// An absolute path.
    ///
    /// # Errors
    /// `Usage`.
    pub fn path(&self, key: &str) -> Result<Option<PathBuf>> {
        self.text(key)?.map(|(at, text)| self.source.absolute(at, &text)).transpose()
    }

    /// A duration from a second to a day.
    ///
    /// # Errors
    /// `Usage`.
    pub fn duration(&self, key: &str) -> Result<Option<Duration>> {
        let Some((at, text)) = self.text(key)? else { return Ok(None) };
        duration(&text).map(Some).map_err(|why| self.source.wrong(at, format_args!("{key}: {why}")))
    }

    /// A size in bytes: a number and an IEC unit.
    ///
    /// # Errors
    /// `Usage`.
    pub fn size(&self, key: &str) -> Result<Option<u64>> {
        let Some((at, text)) = self.text(key)? else { return Ok(None) };
        size(&text).map(Some).map_err(|why| self.source.wrong(at, format_args!("{key}: {why}")))
    }
}

/// `HOST:PORT`, or `[ADDRESS]:PORT`.
///
/// # Errors
/// What to write instead.
pub fn check_address(text: &str) -> std::result::Result<(), String> {
    let parts =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && (!host.contains(':') || host.ends_with(']')));
    let port = parts.and_then(|(_, port)| port.parse::<u16>().ok());
    port.map(|_| ())
        .ok_or_else(|| format!("{text:?} is no address: write \"HOST:PORT\", or \"[ADDRESS]:PORT\" for IPv6"))
}

/// A number and an IEC unit: `512MiB`.
///
/// # Errors
/// What to write instead.
pub fn size(text: &str) -> std::result::Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit {
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        "TiB" => Some(40),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(shift).and_then(|(n, shift)| n.checked_mul(1 << shift));
    bytes.filter(|b| *b > 0).ok_or_else(|| format!("{text:?} is no size: write for example \"512MiB\" or \"20GiB\""))
}

/// A number and a unit.
///
/// # Errors
/// What to write instead.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "s" => Some(1),
        "min" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let seconds = number.parse::<u64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    let seconds =
        seconds.ok_or_else(|| format!("{text:?} is no duration: write for example \"30s\", \"5min\" or \"1h\""))?;
    let duration = Duration::from_secs(seconds);
    if duration < DURATION_MIN || duration > DURATION_MAX {
        return Err(format!("{text:?} is not from \"1s\" to \"24h\""));
    }
    Ok(duration)
}

/// The known word with the fewest changed letters.
fn nearest<'a>(word: &str, known: &[&'a str]) -> &'a str {
    known.iter().min_by_key(|k| distance(word, k)).copied().unwrap_or("")
}

/// Levenshtein's: letters to insert, remove or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_addresses_are_read_or_told_how_to_write() {
        assert_eq!(size("20GiB"), Ok(20 << 30));
        assert_eq!(duration("5min"), Ok(Duration::from_secs(300)));
        for wrong in ["", "5", "5 GiB", "-1MiB", "0MiB", "99999999999TiB"] {
            assert!(size(wrong).unwrap_err().contains("512MiB"), "{wrong}");
        }
        for wrong in ["", "5", "0s", "25h", "1d", "1.5s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        for right in ["gw:7443", "10.0.0.1:1", "[::1]:7443"] {
            assert!(check_address(right).is_ok(), "{right}");
        }
        for wrong in ["gw", ":7443", "gw:", "gw:99999", "::1:7443"] {
            assert!(check_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_misspelt_key_is_told_with_its_line_and_the_nearest_known_one() {
        let text = "[gateway]\n\nlissten = \"x\"\n";
        let source = Source::new(text, Path::new("g.toml"));
        let document = source.parse().expect("TOML");
        let root = source.root(&document);
        let table = source.table(root.get("gateway").expect("a section"), "[gateway]").expect("a section");
        let error = table.only(&["listen", "vault"]).expect_err("a misspelt key").to_string();
        assert_eq!(error, "g.toml:3: unknown key \"lissten\" in [gateway]: did you mean \"listen\"?");
    }
}
