//! Random bytes, from the operating system and nowhere else.

use crate::error::{Problem, Result};

/// Fills `out` from the operating system's generator.
///
/// # Errors
/// [`Problem::Random`] when it gives none.
pub(crate) fn fill(out: &mut [u8]) -> Result<()> {
    getrandom::fill(out).map_err(|source| Problem::Random(source).into())
}

/// Random bytes that are no secret: ids and salts. Secrets are made by [`crate::secret::Secret::random`].
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut out = [0; N];
    fill(&mut out)?;
    Ok(out)
}
