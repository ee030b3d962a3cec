//! A network device (virtio 1.2, section 5.1) on a tap, served in user space.
//!
//! It has one pair of queues, or several, each with a queue of the tap of its own.
//!
//! The tap is opened by whoever starts the machine, in the network namespace that the guest is to be in, and handed down.
//! A device without one has no link: what the guest sends goes nowhere. That is the device of a machine that is made to
//! be copied; a copy that has a tap finds its link up.
//!
//! From the outside in:
//! - `device` starts what its driver needs, and stops it: a thread for each pair of queues and one for the control queue
//!   (`workers`);
//! - `pair` waits for the queues of a pair and its queue of the tap;
//! - `control` does what the driver asks for by the control queue: to use so many pairs (`queue_pairs`);
//! - `configuration` is what the driver reads: address, state of the link, pairs, MTU;
//! - `receive` takes frames from the tap, into the guest's memory where the guest has given enough of it (`buffers`), by
//!   way of this process's otherwise, or if there is a rate limit (`pace`), which must know a frame's length first;
//! - `transmit` takes frames from the guest and writes them to the tap;
//! - `features` is what is offered, and which headers (`header`) and offloads follow from what a driver chose of it;
//! - `areas` is where in memory a frame lies, and `tap` the one place where that is handed to the system.

mod areas;
mod buffers;
mod configuration;
mod control;
mod counters;
mod device;
mod features;
mod header;
mod pace;
mod pair;
mod queue_pairs;
mod receive;
mod tap;
mod transmit;
mod workers;

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod tap_tests;

pub use self::counters::NetCounts;
pub use self::device::Net;
pub use self::tap::{Tap, TapError};
