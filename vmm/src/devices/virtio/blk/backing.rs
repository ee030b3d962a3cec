//! The host's side of a disk: a raw file, or a block device.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, ioctl_blkpbszget, ioctl_blksszget};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl};
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuardMut;

use super::SECTOR;
use super::segments::Segments;

/// `BLKDISCARD` and `BLKZEROOUT` (the kernel's include/uapi/linux/fs.h): both take the first byte and the number of
/// bytes.
const BLKDISCARD: Opcode = 0x1277;
const BLKZEROOUT: Opcode = 0x127f;

/// Why something cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// It cannot be opened.
    #[error("opening it {}", if *.read_only { "for reading" } else { "for reading and writing" })]
    Open {
        /// Whether it was to be written too.
        read_only: bool,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is a directory, or something else that has no sectors.
    #[error("it is neither a file nor a block device")]
    Kind,
    /// Somebody else writes it, or reads it while it is to be written: what is on it would be destroyed.
    #[error("another machine has it open; only machines that all have it read-only can share a disk")]
    Busy,
    /// It was not opened as a disk has to be.
    #[error("its descriptor is {what}")]
    Descriptor {
        /// What is wrong with it.
        what: &'static str,
    },
    /// It does not say what it is.
    #[error("{doing}")]
    Inspect {
        /// What it was asked.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not made of sectors.
    #[error("it has {bytes} bytes: a disk has a multiple of {SECTOR}, and at least that many")]
    Size {
        /// Its size.
        bytes: u64,
    },
}

/// What can be done with the sectors that are not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    BlockDevice,
}

/// An open disk. It is locked (flock(2)): shared, if it is only read.
#[derive(Debug)]
pub(super) struct Backing {
    file: File,
    kind: Kind,
    read_only: bool,
    sectors: u64,
    logical_block: u32,
    physical_block: u32,
    discards: bool,
}

impl Backing {
    /// Opens what is at `path`.
    pub(super) fn open(path: &Path, read_only: bool) -> Result<Self, BackingError> {
        let opened = |source| BackingError::Open { read_only, source };
        // Before it is opened: to open a pipe is to wait for its other end.
        kind(&fs::metadata(path).map_err(opened)?)?;
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(opened)?;
        Self::of(file, read_only)
    }

    /// Takes what somebody else has opened. A lock that came with it stays.
    pub(super) fn inherit(descriptor: OwnedFd, read_only: bool) -> Result<Self, BackingError> {
        let flags = fcntl_getfl(&descriptor).map_err(|errno| BackingError::Inspect {
            doing: "asking how it was opened",
            source: errno.into(),
        })?;
        let access = flags & OFlags::ACCMODE;
        // Appended bytes go to the end, whatever the place they are for; the guest's buffers are nowhere aligned as
        // direct transfers want them.
        let wrong = [
            (flags.contains(OFlags::PATH), "open for no transfers"),
            (access == OFlags::WRONLY, "not open for reading"),
            (!read_only && access != OFlags::RDWR, "not open for writing"),
            (flags.contains(OFlags::APPEND), "open for appending"),
            (flags.contains(OFlags::DIRECT), "open for direct transfers"),
        ];
        match wrong.into_iter().find(|(is_so, _)| *is_so) {
            Some((_, what)) => Err(BackingError::Descriptor { what }),
            None => Self::of(descriptor.into(), read_only),
        }
    }

