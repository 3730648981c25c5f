//! What the gateway's end bounds.

use std::time::Duration;

/// Bounds of a gateway's connections. The defaults are for a site of some thousand machines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most connections.
    pub connections: usize,
    /// Most connections without a certificate, or not yet with one.
    pub connections_without_certificate: usize,
    /// Most of those from one address (IPv6: one /64).
    pub connections_per_address: usize,
    /// Most connections of one machine: its links, and those that it lost and whose end is not known yet.
    pub connections_per_machine: usize,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Longest wait for the first message of a call.
    pub first_message: Duration,
    /// Longest time of a connection without a call.
    pub idle: Duration,
    /// Longest life of a connection without a certificate.
    pub without_certificate: Duration,
    /// How often certificates and idle times are looked at.
    pub check_every: Duration,
    /// How long links have to end when the gateway stops, or their connection is lost.
    pub grace: Duration,
    /// How long a silent peer is left alone before it is asked whether it is alive, and how long it has to answer.
    pub keepalive: Duration,
    /// Bytes that an agent may send ahead of the reader of a link.
    pub stream_window_bytes: u32,
    /// Bytes that an agent may send ahead of all readers of a connection.
    pub connection_window_bytes: u32,
    /// Most calls at a time on a connection.
    pub calls: u32,
}

/// Files that a gateway has open beside the connections of agents: those of its state, and connections to the store.
const OTHER_FILES: usize = 256;

impl Limits {
    /// The same, with no more connections than a process has room for that may open so many files.
    #[must_use]
    pub fn within_open_files(mut self, files: usize) -> Self {
        let room = files.saturating_sub(OTHER_FILES).max(files / 4).max(1);
        self.connections = self.connections.min(room);
        // Those who have a certificate always find a place.
        self.connections_without_certificate = self.connections_without_certificate.min(self.connections.div_ceil(2));
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_without_certificate: 1024,
            connections_per_address: 16,
            connections_per_machine: 8,
            handshake: Duration::from_secs(10),
            first_message: Duration::from_secs(10),
            idle: Duration::from_secs(90),
            without_certificate: Duration::from_secs(60),
            check_every: Duration::from_secs(5),
            grace: Duration::from_secs(10),
            keepalive: Duration::from_secs(20),
            stream_window_bytes: 4 * 1024 * 1024,
            connection_window_bytes: 16 * 1024 * 1024,
            calls: 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        let limits = |files| {
            let limits = Limits::default().within_open_files(files);
            (limits.connections, limits.connections_without_certificate)
        };
        assert_eq!(limits(1024), (768, 384));
        assert_eq!(limits(65_536), (4096, 1024));
        assert_eq!(limits(100), (25, 13));
        assert_eq!(limits(0), (1, 1));
    }
}
