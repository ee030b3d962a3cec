//! What a template depends on. Machines with equal inputs are cloned from one template; whatever differs makes another.

use std::arch::x86_64::__cpuid;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use vmm::kernel_mode::KernelMode;

use crate::configuration::MicroVmConfiguration;
use crate::sizing::MachineSize;

/// Raised when machines get other devices, or the guest is asked for other things before it is ready.
const SHAPE_VERSION: u32 = 5;

/// Digits of a template's name. It is part of a socket's path, of which unix(7) allows 107 bytes.
const NAME_DIGITS: usize = 16;

/// Everything a template was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateInputs {
    /// The guest's kernel.
    pub kernel: InputFile,
    /// The guest's initramfs, which is the agent.
    pub initramfs: InputFile,
    /// The VMM, whose devices are saved in its own way.
    pub vmm: InputFile,
    /// The number of vCPUs.
    pub vcpus: u8,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// How many network devices it has.
    pub network_devices: usize,
    /// The processor: vendor, family, model, stepping and features, as CPUID leaves 0, 1 and 7 tell them.
    pub processor: String,
    /// Whether KVM emulates the guest's kernel.
    pub kernel_mode: String,
    /// The host's kernel, whose KVM the state is for.
    pub host_kernel: String,
    shape: u32,
}

/// Whether this could be a template's name.
pub(super) fn is_name(text: &str) -> bool {
    text.len() == NAME_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A file, and what changes whenever its content does: replacing or writing it, or setting its times back, changes the
/// time of its inode's last change (stat(2)). Hashing it instead would take longer than cloning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// Where it is.
    pub path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    changed_seconds: i64,
    changed_nanoseconds: i64,
}

/// An input that is not there.
#[derive(Debug, thiserror::Error)]
#[error("looking at {}", .path.display())]
pub struct InputError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl TemplateInputs {
    /// The inputs of a machine of this size and with so many network devices, as they are now.
    ///
    /// # Errors
    /// When a file is not there.
    pub fn of(
        configuration: &MicroVmConfiguration,
        size: MachineSize,
        network_devices: usize,
    ) -> Result<Self, InputError> {
        Ok(Self {
            kernel: InputFile::at(&configuration.kernel)?,
            initramfs: InputFile::at(&configuration.initramfs)?,
            vmm: InputFile::at(&configuration.vmm)?,
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            network_devices,
            processor: processor(),
            kernel_mode: kernel_mode(),
            host_kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            shape: SHAPE_VERSION,
        })
    }

    /// The name of the template with these inputs.
    ///
    /// # Errors
    /// When a path is not text.
    pub fn name(&self) -> Result<String, serde_json::Error> {
        let digest = Sha256::digest(serde_json::to_vec(self)?);
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(digits.chars().take(NAME_DIGITS).collect())
    }

    /// Why no machine will be cloned from the template any more; `None` while its inputs are what they were.
    pub fn staleness(&self) -> Option<String> {
        let files = [&self.kernel, &self.initramfs, &self.vmm];
        for file in files {
            match InputFile::at(&file.path) {
                Ok(now) if now == *file => {}
                Ok(_) => return Some(format!("{} has changed", file.path.display())),
                Err(_) => return Some(format!("{} is gone", file.path.display())),
            }
        }
        let host = rustix::system::uname().release().to_string_lossy().into_owned();
        if host != self.host_kernel {
            return Some(format!("the host's kernel was {}", self.host_kernel));
        }
        if processor() != self.processor {
            return Some("the processor is another".to_owned());
        }
        if kernel_mode() != self.kernel_mode {
            return Some(format!("KVM ran the guest's kernel mode by {}", self.kernel_mode));
        }
        (self.shape != SHAPE_VERSION).then(|| "another version of Bulkhead made it".to_owned())
    }
}

impl InputFile {
    fn at(path: &Path) -> Result<Self, InputError> {
        let status = fs::metadata(path).map_err(|source| InputError {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            device: status.dev(),
            inode: status.ino(),
            bytes: status.len(),
            changed_seconds: status.ctime(),
            changed_nanoseconds: status.ctime_nsec(),
        })
    }
}

fn kernel_mode() -> String {
    match KernelMode::detect() {
        KernelMode::Hardware => "hardware",
        KernelMode::Emulated => "emulation",
    }
    .to_owned()
}

