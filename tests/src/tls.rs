//! TLS before a peer, with a certificate of an authority that nobody knows: as stores on one's own premises have it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// Terminates TLS and forwards to a peer, until it is dropped.
pub struct TlsFront {
    address: SocketAddr,
    folder: TempDir,
    _runtime: Runtime,
}

impl TlsFront {
    /// A front before `peer` that shows a certificate for these names and addresses.
    ///
    /// # Panics
    /// If this machine gives no port.
    pub fn start(peer: SocketAddr, names: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (config, authority) = server(names);
        std::fs::write(folder.path().join("own-ca.pem"), authority).expect("own folder");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let Ok(mut server) = TcpStream::connect(peer).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { address, folder, _runtime: runtime }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of its authority: a PEM file.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("own-ca.pem")
    }

    /// A folder that lives as long.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// A server's side of TLS, and the PEM of the authority that signed for it.
fn server(names: &[&str]) -> (ServerConfig, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "An authority of the tests");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let authority = params.self_signed(&key).expect("a certificate");
    let authority = format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        data_encoding::BASE64.encode(authority.der())
    );
    let issuer = Issuer::new(params, key);
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(names).expect("names").signed_by(&key, &issuer).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key of a known kind");
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key);
    (config.expect("a certificate and its key"), authority)
}
