//! What a store must do to hold a vault, over any `ObjectStore`. Each check tells what it found instead of failing by itself, so that
//! a test can also demand that a lying store is found out.
//!
//! Names begin with the check's own folder: several checks may share a store.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::disks::seeded_bytes;

/// What a check found: nothing, or what is wrong.
pub type Found = Result<(), String>;

/// Rounds of a race, and writers in each: a store that checks and then writes was wrong in half of them.
const RACES: u32 = 20;
const RACERS: u8 = 8;
/// A bulk segment is 32 MiB; one byte more is no multiple of anything.
const LARGE_BYTES: usize = (32 << 20) + 1;
/// Part of a multipart upload, the last one is smaller.
const PART_BYTES: usize = 8 << 20;
/// Requests under way at once when a check needs many objects.
const PARALLEL: usize = 16;

macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err(format!($($what)+));
        }
    };
}

fn failed(doing: &str) -> impl FnOnce(Error) -> String {
    let doing = doing.to_owned();
    move |error| format!("{doing}: {error}")
}

/// Stores an object only where there is none.
///
/// # Errors
/// `AlreadyExists` where there is one.
pub async fn create(store: &dyn ObjectStore, name: &Path, bytes: Bytes) -> Result<(), Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(name, bytes.into(), options).await.map(drop)
}

async fn read(store: &dyn ObjectStore, name: &Path) -> Result<Bytes, String> {
    let got = store.get(name).await.map_err(failed("get"))?;
    got.bytes().await.map_err(failed("read"))
}

/// The second put-if-absent of a name is told so, and the first one's bytes stand.
pub async fn create_once(store: Arc<dyn ObjectStore>) -> Found {
    let name = Path::from("create-once/point");
    create(&*store, &name, Bytes::from_static(b"first")).await.map_err(failed("first put-if-absent"))?;
    match create(&*store, &name, Bytes::from_static(b"second")).await {
        Err(Error::AlreadyExists { .. }) => {}
        Err(other) => return Err(format!("the second put-if-absent failed with something else: {other}")),
        Ok(()) => return Err("the second put-if-absent succeeded".to_owned()),
    }
    ensure!(read(&*store, &name).await? == "first", "a refused put-if-absent changed the object");
    store.delete(&name).await.map_err(failed("delete"))?;
    create(&*store, &name, Bytes::from_static(b"third")).await.map_err(failed("put-if-absent after a delete"))?;
    ensure!(read(&*store, &name).await? == "third", "what was created after a delete does not read back");
    Ok(())
}

/// Of several writers that race for a name exactly one wins, and its bytes stand.
pub async fn create_race(store: Arc<dyn ObjectStore>) -> Found {
    for round in 0..RACES {
        let name = Path::from(format!("create-race/{round:04}"));
        let racers = (0..RACERS).map(|racer| {
            let (store, name) = (Arc::clone(&store), name.clone());
            tokio::spawn(async move { create(&*store, &name, Bytes::from(vec![racer; 4096])).await })
        });
        let mut winners = Vec::new();
        for (racer, result) in (0..RACERS).zip(join_all(racers).await) {
            match result.map_err(|error| error.to_string())? {
                Ok(()) => winners.push(racer),
                Err(Error::AlreadyExists { .. }) => {}
                Err(other) => return Err(format!("round {round}: a racer failed: {other}")),
            }
        }
        ensure!(winners.len() == 1, "round {round}: {} of {RACERS} racing put-if-absent won", winners.len());
        let stands = read(&*store, &name).await?;
        ensure!(stands == vec![winners[0]; 4096], "round {round}: not the winner's bytes stand");
    }
    Ok(())
}

/// Whole reads, ranges, many ranges at once; a range behind the end is no silent success.
pub async fn reads(store: Arc<dyn ObjectStore>) -> Found {
    let (name, bytes) = (Path::from("reads/object"), Bytes::from(seeded_bytes(1, 100_003)));
    store.put(&name, bytes.clone().into()).await.map_err(failed("put"))?;
    ensure!(read(&*store, &name).await? == bytes, "the object does not read back");
    ensure!(store.head(&name).await.map_err(failed("head"))?.size == 100_003, "head tells another size");
    for (start, end) in [(0, 1), (0, 100_003), (1, 4097), (65_535, 65_537), (99_999, 100_003)] {
        let got = store.get_range(&name, start as u64..end as u64).await.map_err(failed("range"))?;
        ensure!(got == bytes[start..end], "range {start}..{end} gives other bytes");
    }
    let ranges = [(0_u64, 16_u64), (50_000, 50_001), (16, 32), (90_000, 100_003)];
    let asked: Vec<_> = ranges.iter().map(|&(start, end)| start..end).collect();
    let got = store.get_ranges(&name, &asked).await.map_err(failed("ranges"))?;
    for ((start, end), got) in [(0, 16), (50_000, 50_001), (16, 32), (90_000, 100_003)].into_iter().zip(got) {
        ensure!(got == bytes[start..end], "of many ranges, {start}..{end} gives other bytes");
    }
    ensure!(store.get_range(&name, 100_003..100_010).await.is_err(), "a range behind the end gave bytes");
    Ok(())
}

