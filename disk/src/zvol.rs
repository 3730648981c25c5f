//! What `zstream dump -v` tells of an incremental stream of a ZFS volume: `zfs send -i @OLD POOL/VOL@NEW | zstream dump -v`.
//!
//! ```text
//! BEGIN record                                   one stream, of a volume, from a snapshot, whole
//!         hdrtype = 1
//!         ...
//! OBJECT object = 1 type = 23 ...                object 1 is the volume's content, object 2 its size
//! FREE object = 1 offset = 1048576 length = 131072
//! WRITE object = 1 type = 23 ... offset = 0 logical_size = 16384 ...
//! END checksum = 4fffd120bdb5/9e4f29dd4bfa46b2/49ad71d2ef327f18/cce8f7adcb830fde
//! SUMMARY:                                       numbers that must be those of the records above
//! ```
//!
//! `zfs diff` knows no volumes and `zfs send -n` only tells sizes: this reads all that changed once more, and throws it
//! away.
//!
//! # Whether it is sound
//! As far as the stream is: it is what `zfs receive` makes the newer snapshot of, and a block is in it because it was
//! born after the older one. The text adds little risk: the program checks the sums of the stream, says so in lines that
//! are errors here, and counts at the end what it printed. Streams that leave something out or name it in another way are
//! refused by their header: full, resumed, redacted, raw, deduplicated, of several snapshots, or without records of what
//! was freed. Two things cannot be seen here: `zstream dump -C` checks nothing, and ZFS has had errors with holes
//! (`hole_birth`), which is why `send_holes_without_birth_time` must be left at 1, as it is.
//!
//! Written against the formats in the source of OpenZFS (2.0, and that of 2026) and recorded pieces of output. No whole
//! dump of a volume's increment was to be had, and it has never met a real volume.

use std::io::BufRead;
use std::ops::ControlFlow;

use landfall_model::{BlockSet, Extent};

use crate::understand::{NotUnderstood, next_piece};

/// `ZVOL_OBJ` and `ZVOL_ZAP_OBJ`: what a volume consists of.
const CONTENT: u64 = 1;
const PROPERTIES: u64 = 2;
/// `DMU_OT_ZVOL` and `DMU_OT_ZVOL_PROP`.
const CONTENT_TYPE: &str = "23";
const PROPERTIES_TYPE: &str = "24";

/// `DMU_BACKUP_FEATURE_*` with which the stream still names every change: spill blocks, embedded data, LZ4, large blocks,
/// compressed, large dnodes, Zstandard. Not: deduplicated, resuming, redacted, raw, holds and whatever comes.
const FEATURES: u64 = 1 << 2 | 1 << 16 | 1 << 17 | 1 << 19 | 1 << 22 | 1 << 23 | 1 << 25;
/// `DRR_FLAG_FREERECORDS`, without which nothing says what was freed, and `DRR_FLAG_SPILL_BLOCK`.
const FREE_RECORDS: u64 = 1 << 2;
const FLAGS: u64 = FREE_RECORDS | 1 << 3;

const HEADER: [&str; 10] =
    ["hdrtype", "features", "magic", "creation_time", "type", "flags", "toguid", "fromguid", "toname", "payloadlen"];

/// Kinds of records that are counted; of all others there must be none.
const KINDS: [&str; 7] =
    ["DRR_BEGIN", "DRR_END", "DRR_OBJECT", "DRR_FREEOBJECTS", "DRR_WRITE", "DRR_WRITE_EMBEDDED", "DRR_FREE"];

/// Places in [`KINDS`].
#[derive(Clone, Copy)]
enum Kind {
    Begin,
    End,
    Object,
    FreeObjects,
    Write,
    WriteEmbedded,
    Free,
}

