//! The client against qemu-nbd, and against servers that lie.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use landfall_model::{ErrorKind, Extent};
use landfall_nbd::Address;
use landfall_nbd::client::{Client, IN_FLIGHT_MAX, PART_BYTES};
use landfall_nbd::protocol::{
    BASE_ALLOCATION, MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, allocation, chunk, info, option,
    option_reply,
};

const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// A server of one image. Ended when it is dropped.
struct QemuNbd(Child);

impl QemuNbd {
    fn start(address: &Address, more: &[&str], image: &Path) -> Self {
        let mut command = Command::new("qemu-nbd");
        match address {
            Address::Unix(path) => command.arg("-k").arg(path),
            Address::Tcp(address) => command.args(["-b", "127.0.0.1", "-p", address.rsplit(':').next().unwrap()]),
        };
        let child = command.args(["-t", "-r", "-x", "disk", "-e", "4"]).args(more).arg(image).stdin(Stdio::null());
        let server = Self(child.spawn().unwrap());
        let start = Instant::now();
        while Client::connect(address, "disk", &[], LONG).is_err() {
            assert!(start.elapsed() < LONG, "qemu-nbd does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `false` after saying that the programs are missing.
fn has_qemu() -> bool {
    let has = ["qemu-nbd", "qemu-img", "qemu-io"]
        .iter()
        .all(|p| Command::new(p).arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success()));
    if !has {
        assert!(std::env::var_os("CI").is_none(), "qemu-nbd is missing: run tests/tools/setup.sh");
        eprintln!("SKIPPED: qemu-nbd is missing; run tests/tools/setup.sh");
    }
    has
}

fn run(program: &str, arguments: &[&str]) {
    let out = Command::new(program).args(arguments).output().unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn bytes(len: u64) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn a_disk_is_read_as_it_is_in_any_range_over_both_kinds_of_sockets() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.raw");
    let content = bytes(9 * MIB + 512);
    std::fs::write(&image, &content).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [Address::Unix(folder.path().join("socket")), Address::Tcp(port.to_string())] {
        let _server = QemuNbd::start(&address, &["-f", "raw"], &image);
        let mut client = Client::connect(&address, "disk", &[], LONG).unwrap();
        assert_eq!(client.size(), content.len() as u64);
        let part = PART_BYTES;
        for (start, len) in [(0, content.len()), (1, part), (part - 1, part + 2), (5 * part, 1), (content.len() - 7, 7)]
        {
            for in_flight in [1, 3, IN_FLIGHT_MAX] {
                let mut buf = vec![0; len];
                client.read_in(&mut buf, start as u64, in_flight).unwrap();
                assert!(buf == content[start..start + len], "{start} {len} {in_flight}");
            }
        }
        let error = client.read(&mut [0; 2], content.len() as u64 - 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        client.read(&mut [0; 2], 0).unwrap();
        let error = Client::connect(&address, "other", &[], LONG).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    let gone = Address::Unix(folder.path().join("nowhere"));
    assert_eq!(Client::connect(&gone, "disk", &[], LONG).err().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn holes_and_what_a_bitmap_marks_are_told() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, socket) = (folder.path().join("disk.qcow2"), Address::Unix(folder.path().join("socket")));
    let path = image.to_str().unwrap();
    // More than is asked for at once.
    let size = 3 << 30;
    run("qemu-img", &["create", "-q", "-f", "qcow2", path, &size.to_string()]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 5 1M 128k", path]);
    run("qemu-img", &["bitmap", "--add", "-g", "65536", path, "marks"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 6 64k 1", "-c", "write -q -P 7 2G 128k", path]);
    let _server = QemuNbd::start(&socket, &["-f", "qcow2", "-B", "marks"], &image);
    let marks = "qemu:dirty-bitmap:marks";
    let mut client = Client::connect(&socket, "disk", &[BASE_ALLOCATION, marks, "qemu:other"], LONG).unwrap();
    assert!(client.has_context(marks) && client.has_context(BASE_ALLOCATION) && !client.has_context("qemu:other"));
    let mut runs = |context: &str, within: Extent, wanted: &dyn Fn(u32) -> bool| {
        let (mut at, mut found) = (within.start, Vec::<Extent>::new());
        let take = |run: Extent, flags: u32| {
            assert_eq!(run.start, at);
            at = run.end();
            match found.last_mut() {
                _ if !wanted(flags) => {}
                Some(last) if last.end() == run.start => last.len += run.len,
                _ => found.push(run),
            }
            Ok(())
        };
        client.extents(context, within, take).unwrap();
        assert_eq!(at, within.end().min(size));
        found
    };
    let all = Extent::between(0, u64::MAX);
    let dirty = runs(marks, all, &|flags| flags & 1 != 0);
    assert_eq!(dirty, [Extent { start: 64 << 10, len: 64 << 10 }, Extent { start: 2 << 30, len: 128 << 10 }]);
    let data = runs(BASE_ALLOCATION, all, &|flags| flags & allocation::ZERO == 0);
    assert_eq!(data.len(), 3, "{data:?}");
    assert_eq!(
        runs(marks, Extent::between(100 << 10, 1 << 20), &|f| f & 1 != 0),
        [Extent::between(100 << 10, 128 << 10)]
    );
    let mut buf = vec![1; 256 << 10];
    client.read(&mut buf, 2 << 30).unwrap();
    assert!(buf[..128 << 10].iter().all(|b| *b == 7) && buf[128 << 10..].iter().all(|b| *b == 0));
    let error = client.extents("qemu:other", all, |_, _| Ok(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// Figures for `docs/adr/0020-qemu-source.md`; nothing is asserted of time.
#[test]
fn reading_with_requests_in_flight_is_measured() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, socket) = (folder.path().join("disk.raw"), Address::Unix(folder.path().join("socket")));
    std::fs::write(&image, bytes(64 * MIB)).unwrap();
    let _server = QemuNbd::start(&socket, &["-f", "raw"], &image);
    let mut client = Client::connect(&socket, "disk", &[], LONG).unwrap();
    let mut buf = vec![0; 4 << 20];
    for in_flight in [1, 2, 4, 8, IN_FLIGHT_MAX, 1, IN_FLIGHT_MAX] {
        let start = Instant::now();
        for at in 0..16 {
            client.read_in(&mut buf, at * 4 * MIB, in_flight).unwrap();
        }
        eprintln!("{in_flight:2} in flight: {:.0} MiB/s", 64.0 / start.elapsed().as_secs_f64());
    }
}

/// A server in a thread: what it does after the greeting is up to the test.
fn lying(play: impl FnOnce(&mut UnixStream) + Send + 'static) -> landfall_model::Result<Client> {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        play(&mut stream);
        // What the client still says is read: else it would see a broken connection, and not what it was told.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    Client::connect(&Address::Unix(socket), "disk", &[BASE_ALLOCATION], LONG)
}

fn put(stream: &mut UnixStream, parts: &[&[u8]]) {
    stream.write_all(&parts.concat()).unwrap();
}

fn greet(stream: &mut UnixStream) {
    put(stream, &[&MAGIC.to_be_bytes(), &OPTION_MAGIC.to_be_bytes(), &3_u16.to_be_bytes()]);
    stream.read_exact(&mut [0; 4]).unwrap();
}

/// Reads an option.
fn hear(stream: &mut UnixStream) {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    let len = u32::from_be_bytes(head[12..].try_into().unwrap());
    stream.read_exact(&mut vec![0; len as usize]).unwrap();
}

fn answer(stream: &mut UnixStream, option: u32, kind: u32, data: &[u8]) {
    let len = u32::try_from(data.len()).unwrap();
    let head = [option.to_be_bytes(), kind.to_be_bytes(), len.to_be_bytes()].concat();
    put(stream, &[&OPTION_REPLY_MAGIC.to_be_bytes(), &head, data]);
}

/// All of the negotiation, for a disk of 1 MiB.
fn negotiate(stream: &mut UnixStream) {
    greet(stream);
    hear(stream);
    answer(stream, option::STRUCTURED_REPLY, option_reply::ACK, &[]);
    hear(stream);
    let context = [&9_u32.to_be_bytes(), BASE_ALLOCATION.as_bytes()].concat();
    answer(stream, option::SET_META_CONTEXT, option_reply::META_CONTEXT, &context);
    answer(stream, option::SET_META_CONTEXT, option_reply::ACK, &[]);
    hear(stream);
    let export = [&info::EXPORT.to_be_bytes()[..], &MIB.to_be_bytes(), &[0, 3]].concat();
    answer(stream, option::GO, option_reply::INFO, &export);
    answer(stream, option::GO, option_reply::ACK, &[]);
}

/// Reads a request; its handle.
fn request(stream: &mut UnixStream) -> [u8; 8] {
    let mut bytes = [0; 28];
    stream.read_exact(&mut bytes).unwrap();
    bytes[8..16].try_into().unwrap()
}

fn chunk(stream: &mut UnixStream, flags: u16, kind: u16, handle: [u8; 8], len: usize, data: &[u8]) {
    let (head, len) = ([flags.to_be_bytes(), kind.to_be_bytes()].concat(), u32::try_from(len).unwrap());
    // The client may have heard enough.
    let all = [&STRUCTURED_REPLY_MAGIC.to_be_bytes()[..], &head, &handle, &len.to_be_bytes(), data].concat();
    let _ = stream.write_all(&all);
}

#[track_caller]
fn assert_corrupt<T>(what: &str, outcome: landfall_model::Result<T>) {
    let error = outcome.err().unwrap_or_else(|| panic!("{what}: it is believed"));
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
}

#[test]
fn what_is_no_negotiation_is_refused() {
    assert_corrupt("magic", lying(|s| put(s, &[&[7; 18]])));
    assert_corrupt(
        "old",
        lying(|s| put(s, &[&MAGIC.to_be_bytes(), &0x0000_4202_8186_1253_u64.to_be_bytes(), &[0, 1]])),
    );
    assert_corrupt(
        "magic of an answer",
        lying(|s| {
            greet(s);
            put(s, &[&[0; 20]]);
        }),
    );
    assert_corrupt(
        "length",
        lying(|s| {
            greet(s);
            let head = [option::STRUCTURED_REPLY, option_reply::INFO, u32::MAX].map(u32::to_be_bytes).concat();
            put(s, &[&OPTION_REPLY_MAGIC.to_be_bytes(), &head]);
        }),
    );
    assert_corrupt(
        "another option",
        lying(|s| {
            greet(s);
            answer(s, option::GO, option_reply::ACK, &[]);
        }),
    );
    assert_corrupt(
        "no end",
        lying(|s| {
            greet(s);
            hear(s);
            answer(s, option::STRUCTURED_REPLY, option_reply::ACK, &[]);
            hear(s);
            answer(s, option::SET_META_CONTEXT, option_reply::ACK, &[]);
            hear(s);
            for _ in 0..100 {
                answer(s, option::GO, option_reply::INFO, &[0, 1]);
            }
        }),
    );
    let error = lying(|s| {
        greet(s);
        answer(s, option::STRUCTURED_REPLY, option_reply::ERR_UNSUP, b"no");
    });
    assert_eq!(error.err().unwrap().kind(), ErrorKind::Unsupported);
    assert_eq!(lying(greet_and_leave).err().unwrap().kind(), ErrorKind::Unavailable);
}

fn greet_and_leave(stream: &mut UnixStream) {
    greet(stream);
    stream.shutdown(std::net::Shutdown::Both).unwrap();
}

#[test]
fn a_read_is_whole_only_when_each_byte_has_come_once() {
    type Play = fn(&mut UnixStream, [u8; 8]);
    let lies: [(&str, Play); 9] = [
        ("magic", |s, _| put(s, &[&[1; 4]])),
        ("handle", |s, _| chunk(s, chunk::DONE, chunk::NONE, [9; 8], 0, &[])),
        ("nothing", |s, h| chunk(s, chunk::DONE, chunk::NONE, h, 0, &[])),
        ("too little", |s, h| chunk(s, chunk::DONE, chunk::OFFSET_DATA, h, 12, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4])),
        ("elsewhere", |s, h| chunk(s, chunk::DONE, chunk::OFFSET_DATA, h, 9, &[0, 0, 0, 0, 0, 1, 0, 0, 1])),
        ("far away", |s, h| chunk(s, chunk::DONE, chunk::OFFSET_DATA, h, 16, &[255; 16])),
        ("endless", |s, h| chunk(s, 0, chunk::OFFSET_DATA, h, 1 << 31, &[0; 8])),
        ("a hole of all", |s, h| chunk(s, 0, chunk::OFFSET_HOLE, h, 12, &[0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255])),
        ("twice", |s, h| {
            chunk(s, 0, chunk::OFFSET_HOLE, h, 12, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]);
            chunk(s, 0, chunk::OFFSET_HOLE, h, 12, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]);
        }),
    ];
    for (what, play) in lies {
        let mut client = lying(move |s| {
            negotiate(s);
            let handle = request(s);
            play(s, handle);
        })
        .unwrap();
        assert_corrupt(what, client.read(&mut [0; 4096], 0));
        assert_corrupt(what, client.read(&mut [0; 1], 0));
    }
}

#[test]
fn an_error_of_one_request_leaves_the_others_as_they_are() {
    let mut client = lying(|s| {
        negotiate(s);
        let (one, two) = (request(s), request(s));
        // In another order, in pieces.
        chunk(s, chunk::DONE, chunk::ERROR_ANY, two, 8, &[0, 0, 0, 5, 0, 2, b'n', b'o']);
        chunk(s, 0, chunk::OFFSET_HOLE, one, 12, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 255, 255]);
        chunk(s, chunk::DONE, chunk::OFFSET_DATA, one, 9, &[0, 0, 0, 0, 0, 3, 255, 255, 7]);
        let three = request(s);
        chunk(s, chunk::DONE, chunk::OFFSET_DATA, three, 9, &[0, 0, 0, 0, 0, 0, 0, 9, 8]);
    })
    .unwrap();
    let error = client.read(&mut vec![0; 2 * PART_BYTES], 0).unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("\"no\""), "{error}");
    let mut one = [0];
    client.read(&mut one, 9).unwrap();
    assert_eq!(one, [8]);
}

#[test]
fn a_status_of_blocks_must_get_on_and_end() {
    type Play = fn(&mut UnixStream, [u8; 8]);
    const ID: [u8; 4] = [0, 0, 0, 9];
    let lies: [(&str, Play); 7] = [
        ("of nothing", |s, h| chunk(s, chunk::DONE, chunk::NONE, h, 0, &[])),
        ("of no bytes", |s, h| chunk(s, chunk::DONE, chunk::BLOCK_STATUS, h, 12, &[ID, [0; 4], [0; 4]].concat())),
        ("cut off", |s, h| chunk(s, chunk::DONE, chunk::BLOCK_STATUS, h, 10, &[0; 10])),
        ("too long", |s, h| chunk(s, chunk::DONE, chunk::BLOCK_STATUS, h, (8 << 24) + 4, &[0; 8])),
        ("behind the end", |s, h| {
            let pair = [[0, 16, 0, 0], [0; 4]].concat();
            chunk(s, chunk::DONE, chunk::BLOCK_STATUS, h, 20, &[&ID[..], &pair, &pair].concat());
        }),
        ("twice", |s, h| {
            let pair = [ID, [0, 16, 0, 0], [0; 4]].concat();
            chunk(s, 0, chunk::BLOCK_STATUS, h, 12, &pair);
            chunk(s, 0, chunk::BLOCK_STATUS, h, 12, &pair);
        }),
        ("without end", |s, h| {
            let pair = [[0, 0, 0, 1], [0, 16, 0, 0], [0; 4]].concat();
            (0..100).for_each(|_| chunk(s, 0, chunk::BLOCK_STATUS, h, 12, &pair));
        }),
    ];
    for (what, play) in lies {
        let mut client = lying(move |s| {
            negotiate(s);
            let handle = request(s);
            play(s, handle);
        })
        .unwrap();
        assert_corrupt(what, client.extents(BASE_ALLOCATION, Extent::between(0, MIB), |_, _| Ok(())));
    }
}
