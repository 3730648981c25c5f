//! A forward proxy as companies have them: HTTP CONNECT, with user and password, and the only one that knows the store's name.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::BASE64;

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What was asked of a proxy.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// What was asked for, in order: `HOST:PORT` of a CONNECT, else the URL.
    pub targets: Vec<String>,
    /// How many requests had no credentials, or others.
    pub denied: usize,
    /// How many connections went through.
    pub opened: usize,
}

#[derive(Default)]
struct State {
    asked: Asked,
    open: Vec<TcpStream>,
    ended: bool,
}

/// A proxy on a free port of 127.0.0.1, until it is dropped.
pub struct Tunnel {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// What a proxy knows.
struct Knows {
    /// The header's value that it wants.
    authorization: Option<String>,
    names: HashMap<String, SocketAddr>,
}

impl Tunnel {
    /// A proxy that wants `user:password`, if any, and connects to these names only.
    ///
    /// # Panics
    /// If this machine gives no port.
    pub fn start(credentials: Option<&str>, names: &[(&str, SocketAddr)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let knows = Arc::new(Knows {
            authorization: credentials.map(|both| format!("Basic {}", BASE64.encode(both.as_bytes()))),
            names: names.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect(),
        });
        let own = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if lock(&own).ended {
                    return;
                }
                let (state, knows) = (own.clone(), knows.clone());
                std::thread::spawn(move || serve(client, &knows, &state));
            }
        });
        Self { address, state }
    }

    /// Its URL, without credentials.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its URL with credentials, as the environment has it.
    pub fn url_as(&self, credentials: &str) -> String {
        format!("http://{credentials}@{}", self.address)
    }

    /// What was asked of it until now.
    pub fn asked(&self) -> Asked {
        lock(&self.state).asked.clone()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.ended = true;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        // Wakes the listener, which ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection of a client.
fn serve(mut client: TcpStream, knows: &Knows, state: &Mutex<State>) {
    let Some(head) = head(&mut client) else { return };
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("proxy-authorization").then(|| value.trim().to_owned())
    };
    let authorization = head.lines().find_map(header);
    let denied = knows.authorization.is_some() && authorization != knows.authorization;
    let server = (!denied && method == "CONNECT").then(|| knows.names.get(target.as_str())).flatten();
    let server = server.and_then(|at| TcpStream::connect(at).ok());
    let answer = match (denied, &server) {
        (true, _) => "407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"site\"",
        (false, None) => "502 Bad Gateway",
        (false, Some(_)) => "200 Connection established",
    };
    {
        let mut state = lock(state);
        state.asked.targets.push(target);
        state.asked.denied += usize::from(denied);
        state.asked.opened += usize::from(server.is_some());
        state.open.extend(client.try_clone().into_iter().chain(server.as_ref().and_then(|s| s.try_clone().ok())));
    }
    let ends = if server.is_some() { "" } else { "Content-Length: 0\r\nConnection: close\r\n" };
    let said = client.write_all(format!("HTTP/1.1 {answer}\r\n{ends}\r\n").as_bytes());
    let Some(server) = server.filter(|_| said.is_ok()) else { return };
    let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { return };
    std::thread::spawn(move || forward(from, to));
    forward(server, client);
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Write);
}

/// The head of a request, byte for byte: what follows it is not the proxy's.
fn head(client: &mut TcpStream) -> Option<String> {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
        if bytes.len() > HEAD_BYTES_MAX {
            return None;
        }
    }
    String::from_utf8(bytes).ok()
}
