//! Tells others when the health of a machine, or of the spool, changes.
//!
//! Each webhook has a task and a queue of its own: at most one notice for each machine, and the newest state wins. A notice is tried a few times,
//! then dropped; the next change is another. Nothing of the gateway waits for that. Secrets are read when they are used, and never kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use landfall_model::{Error, ErrorKind, GatewayId, Result, Timestamp};
use reqwest::header::{CONTENT_TYPE, USER_AGENT};
use reqwest::{Client, Url};
use serde::Serialize;
use sha2::Sha256;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::status::{Health, Status};

/// Longest time of one attempt.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Waits after attempts that failed; after the last the notice is dropped.
const RETRY: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(300)];
/// A secret is not longer; something else that was named by mistake may be.
const SECRET_BYTES_MAX: u64 = 4096;
/// Hex of HMAC-SHA256 of the body, under the secret.
const SIGNATURE: &str = "landfall-signature";

/// Where notices go.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Webhook {
    /// HTTPS; or HTTP to this host.
    pub url: WebhookUrl,
    /// What notices are signed with stands in this file.
    pub secret_file: Option<PathBuf>,
}

/// A URL that notices may be sent to. It may hold a secret: only its host is shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WebhookUrl(Url);

impl std::fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.host_str().unwrap_or_default())
    }
}

impl std::fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebhookUrl({self})")
    }
}

impl FromStr for WebhookUrl {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = |_| "url is no URL: write for example \"https://hooks.site/landfall\"".to_owned();
        let url: Url = text.parse().map_err(wrong)?;
        let host = url.host_str().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let here = host == "localhost" || address.is_ok_and(|a| a.is_loopback());
        match url.scheme() {
            "https" => Ok(Self(url)),
            "http" if here => Ok(Self(url)),
            scheme => Err(format!("url begins with {scheme}: write https://, or http:// for a host that is this one")),
        }
    }
}

impl Webhook {
    /// Reads the secret, if there is one.
    ///
    /// # Errors
    /// `NotFound`, `Usage` of the file.
    pub fn secret(&self) -> Result<Option<Zeroizing<Vec<u8>>>> {
        self.secret_file.as_deref().map(read_secret).transpose()
    }
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let fail = |e: std::io::Error| {
        let why = format!("cannot read the secret of a webhook, {}", path.display());
        Error::with_source(ErrorKind::of_io(&e), why, e)
    };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    let mut secret = Zeroizing::new(std::fs::read(path).map_err(fail)?);
    let len = secret.trim_ascii_end().len();
    secret.truncate(len);
    if secret.is_empty() || size > SECRET_BYTES_MAX {
        let why =
            format!("{} is no secret of a webhook: write one line of 1 to {SECRET_BYTES_MAX} bytes", path.display());
        return Err(Error::new(ErrorKind::Usage, why));
    }
    Ok(secret)
}

/// A change of health, as it is sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Notice {
    gateway: String,
    /// None: the spool.
    machine: Option<String>,
    health: Health,
    was: Health,
    why: Option<String>,
    time: Timestamp,
}

/// What is known of one machine, and what a webhook was told of it.
struct Known {
    newest: Notice,
    /// What it was told last, as far as can be known: an attempt that failed may have arrived.
    told: Health,
    /// What it was told before that.
    before: Health,
    /// Whether the last attempt worked, or was given up.
    settled: bool,
}

impl Known {
    fn is_due(&self) -> bool {
        !self.settled || self.newest.health != self.told
    }
}

/// What waits to be sent to one webhook.
#[derive(Default)]
struct Queue {
    known: Mutex<BTreeMap<Option<String>, Known>>,
    more: Notify,
}

impl Queue {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Option<String>, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what is newest of a machine, in place of what was.
    fn add(&self, newest: Notice) {
        let (told, machine) = (newest.was, newest.machine.clone());
        let mut known = self.known();
        let first = Known { newest: newest.clone(), told, before: told, settled: true };
        known.entry(machine).or_insert(first).newest = newest;
        self.more.notify_one();
    }

    /// The oldest notice that is due. From here on it may have arrived.
    async fn next(&self) -> Notice {
        loop {
            if let Some(known) = self.known().values_mut().filter(|k| k.is_due()).min_by_key(|k| k.newest.time) {
                if known.newest.health != known.told {
                    known.before = std::mem::replace(&mut known.told, known.newest.health);
                }
                known.settled = false;
                return Notice { was: known.before, ..known.newest.clone() };
            }
            self.more.notified().await;
        }
    }

