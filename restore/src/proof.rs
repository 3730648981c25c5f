//! Proof that a point holds what its source had: digests of all bytes of its disks, as the vault gives them back.

use landfall_disk::DiskDigester;
use landfall_model::num::to_usize;
use landfall_model::{DiskDigest, Error, ErrorKind, Extent, Result};

use crate::disk_view::{DiskView, PointView};

/// Read at once.
const READ_BYTES: u64 = 4 << 20;
/// Runs that are asked for at once.
const RUNS_MAX: usize = 4096;

/// Compares every disk of a point with what its source said of it. `told` hears how many bytes were read, and of how many.
///
/// # Errors
/// `Corrupt` where a disk is another; `Conflict` where the source did not say something of every disk; what reading says.
pub(crate) async fn prove(view: &PointView, source: &[DiskDigest], told: impl Fn(u64, u64)) -> Result<u64> {
    let disks: Vec<_> = view.meta().disks.iter().filter(|d| !d.excluded).collect();
    let of = disks.iter().map(|d| d.size).sum();
    let mut done = 0;
    for disk in disks {
        let Some(said) = source.iter().find(|d| d.name == disk.name) else {
            let why = format!("the source did not say what disk {} held when it was stopped", disk.name);
            return Err(Error::new(ErrorKind::Conflict, why));
        };
        let digest = digest(&view.disk(&disk.name)?, |here| told(done + here, of)).await?;
        if digest != said.digest {
            let why = format!(
                "disk {} of point {} is not what the source has: `landfall failover cancel` lets the source go on; report it",
                disk.name,
                view.key().seq
            );
            return Err(Error::corrupt(why));
        }
        done += disk.size;
    }
    Ok(done)
}

async fn digest(disk: &DiskView, told: impl Fn(u64)) -> Result<landfall_model::Digest> {
    let size = disk.meta().size;
    let mut digester = DiskDigester::new(size);
    let mut buffer = vec![0; to_usize(READ_BYTES)];
    while digester.at() < size {
        let rest = Extent::between(digester.at(), size);
        for run in disk.status(rest, RUNS_MAX).await? {
            if !run.data {
                digester.zeroes(run.extent.len);
                continue;
            }
            while digester.at() < run.extent.end() {
                let part = to_usize((run.extent.end() - digester.at()).min(READ_BYTES));
                disk.read(digester.at(), &mut buffer[..part]).await?;
                digester.data(&buffer[..part]);
            }
            told(digester.at());
        }
    }
    digester.finish()
}
