//! Passphrases, and the key that Argon2id (RFC 9106) makes of one (FORMAT.md section 3).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use landfall_model::VaultId;
use zeroize::Zeroizing;

use crate::aead::{self, NONCE_ZERO};
use crate::error::{Problem, Result};
use crate::schedule::PASSPHRASE;
use crate::secret::Secret;

/// Longest passphrase in bytes: far beyond what people remember, and a bound for what is read.
const PASSPHRASE_BYTES_MAX: usize = 1024;

/// Limits of what a file may ask for, so that a forged one cannot take the machine down.
pub(crate) const MEMORY_KIB_MAX: u32 = 1024 * 1024;
pub(crate) const ITERATIONS_MAX: u32 = 64;

/// What protects a recovery key file. Zeroised on drop.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// Takes the bytes as the passphrase.
    ///
    /// # Errors
    /// [`Usage`](crate::KeyErrorKind::Usage) when there are none, or more than 1024.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let bytes = Zeroizing::new(bytes);
        match bytes.len() {
            0 => Err(Problem::PassphraseUnfit { why: "empty" }.into()),
            1..=PASSPHRASE_BYTES_MAX => Ok(Self(bytes)),
            _ => Err(Problem::PassphraseUnfit { why: "too long" }.into()),
        }
    }

    /// Reads the first line of a file, without its line ending (LF or CR LF).
    ///
    /// # Errors
    /// [`Missing`](crate::KeyErrorKind::Missing) when there is no file, [`Usage`](crate::KeyErrorKind::Usage) when the
    /// line is empty or longer than 1024 bytes, [`Io`](crate::KeyErrorKind::Io).
    pub fn from_file(path: &Path) -> Result<Self> {
        // Room for a line ending and one byte too many; never grown, so no copy is left behind.
        let mut text = Zeroizing::new(vec![0; PASSPHRASE_BYTES_MAX + 3]);
        let len = File::open(path).and_then(|mut file| read_full(&mut file, &mut text)).map_err(|source| {
            let (what, path) = ("passphrase file", path.to_owned());
            match source.kind() {
                io::ErrorKind::NotFound => Problem::NoFile { what, path, source },
                _ => Problem::File { verb: "read", what, path, source },
            }
        })?;
        let text = &text[..len];
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or(text);
        Self::from_bytes(line.strip_suffix(b"\r").unwrap_or(line).to_vec())
    }
}

/// Reads until `out` is full or the end; how many bytes.
pub(crate) fn read_full(from: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < out.len() {
        match from.read(&mut out[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Cost and salt of Argon2id.
pub(crate) struct Cost {
    params: Params,
    salt: [u8; 16],
}

impl Cost {
    /// What new files use: 64 MiB and 3 iterations (RFC 9106 section 4, second choice), on one lane because the crate
    /// computes lanes one after another.
    const DEFAULT: Params = match Params::new(64 * 1024, 3, 1, Some(32)) {
        Ok(params) => params,
        Err(_) => panic!("parameters of Argon2id"),
    };

    /// The default cost under a salt, which must be fresh.
    pub(crate) fn with_salt(salt: [u8; 16]) -> Self {
        Self { params: Self::DEFAULT, salt }
    }

    /// The cost that a file asks for, whose limits the caller checks; `None` when Argon2id has no such parameters.
    pub(crate) fn new(memory_kib: u32, iterations: u32, lanes: u32, salt: [u8; 16]) -> Option<Self> {
        let params = Params::new(memory_kib, iterations, lanes, Some(32)).ok()?;
        Some(Self { params, salt })
    }

    pub(crate) fn memory_kib(&self) -> u32 {
        self.params.m_cost()
    }

    pub(crate) fn iterations(&self) -> u32 {
        self.params.t_cost()
    }

    pub(crate) fn lanes(&self) -> u32 {
        self.params.p_cost()
    }

    pub(crate) fn salt(&self) -> &[u8; 16] {
        &self.salt
    }

    /// Argon2id of the passphrase: 32 bytes.
    fn key(&self, passphrase: &Passphrase) -> Result<Secret<32>> {
        let no_memory = Problem::PassphraseMemory { memory_kib: self.memory_kib() };
        // Our own memory, because the crate does not zeroise the one that it allocates.
        let mut memory = Zeroizing::new(Vec::<Block>::new());
        let blocks = self.params.block_count();
        if memory.try_reserve_exact(blocks).is_err() {
            return Err(no_memory.into());
        }
        memory.resize(blocks, Block::default());
        let mut key = Secret::zeroed();
        // Fails for lengths beyond those of our types, or for too little memory.
        Argon2::new(Algorithm::Argon2id, Version::V0x13, self.params.clone())
            .hash_password_into_with_memory(&passphrase.0, &self.salt, key.as_mut_bytes(), memory.as_mut_slice())
            .map_err(|_| no_memory)?;
        Ok(key)
    }

    /// seal(Argon2id key, "landfall/1/passphrase" | 0x00 | vault id, seed): 48 bytes.
    ///
    /// # Errors
    /// [`Problem::PassphraseMemory`].
    pub(crate) fn seal(&self, by: &Passphrase, vault: VaultId, seed: &Secret<32>) -> Result<Vec<u8>> {
        let aad = PASSPHRASE.then(&[vault.as_bytes()]);
        let mut sealed = Vec::new();
        aead::seal(self.key(by)?.as_bytes(), &NONCE_ZERO, &aad, seed.as_bytes(), &mut sealed)
            .ok_or(Problem::TooLong { what: "recovery seed", bytes: seed.as_bytes().len() })?;
        Ok(sealed)
    }

    /// The seed; `None` when the passphrase is wrong or anything was changed.
    ///
    /// # Errors
    /// [`Problem::PassphraseMemory`].
    pub(crate) fn open(&self, by: &Passphrase, vault: VaultId, sealed: &[u8]) -> Result<Option<Secret<32>>> {
        let aad = PASSPHRASE.then(&[vault.as_bytes()]);
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let key = self.key(by)?;
        Ok(aead::open_in_place(key.as_bytes(), &NONCE_ZERO, &aad, &mut buffer)
            .and_then(|seed| Secret::copied_from(seed)))
    }
}
