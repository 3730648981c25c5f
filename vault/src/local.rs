//! Large objects into a local directory, past the page cache.
//!
//! A segment is written once and not read again by the gateway: through the page cache it would cost more CPU than compressing
//! and sealing it. So it goes down with direct I/O where the file system has it.
//!
//! # Crash consistency
//! Written aside, fsynced, linked into place (which fails where the name exists: the put-if-absent), folders fsynced. A crash leaves the
//! object whole or not at all, and perhaps a file `NAME#NUMBER` aside, which listings leave out, as `object_store` does with its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::buffer::ALIGN;
use crate::store::Put;

/// Smaller objects gain nothing.
pub(crate) const DIRECT_BYTES_MIN: usize = 1024 * 1024;
/// Bytes of one write.
const PIECE: usize = 1024 * 1024;

/// Puts an object that is not there yet under `root`.
pub(crate) fn put_if_absent(root: &Path, name: &str, bytes: &[u8]) -> io::Result<Put> {
    let path = root.join(name);
    let folder = path.parent().unwrap_or(root);
    make_folders(root, folder)?;
    let (aside, file) = create_aside(&path)?;
    let written = write(&file, bytes).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match fs::hard_link(&aside, &path) {
        Ok(()) => Ok(Put::Created),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Put::Exists),
        Err(error) => Err(error),
    });
    fs::remove_file(&aside)?;
    let put = linked?;
    File::open(folder)?.sync_all()?;
    Ok(put)
}

/// Makes the folders between `root` and `folder`, each durable in the one above.
fn make_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder.is_dir() || folder == root {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(root);
    make_folders(root, above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => File::open(above)?.sync_all(),
    }
}

fn create_aside(path: &Path) -> io::Result<(PathBuf, File)> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    for number in 1_u32.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("#{number}"));
        let aside = PathBuf::from(name);
        let open = |flags| OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(&aside);
        match open(direct) {
            Ok(file) => return Ok((aside, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            // The file may have been made before the file system refused direct I/O.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                let _ = fs::remove_file(&aside);
                return open(0).map(|file| (aside.clone(), file));
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(ErrorKind::AlreadyExists))
}

/// Writes whole blocks, padded at the end, then cuts the file to its length.
fn write(file: &File, bytes: &[u8]) -> io::Result<()> {
    let aligned = bytes.as_ptr().addr().is_multiple_of(ALIGN);
    // What begins on a page is written from where it is; the last block, and what does not, from a copy that does.
    let (as_it_is, rest) = bytes.split_at(if aligned { bytes.len() - bytes.len() % ALIGN } else { 0 });
    for (number, part) in as_it_is.chunks(PIECE).enumerate() {
        file.write_all_at(part, (number * PIECE) as u64)?;
    }
    let mut memory = vec![0; rest.len().min(PIECE) + 2 * ALIGN];
    let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
    let piece = &mut memory[start..];
    for (number, part) in rest.chunks(PIECE).enumerate() {
        piece[..part.len()].copy_from_slice(part);
        let padded = part.len().div_ceil(ALIGN) * ALIGN;
        piece[part.len()..padded].fill(0);
        file.write_all_at(&piece[..padded], (as_it_is.len() + number * PIECE) as u64)?;
    }
    file.set_len(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_there_whole_and_never_overwritten() {
        let root = tempfile::tempdir().expect("a folder");
        for len in [0, 1, ALIGN, PIECE - 1, PIECE, 3 * PIECE + 77] {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect();
            let name = format!("segments/aa/{len}");
            assert_eq!(put_if_absent(root.path(), &name, &bytes).expect("a put"), Put::Created);
            assert_eq!(put_if_absent(root.path(), &name, b"other").expect("a put"), Put::Exists);
            assert_eq!(fs::read(root.path().join(&name)).expect("the object"), bytes);
            let on_a_page = vec![7; len + ALIGN];
            let start = on_a_page.as_ptr().align_offset(ALIGN);
            let name = format!("segments/ab/{len}");
            put_if_absent(root.path(), &name, &on_a_page[start..start + len]).expect("a put");
            assert_eq!(fs::read(root.path().join(&name)).expect("the object"), vec![7; len]);
        }
        let left: Vec<_> = fs::read_dir(root.path().join("segments/aa")).expect("the folder").flatten().collect();
        assert!(left.iter().all(|f| !f.file_name().to_string_lossy().contains('#')), "nothing is left aside");
    }

    #[test]
    fn of_racing_writers_one_wins() {
        let root = tempfile::tempdir().expect("a folder");
        let winners = std::thread::scope(|scope| {
            let put = |n: u8| put_if_absent(root.path(), "segments/bb/x", &vec![n; PIECE + 5]).expect("a put");
            let racers: Vec<_> = (0..8).map(|n| scope.spawn(move || put(n))).collect();
            racers.into_iter().filter_map(|r| r.join().ok()).filter(|p| *p == Put::Created).count()
        });
        assert_eq!(winners, 1);
    }
}
