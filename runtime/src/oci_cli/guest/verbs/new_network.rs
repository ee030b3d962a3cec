//! A network namespace for the hooks to make the pod's network in, where the configuration asks for a new one: Docker has
//! that done by a `prestart` hook, which finds the namespace by the number of a process in it. What is there afterwards
//! is carried into the guest like a network that was there before.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use container::bring_loopback_up;
use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
use serde_json::{Value, json};

use super::GuestError;
use crate::oci_pod::membership::namespaces;

/// A namespace, and a thread in it.
pub(super) struct NewNetwork {
    namespace: File,
    pid: i32,
    /// The thread stays for as long as nobody drops this.
    stay: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl NewNetwork {
    /// A new namespace, if the configuration asks for one.
    pub(super) fn asked_for(config: &Value) -> Result<Option<NewNetwork>, GuestError> {
        let is_new = |(kind, path): (&str, Option<&str>)| kind == "network" && path.is_none_or(str::is_empty);
        if !namespaces(config).any(is_new) {
            return Ok(None);
        }
        NewNetwork::make().map(Some).map_err(GuestError::NewNetwork)
    }

    fn make() -> io::Result<NewNetwork> {
        let (tell, told) = mpsc::channel();
        let (stay, stayed) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("new-network".to_owned());
        let thread = thread.spawn(move || {
            let is_made = enter_new().map(|namespace| (namespace, gettid().as_raw_pid()));
            // Who asked waits for it; and what is waited for here is its end.
            let _ = tell.send(is_made);
            let _ = stayed.recv();
        })?;
        let gone = |_| io::Error::other("the thread that makes it has panicked");
        let (namespace, pid) = told.recv().map_err(gone)??;
        Ok(NewNetwork {
            namespace,
            pid,
            stay: Some(stay),
            thread: Some(thread),
        })
    }

    /// What hooks are told as the number of the container's process: `/proc/<pid>` is of the thread in the namespace.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// The configuration with the namespace in place of a new one, as long as this exists.
    pub(super) fn named_in(&self, config: &Value) -> Value {
        let mut config = config.clone();
        let namespaces = config
            .pointer_mut("/linux/namespaces")
            .and_then(Value::as_array_mut);
        for namespace in namespaces.into_iter().flatten() {
            if namespace.get("type") == Some(&json!("network")) {
                namespace["path"] = json!(format!("/proc/self/fd/{}", self.namespace.as_raw_fd()));
            }
        }
        config
    }
}

impl Drop for NewNetwork {
    fn drop(&mut self) {
        drop(self.stay.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing left to do, and so nothing to fail at.
            let _ = thread.join();
        }
    }
}

/// Moves this thread into a new network namespace with its loopback interface up.
fn enter_new() -> io::Result<File> {
    // SAFETY: descriptors stay shared with the other threads; only the network is this thread's own.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    bring_loopback_up()?;
    File::open("/proc/thread-self/ns/net")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_namespace_that_has_a_path_is_not_made() {
        for config in [
            json!({}),
            json!({ "linux": { "namespaces": [{ "type": "pid" }, { "type": "network", "path": "/run/netns/a" }] } }),
        ] {
            assert!(NewNetwork::asked_for(&config).unwrap().is_none());
        }
    }

    #[test]
    fn the_new_namespace_is_found_by_pid_and_by_path() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: a network namespace needs root");
            return;
        }
        let config = json!({ "linux": { "namespaces": [{ "type": "network" }, { "type": "pid" }] } });
        let network = NewNetwork::asked_for(&config).unwrap().unwrap();
        let named = network.named_in(&config);
        let (paths, by_pid) = (
            namespaces(&named).collect::<Vec<_>>(),
            format!("/proc/{}/ns/net", network.pid()),
        );
        let [("network", Some(path)), ("pid", None)] = paths[..] else {
            panic!("{paths:?}");
        };
        let inode = |path: &str| std::fs::metadata(path).unwrap().ino();
        assert_eq!(inode(path), inode(&by_pid));
        assert_ne!(inode(path), inode("/proc/self/ns/net"));
        let interfaces = std::fs::read_to_string(format!("/proc/{}/net/dev", network.pid())).unwrap();
        assert!(interfaces.contains("lo:"), "{interfaces}");
        drop(network);
        assert!(!std::path::Path::new(&by_pid).exists());
    }
}
