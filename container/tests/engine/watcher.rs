//! A program in a container that looks into every process that comes after it, as one with CAP_SYS_PTRACE can.
//!
//! It is this very executable, which is static, bound into the container.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::json;

use crate::bundle::{FOLDER, TestBundle};

/// Makes this process the program in the container. The value is the capabilities a process may have, in hexadecimal.
pub(crate) const WATCH: &str = "BULKHEAD_ENGINE_WATCH";
const PROGRAM: &str = "/watcher";

/// Capabilities of the container and, by their numbers, the same.
const CAPABILITIES: [&str; 3] = ["CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE"];
const BITS: u64 = 1 << 5 | 1 << 1 | 1 << 19;

/// A container that watches, and may look into every process that it sees.
pub(crate) fn bundle(suffix: &str) -> TestBundle {
    let mut bundle = TestBundle::named(suffix, &[PROGRAM]);
    bundle.mount(json!({
        "destination": PROGRAM, "source": std::env::current_exe().unwrap(), "options": ["bind", "ro"]
    }));
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set] = json!(CAPABILITIES);
    }
    bundle.config["process"]["env"]
        .as_array_mut()
        .unwrap()
        .push(format!("{WATCH}={BITS:x}").into());
    bundle
}

/// What has been seen so far, a line for each kind of thing.
pub(crate) fn seen(bundle: &TestBundle) -> Vec<String> {
    let text = fs::read_to_string(bundle.folder.join("stdout")).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// A line that is written for each process that was seized before it executed its program.
pub(crate) const EARLY: &str = "a process was seized before it was its program";

/// Runs in the container until it is killed.
pub(crate) fn watch(allowed: &str) -> ! {
    let allowed = u64::from_str_radix(allowed, 16).unwrap();
    let mut next = std::process::id() + 1;
    loop {
        // The numbers of a pid namespace are given one after the other, and the last one is told.
        let load = fs::read_to_string("/proc/loadavg").unwrap();
        let last: u32 = load.split_whitespace().last().unwrap().parse().unwrap();
        for pid in next..=last {
            look_into(pid, allowed);
        }
        next = next.max(last + 1);
    }
}

fn look_into(pid: u32, allowed: u64) {
    let say = |line: &str| {
        std::io::stdout()
            .write_all(format!("{line}\n").as_bytes())
            .unwrap()
    };
    let none: usize = 0;
    // SAFETY: asks the kernel to make this the process's tracer; no memory is involved.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) } == 0;
    let mut early = false;
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let program = fs::read_link(format!("/proc/{pid}/exe"));
        let is_program = program
            .as_ref()
            .is_ok_and(|path| path == Path::new("/bin/busybox"));
        if status.is_empty() || status.contains("State:\tZ") || is_program {
            break;
        }
        for set in ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"] {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(set)?.strip_prefix(":\t"));
            let held = u64::from_str_radix(line.unwrap(), 16).unwrap();
            if held & !allowed != 0 {
                say(&format!("{set} had more than is allowed: {held:x}"));
            }
        }
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.display().to_string();
            let is_standard = ["0", "1", "2"].iter().any(|number| entry.file_name() == *number);
            // In a machine the streams are pipes to the agent.
            let is_stream = is_standard && target.starts_with("pipe:")
                || ["/stdout", "/stderr", "/dev/null"]
                    .iter()
                    .any(|end| target.ends_with(end));
            if !is_stream && !target.starts_with("socket:") {
                say(&format!("a descriptor led to {target}"));
            }
        }
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment).contains(FOLDER) {
            say("a process had the caller's environment");
        }
        early |= program.is_ok();
    }
    if early && seized {
        say(EARLY);
    }
    if seized {
        // SAFETY: as above; the process is this one's tracee until it is let go, and its status is not asked for.
        unsafe {
            libc::ptrace(libc::PTRACE_INTERRUPT, pid, none, none);
            libc::waitpid(pid as i32, std::ptr::null_mut(), libc::__WALL);
            libc::ptrace(libc::PTRACE_DETACH, pid, none, none);
        }
    }
}
