//! What `thin_delta` (thin-provisioning-tools) tells of two snapshots in one thin pool of LVM.
//!
//! ```xml
//! <superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">
//!   <diff left="2" right="3">
//!     <different begin="0" length="1"/>
//!     <same begin="1" length="1"/>
//!     <left_only begin="80" length="16"/>
//!     <right_only begin="233" length="1"/>
//!   </diff>
//! </superblock>
//! ```
//!
//! The block size is in sectors of 512 bytes, all others are numbers of such blocks of the volume. What is not named is
//! mapped in neither snapshot, and reads as the same in both. The order is that of the volume; runs behind the end of a
//! volume that was made smaller happen, and do not matter.
//!
//! As with clones, it is sound because a block of the pool is not used for anything else while a snapshot has it: the
//! older snapshot must exist until the comparison has ended, and the metadata must be of one moment
//! (`reserve_metadata_snap`). **The versions 1.0 to 1.0.5 of the tools call blocks the same that are not** (they joined
//! mappings without looking at where the data is): 0.9 and 1.0.6 are right. The output does not tell; ask `thin_delta -V`.
//!
//! Written against output that others recorded. It has never met a real thin pool.

use std::io::BufRead;

use landfall_model::{BlockSet, Extent};

use crate::understand::{NotUnderstood, next_piece};

const SECTOR_BYTES: u64 = 512;
/// What the kernel takes, in sectors: 64 KiB to 1 GiB in steps of 64 KiB (Documentation/admin-guide/device-mapper).
const BLOCK_SECTORS_MIN: u64 = 128;
const BLOCK_SECTORS_MAX: u64 = 2_097_152;

/// What may be said of the pool and the pair; of the first, only the block size matters.
const POOL: [&str; 8] =
    ["uuid", "time", "transaction", "flags", "version", "data_block_size", "nr_data_blocks", "metadata_snap"];
const PAIR: [&str; 4] = ["left", "right", "left_root", "right_root"];
const RUN: [&str; 2] = ["begin", "length"];

/// The blocks, of `block_size` bytes, of a volume of `size` bytes that differ between two snapshots: the output of
/// `thin_delta --thin1 OLD --thin2 NEW` (not `--verbose`).
///
/// Where the volume has grown, what lies behind the old end is for the caller to add. Read tag by tag: memory is that of the blocks.
///
/// # Errors
/// If anything in it is not understood.
pub fn thin_delta(text: impl BufRead, size: u64, block_size: u64) -> Result<BlockSet, NotUnderstood> {
    let mut tags = Tags { text, line: 1 };
    let mut piece = String::new();
    let pool = tags.expect(&mut piece, "superblock", "no pool is described")?;
    let block_bytes = block_bytes(&pool).map_err(|why| tags.error(why))?;
    let pair = tags.expect(&mut piece, "diff", "no pair of snapshots is named")?;
    pair.only(&PAIR).map_err(|why| tags.error(why))?;
    let mut changed = BlockSet::new(size, block_size);
    let mut from = 0;
    loop {
        let tag = tags.next(&mut piece)?.ok_or_else(|| tags.error("it is not complete"))?;
        match (tag.name, tag.alone) {
            ("/diff", false) => break,
            ("same" | "different" | "left_only" | "right_only", true) => {}
            _ => return Err(tags.error("this is no kind of difference that is known")),
        }
        let run = run(&tag, block_bytes).map_err(|why| tags.error(why))?;
        if run.start < from {
            return Err(tags.error("it goes backwards"));
        }
        from = run.end();
        if tag.name != "same" {
            changed.insert(run);
        }
    }
    tags.expect(&mut piece, "/superblock", "it is not complete")?;
    match tags.next(&mut piece)? {
        None => Ok(changed),
        Some(_) => Err(tags.error("there is more than one answer")),
    }
}

fn block_bytes(pool: &Tag) -> Result<u64, &'static str> {
    pool.only(&POOL)?;
    if pool.has("flags").is_some_and(|flags| flags != "0") {
        return Err("the pool's metadata needs a check");
    }
    if pool.has("version").is_some_and(|version| version != "2") {
        return Err("this version of the format is not known");
    }
    let sectors = pool.number("data_block_size")?;
    if !(BLOCK_SECTORS_MIN..=BLOCK_SECTORS_MAX).contains(&sectors) || !sectors.is_multiple_of(BLOCK_SECTORS_MIN) {
        return Err("no pool has blocks of this size");
    }
    Ok(sectors * SECTOR_BYTES)
}