/// An object with nothing in it is an object.
pub async fn empty_object(store: Arc<dyn ObjectStore>) -> Found {
    let name = Path::from("empty/object");
    create(&*store, &name, Bytes::new()).await.map_err(failed("put-if-absent of nothing"))?;
    ensure!(read(&*store, &name).await?.is_empty(), "nothing came back as something");
    ensure!(store.head(&name).await.map_err(failed("head"))?.size == 0, "head tells a size");
    let again = create(&*store, &name, Bytes::from_static(b"x")).await;
    ensure!(matches!(again, Err(Error::AlreadyExists { .. })), "an empty object does not count as there");
    Ok(())
}

/// A segment-sized object in one put, and in parts; parts that are given up leave nothing.
pub async fn large_object(store: Arc<dyn ObjectStore>) -> Found {
    let bytes = Bytes::from(seeded_bytes(2, LARGE_BYTES));
    let (whole, parted, given_up) = (Path::from("large/whole"), Path::from("large/parted"), Path::from("large/no"));
    store.put(&whole, bytes.clone().into()).await.map_err(failed("put"))?;
    let mut upload = store.put_multipart(&parted).await.map_err(failed("begin of parts"))?;
    let parts: Vec<_> = (0..LARGE_BYTES).step_by(PART_BYTES).collect();
    let parts = parts.into_iter().map(|at| bytes.slice(at..(at + PART_BYTES).min(LARGE_BYTES)));
    let sent: Vec<_> = parts.map(|part| upload.put_part(PutPayload::from(part))).collect();
    for part in join_all(sent).await {
        part.map_err(failed("part"))?;
    }
    let early = store.head(&parted).await;
    ensure!(matches!(early, Err(Error::NotFound { .. })), "an object of parts is there before it is complete");
    upload.complete().await.map_err(failed("completion of parts"))?;
    for name in [&whole, &parted] {
        ensure!(store.head(name).await.map_err(failed("head"))?.size == LARGE_BYTES as u64, "{name}: another size");
        ensure!(read(&*store, name).await? == bytes, "{name} does not read back");
        let (from, to) = (PART_BYTES - 3, PART_BYTES + 5);
        let got = store.get_range(name, from as u64..to as u64).await.map_err(failed("range"))?;
        ensure!(got == bytes[from..to], "{name}: a range across two parts gives other bytes");
    }
    let mut upload = store.put_multipart(&given_up).await.map_err(failed("begin of parts"))?;
    upload.put_part(PutPayload::from(bytes.slice(..PART_BYTES))).await.map_err(failed("part"))?;
    upload.abort().await.map_err(failed("giving up"))?;
    let gone = store.head(&given_up).await;
    ensure!(matches!(gone, Err(Error::NotFound { .. })), "parts that were given up left an object");
    Ok(())
}

