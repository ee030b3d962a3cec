//! Page tables as a guest could build them.

use super::*;

const PML5: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const PD: u64 = 0x4000;
const PT: u64 = 0x5000;
const FRAME: u64 = 0x7000;
/// Uses index 1 of every table, so that no two entries coincide.
const LINEAR: u64 = 1 << 39 | 1 << 30 | 1 << 21 | 1 << 12 | 0x123;
const ALL: u64 = PRESENT | WRITABLE | USER;

struct Tables {
    memory: GuestMemoryMmap,
    sregs: kvm_sregs,
    rflags: u64,
    protection_keys: Option<u32>,
}

impl Tables {
    /// Four levels that map [`LINEAR`] to [`FRAME`], with `rights` in the last one.
    fn new(rights: u64) -> Tables {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let sregs = kvm_sregs {
            cr0: CR0_WP,
            cr3: PML4,
            efer: EFER_NXE,
            ..Default::default()
        };
        let tables = Tables {
            memory,
            sregs,
            rflags: 0,
            protection_keys: None,
        };
        for (table, entry) in [
            (PML4, PDPT | ALL),
            (PDPT, PD | ALL),
            (PD, PT | ALL),
            (PT, FRAME | rights),
        ] {
            tables.set(table, entry);
        }
        tables
    }

    fn in_user_mode(mut self) -> Tables {
        self.sregs.ss.dpl = 3;
        self
    }

    fn set(&self, table: u64, entry: u64) {
        self.memory.write_obj(entry, GuestAddress(table + 8)).unwrap();
    }

    fn entry(&self, table: u64) -> u64 {
        self.memory.read_obj(GuestAddress(table + 8)).unwrap()
    }

    fn translate(&self, linear: u64, access: Access) -> Result<u64, Stop> {
        let paging = Paging::new(&self.sregs, self.rflags, 46, self.protection_keys);
        paging
            .translate(&self.memory, linear, access)
            .map(|address| address.0)
    }

