//! The system calls that have no safe form: bpf(2), the memory that a map shares with us, the limit of locked memory.
//!
//! This is the only module with `unsafe` code. What is unsafe ends here: descriptors are owned, memory is seen as atomic words only, and
//! every buffer that the kernel writes to is as long as it is told.
#![expect(unsafe_code, reason = "bpf(2) and mmap(2) have no safe form")]

use std::ffi::{CStr, c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Commands of bpf(2).
const MAP_CREATE: c_int = 0;
const MAP_GET_NEXT_KEY: c_int = 4;
const MAP_LOOKUP: c_int = 1;
const PROGRAM_LOAD: c_int = 5;
const OBJECT_INFO: c_int = 15;
const RAW_TRACEPOINT_OPEN: c_int = 17;
const MAP_LOOKUP_BATCH: c_int = 24;

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const ARRAY_MMAPABLE: u32 = 1 << 10;
const TYPE_TRACING: u32 = 26;
const ATTACH_RAW_TRACEPOINT: u32 = 23;

/// The kernel lets programs read its structs only under a licence that fits its own: ours may be used under this one too.
const LICENCE: &CStr = c"Dual MIT/GPL";
/// The argument of bpf(2): larger than what is used of it; what a kernel does not know must be 0, and is.
const ATTRIBUTES: usize = 128;
/// What the verifier says of a program that it refuses. It is cut to this, and says then that it was.
const LOG_BYTES: usize = 1 << 16;

/// The verifier gives up, with `EAGAIN`, when a signal comes.
const LOADS_MAX: usize = 20;

#[repr(C, align(8))]
struct Attributes([u8; ATTRIBUTES]);

impl Attributes {
    fn new() -> Self {
        Self([0; ATTRIBUTES])
    }

    fn word(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn double(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: &OwnedFd) -> Self {
        self.word(at, fd.as_raw_fd().cast_unsigned())
    }

    /// Bytes that the kernel reads; they must live until the call is over.
    fn from<T>(self, at: usize, bytes: &[T]) -> Self {
        self.double(at, bytes.as_ptr().expose_provenance() as u64)
    }

    /// Bytes that the kernel writes; they must live until the call is over.
    fn into<T>(self, at: usize, bytes: &mut [T]) -> Self {
        self.double(at, bytes.as_mut_ptr().expose_provenance() as u64)
    }

    /// # Safety
    /// What the command reads and writes by way of these attributes is as long as they and the kernel's interface say.
    unsafe fn call(&mut self, command: c_int) -> io::Result<c_int> {
        // SAFETY: the attributes are ours and as long as said; what they point to is the caller's promise.
        let got: c_long = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), ATTRIBUTES) };
        if got < 0 { Err(io::Error::last_os_error()) } else { c_int::try_from(got).map_err(io::Error::other) }
    }

    /// # Safety
    /// As of `call`, and the command gives a new descriptor.
    unsafe fn call_for_fd(&mut self, command: c_int) -> io::Result<OwnedFd> {
        // SAFETY: the caller's promise, passed on.
        let fd = unsafe { self.call(command)? };
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn read_word(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

/// Memory that programs write and we read: an array map of one value.
pub(crate) struct Shared {
    map: OwnedFd,
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is only ever seen as `&[AtomicU64]`, from any thread, and lives until the drop.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// `words` words, all 0.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn new(words: usize) -> io::Result<Self> {
        let bytes = words.max(1) * 8;
        let size = u32::try_from(bytes).map_err(io::Error::other)?;
        let mut attributes =
            Attributes::new().word(0, ARRAY).word(4, 4).word(8, size).word(12, 1).word(16, ARRAY_MMAPABLE);
        // SAFETY: this command reads nothing but the attributes, and gives a descriptor.
        let map = unsafe { attributes.call_for_fd(MAP_CREATE)? };
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_raw_fd());
        // SAFETY: a new mapping, at a place of the kernel's choice; the map has at least that many bytes, rounded up to pages.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<AtomicU64>()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { map, start, words: words.max(1) })
    }

    /// The words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for as long as `self` lives, aligned to a page, and written by others in whole atomic or single stores only.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    /// The descriptor of the map, for programs.
    pub(crate) fn fd(&self) -> c_int {
        self.map.as_raw_fd()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: this is what was mapped, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}

/// A hash map of the kernel, from a number to two.
pub(crate) struct Hash {
    map: OwnedFd,
    entries_max: u32,
}

impl Hash {
    /// An empty one, with room for that many entries from the start.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn new(entries_max: u32) -> io::Result<Self> {
        let mut attributes = Attributes::new().word(0, HASH).word(4, 8).word(8, 16).word(12, entries_max);
        // SAFETY: this command reads nothing but the attributes, and gives a descriptor.
        Ok(Self { map: unsafe { attributes.call_for_fd(MAP_CREATE)? }, entries_max })
    }

    /// All values; those that stay while this runs are among them.
    ///
    /// # Errors
    /// The kernel refuses, or the entries change faster than they can be read.
    pub(crate) fn values(&self) -> io::Result<Vec<[u64; 2]>> {
        match self.values_at_once() {
            // A kernel before 5.6 has no such command, and calls it invalid.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.values_one_by_one(),
            done => done,
        }
    }

    /// One call for all: buckets are read whole, under their locks.
    fn values_at_once(&self) -> io::Result<Vec<[u64; 2]>> {
        let room = usize::try_from(self.entries_max).map_err(io::Error::other)?;
        // The kernel reads bucket after bucket; where entries come and go it may meet more than there ever were at once.
        let room = room * 2;
        let (mut keys, mut values, mut position) = (vec![0_u64; room], vec![[0_u64; 2]; room], [0_u64; 1]);
        let count = u32::try_from(room).map_err(io::Error::other)?;
        let attributes = Attributes::new().into(8, &mut position).into(16, &mut keys).into(24, &mut values);
        let mut attributes = attributes.word(32, count).fd(36, &self.map);
        // SAFETY: the kernel writes at most `count` keys of 8 bytes and values of 16, and a position of 4.
        match unsafe { attributes.call(MAP_LOOKUP_BATCH) } {
            // The end of the map was reached: all is told.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::other("there are more entries than there is room for")),
        }
        values.truncate(usize::try_from(attributes.read_word(32)).map_err(io::Error::other)?);
        Ok(values)
    }

    /// Key by key. An entry that goes away in between sends the kernel back to the first: bounded.
    pub(crate) fn values_one_by_one(&self) -> io::Result<Vec<[u64; 2]>> {
        let (mut values, mut key, mut next) = (Vec::new(), None::<[u64; 1]>, [0_u64; 1]);
        for _ in 0..u64::from(self.entries_max) * 4 {
            let mut attributes = Attributes::new().fd(0, &self.map).into(16, &mut next);
            if let Some(key) = &key {
                attributes = attributes.from(8, key);
            }
            // SAFETY: a key is 8 bytes, to read and to write.
            match unsafe { attributes.call(MAP_GET_NEXT_KEY) } {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(values),
                Err(error) => return Err(error),
                Ok(_) => key = Some(next),
            }
            let mut value = [0_u64; 2];
            let mut attributes = Attributes::new().fd(0, &self.map).from(8, &next).into(16, &mut value);
            // SAFETY: a key is 8 bytes, a value 16.
            match unsafe { attributes.call(MAP_LOOKUP) } {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
                Ok(_) => values.push(value),
            }
        }
        Err(io::Error::other("the entries change faster than they can be read"))
    }

    /// The descriptor of the map, for programs.
    pub(crate) fn fd(&self) -> c_int {
        self.map.as_raw_fd()
    }
}

