//! Agents and gateways over real TCP and real TLS, and what may come over the wire.

mod cycles;
mod golden;
mod identities;
mod limits;
mod links;
mod properties;
mod refusals;
mod support;
