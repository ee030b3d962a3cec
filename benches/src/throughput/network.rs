//! A network of our own: a tap for the guest, a pair of ends for the container, and somebody who takes and gives bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context as _, ensure};
use rustix::thread::UnshareFlags;

use super::workload::{SINK_PORT, SOURCE_PORT};
use super::{CONTAINER_ADDRESS, CONTAINERS_HOST_ADDRESS, HOST_ADDRESS};
use crate::tap;

const TAP: &str = "bench-tap";

/// What there is for as long as the value lives; the namespace goes with the process.
#[derive(Debug)]
pub(crate) struct Network {
    /// The guest's tap.
    pub(crate) tap: File,
    /// Keeps the container's namespace.
    holder: Child,
}

impl Network {
    /// Leaves the host's network for an empty one, and builds this in it.
    ///
    /// # Errors
    /// Without root's privileges, or without `ip`.
    pub(crate) fn build() -> anyhow::Result<Self> {
        // SAFETY: the process has one thread, which shares nothing that the call would tear apart.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .context("making a network namespace")?;
        ip("link set lo up")?;
        let tap = tap::open(TAP)?;
        ip(&format!("address add {HOST_ADDRESS}/24 dev {TAP}"))?;
        ip(&format!("link set {TAP} up"))?;
        let mut unshare = Command::new("unshare");
        let holder = unshare.args(["--net", "sh", "-c", "echo ready; exec sleep 3600"]);
        let mut holder = holder
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let mut ready = [0; 5];
        holder.stdout.as_mut().context("a pipe")?.read_exact(&mut ready)?;
        let network = Self { tap, holder };
        let pid = network.holder.id();
        ip(&format!(
            "link add bench-host type veth peer name eth0 netns {pid}"
        ))?;
        ip(&format!(
            "address add {CONTAINERS_HOST_ADDRESS}/24 dev bench-host"
        ))?;
        ip("link set bench-host up")?;
        for arguments in [
            &format!("address add {CONTAINER_ADDRESS}/24 dev eth0"),
            "link set eth0 up",
        ] {
            let mut inside = Command::new("nsenter");
            inside
                .args(["-t", &pid.to_string(), "-n", "ip"])
                .args(arguments.split(' '));
            ensure!(
                inside.status()?.success(),
                "`ip {arguments}` in the container's network failed"
            );
        }
        serve(SINK_PORT, |mut stream| {
            io::copy(&mut stream, &mut io::sink())?;
            Ok(())
        })?;
        serve(SOURCE_PORT, |mut stream| {
            let bytes = vec![0x5a; 1 << 17];
            loop {
                stream.write_all(&bytes)?;
            }
        })?;
        Ok(network)
    }

    /// The container's network namespace.
    pub(crate) fn containers(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Serves each that comes to `port`, until the process ends.
fn serve(port: u16, service: fn(TcpStream) -> io::Result<()>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever has enough hangs up, which is an error here.
            thread::spawn(move || service(stream));
        }
    });
    Ok(())
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .context("starting ip")?;
    ensure!(status.success(), "`ip {arguments}` ended with {status}");
    Ok(())
}
