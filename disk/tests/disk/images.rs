//! Each container, judged by QEMU.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use landfall_disk::{DiskErrorKind, Existing, Format, Target};
use landfall_model::Extent;
use tempfile::tempdir;

use crate::judge::{self, qemu_img, text};
use crate::{FORMATS, SIZES, make, pattern};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

#[test]
fn every_size_comes_out_of_every_format_as_it_went_in() {
    for format in FORMATS {
        for size in SIZES {
            let folder = tempdir().unwrap();
            let (path, raw) = (folder.path().join("image"), folder.path().join("raw"));
            let bytes = pattern(size as usize, size);
            make(&path, format, &bytes);
            make(&raw, Format::Raw, &bytes);
            let rounded = match format {
                Format::Raw => size,
                Format::Qcow2 => size.next_multiple_of(512),
                Format::Vhd => size.next_multiple_of(MIB),
            };
            judge::assert_holds(&path, format, &bytes, rounded);
            judge::assert_same(&path, format, &raw, Format::Raw);
            assert_eq!(fs::metadata(&raw).unwrap().len(), size);
        }
    }
}

#[test]
fn no_format_takes_a_disk_of_no_bytes() {
    let folder = tempdir().unwrap();
    for format in FORMATS {
        let e = Target::create_or_open(&folder.path().join("image"), format, 0, Existing::Refuse).unwrap_err();
        assert_eq!(e.kind(), DiskErrorKind::Usage);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_range_over_the_end_is_an_error_of_the_caller_and_changes_nothing() {
    for format in FORMATS {
        let folder = tempdir().unwrap();
        let path = folder.path().join("image");
        let target = Target::create_or_open(&path, format, MIB, Existing::Refuse).unwrap();
        for (offset, len) in [(MIB, 1), (MIB - 1, 2), (u64::MAX, 1)] {
            let mut buf = vec![1; len];
            assert_eq!(target.write_at(&buf, offset).unwrap_err().kind(), DiskErrorKind::Usage);
            assert_eq!(target.read_at(&mut buf, offset).unwrap_err().kind(), DiskErrorKind::Usage);
            let run = Extent { start: offset, len: len as u64 };
            assert_eq!(target.write_zeroes(run).unwrap_err().kind(), DiskErrorKind::Usage);
        }
        target.finish().unwrap();
        judge::assert_holds(&path, format, &[], MIB);
    }
}

#[test]
fn zeroes_free_the_space_and_what_is_a_hole_is_not_written() {
    for format in FORMATS {
        let folder = tempdir().unwrap();
        let path = folder.path().join("image");
        let target = Target::create_or_open(&path, format, 8 * MIB, Existing::Refuse).unwrap();
        assert!(target.is_fresh());
        let whole = Extent { start: 0, len: 8 * MIB };
        assert_eq!(target.write_zeroes(whole).unwrap(), 0, "{format:?}");
        target.write_at(&pattern(4 * MIB as usize, 1), 2 * MIB).unwrap();
        assert_eq!(target.data_extents(whole).unwrap(), [Extent { start: 2 * MIB, len: 4 * MIB }], "{format:?}");
        let run = Extent { start: MIB, len: 4 * MIB };
        assert_eq!(target.write_zeroes(run).unwrap(), 3 * MIB, "{format:?}");
        assert_eq!(target.write_zeroes(run).unwrap(), 0, "{format:?}");
        assert_eq!(target.data_extents(whole).unwrap(), [Extent { start: 5 * MIB, len: MIB }], "{format:?}");
        target.finish().unwrap();
        let allocated = fs::metadata(&path).unwrap().blocks() * 512;
        // In a qcow2 the clusters stay with the image, for later writes.
        let wanted = if format == Format::Qcow2 { 5 * MIB } else { 2 * MIB };
        assert!(allocated < wanted, "{format:?}: {allocated} bytes allocated");
    }
}

#[test]
fn a_qcow2_of_64_tib_is_made_searched_and_read_in_no_time() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("huge.qcow2");
    let started = Instant::now();
    let target = Target::create_or_open(&path, Format::Qcow2, 64 * TIB, Existing::Refuse).unwrap();
    let bytes = pattern(70_000, 5);
    target.write_at(&bytes, 64 * TIB - 70_000).unwrap();
    target.write_at(&bytes, 33 * TIB + 12_345).unwrap();
    let runs = target.data_extents(Extent { start: 0, len: 64 * TIB }).unwrap();
    let ends: Vec<u64> = runs.iter().map(Extent::end).collect();
    assert_eq!(ends, [(33 * TIB + 82_345).next_multiple_of(65_536), 64 * TIB]);
    target.finish().unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    qemu_img(&["check", "-f", "qcow2", text(&path)]);
    assert!(judge::virtual_size(&path, Format::Qcow2).is_none_or(|size| size == 64 * TIB));
    let again = Target::create_or_open(&path, Format::Qcow2, 64 * TIB, Existing::Compare).unwrap();
    let mut read = vec![0; bytes.len()];
    again.read_at(&mut read, 64 * TIB - 70_000).unwrap();
    assert!(read == bytes);
}

#[test]
fn images_that_qemu_made_are_read_and_brought_up_to_date() {
    let options = ["compat=1.1", "compat=0.10", "cluster_size=4096", "cluster_size=2097152", "preallocation=metadata"];
    let compressed = [false, true];
    for (option, compress) in options.into_iter().flat_map(|o| compressed.map(|c| (o, c))) {
        if compress && option.starts_with("preallocation") {
            continue;
        }
        let folder = tempdir().unwrap();
        let (path, raw) = (folder.path().join("image"), folder.path().join("raw"));
        let mut bytes = pattern(5 * MIB as usize + 1024, 3);
        bytes[MIB as usize..2 * MIB as usize].fill(0);
        make(&raw, Format::Raw, &bytes);
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", option, text(&raw), text(&path)];
        if compress {
            args.push("-c");
        }
        if qemu_img(&args).is_none() {
            return;
        }
        let size = bytes.len() as u64;
        let target = Target::create_or_open(&path, Format::Qcow2, size, Existing::Compare).unwrap();
        assert!(!target.is_fresh());
        let mut read = vec![0; bytes.len()];
        target.read_at(&mut read, 0).unwrap();
        assert!(read == bytes, "{option}");
        let change = pattern(100_000, 9);
        target.write_at(&change, 12_345).unwrap();
        bytes[12_345..112_345].copy_from_slice(&change);
        let zero = Extent { start: 3 * MIB - 5000, len: 700_000 };
        target.write_zeroes(zero).unwrap();
        bytes[zero.start as usize..zero.end() as usize].fill(0);
        target.finish().unwrap();
        judge::assert_holds(&path, Format::Qcow2, &bytes, size);
    }
}

#[test]
fn a_qcow2_that_stands_on_other_files_is_refused_untouched() {
    let folder = tempdir().unwrap();
    let (base, top) = (folder.path().join("base.raw"), folder.path().join("top.qcow2"));
    make(&base, Format::Raw, &pattern(MIB as usize, 1));
    let data = format!("data_file={}", text(&folder.path().join("data")));
    let backed = ["create", "-q", "-f", "qcow2", "-b", text(&base), "-F", "raw", text(&top)];
    let external = ["create", "-q", "-f", "qcow2", "-o", &data, text(&top), "1M"];
    for args in [&backed[..], &external[..]] {
        if qemu_img(args).is_none() {
            return;
        }
        let before = fs::read(&top).unwrap();
        let e = Target::create_or_open(&top, Format::Qcow2, MIB, Existing::Compare).unwrap_err();
        assert_eq!(e.kind(), DiskErrorKind::Unsupported, "{e}");
        assert!(fs::read(&top).unwrap() == before);
    }
}

#[test]
fn an_existing_file_of_another_format_is_refused_untouched() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image");
    for content in [Vec::new(), pattern(100, 1), pattern(MIB as usize, 1)] {
        fs::write(&path, &content).unwrap();
        for format in [Format::Qcow2, Format::Vhd] {
            let e = Target::create_or_open(&path, format, MIB, Existing::Compare).unwrap_err();
            assert_eq!(e.kind(), DiskErrorKind::Unsupported, "{format:?}: {e}");
            assert!(fs::read(&path).unwrap() == content);
        }
    }
}

