//! The calls of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::Incoming as RequestBody;
use landfall_model::{Error, ErrorKind, Result};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Response, Status};

use super::connection::{Open, certificate_fault};
use super::ship::Ship;
use super::slots::Slot;
use super::{Service, Shared};
use crate::MESSAGE_BYTES_MAX;
use crate::codec::{CALL_BYTES_MAX, WireCodec};
use crate::link::{Closing, ENROLL, RENEW, SHIP};
use crate::message::{FromAgent, FromGateway};
use crate::raw::{Certified, Enroll, Renew};
use crate::status::to_status;
use crate::tls::Peer;

/// What the calls of one connection know.
pub(super) struct Calls<S> {
    pub(super) shared: Arc<Shared<S>>,
    /// `None`: there is no certificate.
    pub(super) peer: Option<Peer>,
    pub(super) address: SocketAddr,
    pub(super) closed: watch::Receiver<Option<Closing>>,
    pub(super) open: Open,
    /// The connection's place: also held by a link that ends after its connection.
    pub(super) slot: Arc<Slot>,
}

impl<S> Clone for Calls<S> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            peer: self.peer.clone(),
            address: self.address,
            closed: self.closed.clone(),
            open: self.open.clone(),
            slot: self.slot.clone(),
        }
    }
}

impl<S: Service> Calls<S> {
    /// Answers one call.
    pub(super) async fn answer(self, request: http::Request<RequestBody>) -> http::Response<Body> {
        let _open = self.open.upgrade();
        if let Some(fault) = certificate_fault(self.peer.as_ref(), &*self.shared.service) {
            return self.refused("certificate", fault.error()).into_http();
        }
        match request.uri().path() {
            SHIP => {
                let mut grpc = Grpc::new(WireCodec::<FromGateway, FromAgent>::new())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX);
                grpc.streaming(Ship(self), request).await
            }
            ENROLL => short::<Enroll>().unary(Short(self), request).await,
            RENEW => short::<Renew>().unary(Short(self), request).await,
            _ => {
                let why = "the gateway does not know this call: use an agent of its version";
                self.refused("unknown call", Error::new(ErrorKind::Unsupported, why)).into_http()
            }
        }
    }

    /// The machine that calls.
    pub(super) fn machine(&self) -> Result<Peer> {
        let why = "this machine showed no certificate: enrol it with a token";
        self.peer.clone().ok_or_else(|| Error::new(ErrorKind::Key, why))
    }

    /// Logs a refusal, and says it.
    pub(super) fn refused(&self, reason: &'static str, error: Error) -> Status {
        match &self.peer {
            Some(peer) => self.shared.refusals.say(self.address, reason, &format_args!("{}: {error}", peer.machine)),
            None => self.shared.refusals.say(self.address, reason, &error),
        }
        to_status(&error)
    }

    async fn enroll(&self, request: Enroll) -> Result<Vec<u8>> {
        let secret = request.secret.as_ref().try_into();
        let secret = secret.map_err(|_| Error::corrupt(format!("a secret of {} bytes", request.secret.len())))?;
        self.shared.service.enroll(self.address, secret, request.csr.into()).await
    }

    async fn renew(&self, request: Renew) -> Result<Vec<u8>> {
        let peer = self.machine()?;
        self.shared.service.renew(peer, request.csr.into()).await
    }
}

fn short<D: crate::codec::Wire>() -> Grpc<WireCodec<Certified, D>> {
    Grpc::new(WireCodec::new()).max_decoding_message_size(CALL_BYTES_MAX).max_encoding_message_size(CALL_BYTES_MAX)
}

/// One request, one certificate.
struct Short<S>(Calls<S>);

type Answer = BoxFuture<'static, std::result::Result<Response<Certified>, Status>>;

fn certified<S: Service>(
    calls: &Calls<S>,
    reason: &'static str,
    answer: Result<Vec<u8>>,
) -> std::result::Result<Response<Certified>, Status> {
    match answer {
        Ok(certificate) => Ok(Response::new(Certified { certificate: Bytes::from(certificate) })),
        Err(error) => Err(calls.refused(reason, error)),
    }
}

impl<S: Service> UnaryService<Enroll> for Short<S> {
    type Response = Certified;
    type Future = Answer;

    fn call(&mut self, request: tonic::Request<Enroll>) -> Answer {
        let calls = self.0.clone();
        Box::pin(async move { certified(&calls, "enrolment", calls.enroll(request.into_inner()).await) })
    }
}

impl<S: Service> UnaryService<Renew> for Short<S> {
    type Response = Certified;
    type Future = Answer;

    fn call(&mut self, request: tonic::Request<Renew>) -> Answer {
        let calls = self.0.clone();
        Box::pin(async move { certified(&calls, "renewal", calls.renew(request.into_inner()).await) })
    }
}
