//! The reader.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use landfall_disk::{DiskErrorKind, RawReader};
use landfall_model::Extent;
use tempfile::tempdir;

use crate::{SIZES, pattern};

#[test]
fn every_size_is_read_to_its_last_byte_and_not_beyond() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("disk");
    for size in SIZES {
        let bytes = pattern(size as usize, size);
        fs::write(&path, &bytes).unwrap();
        let reader = RawReader::open(&path).unwrap();
        assert_eq!((reader.size(), reader.sector_size()), (size, 512));
        let mut read = vec![0; size as usize];
        reader.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
        assert_eq!(reader.read_exact_at(&mut read, 1).unwrap_err().kind(), DiskErrorKind::Usage);
        assert_eq!(reader.data_extents(Extent { start: 0, len: u64::MAX }).unwrap(), [Extent { start: 0, len: size }]);
        assert_eq!(reader.data_extents(Extent { start: size, len: 5 }).unwrap(), []);
    }
}

#[test]
fn an_empty_file_is_a_disk_of_no_bytes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let reader = RawReader::open(file.path()).unwrap();
    assert_eq!(reader.size(), 0);
    assert_eq!(reader.data_extents(Extent { start: 0, len: 10 }).unwrap(), []);
    reader.check_not_shrunk().unwrap();
}

#[test]
fn a_disk_that_shrinks_is_told_from_one_that_cannot_be_read() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, pattern(10_000, 1)).unwrap();
    let reader = RawReader::open(&path).unwrap();
    reader.check_not_shrunk().unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().set_len(20_000).unwrap();
    reader.check_not_shrunk().unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().set_len(6_000).unwrap();
    let e = reader.check_not_shrunk().unwrap_err();
    assert_eq!((e.kind(), e.offset()), (DiskErrorKind::Shrunk, Some(6_000)));
    let e = reader.read_exact_at(&mut [0; 5_000], 4_000).unwrap_err();
    assert_eq!((e.kind(), e.offset()), (DiskErrorKind::Shrunk, Some(6_000)));
    assert!(e.to_string().contains("it had 10000 bytes when it was opened and has 6000 now"), "{e}");
    reader.read_exact_at(&mut [0; 2_000], 4_000).unwrap();
}

#[test]
fn a_huge_sparse_disk_is_searched_in_no_time() {
    let folder = tempdir().unwrap();
    let file = File::create(folder.path().join("huge")).unwrap();
    // ext4 ends just below 16 TiB, XFS and others take 64 TiB and more.
    let size = [64u64 << 40, (16 << 40) - (1 << 20), 1 << 40].into_iter().find(|&size| file.set_len(size).is_ok());
    let size = size.expect("a file system with files of 1 TiB");
    let places: Vec<u64> = (0..100).map(|n| (size / 100 * n) & !0xffff).collect();
    places.iter().for_each(|&at| file.write_all_at(&[1; 65_536], at).unwrap());
    file.sync_all().unwrap();
    let reader = RawReader::open(&folder.path().join("huge")).unwrap();
    let started = Instant::now();
    let found = reader.data_extents(Extent { start: 0, len: size }).unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(found, places.iter().map(|&start| Extent { start, len: 65_536 }).collect::<Vec<_>>());
    let part = Extent { start: places[50] + 100, len: places[51] - places[50] };
    let wanted = [Extent { start: places[50] + 100, len: 65_436 }, Extent { start: places[51], len: 100 }];
    assert_eq!(reader.data_extents(part).unwrap(), wanted);
}

#[test]
fn many_threads_read_and_search_one_reader() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("disk");
    let file = File::create(&path).unwrap();
    let bytes = pattern(65_536, 1);
    (0..16).for_each(|n| file.write_all_at(&bytes, n * 131_072).unwrap());
    let reader = RawReader::open(&path).unwrap();
    thread::scope(|scope| {
        for n in 0..16 {
            let (reader, bytes) = (&reader, &bytes);
            scope.spawn(move || {
                for _ in 0..50 {
                    let within = Extent { start: n * 131_072, len: 131_072 };
                    let runs =
                        reader.data_extents(Extent { len: within.len.min(reader.size() - within.start), ..within });
                    assert_eq!(runs.unwrap(), [Extent { start: within.start, len: 65_536 }]);
                    let mut read = vec![0; 65_536];
                    reader.read_exact_at(&mut read, within.start).unwrap();
                    assert!(read == *bytes);
                }
            });
        }
    });
}

#[test]
fn identity_is_that_of_the_file_and_not_of_its_name() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a"), "1").unwrap();
    fs::write(at("b"), "1").unwrap();
    let identity = |name: &str| RawReader::open(&at(name)).unwrap().identity();
    let a = identity("a");
    assert!(a.starts_with("file-"), "{a}");
    assert_ne!(a, identity("b"));
    fs::rename(at("a"), at("c")).unwrap();
    assert_eq!(a, identity("c"));
}

#[test]
fn what_is_no_disk_is_not_opened() {
    let folder = tempdir().unwrap();
    assert_eq!(RawReader::open(folder.path()).unwrap_err().kind(), DiskErrorKind::Unsupported);
    assert_eq!(RawReader::open("/dev/null".as_ref()).unwrap_err().kind(), DiskErrorKind::Unsupported);
    assert_eq!(RawReader::open(&folder.path().join("x")).unwrap_err().kind(), DiskErrorKind::NotFound);
}
