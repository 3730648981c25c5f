use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::protocol::{MAGIC, OPTION_MAGIC, REQUEST_MAGIC, command, errno, flag, option, option_reply};

/// A disk in memory; reads of its last sector fail.
struct Memory(Mutex<Vec<u8>>);

const SIZE: usize = 1 << 20;

#[async_trait]
impl Disk for Memory {
    fn size(&self) -> u64 {
        SIZE as u64
    }
    fn writable(&self) -> bool {
        true
    }
    fn description(&self) -> String {
        "memory".to_owned()
    }
    async fn read(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let start = usize::try_from(start).expect("in memory");
        if start + out.len() > SIZE - 512 {
            return Err(Error::corrupt("chunk 7 is missing"));
        }
        out.copy_from_slice(&self.0.lock().expect("not poisoned")[start..start + out.len()]);
        Ok(())
    }
    async fn write(&self, start: u64, bytes: Bytes) -> Result<()> {
        let start = usize::try_from(start).expect("in memory");
        self.0.lock().expect("not poisoned")[start..start + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }
    async fn zero(&self, extent: Extent) -> Result<()> {
        self.write(extent.start, vec![0; usize::try_from(extent.len).expect("in memory")].into()).await
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn status(&self, extent: Extent, _: usize) -> Result<Vec<Run>> {
        Ok(vec![Run { extent, data: true }])
    }
}

/// A client's end of a connection to a server with the export `disk`.
fn connect() -> DuplexStream {
    let disk: Arc<dyn Disk> = Arc::new(Memory(Mutex::new(vec![7; SIZE])));
    let server = Server::new(BTreeMap::from([("disk".to_owned(), disk)]));
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    tokio::spawn(server.connection(theirs));
    ours
}

async fn greeted() -> DuplexStream {
    let mut to = connect();
    assert_eq!(to.read_u64().await.expect("greets"), MAGIC);
    assert_eq!(to.read_u64().await.expect("greets"), OPTION_MAGIC);
    assert_eq!(to.read_u16().await.expect("greets"), 3);
    to.write_u32(3).await.expect("answers");
    to
}

async fn send_option(to: &mut DuplexStream, option: u32, data: &[u8]) {
    to.write_u64(OPTION_MAGIC).await.expect("sent");
    to.write_u32(option).await.expect("sent");
    to.write_u32(u32::try_from(data.len()).expect("short")).await.expect("sent");
    to.write_all(data).await.expect("sent");
}

/// The kind and data of the next reply to an option.
async fn reply(from: &mut DuplexStream) -> (u32, Vec<u8>) {
    assert_eq!(from.read_u64().await.expect("replied"), crate::protocol::OPTION_REPLY_MAGIC);
    from.read_u32().await.expect("an option");
    let kind = from.read_u32().await.expect("a kind");
    let mut data = vec![0; from.read_u32().await.expect("a length") as usize];
    from.read_exact(&mut data).await.expect("data");
    (kind, data)
}

fn go(name: &str) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).expect("short").to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&0_u16.to_be_bytes());
    data
}

/// A connection that is past its negotiation, with simple replies.
async fn ready() -> DuplexStream {
    let mut to = greeted().await;
    send_option(&mut to, option::GO, &go("disk")).await;
    assert_eq!(reply(&mut to).await.0, option_reply::INFO);
    assert_eq!(reply(&mut to).await.0, option_reply::ACK);
    to
}

async fn request(to: &mut DuplexStream, command: u16, start: u64, len: u32) {
    to.write_u32(REQUEST_MAGIC).await.expect("sent");
    to.write_u16(0).await.expect("sent");
    to.write_u16(command).await.expect("sent");
    to.write_u64(99).await.expect("sent");
    to.write_u64(start).await.expect("sent");
    to.write_u32(len).await.expect("sent");
}

async fn error_of(from: &mut DuplexStream) -> u32 {
    assert_eq!(from.read_u32().await.expect("a reply"), crate::protocol::SIMPLE_REPLY_MAGIC);
    let error = from.read_u32().await.expect("an error");
    assert_eq!(from.read_u64().await.expect("a cookie"), 99);
    error
}

#[tokio::test]
async fn an_export_that_is_not_there_is_refused_and_another_can_be_chosen() {
    let mut to = greeted().await;
    send_option(&mut to, option::GO, &go("other")).await;
    assert_eq!(reply(&mut to).await.0, option_reply::ERR_UNKNOWN);
    send_option(&mut to, 4711, b"what").await;
    assert_eq!(reply(&mut to).await.0, option_reply::ERR_UNSUP);
    send_option(&mut to, option::GO, &go("disk")).await;
    let (kind, data) = reply(&mut to).await;
    assert_eq!(kind, option_reply::INFO);
    assert_eq!(data[2..10], (SIZE as u64).to_be_bytes());
    assert_eq!(u16::from_be_bytes([data[10], data[11]]) & flag::READ_ONLY, 0);
}

