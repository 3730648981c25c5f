//! Identifiers. Each is its own type with no conversion to another, so that a chunk's name cannot be passed for a segment's.

use std::fmt;
use std::str::FromStr;

/// A text that is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: expected {expected}")]
pub struct IdError {
    /// The kind of identifier that was asked for.
    pub kind: &'static str,
    /// What a right one looks like.
    pub expected: &'static str,
}

fn hex_digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(out)
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $word:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_hex(text).map(Self).ok_or(IdError { kind: $word, expected: $expected })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

byte_id!(
    /// A vault: random, made with it.
    VaultId, 16, "vault id", "32 hex digits"
);
byte_id!(
    /// The public half of a recovery key, by which wrapped secrets are found.
    RecipientId, 8, "recipient id", "16 hex digits"
);
byte_id!(
    /// A site key, named by its signing key.
    SiteKeyId, 8, "site key id", "16 hex digits"
);
byte_id!(
    /// A dedup domain: machines that share chunks.
    DomainId, 16, "domain id", "32 hex digits"
);
byte_id!(
    /// One cut of a machine's disks, named by the agent: random, so that two copies of an agent never give one name to two cuts.
    CycleId, 16, "cycle id", "32 hex digits"
);
byte_id!(
    /// One cut of a group of machines: random, made by the gateway that names the moment.
    GroupId, 16, "group id", "32 hex digits"
);
byte_id!(
    /// A machine in the store's keys: a keyed hash of its name.
    MachineId, 16, "machine id", "32 hex digits"
);
byte_id!(
    /// A content key's name. All zero means an index frame, which no epoch key seals.
    EpochId, 16, "epoch id", "32 hex digits"
);
byte_id!(
    /// One running gateway, or one site's state directory.
    GatewayId, 16, "gateway id", "32 hex digits"
);
byte_id!(
    /// A failover, as it stands in the vault: random.
    JobId, 16, "job id", "32 hex digits"
);
byte_id!(
    /// What a machine's agent is told to do: the moment, and random bytes.
    OrderId, 16, "order id", "32 hex digits"
);
byte_id!(
    /// BLAKE3 of a whole segment object.
    SegmentId, 32, "segment id", "64 hex digits"
);
byte_id!(
    /// Keyed BLAKE3 of a chunk's (or a page's) bytes.
    ChunkId, 32, "chunk id", "64 hex digits"
);
byte_id!(
    /// BLAKE3 of a record: a link of the chain of points.
    Digest, 32, "digest", "64 hex digits"
);

impl EpochId {
    /// The epoch id of index frames.
    pub const INDEX: Self = Self([0; 16]);
}

impl Digest {
    /// Before the first point.
    pub const NONE: Self = Self([0; 32]);
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $width:literal, $word:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The first one.
            pub const FIRST: Self = Self(1);

            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// As it stands in object names: fixed width, so that names sort as numbers.
            pub fn key(self) -> String {
                format!(concat!("{:0", $width, "x}"), self.0)
            }

            /// Reads what [`Self::key`] wrote; nothing else.
            pub fn from_key(text: &str) -> Result<Self, IdError> {
                let error = IdError { kind: $word, expected: $expected };
                if text.len() != $width || !text.bytes().all(|c| hex_digit(c).is_some()) {
                    return Err(error);
                }
                <$inner>::from_str_radix(text, 16).map(Self).map_err(|_| error)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// Number of a recovery point on its timeline's line, from 1.
    Seq, u64, 16, "sequence number", "16 hex digits"
);
number_id!(
    /// A line of points of one machine, from 1.
    Timeline, u32, 8, "timeline", "8 hex digits"
);
number_id!(
    /// Fences writers of a machine, from 1.
    Generation, u64, 16, "generation", "16 hex digits"
);

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_what_they_print_and_nothing_else() {
        let id = VaultId::from_bytes(std::array::from_fn(|i| i as u8 * 16 + 1));
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in
            ["", "00", &id.to_string().to_uppercase(), &format!("{id}0"), &format!("+{}", &id.to_string()[1..])]
        {
            if wrong != id.to_string() {
                assert!(wrong.parse::<VaultId>().is_err(), "{wrong}");
            }
        }
    }

    #[test]
    fn numbers_in_names_sort_as_numbers_and_reject_signs() {
        assert!(Seq(9).key() < Seq(10).key() && Seq(255).key() < Seq(256).key());
        assert_eq!(Seq::from_key(&Seq(300).key()), Ok(Seq(300)));
        assert!(Seq::from_key("+00000000000012c").is_err());
        assert!(Seq::from_key("12c").is_err());
    }
}
