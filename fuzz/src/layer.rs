//! An image's layer: decompressed, and its archive read. The first byte of the input says how it is compressed, the
//! second in pieces of how many bytes it comes.

use std::io::Write as _;

use image::LayerError;
use image::fuzzing::{Entry, read_entries};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "layer",
    run,
    seeds,
    is_json: false,
    // The largest window that a zstd frame gets.
    memory: (128 << 20) + (16 << 20),
};

const NONE: u8 = 0;
const GZIP: u8 = 1;
const ZSTD: u8 = 2;

/// What a layer may decompress to, in bytes.
const LIMIT: u64 = 4 << 20;
const BLOCK: u64 = 512;
/// `PATH_MAX`, without its terminator.
const LONGEST_NAME: usize = 4095;

fn run(data: &[u8]) {
    let [compression, piece, blob @ ..] = data else {
        return;
    };
    let (found, whole) = entries(*compression, blob, usize::MAX);
    let mut end = 0;
    for entry in &found {
        assert!(
            entry.name.len() <= LONGEST_NAME,
            "a name of {} bytes",
            entry.name.len()
        );
        assert_eq!(
            entry.read, entry.size,
            "content of another size: {}",
            entry.header
        );
        assert!(entry.content_offset % BLOCK == 0 && entry.content_offset >= end + BLOCK);
        end = entry.content_offset + entry.size;
    }
    assert!(end <= LIMIT, "{end} bytes were read");
    // Where a blob comes from decides how much of it comes at a time, not what it holds.
    let (found_in_pieces, in_pieces) = entries(*compression, blob, usize::from(*piece));
    assert!(
        whole.is_ok() == in_pieces.is_ok(),
        "{whole:?}, but in pieces {in_pieces:?}"
    );
    // Of a damaged blob, a decoder that sees more at a time gives less before it sees the damage.
    assert!(
        whole.is_err() || found_in_pieces == found,
        "other entries in pieces"
    );
}

/// The entries, and whether what ended them was the blob's end.
fn entries(compression: u8, blob: &[u8], piece: usize) -> (Vec<Entry>, Result<(), LayerError>) {
    let mut found = Vec::new();
    let result = read_entries(compression, blob, piece, LIMIT, &mut |entry| found.push(entry));
    (found, result)
}

fn seeds() -> Vec<Vec<u8>> {
    let archive = archive().unwrap_or_else(|error| panic!("an archive in memory: {error}"));
    let gzip = || {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&archive)?;
        encoder.finish()
    };
    let gzip = gzip().unwrap_or_else(|error| panic!("compressing in memory: {error}"));
    let zstd =
        ruzstd::encoding::compress_to_vec(archive.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    let seed = |compression, blob: &[u8]| [&[compression, 7], blob].concat();
    vec![seed(NONE, &archive), seed(GZIP, &gzip), seed(ZSTD, &zstd)]
}

/// A folder, a file, links, a device, a name and a link target too long for a header, and PAX records.
fn archive() -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let header = |kind, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1);
        header.set_size(size);
        header
    };
    builder.append_data(&mut header(tar::EntryType::Directory, 0), "folder", [].as_slice())?;
    builder.append_data(
        &mut header(tar::EntryType::Regular, 5),
        "folder/file",
        b"hello".as_slice(),
    )?;
    builder.append_link(&mut header(tar::EntryType::Symlink, 0), "link", "folder/file")?;
    builder.append_link(&mut header(tar::EntryType::Link, 0), "hard", "folder/file")?;
    let mut device = header(tar::EntryType::Char, 0);
    device.set_device_major(1)?;
    device.set_device_minor(3)?;
    builder.append_data(&mut device, "null", [].as_slice())?;
    let long = "long/".repeat(30);
    builder.append_data(
        &mut header(tar::EntryType::Regular, 1),
        format!("{long}x"),
        b"x".as_slice(),
    )?;
    builder.append_link(
        &mut header(tar::EntryType::Symlink, 0),
        "long-link",
        format!("{long}y"),
    )?;
    builder.append_pax_extensions([
        ("mtime", b"1.5".as_slice()),
        ("uid", b"70000"),
        ("SCHILY.xattr.user.a", b"b\nc"),
    ])?;
    builder.append_data(
        &mut header(tar::EntryType::Regular, 513),
        "pax",
        [b'x'; 513].as_slice(),
    )?;
    builder.into_inner()
}
