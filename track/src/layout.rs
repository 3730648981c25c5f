//! What the programs must know of this kernel: where fields lie, what tracepoints pass, the numbers of operations.
//!
//! All of it is asked of the kernel's BTF, starting from the tracepoints and going from type to type. A field that kernels have under one
//! of two names is looked for under both; the version of the kernel is never asked for.

use landfall_model::{Error, ErrorKind, Result};

use crate::btf::{Btf, Kind, Malformed, TypeId};

/// Where the kernel gives its types.
const BTF_FILE: &str = "/sys/kernel/btf/vmlinux";

/// A field that is reached from a struct by following pointers: offsets, each of a pointer but the last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Path(pub(crate) Vec<i16>);

/// A tracepoint, as a program attaches to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tracepoint {
    /// Number of its type.
    pub(crate) id: u32,
    /// Offset of the argument of interest among those that a program is passed.
    pub(crate) subject: i16,
}

/// Numbers of operations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Operations {
    /// Change nothing on the disk.
    pub(crate) harmless: Vec<u32>,
    /// Commands past the block layer, which does not count them.
    pub(crate) uncounted: Vec<u32>,
    /// Change the sectors that the request names.
    pub(crate) ranged: Vec<u32>,
    /// Writes where the drive says, which stands in the request when it completes, and not before.
    pub(crate) append: Option<u32>,
    /// May name several ranges in one request.
    pub(crate) discard: u32,
}

/// Fields of `struct request`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) disk: Path,
    pub(crate) flags: i16,
    pub(crate) sector: i16,
    pub(crate) length: i16,
    pub(crate) bio: i16,
}

/// Fields of `struct bio`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bio {
    pub(crate) disk: Path,
    pub(crate) flags: i16,
    pub(crate) sector: i16,
    pub(crate) length: i16,
    pub(crate) next: i16,
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub(crate) request_complete: Tracepoint,
    /// Where a request begins: for tests, which show that this is too early to mark what it writes.
    pub(crate) request_issue: Tracepoint,
    /// Offset of the number of bytes among the arguments of `request_complete`.
    pub(crate) completed_bytes: i16,
    pub(crate) bio_queue: Tracepoint,
    pub(crate) bio_complete: Tracepoint,
    pub(crate) request: Request,
    pub(crate) bio: Bio,
    pub(crate) disk_major: i16,
    pub(crate) disk_minor: i16,
    /// From a disk to its driver's function that writes pages past all bios; kernels since 6.3 have none.
    pub(crate) write_past_bios: Option<Path>,
    pub(crate) operations: Operations,
}

fn lacking(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("blocks cannot be tracked: this kernel's BTF does not describe {what}"))
}

/// Reads the layout of this kernel.
///
/// # Errors
/// There is no BTF, or it lacks what is needed.
pub(crate) fn of_this_kernel() -> Result<Layout> {
    let bytes = std::fs::read(BTF_FILE).map_err(|error| {
        let context =
            format!("blocks cannot be tracked: the kernel gives no BTF in {BTF_FILE} (CONFIG_DEBUG_INFO_BTF)");
        Error::with_source(ErrorKind::Unsupported, context, error)
    })?;
    let btf = Btf::parse(bytes).map_err(|Malformed(why)| {
        Error::new(ErrorKind::Unsupported, format!("blocks cannot be tracked: cannot read {BTF_FILE}: {why}"))
    })?;
    of_btf(&btf, "rw_page")
}

