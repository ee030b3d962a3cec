//! The devices a guest sees.

pub mod early_console;
pub mod reset_line;
pub mod virtio;
