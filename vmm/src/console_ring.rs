//! The last part of the guest's console, in a file that outlives the VMM.
//!
//! The file is a header and a ring of bytes, mapped shared: what is appended is in the page cache at once, so that
//! another process reads it while the VMM runs or after it was killed. One process writes, and the guest decides what;
//! a reader believes nothing in the file.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `BHCONSOL` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | capacity of the ring in bytes |
//! | 16 | 8 | bytes ever appended; the next one goes to this number modulo the capacity |
//! | 24 | 8 | bytes ever appended or being appended: their places hold neither old nor new bytes for certain |
//! | 64 | capacity | the ring |
//!
//! Numbers are little-endian.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, PoisonError};

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileMemoryError};

const MAGIC: [u8; 8] = *b"BHCONSOL";
const VERSION: u32 = 1;
const APPENDED_OFFSET: usize = 16;
const BEGUN_OFFSET: usize = 24;
const HEADER_SIZE: usize = 64;
/// The greatest ring a reader takes into memory.
const MAX_CAPACITY: u32 = 16 << 20;

/// Why a console ring cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleRingError {
    /// The capacity is zero or more than 16 MiB.
    #[error("a console ring of {0} bytes is outside 1 to {MAX_CAPACITY}")]
    Capacity(u32),
    /// The file could not be created, sized or read.
    #[error("{doing} the console ring {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file could not be mapped.
    #[error("mapping the console ring {}", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: MmapRegionError,
    },
    /// The new mapping could not be written.
    #[error("writing the header of the console ring {}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: VolatileMemoryError,
    },
    /// The file is something else, or was damaged.
    #[error("{} is no console ring: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The writer's side of a console ring.
#[derive(Debug)]
pub struct ConsoleRing {
    region: MmapRegion,
    capacity: usize,
    appended: Mutex<u64>,
}

impl ConsoleRing {
    /// Makes a new, empty ring of `capacity` bytes at `path`, readable by its owner only.
    ///
    /// # Errors
    /// When the capacity is outside 1 to 16 MiB, `path` exists, or the file cannot be written or mapped.
    pub fn create(path: &Path, capacity: u32) -> Result<Self, ConsoleRingError> {
        if capacity == 0 || capacity > MAX_CAPACITY {
            return Err(ConsoleRingError::Capacity(capacity));
        }
        let failed = |doing| {
            move |source| ConsoleRingError::File {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed("creating"))?;
        let capacity_in_memory = capacity as usize;
        let size = HEADER_SIZE + capacity_in_memory;
        file.set_len(size as u64).map_err(failed("sizing"))?;

        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .with_file_offset(FileOffset::new(file, 0))
            .build()
            .map_err(|source| ConsoleRingError::Map {
                path: path.to_owned(),
                source,
            })?;
        let mut header = [0; APPENDED_OFFSET];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..].copy_from_slice(&capacity.to_le_bytes());
        region
            .as_volatile_slice()
            .write_slice(&header, 0)
            .map_err(|source| ConsoleRingError::Header {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            region,
            capacity: capacity_in_memory,
            appended: Mutex::new(0),
        })
    }

    /// Appends `bytes`, over the oldest ones once the ring is full.
    pub fn append(&self, bytes: &[u8]) {
        let mut appended = self.appended.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = bytes
            .get(bytes.len().saturating_sub(self.capacity)..)
            .unwrap_or_default();
        let skipped = (bytes.len() - kept.len()) as u64;
        let start = self.position(appended.wrapping_add(skipped));
        let (first, second) = kept.split_at(kept.len().min(self.capacity - start));

        let memory = self.region.as_volatile_slice();
        *appended = appended.wrapping_add(bytes.len() as u64);
        // A reader counts only bytes that are there, and learns which ones are about to go. Both parts lie within the
        // ring, and the counters within the header, so nothing here can fail.
        let _ = memory.store(appended.to_le(), BEGUN_OFFSET, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let _ = memory.write_slice(first, HEADER_SIZE + start);
        let _ = memory.write_slice(second, HEADER_SIZE);
        let _ = memory.store(appended.to_le(), APPENDED_OFFSET, Ordering::SeqCst);
    }

    /// What the ring holds, oldest byte first.
    pub fn tail(&self) -> Vec<u8> {
        let appended = self.appended.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ring = vec![0; self.capacity];
        // The ring lies within the mapping.
        let _ = self.region.as_volatile_slice().read_slice(&mut ring, HEADER_SIZE);
        unroll(&ring, *appended)
    }

    /// The last `count` lines the ring holds, as [`last_lines`] gives them.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        last_lines(&self.tail(), count)
    }

