//! The certificate authority of a site: key and certificate follow from a seed, so there is one, wherever it is made.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use landfall_model::{Error, ErrorKind, MachineName, Result, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, ServerName};
use zeroize::Zeroizing;

use super::certificate::MACHINE_PREFIX;
use super::{GATEWAY_NAME, bug, now_seconds};

/// Name of the authority in its certificate.
const AUTHORITY_NAME: &str = "Landfall agent CA";
/// What precedes the seed of an Ed25519 key in PKCS#8 version 1 (RFC 8410, section 7).
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// Certificates are valid from this long ago: clocks differ.
pub const BACKDATED: Duration = Duration::from_secs(60 * 60);
/// Validity of a gateway's certificate. A gateway makes a new one each day.
const GATEWAY_VALID: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Longest validity of a machine's certificate.
const MACHINE_VALID_MAX: Duration = Duration::from_secs(5 * 366 * 24 * 60 * 60);
/// Longest request for a certificate, in bytes; ours have about 200.
pub(crate) const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// The site's certificate authority. It signs; it never prints its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A gateway's key and certificate.
pub struct Credentials {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivatePkcs8KeyDer<'static>,
}

/// BLAKE3 of a certificate: what a token carries.
pub(crate) fn pin_of(certificate: &[u8]) -> [u8; 32] {
    *blake3::hash(certificate).as_bytes()
}

impl Authority {
    /// The authority of this seed: the same key and the same certificate each time.
    ///
    /// # Errors
    /// `Bug` where the certificate cannot be made.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self> {
        let mut der = Zeroizing::new([0; 48]);
        der[..16].copy_from_slice(&PKCS8_HEAD);
        der[16..].copy_from_slice(seed);
        let made = |e| bug("the certificate authority cannot be made", e);
        let key = PrivatePkcs8KeyDer::from(&der[..]);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519).map_err(made)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(AUTHORITY_NAME);
        params.serial_number = Some(SerialNumber::from(1_u64));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2120, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(made)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// BLAKE3 of its certificate: what a [`Token`](super::Token) carries.
    pub fn pin(&self) -> [u8; 32] {
        pin_of(&self.certificate)
    }

    /// A new key and certificate for a gateway with these names: host names and IP addresses. [`GATEWAY_NAME`] is always one of them.
    ///
    /// # Errors
    /// `Usage` where a name is none; `Bug` where the certificate cannot be made.
    pub fn server(&self, names: &[String]) -> Result<Credentials> {
        let made = |e| bug("the gateway's certificate cannot be made", e);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(made)?;
        let mut params = leaf(GATEWAY_NAME, GATEWAY_VALID, ExtendedKeyUsagePurpose::ServerAuth)?;
        params.subject_alt_names = vec![dns(GATEWAY_NAME)?];
        for name in names {
            params.subject_alt_names.push(alternative(name)?);
        }
        let certificate = params.signed_by(&key, &self.issuer).map_err(made)?;
        Ok(Credentials {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// Signs a certificate, DER, for a machine that enrolled at this moment (whole seconds count; a renewal does not change it). The request
    /// proves who has the key; all names in it are ignored.
    ///
    /// # Errors
    /// `Corrupt` where the request cannot be read, or is not signed by its own key; `Unsupported` where the key is not Ed25519;
    /// `Usage` where the validity is nothing or over five years.
    pub fn sign_agent(
        &self,
        csr_der: &[u8],
        machine: &MachineName,
        enrolled: Timestamp,
        valid: Duration,
    ) -> Result<Vec<u8>> {
        if csr_der.len() > REQUEST_BYTES_MAX {
            return Err(Error::corrupt(format!("a request for a certificate of {} bytes", csr_der.len())));
        }
        if valid.as_secs() == 0 || valid > MACHINE_VALID_MAX {
            let why = "the validity of a machine's certificate is not between one second and five years: change it";
            return Err(Error::new(ErrorKind::Usage, why));
        }
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der));
        let why = "the agent's request for a certificate cannot be read, or its signature is wrong";
        let csr = csr.map_err(|e| Error::with_source(ErrorKind::Corrupt, why, e))?;
        if csr.public_key.algorithm() != &PKCS_ED25519 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the agent's key is not Ed25519: use an agent of this program",
            ));
        }
        let mut params = leaf(machine.as_str(), valid, ExtendedKeyUsagePurpose::ClientAuth)?;
        let made = |e| bug("the machine's certificate cannot be made", e);
        let name = Ia5String::try_from(format!("{MACHINE_PREFIX}{machine}")).map_err(made)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        let enrolled = Duration::from_secs(u64::try_from(enrolled.millis() / 1000).unwrap_or(0));
        params.not_before = date_time_ymd(1970, 1, 1) + enrolled.saturating_sub(BACKDATED);
        let certificate = params.signed_by(&csr.public_key, &self.issuer).map_err(made)?;
        Ok(certificate.der().to_vec())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority(..)")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// What all certificates that the authority signs have in common.
fn leaf(name: &str, valid: Duration, usage: ExtendedKeyUsagePurpose) -> Result<CertificateParams> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|e| bug("this host gives no random numbers", e))?;
    // Positive, and of the same length whatever the rest is.
    serial[0] = serial[0] & 0x3f | 0x40;
    let epoch = date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(now_seconds());
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + (now + valid);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn dns(name: &str) -> Result<SanType> {
    let name = Ia5String::try_from(name).map_err(|e| bug("a host name cannot be in a certificate", e))?;
    Ok(SanType::DnsName(name))
}

fn alternative(name: &str) -> Result<SanType> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    if ServerName::try_from(name).is_err() {
        let why = format!("the gateway's name {name:?} is no host name and no IP address: change it");
        return Err(Error::new(ErrorKind::Usage, why));
    }
    dns(name)
}
