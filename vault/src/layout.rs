//! Every object name of a vault is built and parsed here (FORMAT.md section 1), relative to the vault's prefix.

use landfall_model::{
    DomainId, EpochId, GatewayId, Generation, JobId, MachineId, OrderId, RecipientId, SegmentId, Seq, SiteKeyId,
    Timeline,
};

/// The vault's own description.
pub const VAULT_FILE: &str = "vault.json";
/// Folder of the segments.
pub const SEGMENTS: &str = "segments";
/// Folder of the wrapped epoch keys.
pub const EPOCHS: &str = "epochs";
/// Folder of the wrapped site keys.
pub const KEYS: &str = "keys";
/// Folder of the machines.
pub const MACHINES: &str = "machines";
/// Folder of the gateways' heartbeats.
pub const GATEWAYS: &str = "gateways";
/// Folder of the revocations.
pub const REVOKED: &str = "revoked";
/// Folder of the jobs.
pub const JOBS: &str = "control/jobs";
/// Folder of the reports of drills.
pub const DRILLS: &str = "control/drills";
/// Folder of the orders.
pub const ORDERS: &str = "control/orders";
/// Folder of the boot profiles.
pub const PROFILES: &str = "control/profiles";
/// Folder of what the probe of the store leaves for a moment.
pub const PROBE: &str = "probe";

/// A site key, wrapped to a recovery key.
pub fn site_key(key: SiteKeyId, recipient: RecipientId) -> String {
    format!("{KEYS}/site-{key}-{recipient}")
}

/// An epoch key, wrapped to a recovery key.
pub fn epoch(domain: DomainId, epoch: EpochId, recipient: RecipientId) -> String {
    format!("{EPOCHS}/{domain}/{epoch}-{recipient}")
}

/// A segment.
pub fn segment(id: SegmentId) -> String {
    let hex = id.to_string();
    format!("{SEGMENTS}/{}/{hex}", &hex[..2])
}

/// Folder of a machine's generations.
pub fn generations(machine: MachineId) -> String {
    format!("{MACHINES}/{machine}/generations")
}

/// A claimed generation.
pub fn generation(machine: MachineId, generation: Generation) -> String {
    format!("{}/{}", generations(machine), generation.key())
}

/// The heartbeat of a gateway.
pub fn heartbeat(gateway: GatewayId) -> String {
    format!("{GATEWAYS}/{gateway}")
}

/// A revocation of a machine's certificates; `until` is its time in milliseconds since 1970.
pub fn revocation(machine: MachineId, until: Seq) -> String {
    format!("{REVOKED}/{machine}/{}", until.key())
}

/// Folder of a job's records.
pub fn job(job: JobId) -> String {
    format!("{JOBS}/{job}")
}

/// A record of a job.
pub fn job_record(id: JobId, seq: Seq) -> String {
    format!("{}/{}", job(id), seq.key())
}

/// The report of a drill; `begun` is its time in milliseconds since 1970.
pub fn drill(begun: Seq, job: JobId) -> String {
    format!("{DRILLS}/{}-{job}", begun.key())
}

/// Folder of the orders of a day: days since 1970.
pub fn orders(day: u64) -> String {
    format!("{ORDERS}/{day}")
}

/// Folder of an order's records.
pub fn order(order: OrderId) -> String {
    format!("{}/{order}", orders(order.day()))
}

/// A record of an order.
pub fn order_record(id: OrderId, seq: Seq) -> String {
    format!("{}/{}", order(id), seq.key())
}

/// Folder of a machine's boot profiles.
pub fn profiles(machine: MachineId) -> String {
    format!("{PROFILES}/{machine}")
}

/// A boot profile.
pub fn profile(machine: MachineId, seq: Seq) -> String {
    format!("{}/{}", profiles(machine), seq.key())
}

/// Folder of a machine's timelines.
pub fn timelines(machine: MachineId) -> String {
    format!("{MACHINES}/{machine}/timelines")
}

/// Folder of a timeline's points.
pub fn points(machine: MachineId, timeline: Timeline) -> String {
    format!("{}/{}/points", timelines(machine), timeline.key())
}

/// A recovery point.
pub fn point(machine: MachineId, timeline: Timeline, seq: Seq) -> String {
    format!("{}/{}", points(machine, timeline), seq.key())
}

/// Folder of a timeline's checkpoints.
pub fn checkpoints(machine: MachineId, timeline: Timeline) -> String {
    format!("{}/{}/checkpoints", timelines(machine), timeline.key())
}

/// A checkpoint.
pub fn checkpoint(machine: MachineId, timeline: Timeline, seq: Seq) -> String {
    format!("{}/{}", checkpoints(machine, timeline), seq.key())
}

