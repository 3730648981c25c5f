//! The machine's limit: the bare loops of capture and materialise over the same bytes, on all cores, with no store, no map and no files
//! but the one that is read. Every figure of the bench is also a ratio to these.
//!
//! Usage: `bare-loop IMAGE`. Prints one JSON document: bytes, seconds and CPU seconds of each loop.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use landfall_keys::{ContentSealer, EpochOpener, RecoveryKey, SiteKey, SitePublic};
use landfall_model::{ChunkRef, Codec, Location, SegmentId, Source, VaultId};
use landfall_vault::{Compressor, Decompressor};

/// Chunks of the average length.
const CHUNK: usize = 64 * 1024;
/// Bytes in memory at once: what one worker reads before it works.
const WINDOW: usize = 64 * CHUNK;

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Keys {
    site: SiteKey,
    sealer: ContentSealer,
    opener: EpochOpener,
    vault: VaultId,
}

fn keys() -> Result<Keys, Failure> {
    let vault = VaultId::from_bytes([7; 16]);
    let recovery = RecoveryKey::generate(vault)?;
    let site = SiteKey::generate(vault, recovery.root_public())?;
    let sealer = ContentSealer::open_epoch(&site, site.domain_id(&"default".parse()?))?;
    let signer: SitePublic = site.public();
    let opener = recovery.unwrap_epoch(&sealer.wrapped_for(&site, &recovery.recipient())?, &signer)?;
    Ok(Keys { site, sealer, opener, vault })
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// What one worker did: bytes in, bytes sealed, seconds in the two loops.
fn work(image: &File, next: &AtomicU64, len: u64, keys: &Keys) -> Result<[f64; 4], Failure> {
    let fingerprinter = keys.site.fingerprinter(keys.sealer.domain());
    let (mut compressor, mut decompressor) = (Compressor::new(1)?, Decompressor::new()?);
    let mut window = vec![0; WINDOW];
    let mut plain = vec![0; CHUNK];
    let mut sums = [0.0; 4];
    loop {
        let at = next.fetch_add(WINDOW as u64, Ordering::Relaxed);
        let bytes = WINDOW.min(usize::try_from(len.saturating_sub(at))?);
        if bytes == 0 {
            return Ok(sums);
        }
        image.read_exact_at(&mut window[..bytes], at)?;
        let mut sealed: Vec<(ChunkRef, std::ops::Range<usize>)> = Vec::new();
        let mut out = Vec::with_capacity(WINDOW + WINDOW / 8);
        let start = Instant::now();
        for chunk in window[..bytes].chunks(CHUNK) {
            // Zeroes are no data to anybody: the loop passes them over as the product does.
            if chunk[0] == 0 && chunk[..chunk.len() - 1] == chunk[1..] {
                continue;
            }
            let id = fingerprinter.chunk_id(chunk);
            let compressed = compressor.compress(chunk);
            let (codec, from) = (compressed.codec(), out.len());
            compressed.seal_content(&keys.sealer, keys.vault, id, &mut out)?;
            sums[0] += chunk.len() as f64;
            sealed.push((reference(id, chunk.len(), codec, keys), from..out.len()));
        }
        sums[2] += start.elapsed().as_secs_f64();
        sums[1] += out.len() as f64;
        let start = Instant::now();
        for (chunk, range) in sealed {
            decompressor.open_content(&keys.opener, &fingerprinter, keys.vault, &chunk, &mut out[range], &mut plain)?;
        }
        sums[3] += start.elapsed().as_secs_f64();
    }
}

fn reference(id: landfall_model::ChunkId, raw_len: usize, codec: Codec, keys: &Keys) -> ChunkRef {
    let source = Source::Segment(SegmentId::from_bytes([0; 32]));
    let raw_len = landfall_model::num::to_u32(raw_len);
    ChunkRef { id, location: Location { source, offset: 0, stored_len: 0, raw_len, codec, epoch: keys.sealer.epoch() } }
}

#[expect(clippy::print_stdout, reason = "its output is its result")]
fn main() -> Result<(), Failure> {
    let path = std::env::args_os().nth(1).ok_or("usage: bare-loop IMAGE")?;
    let image = File::open(path)?;
    let len = image.metadata()?.len();
    let keys = keys()?;
    let threads = std::thread::available_parallelism()?.get();
    let next = AtomicU64::new(0);
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let sums = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&image, &next, len, &keys))).collect();
        workers.into_iter().try_fold([0.0; 4], |mut total, worker| {
            let sums = worker.join().map_err(|_| "a worker ended early")??;
            total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
            Ok::<_, Failure>(total)
        })
    })?;
    let [bytes, stored, capture, materialise] = sums;
    let document = serde_json::json!({
        "threads": threads, "bytes": bytes, "stored_bytes": stored,
        // The loops share the machine evenly, so their wall time is their thread time divided by the threads.
        "capture_seconds": capture / threads as f64, "materialise_seconds": materialise / threads as f64,
        "wall_seconds": start.elapsed().as_secs_f64(), "cpu_seconds": cpu_seconds() - cpu,
    });
    println!("{document:#}");
    Ok(())
}
