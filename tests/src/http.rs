//! Just enough of HTTP/1.1: a client to ask a peer whether it is up and to make a bucket, one request, one connection; and a server that keeps
//! what is posted to it.

use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A peer on this machine that takes longer than this for a small request is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Head and body as they came.
    pub text: String,
}

/// Sends one request without a body and reads the answer to its end.
///
/// # Errors
/// If the peer does not listen, hangs up, or does not speak HTTP.
pub fn request(to: SocketAddr, method: &str, target: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {text:?}")))?;
    Ok(Answer { status, text })
}

/// What was posted to a [`Listener`].
#[derive(Clone, Debug)]
pub struct Post {
    /// Method and target: `POST /path`.
    pub target: String,
    /// Lines of the head after the first, in lower case.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

/// A server that keeps what is posted to it. Ends when dropped.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    posts: Arc<Mutex<Vec<Post>>>,
    ends: Arc<AtomicBool>,
}

impl Listener {
    /// A server on a free port of 127.0.0.1 that answers the first so many requests with 503, and all others with 204.
    pub fn start(busy: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (posts, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (kept, ended) = (posts.clone(), ends.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                // What is not HTTP is nobody's here.
                let _ = take(client, &kept, busy);
            }
        });
        Self { address, posts, ends }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that was posted so far.
    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().expect("nothing panics while it holds the lock").clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // It looks when somebody comes.
        let _ = TcpStream::connect(self.address);
    }
}

fn take(client: TcpStream, posts: &Mutex<Vec<Post>>, busy: usize) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut reader = io::BufReader::new(&client);
    let (mut target, mut head, mut len) = (String::new(), String::new(), 0);
    reader.read_line(&mut target)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let line = line.to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            len = value.trim().parse().unwrap_or(0);
        }
        head += &line;
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body)?;
    let target = target.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let number = {
        let mut posts = posts.lock().expect("nothing panics while it holds the lock");
        posts.push(Post { target, head, body });
        posts.len()
    };
    let answer = if number <= busy { "503 Service Unavailable" } else { "204 No Content" };
    write!(&client, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}
