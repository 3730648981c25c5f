//! Reading and writing the format's binary structures: explicit little-endian, every length checked before it is believed.

use landfall_model::Codec;

use landfall_model::{Error, Result};

/// Appends fields in the format's order.
#[derive(Default, Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn u8(&mut self, n: u8) {
        self.bytes.push(n);
    }

    pub(crate) fn u16(&mut self, n: u16) {
        self.bytes.extend_from_slice(&n.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, n: u32) {
        self.bytes.extend_from_slice(&n.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, n: u64) {
        self.bytes.extend_from_slice(&n.to_le_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A count or length as the format's u32.
    pub(crate) fn count(&mut self, n: usize) {
        self.u32(landfall_model::num::to_u32(n));
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes fields off hostile bytes; `what` names the structure in errors.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn error(&self, why: &str) -> Error {
        Error::corrupt(format!("{}: {why}", self.what))
    }

    pub(crate) fn raw(&mut self, len: usize) -> Result<&'a [u8]> {
        if len > self.rest.len() {
            return Err(self.error("it ends before its contents do"));
        }
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A u32 length or number of items of at least `item_len` bytes each: refused where that many cannot follow.
    pub(crate) fn count(&mut self, item_len: usize) -> Result<usize> {
        let n = self.u32()? as usize;
        if n.checked_mul(item_len).is_none_or(|bytes| bytes > self.rest.len()) {
            return Err(self.error("it counts more items than it holds"));
        }
        Ok(n)
    }

    /// A column of `n` u32.
    pub(crate) fn column_u32(&mut self, n: usize) -> Result<Vec<u32>> {
        let bytes = self.raw(n.checked_mul(4).ok_or_else(|| self.error("a column is too long"))?)?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// A column of `n` u16.
    pub(crate) fn column_u16(&mut self, n: usize) -> Result<Vec<u16>> {
        let bytes = self.raw(n.checked_mul(2).ok_or_else(|| self.error("a column is too long"))?)?;
        Ok(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
    }

    /// A column of `n` arrays of 32 bytes.
    pub(crate) fn column_32(&mut self, n: usize) -> Result<Vec<[u8; 32]>> {
        let bytes = self.raw(n.checked_mul(32).ok_or_else(|| self.error("a column is too long"))?)?;
        Ok(bytes.chunks_exact(32).map(|b| std::array::from_fn(|i| b[i])).collect())
    }

    pub(crate) fn codec(&mut self) -> Result<Codec> {
        let byte = self.u8()?;
        Codec::from_byte(byte).ok_or_else(|| self.error("a codec is unknown"))
    }

    /// Nothing may follow.
    pub(crate) fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error("there is more in it than there should be")) }
    }
}

/// Zstandard level of metadata: small, written rarely, read often.
const BLOCK_LEVEL: i32 = 3;

/// Wraps bytes as the format's packed block: codec | raw length | data.
pub(crate) fn pack_block(raw: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::compress(raw, BLOCK_LEVEL).ok().filter(|p| p.len() < raw.len());
    let (codec, data) = packed.as_deref().map_or((Codec::Raw, raw), |p| (Codec::Zstd, p));
    let mut out = Writer::default();
    out.u8(codec.byte());
    out.count(raw.len());
    out.raw(data);
    out.into_bytes()
}

/// Opens a packed block of at most `raw_len_max` bytes.
pub(crate) fn unpack_block(block: &[u8], raw_len_max: usize, what: &'static str) -> Result<Vec<u8>> {
    let mut reader = Reader::new(block, what);
    let codec = reader.codec()?;
    let raw_len = reader.u32()? as usize;
    if raw_len > raw_len_max {
        return Err(reader.error("it is larger than the format allows"));
    }
    match codec {
        Codec::Raw if reader.rest.len() == raw_len => Ok(reader.rest.to_vec()),
        Codec::Raw => Err(reader.error("its length is not what it says")),
        Codec::Zstd => decompress(reader.rest, raw_len).ok_or_else(|| reader.error("it does not decompress")),
    }
}

/// One Zstandard frame of exactly `raw_len` bytes; the caller has checked `raw_len`.
pub(crate) fn decompress(data: &[u8], raw_len: usize) -> Option<Vec<u8>> {
    zstd::bulk::decompress(data, raw_len).ok().filter(|raw| raw.len() == raw_len)
}
