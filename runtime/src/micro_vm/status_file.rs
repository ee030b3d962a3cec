//! A machine's account of itself: the file that its VMM's standard output is. It outlives the VMM and whoever started
//! it, and any number of processes can follow it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use vmm::status::Event;

/// As much as is read of it, in bytes: a few lines, the last of which may quote the guest's console.
const LARGEST: u64 = 1 << 20;

/// The events of one machine, from its first on.
#[derive(Debug)]
pub struct StatusFile {
    file: File,
    /// Read, and not yet a whole line.
    unfinished: Vec<u8>,
    left: u64,
    changes: AsyncFd<OwnedFd>,
}

impl StatusFile {
    /// Opens the file of a machine that may run.
    ///
    /// # Errors
    /// When it is not there or cannot be watched.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, path, WatchFlags::MODIFY)?;
        // SAFETY: the descriptor is owned by the registration and so open for as long as it lasts.
        let changes = unsafe { AsyncFd::register(inotify) }?;
        Ok(Self {
            file,
            unfinished: Vec::new(),
            left: LARGEST,
            changes,
        })
    }

    /// Waits until the file has grown since the last call.
    ///
    /// # Errors
    /// When it cannot be watched any more.
    pub async fn grown(&self) -> io::Result<()> {
        let mut ready = self.changes.readable().await?;
        let mut records = [0; 4096];
        // What they say is known; only that there were some matters.
        while let Ok(1..) = rustix::io::read(self.changes.get_ref(), &mut records) {}
        ready.clear_ready();
        Ok(())
    }

    /// The events that have been added since the last call.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_events(&mut self) -> io::Result<Vec<Event>> {
        let length = (&mut self.file)
            .take(self.left)
            .read_to_end(&mut self.unfinished)?;
        self.left = self.left.saturating_sub(length as u64);
        let whole = self
            .unfinished
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |last| last + 1);
        let lines: Vec<u8> = self.unfinished.drain(..whole).collect();
        Ok(events_of(&lines))
    }
}

/// The events of a machine that has ended.
///
/// # Errors
/// When the file is not there or cannot be read.
pub fn read_events(path: &Path) -> io::Result<Vec<Event>> {
    let mut text = Vec::new();
    File::open(path)?.take(LARGEST).read_to_end(&mut text)?;
    Ok(events_of(&text))
}

/// A line that is none is another version's, and passed over.
fn events_of(lines: &[u8]) -> Vec<Event> {
    lines
        .split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use vmm::status::Phase;

    use super::*;

    const PHASE: &str = "{\"event\":\"phase\",\"name\":\"files-opened\",\"microseconds\":1}\n";

    fn is_files_opened(event: &Event) -> bool {
        matches!(
            event,
            Event::Phase {
                name: Phase::FilesOpened,
                ..
            }
        )
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_added_is_seen_when_its_line_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(PHASE.as_bytes()).unwrap();
        let mut status = StatusFile::open(&path).unwrap();
        assert!(matches!(&status.read_events().unwrap()[..], [event] if is_files_opened(event)));
        assert!(status.read_events().unwrap().is_empty());

        let (first, second) = PHASE.split_at(10);
        for (part, events) in [(first, 0), (second, 1)] {
            writer.write_all(part.as_bytes()).unwrap();
            tokio::time::timeout(Duration::from_secs(10), status.grown())
                .await
                .unwrap()
                .unwrap();
            assert_eq!(status.read_events().unwrap().len(), events);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_flood_is_not_read_for_ever_and_strange_lines_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status");
        let mut text = format!("strange\n{PHASE}").into_bytes();
        text.resize(2 << 20, b'x');
        std::fs::write(&path, text).unwrap();
        let mut status = StatusFile::open(&path).unwrap();
        assert_eq!(status.read_events().unwrap().len(), 1);
        assert!(status.unfinished.len() as u64 <= LARGEST);
    }
}
