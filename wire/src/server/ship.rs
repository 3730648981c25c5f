//! A link: who it is from, then the service's until one of both ends it.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use landfall_model::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::Service;
use super::calls::Calls;
use crate::link::{Incoming, closed};
use crate::message::{FromAgent, FromGateway, choose_version};
use crate::status::to_status;
use crate::tls::Peer;
use crate::{MESSAGES_WAITING_MAX, VERSIONS};

pub(super) struct Ship<S>(pub(super) Calls<S>);

type Messages = BoxStream<'static, std::result::Result<FromGateway, Status>>;

impl<S: Service> StreamingService<FromAgent> for Ship<S> {
    type Response = FromGateway;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, std::result::Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<FromAgent>>) -> Self::Future {
        let calls = self.0.clone();
        Box::pin(async move {
            let from = Incoming::new(request.into_inner()).closed_by(calls.closed.clone());
            match greeted(&calls, from).await {
                Ok((peer, from)) => Ok(Response::new(begin(&calls, peer, from))),
                Err(error) => Err(calls.refused("link", error)),
            }
        })
    }
}

/// Takes the first message, and refuses what no service may see.
async fn greeted<S: Service>(calls: &Calls<S>, mut from: Incoming<FromAgent>) -> Result<(Peer, Incoming<FromAgent>)> {
    let peer = calls.machine()?;
    let first = timeout(calls.shared.limits.first_message, from.next()).await;
    let late = |_| Error::new(ErrorKind::Unavailable, "the first message of the link did not come in time: try again");
    let Some(FromAgent::Hello(hello)) = first.map_err(late)?? else {
        return Err(Error::corrupt("the first message of a link is not hello"));
    };
    if hello.machine != peer.machine {
        let why = format!("the certificate is of machine {}, and the agent says {}", peer.machine, hello.machine);
        return Err(Error::new(ErrorKind::Key, format!("{why}: enrol the machine under its name")));
    }
    if choose_version(hello.versions).is_none() {
        let ((oldest, newest), ours) = (hello.versions, VERSIONS);
        let why = format!("the agent speaks versions {oldest} to {newest}, the gateway {ours:?}: update the older one");
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    from.put_back(FromAgent::Hello(hello));
    Ok((peer, from))
}

/// What is still to be sent on a link.
struct Outgoing {
    messages: mpsc::Receiver<FromGateway>,
    end: oneshot::Receiver<Result<()>>,
    /// What the service returned.
    ended: Option<std::result::Result<(), Status>>,
    /// Dropped with the link: the service learns that it is gone.
    _link: oneshot::Sender<Infallible>,
    _open: Option<Arc<()>>,
}

impl Outgoing {
    async fn next(mut self) -> Option<(std::result::Result<FromGateway, Status>, Self)> {
        loop {
            if self.ended.is_some() {
                let Some(message) = self.messages.recv().await else { break };
                return Some((Ok(message), self));
            }
            tokio::select! {
                biased;
                Some(message) = self.messages.recv() => return Some((Ok(message), self)),
                end = &mut self.end => {
                    self.messages.close();
                    self.ended = Some(ending(end));
                }
            }
        }
        match self.ended.replace(Ok(())) {
            Some(Err(status)) => Some((Err(status), self)),
            _ => None,
        }
    }
}

fn ending(end: std::result::Result<Result<()>, oneshot::error::RecvError>) -> std::result::Result<(), Status> {
    let lost = |_| Error::new(ErrorKind::Bug, "the gateway dropped the link: look at its log");
    end.map_err(lost).flatten().map_err(|error| to_status(&error))
}

/// Gives the link to the service.
fn begin<S: Service>(calls: &Calls<S>, peer: Peer, from: Incoming<FromAgent>) -> Messages {
    let (to, messages) = mpsc::channel(MESSAGES_WAITING_MAX);
    let (returned, end) = oneshot::channel();
    let (link, gone) = oneshot::channel();
    let (shared, slot, mut closing) = (calls.shared.clone(), calls.slot.clone(), calls.closed.clone());
    tokio::spawn(async move {
        let grace = shared.limits.grace;
        let lost = async {
            tokio::select! {
                // Nothing is ever sent: it ends when the link does.
                _ = gone => {}
                _ = closed(&mut closing) => {}
            }
            sleep(grace).await;
        };
        tokio::select! {
            result = shared.service.ship(peer, from, to) => {
                // Nobody waits for it where the link is gone.
                let _ = returned.send(result);
            }
            () = lost => {}
        }
        drop(slot);
    });
    let outgoing = Outgoing { messages, end, ended: None, _link: link, _open: calls.open.upgrade() };
    unfold(outgoing, Outgoing::next).boxed()
}
