//! While a gateway looks into the vault, an agent is not to think that nobody is there.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::interval;

use crate::client::ANSWER;
use crate::message::FromGateway;

/// How often a gateway says that it is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

// An agent gives up after ANSWER: one message may come late.
const _: () = assert!(3 * ALIVE_EVERY.as_secs() <= ANSWER.as_secs());

/// Does something that may take long, and tells the agent again and again that the gateway is alive.
pub async fn alive_while<T>(to: &mpsc::Sender<FromGateway>, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let mut ticks = interval(ALIVE_EVERY);
    // The first is at once: most work is done before the second.
    ticks.tick().await;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            // Where nobody listens any more, or too much waits already, the work goes on: its end tells.
            _ = ticks.tick() => drop(to.try_send(FromGateway::Alive)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_agent_hears_of_a_gateway_that_takes_its_time() {
        let (to, mut from) = mpsc::channel(4);
        let listened = tokio::spawn(async move {
            let mut heard = 0;
            let mut last = tokio::time::Instant::now();
            while let Some(message) = from.recv().await {
                assert_eq!(message, FromGateway::Alive);
                assert!(last.elapsed() < ANSWER, "an agent would have given up");
                last = tokio::time::Instant::now();
                heard += 1;
            }
            assert!(last.elapsed() < ANSWER, "an agent would have given up");
            heard
        });
        assert_eq!(alive_while(&to, async { 7 }).await, 7);
        let slow = async {
            tokio::time::sleep(Duration::from_secs(299)).await;
            8
        };
        assert_eq!(alive_while(&to, slow).await, 8);
        drop(to);
        assert_eq!(listened.await.expect("it ended"), 19);
    }
}