    /// The error code of the page fault, which must be at [`LINEAR`].
    fn error_code(&self, access: Access) -> u32 {
        match self.translate(LINEAR, access) {
            Err(Stop::Fault(Exception {
                vector: 14,
                error_code: Some(code),
                fault_address: Some(LINEAR),
            })) => code,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_4_kib_page_is_found_through_four_levels() {
    assert_eq!(
        Tables::new(ALL).translate(LINEAR, Access::Write).unwrap(),
        FRAME + 0x123
    );
}

#[test]
fn with_la57_a_page_is_found_through_five_levels() {
    let mut tables = Tables::new(ALL);
    tables.sregs.cr4 |= CR4_LA57;
    tables.sregs.cr3 = PML5;
    tables.set(PML5, PML4 | ALL);
    assert_eq!(
        tables.translate(1 << 48 | LINEAR, Access::Write).unwrap(),
        FRAME + 0x123
    );
}

#[test]
fn a_2_mib_page_keeps_21_bits_of_the_address() {
    let tables = Tables::new(ALL);
    tables.set(PD, 0x60_0000 | LARGE | ALL);
    assert_eq!(tables.translate(LINEAR, Access::Read).unwrap(), 0x60_1123);
}

#[test]
fn a_1_gib_page_keeps_30_bits_of_the_address() {
    let tables = Tables::new(ALL);
    tables.set(PDPT, 0x8000_0000 | LARGE | ALL);
    assert_eq!(tables.translate(LINEAR, Access::Read).unwrap(), 0x8020_1123);
}

#[test]
fn a_large_pages_pat_bit_is_not_part_of_its_address() {
    let tables = Tables::new(ALL);
    tables.set(PD, 0x60_0000 | 1 << 12 | LARGE | ALL);
    assert_eq!(tables.translate(LINEAR, Access::Read).unwrap(), 0x60_1123);
}

#[test]
fn cr3s_low_bits_are_not_part_of_the_root() {
    let mut tables = Tables::new(ALL);
    tables.sregs.cr3 |= 0x18 | 1 << 63;
    assert!(tables.translate(LINEAR, Access::Read).is_ok());
}

#[test]
fn a_missing_entry_at_any_level_is_a_fault_that_is_not_a_protection_one() {
    for table in [PML4, PDPT, PD, PT] {
        let tables = Tables::new(ALL);
        tables.set(table, 0xdead_b000 & !PRESENT);
        assert_eq!(tables.error_code(Access::Read), 0);
        assert_eq!(tables.error_code(Access::Write), page_fault::WRITE);
    }
}

#[test]
fn a_missing_entry_in_user_mode_says_so() {
    let tables = Tables::new(0).in_user_mode();
    assert_eq!(
        tables.error_code(Access::Write),
        page_fault::WRITE | page_fault::USER
    );
    assert_eq!(tables.error_code(Access::System), 0);
}

#[test]
fn a_write_to_a_read_only_page_is_a_protection_fault() {
    let tables = Tables::new(PRESENT);
    assert_eq!(
        tables.error_code(Access::Write),
        page_fault::PRESENT | page_fault::WRITE
    );
    assert!(tables.translate(LINEAR, Access::Read).is_ok());
}

#[test]
fn a_read_only_table_makes_its_pages_read_only() {
    let tables = Tables::new(ALL);
    tables.set(PD, PT | PRESENT | USER);
    assert_eq!(
        tables.error_code(Access::Write),
        page_fault::PRESENT | page_fault::WRITE
    );
}

#[test]
fn without_write_protection_the_kernel_may_write_a_read_only_page_and_user_mode_may_not() {
    let mut tables = Tables::new(PRESENT | USER);
    tables.sregs.cr0 = 0;
    assert!(tables.translate(LINEAR, Access::Write).is_ok());
    let expected = page_fault::PRESENT | page_fault::WRITE | page_fault::USER;
    assert_eq!(tables.in_user_mode().error_code(Access::Write), expected);
}

#[test]
fn user_mode_may_not_read_a_kernel_page() {
    let tables = Tables::new(PRESENT | WRITABLE).in_user_mode();
    assert_eq!(
        tables.error_code(Access::Read),
        page_fault::PRESENT | page_fault::USER
    );
    assert!(tables.translate(LINEAR, Access::System).is_ok());
}

#[test]
fn with_smap_the_kernel_may_touch_a_user_page_only_while_ac_is_set() {
    let mut tables = Tables::new(ALL);
    tables.sregs.cr4 |= CR4_SMAP;
    assert_eq!(tables.error_code(Access::Read), page_fault::PRESENT);
    assert_eq!(
        tables.error_code(Access::Write),
        page_fault::PRESENT | page_fault::WRITE
    );
    tables.rflags = RFLAGS_AC;
    assert!(tables.translate(LINEAR, Access::Write).is_ok());
    assert_eq!(tables.error_code(Access::System), page_fault::PRESENT);
}

#[test]
fn an_instruction_is_fetched_unless_the_page_forbids_it() {
    assert!(Tables::new(ALL).translate(LINEAR, Access::Fetch).is_ok());
    let tables = Tables::new(ALL | NO_EXECUTE);
    assert_eq!(
        tables.error_code(Access::Fetch),
        page_fault::PRESENT | page_fault::FETCH
    );
    assert!(tables.translate(LINEAR, Access::Read).is_ok());
}

#[test]
fn with_smep_the_kernel_may_not_fetch_from_a_user_page() {
    let mut tables = Tables::new(ALL);
    tables.sregs.cr4 |= CR4_SMEP;
    assert_eq!(
        tables.error_code(Access::Fetch),
        page_fault::PRESENT | page_fault::FETCH
    );
}

#[test]
fn reserved_bits_are_a_fault_of_their_own() {
    let reserved = page_fault::PRESENT | page_fault::RESERVED;
    let cases = [
        (PT, FRAME | ALL | 1 << 46),
        (PML4, PDPT | ALL | LARGE),
        (PDPT, 0x8000_0000 | ALL | LARGE | 1 << 13),
        (PD, 0x60_0000 | ALL | LARGE | 1 << 20),
    ];
    for (table, entry) in cases {
        let tables = Tables::new(ALL);
        tables.set(table, entry);
        assert_eq!(tables.error_code(Access::Read), reserved, "{entry:#x}");
    }
}

#[test]
fn without_nxe_the_no_execute_bit_is_reserved() {
    let mut tables = Tables::new(ALL | NO_EXECUTE);
    tables.sregs.efer = 0;
    assert_eq!(
        tables.error_code(Access::Read),
        page_fault::PRESENT | page_fault::RESERVED
    );
}

#[test]
fn protection_keys_rule_user_pages_and_leave_kernel_pages() {
    let key_2 = 2 << 59;
    let mut tables = Tables::new(ALL | key_2);
    tables.protection_keys = Some(0b10 << 4);
    assert!(tables.translate(LINEAR, Access::Read).is_ok());
    let write = page_fault::PRESENT | page_fault::WRITE | page_fault::PROTECTION_KEY;
    assert_eq!(tables.error_code(Access::Write), write);
    tables.protection_keys = Some(0b01 << 4);
    assert_eq!(
        tables.error_code(Access::Read),
        page_fault::PRESENT | page_fault::PROTECTION_KEY
    );
    tables.set(PT, FRAME | PRESENT | WRITABLE | key_2);
    assert!(tables.translate(LINEAR, Access::Write).is_ok());
}

#[test]
fn a_read_marks_every_level_accessed_and_none_dirty() {
    let tables = Tables::new(ALL);
    tables.translate(LINEAR, Access::Read).unwrap();
    for table in [PML4, PDPT, PD, PT] {
        assert_eq!(tables.entry(table) & (ACCESSED | DIRTY), ACCESSED, "{table:#x}");
    }
}

#[test]
fn a_write_marks_the_last_level_dirty() {
    let tables = Tables::new(ALL);
    tables.translate(LINEAR, Access::Write).unwrap();
    assert_eq!(tables.entry(PT) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    assert_eq!(tables.entry(PD) & (ACCESSED | DIRTY), ACCESSED);
}

#[test]
fn a_fault_marks_nothing() {
    let tables = Tables::new(PRESENT);
    assert!(tables.translate(LINEAR, Access::Write).is_err());
    assert_eq!(tables.entry(PT), FRAME | PRESENT);
    assert_eq!(tables.entry(PML4), PDPT | ALL);
}

#[test]
fn a_non_canonical_address_is_general_protection() {
    let stop = Tables::new(ALL).translate(1 << 47, Access::Read).unwrap_err();
    assert!(
        matches!(
            stop,
            Stop::Fault(Exception {
                vector: 13,
                error_code: Some(0),
                ..
            })
        ),
        "{stop:?}"
    );
}

#[test]
fn a_table_outside_memory_is_named() {
    let tables = Tables::new(ALL);
    tables.set(PD, 0x4000_0000 | ALL);
    let stop = tables.translate(LINEAR, Access::Read).unwrap_err();
    assert!(
        matches!(stop, Stop::Failed(Cause::NotMemory(0x4000_0008))),
        "{stop:?}"
    );
}

#[test]
fn an_entry_that_changed_meanwhile_is_left_and_the_instruction_starts_again() {
    let tables = Tables::new(ALL);
    let paging = Paging::new(&tables.sregs, 0, 46, None);
    let stale = [(GuestAddress(PT + 8), 0xbad_0000 | ALL)];
    assert!(matches!(
        paging.mark(&tables.memory, &stale, 0, Access::Write),
        Err(Stop::Again)
    ));
    assert_eq!(tables.entry(PT), FRAME | ALL);
}