#[tokio::test]
async fn malformed_options_are_refused() {
    for data in [&[][..], &[0, 0, 0, 9, 1], &[0xff; 6], &[0, 0, 0, 4, b'd', b'i', b's', b'k', 0, 9]] {
        for option in [option::GO, option::INFO, option::SET_META_CONTEXT] {
            let mut to = greeted().await;
            send_option(&mut to, option, data).await;
            assert_eq!(reply(&mut to).await.0, option_reply::ERR_INVALID, "{option} {data:?}");
        }
    }
}

#[tokio::test]
async fn a_context_before_structured_replies_is_refused() {
    let mut to = greeted().await;
    let mut data = go("disk");
    data.truncate(8);
    data.extend_from_slice(&0_u32.to_be_bytes());
    send_option(&mut to, option::SET_META_CONTEXT, &data).await;
    assert_eq!(reply(&mut to).await.0, option_reply::ERR_INVALID);
}

#[tokio::test]
async fn who_does_not_speak_the_protocol_is_cut_off() {
    let mut to = connect();
    to.write_all(&[0; 64]).await.expect("sent");
    let mut rest = Vec::new();
    to.read_to_end(&mut rest).await.expect("it ends");
    assert_eq!(rest.len(), 18, "the greeting and nothing else");
    let mut to = greeted().await;
    to.write_u64(OPTION_MAGIC).await.expect("sent");
    to.write_u32(option::GO).await.expect("sent");
    to.write_u32(u32::MAX).await.expect("sent");
    assert_eq!(to.read_to_end(&mut rest).await.expect("an option of 4 GiB is not taken"), 0);
    let mut to = ready().await;
    to.write_all(&[0x55; 28]).await.expect("sent");
    assert_eq!(to.read_to_end(&mut rest).await.expect("no request begins so"), 0);
}

#[tokio::test]
async fn ranges_beyond_the_end_and_unreadable_ones_are_errors_and_others_go_on() {
    let mut to = ready().await;
    for (command, start, len, error) in [
        (command::READ, SIZE as u64, 1, errno::INVAL),
        (command::READ, u64::MAX, 4096, errno::INVAL),
        (command::READ, 0, u32::MAX, errno::OVERFLOW),
        (command::READ, SIZE as u64 - 512, 512, errno::IO),
        (command::TRIM, 4096, u32::MAX, errno::NOSPC),
        (command::BLOCK_STATUS, 0, 4096, errno::INVAL),
        (4711, 0, 4096, errno::NOTSUP),
        (command::FLUSH, 0, 0, 0),
    ] {
        request(&mut to, command, start, len).await;
        assert_eq!(error_of(&mut to).await, error, "{command} {start} {len}");
    }
    request(&mut to, command::READ, 512, 16).await;
    assert_eq!(error_of(&mut to).await, 0);
    let mut data = [0; 16];
    to.read_exact(&mut data).await.expect("data");
    assert_eq!(data, [7; 16]);
}

#[tokio::test]
async fn what_is_written_is_read_and_a_write_behind_the_end_is_no_space() {
    let mut to = ready().await;
    request(&mut to, command::WRITE, SIZE as u64, 4).await;
    to.write_all(b"abcd").await.expect("sent");
    assert_eq!(error_of(&mut to).await, errno::NOSPC);
    request(&mut to, command::WRITE, 100, 4).await;
    to.write_all(b"abcd").await.expect("sent");
    assert_eq!(error_of(&mut to).await, 0);
    request(&mut to, command::READ, 99, 6).await;
    assert_eq!(error_of(&mut to).await, 0);
    let mut data = [0; 6];
    to.read_exact(&mut data).await.expect("data");
    assert_eq!(&data, b"\x07abcd\x07");
}

#[tokio::test]
async fn more_requests_than_are_in_flight_at_once_are_all_answered() {
    let (mut from, mut out) = tokio::io::split(ready().await);
    let asking = async {
        for _ in 0..10 * REQUESTS_MAX {
            let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
            bytes.extend_from_slice(&[0, 0, 0, 0]);
            bytes.extend_from_slice(&99_u64.to_be_bytes());
            bytes.extend_from_slice(&0_u64.to_be_bytes());
            bytes.extend_from_slice(&4096_u32.to_be_bytes());
            out.write_all(&bytes).await.expect("sent");
        }
    };
    let hearing = async {
        let mut reply = vec![0; 16 + 4096];
        for _ in 0..10 * REQUESTS_MAX {
            from.read_exact(&mut reply).await.expect("a reply");
            assert!(reply[16..].iter().all(|b| *b == 7));
        }
    };
    tokio::join!(asking, hearing);
}
