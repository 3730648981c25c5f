//! Disks that are not protected: they come back in their places, empty or formatted, with the names that the machine's other files know them by.
//!
//! ```toml
//! [[disk]]
//! name = "swap"
//! format = "swap"                                   # "swap", "ext4", "xfs", "none"
//! uuid = "0b6c7f3e-5a0d-4e0b-9c55-0d6a1f6e2a10"     # as in the machine's fstab
//! label = "swap"
//! size = "4GiB"                                     # where the point does not say it, or to be another
//! ```

use std::path::Path;
use std::process::Command;

use landfall_model::{DiskMeta, DiskName, Error, ErrorKind, PointMeta, Result};
use landfall_settings::{Source, Table};

const KEYS: &[&str] = &["name", "format", "uuid", "label", "size"];

/// What a disk is made to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    None,
    Swap,
    Ext4,
    Xfs,
}

impl Format {
    const ALL: [(&'static str, Self); 4] =
        [("swap", Self::Swap), ("ext4", Self::Ext4), ("xfs", Self::Xfs), ("none", Self::None)];

    /// The longest label that it has room for.
    fn label_max(self) -> usize {
        match self {
            Self::Xfs => 12,
            Self::Swap => 15,
            Self::Ext4 | Self::None => 16,
        }
    }
}

/// A `[[disk]]` of the target's file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Empty {
    pub(crate) name: DiskName,
    format: Format,
    uuid: Option<String>,
    label: Option<String>,
    size: Option<u64>,
}

/// The `[[disk]]`s of a target's file.
///
/// # Errors
/// `Usage`, naming the line.
pub(crate) fn parse<'a>(source: Source<'a>, value: Option<&'a landfall_settings::Value<'a>>) -> Result<Vec<Empty>> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let at = value.span().start;
    let list = value.get_ref().as_array().ok_or_else(|| source.wrong(at, "disk is not a list: write [[disk]]"))?;
    let mut found: Vec<Empty> = Vec::new();
    for value in list.iter() {
        let table = source.table(value, "[[disk]]")?;
        table.only(KEYS)?;
        let disk = one(&table)?;
        if found.iter().any(|other| other.name == disk.name) {
            return Err(source.wrong(table.place(), format!("there are two [[disk]] of {}", disk.name)));
        }
        found.push(disk);
    }
    Ok(found)
}

fn one(table: &Table<'_>) -> Result<Empty> {
    let source = table.source();
    let format = match table.text("format")? {
        None => Format::None,
        Some((at, text)) => {
            let known = Format::ALL.into_iter().find(|(name, _)| *name == text);
            known.map(|(_, format)| format).ok_or_else(|| {
                source.wrong(at, format!("format {text:?}: it is \"swap\", \"ext4\", \"xfs\" or \"none\""))
            })?
        }
    };
    let (uuid, label) = (table.text("uuid")?, table.text("label")?);
    if let (Format::None, Some((at, _))) = (format, uuid.as_ref().or(label.as_ref())) {
        return Err(source.wrong(*at, "a disk without a format has neither uuid nor label: add format = \"swap\""));
    }
    if let Some((at, text)) = uuid.as_ref().filter(|(_, text)| !is_uuid(text)) {
        let why = format!("uuid {text:?}: write it as blkid does: \"0b6c7f3e-5a0d-4e0b-9c55-0d6a1f6e2a10\"");
        return Err(source.wrong(*at, why));
    }
    if let Some((at, text)) = label.as_ref().filter(|(_, text)| !is_label(text, format.label_max())) {
        let why = format!("label {text:?}: 1 to {} letters, digits, '.', '_' and '-'", format.label_max());
        return Err(source.wrong(*at, why));
    }
    Ok(Empty {
        name: table.parsed::<DiskName>("name", "add name = \"NAME\"")?,
        format,
        uuid: uuid.map(|(_, text)| text.to_ascii_lowercase()),
        label: label.map(|(_, text)| text),
        size: table.size("size")?,
    })
}