/// The blocks, of `block_size` bytes, of a volume of `size` bytes that differ between two snapshots.
///
/// Where the volume has grown, what lies behind the old end is for the caller to add. Read line by line: memory is that of the blocks.
///
/// # Errors
/// If anything in it is not understood.
pub fn zstream_dump(mut text: impl BufRead, size: u64, block_size: u64) -> Result<BlockSet, NotUnderstood> {
    let mut dump = Dump { changed: BlockSet::new(size, block_size), counts: [0; KINDS.len()], part: Part::Start };
    let (mut line, mut n) = (String::new(), 0);
    let error = |line, why| NotUnderstood { program: "zstream dump", line, why };
    loop {
        next_piece(&mut text, b'\n', &mut line).map_err(|why| error(n + 1, why))?;
        if line.is_empty() {
            break;
        }
        n += 1;
        let whole = line.strip_suffix('\n').ok_or("it is not complete");
        whole.and_then(|line| dump.line(line)).map_err(|why| error(n, why))?;
    }
    match dump.part {
        Part::Done => Ok(dump.changed),
        _ => Err(error(n, "it is not complete")),
    }
}

struct Dump {
    changed: BlockSet,
    counts: [u64; KINDS.len()],
    part: Part,
}

/// Where in the text.
enum Part {
    Start,
    /// In the header; the next line of it.
    Header(usize),
    Records,
    /// After the end of the stream.
    Ended,
    /// In the summary; how many of the kinds have been named.
    Summary(usize),
    Done,
}

impl Dump {
    fn line(&mut self, line: &str) -> Result<(), &'static str> {
        self.part = match self.part {
            Part::Start if line == "BEGIN record" => {
                self.count(Kind::Begin);
                Part::Header(0)
            }
            Part::Header(next) => match header(line, next)? {
                ControlFlow::Continue(()) => Part::Header(next + 1),
                ControlFlow::Break(()) => Part::Records,
            },
            Part::Records if line.starts_with("END ") => {
                let [sums] = fields(line, "END", ["checksum"])?;
                if sums.split('/').count() != 4 || sums.split('/').any(|sum| u64::from_str_radix(sum, 16).is_err()) {
                    return Err("the end has no checksum");
                }
                self.count(Kind::End);
                Part::Ended
            }
            Part::Records => {
                self.record(line)?;
                Part::Records
            }
            Part::Ended if line == "SUMMARY:" => Part::Summary(0),
            Part::Summary(named) => self.summary(line.trim_start(), named)?,
            _ => return Err("this does not belong here"),
        };
        Ok(())
    }

    fn count(&mut self, kind: Kind) {
        self.counts[kind as usize] += 1;
    }

    fn record(&mut self, line: &str) -> Result<(), &'static str> {
        let kind = match line.split(' ').next() {
            Some("OBJECT") => {
                let names = ["object", "type", "bonustype", "blksz", "bonuslen", "dn_slots", "raw_bonuslen", "flags"];
                let rest = ["maxblkid", "indblkshift", "nlevels", "nblkptr"];
                let [object, kind, ..] = fields::<12>(line, "OBJECT", concat(names, rest))?;
                is_content(object, Some(kind))?;
                Kind::Object
            }
            Some("FREEOBJECTS") => {
                let [first, count] = fields(line, "FREEOBJECTS", ["firstobj", "numobjs"])?;
                let (first, count) = (number(first)?, number(count)?);
                if first <= PROPERTIES && first.saturating_add(count) > CONTENT {
                    return Err("the volume itself is freed");
                }
                Kind::FreeObjects
            }
            Some("WRITE") => {
                let names = ["object", "type", "checksum type", "compression type", "flags", "offset", "logical_size"];
                let rest = ["compressed_size", "payload_size", "props", "salt", "iv", "mac"];
                let [object, kind, _, _, _, offset, length, ..] = fields::<13>(line, "WRITE", concat(names, rest))?;
                self.add(object, Some(kind), offset, length)?;
                Kind::Write
            }
            Some("WRITE_EMBEDDED") => {
                let names = ["object", "offset", "length", "toguid", "comp", "etype", "lsize", "psize"];
                let [object, offset, length, ..] = fields(line, "WRITE_EMBEDDED", names)?;
                self.add(object, None, offset, length)?;
                Kind::WriteEmbedded
            }
            Some("FREE") => {
                let [object, offset, length] = fields(line, "FREE", ["object", "offset", "length"])?;
                // DMU_OBJECT_END, printed with a sign.
                self.add(object, None, offset, if length == "-1" { "18446744073709551615" } else { length })?;
                Kind::Free
            }
            _ => return Err("this is no record that is known"),
        };
        self.count(kind);
        Ok(())
    }

    fn add(&mut self, object: &str, kind: Option<&str>, offset: &str, length: &str) -> Result<(), &'static str> {
        if is_content(object, kind)? {
            self.changed.insert(Extent { start: number(offset)?, len: number(length)? });
        }
        Ok(())
    }

    fn summary(&self, line: &str, named: usize) -> Result<Part, &'static str> {
        let (name, value) = line.strip_prefix("Total ").and_then(|l| l.split_once(" = ")).ok_or("this is no number")?;
        let first = number(value.split(' ').next().unwrap_or(value))?;
        if let Some(kind) = name.strip_suffix(" records") {
            let here = KINDS.iter().position(|known| *known == kind);
            return match here {
                Some(at) if self.counts[at] == first => Ok(Part::Summary(named | 1 << at)),
                None if first == 0 && kind.starts_with("DRR_") => Ok(Part::Summary(named)),
                _ => Err("there are more or fewer records than it says"),
            };
        }
        match name {
            "records" if self.counts.iter().sum::<u64>() == first => Ok(Part::Summary(named)),
            "payload size" | "header overhead" => Ok(Part::Summary(named)),
            "stream length" if named == (1 << KINDS.len()) - 1 => Ok(Part::Done),
            _ => Err("this is no number that is known, or not the right one"),
        }
    }
}

