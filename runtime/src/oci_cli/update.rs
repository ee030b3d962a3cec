//! `bulkhead-oci update`

use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use container::ContainerId;
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use super::log::Log;
use super::{GlobalOptions, OciError, load};

#[derive(Debug, clap::Args)]
pub(super) struct UpdateArguments {
    /// The container
    #[arg(value_name = "ID")]
    pub(super) id: ContainerId,
    /// A file, or - for standard input, with limits as in linux.resources of a configuration; other options are then
    /// ignored
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
}

/// One option for each limit; 0 leaves it as it is.
#[derive(Debug, clap::Args)]
struct Limits {
    /// Share of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Length of the period in which the CPU quota counts, in microseconds
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CPU time in each period, in microseconds; -1 for no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Unused CPU time that may be kept for later periods, in microseconds
    #[arg(long, value_name = "US")]
    cpu_burst: Option<u64>,
    /// Share of CPU time, beside other containers
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// Length of the period in which real-time CPU time counts, in microseconds
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// Real-time CPU time in each period, in microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// CPUs to use, as in 0-2,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Obsolete and ignored
    #[arg(long, hide = true, allow_hyphen_values = true)]
    kernel_memory: Option<Size>,
    /// Obsolete and ignored
    #[arg(long, hide = true, allow_hyphen_values = true)]
    kernel_memory_tcp: Option<Size>,
    /// Memory, in bytes or with a unit, as in 512M; -1 for no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<Size>,
    /// Memory that is kept when others want it
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_reservation: Option<Size>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<Size>,
    /// Processes and threads; -1 for no limit
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// 1 to run only when no other wants a CPU, 0 to take part again
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<i64>,
}

/// A number of bytes, or -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(i64);

/// A word that is no size.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a size such as 1048576, 512M, 1.5GiB or -1")]
struct NoSize(String);

impl FromStr for Size {
    type Err = NoSize;

    /// A number, perhaps with a fraction, and perhaps one of b, k, m, g, t, p in either case, perhaps with `b` or `ib`
    /// after it. Units are powers of 1024.
    fn from_str(text: &str) -> Result<Size, NoSize> {
        let no_size = || NoSize(text.to_owned());
        if text == "-1" {
            return Ok(Size(-1));
        }
        let number_ends = text
            .find(|character: char| !character.is_ascii_digit() && character != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(number_ends);
        let unit = unit.trim_start().to_ascii_lowercase();
        let letter = unit
            .strip_suffix("ib")
            .or(unit.strip_suffix('b'))
            .unwrap_or(&unit);
        let shift = match letter {
            "" if !unit.ends_with("ib") => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            "p" => 50,
            _ => return Err(no_size()),
        };
        let bytes = match number.parse::<i64>() {
            Ok(whole) => whole.checked_mul(1 << shift).ok_or_else(no_size)?,
            Err(_) => {
                let number: f64 = number.parse().map_err(|_| no_size())?;
                let bytes = number * (1_i64 << shift) as f64;
                if !bytes.is_finite() || bytes >= i64::MAX as f64 {
                    return Err(no_size());
                }
                bytes as i64
            }
        };
        Ok(Size(bytes))
    }
}

/// Why the new limits cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ResourcesError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file, or `-`.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// It does not hold limits.
    #[error("{}: {field}: these are no limits as in linux.resources", path.display())]
    Parse {
        /// The file, or `-`.
        path: PathBuf,
        /// Where in the document, as in `memory.limit`.
        field: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

impl UpdateArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        let changes = self.changes()?;
        let mut container = load(global, &self.id)?;
        container.update(&changes)?;
        for warning in container.take_warnings() {
            log.warning(&warning);
        }
        log.debug(|| format!("changed the limits of container {}", self.id));
        Ok(())
    }
}

impl UpdateArguments {
    /// What is to change.
    pub(super) fn changes(&self) -> Result<LinuxResources, ResourcesError> {
        let (changes, path) = match &self.resources {
            Some(path) => (read(path)?, path.as_path()),
            None => (self.limits.document(), Path::new("options")),
        };
        container::read_resources(&changes).map_err(|misfit| ResourcesError::Parse {
            path: path.to_owned(),
            field: misfit.field,
            source: misfit.source,
        })
    }
}

fn read(path: &Path) -> Result<Value, ResourcesError> {
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut text).map(|_| ())
    } else {
        std::fs::read(path).map(|read| text = read)
    };
    read.map_err(|source| ResourcesError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| ResourcesError::Parse {
        path: path.to_owned(),
        field: ".".to_owned(),
        source,
    })
}

impl Limits {
    /// The same as a document. An option that was not given has no member.
    fn document(&self) -> Value {
        let size = |size: Option<Size>| size.map(|Size(bytes)| Value::from(bytes));
        let memory = object([
            ("limit", size(self.memory)),
            ("reservation", size(self.memory_reservation)),
            ("swap", size(self.memory_swap)),
            ("kernel", size(self.kernel_memory)),
            ("kernelTCP", size(self.kernel_memory_tcp)),
        ]);
        let cpu = object([
            ("shares", self.cpu_share.map(Value::from)),
            ("quota", self.cpu_quota.map(Value::from)),
            ("period", self.cpu_period.map(Value::from)),
            ("burst", self.cpu_burst.map(Value::from)),
            ("realtimePeriod", self.cpu_rt_period.map(Value::from)),
            ("realtimeRuntime", self.cpu_rt_runtime.map(Value::from)),
            ("cpus", self.cpuset_cpus.clone().map(Value::from)),
            ("mems", self.cpuset_mems.clone().map(Value::from)),
            ("idle", self.cpu_idle.map(Value::from)),
        ]);
        let block_io = object([("weight", self.blkio_weight.map(Value::from))]);
        let pids = object([("limit", self.pids_limit.map(Value::from))]);
        object([
            ("memory", memory),
            ("cpu", cpu),
            ("blockIO", block_io),
            ("pids", pids),
        ])
        .unwrap_or_else(|| Value::Object(Map::new()))
    }
}

/// An object of the members that there are; none without any.
fn object<const N: usize>(members: [(&str, Option<Value>); N]) -> Option<Value> {
    let members: Map<String, Value> = members
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect();
    (!members.is_empty()).then_some(Value::Object(members))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("-1", -1),
            ("4096", 4096),
            ("4096b", 4096),
            ("512M", 512 << 20),
            ("512mb", 512 << 20),
            ("1GiB", 1 << 30),
            ("1.5g", 3 << 29),
            ("2 k", 2048),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
        for text in ["", "-2", "x", "1x", "M", "1ib", "1.2.3", "99999999999G", "1e3"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
