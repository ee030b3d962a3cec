//! The state file of a snapshot: its frame, and its two documents.

use std::fmt::Write as _;

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use serde_json::{Value, json};
use vmm::snapshot::MachineState;
use vmm::snapshot::description::{BUILD, Description};
use vmm::snapshot::format::{Documents, decode, encode};

use crate::{Target, mutation};

/// The whole file.
pub(crate) const FRAME: Target = Target {
    name: "snapshot-frame",
    run: frame,
    seeds: || {
        vec![encode(Documents {
            description: b"{}",
            machine: b"[]",
        })]
    },
    is_json: false,
    memory: 1 << 20,
};

/// What it depends on.
pub(crate) const DESCRIPTION: Target = Target {
    name: "snapshot-description",
    run: description,
    seeds: || vec![mutation::text_of(&seed_description())],
    is_json: true,
    memory: 1 << 20,
};

/// The machine's state.
pub(crate) const MACHINE: Target = Target {
    name: "snapshot-machine",
    run: machine,
    seeds: || vec![mutation::text_of(&seed_machine())],
    is_json: true,
    memory: 1 << 20,
};

fn frame(data: &[u8]) {
    if let Ok(documents) = decode(data) {
        assert_eq!(encode(documents), data, "a state that is not what we write");
    }
    // Whatever the documents are, they come back.
    let (description, machine) = data.split_at(data.len() / 2);
    let documents = Documents { description, machine };
    match decode(&encode(documents)) {
        Ok(decoded) => assert_eq!(decoded, documents),
        Err(error) => panic!("what was written is not read: {error}"),
    }
}

fn description(data: &[u8]) {
    let Ok(description) = serde_json::from_slice::<Description>(data) else {
        return;
    };
    let dependencies = &description.dependencies;
    // A machine fits its own snapshot, if this build made it.
    match (dependencies.check_build(), dependencies.check(dependencies)) {
        (Ok(()), Ok(())) | (Err(_), Err(_)) => {}
        (_, checked) => panic!("a machine and its own snapshot: {checked:?}"),
    }
    if let Ok(seed) = serde_json::from_value::<Description>(seed_description()) {
        let differs = seed.dependencies.check(dependencies).is_err();
        assert_eq!(
            differs,
            dependencies.check_build().is_err() || *dependencies != seed.dependencies
        );
    }
    let written = serde_json::to_vec(&description).unwrap_or_else(|error| panic!("not written: {error}"));
    match serde_json::from_slice::<Description>(&written) {
        Ok(reread) => assert_eq!(reread, description, "written and read, it says something else"),
        Err(error) => panic!("what was written is not read: {error}"),
    }
}

fn machine(data: &[u8]) {
    let Ok(machine) = serde_json::from_slice::<MachineState>(data) else {
        return;
    };
    let write = |machine: &MachineState| match serde_json::to_vec(machine) {
        Ok(written) => written,
        Err(error) => panic!("not written: {error}"),
    };
    let written = write(&machine);
    match serde_json::from_slice(&written) {
        Ok(reread) => assert_eq!(
            write(&reread),
            written,
            "written and read, it says something else"
        ),
        Err(error) => panic!("what was written is not read: {error}"),
    }
}

fn seed_description() -> Value {
    let cpuid: Vec<String> = (0..3u32).map(leaf).collect();
    json!({
        "dependencies": {
            "build": BUILD, "kernel_mode": "hardware", "vcpus": 1, "memory_mib": 64, "devices": ["vsock", "net"],
            "cpuid": cpuid,
        },
        "memory": { "bytes": 64 << 20, "pages": 3, "sha256": "5a".repeat(32) },
    })
}

/// A `kvm_cpuid_entry2` of this leaf, in hexadecimal digits.
fn leaf(function: u32) -> String {
    let mut digits = String::new();
    for byte in function.to_le_bytes() {
        // Into a String it cannot fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits + &"11".repeat(size_of::<kvm_cpuid_entry2>() - 4)
}

fn seed_machine() -> Value {
    fn zeros<T>() -> String {
        "00".repeat(size_of::<T>())
    }
    let transport = json!({
        "status": 15, "driver_features": 0x1_0000_0000u64, "device_features_page": 0, "driver_features_page": 0,
        "selected_queue": 0, "interrupt_status": 0, "needs_reset": false,
        "queues": [{
            "max_size": 256, "size": 256, "ready": true, "descriptor_table": 4096, "available_ring": 8192,
            "used_ring": 12288,
        }],
        "positions": [{ "next_available": 1, "next_used": 1 }],
        "device": { "vsock": { "connected": true, "next_client_port": 1024 } },
    });
    json!({
        "vm": {
            "interrupt_controllers": [zeros::<kvm_irqchip>(), zeros::<kvm_irqchip>(), zeros::<kvm_irqchip>()],
            "clock": 1,
        },
        "vcpus": [{
            "activity": 0, "general": zeros::<kvm_regs>(), "system": zeros::<kvm_sregs>(),
            "events": zeros::<kvm_vcpu_events>(), "extended": zeros::<kvm_xsave>(),
            "extended_control": zeros::<kvm_xcrs>(), "debug": zeros::<kvm_debugregs>(),
            "local_apic": zeros::<kvm_lapic_state>(), "tsc_khz": 2_000_000, "model_specific": [[16, 1], [0x6e0, 2]],
        }],
        "bus": { "early_console": { "divisor_latch": false }, "transports": [transport] },
    })
}