/// Without the bits of leaf 1 and 7 that tell one processor of a machine from another, or change while it runs.
fn processor() -> String {
    const APIC_ID_AND_COUNT: u32 = 0xffff_0000;
    const OSXSAVE: u32 = 1 << 27;
    let vendor = __cpuid(0);
    let model = __cpuid(1);
    let features = __cpuid(7);
    format!(
        "{:08x}{:08x}{:08x}-{:08x}-{:08x}-{:08x}{:08x}-{:08x}{:08x}{:08x}",
        vendor.ebx,
        vendor.edx,
        vendor.ecx,
        model.eax,
        model.ebx & !APIC_ID_AND_COUNT,
        model.ecx & !OSXSAVE,
        model.edx,
        features.ebx,
        features.ecx,
        features.edx,
    )
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    /// Of a machine whose parts are in `folder`.
    pub(in super::super) fn inputs(folder: &Path) -> TemplateInputs {
        let configuration = MicroVmConfiguration {
            kernel: folder.join("kernel"),
            initramfs: folder.join("initramfs"),
            vmm: folder.join("vmm"),
            ..MicroVmConfiguration::for_tests()
        };
        let size = MachineSize {
            memory_mib: 64,
            vcpus: 1,
        };
        TemplateInputs::of(&configuration, size, 1).unwrap()
    }

    /// With the parts of a machine in it.
    pub(in super::super) fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["kernel", "initramfs", "vmm"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        folder
    }

    #[test]
    fn the_same_inputs_have_the_same_name_and_are_not_stale() {
        let folder = folder();
        let (first, second) = (inputs(folder.path()), inputs(folder.path()));
        assert_eq!(first.name().unwrap(), second.name().unwrap());
        assert_eq!(first.name().unwrap().len(), NAME_DIGITS);
        assert_eq!(first.staleness(), None);
    }

    #[test]
    fn a_file_of_the_same_length_and_time_is_another_input() {
        let folder = folder();
        let before = inputs(folder.path());
        let kernel = folder.path().join("kernel");
        let modified = fs::metadata(&kernel).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&kernel, "lenrek").unwrap();
        let file = fs::File::options().write(true).open(&kernel).unwrap();
        file.set_modified(modified).unwrap();
        assert_ne!(before.name().unwrap(), inputs(folder.path()).name().unwrap());
        assert!(before.staleness().unwrap().contains("kernel has changed"));
    }

    #[test]
    fn a_missing_file_makes_a_template_stale() {
        let folder = folder();
        let before = inputs(folder.path());
        fs::remove_file(folder.path().join("vmm")).unwrap();
        assert!(before.staleness().unwrap().contains("vmm is gone"));
    }

    #[test]
    fn every_size_and_number_of_network_devices_has_a_template_of_its_own() {
        let folder = folder();
        let one = inputs(folder.path());
        let two = TemplateInputs {
            vcpus: 2,
            ..one.clone()
        };
        let larger = TemplateInputs {
            memory_mib: 65,
            ..one.clone()
        };
        let connected_twice = TemplateInputs {
            network_devices: 2,
            ..one.clone()
        };
        let mut names: Vec<_> = [one, two, larger, connected_twice]
            .iter()
            .map(|inputs| inputs.name().unwrap())
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 4);
    }

    #[test]
    fn another_host_processor_kvm_or_version_is_another_template_and_the_old_one_is_stale_for_that_reason() {
        let folder = folder();
        let now = inputs(folder.path());
        let host = TemplateInputs {
            host_kernel: "2.4.0".to_owned(),
            ..now.clone()
        };
        let processor = TemplateInputs {
            processor: "abacus".to_owned(),
            ..now.clone()
        };
        let kvm = TemplateInputs {
            kernel_mode: "dice".to_owned(),
            ..now.clone()
        };
        let version = TemplateInputs {
            shape: SHAPE_VERSION + 1,
            ..now.clone()
        };
        for (was, reason) in [
            (host, "the host's kernel was 2.4.0"),
            (processor, "the processor is another"),
            (kvm, "KVM ran the guest's kernel mode by dice"),
            (version, "another version of Bulkhead made it"),
        ] {
            assert_eq!(was.staleness().unwrap(), reason);
            assert_ne!(was.name().unwrap(), now.name().unwrap(), "{reason}");
        }
    }
}
