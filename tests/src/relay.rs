//! A relay between an agent and a gateway, as bad as networks are: it cuts connections, falls silent, and forwards slowly.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What both directions of all connections do.
#[derive(Default)]
struct Mood {
    /// Bytes after which every connection is cut; zero: none.
    cut_after: AtomicU64,
    silent: AtomicBool,
    /// Wait before each piece that is forwarded, in ms.
    slow_ms: AtomicU64,
    ended: AtomicBool,
}

/// Forwards TCP to one address until it is dropped.
pub struct Relay {
    address: SocketAddr,
    mood: Arc<Mood>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    /// A relay that forwards everything.
    ///
    /// # Panics
    /// If this machine gives no port.
    pub fn start(upstream: &str) -> Self {
        Self::start_at("127.0.0.1:0", upstream)
    }

    /// The same at an address of this machine.
    ///
    /// # Panics
    /// If it is not to be had.
    pub fn start_at(address: &str, upstream: &str) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (mood, open) = (Arc::new(Mood::default()), Arc::new(Mutex::new(Vec::new())));
        let (upstream, relay) = (upstream.to_owned(), (mood.clone(), open.clone()));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (mood, open) = (&relay.0, &relay.1);
                if mood.ended.load(Ordering::SeqCst) {
                    return;
                }
                // A gateway that is down: the connection ends at once.
                let Ok(server) = TcpStream::connect(&upstream) else { continue };
                let clone = |stream: &TcpStream| stream.try_clone().expect("a file descriptor");
                open.lock().unwrap_or_else(PoisonError::into_inner).extend([clone(&client), clone(&server)]);
                for (from, to) in [(clone(&client), clone(&server)), (server, client)] {
                    let mood = mood.clone();
                    std::thread::spawn(move || forward(from, to, &mood));
                }
            }
        });
        Self { address, mood, open }
    }

    /// Where agents connect to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Cuts every connection, now and later, when one direction of it has carried so many bytes.
    pub fn cut_after(&self, bytes: u64) {
        self.mood.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// Forwards nothing any more, and says nothing.
    pub fn fall_silent(&self) {
        self.mood.silent.store(true, Ordering::SeqCst);
    }

    /// Waits before each piece.
    pub fn be_slow(&self, wait: Duration) {
        self.mood.slow_ms.store(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Cuts all connections that are open.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Forwards everything again, on new connections.
    pub fn heal(&self) {
        self.cut();
        self.mood.cut_after.store(0, Ordering::SeqCst);
        self.mood.silent.store(false, Ordering::SeqCst);
        self.mood.slow_ms.store(0, Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, mood: &Mood) {
    let (mut buffer, mut carried) = (vec![0; 16 * 1024], 0);
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        while mood.silent.load(Ordering::SeqCst) && !mood.ended.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(mood.slow_ms.load(Ordering::SeqCst)));
        carried += len as u64;
        let limit = mood.cut_after.load(Ordering::SeqCst);
        if (limit > 0 && carried > limit) || to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.mood.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the listener, which ends.
        let _ = TcpStream::connect(self.address);
    }
}
