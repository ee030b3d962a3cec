//! Layers: looked up, and imported by one process at a time.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Progress, Store, StoreError};
use crate::digest::Digest;
use crate::layer::{self, Destination, LayerError, Unpacked};
use crate::layout::{LayerBlob, Layout, LayoutImage};
use crate::reference::Reference;

/// A complete layer, in the folder of its chain id.
const READY: &str = "fs";
/// A layer being unpacked.
const INCOMING: &str = "incoming";
/// What the layer was made from.
const ORIGIN: &str = "layer.json";

/// What a layer was made from, kept beside it.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Origin {
    /// The digest of the uncompressed archive.
    diff_id: Digest,
    /// The digest of the blob it was read from.
    blob: Digest,
    /// The chain id of the layer below.
    below: Option<Digest>,
    entries: u64,
    /// Bytes of the uncompressed archive.
    bytes: u64,
}

/// The chain ids of layers with these diff ids: the lowest's is its diff id, every other's the digest of the text
/// `CHAIN-ID-BELOW DIFF-ID` (image-spec, `config.md`, "Layer ChainID").
pub(super) fn chain_ids(diff_ids: impl Iterator<Item = Digest>) -> Vec<Digest> {
    let chained = diff_ids.scan(None, |below: &mut Option<Digest>, diff_id| {
        let id = match below {
            None => diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        *below = Some(id);
        Some(id)
    });
    chained.collect()
}

/// Why one layer was not imported.
enum Failure {
    Image(Box<LayerError>),
    Store(StoreError),
}

impl Failure {
    fn write(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Failure {
        move |source| {
            Failure::Store(StoreError::Write {
                action,
                path: path.to_owned(),
                source,
            })
        }
    }
}

/// One layer of an image that is being imported.
struct Import<'a> {
    layout: &'a Layout,
    layer: &'a LayerBlob,
    id: Digest,
    /// Chain ids of the layers below, the lowest first.
    below: &'a [Digest],
    number: usize,
    count: usize,
}

impl Store {
    /// The folder of a layer's content.
    pub(crate) fn layer_folder(&self, id: &Digest) -> PathBuf {
        self.layer_place(id).join(READY)
    }

    pub(super) fn layer_is_ready(&self, id: &Digest) -> bool {
        self.layer_folder(id).is_dir()
    }

    fn layers(&self) -> PathBuf {
        self.root.join("layers/sha256")
    }

    fn layer_place(&self, id: &Digest) -> PathBuf {
        self.layers().join(id.hex())
    }

    /// Unpacks the layers that are missing, from the lowest upwards.
    pub(super) fn import_layers(
        &self,
        reference: &Reference,
        layout: &Layout,
        image: &LayoutImage,
        chain: &[Digest],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), StoreError> {
        self.discard_unfinished()?;
        let count = image.layers.len();
        for (index, (layer, id)) in image.layers.iter().zip(chain).enumerate() {
            let (number, below) = (index + 1, chain.get(..index).unwrap_or_default());
            let import = Import {
                layout,
                layer,
                id: *id,
                below,
                number,
                count,
            };
            self.import(&import, progress).map_err(|failure| match failure {
                Failure::Store(error) => error,
                Failure::Image(source) => StoreError::Layer {
                    reference: reference.clone(),
                    number,
                    count,
                    blob: layer.promise.digest,
                    source,
                },
            })?;
        }
        // Folders that later entries replaced, and what was found of killed imports.
        self.discard.empty().map_err(|source| StoreError::Write {
            action: "tidying up",
            path: self.root.clone(),
            source,
        })
    }

    fn import(&self, import: &Import<'_>, progress: &mut dyn FnMut(Progress)) -> Result<(), Failure> {
        let place = self.layer_place(&import.id);
        let Import { number, count, .. } = *import;
        let mut waiting = || progress(Progress::Waiting { number, count });
        let lock = lock(&place, &mut waiting).map_err(Failure::write("locking", &place))?;
        if place.join(READY).is_dir() {
            return Ok(());
        }
        let mut attempt = Attempt {
            store: self,
            place: &place,
            lock: &lock,
            done: false,
        };
        let unpacked = self.unpack(import, &place, &lock, progress)?;
        attempt.done = true;
        progress(Progress::Unpacked {
            number,
            count,
            entries: unpacked.entries,
            bytes: unpacked.bytes,
        });
        Ok(())
    }

    fn unpack(
        &self,
        import: &Import<'_>,
        place: &Path,
        lock: &OwnedFd,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Unpacked, Failure> {
        let incoming = place.join(INCOMING);
        // What a killed process left.
        discard_if_there(self, lock, INCOMING).map_err(Failure::write("discarding", &incoming))?;
        rustix::fs::mkdirat(lock, INCOMING, Mode::RWXU)
            .map_err(|errno| Failure::write("making", &incoming)(errno.into()))?;
        let root = open_folder(&incoming).map_err(Failure::write("opening", &incoming))?;
        let mut below = Vec::new();
        for id in import.below.iter().rev() {
            let folder = self.layer_folder(id);
            below.push(open_folder(&folder).map_err(Failure::write("opening", &folder))?);
        }
        let destination = Destination {
            root,
            below: &below,
            discard: &self.discard,
        };
        let Import { number, count, .. } = *import;
        let size = import.layer.promise.size;
        let mut report = |read| {
            progress(Progress::Unpacking {
                number,
                count,
                read,
                size,
            })
        };
        report(0);
        let unpacked = layer::unpack(
            import.layout.blobs(),
            import.layer,
            &destination,
            &self.limits,
            &mut report,
        )
        .map_err(|error| Failure::Image(Box::new(error)))?;

        self.write_origin(import, place, unpacked)?;
        rustix::fs::syncfs(&destination.root)
            .map_err(|errno| Failure::write("flushing", &incoming)(errno.into()))?;
        rustix::fs::renameat_with(lock, INCOMING, lock, READY, RenameFlags::NOREPLACE)
            .map_err(|errno| Failure::write("renaming", &incoming)(errno.into()))?;
        rustix::fs::fsync(lock).map_err(|errno| Failure::write("flushing", place)(errno.into()))?;
        Ok(unpacked)
    }

    fn write_origin(&self, import: &Import<'_>, place: &Path, unpacked: Unpacked) -> Result<(), Failure> {
        let origin = Origin {
            diff_id: import.layer.diff_id,
            blob: import.layer.promise.digest,
            below: import.below.last().copied(),
            entries: unpacked.entries,
            bytes: unpacked.bytes,
        };
        let path = place.join(ORIGIN);
        serde_json::to_vec(&origin)
            .map_err(io::Error::other)
            // Flushed together with the layer.
            .and_then(|content| std::fs::write(&path, content))
            .map_err(Failure::write("writing", &path))
    }

    /// Throws away what killed imports left. Those still running hold their locks.
    fn discard_unfinished(&self) -> Result<(), StoreError> {
        let layers = self.layers();
        let failed = |source| StoreError::Write {
            action: "tidying up",
            path: layers.clone(),
            source,
        };
        for entry in std::fs::read_dir(&layers).map_err(failed)? {
            let place = entry.map_err(failed)?.path();
            if place.join(READY).is_dir() {
                continue;
            }
            let Some(lock) = try_lock(&place).map_err(failed)? else {
                continue;
            };
            abandon(self, &place, &lock).map_err(failed)?;
        }
        self.discard.empty().map_err(failed)
    }
}

/// An import under way: unless it is done, nothing of it stays.
struct Attempt<'a> {
    store: &'a Store,
    place: &'a Path,
    lock: &'a OwnedFd,
    done: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The import's own error is under way already; what could not be removed now, the next import removes.
            let _ = abandon(self.store, self.place, self.lock).and_then(|()| self.store.discard.empty());
        }
    }
}

