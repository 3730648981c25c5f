//! The error of this crate: what was being done, to which path, at which offset, and why it did not work.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{fmt, io};

/// Result of this crate.
pub type Result<T, E = DiskError> = std::result::Result<T, E>;

/// What kind of error it is, for the code that decides what to tell the operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskErrorKind {
    /// There is nothing at the path.
    NotFound,
    /// Something is at the path that must not be touched, or another run writes there now.
    Exists,
    /// The file system or the quota is full.
    NoSpace,
    /// The source has become smaller than it was when it was opened.
    Shrunk,
    /// Not a disk, not in a form that this crate writes, or more than the file system can hold.
    Unsupported,
    /// The call or command cannot be meant like this.
    Usage,
    /// The operating system reports an error.
    Io,
}

/// What was being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Opening what exists.
    Open,
    /// Making a new image.
    Create,
    /// Asking for the size.
    Size,
    /// Asking where data is.
    FindData,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Making a run zero.
    WriteZeroes,
    /// Changing the size of an image.
    Resize,
    /// Making the sidecar that says that an image is incomplete, or removing it.
    Mark,
    /// Waiting until the data is on stable storage.
    Sync,
    /// Giving the finished image its name.
    Publish,
    /// Asking for the free space.
    FreeSpace,
    /// Making a file that shares the blocks of another.
    Clone,
    /// Asking where on the file system the bytes of a file are.
    Map,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::Size => "find the size of",
            Self::FindData => "find the data in",
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write zeroes to",
            Self::Resize => "resize",
            Self::Mark => "mark as incomplete",
            Self::Sync => "sync",
            Self::Publish => "publish",
            Self::FreeSpace => "find the free space for",
            Self::Clone => "clone",
            Self::Map => "map the blocks of",
        })
    }
}

/// Why, when it is not the operating system that says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Reason {
    /// A folder, socket, pipe, character device.
    #[error("it is neither a regular file nor a block device")]
    NotADisk,
    /// A symbolic link to nothing: whether it may be replaced cannot be known.
    #[error("it is a symbolic link to something that does not exist")]
    DanglingLink,
    /// Refused, as asked.
    #[error("it exists already")]
    Taken,
    /// Another process is writing this image.
    #[error("another process is writing it")]
    Locked,
    /// A block device that is mounted, or part of an array or volume group.
    #[error("the device is in use (mounted?)")]
    Busy,
    /// A disk of no bytes.
    #[error("a disk has at least one byte")]
    NoBytes,
    /// More than the format can hold.
    #[error("{size} bytes are more than the format can hold ({max} bytes)")]
    TooLarge {
        /// Bytes asked for.
        size: u64,
        /// Bytes that are possible.
        max: u64,
    },
    /// The device is smaller than the disk that is to be written to it.
    #[error("the device has {has} bytes, the disk needs {needs}")]
    DeviceTooSmall {
        /// Bytes of the device.
        has: u64,
        /// Bytes of the disk.
        needs: u64,
    },
    /// A range that reaches over the end of the disk.
    #[error("{len} bytes from there reach over the end of the disk ({size} bytes)")]
    OutOfRange {
        /// Length of the range.
        len: u64,
        /// Size of the disk.
        size: u64,
    },
    /// Smaller than when it was opened.
    #[error("it had {opened} bytes when it was opened and has {now} now")]
    Shrunk {
        /// Bytes when it was opened.
        opened: u64,
        /// Bytes now.
        now: u64,
    },
    /// Only raw disks are written to devices.
    #[error("a device takes only the format raw")]
    DeviceFormat,
    /// What is there is an image of the right format that cannot be brought up to date in place.
    #[error("{0}")]
    Image(&'static str),
    /// No reflinks, or none of this file.
    #[error("the file system cannot share the blocks of this file (btrfs can, and XFS made with reflink=1)")]
    NoClones,
    /// Blocks are shared within one file system.
    #[error("it is on another file system")]
    OtherFileSystem,
    /// A file system where one place may be two places, or whose maps nobody here has tried.
    #[error("only files on btrfs and XFS can be compared by where their blocks are")]
    NoMaps,
    /// Extents that overlap or go backwards.
    #[error("the file system tells where its blocks are in a way that cannot be")]
    BadMap,
    /// Defragmentation, a balance, or a writer that should not be there.
    #[error("another program moves its blocks")]
    Moving,
}

