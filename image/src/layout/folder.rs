//! A layout in a folder.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{LayoutError, LayoutFiles};
use crate::blob::{BlobError, BlobSource, OpenedBlob};
use crate::digest::Digest;

/// The opened folder. Everything in it is opened beneath it: a link that leads out is an error, not a way out.
pub(super) struct Folder(OwnedFd);

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Folder, LayoutError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map(Folder)
            .map_err(|errno| LayoutError::Open {
                path: path.to_owned(),
                source: errno.into(),
            })
    }

    /// Opens a regular file; `Ok(None)` if it is something else. Not blocking: it might be a FIFO.
    fn open_file(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = File::from(rustix::fs::openat2(&self.0, name, flags, Mode::empty(), resolve)?);
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then_some((file, metadata.len())))
    }
}

impl LayoutFiles for Folder {
    fn read_file(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let (file, size) = match self.open_file(name) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Err(io::Error::other("it is not a regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if size > limit {
            return Err(io::Error::other(format!(
                "it has {size} bytes, more than the {limit} allowed"
            )));
        }
        let mut content = Vec::new();
        file.take(limit).read_to_end(&mut content)?;
        Ok(Some(content))
    }
}

impl BlobSource for Folder {
    fn open(&self, digest: &Digest) -> Result<OpenedBlob<'_>, BlobError> {
        let digest = *digest;
        match self.open_file(&format!("blobs/sha256/{}", digest.hex())) {
            Ok(Some((file, size))) => Ok(OpenedBlob {
                content: Box::new(file),
                size: Some(size),
            }),
            Ok(None) => Err(BlobError::NotAFile { digest }),
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                Err(BlobError::Missing { digest })
            }
            Err(source) => Err(BlobError::Read { digest, source }),
        }
    }
}