fn is_uuid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let parts: Vec<&str> = text.split('-').collect();
    parts.len() == lengths.len()
        && parts.iter().zip(lengths).all(|(part, len)| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// It becomes an argument of a program.
fn is_label(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !text.starts_with('-')
}

/// Refuses what is said of a disk that is protected, or that the machine has not.
///
/// # Errors
/// `Usage`.
pub(crate) fn check(settings: &[Empty], point: &PointMeta) -> Result<()> {
    for said in settings {
        let why = match point.disks.iter().find(|disk| disk.name == said.name) {
            Some(disk) if disk.excluded => continue,
            Some(_) => "is protected, and comes back with what is on it: remove that",
            None => "is none of the machine's",
        };
        let why = format!("the target's file has a [[disk]] of {}, which {why}", said.name);
        return Err(Error::new(ErrorKind::Usage, why));
    }
    Ok(())
}

/// How large a disk that is not protected comes back.
pub(crate) fn size(settings: &[Empty], disk: &DiskMeta) -> u64 {
    settings.iter().find(|s| s.name == disk.name).and_then(|s| s.size).unwrap_or(disk.size)
}

/// What formats a disk's file; none where it stays empty.
pub(crate) fn command(settings: &[Empty], disk: &DiskMeta, file: &Path) -> Option<(&'static str, Command)> {
    let said = settings.iter().find(|s| s.name == disk.name)?;
    let (program, begin, uuid): (_, &[&str], _) = match said.format {
        Format::None => return None,
        Format::Swap => ("mkswap", &[], ["--uuid", ""]),
        Format::Ext4 if disk.sector_size == 4096 => ("mkfs.ext4", &["-q", "-F", "-b", "4096"], ["-U", ""]),
        Format::Ext4 => ("mkfs.ext4", &["-q", "-F"], ["-U", ""]),
        Format::Xfs if disk.sector_size == 4096 => ("mkfs.xfs", &["-q", "-f", "-s", "size=4096"], ["-m", "uuid="]),
        Format::Xfs => ("mkfs.xfs", &["-q", "-f"], ["-m", "uuid="]),
    };
    let mut command = Command::new(program);
    command.args(begin);
    if let Some(value) = &said.uuid {
        command.args([uuid[0], &format!("{}{value}", uuid[1])]);
    }
    // Swap without a label of its own is called as its disk is.
    let name = disk.name.as_str();
    let own = (said.format == Format::Swap && is_label(name, Format::Swap.label_max())).then_some(name);
    if let Some(label) = said.label.as_deref().or(own) {
        command.args(["-L", label]);
    }
    command.arg(file);
    Some((program, command))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Vec<Empty>> {
        let source = Source::new(text, Path::new("t"));
        let document = source.parse()?;
        parse(source, source.root(&document).get("disk"))
    }

    fn disk(name: &str) -> DiskMeta {
        DiskMeta {
            name: name.parse().expect("a name"),
            size: 1 << 30,
            sector_size: 512,
            boot: false,
            excluded: true,
            source: String::new(),
            identity: String::new(),
            base_seq: landfall_model::Seq(1),
        }
    }

    fn line(text: &str) -> String {
        let settings = parse_text(text).expect("right");
        let (_, command) = command(&settings, &disk("swap"), Path::new("/d")).expect("one");
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        format!("{} {}", command.get_program().to_string_lossy(), arguments.join(" "))
    }

    #[test]
    fn a_disk_is_formatted_as_it_is_said_and_known_by_the_names_that_it_had() {
        let uuid = "0b6c7f3e-5a0d-4e0b-9c55-0d6a1f6e2a10";
        let head = "[[disk]]\nname = \"swap\"\n";
        assert_eq!(
            line(&format!("{head}format = \"swap\"\nuuid = \"{uuid}\"")),
            format!("mkswap --uuid {uuid} -L swap /d")
        );
        assert_eq!(line(&format!("{head}format = \"ext4\"\nlabel = \"scratch\"")), "mkfs.ext4 -q -F -L scratch /d");
        assert_eq!(
            line(&format!("{head}format = \"xfs\"\nuuid = \"{uuid}\"")),
            format!("mkfs.xfs -q -f -m uuid={uuid} /d")
        );
        let empty = parse_text(&format!("{head}size = \"2GiB\"")).expect("right");
        assert!(command(&empty, &disk("swap"), Path::new("/d")).is_none());
        assert_eq!((size(&empty, &disk("swap")), size(&empty, &disk("data"))), (2 << 30, 1 << 30));
    }

    #[test]
    fn what_would_be_an_argument_of_another_kind_is_refused_with_its_line() {
        for (text, words) in [
            ("[[disk]]\nname = \"a\"\nformat = \"zfs\"", "3: format"),
            ("[[disk]]\nname = \"a\"\nformat = \"swap\"\nuuid = \"-f\"", "4: uuid"),
            ("[[disk]]\nname = \"a\"\nformat = \"swap\"\nlabel = \"--help\"", "4: label"),
            ("[[disk]]\nname = \"a\"\nformat = \"xfs\"\nlabel = \"longer-than-12\"", "4: label"),
            ("[[disk]]\nname = \"a\"\nlabel = \"b\"", "3: a disk without a format"),
            ("[[disk]]\nname = \"a\"\n[[disk]]\nname = \"a\"", "3: there are two"),
        ] {
            let error = parse_text(text).expect_err(text);
            assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(words), "{text}: {error}");
        }
    }
}
