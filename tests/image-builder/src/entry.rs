//! Entries of a layer, written as they are given: nothing is checked, because tests want what a builder would refuse.

use std::io;

/// One entry of a layer's archive.
#[derive(Debug, Clone)]
pub struct Entry {
    name: Vec<u8>,
    flag: u8,
    link: Vec<u8>,
    content: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    mtime: Time,
    device: (u32, u32),
    xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy)]
struct Time {
    seconds: u64,
    nanoseconds: u32,
}

impl Entry {
    /// An entry of any type, mode 0644, owned by root, from the epoch.
    pub fn of_type(flag: u8, name: impl AsRef<[u8]>) -> Entry {
        Entry {
            name: name.as_ref().to_vec(),
            flag,
            link: Vec::new(),
            content: Vec::new(),
            mode: 0o644,
            owner: (0, 0),
            mtime: Time {
                seconds: 0,
                nanoseconds: 0,
            },
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }

    /// A regular file, mode 0644.
    pub fn file(name: impl AsRef<[u8]>, content: impl Into<Vec<u8>>) -> Entry {
        Entry {
            content: content.into(),
            ..Entry::of_type(b'0', name)
        }
    }

    /// A regular file, mode 0755.
    pub fn program(name: impl AsRef<[u8]>, content: impl Into<Vec<u8>>) -> Entry {
        Entry::file(name, content).mode(0o755)
    }

    /// A folder, mode 0755.
    pub fn folder(name: impl AsRef<[u8]>) -> Entry {
        Entry::of_type(b'5', name).mode(0o755)
    }

    /// A symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
        Entry {
            link: target.as_ref().to_vec(),
            ..Entry::of_type(b'2', name).mode(0o777)
        }
    }

    /// A hard link to another entry.
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
        Entry {
            link: target.as_ref().to_vec(),
            ..Entry::of_type(b'1', name)
        }
    }

    /// A character device.
    pub fn character_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Entry {
        Entry {
            device: (major, minor),
            ..Entry::of_type(b'3', name)
        }
    }

    /// A block device.
    pub fn block_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Entry {
        Entry {
            device: (major, minor),
            ..Entry::of_type(b'4', name)
        }
    }

    /// A FIFO.
    pub fn fifo(name: impl AsRef<[u8]>) -> Entry {
        Entry::of_type(b'6', name)
    }

    /// The whiteout that deletes `path` of the layers below.
    pub fn whiteout(path: &str) -> Entry {
        let (folder, base) = path
            .rsplit_once('/')
            .map_or(("", path), |(folder, base)| (folder, base));
        let slash = if folder.is_empty() { "" } else { "/" };
        Entry::file(format!("{folder}{slash}.wh.{base}"), "")
    }

    /// The mark that hides what the layers below have in `folder`; `.` is the layer's root.
    pub fn opaque(folder: &str) -> Entry {
        Entry::file(format!("{folder}/.wh..wh..opq"), "")
    }

    /// Sets the permission bits, setuid and its like included.
    pub fn mode(self, mode: u32) -> Entry {
        Entry { mode, ..self }
    }

    /// Sets user and group.
    pub fn owner(self, uid: u64, gid: u64) -> Entry {
        Entry {
            owner: (uid, gid),
            ..self
        }
    }

    /// Sets the modification time.
    pub fn mtime(self, seconds: u64, nanoseconds: u32) -> Entry {
        Entry {
            mtime: Time { seconds, nanoseconds },
            ..self
        }
    }

    /// Adds an extended attribute.
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Entry {
        self.xattrs.push((name.to_owned(), value.into()));
        self
    }

    /// Writes the entry: a PAX header if anything does not fit the plain one, the plain one, the content.
    pub(crate) fn append(&self, archive: &mut tar::Builder<Vec<u8>>) -> io::Result<()> {
        let records = self.pax_records();
        if !records.is_empty() {
            archive.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), &value[..])))?;
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(self.flag));
        header.set_mode(self.mode);
        header.set_uid(self.owner.0.min(LARGEST_ID));
        header.set_gid(self.owner.1.min(LARGEST_ID));
        header.set_size(self.content.len() as u64);
        header.set_mtime(self.mtime.seconds);
        if matches!(self.flag, b'3' | b'4') {
            header.set_device_major(self.device.0)?;
            header.set_device_minor(self.device.1)?;
        }
        // Past the crate's own setters, which refuse the names that tests are about.
        let bytes = header.as_mut_bytes();
        for (field, text) in [(0..100, &self.name), (157..257, &self.link)] {
            for (place, byte) in bytes.iter_mut().skip(field.start).take(field.len()).zip(text) {
                *place = *byte;
            }
        }
        header.set_cksum();
        archive.append(&header, &self.content[..])
    }

    fn pax_records(&self) -> Vec<(String, Vec<u8>)> {
        let mut records = Vec::new();
        for (key, text) in [("path", &self.name), ("linkpath", &self.link)] {
            if text.len() > 100 {
                records.push((key.to_owned(), text.clone()));
            }
        }
        for (key, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if id > LARGEST_ID {
                records.push((key.to_owned(), id.to_string().into_bytes()));
            }
        }
        if self.mtime.nanoseconds != 0 {
            let time = format!("{}.{:09}", self.mtime.seconds, self.mtime.nanoseconds);
            records.push(("mtime".to_owned(), time.into_bytes()));
        }
        for (name, value) in &self.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        records
    }
}

/// What seven octal digits hold.
const LARGEST_ID: u64 = 0o7_777_777;

/// An archive of `entries`.
pub(crate) fn archive(entries: &[Entry]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        entry.append(&mut archive)?;
    }
    archive.into_inner()
}
