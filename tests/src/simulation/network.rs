//! A link without sockets: it delays what is said, and is cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use landfall_gateway::Gateway;
use landfall_model::{Error, ErrorKind, MachineName, Result, Timestamp};
use landfall_wire::server::Service;
use landfall_wire::{FromAgent, FromGateway, Incoming, MESSAGES_WAITING_MAX, Peer};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::dice::Dice;

/// How long a gateway gives a link to end that is lost (`Limits::grace`).
const GRACE: Duration = Duration::from_secs(10);
/// How long it takes at most until one side sees that the other is gone (`Limits::keepalive`, twice).
const UNNOTICED_MS: u64 = 40_000;

/// The agent's end.
pub struct Link {
    /// To the gateway.
    pub to: mpsc::Sender<FromAgent>,
    /// From the gateway.
    pub from: mpsc::Receiver<Result<FromGateway>>,
}

/// What is thrown for a link.
#[derive(Clone)]
pub struct Weather {
    /// Of this link.
    pub dice: Dice,
    /// Nothing bad happens.
    pub calm: bool,
}

impl Weather {
    fn delay(&mut self) -> Duration {
        match self.dice.below(1000) {
            _ if self.calm => Duration::from_millis(1),
            0..5 => self.dice.millis(1_000, 20_000),
            _ => self.dice.millis(1, 15),
        }
    }

    /// After how many messages of one direction it is cut by itself.
    fn cut_after(&mut self) -> u64 {
        if self.calm || self.dice.permille(850) { u64::MAX } else { self.dice.within(0, 60) }
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection is lost")
}

/// Opens a link. Its tasks are the gateway's: dropped with it. `cut` ends it when it becomes true.
pub fn connect(
    gateway: &Arc<Gateway>,
    tasks: &mut JoinSet<()>,
    machine: &MachineName,
    cut: &watch::Sender<bool>,
    mut weather: Weather,
) -> Link {
    let (to, from_agent) = mpsc::channel(MESSAGES_WAITING_MAX);
    let (to_agent, from) = mpsc::channel(MESSAGES_WAITING_MAX);
    let (to_gateway, arriving) = mpsc::channel(MESSAGES_WAITING_MAX);
    let (say, said) = mpsc::channel(MESSAGES_WAITING_MAX);
    let (ended, end) = oneshot::channel();
    let (gone, noticed) = oneshot::channel::<()>();
    let peer = Peer {
        machine: machine.clone(),
        enrolled: Timestamp::from_millis(0),
        not_after: Timestamp::from_millis(i64::MAX),
        address: SocketAddr::from(([127, 0, 0, 1], 1)),
    };
    let gateway = gateway.clone();
    tasks.spawn(async move {
        let lost = async {
            let _ = noticed.await;
            sleep(GRACE).await;
        };
        tokio::select! {
            outcome = gateway.ship(peer, Incoming::from_channel(arriving), say) => drop(ended.send(outcome)),
            () = lost => {}
        }
    });
    let up = carry(from_agent, to_gateway, cut.clone(), weather.clone(), async { Ok(()) });
    tasks.spawn(async move {
        up.await;
        drop(gone);
    });
    weather.dice.next();
    tasks.spawn(carry(said, to_agent, cut.clone(), weather, async { end.await.unwrap_or(Ok(())) }));
    Link { to, from }
}

/// Carries messages one way, until nobody sends any more or the connection is cut. Then `last` is said, where it is an error.
async fn carry<M>(
    mut from: mpsc::Receiver<M>,
    to: mpsc::Sender<Result<M>>,
    cut: watch::Sender<bool>,
    mut weather: Weather,
    last: impl Future<Output = Result<()>>,
) {
    let mut cuts = cut.subscribe();
    let mut left = weather.cut_after();
    let carry = async {
        while let Some(message) = from.recv().await {
            sleep(weather.delay()).await;
            if left == 0 {
                cut.send_replace(true);
                return;
            }
            left -= 1;
            if to.send(Ok(message)).await.is_err() {
                return;
            }
        }
        if let Err(error) = last.await {
            let _ = to.send(Err(error)).await;
        }
    };
    tokio::select! {
        biased;
        _ = cuts.wait_for(|cut| *cut) => {}
        () = carry => {}
    }
    if *cut.borrow() {
        sleep(weather.dice.millis(0, UNNOTICED_MS)).await;
        let _ = to.try_send(Err(lost()));
    }
}
