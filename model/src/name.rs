//! Names that people give to machines, disks and domains.

use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes: room for a fully qualified host name's first labels, and a bound for every decoder.
const NAME_BYTES_MAX: usize = 64;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} name {text:?} is not 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit")]
pub struct NameError {
    kind: &'static str,
    text: String,
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= NAME_BYTES_MAX
        && bytes.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && bytes.all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if is_name(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError { kind: $kind, text: text.chars().take(NAME_BYTES_MAX + 1).collect() })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
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

name_type!(
    /// A protected host or VM.
    MachineName, "machine"
);
name_type!(
    /// One of a machine's block devices.
    DiskName, "disk"
);
name_type!(
    /// A dedup domain: its machines share chunks and epoch keys.
    DomainName, "domain"
);
name_type!(
    /// Machines whose points are of one moment.
    GroupName, "group"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_folder() {
        for bad in ["", ".", "..", "a/b", "a b", "-x", "é", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad:?}");
        }
        for good in ["a", "web-01.example.com", "0", &"x".repeat(64)] {
            assert!(good.parse::<MachineName>().is_ok(), "{good:?}");
        }
    }
}