/// A program that is attached to a tracepoint, until it is dropped.
pub(crate) struct Program {
    program: OwnedFd,
    _link: OwnedFd,
}

impl Program {
    /// Loads a program and attaches it to the tracepoint whose type has the number `tracepoint`.
    ///
    /// # Errors
    /// The kernel refuses; where its verifier does, with what that says.
    pub(crate) fn attach(code: &[u64], tracepoint: u32) -> io::Result<Self> {
        let program = match load(code, tracepoint, &mut []) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES | libc::E2BIG | libc::EFAULT)) =>
            {
                let mut log = vec![0; LOG_BYTES];
                load(code, tracepoint, &mut log).map_err(|_| io::Error::new(error.kind(), said(&error, &log)))?
            }
            loaded => loaded?,
        };
        let mut attributes = Attributes::new().fd(8, &program);
        // SAFETY: this command reads nothing but the attributes (no name is given), and gives a descriptor.
        let link = unsafe { attributes.call_for_fd(RAW_TRACEPOINT_OPEN)? };
        Ok(Self { program, _link: link })
    }

    /// How often the kernel did not run the program because it was running on that CPU already. None where it does not say, because it
    /// does not skip.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn misses(&self) -> io::Result<Option<u64>> {
        const MISSES_WORD: usize = 26;
        let mut info = [0_u64; MISSES_WORD + 1];
        let size = u32::try_from(size_of_val(&info)).map_err(io::Error::other)?;
        let mut attributes = Attributes::new().fd(0, &self.program).word(4, size).into(8, &mut info);
        // SAFETY: the kernel writes at most `size` bytes; those that it also reads are all 0: no further buffers are asked for.
        unsafe { attributes.call(OBJECT_INFO)? };
        Ok((attributes.read_word(4) >= size).then_some(info[MISSES_WORD]))
    }
}

fn load(code: &[u64], tracepoint: u32, log: &mut [u8]) -> io::Result<OwnedFd> {
    let count = u32::try_from(code.len()).map_err(io::Error::other)?;
    let attributes = Attributes::new().word(0, TYPE_TRACING).word(4, count).from(8, code);
    let attributes =
        attributes.from(16, LICENCE.to_bytes_with_nul()).word(68, ATTACH_RAW_TRACEPOINT).word(108, tracepoint);
    let mut attributes = match u32::try_from(log.len()) {
        Ok(room @ 1..) => attributes.word(24, 1).word(28, room).into(32, log),
        _ => attributes,
    };
    for _ in 1..LOADS_MAX {
        // SAFETY: the kernel reads `count` instructions and a string that ends with 0, writes at most `room` bytes, gives a descriptor.
        match unsafe { attributes.call_for_fd(PROGRAM_LOAD) } {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
    // SAFETY: as above.
    unsafe { attributes.call_for_fd(PROGRAM_LOAD) }
}

/// The end of what the verifier says.
fn said(error: &io::Error, log: &[u8]) -> String {
    const LINES: usize = 6;
    let text = String::from_utf8_lossy(log.split(|byte| *byte == 0).next().unwrap_or(&[])).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("processed ")).collect();
    format!("{error}; the verifier says: {}", lines[lines.len().saturating_sub(LINES)..].join(" | "))
}

/// Lifts the limit of locked memory: kernels before 5.11 count maps and programs against it, and say "not permitted" beyond.
pub(crate) fn lift_memory_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: reads the struct, and changes a limit of this process. Where that is refused, what comes next says so.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}
