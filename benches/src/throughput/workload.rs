//! What is done to a device for some seconds, by this program itself, be it in a guest or in a container on the host's
//! kernel: the same code behind both walls.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// The size of the disk, and of the file that is streamed.
pub(crate) const DISK_BYTES: u64 = 128 << 20;
const FILE_BYTES: u64 = 4 << 20;
/// Of a request in order, and of one that is not.
const LARGE: usize = 128 << 10;
const SMALL: usize = 4096;
/// Files that exist at once while they are made, looked at and removed.
const FILES: usize = 50;
/// Where the host takes, and where it gives, whatever comes.
pub(crate) const SINK_PORT: u16 = 5001;
pub(crate) const SOURCE_PORT: u16 = 5002;

/// All of them, in the order in which they are done.
pub(crate) const ALL: [Workload; 9] = [
    Workload::DiskRead,
    Workload::DiskWrite,
    Workload::DiskRandomRead,
    Workload::DiskRandomWrite,
    Workload::Files,
    Workload::FileWrite,
    Workload::FileRead,
    Workload::NetworkSend,
    Workload::NetworkReceive,
];

/// One kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workload {
    DiskRead,
    DiskWrite,
    DiskRandomRead,
    DiskRandomWrite,
    Files,
    FileWrite,
    FileRead,
    NetworkSend,
    NetworkReceive,
}

/// What it works on.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// A disk, or a file in place of one.
    pub(crate) disk: &'a Path,
    /// Whether the disk is asked each time, past the page cache of whoever asks.
    pub(crate) direct: bool,
    /// A folder.
    pub(crate) folder: &'a Path,
    /// The host's address.
    pub(crate) host: &'a str,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Done {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
    /// What the program itself took of a processor, its kernel's work for it included.
    pub(crate) processor_time: Duration,
}

impl Workload {
    /// Its word, the same on both sides of the wall.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::DiskRead => "disk-read",
            Self::DiskWrite => "disk-write",
            Self::DiskRandomRead => "disk-random-read",
            Self::DiskRandomWrite => "disk-random-write",
            Self::Files => "files",
            Self::FileWrite => "file-write",
            Self::FileRead => "file-read",
            Self::NetworkSend => "network-send",
            Self::NetworkReceive => "network-receive",
        }
    }

    /// What it is, for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::DiskRead => "disk, read in order, 128 KiB each",
            Self::DiskWrite => "disk, write in order, 128 KiB each",
            Self::DiskRandomRead => "disk, read anywhere, 4 KiB each",
            Self::DiskRandomWrite => "disk, write anywhere, 4 KiB each",
            Self::Files => "files made, looked at, removed",
            Self::FileWrite => "file, write, 128 KiB each",
            Self::FileRead => "file, read, 128 KiB each",
            Self::NetworkSend => "TCP to the host",
            Self::NetworkReceive => "TCP from the host",
        }
    }

    /// Whether its operations are what is counted, and not its bytes.
    pub(crate) fn counts_operations(self) -> bool {
        matches!(self, Self::DiskRandomRead | Self::DiskRandomWrite | Self::Files)
    }

    /// The one of this word.
    pub(crate) fn of(word: &str) -> Option<Self> {
        ALL.into_iter().find(|workload| workload.word() == word)
    }

    /// Makes what it needs and is not measured.
    pub(crate) fn prepare(self, place: &Place<'_>) -> anyhow::Result<()> {
        if self == Self::FileRead {
            fs::write(streamed(place.folder), vec![0xc3; FILE_BYTES as usize])?;
        }
        Ok(())
    }

    /// Does it until `duration` has passed; what it needs is there.
    pub(crate) fn perform(self, place: &Place<'_>, duration: Duration) -> anyhow::Result<Done> {
        match self {
            Self::DiskRead | Self::DiskWrite => in_order(self, place, duration),
            Self::DiskRandomRead | Self::DiskRandomWrite => anywhere(self, place, duration),
            Self::Files => files(place.folder, duration),
            Self::FileWrite | Self::FileRead => stream(self, place.folder, duration),
            Self::NetworkSend => send(place.host, duration),
            Self::NetworkReceive => receive(place.host, duration),
        }
    }
}

/// Counts what is done, from its making on.
struct Clock {
    begun: Instant,
    processor: Duration,
    duration: Duration,
    done: Done,
}

impl Clock {
    fn start(duration: Duration) -> Self {
        Self {
            begun: Instant::now(),
            processor: processor_time(),
            duration,
            done: Done::default(),
        }
    }

    /// Counts an operation on so many bytes, and tells whether there is time for another.
    fn count(&mut self, bytes: usize) -> bool {
        self.done.operations += 1;
        self.done.bytes += bytes as u64;
        self.begun.elapsed() < self.duration
    }

