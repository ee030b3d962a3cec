//! Initial file systems for the tests: cpio archives of the newc format (Linux's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

/// An executable regular file.
const EXECUTABLE: u32 = 0o100_755;

/// An archive with one program in it.
pub(crate) fn archive(name: &str, program: &[u8]) -> Vec<u8> {
    let mut archive = entry(name, EXECUTABLE, program);
    archive.extend(end());
    archive
}

/// The mark that ends every archive.
pub(crate) fn end() -> Vec<u8> {
    entry("TRAILER!!!", 0, b"")
}

fn entry(name: &str, mode: u32, contents: &[u8]) -> Vec<u8> {
    // Inode, mode, user, group, links, time, size, two device numbers, two more, name's length, checksum.
    let (size, name_size) = (contents.len() as u32, name.len() as u32 + 1);
    let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut bytes = b"070701".to_vec();
    bytes.extend(fields.map(|field: u32| format!("{field:08x}")).concat().bytes());
    bytes.extend(name.bytes().chain([0]));
    pad(&mut bytes);
    bytes.extend(contents);
    pad(&mut bytes);
    bytes
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
