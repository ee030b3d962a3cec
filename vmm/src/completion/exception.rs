//! Exceptions an instruction can raise (SDM volume 3, chapter 6).

/// An exception on its way to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) vector: u8,
    /// `None` where the vector pushes none.
    pub(super) error_code: Option<u32>,
    /// What CR2 shall hold: page faults only.
    pub(super) fault_address: Option<u64>,
}

/// Page fault error code bits (SDM volume 3, 4.7).
pub(super) mod page_fault {
    pub(in crate::completion) const PRESENT: u32 = 1;
    pub(in crate::completion) const WRITE: u32 = 1 << 1;
    pub(in crate::completion) const USER: u32 = 1 << 2;
    pub(in crate::completion) const RESERVED: u32 = 1 << 3;
    pub(in crate::completion) const FETCH: u32 = 1 << 4;
    pub(in crate::completion) const PROTECTION_KEY: u32 = 1 << 5;
}

pub(super) const PAGE_FAULT: u8 = 14;
pub(super) const DOUBLE_FAULT: u8 = 8;

impl Exception {
    pub(super) const SINGLE_STEP: Exception = Exception::plain(1);
    pub(super) const BREAKPOINT: Exception = Exception::plain(3);
    pub(super) const INVALID_OPCODE: Exception = Exception::plain(6);
    pub(super) const DEVICE_NOT_AVAILABLE: Exception = Exception::plain(7);
    pub(super) const X87_ERROR: Exception = Exception::plain(16);
    pub(super) const DOUBLE: Exception = Exception::with_code(DOUBLE_FAULT, 0);

    pub(super) const fn segment_not_present(error_code: u32) -> Exception {
        Exception::with_code(11, error_code)
    }

    pub(super) const fn stack(error_code: u32) -> Exception {
        Exception::with_code(12, error_code)
    }

    pub(super) const fn general_protection(error_code: u32) -> Exception {
        Exception::with_code(13, error_code)
    }

    pub(super) const fn page_fault(address: u64, error_code: u32) -> Exception {
        Exception {
            fault_address: Some(address),
            ..Exception::with_code(PAGE_FAULT, error_code)
        }
    }

    /// Whether the saved RIP is the instruction's own. Only then is RFLAGS.RF set in the saved flags.
    pub(super) fn is_fault(&self) -> bool {
        !matches!(*self, Exception::SINGLE_STEP | Exception::BREAKPOINT)
    }

    const fn plain(vector: u8) -> Exception {
        Exception {
            vector,
            error_code: None,
            fault_address: None,
        }
    }

    const fn with_code(vector: u8, error_code: u32) -> Exception {
        Exception {
            vector,
            error_code: Some(error_code),
            fault_address: None,
        }
    }
}
