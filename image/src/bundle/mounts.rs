//! What is mounted in every container, and what the user adds.

use std::path::Path;

use oci_spec::runtime::Mount;

use super::Bind;

/// Destination, type, source and options of the default mounts: Docker's.
const DEFAULTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (
        "/dev/shm",
        "tmpfs",
        "shm",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    (
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ),
];

/// The default mounts, without those a bind takes the place of, then the binds, outer ones first.
pub(super) fn mounts(binds: &[Bind]) -> Vec<Mount> {
    let replaced = |destination: &str| {
        binds
            .iter()
            .any(|bind| bind.destination == Path::new(destination))
    };
    let defaults = DEFAULTS.iter().filter(|(destination, ..)| !replaced(destination));
    let defaults = defaults.map(|(destination, kind, source, options)| {
        mount(Path::new(destination), kind, Path::new(source), options)
    });
    let mut binds: Vec<&Bind> = binds.iter().collect();
    binds.sort_by_key(|bind| bind.destination.components().count());
    let binds = binds.into_iter().map(|bind| {
        let access = if bind.read_only { "ro" } else { "rw" };
        mount(
            &bind.destination,
            "bind",
            &bind.host,
            &["rbind", "rprivate", access],
        )
    });
    defaults.chain(binds).collect()
}

fn mount(destination: &Path, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}