/// What an object's name says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// `vault.json`.
    Vault,
    /// A wrapped site key.
    SiteKey(SiteKeyId, RecipientId),
    /// A wrapped epoch key.
    Epoch(DomainId, EpochId, RecipientId),
    /// A segment.
    Segment(SegmentId),
    /// A generation.
    Generation(MachineId, Generation),
    /// A gateway's heartbeat.
    Heartbeat(GatewayId),
    /// A revocation.
    Revocation(MachineId, Seq),
    /// A record of a job.
    Job(JobId, Seq),
    /// The report of a drill.
    Drill(Seq, JobId),
    /// A record of an order.
    Order(OrderId, Seq),
    /// A boot profile.
    Profile(MachineId, Seq),
    /// A recovery point.
    Point(MachineId, Timeline, Seq),
    /// A checkpoint.
    Checkpoint(MachineId, Timeline, Seq),
}

/// Parses an object's name; `None` for what version 1 does not know.
pub fn parse(name: &str) -> Option<Name> {
    let parts: Vec<&str> = name.split('/').collect();
    let parsed = match parts[..] {
        [VAULT_FILE] => Name::Vault,
        [KEYS, slot] => {
            let (key, recipient) = slot.strip_prefix("site-")?.split_once('-')?;
            Name::SiteKey(key.parse().ok()?, recipient.parse().ok()?)
        }
        [EPOCHS, domain, slot] => {
            let (epoch, recipient) = slot.split_once('-')?;
            Name::Epoch(domain.parse().ok()?, epoch.parse().ok()?, recipient.parse().ok()?)
        }
        [SEGMENTS, fan, id] if id.get(..2) == Some(fan) => Name::Segment(id.parse().ok()?),
        [MACHINES, machine, "generations", last] => {
            Name::Generation(machine.parse().ok()?, Generation::from_key(last).ok()?)
        }
        [GATEWAYS, gateway] => Name::Heartbeat(gateway.parse().ok()?),
        [REVOKED, machine, until] => Name::Revocation(machine.parse().ok()?, Seq::from_key(until).ok()?),
        ["control", "jobs", job, seq] => Name::Job(job.parse().ok()?, Seq::from_key(seq).ok()?),
        ["control", "drills", slot] => {
            let (begun, job) = slot.split_once('-')?;
            Name::Drill(Seq::from_key(begun).ok()?, job.parse().ok()?)
        }
        ["control", "orders", day, order, seq] => {
            let order: OrderId = order.parse().ok()?;
            if day != order.day().to_string() {
                return None;
            }
            Name::Order(order, Seq::from_key(seq).ok()?)
        }
        ["control", "profiles", machine, seq] => Name::Profile(machine.parse().ok()?, Seq::from_key(seq).ok()?),
        [MACHINES, machine, "timelines", timeline, folder, seq] => {
            let (machine, timeline) = (machine.parse().ok()?, Timeline::from_key(timeline).ok()?);
            let seq = Seq::from_key(seq).ok()?;
            match folder {
                "points" => Name::Point(machine, timeline, seq),
                "checkpoints" => Name::Checkpoint(machine, timeline, seq),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_to_what_they_were_built_from() {
        let machine = MachineId::from_bytes([7; 16]);
        let (recipient, gateway) = (RecipientId::from_bytes([1; 8]), GatewayId::from_bytes([9; 16]));
        let (t, s, g) = (Timeline(3), Seq(17), Generation(2));
        let segment_id = SegmentId::from_bytes([0xab; 32]);
        let (domain, e, k) =
            (DomainId::from_bytes([2; 16]), EpochId::from_bytes([5; 16]), SiteKeyId::from_bytes([6; 8]));
        let cases = [
            (VAULT_FILE.to_owned(), Name::Vault),
            (site_key(k, recipient), Name::SiteKey(k, recipient)),
            (epoch(domain, e, recipient), Name::Epoch(domain, e, recipient)),
            (segment(segment_id), Name::Segment(segment_id)),
            (generation(machine, g), Name::Generation(machine, g)),
            (heartbeat(gateway), Name::Heartbeat(gateway)),
            (revocation(machine, s), Name::Revocation(machine, s)),
            (job_record(JobId::from_bytes([8; 16]), s), Name::Job(JobId::from_bytes([8; 16]), s)),
            (drill(s, JobId::from_bytes([8; 16])), Name::Drill(s, JobId::from_bytes([8; 16]))),
            (order_record(OrderId::from_bytes([0; 16]), s), Name::Order(OrderId::from_bytes([0; 16]), s)),
            (profile(machine, s), Name::Profile(machine, s)),
            (point(machine, t, s), Name::Point(machine, t, s)),
            (checkpoint(machine, t, s), Name::Checkpoint(machine, t, s)),
        ];
        for (text, name) in cases {
            assert_eq!(parse(&text), Some(name), "{text}");
            assert_eq!(parse(&format!("{text}x")), None);
            assert_eq!(parse(&format!("x/{text}")), None);
        }
        assert_eq!(parse(&order_record(OrderId::from_bytes([0; 16]), s).replace("/0/", "/1/")), None);
        assert_eq!(parse("segments/aa/abababababababababababababababababababababababababababababababab"), None);
    }
}
