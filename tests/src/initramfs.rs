//! Initial file systems for guests that are not ours.

use std::path::Path;

/// What an entry is, besides its content: a program.
pub const PROGRAM: u32 = 0o100_755;
/// A folder, which has no content.
pub const FOLDER: u32 = 0o040_755;

/// An archive whose only file is `/init`.
pub fn with_init(init: &[u8], archive: &Path) {
    with_entries(&[("init", PROGRAM, init)], archive);
}

/// An uncompressed cpio archive in the "newc" form (the kernel's Documentation/driver-api/early-userspace/
/// buffer-format.rst) of these names, modes and contents; folders come before what is in them.
pub fn with_entries(entries: &[(&str, u32, &[u8])], archive: &Path) {
    let mut bytes = Vec::new();
    for (name, mode, content) in entries {
        entry(&mut bytes, name, *mode, content);
    }
    entry(&mut bytes, "TRAILER!!!", 0, &[]);
    std::fs::write(archive, bytes).expect("the archive");
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    archive.extend_from_slice(b"070701");
    let size = u32::try_from(content.len()).expect("a small file");
    let name_size = u32::try_from(name.len() + 1).expect("a short name");
    // Inode, mode, uid, gid, links, mtime, size, device numbers, name's size, checksum.
    for field in [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
