//! Memory of segments, used again: a fresh 32 MiB costs the kernel more than filling it costs us. It begins on a page, so that direct I/O
//! takes it as it is.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What direct I/O wants of memory, offset and length.
pub(crate) const ALIGN: usize = 4096;
/// So many are kept for the next segments: as many as are being filled at once on a machine of two cores.
const KEPT: usize = 4;

static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<Vec<u8>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that are appended to, from a page's first byte on. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Bytes before the page's first are of no meaning.
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// An empty one that holds so many bytes before it grows.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let known = idle().pop().filter(|m| m.capacity() >= capacity + ALIGN);
        let mut memory = known.unwrap_or_else(|| Vec::with_capacity(capacity + ALIGN));
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        memory.resize(start, 0);
        Self { memory, start }
    }

    pub(crate) fn len(&self) -> usize {
        self.memory.len() - self.start
    }

    /// Forgets what is behind so many bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.memory.truncate(self.start + len);
    }

    /// Where to append; nothing else may be done with it.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.memory
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut memory = std::mem::take(&mut self.memory);
        memory.clear();
        let mut idle = idle();
        if idle.len() < KEPT {
            idle.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_on_a_page_and_is_empty_when_it_is_used_again() {
        for round in 0..3_u8 {
            let mut buffer = Buffer::with_capacity(100_000);
            assert_eq!(buffer.len(), 0);
            buffer.end().extend_from_slice(&[round; 70_000]);
            assert!(buffer.as_ref().as_ptr().addr().is_multiple_of(ALIGN));
            buffer.truncate(10);
            assert_eq!(buffer.as_ref(), [round; 10]);
        }
        let mut grown = Buffer::with_capacity(10);
        grown.end().extend_from_slice(&vec![7; 3 * ALIGN + 5]);
        assert_eq!(grown.as_ref(), vec![7; 3 * ALIGN + 5], "wherever it lies");
    }
}
