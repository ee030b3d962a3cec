//! Whether KVM makes machines here, and how.

use std::io;
use std::path::Path;

use vmm::capabilities::{CAPABILITIES, Capability, EXTENDED_STATE_SIZE, LARGEST_EXTENDED_STATE, Use};
use vmm::kernel_mode::KernelMode;

use super::finding::{Finding, causes};
use crate::isolation::Isolation;
use crate::kvm::{self, Kvm, KvmUnusable};

/// The device, and where it is there what it can do.
pub(super) fn kvm(device: &Path) -> Vec<Finding> {
    let (opened, kvm) = open(device);
    let mut findings = vec![opened];
    if let Some(kvm) = kvm {
        let mode = KernelMode::detect();
        findings.push(capabilities(mode, |number| kvm.capability(number)));
        findings.push(extended_state(|number| kvm.capability(number)));
        findings.push(kernel_mode(mode));
    }
    findings
        .into_iter()
        .map(|finding| finding.only_for(Isolation::MicroVm))
        .collect()
}

fn open(device: &Path) -> (Finding, Option<Kvm>) {
    match kvm::open(device) {
        Ok(kvm) => {
            let detail = format!(
                "{} opens, version {} of its interface",
                device.display(),
                kvm::API_VERSION
            );
            (Finding::ok("kvm", detail), Some(kvm))
        }
        Err(error) => {
            let advice = match &error {
                KvmUnusable::Open { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                    "run as root, or as a member of the group that the device belongs to"
                }
                KvmUnusable::Open { .. } => {
                    "load the module kvm_intel or kvm_amd, and switch virtualization on in the firmware or, in a \
                     virtual machine, nested virtualization in its host"
                }
                KvmUnusable::Interface { .. } => "set microvm.kvm in the configuration to KVM's device",
            };
            (Finding::missing("kvm", causes(error), advice), None)
        }
    }
}

fn capabilities(mode: KernelMode, ask: impl Fn(u32) -> io::Result<i32>) -> Finding {
    const CHECK: &str = "kvm capabilities";
    let (mut needed, mut told) = (Vec::new(), Vec::new());
    for Capability { name, number, used } in CAPABILITIES {
        match ask(number) {
            Ok(1..) => {}
            Ok(_) => match used {
                Use::Always => needed.push(name),
                Use::EmulatedKernelMode if mode == KernelMode::Emulated => needed.push(name),
                Use::EmulatedKernelMode => {}
                Use::Statistics => told.push(name),
            },
            Err(error) => {
                let detail = format!("asking for KVM_CAP_{name}: {error}");
                return Finding::missing(CHECK, detail, "use a Linux kernel whose KVM answers");
            }
        }
    }
    if !needed.is_empty() {
        let detail = format!("without KVM_CAP_{}", needed.join(", KVM_CAP_"));
        Finding::missing(CHECK, detail, "use a newer Linux kernel")
    } else if !told.is_empty() {
        let detail = format!("without KVM_CAP_{}", told.join(", KVM_CAP_"));
        let advice = "machines run, but what their kernel costs is not told; a newer Linux kernel tells it";
        Finding::warning(CHECK, detail, advice)
    } else {
        Finding::ok(CHECK, "all that are used")
    }
}

fn extended_state(ask: impl Fn(u32) -> io::Result<i32>) -> Finding {
    const CHECK: &str = "vector state";
    match ask(EXTENDED_STATE_SIZE.number) {
        Ok(0) => Finding::ok(CHECK, "no larger than a snapshot holds"),
        Ok(bytes) if bytes <= LARGEST_EXTENDED_STATE => Finding::ok(
            CHECK,
            format!("{bytes} bytes, of which a snapshot holds {LARGEST_EXTENDED_STATE}"),
        ),
        Ok(bytes) => Finding::warning(
            CHECK,
            format!("{bytes} bytes, of which a snapshot holds {LARGEST_EXTENDED_STATE}"),
            "machines may not be cloned; set microvm.template to \"never\" if they are not",
        ),
        Err(error) => Finding::warning(
            CHECK,
            format!("asking for KVM_CAP_{}: {error}", EXTENDED_STATE_SIZE.name),
            "use a Linux kernel whose KVM answers",
        ),
    }
}

fn kernel_mode(mode: KernelMode) -> Finding {
    const CHECK: &str = "guest kernel mode";
    match mode {
        KernelMode::Hardware => Finding::ok(CHECK, "by the processor (VT-x or AMD-V)"),
        KernelMode::Emulated => Finding::warning(
            CHECK,
            "emulated: this KVM is kvm-pvm, without VT-x or AMD-V, and executes the guest's kernel instruction by \
             instruction, about 100 times slower; its programs run at full speed",
            "a boot takes seconds and a clone milliseconds: leave microvm.template at \"auto\", and build templates \
             ahead with `bulkhead template build`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    /// A KVM that has everything but this.
    fn without(missing: &'static str) -> impl Fn(u32) -> io::Result<i32> {
        move |number| {
            let known = CAPABILITIES.iter().find(|known| known.number == number).unwrap();
            Ok(i32::from(known.name != missing))
        }
    }

    #[test]
    fn a_missing_device_is_all_there_is_to_say() {
        let findings = kvm(Path::new("/nonexistent/kvm"));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].forbids(Isolation::MicroVm));
        assert!(!findings[0].forbids(Isolation::SharedKernel));
        assert!(findings[0].detail.contains("/nonexistent/kvm"));
    }

    #[test]
    fn a_capability_that_every_machine_needs_is_named() {
        let finding = capabilities(KernelMode::Hardware, without("IRQFD"));
        assert_eq!(finding.status, Status::Missing);
        assert!(finding.detail.ends_with("KVM_CAP_IRQFD"), "{}", finding.detail);
    }

    #[test]
    fn what_only_an_emulated_kernel_needs_is_missing_only_there() {
        let missing = || without("EXIT_ON_EMULATION_FAILURE");
        assert_eq!(capabilities(KernelMode::Hardware, missing()).status, Status::Ok);
        assert_eq!(
            capabilities(KernelMode::Emulated, missing()).status,
            Status::Missing
        );
    }

    #[test]
    fn what_only_tells_is_a_warning() {
        let finding = capabilities(KernelMode::Emulated, without("BINARY_STATS_FD"));
        assert_eq!(finding.status, Status::Warning);
    }

    #[test]
    fn vector_state_that_no_snapshot_holds_is_a_warning() {
        assert_eq!(extended_state(|_| Ok(11_008)).status, Status::Warning);
        assert_eq!(extended_state(|_| Ok(4096)).status, Status::Ok);
    }

    #[test]
    fn an_emulated_kernel_mode_is_said_with_its_price() {
        let finding = kernel_mode(KernelMode::Emulated);
        assert_eq!(finding.status, Status::Warning);
        assert!(finding.detail.contains("100 times slower"));
    }
}
