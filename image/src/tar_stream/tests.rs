use proptest::prelude::*;

use super::*;

impl Skip for &[u8] {}

fn entries(stream: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut stream = TarStream::new(stream);
    let mut entries = Vec::new();
    while let Some(entry) = stream.next_entry()? {
        let mut content = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match stream.read_content(&mut buffer)? {
                0 => break,
                count => content.extend_from_slice(&buffer[..count]),
            }
        }
        entries.push((entry, content));
    }
    Ok(entries)
}

fn file_header(name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_size(size);
    header.set_mode(0o4755);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(9);
    header.set_cksum();
    header
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        builder
            .append(&file_header(name, content.len() as u64), *content)
            .unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn entries_written_by_the_tar_crate_are_read_back() {
    let long = "d/".repeat(90) + "f";
    let stream = archive(&[
        ("a", b"hello"),
        ("empty", b""),
        (&long, &[7; 512]),
        ("b", &[8; 513]),
    ]);
    let read = entries(&stream).unwrap();
    let names: Vec<_> = read
        .iter()
        .map(|(entry, content)| (entry.name.clone(), content.len()))
        .collect();
    assert_eq!(
        names,
        [
            (b"a".to_vec(), 5),
            (b"empty".to_vec(), 0),
            (long.into_bytes(), 512),
            (b"b".to_vec(), 513)
        ]
    );
    let (first, content) = &read[0];
    assert_eq!(content, b"hello");
    assert_eq!(
        (first.kind, first.mode, first.uid, first.gid),
        (Kind::File, 0o4755, 7, 8)
    );
    assert_eq!(
        first.mtime,
        Time {
            seconds: 9,
            nanoseconds: 0
        }
    );
    assert_eq!(first.content_offset, 512);
}

#[test]
fn gnu_long_names_are_read() {
    let name = "x".repeat(300);
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    builder.append_data(&mut header, &name, &b"!"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", &name).unwrap();
    let read = entries(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(read[0].0.name, name.as_bytes());
    assert_eq!(read[0].1, b"!");
    assert_eq!(
        (read[1].0.kind, &read[1].0.link[..]),
        (Kind::Symlink, name.as_bytes())
    );
}

#[test]
fn pax_records_override_the_header_that_follows_and_no_other() {
    let mut builder = tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 5] = [
        ("path", b"long/name"),
        ("size", b"3"),
        ("uid", b"3000000000"),
        ("mtime", b"5.25"),
        ("SCHILY.xattr.security.capability", b"\x01\n=\x00"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let mut stream = builder.get_ref().clone();
    // The header itself claims no content: the record's size counts.
    stream.extend(file_header("short", 0).as_bytes());
    stream.extend(b"abc");
    stream.extend([0; 509]);
    stream.extend(archive(&[("next", b"n")]));
    let read = entries(&stream).unwrap();
    let (entry, content) = &read[0];
    assert_eq!(content, b"abc");
    assert_eq!(entry.name, b"long/name");
    assert_eq!(entry.uid, 3_000_000_000);
    assert_eq!(
        entry.mtime,
        Time {
            seconds: 5,
            nanoseconds: 250_000_000
        }
    );
    assert_eq!(
        entry.xattrs,
        [(b"security.capability".to_vec(), b"\x01\n=\x00".to_vec())]
    );
    let (next, _) = &read[1];
    assert_eq!(
        (&next.name[..], next.uid, next.xattrs.len()),
        (&b"next"[..], 7, 0)
    );
}

#[test]
fn a_folder_with_a_size_carries_no_content() {
    let mut header = file_header("folder", 512);
    header.set_entry_type(tar::EntryType::Directory);
    header.set_cksum();
    let mut stream = header.as_bytes().to_vec();
    stream.extend(archive(&[("next", b"n")]));
    let read = entries(&stream).unwrap();
    assert_eq!((read[0].0.kind, read[0].0.size), (Kind::Folder, 0));
    assert_eq!(read[1].0.name, b"next");
}

#[test]
fn a_stream_that_ends_inside_an_entry_is_truncated() {
    let whole = archive(&[("a", &[1; 2000])]);
    for length in [1, 511, 513, 512 + 1999, 512 + 2000] {
        let error = entries(&whole[..length]).unwrap_err();
        assert!(matches!(error, TarError::Truncated { .. }), "{length}: {error}");
    }
}

#[test]
fn a_missing_end_marker_is_accepted() {
    assert_eq!(entries(&archive(&[("a", b"x")])[..1024]).unwrap().len(), 1);
    assert_eq!(entries(&[]).unwrap().len(), 0);
}

#[test]
fn a_changed_header_byte_fails_the_checksum() {
    let mut stream = archive(&[("a", b"x")]);
    stream[0] = b'b';
    assert!(matches!(
        entries(&stream),
        Err(TarError::Header { offset: 0, .. })
    ));
}

#[test]
fn an_extension_beyond_a_mebibyte_is_refused_before_it_is_read() {
    for flag in [b'x', b'L', b'K'] {
        let mut header = file_header("ext", LONGEST_EXTENSION + 1);
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_cksum();
        let error = entries(header.as_bytes()).unwrap_err();
        assert!(matches!(error, TarError::TooLong { .. }), "{error}");
    }
}

#[test]
fn a_name_beyond_path_max_is_refused() {
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("path", "n".repeat(LONGEST_NAME + 1).as_bytes())])
        .unwrap();
    let mut stream = builder.get_ref().clone();
    stream.extend(archive(&[("short", b"")]));
    assert!(matches!(
        entries(&stream),
        Err(TarError::TooLong { what: "name", .. })
    ));
}

#[test]
fn sparse_files_are_refused_in_both_forms() {
    let mut header = file_header("s", 0);
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_cksum();
    assert!(matches!(entries(header.as_bytes()), Err(TarError::Sparse { .. })));
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("GNU.sparse.major", &b"1"[..])])
        .unwrap();
    let mut stream = builder.get_ref().clone();
    stream.extend(archive(&[("s", b"")]));
    assert!(matches!(entries(&stream), Err(TarError::Sparse { .. })));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_panic(stream in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = entries(&stream);
    }

    #[test]
    fn a_valid_header_with_any_fields_is_read_or_refused_without_panic(
        mut block in proptest::collection::vec(any::<u8>(), 512),
        flag in proptest::sample::select(b"01234567xgLKS\0V".to_vec()),
        content in proptest::collection::vec(any::<u8>(), 0..2048),
    ) {
        block[156] = flag;
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        header.set_cksum();
        let mut stream = header.as_bytes().to_vec();
        stream.extend(content);
        let _ = entries(&stream);
    }
}
