//! Sockets between the guest and the host (virtio 1.2, section 5.10), served in user space.
//!
//! The host's side is unix sockets, with the convention Firecracker and Cloud Hypervisor share: a client that connects
//! to the device's socket and says `CONNECT <port>\n` reaches that port of the guest and is told `OK <host port>\n`
//! once the guest accepted; a guest that connects to port P of the host (CID 2) reaches the unix socket whose path is
//! the device's with `_P` appended.
//!
//! From the outside in:
//! - `device` moves packets between the queues and the muxer, on one thread that also waits for the unix sockets;
//! - `muxer` knows all connections: it routes packets, makes and accepts connections, and shares the guest's receive
//!   buffers among them in turn, so that none holds up another;
//! - `handshake` is a client before the guest has been asked;
//! - `connection` is one stream, with its credit (`credit`) in both directions and its two halves closing one by one;
//! - `lingering` is a stream whose guest is done, until the host's reader has the rest;
//! - `packet` is the header on the wire.

mod connection;
mod credit;
mod device;
mod handshake;
mod lingering;
mod muxer;
mod packet;
mod unix_path;

#[cfg(test)]
mod device_tests;

pub use self::device::Vsock;
pub use self::unix_path::VsockSocketError;
