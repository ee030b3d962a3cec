//! Guests whose drivers are hostile: real code in real machines that does to each device what a driver should not.
//!
//! Whatever it is, the VMM answers, comes to rest, does not grow, still serves the guest's disk and stops when it is
//! told to; and a machine beside it, which reads its own disk over and over, goes on.
//!
//! Cases that are drawn at random come from a seed that is told when one fails. `BULKHEAD_TEST_SEED` is another one.

mod cases;
mod driver;
mod network_frames;
mod payloads;
mod random;
mod registers;
mod script;
mod victim;
mod vsock_packets;