    fn of(mut file: File, read_only: bool) -> Result<Self, BackingError> {
        let inspected = |doing| move |source| BackingError::Inspect { doing, source };
        let metadata = file.metadata().map_err(inspected("asking what it is"))?;
        let kind = kind(&metadata)?;
        let locked = if read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => BackingError::Busy,
            TryLockError::Error(source) => inspected("locking it")(source),
        })?;
        let bytes = file
            .seek(SeekFrom::End(0))
            .map_err(inspected("asking for its size"))?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(BackingError::Size { bytes });
        }
        let (logical_block, physical_block) = match kind {
            // The page cache takes any sector; whole blocks of the file system are cheaper.
            Kind::File => (SECTOR as u32, u32::try_from(metadata.blksize()).unwrap_or(0)),
            Kind::BlockDevice => {
                let asked = |source: Errno| inspected("asking for the size of its blocks")(source.into());
                (
                    ioctl_blksszget(&file).map_err(asked)?,
                    ioctl_blkpbszget(&file).map_err(asked)?,
                )
            }
        };
        let mut this = Self {
            file,
            kind,
            read_only,
            sectors: bytes / SECTOR,
            logical_block,
            physical_block: physical_block.max(logical_block),
            discards: false,
        };
        this.discards = !read_only && this.can_discard(bytes);
        Ok(this)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Its size in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The bytes of the smallest block it is made for.
    pub(super) fn logical_block(&self) -> u32 {
        self.logical_block
    }

    /// The bytes of a block that it writes at once, at least [`logical_block`](Self::logical_block).
    pub(super) fn physical_block(&self) -> u32 {
        self.physical_block
    }

    /// Whether it can do without sectors.
    pub(super) fn discards(&self) -> bool {
        self.discards
    }

    /// Whether it can make sectors zero without being sent zeros. Block devices always can: the kernel writes them.
    pub(super) fn writes_zeroes(&self) -> bool {
        !self.read_only && (self.discards || self.kind == Kind::BlockDevice)
    }

    /// Whether it may do without sectors that are to be zero.
    pub(super) fn zeroes_by_discarding(&self) -> bool {
        self.discards && self.kind == Kind::File
    }

    /// Tries what changes nothing: to discard what is behind the end of a file, or, of a block device, half a sector,
    /// which is refused, but only by those that can discard.
    fn can_discard(&self, bytes: u64) -> bool {
        match self.kind {
            Kind::File => self.punch(bytes..bytes.saturating_add(SECTOR)).is_ok(),
            Kind::BlockDevice => self.range_ioctl::<BLKDISCARD>(1..SECTOR) == Err(Errno::INVAL),
        }
    }

    /// Moves all bytes of `segments` to or from the bytes from `offset` on, by as many calls as it takes.
    pub(super) fn transfer(
        &self,
        direction: Direction,
        mut segments: Segments<'_>,
        mut offset: u64,
    ) -> io::Result<()> {
        while !segments.is_empty() {
            match self.transfer_once(direction, &Vectors::of([&segments]), offset) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(moved) => {
                    segments.advance(moved);
                    offset += moved as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves what one call moves.
    pub(super) fn transfer_once(
        &self,
        direction: Direction,
        vectors: &Vectors<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        let count = libc::c_int::try_from(vectors.count()).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let (file, vectors) = (self.file.as_raw_fd(), vectors.as_ptr());
        // SAFETY: The vectors are stretches of the guest's memory, which is mapped as long as they live, and to which
        // nobody holds a reference: that the guest sees it change is what it asked for, and that it may change the bytes
        // that are written is its own loss, the kernel copies them without looking at them.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::preadv(file, vectors, count, offset),
                Direction::Write => libc::pwritev(file, vectors, count, offset),
            }
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    /// Whether several transfers of this direction gain by being under way at once. The kernel gives writes to a file's
    /// page cache to a thread of its own, one after the other, unless the file system says that it will not wait for
    /// anything; being handed to and fro costs more than the writes.
    pub(super) fn gains_at_once(&self, direction: Direction) -> bool {
        direction == Direction::Read || self.kind == Kind::BlockDevice
    }

    /// Waits until all that was written is on the disk.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Does without `bytes`. What they are afterwards nobody may ask.
    pub(super) fn discard(&self, bytes: Range<u64>) -> io::Result<()> {
        match self.kind {
            Kind::File => self.punch(bytes)?,
            Kind::BlockDevice => self.range_ioctl::<BLKDISCARD>(bytes)?,
        }
        Ok(())
    }

    /// Makes `bytes` zero, and does without them if it may and can.
    pub(super) fn write_zeroes(&self, bytes: Range<u64>, may_discard: bool) -> io::Result<()> {
        match self.kind {
            Kind::BlockDevice => self.range_ioctl::<BLKZEROOUT>(bytes)?,
            Kind::File if may_discard => self.punch(bytes)?,
            Kind::File => {
                let (start, length) = (bytes.start, bytes.end - bytes.start);
                let zeroed = fallocate(
                    &self.file,
                    FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                    start,
                    length,
                );
                match zeroed {
                    // A file system that cannot keep the room (tmpfs) can give zeros all the same.
                    Err(Errno::OPNOTSUPP) => self.punch(bytes)?,
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn punch(&self, bytes: Range<u64>) -> Result<(), Errno> {
        fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            bytes.start,
            bytes.end - bytes.start,
        )
    }

    fn range_ioctl<const OPCODE: Opcode>(&self, bytes: Range<u64>) -> Result<(), Errno> {
        // SAFETY: Both requests read two 64-bit numbers where the argument points and change no memory.
        unsafe {
            ioctl(
                &self.file,
                Setter::<OPCODE, [u64; 2]>::new([bytes.start, bytes.end - bytes.start]),
            )
        }
    }
}

impl AsRawFd for Backing {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn kind(metadata: &Metadata) -> Result<Kind, BackingError> {
    let kind = metadata.file_type();
    match (kind.is_file(), kind.is_block_device()) {
        (true, _) => Ok(Kind::File),
        (_, true) => Ok(Kind::BlockDevice),
        _ => Err(BackingError::Kind),
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the disk.
    Read,
    /// To the disk.
    Write,
}

/// Where the buffers of requests are, as system calls are told it.
pub(super) struct Vectors<'m> {
    vectors: Vec<libc::iovec>,
    /// What keeps the memory where it is.
    _guards: Vec<PtrGuardMut>,
    _memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> Vectors<'m> {
    /// Those of all `segments`, one after the other.
    pub(super) fn of<'s>(segments: impl IntoIterator<Item = &'s Segments<'m>>) -> Self
    where
        'm: 's,
    {
        let (vectors, guards) = segments
            .into_iter()
            .flat_map(Segments::slices)
            .map(|slice| {
                let guard = slice.ptr_guard_mut();
                let vector = libc::iovec {
                    iov_base: guard.as_ptr().cast(),
                    iov_len: slice.len(),
                };
                (vector, guard)
            })
            .unzip();
        Self {
            vectors,
            _guards: guards,
            _memory: PhantomData,
        }
    }

    pub(super) fn as_ptr(&self) -> *const libc::iovec {
        self.vectors.as_ptr()
    }

    /// How many there are: of one request no more than the guest's queue has descriptors, of which there are fewer than
    /// the kernel takes (`IOV_MAX`).
    pub(super) fn count(&self) -> u32 {
        self.vectors.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn disk(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    fn refusal(path: &Path, read_only: bool) -> String {
        Backing::open(path, read_only).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_a_disk_of_its_sectors() {
        let file = disk(5 * SECTOR);
        let backing = Backing::open(file.path(), false).unwrap();
        assert_eq!((backing.sectors(), backing.logical_block()), (5, 512));
        assert!(backing.physical_block() >= 512);
    }

    #[test]
    fn what_is_no_disk_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            refusal(directory.path(), true),
            "it is neither a file nor a block device"
        );
        // Opening it would wait for ever.
        let pipe = directory.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(refusal(&pipe, true), "it is neither a file nor a block device");
        assert_eq!(
            refusal(Path::new("/dev/null"), false),
            "it is neither a file nor a block device"
        );
        assert_eq!(
            refusal(&directory.path().join("none"), false),
            "opening it for reading and writing"
        );
        assert_eq!(
            refusal(&directory.path().join("none"), true),
            "opening it for reading"
        );
        for bytes in [0, 1, 511, 513, 1025] {
            let message =
                format!("it has {bytes} bytes: a disk has a multiple of 512, and at least that many");
            assert_eq!(refusal(disk(bytes).path(), false), message);
        }
    }

    #[test]
    fn readers_share_a_disk_and_a_writer_is_alone() {
        let busy = "another machine has it open; only machines that all have it read-only can share a disk";
        let file = disk(SECTOR);
        let readers = [true, true].map(|read_only| Backing::open(file.path(), read_only).unwrap());
        assert_eq!(refusal(file.path(), false), busy);
        drop(readers);
        let writer = Backing::open(file.path(), false).unwrap();
        assert_eq!(refusal(file.path(), false), busy);
        assert_eq!(refusal(file.path(), true), busy);
        drop(writer);
        Backing::open(file.path(), true).unwrap();
    }

    #[test]
    fn asking_what_a_disk_can_do_changes_neither_its_size_nor_its_bytes() {
        let file = disk(0);
        let bytes: Vec<u8> = (0..8192).map(|index| (index * 7 / 3) as u8).collect();
        file.as_file().write_all_at(&bytes, 0).unwrap();
        let backing = Backing::open(file.path(), false).unwrap();
        assert!(
            backing.discards(),
            "this file system cannot punch holes, which the tests need"
        );
        assert!(backing.writes_zeroes() && backing.zeroes_by_discarding());
        assert_eq!(fs::read(file.path()).unwrap(), bytes);
    }

    #[test]
    fn what_is_read_only_promises_nothing_that_writes() {
        let file = disk(SECTOR);
        let backing = Backing::open(file.path(), true).unwrap();
        assert!(backing.is_read_only());
        assert!(!backing.discards() && !backing.writes_zeroes());
    }

    #[test]
    fn a_hole_takes_no_room_and_zeroes_keep_what_is_around_them() {
        let file = disk(0);
        file.as_file().write_all_at(&[0xa5; 1 << 20], 0).unwrap();
        let backing = Backing::open(file.path(), false).unwrap();
        let before = file.as_file().metadata().unwrap().blocks();
        backing.discard(0..1 << 19).unwrap();
        backing.write_zeroes((1 << 19)..(1 << 19) + 512, false).unwrap();
        backing
            .write_zeroes((1 << 19) + 1024..(1 << 19) + 1536, true)
            .unwrap();
        backing.flush().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 20);
        assert!(
            metadata.blocks() <= before / 2 + 16,
            "{} of {before}",
            metadata.blocks()
        );
        let bytes = fs::read(file.path()).unwrap();
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        assert!(sectors[..1024].iter().all(|byte| *byte == 0));
        assert_eq!(sectors[1024..1028], [0, 0xa5, 0, 0xa5]);
        assert!(bytes[(1 << 19) + 1536..].iter().all(|byte| *byte == 0xa5));
    }

    /// A block device that is `file`, and with it the handle that keeps it alive: it is gone when all are closed.
    /// `None` where there are no loop devices to be had.
    fn loop_device(file: &File) -> Option<(std::path::PathBuf, File)> {
        const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
        const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
        const LO_FLAGS_AUTOCLEAR: u32 = 4;
        let control = File::options()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .ok()?;
        // Another process may be faster with the one that is free.
        for _ in 0..10 {
            // SAFETY: The request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let path = std::path::PathBuf::from(format!("/dev/loop{number}"));
            let device = File::options().read(true).write(true).open(&path).ok()?;
            // `struct loop_config`: the descriptor first, the flags at byte 60.
            let mut config = [0_u32; 76];
            config[0] = file.as_raw_fd() as u32;
            config[15] = LO_FLAGS_AUTOCLEAR;
            // SAFETY: The request reads a structure of that size.
            if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) } == 0 {
                return Some((path, device));
            }
        }
        None
    }

    #[test]
    fn a_block_device_is_a_disk_too() {
        let file = disk(0);
        file.as_file().write_all_at(&[0xa5; 1 << 20], 0).unwrap();
        let Some((path, _keeper)) = loop_device(file.as_file()) else {
            eprintln!("SKIPPED: this host has no loop device for the test; nothing was tested");
            return;
        };
        let backing = Backing::open(&path, false).unwrap();
        assert_eq!((backing.sectors(), backing.logical_block()), (2048, 512));
        assert!(backing.discards() && backing.writes_zeroes() && !backing.zeroes_by_discarding());
        assert_eq!(refusal(&path, true), BackingError::Busy.to_string());
        let bytes_of = |sectors: Range<u64>| sectors.start * SECTOR..sectors.end * SECTOR;
        backing.discard(bytes_of(8..1032)).unwrap();
        backing.write_zeroes(bytes_of(1040..1041), false).unwrap();
        backing.write_zeroes(bytes_of(1042..1048), true).unwrap();
        backing.flush().unwrap();
        let bytes = fs::read(file.path()).unwrap();
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            let gone = matches!(sector, 8..1032 | 1040 | 1042..1048);
            let expected = if gone { 0 } else { 0xa5 };
            assert!(bytes.iter().all(|byte| *byte == expected), "sector {sector}");
        }
        let error = backing.discard(bytes_of(2047..2049)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