    /// A notice was sent, or given up.
    fn done(&self, sent: &Notice) {
        if let Some(known) = self.known().get_mut(&sent.machine) {
            known.settled = true;
        }
    }
}

/// Sends notices to the webhooks that there are.
pub(crate) struct Notifier {
    gateway: GatewayId,
    client: Client,
    /// What is known of each: machines, and the spool.
    told: BTreeMap<Option<String>, Health>,
    hooks: BTreeMap<Webhook, Hook>,
}

struct Hook {
    queue: Arc<Queue>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Notifier {
    /// Without a webhook.
    ///
    /// # Errors
    /// `Unsupported` where this host cannot make TLS connections.
    pub(crate) fn new(gateway: GatewayId) -> Result<Self> {
        let none = reqwest::redirect::Policy::none();
        let client = Client::builder().timeout(TIMEOUT).redirect(none).build().map_err(|e| {
            Error::with_source(ErrorKind::Unsupported, "webhooks: this host cannot make TLS connections", e)
        })?;
        Ok(Self { gateway, client, told: BTreeMap::new(), hooks: BTreeMap::new() })
    }

    /// Has these webhooks from now on.
    pub(crate) fn keep_to(&mut self, webhooks: &[Webhook]) {
        self.hooks.retain(|webhook, _| webhooks.contains(webhook));
        for webhook in webhooks {
            let start = || {
                let queue = Arc::new(Queue::default());
                let task = tokio::spawn(send_all(webhook.clone(), queue.clone(), self.client.clone()));
                Hook { queue, task }
            };
            self.hooks.entry(webhook.clone()).or_insert_with(start);
        }
    }

    /// Looks at a status, and tells what has changed. What was never looked at was well.
    pub(crate) fn look(&mut self, status: &Status, time: Timestamp) {
        let machines = status.machines.iter().map(|(name, m)| (Some(name.clone()), m.health(time)));
        for (machine, (health, why)) in machines.chain([(None, status.spool_health())]) {
            let was = self.told.insert(machine.clone(), health).unwrap_or_default();
            if was != health {
                let gateway = self.gateway.to_string();
                let notice = Notice { gateway, machine, health, was, why, time };
                self.hooks.values().for_each(|hook| hook.queue.add(notice.clone()));
            }
        }
    }
}

/// Sends what a queue holds, for as long as the webhook is there.
async fn send_all(webhook: Webhook, queue: Arc<Queue>, client: Client) {
    loop {
        let mut tries = RETRY.iter();
        let last = loop {
            // Again each time: the newest state counts.
            let notice = queue.next().await;
            let Err(error) = send(&webhook, &client, &notice).await else { break notice };
            tracing::warn!(%error, webhook = %webhook.url, "a change of health was not told");
            match tries.next() {
                Some(wait) => tokio::time::sleep(*wait).await,
                None => break notice,
            }
        };
        queue.done(&last);
    }
}

async fn send(webhook: &Webhook, client: &Client, notice: &Notice) -> Result<()> {
    let body =
        serde_json::to_vec(notice).map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode a notice", e))?;
    let mut request = client
        .post(webhook.url.0.clone())
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("landfall/", env!("CARGO_PKG_VERSION")));
    if let Some(secret) = webhook.secret()? {
        request = request.header(SIGNATURE, signature(&secret, &body)?);
    }
    // The URL may hold a secret: errors do not name it.
    let failed = |e: reqwest::Error| Error::with_source(ErrorKind::Unavailable, "the webhook failed", e.without_url());
    let answer = request.body(body).send().await.map_err(failed)?;
    answer.error_for_status().map(|_| ()).map_err(failed)
}