fn run(tag: &Tag, block_bytes: u64) -> Result<Extent, &'static str> {
    tag.only(&RUN)?;
    let (begin, length) = (tag.number("begin")?, tag.number("length")?);
    let end = begin.checked_add(length).filter(|_| length > 0).ok_or("the run has no end")?;
    match (begin.checked_mul(block_bytes), end.checked_mul(block_bytes)) {
        (Some(start), Some(end)) => Ok(Extent::between(start, end)),
        _ => Err("no volume is so large"),
    }
}

/// A tag of the little of XML that these programs print.
struct Tag<'a> {
    /// With the slash of an end tag.
    name: &'a str,
    values: Vec<(&'a str, &'a str)>,
    /// An element without content.
    alone: bool,
}

impl<'a> Tag<'a> {
    /// The inside of `<...>`; `None` if it is anything other than names and quoted values.
    fn parse(inside: &'a str) -> Option<Self> {
        let (inside, alone) = inside.strip_suffix('/').map_or((inside, false), |rest| (rest, true));
        let (name, mut rest) = inside.split_at(inside.find(char::is_whitespace).unwrap_or(inside.len()));
        let mut values: Vec<(&str, &str)> = Vec::new();
        loop {
            rest = rest.trim_start();
            if rest.is_empty() {
                return Some(Self { name, values, alone });
            }
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = after.split_once('"')?;
            if values.iter().any(|(other, _)| *other == key)
                || !(after.is_empty() || after.starts_with(char::is_whitespace))
            {
                return None;
            }
            values.push((key, value));
            rest = after;
        }
    }

    fn has(&self, key: &str) -> Option<&'a str> {
        self.values.iter().find(|(other, _)| *other == key).map(|(_, value)| *value)
    }

    fn only(&self, known: &[&str]) -> Result<(), &'static str> {
        if self.values.iter().all(|(key, _)| known.contains(key)) { Ok(()) } else { Err("it says something unknown") }
    }

    fn number(&self, key: &str) -> Result<u64, &'static str> {
        let value = self.has(key).filter(|value| value.bytes().all(|b| b.is_ascii_digit()));
        value.and_then(|value| value.parse().ok()).ok_or("a number is missing")
    }
}

/// The tags of a text, one after the other.
struct Tags<R> {
    text: R,
    /// Where the last tag was.
    line: usize,
}

impl<R: BufRead> Tags<R> {
    fn error(&self, why: &'static str) -> NotUnderstood {
        NotUnderstood { program: "thin_delta", line: self.line, why }
    }

