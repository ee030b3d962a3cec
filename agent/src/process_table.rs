//! What `/proc` tells of a process (proc(5)).

use std::fs::File;
use std::io::Read;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The longest command that is told, in bytes.
const LONGEST_COMMAND: usize = 4096;

/// As much of a file is read, in bytes; the kernel's own are shorter.
const LONGEST_FILE: usize = 4096;

const SECOND: i64 = 1_000_000_000;

/// The major number of the terminals of pty(7).
const PTS_MAJOR: u32 = 136;

/// What `ps` shows of a process. Times are in the kernel's ticks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProcessEntry {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// The effective user id.
    pub(crate) uid: u32,
    /// Since the machine's boot.
    pub(crate) started_at: u64,
    /// In user and kernel mode together.
    pub(crate) cpu_time: u64,
    /// As in `/dev`; empty without one.
    pub(crate) terminal: String,
    /// The name that the kernel has for it, at most 15 bytes of the process's own choice.
    pub(crate) name: String,
    /// Its arguments, if it has any: at most [`LONGEST_COMMAND`] bytes.
    pub(crate) command: Option<String>,
}

impl ProcessEntry {
    /// None when there is no such process any more.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let file = |name: &str| read_some(&format!("/proc/{pid}/{name}"));
        let mut entry = Self::parse_stat(&file("stat")?)?;
        entry.uid = parse_uid(&file("status")?)?;
        entry.command = command(&file("cmdline")?);
        Some(entry)
    }

    /// The second field is the name in parentheses, which may itself hold spaces and parentheses: the last one closes
    /// it.
    fn parse_stat(line: &[u8]) -> Option<Self> {
        let opens = line.iter().position(|&byte| byte == b'(')?;
        let closes = line.iter().rposition(|&byte| byte == b')')?;
        let pid = std::str::from_utf8(line.get(..opens)?)
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let name = String::from_utf8_lossy(line.get(opens + 1..closes)?).into_owned();
        let rest = std::str::from_utf8(line.get(closes + 1..)?).ok()?;
        // The first of them is field 3.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = |number| field(number)?.parse::<u64>().ok();
        Some(Self {
            pid,
            parent: field(4)?.parse().ok()?,
            uid: 0,
            started_at: ticks(22)?,
            cpu_time: ticks(14)?.saturating_add(ticks(15)?),
            terminal: terminal(field(7)?.parse::<i32>().ok()?.cast_unsigned()),
            name,
            command: None,
        })
    }
}

/// The name of a terminal by its device number, whose minor part has its upper bits above the major part.
fn terminal(device: u32) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    if major == PTS_MAJOR {
        format!("pts/{minor}")
    } else {
        String::new()
    }
}

/// The second number of the line `Uid:`.
fn parse_uid(status: &[u8]) -> Option<u32> {
    String::from_utf8_lossy(status)
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Each argument ends with a zero byte. A process may have written something else there; it is told as it is.
fn command(arguments: &[u8]) -> Option<String> {
    let end = arguments.iter().rposition(|&byte| byte != 0)? + 1;
    let mut command = String::from_utf8_lossy(arguments.get(..end)?).replace('\0', " ");
    // What is no UTF-8 has become longer.
    command.truncate(command.floor_char_boundary(LONGEST_COMMAND));
    Some(command)
}

/// The beginning of a file; none of one that is gone.
fn read_some(path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(LONGEST_FILE as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// When the machine was started by its clock, and how long a tick is.
pub(crate) struct Boot {
    /// Nanoseconds since the epoch.
    at: i64,
    ticks_per_second: u64,
}

impl Boot {
    /// By the clock as it is now.
    pub(crate) fn find() -> Self {
        let nanoseconds = |time: Timespec| time.tv_sec * SECOND + time.tv_nsec;
        let at =
            nanoseconds(clock_gettime(ClockId::Realtime)) - nanoseconds(clock_gettime(ClockId::Boottime));
        Self {
            at,
            ticks_per_second: rustix::param::clock_ticks_per_second(),
        }
    }

    /// Nanoseconds since the epoch.
    pub(crate) fn time_of(&self, ticks: u64) -> i64 {
        self.at.saturating_add_unsigned(self.duration_of(ticks))
    }

    /// Nanoseconds.
    pub(crate) fn duration_of(&self, ticks: u64) -> u64 {
        let nanoseconds = u128::from(ticks) * u128::from(SECOND.unsigned_abs());
        let nanoseconds = nanoseconds / u128::from(self.ticks_per_second.max(1));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"7 (a) Z 1 (b) S 3 7 7 34817 -1 4194560 100 0 0 0 11 5 0 0 20 0 1 0 98765 1 2 3";

        let entry = ProcessEntry::parse_stat(line).unwrap();

        assert_eq!(entry.name, "a) Z 1 (b");
        assert_eq!((entry.pid, entry.parent), (7, 3));
        assert_eq!((entry.cpu_time, entry.started_at), (16, 98765));
        assert_eq!(entry.terminal, "pts/1");
    }

    #[test]
    fn a_cut_line_is_not_parsed() {
        for line in [&b""[..], b"7", b"7 (a", b"7 )a(", b"7 (a) S 1 7"] {
            assert_eq!(ProcessEntry::parse_stat(line), None, "{line:?}");
        }
    }

    #[test]
    fn only_the_terminals_of_containers_have_names() {
        assert_eq!(terminal(0), "");
        assert_eq!(terminal(0x0501), "", "the console");
        assert_eq!(terminal(0x8800), "pts/0");
        assert_eq!(terminal(0x10_8801), "pts/257");
    }

    #[test]
    fn arguments_are_told_as_they_are() {
        assert_eq!(command(b"sh\0-c\0echo  a\0\0").as_deref(), Some("sh -c echo  a"));
        assert_eq!(command(b""), None);
        assert_eq!(command(b"\0\0"), None);
        let long = command(&[0xff; LONGEST_COMMAND]).unwrap();
        assert!(long.len() <= LONGEST_COMMAND && long.starts_with('\u{fffd}'));
    }

    #[test]
    fn this_process_is_found() {
        let entry = ProcessEntry::read(std::process::id().cast_signed()).unwrap();

        assert_eq!(entry.pid, std::process::id());
        assert_eq!(entry.parent, std::os::unix::process::parent_id());
        assert_eq!(entry.uid, rustix::process::geteuid().as_raw());
        let program = std::env::args().next().unwrap();
        assert!(entry.command.unwrap().starts_with(&program));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
        let started = Boot::find().time_of(entry.started_at);
        assert!(
            (now - 600 * SECOND..=now).contains(&started),
            "{started} of {now}"
        );
    }

    #[test]
    fn a_process_that_is_gone_is_not_found() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().cast_signed();
        child.wait().unwrap();
        assert_eq!(ProcessEntry::read(pid), None);
    }
}