#[test]
fn qemu_sees_the_exact_size_of_a_vhd_whatever_its_geometry() {
    let folder = tempdir().unwrap();
    for mib in [1, 2, 3, 5, 33, 503, 504, 1000, 8191, 130_000, 2_088_960] {
        let path = folder.path().join(format!("{mib}.vhd"));
        let target = Target::create_or_open(&path, Format::Vhd, mib * MIB, Existing::Refuse).unwrap();
        target.write_at(b"end", mib * MIB - 3).unwrap();
        target.finish().unwrap();
        assert!(judge::virtual_size(&path, Format::Vhd).is_none_or(|size| size == mib * MIB), "{mib} MiB");
        assert_eq!(fs::metadata(&path).unwrap().len(), mib * MIB + 512);
        fs::remove_file(&path).unwrap();
    }
    let too_large = Target::create_or_open(&folder.path().join("x"), Format::Vhd, 2041 << 30, Existing::Refuse);
    assert_eq!(too_large.unwrap_err().kind(), DiskErrorKind::Usage);
}

#[test]
fn a_vhd_that_qemu_made_is_brought_up_to_date_and_keeps_its_identity() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image.vhd");
    let fixed = ["create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", text(&path), "3M"];
    if qemu_img(&fixed).is_none() {
        return;
    }
    let id = fs::read(&path).unwrap()[3 * MIB as usize + 68..][..16].to_vec();
    let bytes = pattern(5 * MIB as usize, 4);
    let target = Target::create_or_open(&path, Format::Vhd, 5 * MIB, Existing::Compare).unwrap();
    let mut grown = vec![1; 2 * MIB as usize];
    target.read_at(&mut grown, 3 * MIB).unwrap();
    assert!(grown.iter().all(|&b| b == 0), "the old footer is not data");
    target.write_at(&bytes, 0).unwrap();
    target.finish().unwrap();
    judge::assert_holds(&path, Format::Vhd, &bytes, 5 * MIB);
    assert_eq!(fs::read(&path).unwrap()[5 * MIB as usize + 68..][..16], id);
}

#[test]
fn a_vhd_that_is_dynamic_or_has_a_damaged_footer_is_refused_untouched() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image.vhd");
    let refused = || {
        let before = fs::read(&path).unwrap();
        let e = Target::create_or_open(&path, Format::Vhd, MIB, Existing::Compare).unwrap_err();
        assert_eq!(e.kind(), DiskErrorKind::Unsupported, "{e}");
        assert!(fs::read(&path).unwrap() == before);
        fs::remove_file(&path).unwrap();
    };
    for at in [0, 9, 52, 63, 64, 70] {
        make(&path, Format::Vhd, &pattern(MIB as usize, 1));
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, MIB + at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], MIB + at).unwrap();
        refused();
    }
    make(&path, Format::Vhd, &pattern(MIB as usize, 1));
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(2 * MIB).unwrap();
    refused();
    if qemu_img(&["create", "-q", "-f", "vpc", "-o", "subformat=dynamic", text(&path), "1M"]).is_some() {
        refused();
    }
}
