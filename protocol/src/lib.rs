//! What crosses the vsock between the runtime and the agent, and nothing else: the service definitions of `proto/`,
//! the framing of standard streams, and the agent's events.
//!
//! Four conversations, each on a port of its own ([`ports`]):
//!
//! * ttrpc calls from host to guest: [`task`] and [`sandbox`];
//! * raw byte streams, one per standard descriptor, opened by the host: [`stream`];
//! * events from guest to host, on a connection that the host keeps for as long as it listens: [`event`].

pub mod event;
pub mod failure;
pub mod ports;
pub mod stream;

#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    unreachable_pub
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub use generated::{sandbox, sandbox_ttrpc, task, task_ttrpc};

/// The version both sides must share; raised whenever an old side would misunderstand a new one.
pub const PROTOCOL_VERSION: u32 = 5;