/// Checks a line of the header, the `next` of them; `Break` after the last.
fn header(line: &str, next: usize) -> Result<ControlFlow<()>, &'static str> {
    const LENGTH: usize = HEADER.len();
    if line.is_empty() && next >= LENGTH - 1 {
        // 2.0 does not tell the length of the payload; then any follows here, and is no record.
        return Ok(ControlFlow::Break(()));
    }
    let name = HEADER.get(next).ok_or("the header is longer than it should be")?;
    let value = line.trim_start().strip_prefix(name).and_then(|rest| rest.strip_prefix(" = "));
    let value = value.ok_or("the header is not as it should be")?;
    let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|_| "this is no number");
    match *name {
        "hdrtype" if value != "1" => Err("it is a stream of several snapshots"),
        "features" if hex(value)? & !FEATURES != 0 => Err("the stream is of a kind that may leave something out"),
        "magic" if value != "2f5bacbac" => Err("it is no stream"),
        "type" if value != "3" => Err("it is no volume"),
        "flags" => match hex(value.strip_prefix("0x").unwrap_or("-"))? {
            flags if flags & FREE_RECORDS != 0 && flags & !FLAGS == 0 => Ok(ControlFlow::Continue(())),
            _ => Err("the stream is of a kind that may leave something out"),
        },
        "fromguid" if hex(value)? == 0 => Err("it is a full stream, not one of changes"),
        "payloadlen" if value != "0" => Err("the stream is of a kind that may leave something out"),
        _ => Ok(ControlFlow::Continue(())),
    }
}

/// Whether this is the volume's content; an error if it is something that no volume has.
fn is_content(object: &str, kind: Option<&str>) -> Result<bool, &'static str> {
    match (number(object)?, kind) {
        (CONTENT, None | Some(CONTENT_TYPE)) => Ok(true),
        (PROPERTIES, None | Some(PROPERTIES_TYPE)) => Ok(false),
        _ => Err("this is not part of a volume"),
    }
}

