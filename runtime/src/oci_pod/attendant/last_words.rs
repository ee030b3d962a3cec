//! What an attendant says when its machine has ended under it: to whoever reads the container's messages, and in what is
//! written down of the machine.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use container::OutOfMemoryWatch;

use crate::micro_vm::MicroVm;
use crate::oci_pod::folder::Folder;
use crate::oci_pod::machine_end::EndedMachine;
use crate::oci_pod::record::GuestContainer;
use crate::sandbox::SandboxError;

/// How long whoever works on the machine's first container is waited for. Somebody who deletes it has ended the machine, and
/// needs not be told.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// What a guest's kernel says that has ended nobody's process and has no memory left.
const OUT_OF_MEMORY_PANIC: &str = "deadlocked on memory";

/// What is held ready for them.
pub(super) struct LastWords {
    sandbox: Folder,
    /// The container's messages. It stays open for as long as the attendant is there.
    messages: File,
    /// Of what the host lets the machine use.
    memory: Option<OutOfMemoryWatch>,
}

impl LastWords {
    /// For a container in the machine of the pod whose first container has this folder. `warnings` is told why the host's
    /// memory cannot be watched, if it cannot.
    pub(super) fn prepare(sandbox: Folder, warnings: &mut Vec<String>) -> io::Result<Self> {
        let memory = watch(&sandbox).unwrap_or_else(|error| {
            let error = vmm::status::chain(&*error);
            warnings.push(format!("a want of memory on the host will not be told: {error}"));
            None
        });
        Ok(Self {
            sandbox,
            messages: File::from(io::stderr().as_fd().try_clone_to_owned()?),
            memory,
        })
    }

    /// Tells of a machine that has ended, or whose agent cannot be reached any more, which is `error`. There is nobody to tell
    /// of what goes wrong here.
    pub(super) async fn say(&mut self, machine: &MicroVm, error: &SandboxError) {
        let end = self.end_of(machine, error).await;
        let Ok(Some(_lock)) = self.sandbox.lock_within(LOCK_PATIENCE) else {
            return;
        };
        let _ = writeln!(self.messages, "bulkhead: {end}");
        let _ = end.write_down(&self.sandbox);
    }

    async fn end_of(&mut self, machine: &MicroVm, error: &SandboxError) -> EndedMachine {
        let Some(end) = machine.soon_ended().await else {
            return EndedMachine {
                reason: format!("its agent cannot be reached: {}", vmm::status::chain(error)),
                out_of_memory: false,
                console: vec![],
            };
        };
        let console = end.console().to_vec();
        let panicked_for_memory = console.iter().any(|line| line.contains(OUT_OF_MEMORY_PANIC));
        // A machine that could give no account was killed. The host's kernel does so when it can free nothing else.
        let host_ran_out = !end.is_accounted_for()
            && matches!(self.memory.as_mut().map(OutOfMemoryWatch::take), Some(Ok(1..)));
        let reason = if host_ran_out {
            self.out_of_memory_on_host()
        } else {
            end.reason().to_owned()
        };
        EndedMachine {
            reason,
            out_of_memory: host_ran_out || panicked_for_memory,
            console,
        }
    }

    fn out_of_memory_on_host(&self) -> String {
        let container = GuestContainer::read(&self.sandbox).ok().flatten();
        let limit = container.and_then(|container| container.cgroup.limits().memory);
        let limit = limit.map_or_else(String::new, |limit| {
            format!(": together with its attendants it may use {} MiB", limit >> 20)
        });
        format!("the host's kernel ended the VMM for want of memory{limit}")
    }
}

fn watch(sandbox: &Folder) -> Result<Option<OutOfMemoryWatch>, Box<dyn std::error::Error + Send + Sync>> {
    match GuestContainer::read(sandbox)? {
        Some(founder) => Ok(founder.cgroup.watch_memory()?),
        None => Ok(None),
    }
}
