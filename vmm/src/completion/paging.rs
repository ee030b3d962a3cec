//! From linear to guest-physical addresses: 4- and 5-level paging (SDM volume 3, 4.5 to 4.8).

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, VolatileMemory};

use super::error::{Cause, Stop};
use super::exception::{Exception, page_fault};

const CR0_WP: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const MAX_LEVELS: usize = 5;

/// What a linear address is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The program reads.
    Read,
    /// The program writes.
    Write,
    /// The processor fetches an instruction.
    Fetch,
    /// The processor reads one of its own tables, whatever the program's privilege.
    System,
}

/// The control bits that rule a translation, taken once per instruction.
#[derive(Debug, Clone)]
pub(super) struct Paging {
    root: u64,
    levels: usize,
    reserved: u64,
    user_mode: bool,
    write_protect: bool,
    /// CR4.SMAP, and whether RFLAGS.AC lifts it for the program's own accesses.
    smap: bool,
    smap_lifted: bool,
    smep: bool,
    no_execute: bool,
    /// PKRU, where CR4.PKE is set.
    protection_keys: Option<u32>,
}

/// What the entries of a walk allow together.
struct Rights {
    writable: bool,
    user: bool,
    no_execute: bool,
    protection_key: u32,
}

impl Paging {
    /// `physical_address_bits` is the guest's MAXPHYADDR; `protection_keys` is PKRU if CR4.PKE is set.
    pub(super) fn new(
        sregs: &kvm_sregs,
        rflags: u64,
        physical_address_bits: u8,
        protection_keys: Option<u32>,
    ) -> Paging {
        let above_physical = ADDRESS & !((1_u64 << physical_address_bits) - 1);
        let no_execute = sregs.efer & EFER_NXE != 0;
        Paging {
            root: sregs.cr3 & ADDRESS,
            levels: if sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 },
            reserved: above_physical | if no_execute { 0 } else { NO_EXECUTE },
            user_mode: sregs.ss.dpl == 3,
            write_protect: sregs.cr0 & CR0_WP != 0,
            smap: sregs.cr4 & CR4_SMAP != 0,
            smap_lifted: rflags & RFLAGS_AC != 0,
            smep: sregs.cr4 & CR4_SMEP != 0,
            no_execute,
            protection_keys,
        }
    }

    /// Whether the upper bits of `linear` repeat the highest one that is translated.
    pub(super) fn is_canonical(&self, linear: u64) -> bool {
        let unused_bits = 64 - (12 + 9 * self.levels);
        (((linear << unused_bits) as i64) >> unused_bits) as u64 == linear
    }

    /// Translates one address, and marks the entries on the way accessed, and the last one dirty for a write, as the
    /// processor does.
    pub(super) fn translate(
        &self,
        memory: &GuestMemoryMmap,
        linear: u64,
        access: Access,
    ) -> Result<GuestAddress, Stop> {
        if !self.is_canonical(linear) {
            return Err(Stop::Fault(Exception::general_protection(0)));
        }
        let fault = |reason| Stop::Fault(Exception::page_fault(linear, self.error_code(access) | reason));
        let mut visited = [(GuestAddress(0), 0); MAX_LEVELS];
        let mut rights = Rights {
            writable: true,
            user: true,
            no_execute: false,
            protection_key: 0,
        };
        let mut table = self.root;
        for (level, place) in (1..=self.levels).rev().zip(visited.iter_mut()) {
            let shift = 12 + 9 * (level - 1);
            let address = GuestAddress(table + (linear >> shift & 0x1ff) * 8);
            let entry: u64 = memory
                .load(address, Ordering::Acquire)
                .map_err(|_| Cause::NotMemory(address.0))?;
            *place = (address, entry);
            if entry & PRESENT == 0 {
                return Err(fault(0));
            }
            let is_leaf = level == 1 || entry & LARGE != 0;
            if entry & self.reserved_bits(level, is_leaf) != 0 {
                return Err(fault(page_fault::PRESENT | page_fault::RESERVED));
            }
            rights.writable &= entry & WRITABLE != 0;
            rights.user &= entry & USER != 0;
            rights.no_execute |= entry & NO_EXECUTE != 0;
            if !is_leaf {
                table = entry & ADDRESS;
                continue;
            }
            rights.protection_key = (entry >> 59 & 0xf) as u32;
            if let Err(reason) = self.check(&rights, access) {
                return Err(fault(page_fault::PRESENT | reason));
            }
            let within = (1_u64 << shift) - 1;
            let frame = entry & ADDRESS & !within;
            self.mark(memory, &visited, self.levels - level, access)?;
            return Ok(GuestAddress(frame | linear & within));
        }
        // Level 1 is always a leaf.
        Err(fault(0))
    }

    /// Bits that must be zero: addresses beyond the processor's, large pages where there are none, and the low part of
    /// a large page's address save its PAT bit.
    fn reserved_bits(&self, level: usize, is_leaf: bool) -> u64 {
        self.reserved
            | match (level, is_leaf) {
                (4 | 5, _) => LARGE,
                (3, true) => 0x3fff_e000,
                (2, true) => 0x001f_e000,
                _ => 0,
            }
    }

    fn check(&self, rights: &Rights, access: Access) -> Result<(), u32> {
        let user_mode = self.user_mode && access != Access::System;
        if user_mode && !rights.user {
            return Err(0);
        }
        if access == Access::Fetch {
            let forbidden = rights.no_execute || self.smep && !user_mode && rights.user;
            return if forbidden { Err(0) } else { Ok(()) };
        }
        let lifted = self.smap_lifted && access != Access::System;
        if self.smap && !user_mode && rights.user && !lifted {
            return Err(0);
        }
        let writes_are_checked = user_mode || self.write_protect;
        if access == Access::Write && !rights.writable && writes_are_checked {
            return Err(0);
        }
        if let (Some(keys), true) = (self.protection_keys, rights.user) {
            let key = keys >> (2 * rights.protection_key);
            let (access_disabled, write_disabled) = (key & 1 != 0, key & 2 != 0);
            if access_disabled || write_disabled && access == Access::Write && writes_are_checked {
                return Err(page_fault::PROTECTION_KEY);
            }
        }
        Ok(())
    }

    fn error_code(&self, access: Access) -> u32 {
        let user = if self.user_mode && access != Access::System {
            page_fault::USER
        } else {
            0
        };
        user | match access {
            Access::Write => page_fault::WRITE,
            Access::Fetch if self.no_execute || self.smep => page_fault::FETCH,
            _ => 0,
        }
    }

    /// Sets the accessed and dirty flags that are not set yet. An entry that another vCPU changed since it was read
    /// is left alone, and the instruction starts again.
    fn mark(
        &self,
        memory: &GuestMemoryMmap,
        visited: &[(GuestAddress, u64)],
        leaf: usize,
        access: Access,
    ) -> Result<(), Stop> {
        for (index, &(address, entry)) in visited.iter().take(leaf + 1).enumerate() {
            let dirty = if index == leaf && access == Access::Write {
                DIRTY
            } else {
                0
            };
            let marked = entry | ACCESSED | dirty;
            if marked == entry {
                continue;
            }
            let slice = memory
                .get_slice(address, 8)
                .map_err(|_| Cause::NotMemory(address.0))?;
            let in_memory = slice
                .get_atomic_ref::<AtomicU64>(0)
                .map_err(|_| Cause::NotMemory(address.0))?;
            if in_memory
                .compare_exchange(entry, marked, Ordering::AcqRel, Ordering::Acquire)
                .is_err()
            {
                return Err(Stop::Again);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "paging_tests.rs"]
mod tests;
