//! TLS as we speak it: version 1.3 only, aws-lc-rs, HTTP/2, no resumption (a resumed session would not verify the certificate again).
//!
//! A gateway asks for a client certificate and accepts that there is none: a machine that enrols has none yet. A client trusts one
//! authority and nothing else, and asks for the name [`GATEWAY_NAME`](crate::pki::GATEWAY_NAME) whatever address it dialled.

use std::net::SocketAddr;
use std::sync::Arc;

use landfall_model::{Error, ErrorKind, MachineName, Result, Timestamp};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore, ServerConfig,
    SignatureScheme, version,
};

use crate::pki::{Authority, Certificate, Credentials, GATEWAY_NAME, Identity, pin_of};

/// The protocol inside.
pub(crate) const ALPN: &[u8] = b"h2";

/// The agent at the other end of a connection, as its verified certificate says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The machine.
    pub machine: MachineName,
    /// When it enrolled: its certificate says so, renewed or not.
    pub enrolled: Timestamp,
    /// The end of its certificate's validity.
    pub not_after: Timestamp,
    /// Where it dialled from.
    pub address: SocketAddr,
}

impl Peer {
    /// Reads the first certificate of a chain that was verified.
    pub(crate) fn of(chain: Option<&[CertificateDer<'_>]>, address: SocketAddr) -> Result<Option<Self>> {
        let Some(leaf) = chain.and_then(<[_]>::first) else { return Ok(None) };
        let facts = Certificate::read(leaf)?;
        let machine = facts.machine.ok_or_else(|| Error::new(ErrorKind::Key, "the certificate is not a machine's"))?;
        Ok(Some(Self { machine, enrolled: facts.enrolled, not_after: facts.not_after, address }))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn wrong(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::with_source(ErrorKind::Corrupt, format!("{what}: enrol again"), source)
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(|e| wrong("the authority's certificate cannot be used", e))?;
    Ok(Arc::new(roots))
}

fn machine_verifier(authority: &CertificateDer<'static>) -> Result<Arc<dyn ClientCertVerifier>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider());
    verifier.allow_unauthenticated().build().map_err(|e| wrong("the authority's certificate cannot be used", e))
}

/// Whether a machine's certificate is one that a gateway of this authority would accept now.
pub(crate) fn verify_machine(certificate: &CertificateDer<'_>, authority: &CertificateDer<'static>) -> Result<()> {
    let verified = machine_verifier(authority)?.verify_client_cert(certificate, &[], UnixTime::now());
    verified.map_err(|e| wrong("the gateway gave a certificate that it would not accept", e))?;
    Ok(())
}

/// The gateway's side.
pub(crate) fn server(authority: &Authority, credentials: Credentials) -> Result<Arc<ServerConfig>> {
    let verifier = machine_verifier(&CertificateDer::from(authority.certificate().to_vec()))?;
    let unusable = |e| Error::with_source(ErrorKind::Bug, "TLS cannot be set up: report this", e);
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13]);
    let builder = builder.map_err(unusable)?.with_client_cert_verifier(verifier);
    let mut config = builder.with_single_cert(credentials.chain, credentials.key.into()).map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13]);
    builder.map_err(|e| Error::with_source(ErrorKind::Bug, "TLS cannot be set up: report this", e))
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The side of a machine that is enrolled.
pub(crate) fn client(identity: &Identity) -> Result<Arc<ClientConfig>> {
    let (certificate, key, authority) = identity.parts();
    let config = client_builder()?.with_root_certificates(roots(&authority)?);
    let config = config.with_client_auth_cert(vec![certificate], key.into());
    Ok(finish(config.map_err(|e| wrong("the machine's certificate cannot be used", e))?))
}

/// The side of a machine that enrols: it trusts the authority with this pin.
pub(crate) fn enrolling_client(pin: [u8; 32]) -> Result<Arc<ClientConfig>> {
    let verifier = Arc::new(PinVerifier { pin, provider: provider() });
    let config = client_builder()?.dangerous().with_custom_certificate_verifier(verifier);
    Ok(finish(config.with_no_client_auth()))
}

/// The name that every client asks for.
pub(crate) fn gateway_name() -> Result<ServerName<'static>> {
    ServerName::try_from(GATEWAY_NAME)
        .map_err(|e| Error::with_source(ErrorKind::Bug, "the gateway's name is none: report this", e))
}

/// Trusts the certificate with this pin, which the gateway must present, and what it signed.
#[derive(Debug)]
struct PinVerifier {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|certificate| pin_of(certificate) == self.pin);
        let pinned = pinned.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