impl Reason {
    const fn kind(self) -> DiskErrorKind {
        match self {
            Self::Taken | Self::Locked => DiskErrorKind::Exists,
            Self::Shrunk { .. } => DiskErrorKind::Shrunk,
            Self::NotADisk | Self::DeviceFormat | Self::Image(_) | Self::NoClones | Self::NoMaps => {
                DiskErrorKind::Unsupported
            }
            Self::BadMap | Self::Moving => DiskErrorKind::Io,
            Self::DanglingLink
            | Self::Busy
            | Self::NoBytes
            | Self::TooLarge { .. }
            | Self::DeviceTooSmall { .. }
            | Self::OutOfRange { .. }
            | Self::OtherFileSystem => DiskErrorKind::Usage,
        }
    }
}

#[derive(Debug)]
enum Cause {
    Os(io::Error),
    Reason(Reason),
}

/// An error of this crate. `Display` is one line and leaves out what [`source`](Error::source) says.
#[derive(Debug)]
pub struct DiskError {
    operation: Operation,
    path: PathBuf,
    offset: Option<u64>,
    cause: Cause,
}

impl DiskError {
    pub(crate) fn os(operation: Operation, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { operation, path: path.to_owned(), offset: None, cause: Cause::Os(source.into()) }
    }

    pub(crate) fn new(operation: Operation, path: &Path, reason: Reason) -> Self {
        Self { operation, path: path.to_owned(), offset: None, cause: Cause::Reason(reason) }
    }

    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// What kind of error it is.
    pub fn kind(&self) -> DiskErrorKind {
        match &self.cause {
            Cause::Reason(reason) => reason.kind(),
            Cause::Os(e) => match e.kind() {
                io::ErrorKind::NotFound => DiskErrorKind::NotFound,
                io::ErrorKind::AlreadyExists => DiskErrorKind::Exists,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskErrorKind::NoSpace,
                io::ErrorKind::UnexpectedEof => DiskErrorKind::Shrunk,
                io::ErrorKind::Unsupported | io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidData => {
                    DiskErrorKind::Unsupported
                }
                io::ErrorKind::PermissionDenied
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::ReadOnlyFilesystem => DiskErrorKind::Usage,
                _ => DiskErrorKind::Io,
            },
        }
    }

    /// What was being done.
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// To which file or device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// At which byte of the disk, where that means something.
    pub const fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// Why, unless the operating system said so.
    pub const fn reason(&self) -> Option<Reason> {
        match self.cause {
            Cause::Reason(reason) => Some(reason),
            Cause::Os(_) => None,
        }
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Quoted as in source text, so that a newline in a name does not make two lines of one error.
        write!(f, "cannot {} {:?}", self.operation, self.path)?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        match &self.cause {
            Cause::Reason(reason) => write!(f, ": {reason}"),
            Cause::Os(_) => Ok(()),
        }
    }
}

impl Error for DiskError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            Cause::Os(e) => Some(e),
            Cause::Reason(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_operation_path_and_offset_and_leaves_the_source_to_the_source() {
        let e = DiskError::os(Operation::Write, Path::new("/a\nb"), io::Error::from_raw_os_error(28)).at(4096);
        assert_eq!(e.to_string(), r#"cannot write "/a\nb" at offset 4096"#);
        assert_eq!(e.kind(), DiskErrorKind::NoSpace);
        assert!(e.source().is_some_and(|s| s.to_string().contains("No space left")));
    }

    #[test]
    fn a_reason_of_ours_is_part_of_the_line_and_has_no_source() {
        let e = DiskError::new(Operation::Open, Path::new("/d"), Reason::DeviceTooSmall { has: 1, needs: 2 });
        assert_eq!(e.to_string(), r#"cannot open "/d": the device has 1 bytes, the disk needs 2"#);
        assert_eq!(e.kind(), DiskErrorKind::Usage);
        assert!(e.source().is_none());
    }
}
