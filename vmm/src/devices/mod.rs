//! The devices a guest sees.

pub mod early_console;
pub mod rate_limiter;
pub mod reset_line;
pub mod virtio;
