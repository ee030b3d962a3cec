//! The vsock ports of the conversation.

/// The guest serves ttrpc here.
pub const RPC: u32 = 1024;

/// The guest accepts standard streams here.
pub const STREAM: u32 = 1025;

/// The host accepts the agent's events here.
pub const EVENT: u32 = 1026;
