//! What LVM, device mapper and ZFS print, as far as it is needed. What is not understood is an error.

use landfall_model::{Error, Result};
use serde::Deserialize;

use super::Usage;

/// A logical volume, as `lvs --reportformat json` tells of it: all values are texts.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(super) struct Row {
    pub(super) vg_name: String,
    pub(super) lv_name: String,
    pub(super) lv_path: String,
    pub(super) segtype: String,
    pub(super) pool_lv: String,
    pub(super) origin: String,
    pub(super) thin_id: String,
    pub(super) lv_tags: String,
}

/// What is asked of a volume.
pub(super) const ROW: &str = "vg_name,lv_name,lv_path,segtype,pool_lv,origin,thin_id,lv_tags";

#[derive(Deserialize)]
struct Report {
    report: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    /// Another part tells the messages, where that is configured.
    #[serde(default)]
    lv: Vec<Row>,
}

/// The volumes of a report.
pub(super) fn rows(json: &str) -> Result<Vec<Row>> {
    let report: Report = serde_json::from_str(json).map_err(|e| not_understood("lvs", &e.to_string()))?;
    let rows: Vec<Row> = report.report.into_iter().flat_map(|part| part.lv).collect();
    match rows.iter().find(|row| !is_lvm_name(&row.vg_name) || !is_lvm_name(&row.lv_name)) {
        Some(row) => Err(not_understood("lvs", &format!("{:?} is no name", row.lv_name))),
        None => Ok(rows),
    }
}

/// Whether it is a name by lvm(8), and can be no option. Names of hidden volumes stand in brackets.
pub(super) fn is_lvm_name(name: &str) -> bool {
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let is_known = |b: u8| b.is_ascii_alphanumeric() || b"+_.-".contains(&b);
    !name.starts_with('-') && (1..128).contains(&name.len()) && name.bytes().all(is_known)
}

/// The name that device mapper has for a volume: hyphens of the parts are doubled.
pub(super) fn mapped_name(vg: &str, lv: &str) -> String {
    format!("{}-{}", vg.replace('-', "--"), lv.replace('-', "--"))
}

/// What `dmsetup status` tells of a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PoolStatus {
    pub(super) usage: Usage,
    /// The block of the metadata snapshot that somebody holds.
    pub(super) held: Option<u64>,
}

/// Reads the status of a thin pool (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
pub(super) fn pool_status(text: &str) -> Result<PoolStatus> {
    let wrong = |why: &str| not_understood("dmsetup status", why);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let (Some(line), None) = (lines.next(), lines.next()) else { return Err(wrong("it is not one line")) };
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, _, "thin-pool", _, metadata, data, held, mode, ..] = words[..] else {
        return Err(wrong("it is no pool that works"));
    };
    let percent = |pair: &str| {
        let (used, total) = pair.split_once('/')?;
        let (used, total) = (number(used)?, number(total).filter(|total| *total > 0)?);
        let percent = u128::from(used) * 100 / u128::from(total);
        u8::try_from(percent).ok()
    };
    let usage = percent(metadata).zip(percent(data)).ok_or_else(|| wrong("its room is not told"))?;
    let held = match held {
        "-" => None,
        block => Some(number(block).ok_or_else(|| wrong("its metadata snapshot is not told"))?),
    };
    if mode != "rw" {
        return Err(wrong(&format!("the pool cannot be written to ({mode})")));
    }
    if words.contains(&"needs_check") {
        return Err(wrong("the pool's metadata needs a check"));
    }
    Ok(PoolStatus { usage: Usage { metadata_percent: usage.0, data_percent: usage.1 }, held })
}

/// Refuses versions of `thin_delta` that tell what is wrong: before 0.7.4, and 1.0.0 to 1.0.5, which call blocks the same that are not.
pub(super) fn check_thin_delta(text: &str) -> Result<()> {
    let word = text.lines().next().and_then(|line| line.split_whitespace().next_back());
    let mut numbers = word.into_iter().flat_map(|word| word.split('.')).map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| &part[..end]);
        digits.parse::<u32>().ok()
    });
    let mut next = || numbers.next().flatten();
    let (Some(major), Some(minor), Some(patch)) = (next(), next(), next()) else {
        return Err(not_understood("thin_delta -V", "it names no version"));
    };
    let version = (major, minor, patch);
    if version < (0, 7, 4) || ((1, 0, 0)..(1, 0, 6)).contains(&version) {
        let why = format!("version {major}.{minor}.{patch} does not name all differences; 0.9 and 1.0.6 do");
        return Err(not_understood("thin_delta -V", &why));
    }
    Ok(())
}

/// Whether it is a name by zfs(8) of a volume, and can be no option.
pub(super) fn is_zfs_name(name: &str) -> bool {
    let is_known = |b: u8| b.is_ascii_alphanumeric() || b"-_.: ".contains(&b);
    let is_part = |part: &str| {
        part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_') && part.bytes().all(is_known)
    };
    name.len() < 200 && name.contains('/') && name.split('/').all(is_part)
}

/// The lines of `zfs list -H` and `zpool list -H`: fields with tabs between them.
pub(super) fn lines<const N: usize>(program: &'static str, text: &str) -> Result<Vec<[String; N]>> {
    let line = |line: &str| -> Result<[String; N]> {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        fields.try_into().map_err(|_| not_understood(program, "a line has other fields"))
    };
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(not_understood(program, "it is not complete"));
    }
    text.lines().map(line).collect()
}