fn signature(secret: &[u8], body: &[u8]) -> Result<String> {
    let mac = Hmac::<Sha256>::new_from_slice(secret);
    let mut mac = mac.map_err(|e| Error::with_source(ErrorKind::Bug, "no key for HMAC-SHA256", e))?;
    mac.update(body);
    Ok(HEXLOWER.encode(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::MachineStatus;

    fn notice(machine: &str, was: Health, health: Health, time: i64) -> Notice {
        let (gateway, machine) = ("g".to_owned(), Some(machine.to_owned()));
        Notice { gateway, machine, health, was, why: None, time: Timestamp::from_millis(time) }
    }

    #[test]
    fn notices_go_over_https_or_to_this_host() {
        for right in ["https://hooks.site/x?token=y", "http://localhost:1/", "http://127.0.0.1/a", "http://[::1]:9/"] {
            let url: WebhookUrl = right.parse().expect(right);
            assert!(!format!("{url} {url:?}").contains("token"), "the path is not shown");
        }
        for (wrong, wanted) in [
            ("http://hooks.site/", "https://"),
            ("http://localhost.site/", "https://"),
            ("ftp://hooks.site", "https://"),
            ("http://0.0.0.0/", "https://"),
            ("hooks.site", "is no URL"),
        ] {
            let error = wrong.parse::<WebhookUrl>().expect_err(wrong);
            assert!(error.contains(wanted), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_signature_is_hmac_sha256_of_the_body() {
        // RFC 4231, test case 2.
        let signed = signature(b"Jefe", b"what do ya want for nothing?").expect("signed");
        assert_eq!(signed, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn a_secret_is_one_line_of_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        assert_eq!(read_secret(&path).expect_err("none").kind(), ErrorKind::NotFound);
        std::fs::write(&path, "s3cret\n").expect("written");
        assert_eq!(read_secret(&path).expect("a secret").as_slice(), b"s3cret");
        for wrong in ["\n".to_owned(), "x".repeat(5000)] {
            std::fs::write(&path, &wrong).expect("written");
            let error = read_secret(&path).expect_err("wrong");
            assert!(error.kind() == ErrorKind::Usage && !error.to_string().contains(&wrong), "{error}");
        }
    }

    fn due(queue: &Queue) -> usize {
        queue.known().values().filter(|k| k.is_due()).count()
    }

    #[tokio::test]
    async fn the_newest_state_of_each_machine_wins_and_what_was_taken_back_is_not_told() {
        use Health::{Critical, Ok, Warning};
        let queue = Queue::default();
        queue.add(notice("web", Ok, Warning, 1));
        queue.add(notice("db", Ok, Critical, 2));
        queue.add(notice("web", Warning, Critical, 3));
        queue.add(notice("mail", Ok, Warning, 4));
        queue.add(notice("mail", Warning, Ok, 5));
        let first = queue.next().await;
        assert_eq!(first, notice("db", Ok, Critical, 2));
        queue.done(&first);
        // Two changes that were not told are one.
        let second = queue.next().await;
        assert_eq!(second, notice("web", Ok, Critical, 3));
        queue.done(&second);
        assert_eq!(due(&queue), 0);
    }

    #[tokio::test]
    async fn what_may_have_arrived_is_told_again_or_taken_back() {
        use Health::{Critical, Ok};
        let queue = Queue::default();
        queue.add(notice("web", Ok, Critical, 1));
        // The attempt failed, and may have arrived all the same.
        assert_eq!(queue.next().await, notice("web", Ok, Critical, 1));
        assert_eq!(queue.next().await, notice("web", Ok, Critical, 1), "again");
        queue.add(notice("web", Critical, Ok, 2));
        let back = queue.next().await;
        assert_eq!(back, notice("web", Critical, Ok, 2));
        // While that is sent, it is ill once more.
        queue.add(notice("web", Ok, Critical, 3));
        queue.done(&back);
        assert_eq!(queue.next().await, notice("web", Ok, Critical, 3));
    }

    #[tokio::test]
    async fn changes_of_machines_and_spool_are_told_once() {
        let mut notifier = Notifier::new(GatewayId::from_bytes([7; 16])).expect("TLS");
        let hook = Webhook { url: "http://127.0.0.1:1/".parse().expect("a URL"), secret_file: None };
        notifier.keep_to(std::slice::from_ref(&hook));
        let queue = notifier.hooks[&hook].queue.clone();
        let mut machine = MachineStatus { linked: true, ..MachineStatus::default() };
        machine.failed("no credentials".to_owned(), true);
        let machines = [("web".to_owned(), machine)].into();
        let status = Status { spool_bytes: 90, spool_budget_bytes: 100, machines, ..Status::default() };
        notifier.look(&status, Timestamp::from_millis(1));
        notifier.look(&status, Timestamp::from_millis(2));
        {
            let known = queue.known();
            let told: Vec<_> = known.values().map(|k| &k.newest).collect();
            let told: Vec<_> = told.iter().map(|n| (n.machine.as_deref(), n.health, n.time.millis())).collect();
            assert_eq!(told, [(None, Health::Critical, 1), (Some("web"), Health::Critical, 1)]);
        }
        notifier.keep_to(&[]);
        assert!(notifier.hooks.is_empty());
    }
}
