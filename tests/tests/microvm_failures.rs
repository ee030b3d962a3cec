//! Machines that cannot be: each failure says what was being done, to what, why, and leaves nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs;
use std::time::{Duration, Instant};

use tests::{Finished, Installation, Wall, finish, guest_part, initramfs};

/// `bulkhead run … true` with a configuration file of this text.
fn run_with(bulkhead: &Installation, configuration: &str) -> Finished {
    let configuration = bulkhead.configuration(configuration);
    let mut run = bulkhead.bulkhead();
    run.arg("--config")
        .arg(configuration)
        .args(["run", "--rm", "--name", &bulkhead.fresh_name()]);
    finish(run.arg(bulkhead.image()).arg("true"))
}

#[test]
fn a_missing_kernel_is_named() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    run_with(&bulkhead, "[microvm]\nkernel = \"/nonexistent/vmlinux\"")
        .expect(125)
        .complains_of(&[
            "starting the microVM",
            "loading the guest",
            "/nonexistent/vmlinux",
            "No such file",
        ]);
}

#[test]
fn a_truncated_kernel_is_named() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let kernel = bulkhead.scratch("kernel").join("truncated");
    let whole = fs::read(guest_part("vmlinux")).expect("the guest's kernel; `make kernel` makes it");
    fs::write(&kernel, &whole[..whole.len() / 2]).unwrap();
    run_with(&bulkhead, &format!("[microvm]\nkernel = {kernel:?}"))
        .expect(125)
        .complains_of(&["loading the guest", "truncated"]);
}

#[test]
fn a_file_that_is_no_kernel_is_named() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    run_with(&bulkhead, "[microvm]\nkernel = \"/etc/passwd\"")
        .expect(125)
        .complains_of(&["loading the guest", "/etc/passwd", "ELF"]);
}

#[test]
fn a_missing_initramfs_is_named() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    run_with(&bulkhead, "[microvm]\ninitramfs = \"/nonexistent/initramfs\"")
        .expect(125)
        .complains_of(&["loading the guest", "/nonexistent/initramfs"]);
}

#[test]
fn a_missing_vmm_is_named() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    run_with(&bulkhead, "[microvm]\nvmm = \"/nonexistent/bulkhead-vmm\"")
        .expect(125)
        .complains_of(&["starting the VMM", "/nonexistent/bulkhead-vmm"]);
}

#[test]
fn without_kvm_the_other_wall_is_named_and_not_taken() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let finished = run_with(&bulkhead, "[microvm]\nkvm = \"/nonexistent/kvm\"").expect(125);
    assert_eq!(finished.stdout, "");
    finished.complains_of(&["/nonexistent/kvm", "--isolation shared-kernel"]);
}

#[test]
fn a_guest_that_never_answers_names_stage_deadline_and_its_last_words() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    // Busybox as init waits for a console that nobody types on.
    let archive = bulkhead.scratch("guest").join("initramfs.cpio");
    initramfs::with_init(
        &fs::read("/bin/busybox").expect("Debian's busybox-static"),
        &archive,
    );
    let begun = Instant::now();
    run_with(
        &bulkhead,
        &format!("[microvm]\ninitramfs = {archive:?}\nboot_deadline_seconds = 2"),
    )
    .expect(125)
    .complains_of(&["booting the guest", "no answer within 2 s"]);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "took {:?}",
        begun.elapsed()
    );
}

#[test]
fn a_guest_without_an_init_that_runs_panics_by_name() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let archive = bulkhead.scratch("guest").join("initramfs.cpio");
    initramfs::with_init(b"no program at all", &archive);
    run_with(&bulkhead, &format!("[microvm]\ninitramfs = {archive:?}"))
        .expect(125)
        .complains_of(&[
            "booting the guest",
            "kernel panicked",
            "the guest's console ends with:",
            "Kernel panic",
        ]);
}
