//! What a snapshot depends on, and in what another machine is not like the one it was taken of.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use super::memory::MemoryDigest;
use super::raw::Raw;
use crate::config::MachineConfig;
use crate::kernel_mode::KernelMode;
use crate::vcpu::cpuid::{self, Place, TooManyEntries};

/// A name of this build of the program; another build has another.
pub const BUILD: &str = env!("BULKHEAD_VMM_BUILD");

/// The first document of a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// What must be the same.
    pub dependencies: Dependencies,
    /// What the memory file holds.
    pub memory: MemoryDigest,
}

/// What must be the same for a machine to go on where another was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dependencies {
    build: String,
    kernel_mode: KernelMode,
    vcpus: u8,
    memory_mib: u32,
    devices: Vec<String>,
    /// The first vCPU's CPUID: what this KVM on this processor supports. The others' differ from it in their numbers.
    cpuid: Vec<Raw<kvm_cpuid_entry2>>,
}

/// In what a machine differs from the one a snapshot was taken of.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// Another program, or another version of it.
    #[error("it was made by another build of bulkhead-vmm: {snapshot}, and this is {BUILD}")]
    Build {
        /// The name of that build.
        snapshot: String,
    },
    /// Another kind of KVM.
    #[error("the guest's kernel mode was {snapshot} when it was made, and is {here} here")]
    KernelMode {
        /// How it ran then.
        snapshot: KernelMode,
        /// How it runs here.
        here: KernelMode,
    },
    /// Another number of vCPUs.
    #[error("it has {snapshot} vCPUs, and this machine is to have {here}")]
    Vcpus {
        /// Its number.
        snapshot: u8,
        /// This machine's.
        here: u8,
    },
    /// Another amount of memory.
    #[error("it has {snapshot} MiB of memory, and this machine is to have {here}")]
    Memory {
        /// Its amount.
        snapshot: u32,
        /// This machine's.
        here: u32,
    },
    /// Other devices.
    #[error("it has the devices {}, and this machine is to have {}", .snapshot.join(", "), .here.join(", "))]
    Devices {
        /// Its devices.
        snapshot: Vec<String>,
        /// This machine's.
        here: Vec<String>,
    },
    /// Another processor.
    #[error("it was made on {snapshot}, and this host has {here}")]
    Processor {
        /// That processor.
        snapshot: String,
        /// This host's.
        here: String,
    },
    /// A processor with other features, or another KVM.
    #[error(
        "KVM offers other processor features than when it was made: CPUID leaf {leaf:#x}.{subleaf:#x} was {snapshot}, \
         and is {here}"
    )]
    Features {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// EAX, EBX, ECX and EDX then.
        snapshot: String,
        /// And here.
        here: String,
    },
}

impl Dependencies {
    /// Those of a machine described by `config`, on a host whose KVM supports `supported`.
    ///
    /// # Errors
    /// When its vCPUs have no CPUID.
    pub fn of(
        config: &MachineConfig,
        kernel_mode: KernelMode,
        supported: &CpuId,
    ) -> Result<Self, TooManyEntries> {
        let vcpus = config.vcpus;
        let cpuid = cpuid::compose(supported, Place { index: 0, vcpus }, kernel_mode)?;
        Ok(Self {
            build: BUILD.to_owned(),
            kernel_mode,
            vcpus,
            memory_mib: config.memory_mib,
            devices: devices(config),
            cpuid: cpuid.as_slice().iter().copied().map(Raw).collect(),
        })
    }

