//! Sealed payloads: what `sealane.security` is in Python (docs/sealed-protocol.md), for calls that go past it.

pub mod ahead;
pub mod chunks;
pub mod client;
pub mod format;
pub mod opening;
pub mod request;
pub mod seen;
pub mod sessions;
pub mod suite;
pub mod worker;
