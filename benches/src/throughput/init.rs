//! The guest's only program: this one, as init. It does all workloads, tells of each on the console, and waits to be killed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::mount::{MountFlags, mount};

use super::workload::{ALL, Place};
use super::{FILES_TAG, GUEST_ADDRESS, HOST_ADDRESS};

/// Between two workloads, so that the host sees the end of the one before the next begins.
const PAUSE: Duration = Duration::from_millis(300);

/// Does everything; never returns.
pub(crate) fn run(duration: Duration) -> ! {
    let outcome = perform(duration);
    if let Err(error) = outcome {
        // There is nobody else to tell.
        let _ = console().and_then(|mut console| Ok(writeln!(console, "bench failed {error:#}")?));
    }
    loop {
        thread::park();
    }
}

fn console() -> anyhow::Result<File> {
    Ok(OpenOptions::new().write(true).open("/dev/console")?)
}

fn perform(duration: Duration) -> anyhow::Result<()> {
    for folder in ["/dev", "/data"] {
        fs::create_dir_all(folder)?;
    }
    mount("dev", "/dev", "devtmpfs", MountFlags::empty(), None).context("mounting /dev")?;
    let mut console = console()?;
    mount(FILES_TAG, "/data", "virtiofs", MountFlags::empty(), None).context("mounting the shared folder")?;
    let configured = Command::new("/busybox")
        .args([
            "ifconfig",
            "eth0",
            GUEST_ADDRESS,
            "netmask",
            "255.255.255.0",
            "up",
        ])
        .status()
        .context("configuring the network")?;
    ensure!(configured.success(), "configuring the network: {configured}");
    let place = Place {
        disk: Path::new("/dev/vda"),
        direct: true,
        folder: Path::new("/data"),
        host: HOST_ADDRESS,
    };
    for workload in ALL {
        workload.prepare(&place).context(workload.title())?;
        writeln!(console, "bench begin {}", workload.word())?;
        let done = workload.perform(&place, duration).context(workload.title())?;
        writeln!(console, "{}", done.to_line(workload))?;
        thread::sleep(PAUSE);
    }
    writeln!(console, "bench over")?;
    Ok(())
}