    /// The next tag, whose text is kept in `piece`.
    fn next<'p>(&mut self, piece: &'p mut String) -> Result<Option<Tag<'p>>, NotUnderstood> {
        next_piece(&mut self.text, b'>', piece).map_err(|why| self.error(why))?;
        let tag = piece.trim_start();
        let before = piece.len() - tag.len();
        self.line += piece[..before].matches('\n').count();
        if tag.is_empty() {
            return Ok(None);
        }
        let inside = tag.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
        let inside = inside.ok_or_else(|| self.error("this is no tag"))?;
        Tag::parse(inside).map(Some).ok_or_else(|| self.error("this is no tag"))
    }

    fn expect<'p>(
        &mut self,
        piece: &'p mut String,
        name: &str,
        otherwise: &'static str,
    ) -> Result<Tag<'p>, NotUnderstood> {
        match self.next(piece)? {
            Some(tag) if tag.name == name && !tag.alone => Ok(tag),
            _ => Err(self.error(otherwise)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = 64 << 10;

    /// Two snapshots of a live pool, by thin_delta 0.9 with `-m`; from a published walk through thin-send-recv, cut short.
    const LIVE: &str = r#"<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">
  <diff left="2" right="3">
    <different begin="0" length="1"/>
    <same begin="1" length="1"/>
    <right_only begin="233" length="1"/>
    <same begin="51200" length="1"/>
    <same begin="409600" length="1"/>
    <different begin="409601" length="1"/>
    <same begin="409602" length="399"/>
    <same begin="819198" length="2"/>
  </diff>
</superblock>
"#;

    /// The same tool, of its functional tests.
    const TESTED: &str = r#"<superblock uuid="" time="1" transaction="0" data_block_size="128" nr_data_blocks="163840">
  <diff left="0" right="1">
    <right_only begin="80" length="80"/>
    <different begin="160" length="80"/>
    <same begin="240" length="80"/>
  </diff>
</superblock>
"#;

    /// Blocks of 2 MiB, from the tests of a storage system that reads it.
    const LARGE: &str = r#"
        <superblock uuid="" time="0" transaction="0" data_block_size="4096" nr_data_blocks="51200">
            <diff left="1" right="2">
                <same begin="0" length="1"/>
                <left_only begin="2" length="1"/>
                <different begin="4" length="1"/>
                <different begin="6" length="1"/>
                <right_only begin="8" length="2"/>
            </diff>
        </superblock>"#;

    fn runs(text: &str, size: u64) -> Vec<(u64, u64)> {
        thin_delta(text.as_bytes(), size, BLOCK)
            .unwrap()
            .runs()
            .map(|run| (run.start / BLOCK, run.len / BLOCK))
            .collect()
    }

    #[test]
    fn recorded_output_names_what_differs() {
        assert_eq!(runs(LIVE, 819_200 * BLOCK), [(0, 1), (233, 1), (409_601, 1)]);
        assert_eq!(runs(TESTED, 1600 * BLOCK), [(80, 160)]);
        assert_eq!(runs(LARGE, 320 * BLOCK), [(64, 32), (128, 32), (192, 32), (256, 64)]);
        // A volume that was made smaller.
        assert_eq!(runs(LARGE, 150 * BLOCK), [(64, 32), (128, 22)]);
        let empty = TESTED.split("    <").next().unwrap().to_owned() + "</diff></superblock>";
        assert!(runs(&empty, BLOCK).is_empty());
        // The tools in Rust name the version of the format.
        let newer = TESTED.replace(r#"transaction="0""#, r#"transaction="0" version="2""#);
        assert_eq!(runs(&newer, 1600 * BLOCK), [(80, 160)]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (from, to) in [
            ("<diff ", "<!-- diff -->\n<diff "),
            ("left=", "middle="),
            ("<same ", "<resembling "),
            ("begin=\"240\"", "begin=\"239\""),
            ("begin=\"240\"", "begin=\"+240\""),
            ("begin=\"240\"", "begin=\"\""),
            ("begin=\"240\"", "begin=\"18446744073709551615\""),
            ("begin=\"240\"", "begin=\"281474976710656\""),
            ("begin=\"240\"", "begin=\"240\" begin=\"240\""),
            ("begin=\"240\"", "begin=\"240\" data_begin=\"7\""),
            ("begin=\"240\" ", ""),
            ("length=\"80\"/>", "length=\"0\"/>"),
            ("length=\"80\"/>", "length=\"80\">"),
            ("length=\"80\"/>", "length=\"80/>"),
            ("length=\"80\"/>", "length=\"80\"/>x"),
            ("\"128\"", "\"0\""),
            ("\"128\"", "\"100\""),
            ("\"128\"", "\"18446744073709551615\""),
            (" data_block_size=\"128\"", ""),
            ("uuid", "flags=\"1\" uuid"),
            ("uuid", "version=\"3\" uuid"),
            ("</diff>", ""),
            ("</superblock>", ""),
            ("</superblock>", "</superblock><superblock>"),
            ("<superblock", "warning: something\n<superblock"),
        ] {
            let text = TESTED.replacen(from, to, 1);
            assert_ne!(text, TESTED, "{from}");
            assert!(thin_delta(text.as_bytes(), 1600 * BLOCK, BLOCK).is_err(), "{text}");
        }
        let e = thin_delta(TESTED.replace("<same ", "<resembling ").as_bytes(), BLOCK, BLOCK).unwrap_err();
        assert_eq!((e.program, e.line), ("thin_delta", 5), "{e}");
        // With --verbose.
        let verbose = TESTED.replace("<same begin=\"240\" length=\"80\"/>", "<same><range begin=\"240\"/></same>");
        assert!(thin_delta(verbose.as_bytes(), BLOCK, BLOCK).is_err());
        assert!(thin_delta(&b""[..], BLOCK, BLOCK).is_err());
    }

    #[test]
    fn no_beginning_of_an_answer_is_an_answer() {
        let whole = LIVE.trim_end();
        for at in 0..whole.len() {
            assert!(thin_delta(&whole.as_bytes()[..at], 819_200 * BLOCK, BLOCK).is_err(), "{at}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(<?/?(diff|same|superblock)?[ -~\n\u{e9}]{0,30}>?){0,8}", at in 0..TESTED.len(), with in "\\PC") {
            let _ = thin_delta(text.as_bytes(), 1 << 30, BLOCK);
            let mut changed = TESTED.to_owned();
            changed.replace_range(at..at + 1, &with);
            let _ = thin_delta(changed.as_bytes(), 1 << 30, BLOCK);
        }
    }
}
