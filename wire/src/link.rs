//! What both ends of a link have in common.

use std::any::Any;

use futures_util::stream::{BoxStream, Stream, StreamExt, poll_fn};
use landfall_model::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, watch};
use tonic::Streaming;

use crate::status::to_error;

/// Paths of the calls.
pub(crate) const SHIP: &str = "/landfall.v1.Gateway/Ship";
pub(crate) const ENROLL: &str = "/landfall.v1.Gateway/Enroll";
pub(crate) const RENEW: &str = "/landfall.v1.Gateway/Renew";

/// Why a gateway closes a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Closing {
    pub(crate) kind: ErrorKind,
    pub(crate) why: &'static str,
}

impl Closing {
    pub(crate) fn error(self) -> Error {
        Error::new(self.kind, self.why)
    }
}

/// The checked messages that the other side sends.
///
/// Dropping it ends the link on the agent's side; on the gateway's side the agent is no longer read.
pub struct Incoming<M> {
    /// Read already, and not yet given.
    first: Option<M>,
    messages: BoxStream<'static, Result<M>>,
    /// Says when the connection is about to be closed, and why.
    closing: Option<watch::Receiver<Option<Closing>>>,
    /// What must live as long as the link.
    _held: Option<Box<dyn Any + Send + Sync>>,
}

impl<M: 'static> Incoming<M> {
    pub(crate) fn new(messages: Streaming<M>) -> Self {
        Self::over(messages.map(|message| message.map_err(|status| to_error(&status))))
    }

    /// A link without a network: what is sent into the channel arrives, and the other side has ended the link when it is closed. It is for
    /// the sender to give nothing that [`crate::FromAgent::decode`] would refuse, and nothing after an error.
    pub fn from_channel(mut messages: mpsc::Receiver<Result<M>>) -> Self
    where
        M: Send,
    {
        Self::over(poll_fn(move |cx| messages.poll_recv(cx)))
    }

    fn over(messages: impl Stream<Item = Result<M>> + Send + 'static) -> Self {
        Self { first: None, messages: messages.boxed(), closing: None, _held: None }
    }

    pub(crate) fn closed_by(mut self, closing: watch::Receiver<Option<Closing>>) -> Self {
        self.closing = Some(closing);
        self
    }

    pub(crate) fn holding(mut self, held: impl Any + Send + Sync) -> Self {
        self._held = Some(Box::new(held));
        self
    }

    pub(crate) fn put_back(&mut self, message: M) {
        self.first = Some(message);
    }

    /// The next message; `None` where the other side has ended the link. No message is lost where the future is dropped.
    ///
    /// # Errors
    /// `Corrupt` where a message cannot be right; `Unavailable` where the connection is lost, or the gateway stops; `Key` where the
    /// certificate has expired or is revoked; else what the other side says. There is no message after an error.
    pub async fn next(&mut self) -> Result<Option<M>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(closing) = &mut self.closing else {
            return self.messages.next().await.transpose();
        };
        tokio::select! {
            biased;
            closing = closed(closing) => Err(closing.error()),
            message = self.messages.next() => message.transpose(),
        }
    }
}

/// Waits until the connection is about to be closed, and says why.
pub(crate) async fn closed(closing: &mut watch::Receiver<Option<Closing>>) -> Closing {
    let lost = Closing { kind: ErrorKind::Unavailable, why: "the connection is lost" };
    closing.wait_for(Option::is_some).await.ok().and_then(|reason| *reason).unwrap_or(lost)
}