    /// Reads the ring at `path`, oldest byte first; its writer may be running or gone. Bytes that the writer overwrites
    /// meanwhile are left out.
    ///
    /// # Errors
    /// When `path` cannot be read, is a symbolic link, or is no console ring of this version.
    pub fn read_file(path: &Path) -> Result<Vec<u8>, ConsoleRingError> {
        let failed = |doing| {
            move |source| ConsoleRingError::File {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(failed("opening"))?;
        let mut header = [0; HEADER_SIZE];
        file.read_exact_at(&mut header, 0).map_err(failed("reading"))?;
        let capacity = check_header(&header).map_err(|reason| ConsoleRingError::Malformed {
            path: path.to_owned(),
            reason,
        })?;

        let appended = read_counter(&file, APPENDED_OFFSET).map_err(failed("reading"))?;
        let mut ring = vec![0; capacity];
        file.read_exact_at(&mut ring, HEADER_SIZE as u64)
            .map_err(failed("reading"))?;
        let begun_since = read_counter(&file, BEGUN_OFFSET)
            .map_err(failed("reading"))?
            .saturating_sub(appended);

        let mut bytes = unroll(&ring, appended);
        // Where the ring was full, the oldest bytes are the ones the writer has been at.
        let room = capacity - bytes.len();
        let torn = usize::try_from(begun_since)
            .unwrap_or(usize::MAX)
            .saturating_sub(room)
            .min(bytes.len());
        bytes.drain(..torn);
        Ok(bytes)
    }

    fn position(&self, appended: u64) -> usize {
        (appended % self.capacity as u64) as usize
    }
}

/// The last `count` lines of console output, fit to be shown: carriage returns are dropped and other control characters
/// and invalid UTF-8 are replaced, because a guest chose them and a terminal would obey them.
pub fn last_lines(bytes: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines
        .iter()
        .skip(lines.len().saturating_sub(count))
        .map(|line| {
            line.chars()
                .filter(|character| *character != '\r')
                .map(|character| match character {
                    '\t' => character,
                    _ if character.is_control() => char::REPLACEMENT_CHARACTER,
                    _ => character,
                })
                .collect()
        })
        .collect()
}

fn read_counter(file: &File, offset: usize) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, offset as u64)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The capacity that a header states, if it is a header.
fn check_header(header: &[u8; HEADER_SIZE]) -> Result<usize, &'static str> {
    let field = |offset: usize| {
        let bytes = header
            .get(offset..offset + 4)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    if !header.starts_with(&MAGIC) {
        return Err("its first bytes are not a console ring's");
    }
    if field(8) != VERSION {
        return Err("it has another version");
    }
    let capacity = field(12);
    if capacity == 0 || capacity > MAX_CAPACITY {
        return Err("its capacity is out of range");
    }
    Ok(capacity as usize)
}

/// Puts the bytes of a ring in order.
fn unroll(ring: &[u8], appended: u64) -> Vec<u8> {
    let capacity = ring.len() as u64;
    if appended < capacity {
        return ring.get(..appended as usize).unwrap_or_default().to_vec();
    }
    let (newer, older) = ring.split_at((appended % capacity) as usize);
    [older, newer].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(capacity: u32) -> (tempfile::TempDir, PathBuf, ConsoleRing) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let ring = ConsoleRing::create(&path, capacity).unwrap();
        (directory, path, ring)
    }

