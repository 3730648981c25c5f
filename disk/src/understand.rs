//! What another program printed, in pieces of bounded length, and the error of text that is not understood.

use std::io::{BufRead, Read};

/// Nothing that these programs print in one piece is longer.
const PIECE_BYTES_MAX: u64 = 4096;

/// Text that is not what is known of a program's output. Nothing is skipped: what is not understood might be a change.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("what {program} printed is not understood, line {line}: {why}")]
pub struct NotUnderstood {
    /// The program.
    pub program: &'static str,
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Reads what comes up to `end` and with it, in place of what is in `piece`; nothing where all was read. Memory is bounded, however long the text is.
///
/// # Errors
/// If it cannot be read, is not text, or is longer than any piece.
pub(crate) fn next_piece(text: &mut impl BufRead, end: u8, piece: &mut String) -> Result<(), &'static str> {
    let mut bytes = std::mem::take(piece).into_bytes();
    bytes.clear();
    text.take(PIECE_BYTES_MAX).read_until(end, &mut bytes).map_err(|_| "it could not be read to its end")?;
    if bytes.len() as u64 == PIECE_BYTES_MAX && bytes.last() != Some(&end) {
        return Err("this is longer than anything that is known");
    }
    *piece = String::from_utf8(bytes).map_err(|_| "this is no text")?;
    Ok(())
}
