//! What KVM reports when it cannot emulate an instruction.

use std::fmt;

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_run,
};

/// No x86 instruction is longer.
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// The `u64`s of `emulation_failure` that hold the flags and the instruction's size and bytes.
const WORDS_WITH_INSTRUCTION: u32 = 3;

/// `KVM_EXIT_INTERNAL_ERROR` for an instruction that KVM could not emulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmulationFailure {
    /// What KVM had fetched at RIP: the instruction and often bytes behind it; empty if KVM had fetched nothing.
    pub bytes: InstructionBytes,
}

impl EmulationFailure {
    /// Reads the failure from the `kvm_run` page. `None` if the last exit was anything else.
    pub fn from_run(run: &kvm_run) -> Option<EmulationFailure> {
        if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
            return None;
        }
        // SAFETY: the exit reason says that this field of the union is in use, and all its bit patterns are valid.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
            return None;
        }
        let has_bytes = failure.ndata >= WORDS_WITH_INSTRUCTION
            && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        if !has_bytes {
            return Some(EmulationFailure {
                bytes: InstructionBytes::default(),
            });
        }
        // SAFETY: the flag says that this field is in use; it is the union's only one, and plain bytes.
        let fetched = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let length = usize::from(fetched.insn_size).min(MAX_INSTRUCTION_BYTES);
        Some(EmulationFailure {
            bytes: fetched.insn_bytes.iter().take(length).copied().collect(),
        })
    }
}

/// Up to [`MAX_INSTRUCTION_BYTES`] bytes of machine code. Displayed in hexadecimal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InstructionBytes {
    bytes: [u8; MAX_INSTRUCTION_BYTES],
    length: u8,
}

impl InstructionBytes {
    /// The bytes that are known.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len()).unwrap_or_default()
    }

    /// How many bytes are known.
    pub fn len(&self) -> usize {
        usize::from(self.length)
    }

    /// Whether no byte is known.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(usize::from(self.length)) {
            *place = byte;
            self.length += 1;
        }
    }

    pub(super) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(u8::try_from(length).unwrap_or(u8::MAX));
    }
}

impl FromIterator<u8> for InstructionBytes {
    /// Bytes past [`MAX_INSTRUCTION_BYTES`] are dropped.
    fn from_iter<I: IntoIterator<Item = u8>>(bytes: I) -> InstructionBytes {
        let mut collected = InstructionBytes::default();
        bytes
            .into_iter()
            .take(MAX_INSTRUCTION_BYTES)
            .for_each(|byte| collected.push(byte));
        collected
    }
}

impl fmt::Display for InstructionBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return formatter.write_str("bytes unknown");
        }
        for (index, byte) in self.as_slice().iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(formatter, "{separator}{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed_run(suberror: u32, ndata: u32, flags: u64, size: u8, bytes: [u8; 15]) -> kvm_run {
        let mut run = kvm_run {
            exit_reason: KVM_EXIT_INTERNAL_ERROR,
            ..Default::default()
        };
        let mut failure = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_14 {
            suberror,
            ndata,
            flags,
            ..Default::default()
        };
        failure.__bindgen_anon_1.__bindgen_anon_1 =
            kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_14__bindgen_ty_1__bindgen_ty_1 {
                insn_size: size,
                insn_bytes: bytes,
            };
        run.__bindgen_anon_1.emulation_failure = failure;
        run
    }

    const NOPS: [u8; 15] = [0x90; 15];

    #[test]
    fn an_emulation_failure_with_bytes_gives_them() {
        let failure = EmulationFailure::from_run(&failed_run(1, 8, 1, 3, NOPS)).unwrap();
        assert_eq!(failure.bytes.as_slice(), [0x90; 3]);
        assert_eq!(failure.bytes.to_string(), "90 90 90");
    }

    #[test]
    fn an_emulation_failure_without_the_bytes_flag_gives_none() {
        let failure = EmulationFailure::from_run(&failed_run(1, 8, 0, 3, NOPS)).unwrap();
        assert!(failure.bytes.is_empty());
        assert_eq!(failure.bytes.to_string(), "bytes unknown");
    }

    #[test]
    fn an_emulation_failure_with_too_few_words_gives_no_bytes() {
        assert!(
            EmulationFailure::from_run(&failed_run(1, 2, 1, 3, NOPS))
                .unwrap()
                .bytes
                .is_empty()
        );
    }

    #[test]
    fn a_size_beyond_fifteen_is_cut() {
        assert_eq!(
            EmulationFailure::from_run(&failed_run(1, 8, 1, 200, NOPS))
                .unwrap()
                .bytes
                .len(),
            15
        );
    }

    #[test]
    fn another_internal_error_is_none() {
        assert_eq!(EmulationFailure::from_run(&failed_run(3, 8, 1, 3, NOPS)), None);
    }

    #[test]
    fn another_exit_is_none() {
        let run = kvm_run {
            exit_reason: kvm_bindings::KVM_EXIT_IO,
            ..failed_run(1, 8, 1, 3, NOPS)
        };
        assert_eq!(EmulationFailure::from_run(&run), None);
    }
}