/// Removes the folder of a layer that did not become ready. The caller holds its lock.
fn abandon(store: &Store, place: &Path, lock: &OwnedFd) -> io::Result<()> {
    // Someone may have finished it between the look and the lock.
    if place.join(READY).is_dir() {
        return Ok(());
    }
    discard_if_there(store, lock, INCOMING)?;
    match rustix::fs::unlinkat(lock, ORIGIN, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    std::fs::remove_dir(place)
}

fn discard_if_there(store: &Store, folder: impl AsFd, name: &str) -> io::Result<()> {
    match store.discard.take(folder, name.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Makes and locks the folder of a layer. Waits for another process's import of the same layer, after saying so.
fn lock(place: &Path, waiting: &mut dyn FnMut()) -> io::Result<OwnedFd> {
    loop {
        match std::fs::DirBuilder::new().mode(0o700).create(place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let folder = match open_folder(place) {
            // Abandoned by another process a moment ago.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
            waiting();
            rustix::io::retry_on_intr(|| rustix::fs::flock(&folder, FlockOperation::LockExclusive))?;
        }
        if is_still(place, &folder)? {
            return Ok(folder);
        }
    }
}

/// Locks the folder of a layer if nobody else does.
fn try_lock(place: &Path) -> io::Result<Option<OwnedFd>> {
    let folder = match open_folder(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
        Ok(()) => Ok(is_still(place, &folder)?.then_some(folder)),
    }
}

/// Whether `place` is still the folder that was locked: it may have been removed while the lock was waited for.
fn is_still(place: &Path, folder: &OwnedFd) -> io::Result<bool> {
    let held = rustix::fs::fstat(folder)?;
    match std::fs::metadata(place) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.st_dev, held.st_ino)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let chain = chain_ids([a, b, b].into_iter());
        assert_eq!(chain[0], a);
        assert_eq!(chain[1], Digest::of(format!("{a} {b}").as_bytes()));
        assert_eq!(chain[2], Digest::of(format!("{} {b}", chain[1]).as_bytes()));
    }

    #[test]
    fn a_lock_on_a_folder_that_was_removed_meanwhile_is_taken_anew() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("layer");
        let first = lock(&place, &mut || {}).unwrap();
        let (told, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| lock(&place, &mut || told.send(()).unwrap()).unwrap());
            waits.recv().unwrap();
            std::fs::remove_dir(&place).unwrap();
            drop(first);
            let second = second.join().unwrap();
            assert!(is_still(&place, &second).unwrap());
        });
    }
}
