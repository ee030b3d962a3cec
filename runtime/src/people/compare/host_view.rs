//! What the host sees of a container.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use vmm::control::{Request, Response};

use crate::micro_vm::control;
use crate::people::event_loop;

/// The VMM answers at once or not at all.
const CONTROL_DEADLINE: Duration = Duration::from_secs(5);

/// A process on the host.
#[derive(Debug)]
pub(crate) struct HostProcess {
    /// Its number.
    pub(crate) pid: i32,
    /// Its effective user.
    pub(crate) uid: u32,
    /// Its name.
    pub(crate) name: String,
    /// Its proportional set size: what it alone uses, and its share of what it uses with others.
    pub(crate) pss_kib: u64,
}

impl HostProcess {
    /// Looks at a process.
    pub(crate) fn examine(pid: i32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("reading the status of process {pid}"))?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .context("an odd status")
        };
        // Real, effective, saved and file system uid.
        let uid = field("Uid:")?
            .split_whitespace()
            .nth(1)
            .context("an odd status")?
            .parse()?;
        let name = fs::read_link(format!("/proc/{pid}/exe"))?;
        let name = name
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let pss = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))
            .context("an odd smaps_rollup")?;
        let pss_kib = pss.trim().trim_end_matches(" kB").parse()?;
        Ok(Self {
            pid,
            uid,
            name,
            pss_kib,
        })
    }
}

impl fmt::Display for HostProcess {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "pid {}, uid {} ({})", self.pid, self.uid, self.name)
    }
}

/// How many instructions of the guest's kernel KVM has emulated, by the VMM's account.
pub(crate) fn emulated_instructions(control_socket: &Path) -> anyhow::Result<u64> {
    let answer = event_loop()?
        .block_on(control::ask(
            control_socket,
            &Request::Statistics,
            CONTROL_DEADLINE,
        ))
        .context("asking for the VMM's statistics")?;
    match answer {
        Response::Statistics { vcpus, .. } => Ok(vcpus
            .iter()
            .filter_map(|vcpu| vcpu.kvm.get("insn_emulation"))
            .sum()),
        other => bail!("asked for statistics, the VMM answered {other:?}"),
    }
}
