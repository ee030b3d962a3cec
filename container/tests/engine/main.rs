//! The engine on this kernel, with real containers made of Debian's static busybox.
//!
//! Each test runs in a process of its own, with one thread and a mount namespace of its own. Afterwards this runner,
//! which the test cannot influence, looks for what it left: processes, cgroups, mounts and files.
//!
//! `BULKHEAD_ENGINE_WALL=microvm` runs the same tests behind the other wall, through `bulkhead-oci` (`wall.rs`), but for
//! those that `shared_kernel_only.rs` lists with their reasons.

// In tests an unwrap is an assertion; this is a test to cargo, but not to clippy.
#![allow(clippy::unwrap_used)]

mod bundle;
mod cgroup_files;
mod command_line;
mod leftovers;
mod shared_kernel_only;
mod wall;

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
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use wall::Wall;

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
        if Wall::chosen() == Wall::MicroVm {
            command_line::adopt_attendants();
        }
        test();
        return ExitCode::SUCCESS;
    }
    if let Some(missing) = what_is_missing() {
        eprintln!("\n*** SKIPPED: the engine's tests need {missing} ***\n");
        return ExitCode::SUCCESS;
    }
    let tests = all_tests();
    let names: Vec<&'static str> = tests.iter().map(|(name, _)| *name).collect();
    // Behind either wall, so that who renames a test hears of it.
    shared_kernel_only::check(&names);
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen = names
        .into_iter()
        .filter(|name| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())));
    let (excepted, chosen): (Vec<_>, Vec<_>) = match Wall::chosen() {
        Wall::SharedKernel => (Vec::new(), chosen.collect()),
        Wall::MicroVm => chosen.partition(|name| shared_kernel_only::reason(name).is_some()),
    };
    println!("\nrunning {} tests", chosen.len());
    let failed = run_all(&chosen);
    for name in &excepted {
        let reason = shared_kernel_only::reason(name).unwrap();
        println!("test {name} ... shared-kernel only: {reason}");
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    let mut summary = format!("{result}. {} passed; {failed} failed", chosen.len() - failed);
    if Wall::chosen() == Wall::MicroVm {
        summary.push_str(&format!("; {} shared-kernel only", excepted.len()));
    }
    println!("\ntest result: {summary}\n");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn what_is_missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    if !Path::new(bundle::BUSYBOX).exists() {
        return Some(format!("{}: apt-get install busybox-static", bundle::BUSYBOX));
    }
    if Wall::chosen() == Wall::MicroVm && !Path::new("/dev/kvm").exists() {
        return Some("/dev/kvm for microVMs".to_owned());
    }
    None
}

/// Runs the tests and returns how many failed. A microVM's processor is one of the host's, so there are as many at once.
fn run_all(chosen: &[&str]) -> usize {
    let at_once = match Wall::chosen() {
        Wall::SharedKernel => 1,
        Wall::MicroVm => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(name) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    match run_in_process_of_its_own(name) {
                        Ok(()) => println!("test {name} ... ok ({} ms)", began.elapsed().as_millis()),
                        Err(reason) => {
                            println!("test {name} ... FAILED\n{reason}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    failed.into_inner()
}

fn run_in_process_of_its_own(name: &str) -> Result<(), String> {
    let folder = tempfile::Builder::new()
        .prefix("bulkhead-engine-")
        .tempdir()
        .unwrap();
    if Wall::chosen() == Wall::MicroVm {
        command_line::configure(folder.path());
    }
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
    if reason.is_empty() {
        return Ok(());
    }
    if Wall::chosen() == Wall::MicroVm {
        command_line::clean_up(folder.path());
    }
    Err(reason)
}

/// A test that hangs is a test that fails.
fn patience() -> Timespec {
    // Where KVM emulates the guest's kernel, each of a hundred processes takes two seconds.
    let tv_sec = if Wall::is_slow() { 600 } else { 60 };
    Timespec { tv_sec, tv_nsec: 0 }
}

fn wait_or_kill(child: &mut std::process::Child) -> std::process::ExitStatus {
    // Polling, rather than looking every now and then: where the kernel's every instruction is emulated, looking is what
    // would take the time.
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience())).unwrap() == 0 {
        child.kill().unwrap();
    }
    child.wait().unwrap()
}
