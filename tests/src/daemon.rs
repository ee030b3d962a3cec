//! A client's daemon in the foreground, from its start to its end.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a daemon may take to start and to end.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon, which is told to end when it goes. A test that fails has what it wrote printed.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    process: Child,
    log: PathBuf,
}

impl Daemon {
    /// Runs `command` until it serves on `socket`. What it and its children write is in `log`.
    pub fn start(name: &'static str, command: &mut Command, socket: &Path, log: PathBuf) -> Daemon {
        let output = File::create(&log).expect("a log");
        command.stdout(output.try_clone().expect("a log")).stderr(output);
        let process = command.spawn().expect(name);
        let mut daemon = Daemon { name, process, log };
        daemon.wait_until_it_serves(socket);
        daemon
    }

    fn wait_until_it_serves(&mut self, socket: &Path) {
        let begun = Instant::now();
        while UnixStream::connect(socket).is_err() {
            let ended = self.process.try_wait().expect(self.name);
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "{} does not serve:\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it and its children have written.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} wrote:\n{}", self.name, self.log());
        }
        // nsenter has become the daemon, which ends its own children.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let begun = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                let _ = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