/// The values of a line of just these fields: `KIND name = value name = value`.
fn fields<'a, const N: usize>(line: &'a str, kind: &str, names: [&str; N]) -> Result<[&'a str; N], &'static str> {
    let mut rest = line.strip_prefix(kind).ok_or("this is another record")?;
    let mut values = [""; N];
    for (name, value) in names.into_iter().zip(&mut values) {
        let after = rest.strip_prefix(' ').and_then(|r| r.strip_prefix(name)).and_then(|r| r.strip_prefix(" = "));
        let after = after.ok_or("this record has other fields")?;
        (*value, rest) = after.split_at(after.find(' ').unwrap_or(after.len()));
    }
    if rest.is_empty() { Ok(values) } else { Err("this record has more fields") }
}

fn concat<const A: usize, const B: usize, const N: usize>(
    a: [&'static str; A],
    b: [&'static str; B],
) -> [&'static str; N] {
    let mut all = a.into_iter().chain(b);
    std::array::from_fn(|_| all.next().unwrap_or("?"))
}

fn number(text: &str) -> Result<u64, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().map_err(|_| "this number is too large") } else { Err("this is no number") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = 64 << 10;
    const SIZE: u64 = 16 << 20;

    /// Header and summary as `zstream dump` of 2.0 printed them of a volume, in a report of an error in `zfs send -v`, but with
    /// the guid of an older snapshot and with these records, which are as in dumps of other data sets with the types of a
    /// volume.
    const DUMP: &str = "BEGIN record
\thdrtype = 1
\tfeatures = 420004
\tmagic = 2f5bacbac
\tcreation_time = 60896954
\ttype = 3
\tflags = 0xc
\ttoguid = a6298c673d1078f4
\tfromguid = 2337264959843bca
\ttoname = p0/v0@b
\tpayloadlen = 0

FREEOBJECTS firstobj = 0 numobjs = 1
OBJECT object = 1 type = 23 bonustype = 0 blksz = 16384 bonuslen = 0 dn_slots = 1 raw_bonuslen = 0 flags = 0 maxblkid = 0 indblkshift = 17 nlevels = 2 nblkptr = 1
FREE object = 1 offset = 1048576 length = 131072
WRITE object = 1 type = 23 checksum type = 7 compression type = 2 flags = 0 offset = 0 logical_size = 16384 compressed_size = 4096 payload_size = 4096 props = 8200000000 salt = 0000000000000000 iv = 000000000000000000000000 mac = 00000000000000000000000000000000
WRITE_EMBEDDED object = 1 offset = 196608 length = 16384 toguid = a6298c673d1078f4 comp = 3 etype = 0 lsize = 16384 psize = 39
FREE object = 1 offset = 16711680 length = -1
OBJECT object = 2 type = 24 bonustype = 0 blksz = 512 bonuslen = 0 dn_slots = 1 raw_bonuslen = 0 flags = 0 maxblkid = 0 indblkshift = 17 nlevels = 1 nblkptr = 3
WRITE object = 2 type = 24 checksum type = 7 compression type = 0 flags = 0 offset = 0 logical_size = 512 compressed_size = 0 payload_size = 512 props = 200000000 salt = 0000000000000000 iv = 000000000000000000000000 mac = 00000000000000000000000000000000
FREE object = 2 offset = 512 length = 1024
FREEOBJECTS firstobj = 3 numobjs = 18446744073709551612
END checksum = 205ae91f75/35545010a0db/3b7b71d530b6cb/315c645075fce7b7
SUMMARY:
\tTotal DRR_BEGIN records = 1 (0 bytes)
\tTotal DRR_END records = 1 (0 bytes)
\tTotal DRR_OBJECT records = 2 (0 bytes)
\tTotal DRR_FREEOBJECTS records = 2 (0 bytes)
\tTotal DRR_WRITE records = 2 (4608 bytes)
\tTotal DRR_WRITE_BYREF records = 0 (0 bytes)
\tTotal DRR_WRITE_EMBEDDED records = 1 (40 bytes)
\tTotal DRR_FREE records = 3 (0 bytes)
\tTotal DRR_SPILL records = 0 (0 bytes)
\tTotal records = 12
\tTotal payload size = 4648 (0x1228)
\tTotal header overhead = 3744 (0xea0)
\tTotal stream length = 8392 (0x20c8)
";

    #[test]
    fn what_was_written_and_freed_is_named() {
        let wanted = [
            Extent { start: 0, len: BLOCK },
            Extent { start: 3 * BLOCK, len: BLOCK },
            Extent { start: 1 << 20, len: 2 * BLOCK },
            Extent { start: SIZE - BLOCK, len: BLOCK },
        ];
        assert_eq!(zstream_dump(DUMP.as_bytes(), SIZE, BLOCK).unwrap().runs().collect::<Vec<_>>(), wanted);
        // As 2.0.0 and the program of 2026 print it.
        let other = DUMP.replace("\tpayloadlen = 0\n", "");
        assert!(zstream_dump(other.as_bytes(), SIZE, BLOCK).is_ok());
        let newer =
            "\tTotal DRR_OBJECT_RANGE records = 0 (0 bytes)\n\tTotal DRR_REDACT records = 0 (0 bytes)\n\tTotal records";
        assert!(zstream_dump(DUMP.replace("\tTotal records", newer).as_bytes(), SIZE, BLOCK).is_ok());
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (from, to) in [
            // Streams that are not from snapshot to snapshot of a volume, or leave something out.
            ("hdrtype = 1", "hdrtype = 2"),
            ("features = 420004", "features = 1c20004"),
            ("features = 420004", "features = 520004"),
            ("features = 420004", "features = 620004"),
            ("features = 420004", "features = 1"),
            ("features = 420004", "features = 80000000"),
            ("type = 3\n", "type = 2\n"),
            ("flags = 0xc", "flags = 0x8"),
            ("flags = 0xc", "flags = 0xd"),
            ("fromguid = 2337264959843bca", "fromguid = 0"),
            ("payloadlen = 0", "payloadlen = 64"),
            ("\tpayloadlen = 0\n\n", "\n\nnvlist version: 0\n"),
            ("numobjs = 1\n", "numobjs = 2\n"),
            ("firstobj = 3", "firstobj = 2"),
            // What is no part of a volume.
            ("OBJECT object = 1 type = 23", "OBJECT object = 1 type = 19"),
            ("WRITE object = 1 type = 23", "WRITE object = 7 type = 23"),
            ("FREE object = 1", "FREE object = 3"),
            // Records of other kinds, other fields, other numbers.
            ("FREE object = 1", "REDACT object = 1"),
            ("FREE object = 1 offset = 1048576 length", "FREE object = 1 offset = 1048576 size"),
            ("length = 131072", "length = 131072 more = 1"),
            ("length = 131072", "length = -131072"),
            ("length = 131072", "length = 0x10"),
            ("length = 131072", "length = "),
            ("logical_size = 16384 ", ""),
            ("flags = 0 offset = 0 logical_size = 16384", "\n    offset = 0 logical_size = 16384"),
            ("FREE object = 1", "    checksum = 1/2/3/4\nFREE object = 1"),
            // Broken streams and broken text.
            ("END checksum", "Expected checksum differs from checksum in stream.\nEND checksum"),
            ("END checksum = 205ae91f75/", "END checksum = "),
            ("END checksum = 205ae91f75", "INVALID record found: type 0x"),
            ("FREE object = 1 offset = 1048576 length = 131072\n", ""),
            ("DRR_FREE records = 3", "DRR_FREE records = 4"),
            ("\tTotal DRR_FREE records = 3 (0 bytes)\n", ""),
            ("WRITE_BYREF records = 0", "WRITE_BYREF records = 1"),
            ("Total records = 12", "Total records = 13"),
            ("SUMMARY:\n", "BEGIN record\n"),
        ] {
            let text = DUMP.replacen(from, to, 1);
            assert_ne!(text, DUMP, "{from}");
            assert!(zstream_dump(text.as_bytes(), SIZE, BLOCK).is_err(), "{from:?} -> {to:?}");
        }
        let e = zstream_dump(DUMP.replace("FREE object = 1", "REDACT object = 1").as_bytes(), SIZE, BLOCK).unwrap_err();
        assert_eq!((e.program, e.line), ("zstream dump", 15), "{e}");
        assert!(zstream_dump(format!("{DUMP}{DUMP}").as_bytes(), SIZE, BLOCK).is_err());
    }

    #[test]
    fn no_beginning_of_a_dump_is_a_dump() {
        let last = DUMP.rfind("\tTotal stream length = ").unwrap() + "\tTotal stream length = 8".len();
        for at in 0..last {
            assert!(zstream_dump(&DUMP.as_bytes()[..at], SIZE, BLOCK).is_err(), "{at}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(line in "(WRITE|FREE|END|Total)?[ -~\u{e9}]{0,40}", at in 0..DUMP.len(), with in "\\PC") {
            let mut changed = DUMP.to_owned();
            changed.replace_range(at..at + 1, &with);
            let _ = zstream_dump(changed.as_bytes(), SIZE, BLOCK);
            let _ = zstream_dump(DUMP.replacen("FREE object = 2", &format!("{line}\nFREE object = 2"), 1).as_bytes(), SIZE, BLOCK);
        }
    }
}
