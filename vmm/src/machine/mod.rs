//! A machine, from the description to the end: its files are [opened], then it is [built](build), then it [runs](run).

pub mod build;
pub mod opened;
pub mod run;
pub mod signals;
pub mod wiring;
