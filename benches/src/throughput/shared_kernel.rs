//! The workloads in a container on the host's kernel.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::workload::{ALL, Done};
use super::{CONTAINERS_HOST_ADDRESS, Measured};

/// Makes the bundle: this program alone, the folder of the disk and the files, and the namespace of `network`.
pub(crate) fn make_bundle(oci: &Path, directory: &Path, network: &str) -> anyhow::Result<()> {
    let bundle = directory.join("bundle");
    fs::create_dir_all(bundle.join("rootfs"))?;
    fs::copy(std::env::current_exe()?, bundle.join("rootfs/bench"))?;
    let made = Command::new(oci)
        .args(["--isolation", "shared-kernel", "spec", "--bundle"])
        .arg(&bundle)
        .status()
        .context("starting bulkhead-oci; `make build` makes it")?;
    ensure!(made.success(), "`bulkhead-oci spec` ended with {made}");
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let process = config
        .get_mut("process")
        .and_then(Value::as_object_mut)
        .context("a process")?;
    process.insert("terminal".to_owned(), false.into());
    let mounts = config
        .get_mut("mounts")
        .and_then(Value::as_array_mut)
        .context("mounts")?;
    mounts.push(json!({
        "destination": "/data", "type": "bind", "source": directory.join("data"), "options": ["bind", "rw"]
    }));
    let namespaces = config
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut);
    let namespaces = namespaces.context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({ "type": "network", "path": network }));
    // Of the weight that what is started by hand has at most: the guest's VMM is started so.
    let linux = config
        .get_mut("linux")
        .and_then(Value::as_object_mut)
        .context("linux")?;
    linux.insert(
        "cgroupsPath".to_owned(),
        json!(format!("/bulkhead-bench-{}", std::process::id())),
    );
    linux.insert("resources".to_owned(), json!({ "cpu": { "shares": 32_768 } }));
    if let Some(root) = config.get_mut("root").and_then(Value::as_object_mut) {
        root.insert("readonly".to_owned(), false.into());
    }
    fs::write(path, serde_json::to_vec(&config)?)?;
    Ok(())
}

/// Runs a container for each of them.
pub(crate) fn measure(oci: &Path, directory: &Path, seconds: u64) -> anyhow::Result<Vec<Measured>> {
    let bundle = directory.join("bundle");
    let path = bundle.join("config.json");
    let mut measured = Vec::new();
    for workload in ALL {
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        let process = config
            .get_mut("process")
            .and_then(Value::as_object_mut)
            .context("a process")?;
        let seconds = seconds.to_string();
        let arguments = [
            "/bench",
            "--container-seconds",
            &seconds,
            "--workload",
            workload.word(),
        ];
        process.insert("args".to_owned(), json!(arguments));
        fs::write(&path, serde_json::to_vec(&config)?)?;
        let output = Command::new(oci)
            .args(["--isolation", "shared-kernel", "--root"])
            .arg(directory.join("states"))
            .args(["run", "--bundle"])
            .arg(&bundle)
            .arg(format!("bench-{}-{}", std::process::id(), workload.word()))
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let (workload, done) = said.lines().find_map(Done::from_line).with_context(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("{} on the host's kernel: {errors}", workload.title())
        })?;
        measured.push(Measured {
            workload,
            done,
            processor_time: done.processor_time,
        });
    }
    Ok(measured)
}

/// What the container's program does.
pub(crate) fn run(word: &str, duration: std::time::Duration) -> anyhow::Result<()> {
    let workload =
        super::workload::Workload::of(word).with_context(|| format!("no workload is called {word:?}"))?;
    let place = super::workload::Place {
        disk: Path::new("/data/disk"),
        direct: false,
        folder: Path::new("/data"),
        host: CONTAINERS_HOST_ADDRESS,
    };
    workload.prepare(&place)?;
    let done = workload.perform(&place, duration)?;
    println!("{}", done.to_line(workload));
    Ok(())
}
