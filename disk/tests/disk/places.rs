//! What is at which name: before, while, and after a target is written, and after a run that was killed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use landfall_disk::{DiskErrorKind, Existing, Format, Reason, Target};
use landfall_model::Extent;
use tempfile::tempdir;

use crate::judge;
use crate::{FORMATS, make, pattern};

const MIB: u64 = 1 << 20;

fn with(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn open(path: &Path, format: Format, existing: Existing) -> landfall_disk::Result<Target> {
    Target::create_or_open(path, format, MIB, existing)
}

#[test]
fn a_new_image_has_its_name_only_when_it_is_complete() {
    for (format, existing) in
        FORMATS.into_iter().flat_map(|f| [Existing::Refuse, Existing::Overwrite, Existing::Compare].map(|e| (f, e)))
    {
        let folder = tempdir().unwrap();
        let path = folder.path().join("image");
        let target = open(&path, format, existing).unwrap();
        assert!(target.is_fresh());
        target.write_at(&[1; 4096], 0).unwrap();
        assert_eq!(names(folder.path()), ["image.partial"]);
        target.finish().unwrap();
        assert_eq!(names(folder.path()), ["image"]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn refuse_touches_nothing_that_exists() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, "precious").unwrap();
    for format in FORMATS {
        let e = open(&path, format, Existing::Refuse).unwrap_err();
        assert_eq!((e.kind(), e.reason()), (DiskErrorKind::Exists, Some(Reason::Taken)));
    }
    assert_eq!(names(folder.path()), ["image"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn what_appears_under_the_name_meanwhile_is_not_replaced() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image");
    let target = open(&path, Format::Raw, Existing::Refuse).unwrap();
    fs::write(&path, "precious").unwrap();
    assert_eq!(target.finish().unwrap_err().kind(), DiskErrorKind::Exists);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn overwrite_keeps_the_old_image_until_the_new_one_is_complete_and_then_its_mode() {
    for format in FORMATS {
        let folder = tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let target = open(&path, format, Existing::Overwrite).unwrap();
        assert!(target.is_fresh());
        target.write_at(&pattern(MIB as usize, 1), 0).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        target.finish().unwrap();
        assert_eq!(names(folder.path()), ["image"]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        judge::assert_holds(&path, format, &pattern(MIB as usize, 1), MIB);
    }
}

#[test]
fn the_partial_file_of_a_killed_run_is_replaced() {
    for format in FORMATS {
        let folder = tempdir().unwrap();
        let path = folder.path().join("image");
        let killed = Target::create_or_open(&path, format, 3 * MIB, Existing::Refuse).unwrap();
        killed.write_at(&[0xff; 70_000], 2 * MIB).unwrap();
        drop(killed);
        assert_eq!(names(folder.path()), ["image.partial"]);
        let target = open(&path, format, Existing::Refuse).unwrap();
        let mut read = vec![1; MIB as usize];
        target.read_at(&mut read, 0).unwrap();
        assert!(read.iter().all(|&b| b == 0), "nothing of the killed run shows");
        target.finish().unwrap();
        assert_eq!(names(folder.path()), ["image"]);
        judge::assert_holds(&path, format, &[], MIB);
    }
}

#[test]
fn a_partial_file_that_is_also_a_finished_image_is_not_written_to() {
    let folder = tempdir().unwrap();
    let (path, other) = (folder.path().join("image"), folder.path().join("finished"));
    fs::write(&other, "finished").unwrap();
    fs::hard_link(&other, with(&path, ".partial")).unwrap();
    open(&path, Format::Raw, Existing::Refuse).unwrap().finish().unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "finished");
    assert_eq!(names(folder.path()), ["finished", "image"]);
}

#[test]
fn two_runs_do_not_write_one_image() {
    for format in FORMATS {
        let folder = tempdir().unwrap();
        let path = folder.path().join("image");
        let first = open(&path, format, Existing::Refuse).unwrap();
        let second = open(&path, format, Existing::Refuse).unwrap_err();
        assert_eq!((second.kind(), second.reason()), (DiskErrorKind::Exists, Some(Reason::Locked)));
        first.finish().unwrap();
        let first = open(&path, format, Existing::Compare).unwrap();
        let second = open(&path, format, Existing::Compare).unwrap_err();
        assert_eq!(second.reason(), Some(Reason::Locked));
        first.write_at(&[1; 512], 0).unwrap();
        assert_eq!(open(&path, format, Existing::Compare).unwrap_err().reason(), Some(Reason::Locked));
        first.finish().unwrap();
        open(&path, format, Existing::Compare).unwrap().finish().unwrap();
    }
}

#[test]
fn an_image_that_a_qemu_uses_is_not_changed_under_it() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image");
    make(&path, Format::Raw, &pattern(MIB as usize, 1));
    let qemu = Command::new("qemu-io").args(["-f", "raw", judge::text(&path)]).stdin(Stdio::piped()).spawn();
    let Ok(mut qemu) = qemu else {
        eprintln!("SKIPPED: qemu-io is not installed");
        return;
    };
    let mut refused = false;
    for _ in 0..100 {
        match open(&path, Format::Raw, Existing::Compare) {
            Err(e) => {
                assert_eq!(e.reason(), Some(Reason::Locked));
                refused = true;
                break;
            }
            Ok(_) => std::thread::sleep(std::time::Duration::from_millis(50)),
        }
    }
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    assert!(refused);
    open(&path, Format::Raw, Existing::Compare).unwrap();
}

#[test]
fn comparing_without_a_difference_changes_nothing() {
    for format in FORMATS {
        let folder = tempdir().unwrap();
        let path = folder.path().join("image");
        make(&path, format, &pattern(MIB as usize, 1));
        let before = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap());
        let target = open(&path, format, Existing::Compare).unwrap();
        let mut read = vec![0; MIB as usize];
        target.read_at(&mut read, 0).unwrap();
        assert!(read == pattern(MIB as usize, 1));
        assert_eq!(names(folder.path()), ["image"]);
        target.finish().unwrap();
        assert!((fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap()) == before, "{format:?}");
        assert_eq!(names(folder.path()), ["image"]);
    }
}

#[test]
fn a_killed_change_in_place_leaves_a_sidecar_and_the_next_whole_run_removes_it() {
    type Change = fn(&Target);
    let write: Change = |target| target.write_at(&[9; 100], 77).unwrap();
    let zero: Change = |target| assert!(target.write_zeroes(Extent { start: 0, len: 70_000 }).unwrap() > 0);
    for (format, change) in FORMATS.into_iter().flat_map(|f| [(f, write), (f, zero)]) {
        let folder = tempdir().unwrap();
        let path = folder.path().join("image");
        make(&path, format, &pattern(MIB as usize, 1));
        let killed = open(&path, format, Existing::Compare).unwrap();
        assert!(!killed.is_fresh());
        assert_eq!(names(folder.path()), ["image"]);
        change(&killed);
        drop(killed);
        assert_eq!(names(folder.path()), ["image", "image.landfall-incomplete"]);
        let text = fs::read_to_string(with(&path, ".landfall-incomplete")).unwrap();
        assert!(text.contains("image\" in place") && text.contains("neither"), "{text}");

        let target = open(&path, format, Existing::Compare).unwrap();
        target.write_at(&pattern(MIB as usize, 2), 0).unwrap();
        assert_eq!(names(folder.path()), ["image", "image.landfall-incomplete"]);
        target.finish().unwrap();
        assert_eq!(names(folder.path()), ["image"]);
        judge::assert_holds(&path, format, &pattern(MIB as usize, 2), MIB);
    }
}

#[test]
fn a_killed_resize_leaves_a_sidecar_too() {
    for (format, size) in FORMATS.into_iter().flat_map(|f| [(f, 3 * MIB), (f, 700)]) {
        let folder = tempdir().unwrap();
        let path = folder.path().join("image");
        make(&path, format, &pattern(2 * MIB as usize, 1));
        drop(Target::create_or_open(&path, format, size, Existing::Compare).unwrap());
        assert_eq!(names(folder.path()), ["image", "image.landfall-incomplete"], "{format:?} {size}");
    }
}

#[test]
fn a_whole_new_image_removes_the_sidecar_of_a_killed_change() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image");
    make(&path, Format::Raw, &[1; 512]);
    open(&path, Format::Raw, Existing::Compare).unwrap().write_at(&[1], 0).unwrap();
    assert_eq!(names(folder.path()).len(), 2);
    let target = open(&path, Format::Raw, Existing::Overwrite).unwrap();
    assert_eq!(names(folder.path()).len(), 3, "it stays while the old image is there");
    target.finish().unwrap();
    assert_eq!(names(folder.path()), ["image"]);
}

#[test]
fn a_symbolic_link_stays_one_and_what_it_leads_to_is_changed() {
    for existing in [Existing::Overwrite, Existing::Compare] {
        let folder = tempdir().unwrap();
        let (link, real) = (folder.path().join("link"), folder.path().join("real"));
        fs::write(&real, vec![5; MIB as usize]).unwrap();
        symlink("real", &link).unwrap();
        let target = open(&link, Format::Raw, existing).unwrap();
        target.write_at(&pattern(MIB as usize, 1), 0).unwrap();
        target.finish().unwrap();
        assert_eq!(names(folder.path()), ["link", "real"]);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("real"));
        assert!(fs::read(&real).unwrap() == pattern(MIB as usize, 1));
    }
}

#[test]
fn what_is_no_disk_is_refused() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    assert!(judge::run("mkfifo", &[judge::text(&at("pipe"))]).is_none_or(|o| o.status.success()));
    symlink("nothing", at("dangling")).unwrap();
    for existing in [Existing::Overwrite, Existing::Compare] {
        for path in [at("folder"), at("socket"), at("pipe"), PathBuf::from("/dev/null")] {
            let e = open(&path, Format::Raw, existing).unwrap_err();
            assert_eq!(e.kind(), DiskErrorKind::Unsupported, "{e}");
        }
        assert_eq!(open(&at("dangling"), Format::Raw, existing).unwrap_err().kind(), DiskErrorKind::Usage);
        assert_eq!(open(&at("no/image"), Format::Raw, existing).unwrap_err().kind(), DiskErrorKind::NotFound);
    }
    assert_eq!(names(folder.path()), ["dangling", "folder", "pipe", "socket"]);
}

#[test]
fn free_space_is_that_of_the_folder_and_need_not_be_there_yet() {
    let folder = tempdir().unwrap();
    let bytes = Target::available_bytes(&folder.path().join("image")).unwrap();
    assert!(bytes > 0 && bytes < u64::MAX);
    let e = Target::available_bytes(&folder.path().join("no/image")).unwrap_err();
    assert_eq!(e.kind(), DiskErrorKind::NotFound);
}
