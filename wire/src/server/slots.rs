//! Places for connections. Each is counted for its address until its certificate is known, and then for its machine.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use landfall_model::MachineName;

use super::Limits;

#[derive(Clone, PartialEq, Eq, Hash)]
enum Owner {
    Address(IpAddr),
    Machine(MachineName),
}

#[derive(Default)]
struct Counts {
    all: usize,
    without_certificate: usize,
    owners: HashMap<Owner, usize>,
}

pub(super) struct Slots {
    all_max: usize,
    without_certificate_max: usize,
    per_address_max: usize,
    per_machine_max: usize,
    counts: Mutex<Counts>,
}

/// A place for one connection; dropping it makes the place free.
pub(super) struct Slot {
    slots: Arc<Slots>,
    owner: Owner,
}

/// One host of IPv6 has a /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() >> 64 << 64).to_be_bytes()),
        v4 => v4,
    }
}

impl Slots {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            all_max: limits.connections,
            without_certificate_max: limits.connections_without_certificate,
            per_address_max: limits.connections_per_address,
            per_machine_max: limits.connections_per_machine,
            counts: Mutex::default(),
        }
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from this address; else what there are too many of.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Slot, &'static str> {
        let owner = Owner::Address(network(address));
        let mut counts = self.counts();
        if counts.all >= self.all_max {
            return Err("there are too many connections");
        }
        if counts.without_certificate >= self.without_certificate_max {
            return Err("there are too many connections without a certificate");
        }
        let own = counts.owners.entry(owner.clone()).or_default();
        if *own >= self.per_address_max {
            return Err("there are too many connections without a certificate from this address");
        }
        *own += 1;
        counts.all += 1;
        counts.without_certificate += 1;
        Ok(Slot { slots: self.clone(), owner })
    }
}

impl Counts {
    fn leave(&mut self, owner: &Owner) {
        if let Some(count) = self.owners.get_mut(owner) {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(owner);
            }
        }
        if matches!(owner, Owner::Address(_)) {
            self.without_certificate -= 1;
        }
    }
}

impl Slot {
    /// The connection is this machine's.
    pub(super) fn belongs_to(&mut self, machine: &MachineName) -> Result<(), &'static str> {
        let owner = Owner::Machine(machine.clone());
        let mut counts = self.slots.counts();
        let own = counts.owners.entry(owner.clone()).or_default();
        if *own >= self.slots.per_machine_max {
            return Err("the machine has too many connections");
        }
        *own += 1;
        counts.leave(&self.owner);
        self.owner = owner;
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.counts();
        counts.all -= 1;
        counts.leave(&self.owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let limits = Limits {
            connections: 5,
            connections_without_certificate: 3,
            connections_per_address: 2,
            connections_per_machine: 1,
            ..Limits::default()
        };
        let slots = Arc::new(Slots::new(&limits));
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut first = slots.take(a).ok().unwrap();
        let mut second = slots.take(a).ok().unwrap();
        assert!(slots.take(a).err().unwrap().contains("from this address"));
        let third = slots.take(b).ok().unwrap();
        assert!(slots.take(b).err().unwrap().contains("without a certificate"));
        first.belongs_to(&"a".parse().unwrap()).unwrap();
        assert!(second.belongs_to(&"a".parse().unwrap()).is_err());
        second.belongs_to(&"b".parse().unwrap()).unwrap();
        let more = [slots.take(a).ok().unwrap(), slots.take(a).ok().unwrap()];
        assert!(slots.take(b).err().unwrap().contains("too many connections"));
        drop((first, second, third, more));
        let counts = slots.counts();
        assert_eq!((counts.all, counts.without_certificate, counts.owners.len()), (0, 0, 0));
    }

    #[test]
    fn one_ipv6_network_is_one_address() {
        assert_eq!(network("2001:db8:1:2::1".parse().unwrap()), network("2001:db8:1:2:ffff::9".parse().unwrap()));
        assert_ne!(network("2001:db8:1:2::1".parse().unwrap()), network("2001:db8:1:3::1".parse().unwrap()));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), IpAddr::from([10, 0, 0, 1]));
    }
}