    #[test]
    fn what_is_appended_is_read_by_both_sides() {
        let (_directory, path, ring) = ring(64);
        assert!(ring.tail().is_empty());
        ring.append(b"one\n");
        ring.append(b"two\n");
        assert_eq!(ring.tail(), b"one\ntwo\n");
        assert_eq!(ConsoleRing::read_file(&path).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn the_file_is_readable_after_the_writer_is_gone() {
        let (_directory, path, ring) = ring(64);
        ring.append(b"last words");
        drop(ring);
        assert_eq!(ConsoleRing::read_file(&path).unwrap(), b"last words");
    }

    #[test]
    fn a_full_ring_keeps_the_newest_bytes_in_order() {
        let (_directory, path, ring) = ring(10);
        for chunk in [&b"abcdef"[..], b"ghij", b"klm", b"", b"nopqrstuvwxyz0123456789"] {
            ring.append(chunk);
        }
        assert_eq!(ring.tail(), b"0123456789");
        ring.append(b"abc");
        assert_eq!(ring.tail(), b"3456789abc");
        assert_eq!(ConsoleRing::read_file(&path).unwrap(), b"3456789abc");
    }

    #[test]
    fn a_ring_filled_exactly_is_whole() {
        let (_directory, _path, ring) = ring(4);
        ring.append(b"abcd");
        assert_eq!(ring.tail(), b"abcd");
    }

    #[test]
    fn capacities_out_of_range_and_existing_files_are_refused() {
        let (directory, path, _ring) = ring(10);
        let other = directory.path().join("other");
        for capacity in [0, MAX_CAPACITY + 1] {
            let error = ConsoleRing::create(&other, capacity).unwrap_err();
            assert!(matches!(error, ConsoleRingError::Capacity(refused) if refused == capacity));
        }
        assert!(!other.exists());
        let error = ConsoleRing::create(&path, 10).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("creating the console ring {}", path.display())
        );
    }

    #[test]
    fn files_that_are_no_rings_are_refused() {
        let (directory, path, _ring) = ring(10);
        let good = std::fs::read(&path).unwrap();
        let damaged = |offset: usize, bytes: &[u8]| {
            let mut file = good.clone();
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
            file
        };
        for (content, reason) in [
            (b"short".to_vec(), "reading"),
            (damaged(0, b"X"), "first bytes"),
            (damaged(8, &[2]), "another version"),
            (damaged(12, &[0, 0, 0, 0]), "capacity"),
            (damaged(12, &[0xff; 4]), "capacity"),
            (damaged(12, &[11, 0, 0, 0]), "reading"),
        ] {
            let path = directory.path().join("bad");
            std::fs::write(&path, content).unwrap();
            let message = ConsoleRing::read_file(&path).unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
        let counted = directory.path().join("counted");
        std::fs::write(&counted, damaged(16, &[0xff; 8])).unwrap();
        assert_eq!(ConsoleRing::read_file(&counted).unwrap().len(), 10);
        std::fs::write(&counted, damaged(24, &[0xff; 8])).unwrap();
        assert!(ConsoleRing::read_file(&counted).unwrap().is_empty());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let (directory, path, _ring) = ring(10);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(ConsoleRing::read_file(&link).is_err());
    }

    #[test]
    fn a_reader_beside_a_busy_writer_sees_a_run_without_gaps() {
        let (_directory, path, ring) = ring(1 << 12);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in 0..20_000u32 {
                    ring.append(&value.to_le_bytes());
                }
            });
            for _ in 0..200 {
                let bytes = ConsoleRing::read_file(&path).unwrap();
                let whole = &bytes[bytes.len() % 4..];
                let values: Vec<u32> = whole
                    .chunks(4)
                    .map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap()))
                    .collect();
                assert!(values.windows(2).all(|pair| pair[1] == pair[0] + 1));
            }
        });
    }

    #[test]
    fn last_lines_are_disarmed() {
        let bytes = b"first\nsecond\r\n\x1b[31mred\x07\tend\xff\n";
        assert_eq!(
            last_lines(bytes, 2),
            ["second", "\u{fffd}[31mred\u{fffd}\tend\u{fffd}"]
        );
        assert_eq!(last_lines(bytes, 0), Vec::<String>::new());
        assert_eq!(last_lines(b"", 3), Vec::<String>::new());
        assert_eq!(last_lines(b"\n", 9), [""]);
    }
}
