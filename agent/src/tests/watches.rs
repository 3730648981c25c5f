//! Watches of files: told of each write by who makes it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use landfall_model::{BlockSet, Error, ErrorKind, Extent, Result};

use crate::tracking::{Begin, Watch, Written};

/// Bytes of a mark.
const MARK_BYTES: u64 = 4096;

#[derive(Default)]
struct Inner {
    /// Whether anything can be watched.
    works: bool,
    /// Whether that is by copies.
    copies: bool,
    /// What was written to the files that are watched; none: it is not known any more.
    written: BTreeMap<PathBuf, Option<Vec<Extent>>>,
    /// Writes that are made when somebody looks: at so many looks from now.
    later: Vec<(usize, PathBuf, u64, Vec<u8>)>,
    /// Writes that are made right after a look, which does not see them.
    behind: Vec<(usize, PathBuf, u64, Vec<u8>)>,
}

/// All watches of a machine; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Watches(Arc<Mutex<Inner>>);

struct FileWatch {
    watches: Watches,
    path: PathBuf,
}

/// A file that is copied at each cut, and compared afterwards.
struct FileCopies {
    told: FileWatch,
    copy: PathBuf,
    /// Made since, and not compared yet.
    newer: bool,
}

impl FileCopies {
    fn newer(&self) -> PathBuf {
        self.copy.with_extension("newer")
    }
}

impl Watch for FileCopies {
    fn take(&mut self) -> Written {
        if let lost @ Written::Lost(_) = self.told.take() {
            return lost;
        }
        // One that was not compared is gone with that.
        if let Err(error) = fs::copy(&self.told.path, self.newer()) {
            return Written::Lost(error.to_string());
        }
        self.newer = true;
        Written::Later
    }

    fn tidy(&mut self) {
        self.newer = false;
    }

    fn compare(&mut self, stop: &dyn Fn() -> bool) -> Written {
        assert!(std::mem::take(&mut self.newer), "a copy was made");
        let (old, new) = (fs::read(&self.copy).expect("a copy"), fs::read(self.newer()).expect("a copy"));
        fs::rename(self.newer(), &self.copy).expect("own folder");
        if stop() {
            return Written::All("it was stopped".to_owned());
        }
        let mut set = BlockSet::new(new.len() as u64, MARK_BYTES);
        let mark = usize::try_from(MARK_BYTES).expect("small");
        for (n, block) in new.chunks(mark).enumerate() {
            let before = old.get(n * mark..(n * mark + block.len()));
            if before != Some(block) {
                set.insert(Extent { start: n as u64 * MARK_BYTES, len: block.len() as u64 });
            }
        }
        Written::Blocks(set)
    }

    fn source(&self) -> &'static str {
        "copied"
    }

    fn copy(&self) -> Option<&Path> {
        Some(&self.copy)
    }
}

impl Watches {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Files can be watched from now on.
    pub(super) fn work(&self) {
        self.inner().works = true;
    }

    /// Files are copied at each cut from now on.
    pub(super) fn copy(&self) {
        self.inner().copies = true;
        self.work();
    }

    pub(super) fn begin(self) -> Begin {
        Box::new(move |path: &Path| -> Result<Box<dyn Watch>> {
            let mut inner = self.inner();
            if !inner.works {
                return Err(Error::new(ErrorKind::Unsupported, "nothing can be watched here"));
            }
            let told = FileWatch { watches: self.clone(), path: path.to_owned() };
            let mut name = path.as_os_str().to_owned();
            name.push(".copy");
            let copy = PathBuf::from(name);
            if inner.copies {
                fs::copy(path, &copy).map_err(|e| Error::with_source(ErrorKind::of_io(&e), "no copy", e))?;
            }
            inner.written.insert(path.to_owned(), Some(Vec::new()));
            Ok(if inner.copies { Box::new(FileCopies { told, copy, newer: false }) } else { Box::new(told) })
        })
    }

    /// A range of a file was written.
    pub(super) fn written(&self, path: &Path, extent: Extent) {
        if let Some(Some(written)) = self.inner().written.get_mut(path) {
            written.push(extent);
        }
    }

    /// What was written to a file is not known any more.
    pub(super) fn lose(&self, path: &Path) {
        if let Some(written) = self.inner().written.get_mut(path) {
            *written = None;
        }
    }

    /// The file is written when it is looked at for the `looks`-th time from now.
    pub(super) fn write_later(&self, looks: usize, path: PathBuf, at: u64, bytes: Vec<u8>) {
        self.inner().later.push((looks, path, at, bytes));
    }

    /// Writes that were to be made are not.
    pub(super) fn write_no_more(&self) {
        let mut inner = self.inner();
        inner.later.clear();
        inner.behind.clear();
    }

    /// The file is written after it was looked at for the `looks`-th time from now, before anything is read: the next look sees it.
    pub(super) fn write_behind(&self, looks: usize, path: PathBuf, at: u64, bytes: Vec<u8>) {
        self.inner().behind.push((looks, path, at, bytes));
    }

    /// Writes that were to be made and were not.
    pub(super) fn left(&self) -> usize {
        let inner = self.inner();
        inner.later.len() + inner.behind.len()
    }
}

impl Watch for FileWatch {
    fn take(&mut self) -> Written {
        let mut inner = self.watches.inner();
        let inner = &mut *inner;
        let later = std::mem::take(&mut inner.later);
        for (looks, path, at, bytes) in later {
            if path != self.path || looks > 1 {
                inner.later.push((looks - usize::from(path == self.path), path, at, bytes));
                continue;
            }
            let Ok(file) = fs::File::options().write(true).open(&path) else { continue };
            let size = file.metadata().expect("a size").len();
            if at + bytes.len() as u64 <= size {
                file.write_all_at(&bytes, at).expect("written");
                if let Some(Some(written)) = inner.written.get_mut(&path) {
                    written.push(Extent { start: at, len: bytes.len() as u64 });
                }
            }
        }
        let size = fs::metadata(&self.path).map_or(0, |m| m.len());
        let told = match inner.written.get_mut(&self.path) {
            Some(Some(written)) => {
                let mut set = BlockSet::new(size, MARK_BYTES);
                written.drain(..).for_each(|extent| set.insert(extent));
                Written::Blocks(set)
            }
            _ => Written::Lost("as the test wants it".to_owned()),
        };
        for (looks, path, at, bytes) in std::mem::take(&mut inner.behind) {
            if path != self.path || looks > 1 {
                inner.behind.push((looks - usize::from(path == self.path), path, at, bytes));
                continue;
            }
            let file = fs::File::options().write(true).open(&path).expect("own file");
            file.write_all_at(&bytes, at).expect("written");
            if let Some(Some(written)) = inner.written.get_mut(&path) {
                written.push(Extent { start: at, len: bytes.len() as u64 });
            }
        }
        told
    }

    fn source(&self) -> &'static str {
        "told"
    }
}
