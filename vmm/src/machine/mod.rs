//! A machine, from the description to the end: its files are [opened], then it is [built](build), then it [runs](run).
//! While it runs, clients of its [control socket](crate::control) can have things [done](controlled) with it.

pub mod build;
pub mod controlled;
pub mod opened;
pub mod run;
pub mod signals;
pub mod vcpu_threads;
pub mod wiring;
