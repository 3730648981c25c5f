//! What we read in a certificate.

use landfall_model::{Error, MachineName, Result, Timestamp};
use x509_parser::extensions::GeneralName;

use super::authority::BACKDATED;

/// What precedes the machine's name in the URI by which its certificate names it.
pub(super) const MACHINE_PREFIX: &str = "landfall:machine:";

/// The facts of a certificate. Reading them verifies nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// The machine that it is for; `None` where it is not a machine's.
    pub machine: Option<MachineName>,
    /// Its serial number, big-endian.
    pub serial: Vec<u8>,
    /// When the machine enrolled, in whole seconds: an hour after the beginning of its validity, which renewal does not change. So what was
    /// enrolled until a moment can be told apart from what was enrolled later, whoever renewed it, and whenever.
    pub enrolled: Timestamp,
    /// The end of its validity.
    pub not_after: Timestamp,
    /// Its public key, as in the certificate.
    pub(super) public_key: Vec<u8>,
}

impl Certificate {
    /// Reads a certificate, DER.
    ///
    /// # Errors
    /// `Corrupt` where it is none, or names a machine in two ways, or in a way that is no name.
    pub fn read(der: &[u8]) -> Result<Self> {
        let wrong = |why: &str| Error::corrupt(format!("a certificate {why}"));
        let (rest, certificate) = x509_parser::parse_x509_certificate(der).map_err(|_| wrong("that cannot be read"))?;
        if !rest.is_empty() {
            return Err(wrong("with something after its end"));
        }
        let names = certificate.subject_alternative_name().map_err(|_| wrong("whose names cannot be read"))?;
        let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
        let mut machines = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(MACHINE_PREFIX),
            _ => None,
        });
        let machine = machines.next();
        if machines.next().is_some() {
            return Err(wrong("of two machines"));
        }
        let machine = machine.map(str::parse).transpose().map_err(|_| wrong("of a machine without a right name"))?;
        let not_after = certificate.validity().not_after.timestamp().saturating_mul(1000);
        let backdated = i64::try_from(BACKDATED.as_secs()).unwrap_or(0);
        let enrolled = certificate.validity().not_before.timestamp().saturating_add(backdated).saturating_mul(1000);
        Ok(Self {
            machine,
            serial: certificate.raw_serial().to_vec(),
            enrolled: Timestamp::from_millis(enrolled),
            not_after: Timestamp::from_millis(not_after),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }
}
