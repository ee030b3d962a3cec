//! What a template says it was made from.

use runtime::micro_vm::template::inputs::TemplateInputs;
use serde_json::{Value, json};

use crate::{Target, mutation};

pub(crate) const TARGET: Target = Target {
    name: "template",
    run,
    seeds: || vec![mutation::text_of(&seed())],
    is_json: true,
    memory: 1 << 20,
};

fn run(data: &[u8]) {
    let Ok(inputs) = serde_json::from_slice::<TemplateInputs>(data) else {
        return;
    };
    let written = serde_json::to_vec_pretty(&inputs).unwrap_or_else(|error| panic!("not written: {error}"));
    let reread: TemplateInputs = match serde_json::from_slice(&written) {
        Ok(reread) => reread,
        Err(error) => panic!("what was written is not read: {error}"),
    };
    assert_eq!(reread, inputs, "written and read, it says something else");
    let name = |inputs: &TemplateInputs| inputs.name().unwrap_or_else(|error| panic!("no name: {error}"));
    assert_eq!(name(&reread), name(&inputs));
    assert_eq!(name(&inputs).len(), 16);
}

fn seed() -> Value {
    let file = |path: &str| {
        json!({
            "path": path, "device": 1, "inode": 2, "bytes": 3, "changed_seconds": -4, "changed_nanoseconds": 5
        })
    };
    json!({
        "kernel": file("/usr/share/bulkhead/vmlinux"), "initramfs": file("/usr/share/bulkhead/initramfs.cpio"),
        "vmm": file("/usr/bin/bulkhead-vmm"), "vcpus": 1, "memory_mib": 64, "network_devices": 1,
        "processor": "GenuineIntel 6 85 7", "kernel_mode": "emulated", "host_kernel": "6.1.0", "shape": 2,
    })
}
