//! What a machine is known by: its key, its certificate, and the authority that it trusts.
//!
//! ```text
//!  folder/ca.pem         the authority's certificate
//!         agent.pem      the machine's certificate
//!         agent.key      its key, 0600
//!         agent.key.new  the key of the certificate that is about to be stored
//! ```
//! Stored in the order `ca.pem`, `agent.key.new`, `agent.pem`, and then `agent.key.new` becomes `agent.key`. A crash leaves the old pair
//! or the new pair: of the two keys, the one that fits the certificate is used.

use std::fmt;
use std::fs;
use std::path::Path;

use landfall_model::{Error, ErrorKind, MachineName, Result, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ED25519, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::certificate::Certificate;
use super::{bug, folder};
use crate::tls;

const AUTHORITY_FILE: &str = "ca.pem";
const CERTIFICATE_FILE: &str = "agent.pem";
const KEY_FILE: &str = "agent.key";
const NEW_KEY_FILE: &str = "agent.key.new";

/// A machine's key, its certificate, and the certificate of the authority that signed it.
pub struct Identity {
    key: PrivatePkcs8KeyDer<'static>,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    machine: MachineName,
    expires: Timestamp,
}

/// A new key that has no certificate yet, and the request for one.
pub struct Request {
    key: KeyPair,
    csr: Vec<u8>,
}

impl Request {
    /// The request, DER (PKCS#10): it names nobody, and proves who has the key.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }
}

impl Identity {
    /// A new key, and the request for its certificate.
    ///
    /// # Errors
    /// `Bug` where the key cannot be made.
    pub fn request() -> Result<Request> {
        let made = |e| bug("the request for a certificate cannot be made", e);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(made)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(made)?.der().to_vec();
        Ok(Request { key, csr })
    }

    /// The identity that a gateway's answer to a request makes.
    ///
    /// # Errors
    /// `Corrupt` where the certificate is not for this key, not for a machine, or not valid now and signed by this authority.
    pub fn new(request: Request, certificate: Vec<u8>, authority: Vec<u8>) -> Result<Self> {
        let identity = Self::of(
            PrivatePkcs8KeyDer::from(request.key.serialize_der()),
            CertificateDer::from(certificate),
            CertificateDer::from(authority),
        )?;
        tls::verify_machine(&identity.certificate, &identity.authority)?;
        Ok(identity)
    }

    fn of(
        key: PrivatePkcs8KeyDer<'static>,
        certificate: CertificateDer<'static>,
        authority: CertificateDer<'static>,
    ) -> Result<Self> {
        let facts = Certificate::read(&certificate)?;
        let machine = facts.machine.clone();
        let machine = machine.ok_or_else(|| Error::corrupt("the certificate is not a machine's: enrol again"))?;
        if !fits(&key, &facts) {
            return Err(Error::corrupt("the machine's key is not the key of its certificate: enrol again"));
        }
        Ok(Self { key, certificate, authority, machine, expires: facts.not_after })
    }

    /// The machine that the certificate names.
    pub fn machine(&self) -> &MachineName {
        &self.machine
    }

    /// The end of the certificate's validity.
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// The machine's certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The authority's certificate, DER.
    pub fn authority(&self) -> &[u8] {
        &self.authority
    }

    /// Chain and key for TLS, and the authority that is trusted.
    pub(crate) fn parts(&self) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>, CertificateDer<'static>) {
        (self.certificate.clone(), self.key.clone_key(), self.authority.clone())
    }

    /// Stores the identity in a folder that exists; what it held before is replaced, and a crash leaves one or the other.
    ///
    /// # Errors
    /// `NoSpace`, `Usage` (no permission), `NotFound` (no folder) or `Unavailable`, naming the file.
    pub fn store(&self, into: &Path) -> Result<()> {
        folder::write(into, AUTHORITY_FILE, folder::pem("CERTIFICATE", &self.authority).as_bytes())?;
        let key = Zeroizing::new(folder::pem("PRIVATE KEY", self.key.secret_pkcs8_der()));
        folder::write(into, NEW_KEY_FILE, key.as_bytes())?;
        folder::write(into, CERTIFICATE_FILE, folder::pem("CERTIFICATE", &self.certificate).as_bytes())?;
        folder::rename(into, &into.join(NEW_KEY_FILE), &into.join(KEY_FILE))
    }

    /// Loads the identity that [`store`](Self::store) left in a folder.
    ///
    /// # Errors
    /// `NotFound` where this machine was never enrolled; `Corrupt` where the files are not what was stored; else why they cannot be read.
    pub fn load(from: &Path) -> Result<Self> {
        let path = from.join(CERTIFICATE_FILE);
        if !path.try_exists().map_err(|e| folder::failed("be read", &path, e))? {
            let why = format!("{}: this machine is not enrolled: enrol it with a token", path.display());
            return Err(Error::new(ErrorKind::NotFound, why));
        }
        let certificate: CertificateDer<'static> = read(&path)?;
        let authority = read(&from.join(AUTHORITY_FILE))?;
        let facts = Certificate::read(&certificate)?;
        let keys = [KEY_FILE, NEW_KEY_FILE].map(|name| read::<PrivatePkcs8KeyDer<'static>>(&from.join(name)));
        let [old, new] = keys;
        let key = match (old, new) {
            (Ok(key), _) if fits(&key, &facts) => key,
            (_, Ok(key)) if fits(&key, &facts) => key,
            (Err(e), _) => return Err(e),
            (Ok(key), _) => key,
        };
        Self::of(key, certificate, authority).map_err(|e| e.context(from.display()))
    }
}

/// Whether a certificate is for this key.
fn fits(key: &PrivatePkcs8KeyDer<'_>, facts: &Certificate) -> bool {
    let key = KeyPair::from_pkcs8_der_and_sign_algo(key, &PKCS_ED25519);
    key.is_ok_and(|key| key.subject_public_key_info() == facts.public_key)
}

fn read<T: PemObject>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|e| folder::failed("be read", path, e))?;
    let bytes = Zeroizing::new(bytes);
    let wrong = |e| {
        let why = format!("{}: not the PEM that it should be: enrol again", path.display());
        Error::with_source(ErrorKind::Corrupt, why, e)
    };
    T::from_pem_slice(&bytes).map_err(wrong)
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, until {})", self.machine, self.expires)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request(..)")
    }
}
