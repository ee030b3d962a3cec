//! The kernel's command line.

use std::fmt::Write;

use vm_memory::GuestMemoryMmap;

use super::WriteError;
use crate::kernel_mode::KernelMode;
use crate::memory::layout;

/// For every guest. A guest kernel compares each word with every parameter it has, ten times over, so what its
/// configuration can say (`quiet`, `panic=-1`) is not said here, nor what it does for a guest of KVM by itself
/// (`no_timer_check`) or as the first thing that works (`reboot=k`, one port write here).
///
/// - `console=hvc0`: the console is virtio's; until it is there, `earlyprintk` writes to port 0x3f8, so that a panic
///   before that is seen too.
/// - `tsc=reliable`: the host's time stamp counter is what KVM's clock and timer stand on; there is nothing to check it
///   against, and an idle guest need not wake to try.
/// - `rootfstype=ramfs`: the initramfs, which is the agent, is unpacked into the simplest file system there is.
const WORDS: &str = "console=hvc0 earlyprintk=serial,ttyS0,115200 tsc=reliable rootfstype=ramfs";

/// For a KVM that emulates the guest's kernel mode.
///
/// - `noreplace-smp`: a kernel on one CPU would patch each lock prefix away, at the price of emulating the patching.
/// - `clearcpuid=`: `smap`, because `stac` and `clac` are two emulated instructions around every access to user memory;
///   `erms` and `fsrm`, because memory is then copied and cleared eight bytes a step of the emulator instead of one,
///   which takes a quarter off the time of a boot.
/// - `clocksource=kvm-clock`: kvm-pvm takes writes to the time stamp counter and ignores them, so the counter of a
///   restored guest has jumped by the time between; KVM's clock has not.
/// - `lone_task_periods=9`: a tick every 90 ms while one task runs; one every 10 ms is, with what it moves on, half of
///   what a slow host can execute.
/// - `virtiofs.poll_us=5000`: an answer takes the VMM some 0.1 ms, and being woken for it 7,000 instructions.
/// - `read_around_pages=4`: a page costs some thousand instructions to read, insert and charge, whether it is used or not.
///
/// The last three are our kernel's own (`kernel-config/patches/`).
const EMULATED_KERNEL_MODE_WORDS: &str = " noreplace-smp clearcpuid=smap,erms,fsrm clocksource=kvm-clock \
    lone_task_periods=9 virtiofs.poll_us=5000 read_around_pages=4";

/// The command line does not fit.
#[derive(Debug, thiserror::Error)]
#[error("the kernel command line would have {length} bytes; it has room for {}", layout::COMMAND_LINE_BYTES - 1)]
pub struct TooLong {
    /// Its length.
    pub length: usize,
}

/// The words for `kernel_mode`, the announcements of a virtio-mmio window for each of `interrupt_lines` in order, and
/// the machine's own `appended` words.
///
/// # Errors
/// When the kernel could not take so much.
pub fn compose(
    kernel_mode: KernelMode,
    interrupt_lines: impl IntoIterator<Item = u32>,
    appended: &str,
) -> Result<String, TooLong> {
    let mut line = WORDS.to_owned();
    if kernel_mode == KernelMode::Emulated {
        line.push_str(EMULATED_KERNEL_MODE_WORDS);
    }
    for (index, interrupt_line) in (0..).zip(interrupt_lines) {
        let window = layout::VIRTIO_MMIO + index * layout::VIRTIO_MMIO_BYTES;
        // Writing to a String cannot fail.
        let _ = write!(line, " virtio_mmio.device=4K@{window:#x}:{interrupt_line}");
    }
    let appended = appended.trim();
    if !appended.is_empty() {
        line.push(' ');
        line.push_str(appended);
    }
    let length = line.len();
    if length >= layout::COMMAND_LINE_BYTES {
        return Err(TooLong { length });
    }
    Ok(line)
}

/// Writes `line` with its terminating NUL.
///
/// # Errors
/// When the guest has no memory there.
pub fn write(memory: &GuestMemoryMmap, line: &str) -> Result<(), WriteError> {
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    super::write(memory, "the command line", &bytes, layout::COMMAND_LINE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_COMMAND_LINE_BYTES;

    #[test]
    fn devices_are_announced_a_page_apart_before_the_appended_words() {
        let line = compose(KernelMode::Hardware, [5, 6], " agent.log=debug ").unwrap();
        assert!(
            line.ends_with(
                " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 agent.log=debug"
            ),
            "{line}"
        );
    }

    #[test]
    fn hardware_kernel_mode_gets_no_words_for_emulation() {
        let line = compose(KernelMode::Hardware, [], "").unwrap();
        assert_eq!(line, WORDS);
    }

    #[test]
    fn the_longest_appended_words_fit_beside_the_most_devices() {
        let appended = "x".repeat(MAX_COMMAND_LINE_BYTES);
        compose(
            KernelMode::Emulated,
            layout::FIRST_GSI..=layout::LAST_GSI,
            &appended,
        )
        .unwrap();
    }

    #[test]
    fn a_line_the_kernel_would_cut_is_refused() {
        let error = compose(KernelMode::Hardware, [], &"x".repeat(2048)).unwrap_err();
        assert!(error.to_string().ends_with("it has room for 2047"), "{error}");
    }
}