/// How full a pool of ZFS is: the one line of `zpool list -H -p -o capacity,health`.
pub(super) fn zpool_usage(text: &str) -> Result<Usage> {
    let wrong = |why: &str| not_understood("zpool list", why);
    let [[capacity, health]] = &lines::<2>("zpool list", text)?[..] else { return Err(wrong("it is not one line")) };
    if !matches!(health.as_str(), "ONLINE" | "DEGRADED") {
        return Err(wrong(&format!("the pool is {health}")));
    }
    // Without the sign with -p; older ones print it all the same.
    let percent = capacity.strip_suffix('%').unwrap_or(capacity);
    let data_percent =
        number(percent).and_then(|n| u8::try_from(n).ok()).ok_or_else(|| wrong("this is no percentage"))?;
    Ok(Usage { data_percent, metadata_percent: 0 })
}

/// A number of digits only.
pub(super) fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn not_understood(program: &str, why: &str) -> Error {
    Error::corrupt(format!("what {program} printed is not understood: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As LVM 2.03 prints it, by recorded reports of others.
    const REPORT: &str = r#"  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg-0", "lv_name":"root", "lv_path":"/dev/vg-0/root", "segtype":"thin", "pool_lv":"pool", "origin":"", "thin_id":"1", "lv_tags":""},
                  {"vg_name":"vg-0", "lv_name":"pool", "lv_path":"", "segtype":"thin-pool", "pool_lv":"", "origin":"", "thin_id":"", "lv_tags":""}
              ]
          }
      ]
  }
"#;

    #[test]
    fn a_report_names_volumes() {
        let all = rows(REPORT).expect("understood");
        assert_eq!(all.len(), 2);
        assert_eq!((&*all[0].lv_name, &*all[0].segtype, &*all[0].thin_id), ("root", "thin", "1"));
        assert_eq!(rows(r#"{"report":[{"lv":[]}],"log":[]}"#).expect("none"), []);
        for (from, to) in [("\"thin_id\":\"1\", ", ""), ("\"root\"", "\"-root\""), ("\"root\"", "7"), ("]", "")] {
            assert!(rows(&REPORT.replacen(from, to, 1)).is_err(), "{from}");
        }
        assert!(!is_lvm_name("a/b") && !is_lvm_name("") && is_lvm_name("[pool_tmeta]") && !is_lvm_name("a b"));
        assert_eq!(mapped_name("vg-0", "my-pool") + "-tpool", "vg--0-my--pool-tpool");
    }

    #[test]
    fn a_pools_status_tells_how_full_it_is_and_what_is_held() {
        let usage = |data_percent, metadata_percent| Usage { data_percent, metadata_percent };
        // Recorded by others: kernels with and without the last field, with a metadata snapshot and without.
        for (text, wanted, held) in [
            (
                "0 2097152 thin-pool 0 1698/16384 7257/16384 95 rw discard_passdown queue_if_no_space - 1024\n",
                usage(44, 10),
                Some(95),
            ),
            (
                "0 129548288 thin-pool 1 20/49152 38/126512 - rw no_discard_passdown queue_if_no_space - ",
                usage(0, 0),
                None,
            ),
        ] {
            assert_eq!(pool_status(text).expect("understood"), PoolStatus { usage: wanted, held });
        }
        for text in [
            "0 100 thin-pool Fail",
            "",
            "0 1 thin-pool 1 1/2 1/0 - rw - - - 1",
            "0 1 thin-pool 1 1/2 1/2 x rw - - - 1",
            "0 1 thin-pool 1 1/2 1/2 - ro - - - 1",
            "0 1 thin-pool 1 1/2 1/2 - out_of_data_space - - - 1",
            "0 12345 thin-pool 65 327/45678 14092/45678 36 rw discard_passdown error_if_no_space needs_check ",
            "0 1 thin-pool 1 -1/2 1/2 - rw - - - 1",
            "0 1 linear\n",
            "0 1 thin-pool 1 1/2 1/2 - rw - - - 1\n0 1 thin-pool 1 1/2 1/2 - rw - - - 1\n",
        ] {
            assert!(pool_status(text).is_err(), "{text}");
        }
    }

    #[test]
    fn versions_that_do_not_name_all_differences_are_refused() {
        for good in ["0.9.0\n", "0.7.4", "thin_delta 1.0.6\n", "1.0.12", "thin_delta 1.1.0-rc1", "2.0.0"] {
            assert!(check_thin_delta(good).is_ok(), "{good}");
        }
        for bad in ["", "0.5.6", "0.7.3", "thin_delta 1.0.0", "1.0.5\n", "1.0", "thin_delta", "x.y.z"] {
            assert!(check_thin_delta(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_zfs_lists_has_fields_with_tabs_between_them() {
        assert_eq!(zpool_usage("37\tONLINE\n").expect("understood"), Usage { data_percent: 37, metadata_percent: 0 });
        assert_eq!(zpool_usage("5%\tDEGRADED\n").expect("understood").data_percent, 5);
        for text in
            ["", "37\n", "37\tFAULTED\n", "-\tONLINE\n", "37\tONLINE", "1\tONLINE\n2\tONLINE\n", "999\tONLINE\n"]
        {
            assert!(zpool_usage(text).is_err(), "{text:?}");
        }
        for (name, is_name) in [
            ("tank/vm/root", true),
            ("tank", false),
            ("tank/-x", false),
            ("-tank/x", false),
            ("tank/x@s", false),
            ("tank//x", false),
            ("tank/a b", true),
            ("tank/..", false),
        ] {
            assert_eq!(is_zfs_name(name), is_name, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in "[ -~\n\t\u{e9}]{0,80}") {
            let _ = (rows(&text), pool_status(&text), check_thin_delta(&text), zpool_usage(&text), lines::<3>("p", &text));
            let _ = pool_status(&format!("0 1 thin-pool {text}"));
        }
    }
}
