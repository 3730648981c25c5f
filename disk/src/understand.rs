//! The error of text that another program printed.

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
