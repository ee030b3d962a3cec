//! The engine on this kernel, with real containers made of Debian's static busybox.
//!
//! Each test runs in a process of its own, with one thread and a mount namespace of its own. Afterwards this runner,
//! which the test cannot influence, looks for what it left: processes, cgroups, mounts and files.

// In tests an unwrap is an assertion; this is a test to cargo, but not to clippy.
#![allow(clippy::unwrap_used)]

mod bundle;
mod leftovers;

mod cgroups;
mod devices;
mod escapes;
mod exec;
mod exit_codes;
mod hooks;
mod life;
mod mounts;
mod namespaces;
mod net_devices;
mod paths;
mod pause;
mod pod_cgroups;
mod privileges;
mod refusals;
mod scheduling;
mod seccomp;
mod seccomp_agent;
mod terminal;
mod update;
mod watcher;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A test by its name.
type Test = (&'static str, fn());

/// Names the tests of a module and the functions that they are.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::Test] =
            &[$((concat!(module_path!(), "::", stringify!($name)), $name as fn())),*];
    };
}

fn all_tests() -> Vec<Test> {
    [
        cgroups::TESTS,
        devices::TESTS,
        exec::TESTS,
        escapes::TESTS,
        exit_codes::TESTS,
        hooks::TESTS,
        life::TESTS,
        mounts::TESTS,
        namespaces::TESTS,
        net_devices::TESTS,
        paths::TESTS,
        pause::TESTS,
        pod_cgroups::TESTS,
        privileges::TESTS,
        refusals::TESTS,
        scheduling::TESTS,
        seccomp::TESTS,
        terminal::TESTS,
        update::TESTS,
    ]
    .concat()
}

/// Makes this process, as its child, run one test.
const RUN_ONE: &str = "BULKHEAD_ENGINE_TEST";

fn main() -> ExitCode {
    if let Ok(allowed) = std::env::var(watcher::WATCH) {
        watcher::watch(&allowed);
    }
    if let Ok(name) = std::env::var(RUN_ONE) {
        let (_, test) = all_tests().into_iter().find(|(known, _)| *known == name).unwrap();
        test();
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("\n*** SKIPPED: the engine's tests need root ***\n");
        return ExitCode::SUCCESS;
    }
    if !std::path::Path::new(bundle::BUSYBOX).exists() {
        eprintln!(
            "\n*** SKIPPED: the engine's tests need {}: apt-get install busybox-static ***\n",
            bundle::BUSYBOX
        );
        return ExitCode::SUCCESS;
    }
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen: Vec<Test> = all_tests()
        .into_iter()
        .filter(|(name, _)| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())))
        .collect();
    println!("\nrunning {} tests", chosen.len());
    let mut failed = Vec::new();
    for (name, _) in &chosen {
        let began = Instant::now();
        match run_in_process_of_its_own(name) {
            Ok(()) => println!("test {name} ... ok ({} ms)", began.elapsed().as_millis()),
            Err(reason) => {
                println!("test {name} ... FAILED\n{reason}");
                failed.push(*name);
            }
        }
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {} failed\n",
        chosen.len() - failed.len(),
        failed.len()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_in_process_of_its_own(name: &str) -> Result<(), String> {
    let folder = tempfile::Builder::new()
        .prefix("bulkhead-engine-")
        .tempdir()
        .unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .env(RUN_ONE, name)
        .env(bundle::FOLDER, folder.path())
        .process_group(0);
    // SAFETY: unshare and mount are system calls, safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)?;
            let flags =
                rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            Ok(rustix::mount::mount_change("/", flags)?)
        });
    }
    let before = leftovers::Outside::look();
    let messages = folder.path().join("messages");
    let said = std::fs::File::create(&messages).unwrap();
    let mut child = command
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .spawn()
        .unwrap();
    let status = wait_or_kill(&mut child);
    let left = leftovers::find(folder.path(), &before);
    let mut reason = String::new();
    if !status.success() {
        reason = format!("{status}\n{}", std::fs::read_to_string(messages).unwrap());
    }
    for thing in &left {
        reason.push_str(&format!("left behind: {thing}\n"));
    }
    if reason.is_empty() { Ok(()) } else { Err(reason) }
}

/// A test that hangs is a test that fails.
const PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

fn wait_or_kill(child: &mut std::process::Child) -> std::process::ExitStatus {
    // Polling, rather than looking every now and then: where the kernel's every instruction is emulated, looking is what
    // would take the time.
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE)).unwrap() == 0 {
        child.kill().unwrap();
    }
    child.wait().unwrap()
}