    fn stop(self) -> Done {
        Done {
            time: self.begun.elapsed(),
            processor_time: processor_time().saturating_sub(self.processor),
            ..self.done
        }
    }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

/// A buffer that a disk can be given directly.
#[repr(C, align(4096))]
struct Aligned([u8; LARGE]);

fn open_disk(workload: Workload, place: &Place<'_>) -> anyhow::Result<File> {
    let writes = matches!(workload, Workload::DiskWrite | Workload::DiskRandomWrite);
    let flags = if place.direct { libc::O_DIRECT } else { 0 };
    let mut options = OpenOptions::new();
    options.read(!writes).write(writes).custom_flags(flags);
    options
        .open(place.disk)
        .with_context(|| format!("opening the disk {}", place.disk.display()))
}

fn in_order(workload: Workload, place: &Place<'_>, duration: Duration) -> anyhow::Result<Done> {
    let mut disk = open_disk(workload, place)?;
    let mut buffer = Box::new(Aligned([0xa5; LARGE]));
    let mut clock = Clock::start(duration);
    let mut at = 0;
    loop {
        if workload == Workload::DiskRead {
            disk.read_exact(&mut buffer.0)?;
        } else {
            disk.write_all(&buffer.0)?;
        }
        at += LARGE as u64;
        if at >= DISK_BYTES {
            at = disk.seek(SeekFrom::Start(0))?;
        }
        if !clock.count(LARGE) {
            return Ok(clock.stop());
        }
    }
}

fn anywhere(workload: Workload, place: &Place<'_>, duration: Duration) -> anyhow::Result<Done> {
    let disk = open_disk(workload, place)?;
    let mut buffer = Box::new(Aligned([0x5a; LARGE]));
    let (small, _) = buffer.0.split_at_mut(SMALL);
    let mut clock = Clock::start(duration);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    loop {
        // xorshift
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let at = random % (DISK_BYTES / SMALL as u64) * SMALL as u64;
        if workload == Workload::DiskRandomRead {
            disk.read_exact_at(small, at)?;
        } else {
            disk.write_all_at(small, at)?;
        }
        if !clock.count(SMALL) {
            return Ok(clock.stop());
        }
    }
}

fn files(folder: &Path, duration: Duration) -> anyhow::Result<Done> {
    let paths: Vec<_> = (0..FILES)
        .map(|number| folder.join(format!("file-{number}")))
        .collect();
    let mut clock = Clock::start(duration);
    loop {
        let mut has_time = true;
        for path in &paths {
            OpenOptions::new().write(true).create_new(true).open(path)?;
            clock.count(0);
        }
        for path in &paths {
            fs::metadata(path)?;
            clock.count(0);
        }
        for path in &paths {
            fs::remove_file(path)?;
            has_time = clock.count(0);
        }
        if !has_time {
            return Ok(clock.stop());
        }
    }
}

fn streamed(folder: &Path) -> PathBuf {
    folder.join("streamed")
}

/// Opens the file for each pass, which is when what the guest keeps of it is forgotten.
fn stream(workload: Workload, folder: &Path, duration: Duration) -> anyhow::Result<Done> {
    let path = streamed(folder);
    let mut buffer = Box::new(Aligned([0xc3; LARGE]));
    let mut clock = Clock::start(duration);
    loop {
        let mut file = match workload {
            Workload::FileRead => File::open(&path)?,
            _ => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?,
        };
        for _ in 0..FILE_BYTES / LARGE as u64 {
            match workload {
                Workload::FileRead => file.read_exact(&mut buffer.0)?,
                _ => file.write_all(&buffer.0)?,
            }
            if !clock.count(LARGE) {
                return Ok(clock.stop());
            }
        }
    }
}

fn send(host: &str, duration: Duration) -> anyhow::Result<Done> {
    let mut stream = TcpStream::connect((host, SINK_PORT)).context("connecting to the host")?;
    let buffer = vec![0xa5; LARGE];
    let mut clock = Clock::start(duration);
    loop {
        stream.write_all(&buffer)?;
        if !clock.count(LARGE) {
            return Ok(clock.stop());
        }
    }
}

fn receive(host: &str, duration: Duration) -> anyhow::Result<Done> {
    let mut stream = TcpStream::connect((host, SOURCE_PORT)).context("connecting to the host")?;
    let mut buffer = vec![0; LARGE];
    let mut clock = Clock::start(duration);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            bail!("the host ended the connection");
        }
        if !clock.count(count) {
            return Ok(clock.stop());
        }
    }
}

impl Done {
    /// The line that tells it.
    pub(crate) fn to_line(self, workload: Workload) -> String {
        format!(
            "bench end {} {} {} {} {}",
            workload.word(),
            self.operations,
            self.bytes,
            self.time.as_nanos(),
            self.processor_time.as_nanos()
        )
    }

    /// What a line tells, if it is such a line.
    pub(crate) fn from_line(line: &str) -> Option<(Workload, Self)> {
        let mut words = line.trim_end().strip_prefix("bench end ")?.split(' ');
        let workload = Workload::of(words.next()?)?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let done = Self {
            operations: number()?,
            bytes: number()?,
            time: Duration::from_nanos(number()?),
            processor_time: Duration::from_nanos(number()?),
        };
        Some((workload, done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_survives_its_line() {
        let done = Done {
            operations: 3,
            bytes: 4096,
            time: Duration::from_millis(5),
            processor_time: Duration::from_micros(7),
        };
        for workload in ALL {
            let (read, again) = Done::from_line(&done.to_line(workload)).unwrap();
            assert_eq!((read, again.operations, again.bytes), (workload, 3, 4096));
            assert_eq!(
                (again.time, again.processor_time),
                (done.time, done.processor_time)
            );
        }
        assert!(Done::from_line("bench end nothing 1 2 3 4").is_none());
    }

    #[test]
    fn every_workload_on_files_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
        let place = Place {
            disk: &disk,
            direct: false,
            folder: directory.path(),
            host: "",
        };
        for workload in &ALL[..7] {
            workload.prepare(&place).unwrap();
            let done = workload.perform(&place, Duration::from_millis(2)).unwrap();
            assert!(done.operations > 0, "{workload:?}");
        }
    }
}
