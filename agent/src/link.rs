//! The link to a gateway, as the rest of the agent sees it. The only file that names what `landfall-wire` offers for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use landfall_model::{CycleId, Error, ErrorKind, MachineName, Result, Timestamp};
use landfall_wire::client;
use landfall_wire::pki::Identity;
use landfall_wire::{FromAgent, FromGateway, Hello, Incoming, VERSIONS};
use tokio::sync::mpsc;

/// How often it is looked whether the certificate is to be renewed.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);
/// What the identity's folder says about its age: the file of the certificate.
const CERTIFICATE_FILE: &str = "agent.pem";

/// What comes from a gateway.
pub(crate) trait Receive: Send {
    /// The next message; `None` where the gateway has ended the link. No message is lost where the future is dropped.
    fn next(&mut self) -> impl Future<Output = Result<Option<FromGateway>>> + Send;
}

impl Receive for Incoming<FromGateway> {
    fn next(&mut self) -> impl Future<Output = Result<Option<FromGateway>>> + Send {
        Incoming::next(self)
    }
}

/// An open link.
pub(crate) struct Link<R> {
    /// To the gateway; full while it does not read, closed when the link has ended.
    pub(crate) to: mpsc::Sender<FromAgent>,
    /// From the gateway.
    pub(crate) from: R,
    /// Why the gateway held the machine when it answered.
    pub(crate) held: Option<String>,
    /// The version of the protocol that both speak.
    pub(crate) version: u32,
}

/// Opens links.
pub(crate) trait Connect: Send {
    /// What comes from a gateway.
    type From: Receive;

    /// Opens a link to a gateway; with it, the newest cycle that the gateway has.
    fn connect(&mut self, gateway: &str) -> impl Future<Output = Result<(Link<Self::From>, Option<CycleId>)>> + Send;
}

/// The gateways of the site, as the machine's identity reaches them.
#[derive(Clone)]
pub(crate) struct Gateways {
    identity: Arc<Mutex<Arc<Identity>>>,
    folder: PathBuf,
    interval: Duration,
}

impl Gateways {
    /// Loads the identity of a machine that ships at an interval.
    ///
    /// # Errors
    /// `NotFound` where the machine is not enrolled; `Usage` where it is enrolled under another name.
    pub(crate) fn open(folder: &Path, machine: &MachineName, interval: Duration) -> Result<Self> {
        let identity = Identity::load(folder)?;
        if identity.machine() != machine {
            let why = format!(
                "the configuration says machine {machine}, the certificate in {} says {}: correct the one or enrol again",
                folder.display(),
                identity.machine()
            );
            return Err(Error::new(ErrorKind::Usage, why));
        }
        Ok(Self { identity: Arc::new(Mutex::new(Arc::new(identity))), folder: folder.to_owned(), interval })
    }

    fn identity(&self) -> Arc<Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Renews the certificate in time, again and again. Ends only when it is dropped.
    pub(crate) async fn keep_renewed(&self, gateways: &[String]) {
        loop {
            self.renew_if_due(gateways).await;
            tokio::time::sleep(RENEWAL_CHECK).await;
        }
    }

    /// Renews the certificate where two thirds of its life are over. That it was not possible is logged: the old one serves on.
    pub(crate) async fn renew_if_due(&self, gateways: &[String]) {
        let identity = self.identity();
        if is_renewal_due(stored(&self.folder), identity.expires(), now()) {
            self.renew(&identity, gateways).await;
        }
    }

    async fn renew(&self, identity: &Identity, gateways: &[String]) {
        for gateway in gateways {
            let renewed = client::renew(gateway, identity).await;
            match renewed.and_then(|new| new.store(&self.folder).map(|()| new)) {
                Ok(new) => {
                    tracing::info!(expires = %new.expires(), gateway, "the certificate was renewed");
                    *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                    return;
                }
                Err(error) => tracing::warn!(%error, gateway, "the certificate was not renewed"),
            }
        }
    }
}

impl Connect for Gateways {
    type From = Incoming<FromGateway>;

    async fn connect(&mut self, gateway: &str) -> Result<(Link<Self::From>, Option<CycleId>)> {
        let identity = self.identity();
        let hello = Hello {
            versions: (*VERSIONS.start(), *VERSIONS.end()),
            machine: identity.machine().clone(),
            program: concat!("landfall-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
            interval_ms: u64::try_from(self.interval.as_millis()).unwrap_or(0),
        };
        let (link, welcome) = client::connect(gateway, &identity, hello).await?;
        Ok((Link { to: link.to, from: link.from, held: welcome.held, version: welcome.version }, welcome.newest))
    }
}

/// The moment by this host's clock.
pub(crate) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

fn timestamp(time: SystemTime) -> Timestamp {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

/// When the certificate was stored: the beginning of its life. Now, where that cannot be known.
fn stored(folder: &Path) -> Timestamp {
    let modified = fs::metadata(folder.join(CERTIFICATE_FILE)).and_then(|m| m.modified());
    modified.map_or_else(|_| now(), timestamp)
}

/// Whether two thirds of a certificate's life are over.
fn is_renewal_due(stored: Timestamp, expires: Timestamp, now: Timestamp) -> bool {
    let life = expires.millis().saturating_sub(stored.millis());
    now.millis() >= expires.millis().saturating_sub(life / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over() {
        let at = Timestamp::from_millis;
        assert!(!is_renewal_due(at(1000), at(4000), at(1000)));
        assert!(!is_renewal_due(at(1000), at(4000), at(2999)));
        assert!(is_renewal_due(at(1000), at(4000), at(3000)));
        assert!(is_renewal_due(at(1000), at(4000), at(9000)));
    }
}