/// Takes the layout out of BTF; `write_past_bios` is the driver's function of that kind.
///
/// # Errors
/// What is needed and not described.
pub(crate) fn of_btf(btf: &Btf, write_past_bios: &str) -> Result<Layout> {
    let (request_complete, request, after) = tracepoint(btf, "block_rq_complete", "request")?;
    let (request_issue, ..) = tracepoint(btf, "block_rq_issue", "request")?;
    let (bio_queue, bio, _) = tracepoint(btf, "block_bio_queue", "bio")?;
    let (bio_complete, ..) = tracepoint(btf, "block_bio_complete", "bio")?;
    // Arguments have no names in BTF: behind the request come its status and, last, the number of bytes.
    if after.len() != 2 || btf.size(after[1]) != Some(4) {
        return Err(lacking("what block_rq_complete tells"));
    }
    let field = |of, name| offset(btf, of, name).ok_or_else(|| lacking(name));
    let to_disk = path(btf, request, &["q", "disk"]).or_else(|| path(btf, request, &["rq_disk"]));
    let (request_disk, disk) = to_disk.ok_or_else(|| lacking("the disk of a request"))?;
    let bio_to_disk = path(btf, bio, &["bi_bdev", "bd_disk"]).or_else(|| path(btf, bio, &["bi_disk"]));
    let (bio_disk, _) = bio_to_disk.ok_or_else(|| lacking("the disk of a bio"))?;
    let range = btf.member(bio, "bi_iter").ok_or_else(|| lacking("bi_iter"))?;
    let within = |name| {
        let member = btf.member(range.of, name)?;
        i16::try_from(range.offset.checked_add(member.offset)?).ok()
    };
    Ok(Layout {
        request_complete,
        request_issue,
        completed_bytes: request_complete.subject + 16,
        bio_queue,
        bio_complete,
        request: Request {
            disk: request_disk,
            flags: field(request, "cmd_flags")?,
            sector: field(request, "__sector")?,
            length: field(request, "__data_len")?,
            bio: field(request, "bio")?,
        },
        bio: Bio {
            disk: bio_disk,
            flags: field(bio, "bi_opf")?,
            sector: within("bi_sector").ok_or_else(|| lacking("bi_sector"))?,
            length: within("bi_size").ok_or_else(|| lacking("bi_size"))?,
            next: field(bio, "bi_next")?,
        },
        disk_major: field(disk, "major")?,
        disk_minor: field(disk, "first_minor")?,
        write_past_bios: path(btf, disk, &["fops", write_past_bios]).map(|(path, _)| path),
        operations: operations(btf)?,
    })
}

fn offset(btf: &Btf, of: TypeId, name: &str) -> Option<i16> {
    i16::try_from(btf.member(of, name)?.offset).ok()
}

/// Follows members that are pointers; gives also what the last points to.
fn path(btf: &Btf, from: TypeId, names: &[&str]) -> Option<(Path, TypeId)> {
    let (mut offsets, mut at) = (Vec::new(), from);
    for name in names {
        let member = btf.member(at, name)?;
        offsets.push(i16::try_from(member.offset).ok()?);
        at = btf.pointee(member.of)?;
    }
    Some((Path(offsets), at))
}

/// A tracepoint whose subject is a pointer to that struct; gives the struct, and the arguments that come after the subject.
fn tracepoint(btf: &Btf, name: &str, subject: &str) -> Result<(Tracepoint, TypeId, Vec<TypeId>)> {
    let found = || {
        let typedef = btf.find(&[Kind::Typedef], &format!("btf_trace_{name}"))?;
        // The first parameter is the data of who attached; programs are not passed it.
        let arguments = btf.parameters(typedef)?.into_iter().skip(1).collect::<Vec<_>>();
        let structs = arguments.iter().map(|of| btf.pointee(*of).filter(|at| btf.is_struct(*at, subject)));
        let (at, of) = structs.enumerate().find_map(|(at, of)| Some((at, of?)))?;
        let tracepoint = Tracepoint { id: typedef.0, subject: i16::try_from(at * 8).ok()? };
        Some((tracepoint, of, arguments[at + 1..].to_vec()))
    };
    found().ok_or_else(|| lacking(&format!("the tracepoint {name}")))
}

fn operations(btf: &Btf) -> Result<Operations> {
    let kinds = [Kind::Enum, Kind::Enum64];
    let of = btf.find(&kinds, "req_op").or_else(|| btf.find(&kinds, "req_opf")).ok_or_else(|| lacking("operations"))?;
    let number = |name: &str| btf.number(of, &format!("REQ_OP_{name}"));
    let needed = |name: &str| number(name).ok_or_else(|| lacking(name));
    let mut harmless = vec![needed("READ")?, needed("FLUSH")?];
    harmless.extend(["DRV_IN", "SCSI_IN"].into_iter().filter_map(number));
    let mut ranged = vec![needed("WRITE")?];
    ranged.extend(["SECURE_ERASE", "WRITE_ZEROES"].into_iter().filter_map(number));
    let uncounted = ["DRV_IN", "DRV_OUT", "SCSI_IN", "SCSI_OUT"].into_iter().filter_map(number).collect();
    Ok(Operations { harmless, uncounted, ranged, append: number("ZONE_APPEND"), discard: needed("DISCARD")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_understood() {
        let layout = match of_this_kernel() {
            Ok(layout) => layout,
            Err(error) => return crate::tests::rig::skipped(&error.to_string()),
        };
        assert!(layout.operations.harmless.contains(&0) && layout.operations.ranged.contains(&1));
        assert_eq!(layout.operations.discard, 3);
        assert!(layout.request.sector > 0 && layout.completed_bytes > 0 && layout.disk_minor == layout.disk_major + 4);
    }
}