    /// Checks that a machine with these dependencies can go on where the one with `snapshot`'s was.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, snapshot: &Self) -> Result<(), Mismatch> {
        snapshot.check_build()?;
        if snapshot.kernel_mode != self.kernel_mode {
            return Err(Mismatch::KernelMode {
                snapshot: snapshot.kernel_mode,
                here: self.kernel_mode,
            });
        }
        if snapshot.vcpus != self.vcpus {
            return Err(Mismatch::Vcpus {
                snapshot: snapshot.vcpus,
                here: self.vcpus,
            });
        }
        if snapshot.memory_mib != self.memory_mib {
            return Err(Mismatch::Memory {
                snapshot: snapshot.memory_mib,
                here: self.memory_mib,
            });
        }
        if snapshot.devices != self.devices {
            return Err(Mismatch::Devices {
                snapshot: snapshot.devices.clone(),
                here: self.devices.clone(),
            });
        }
        self.check_processor(snapshot)
    }

    /// Checks that this build of the program made the snapshot.
    ///
    /// # Errors
    /// When another did.
    pub fn check_build(&self) -> Result<(), Mismatch> {
        if self.build == BUILD {
            return Ok(());
        }
        Err(Mismatch::Build {
            snapshot: self.build.clone(),
        })
    }

    fn check_processor(&self, snapshot: &Self) -> Result<(), Mismatch> {
        let (then, here) = (snapshot.processor(), self.processor());
        if then != here {
            return Err(Mismatch::Processor { snapshot: then, here });
        }
        let leaves = |of: &Self| {
            let mut leaves: Vec<kvm_cpuid_entry2> = of.cpuid.iter().map(|Raw(entry)| *entry).collect();
            leaves.sort_by_key(|entry| (entry.function, entry.index));
            leaves
        };
        let (then, here) = (leaves(snapshot), leaves(self));
        let count = then.len().max(here.len());
        let differing = (0..count)
            .map(|position| (then.get(position), here.get(position)))
            .find(|(then, here)| then != here);
        let Some((then, here)) = differing else {
            return Ok(());
        };
        // The lower one of two different leaves is one that the other side has not.
        let place = |entry: &kvm_cpuid_entry2| (entry.function, entry.index);
        let lowest = [then, here].into_iter().flatten().map(place).min();
        let (leaf, subleaf) = lowest.unwrap_or_default();
        let tell = |entry: Option<&kvm_cpuid_entry2>| match entry {
            Some(entry) if place(entry) == (leaf, subleaf) => {
                let kvm_cpuid_entry2 {
                    eax, ebx, ecx, edx, ..
                } = entry;
                format!("{eax:08x} {ebx:08x} {ecx:08x} {edx:08x}")
            }
            _ => "absent".to_owned(),
        };
        Err(Mismatch::Features {
            leaf,
            subleaf,
            snapshot: tell(then),
            here: tell(here),
        })
    }

    /// Vendor, family, model and stepping (Intel SDM volume 2, CPUID leaves 0 and 1; AMD's are the same).
    fn processor(&self) -> String {
        let leaf = |function| {
            let entries = self.cpuid.iter().map(|Raw(entry)| entry);
            entries.copied().find(|entry| entry.function == function)
        };
        let vendor = leaf(0).unwrap_or_default();
        let vendor = [vendor.ebx, vendor.edx, vendor.ecx]
            .map(u32::to_le_bytes)
            .concat();
        let signature = leaf(1).unwrap_or_default().eax;
        let (base_family, base_model) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
        let family = match base_family {
            0xf => base_family + (signature >> 20 & 0xff),
            _ => base_family,
        };
        let model = base_model | (signature >> 16 & 0xf) << 4;
        let stepping = signature & 0xf;
        format!(
            "{} family {family} model {model} stepping {stepping}",
            vendor.escape_ascii()
        )
    }
}

