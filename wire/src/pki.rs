//! Who is who on the link: the site's own certificate authority, the certificates that it signs, and the token that a machine enrols with.
//!
//! ```text
//!  seed of the site --> Authority --signs--> certificate of a gateway (name: landfall-gateway)
//!                           |     --signs--> certificate of a machine (name: landfall:machine:<name>)
//!                           '--pin--> Token --carried by a person--> agent: trusts the authority with that pin, once
//! ```
//! Every gateway of a site makes the same authority out of the same seed. All keys are Ed25519. Nothing here prints a key.

mod authority;
mod certificate;
mod folder;
mod identity;
mod token;

use std::time::{SystemTime, UNIX_EPOCH};

use landfall_model::{Error, ErrorKind, Timestamp};

pub use authority::{Authority, BACKDATED, Credentials};
pub use certificate::Certificate;
pub use identity::{Identity, Request};
pub use token::Token;

pub(crate) use authority::pin_of;

/// The name in every gateway's certificate, which clients ask for whatever address they dialled.
pub const GATEWAY_NAME: &str = "landfall-gateway";

/// Seconds since 1970.
fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub(crate) fn now() -> Timestamp {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

fn bug(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::with_source(ErrorKind::Bug, format!("{what}: report this"), source)
}