/// A listing is complete and has nothing else in it; a prefix is a folder, not a beginning of a name.
pub async fn listing(store: Arc<dyn ObjectStore>, objects: usize) -> Found {
    let name = |n: usize| Path::from(format!("listing/segments/{:02x}/{n:05}", n % 7));
    let puts = stream::iter(0..objects).map(|n| {
        let (store, name) = (Arc::clone(&store), name(n));
        async move { store.put(&name, Bytes::from(vec![b'x'; n % 10]).into()).await.map(drop) }
    });
    puts.buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await.map_err(failed("put"))?;
    for other in ["listing/segments-of-another/00/x", "listing/points/1", "elsewhere/x"] {
        store.put(&Path::from(other), Bytes::from_static(b"y").into()).await.map_err(failed("put"))?;
    }
    let folder = Path::from("listing/segments");
    let listed: Vec<_> = store.list(Some(&folder)).try_collect().await.map_err(failed("list"))?;
    let mut found: Vec<_> = listed.iter().map(|meta| (meta.location.to_string(), meta.size)).collect();
    let mut wanted: Vec<_> = (0..objects).map(|n| (name(n).to_string(), (n % 10) as u64)).collect();
    found.sort();
    wanted.sort();
    ensure!(found.len() == wanted.len(), "{} of {} objects are listed", found.len(), wanted.len());
    ensure!(found == wanted, "the listing has other names or sizes");

    let here = store.list_with_delimiter(Some(&folder)).await.map_err(failed("list of folders"))?;
    ensure!(here.objects.is_empty(), "a list of folders goes into them");
    let mut folders: Vec<_> = here.common_prefixes.iter().map(ToString::to_string).collect();
    folders.sort();
    let wanted: Vec<_> = (0..7).map(|n| format!("listing/segments/{n:02x}")).collect();
    ensure!(folders == wanted, "the folders are {folders:?}");

    let none: Vec<_> =
        store.list(Some(&Path::from("listing/nothing"))).try_collect().await.map_err(failed("list of nothing"))?;
    ensure!(none.is_empty(), "a folder that is not there has objects");
    Ok(())
}

/// A deleted object is gone, its neighbours are not; deleting what is not there does no harm.
pub async fn deletes(store: Arc<dyn ObjectStore>) -> Found {
    let (name, neighbour) = (Path::from("deletes/object"), Path::from("deletes/object-2"));
    for name in [&name, &neighbour] {
        store.put(name, Bytes::from_static(b"x").into()).await.map_err(failed("put"))?;
    }
    store.delete(&name).await.map_err(failed("delete"))?;
    let gone = store.get(&name).await;
    ensure!(matches!(gone, Err(Error::NotFound { .. })), "a deleted object is still there");
    ensure!(read(&*store, &neighbour).await? == "x", "the neighbour went too");
    match store.delete(&name).await {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(other) => Err(format!("a second delete: {other}")),
    }
}

/// What is not there is "not found", whatever the question.
pub async fn missing(store: Arc<dyn ObjectStore>) -> Found {
    let name = Path::from("missing/object");
    store.put(&Path::from("missing/other"), Bytes::from_static(b"x").into()).await.map_err(failed("put"))?;
    let answers = [
        ("get", store.get(&name).await.map(drop)),
        ("head", store.head(&name).await.map(drop)),
        ("range", store.get_range(&name, 0..1).await.map(drop)),
        ("folder", store.get(&Path::from("missing")).await.map(drop)),
    ];
    for (asked, answer) in answers {
        let error = answer.err().ok_or(format!("{asked} found something"))?;
        ensure!(matches!(error, Error::NotFound { .. }), "{asked} says something else: {error}");
    }
    Ok(())
}

/// A plain put replaces all of what was there, also where it was longer.
pub async fn overwrite(store: Arc<dyn ObjectStore>) -> Found {
    let name = Path::from("overwrite/lease");
    for bytes in [&b"a long first version"[..], b"short", b"", b"and a third"] {
        store.put(&name, Bytes::copy_from_slice(bytes).into()).await.map_err(failed("put"))?;
        ensure!(read(&*store, &name).await? == bytes, "an older version is still there");
    }
    let listed: Vec<_> = store.list(Some(&Path::from("overwrite"))).try_collect().await.map_err(failed("list"))?;
    ensure!(listed.len() == 1 && listed[0].size == 11, "the listing shows an older version");
    Ok(())
}

/// Names with characters that URLs, XML or signatures treat specially.
pub async fn odd_names(store: Arc<dyn ObjectStore>) -> Found {
    let names = ["a b", "a+b", "a&b", "a=b;c", "büro-ß", "50%25", "(1)", "a'b", "t~_-.x", "<x>"];
    let mut wanted = Vec::new();
    for (n, part) in names.iter().enumerate() {
        let name = Path::from("odd").join(*part);
        let bytes = Bytes::from(format!("object {n}"));
        create(&*store, &name, bytes.clone()).await.map_err(failed(&format!("put of {part:?}")))?;
        ensure!(read(&*store, &name).await? == bytes, "{part:?} does not read back");
        wanted.push(name.to_string());
    }
    let listed: Vec<_> = store.list(Some(&Path::from("odd"))).try_collect().await.map_err(failed("list"))?;
    let mut found: Vec<_> = listed.iter().map(|meta| meta.location.to_string()).collect();
    found.sort();
    wanted.sort();
    ensure!(found == wanted, "listed are {found:?}, stored were {wanted:?}");
    Ok(())
}