/// The virtio devices of a machine in the order of their windows, each with what the guest sees of its configuration.
fn devices(config: &MachineConfig) -> Vec<String> {
    let vsock = config.vsock.iter();
    let shared = config.shared_directories.iter();
    let disks = config.block_devices.iter();
    let slots = std::iter::repeat_n("blk slot", config.disk_slots.into());
    let network = config.network_devices.iter();
    let access = |read_only| if read_only { " read-only" } else { "" };
    ["console", "rng", "balloon"]
        .map(str::to_owned)
        .into_iter()
        .chain(vsock.map(|vsock| format!("vsock of guest {}", vsock.guest_cid)))
        .chain(shared.map(|shared| format!("fs {:?}", shared.tag)))
        .chain(disks.map(|disk| format!("blk {:?}{}", disk.id, access(disk.read_only))))
        .chain(slots.map(str::to_owned))
        .chain(network.map(|network| {
            let mtu = network.mtu.map(|mtu| format!(" of MTU {mtu}"));
            let pairs = Some(network.queue_pairs).filter(|pairs| *pairs > 1);
            let pairs = pairs.map(|pairs| format!(" with {pairs} pairs of queues"));
            format!("net{}{}", mtu.unwrap_or_default(), pairs.unwrap_or_default())
        }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BlockDevice, MacAddress, SharedDirectory, VsockConfig};
    use crate::devices::rate_limiter::RateLimit;

    fn supported(features: u32) -> CpuId {
        let entry = |function, eax, [ebx, ecx, edx]: [u32; 3]| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        let vendor = [b"Genu", b"ntel", b"ineI"].map(|part| u32::from_le_bytes(*part));
        CpuId::from_entries(&[
            entry(0, 7, vendor),
            entry(1, 0x806f8, [0; 3]),
            entry(7, 0, [features, 0, 0]),
        ])
        .unwrap()
    }

    fn config() -> MachineConfig {
        let json = r#"{"kernel":"k","initramfs":"i","vcpus":2,"memory_mib":64,"console_ring":"c"}"#;
        MachineConfig {
            vsock: Some(VsockConfig {
                guest_cid: 3,
                socket: "here".into(),
            }),
            shared_directories: vec![SharedDirectory {
                tag: "share".into(),
                path: "/here".into(),
                read_only: false,
            }],
            block_devices: vec![BlockDevice {
                id: "data".into(),
                path: "/here".into(),
                read_only: false,
                rate_limit: None,
            }],
            network_devices: serde_json::from_str(r#"[{"mac":"02:00:00:00:00:01"}]"#).unwrap(),
            ..serde_json::from_str(json).unwrap()
        }
    }

    fn dependencies(config: &MachineConfig) -> Dependencies {
        Dependencies::of(config, KernelMode::Hardware, &supported(0x10)).unwrap()
    }

    /// Why a machine of `here` does not go on where the one of `config()` was.
    fn refusal(here: &Dependencies) -> String {
        here.check(&dependencies(&config())).unwrap_err().to_string()
    }

    #[test]
    fn what_the_host_gives_may_differ() {
        let mut here = config();
        here.vsock.as_mut().unwrap().socket = "there".into();
        here.shared_directories[0].path = "/there".into();
        here.block_devices[0].path = "/there".into();
        here.block_devices[0].rate_limit = Some(RateLimit::default());
        here.network_devices[0].tap_descriptors = vec![5];
        here.network_devices[0].mac = MacAddress::new([2, 0, 0, 0, 0, 2]).unwrap();
        (here.kernel, here.console_ring) = ("other".into(), "another".into());
        dependencies(&here).check(&dependencies(&config())).unwrap();
    }

    #[test]
    fn dependencies_survive_the_trip_through_json() {
        let before = dependencies(&config());
        let json = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<Dependencies>(&json).unwrap(), before);
    }

    #[test]
    fn another_build_is_refused_by_name() {
        let mut other = dependencies(&config());
        other.build = "another".into();
        let error = dependencies(&config()).check(&other).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("it was made by another build of bulkhead-vmm: another, and this is {BUILD}")
        );
    }

    #[test]
    fn another_kernel_mode_is_refused() {
        let mut here = dependencies(&config());
        here.kernel_mode = KernelMode::Emulated;
        assert_eq!(
            refusal(&here),
            "the guest's kernel mode was hardware when it was made, and is emulated here"
        );
    }

    #[test]
    fn other_vcpus_and_other_memory_are_refused() {
        let here = MachineConfig { vcpus: 1, ..config() };
        assert_eq!(
            refusal(&dependencies(&here)),
            "it has 2 vCPUs, and this machine is to have 1"
        );
        let here = MachineConfig {
            memory_mib: 65,
            ..config()
        };
        assert_eq!(
            refusal(&dependencies(&here)),
            "it has 64 MiB of memory, and this machine is to have 65"
        );
    }

    #[test]
    fn other_devices_are_refused_by_kind_order_number_and_name() {
        let changes: [&dyn Fn(&mut MachineConfig); 13] = [
            &|config| config.vsock = None,
            &|config| config.vsock.as_mut().unwrap().guest_cid = 4,
            &|config| config.shared_directories.clear(),
            &|config| config.shared_directories[0].tag = "other".into(),
            &|config| config.block_devices.clear(),
            &|config| config.disk_slots = 1,
            &|config| config.block_devices[0].id = "other".into(),
            &|config| config.block_devices[0].read_only = true,
            &|config| config.network_devices.clear(),
            &|config| config.network_devices[0].mtu = Some(1500),
            &|config| config.network_devices[0].queue_pairs = 2,
            &|config| config.network_devices.push(config.network_devices[0].clone()),
            &|config| {
                let mut second = config.shared_directories[0].clone();
                second.tag = "second".into();
                config.shared_directories.insert(0, second);
            },
        ];
        for change in changes {
            let mut here = config();
            change(&mut here);
            let refusal = refusal(&dependencies(&here));
            assert!(
                refusal.starts_with(
                    "it has the devices console, rng, balloon, vsock of guest 3, fs \"share\", blk \"data\", net, \
                     and this"
                ),
                "{refusal}"
            );
        }
    }

    #[test]
    fn a_network_device_is_named_by_what_its_driver_was_told() {
        let mut here = config();
        here.network_devices[0].mtu = Some(1400);
        here.network_devices[0].queue_pairs = 4;
        let refusal = refusal(&dependencies(&here));
        assert!(
            refusal.ends_with(", net of MTU 1400 with 4 pairs of queues"),
            "{refusal}"
        );
    }

    #[test]
    fn another_processor_is_named() {
        let mut here = dependencies(&config());
        here.cpuid[1].0.eax = 0x00a1_0f11;
        assert_eq!(
            refusal(&here),
            "it was made on GenuineIntel family 6 model 143 stepping 8, and this host has GenuineIntel family 25 \
             model 17 stepping 1"
        );
    }

    #[test]
    fn other_features_are_refused_with_their_leaf() {
        let here = Dependencies::of(&config(), KernelMode::Hardware, &supported(0x30)).unwrap();
        let refusal = refusal(&here);
        assert!(
            refusal.ends_with(
                "CPUID leaf 0x7.0x0 was 00000000 00000010 00000000 00000000, and is 00000000 00000030 00000000 \
                 00000000"
            ),
            "{refusal}"
        );
    }

    #[test]
    fn a_leaf_too_few_or_too_many_is_named() {
        let mut here = dependencies(&config());
        let last = here.cpuid.pop().unwrap().0;
        let refused = refusal(&here);
        assert!(
            refused.contains(&format!("leaf {:#x}.", last.function)),
            "{refused}"
        );
        assert!(refused.ends_with("and is absent"), "{refused}");
        let mut here = dependencies(&config());
        here.cpuid.push(Raw(kvm_cpuid_entry2 {
            function: 5,
            ..Default::default()
        }));
        let refused = refusal(&here);
        assert!(
            refused.contains("leaf 0x5.0x0 was absent, and is 0000"),
            "{refused}"
        );
    }
}
