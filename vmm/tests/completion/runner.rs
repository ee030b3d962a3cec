//! Runs a flat guest the way the vCPU thread does: completing what KVM could not emulate.

use std::path::Path;

use vmm::completion::{Completer, EmulationFailure, Mnemonic, Outcome};

use crate::flat_guest::{FlatGuest, Stop};

/// How a program ended.
pub(crate) struct Run {
    pub(crate) stop: Stop,
    /// What was completed, in order.
    pub(crate) completed: Vec<Mnemonic>,
}

impl Run {
    /// That the program wrote to the stop port, and that `mnemonic` was completed where it had to be.
    #[track_caller]
    pub(crate) fn assert_finished_completing(&self, mnemonic: Mnemonic) {
        assert!(
            matches!(self.stop, Stop::Finished(_)),
            "{:?} after {:?}",
            self.stop,
            self.completed
        );
        self.assert_completed(mnemonic);
    }

    /// That `mnemonic` was completed, where there is no hardware virtualization.
    #[track_caller]
    pub(crate) fn assert_completed(&self, mnemonic: Mnemonic) {
        if kvm_is_pvm() {
            assert!(
                self.completed.contains(&mnemonic),
                "only {:?} were completed",
                self.completed
            );
        }
    }
}

/// Runs until the program stops.
pub(crate) fn run(guest: &mut FlatGuest) -> Run {
    run_with(guest, |failure| failure)
}

/// The same, with what KVM reported changed on the way.
pub(crate) fn run_with(guest: &mut FlatGuest, change: impl Fn(EmulationFailure) -> EmulationFailure) -> Run {
    let mut completer = Completer::new();
    let mut completed = Vec::new();
    let mut triple_fault = false;
    let stop = guest.run(|vcpu, memory| {
        let failure = EmulationFailure::from_run(vcpu.get_kvm_run()).expect("an emulation failure");
        let done = completer
            .complete(vcpu, memory, &change(failure))
            .expect("complete the instruction");
        completed.push(done.mnemonic);
        triple_fault = done.outcome == Outcome::TripleFault;
        !triple_fault
    });
    Run {
        stop: if triple_fault { Stop::Shutdown } else { stop },
        completed,
    }
}

/// Whether guest kernel mode is emulated here.
pub(crate) fn kvm_is_pvm() -> bool {
    Path::new("/sys/module/kvm_pvm").exists()
}
