//! The demo's image: Debian's static busybox, and other static programs beside it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::{Compression, Entry, Image};

/// Where Debian's package `busybox-static` puts it.
pub const BUSYBOX: &str = "/bin/busybox";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\n";

/// A program added to the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The file on the host.
    pub file: PathBuf,
    /// Absolute path in the image.
    pub destination: String,
}

impl std::str::FromStr for Program {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Program> {
        let (file, destination) = text.rsplit_once(':').context("expected FILE:DEST")?;
        ensure!(!file.is_empty(), "expected FILE:DEST");
        let plain = destination
            .split('/')
            .skip(1)
            .all(|part| !matches!(part, "" | "." | ".."));
        ensure!(
            destination.starts_with('/') && plain,
            "`{destination}` must be an absolute path without empty parts, `.` and `..`"
        );
        Ok(Program {
            file: file.into(),
            destination: destination.to_owned(),
        })
    }
}

/// The image: busybox with a link for each of its applets, a user database, the usual folders, and `programs`.
///
/// # Errors
/// If busybox is missing or needs libraries, or a program cannot be read or does.
pub fn image(busybox: &Path, programs: &[Program]) -> anyhow::Result<Image> {
    let missing = "install the Debian package busybox-static (apt-get install busybox-static)";
    let program =
        std::fs::read(busybox).with_context(|| format!("reading {}: {missing}", busybox.display()))?;
    ensure!(
        is_static(&program),
        "{} needs libraries: {missing}",
        busybox.display()
    );
    let applets = applets(busybox)?;

    let mut folders: BTreeSet<String> = [
        "bin", "dev", "etc", "home", "mnt", "proc", "run", "sbin", "sys", "usr", "var",
    ]
    .map(str::to_owned)
    .into();
    applets
        .iter()
        .for_each(|applet| add_parents(applet, &mut folders));
    let mut entries: Vec<Entry> = folders.iter().map(Entry::folder).collect();
    entries.extend([
        Entry::folder("root").mode(0o700),
        Entry::folder("tmp").mode(0o1777),
        Entry::folder("var/tmp").mode(0o1777),
        Entry::file("etc/passwd", PASSWD),
        Entry::file("etc/group", GROUP),
        Entry::program("bin/busybox", program),
    ]);
    entries.extend(applets.iter().map(|applet| Entry::symlink(applet, BUSYBOX)));

    let image = Image::new()
        .layer(Compression::Gzip, entries)
        .env(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
        .cmd(["sh"]);
    if programs.is_empty() {
        return Ok(image);
    }
    let mut added = BTreeSet::new();
    let mut extra = Vec::new();
    for program in programs {
        let content =
            std::fs::read(&program.file).with_context(|| format!("reading {}", program.file.display()))?;
        ensure!(
            is_static(&content),
            "{} needs libraries, which the image has not",
            program.file.display()
        );
        let destination = program.destination.trim_start_matches('/').to_owned();
        add_parents(&destination, &mut added);
        extra.push(Entry::program(destination, content));
    }
    let added = added
        .difference(&folders)
        .filter(|folder| !matches!(folder.as_str(), "root" | "tmp" | "var/tmp"));
    Ok(image.layer(
        Compression::Gzip,
        added.map(Entry::folder).chain(extra).collect::<Vec<_>>(),
    ))
}

/// The paths busybox's applets are installed under, sorted, without busybox itself.
fn applets(busybox: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(busybox)
        .arg("--list-full")
        .output()
        .with_context(|| format!("running {} --list-full", busybox.display()))?;
    ensure!(
        output.status.success(),
        "{} --list-full ended with {}",
        busybox.display(),
        output.status
    );
    let text = String::from_utf8(output.stdout).context("reading the list of applets")?;
    let mut applets = Vec::new();
    for line in text.lines().filter(|line| *line != "bin/busybox") {
        if line.starts_with('/') || line.split('/').any(|part| matches!(part, "" | "." | "..")) {
            bail!("{} lists an applet at `{line}`", busybox.display());
        }
        applets.push(line.to_owned());
    }
    ensure!(!applets.is_empty(), "{} has no applets", busybox.display());
    applets.sort();
    Ok(applets)
}

fn add_parents(path: &str, folders: &mut BTreeSet<String>) {
    let mut rest = path;
    while let Some((folder, _)) = rest.rsplit_once('/') {
        folders.insert(folder.to_owned());
        rest = folder;
    }
}

/// Whether an ELF program of 64 bits names no interpreter (ELF-64 Object File Format, "Program header table").
fn is_static(program: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let read = |at: usize, length: usize| {
        let bytes = program.get(at..at.checked_add(length)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0u64, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let headers = || {
        let (start, size, count) = (read(32, 8)?, read(54, 2)?, read(56, 2)?);
        (0..count)
            .map(|index| {
                let at = usize::try_from(start.checked_add(index * size)?).ok()?;
                Some(read(at, 4)? != u64::from(INTERPRETER))
            })
            .collect::<Option<Vec<bool>>>()
    };
    program.starts_with(b"\x7fELF\x02\x01")
        && headers().is_some_and(|plain| plain.into_iter().all(|plain| plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_busybox_names_the_package() {
        let error = image(Path::new("/nonexistent/busybox"), &[]).unwrap_err();
        assert!(format!("{error:#}").contains("busybox-static"), "{error:#}");
    }

    #[test]
    fn what_is_no_program_is_not_static() {
        assert!(!is_static(b""));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF\x02\x01\x01"));
        let mut endless = b"\x7fELF\x02\x01".to_vec();
        endless.resize(64, 0xff);
        assert!(!is_static(&endless));
    }

    #[test]
    fn this_test_is_static_and_a_dynamic_program_is_not() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(is_static(&own));
        let cat = std::fs::read("/bin/cat").unwrap();
        assert!(!is_static(&cat));
    }

    #[test]
    fn programs_are_parsed_and_climbing_destinations_refused() {
        let program: Program = "/a/b:/usr/bin/b".parse().unwrap();
        assert_eq!(
            (program.file, program.destination),
            ("/a/b".into(), "/usr/bin/b".to_owned())
        );
        for text in ["", "a", "a:b", ":/b", "a:/../b", "a:/", "a://b"] {
            assert!(text.parse::<Program>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_image_is_the_same_each_time() {
        if !Path::new(BUSYBOX).exists() {
            eprintln!("SKIPPED: no {BUSYBOX}: install the Debian package busybox-static");
            return;
        }
        let own = Program {
            file: std::env::current_exe().unwrap(),
            destination: "/opt/own/test".to_owned(),
        };
        let write = || {
            image(Path::new(BUSYBOX), std::slice::from_ref(&own))
                .unwrap()
                .write()
                .unwrap()
        };
        let (first, second) = (write(), write());
        assert_eq!(first.manifest.digest, second.manifest.digest);
        assert_eq!(first.layers.len(), 2);
    }
}
