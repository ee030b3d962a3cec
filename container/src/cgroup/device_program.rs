//! Device access on cgroup2: a small BPF program that the kernel asks about each access
//! (`Documentation/bpf/prog_cgroup_device`, `<linux/bpf.h>`).

use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::CgroupError;
use super::device_rules::{Access, DeviceRule, DeviceType, Devices};
use crate::kernel::checked;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high four.
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Instruction codes: class | size or operation | mode or source (`Documentation/bpf/standardization`).
const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_REGISTER32: u8 = 0xbc;
const AND_IMMEDIATE32: u8 = 0x54;
const SHIFT_RIGHT_IMMEDIATE32: u8 = 0x74;
const JUMP_IF_NOT_EQUAL_IMMEDIATE32: u8 = 0x56;
const JUMP_IF_EQUAL_IMMEDIATE32: u8 = 0x16;
const JUMP_IF_NOT_EQUAL_REGISTER32: u8 = 0x5e;
const EXIT: u8 = 0x95;

// Registers: the verdict, the context, and what is taken from it.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// `BPF_DEVCG_DEV_*`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// Loads the program of `rules` and attaches it to the cgroup at `folder`, which keeps it alive.
pub(super) fn attach(folder: &Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    let failed = |doing| {
        move |errno: Errno| CgroupError::DeviceProgram {
            doing,
            path: folder.to_owned(),
            source: errno.into(),
        }
    };
    let program = load(&assemble(rules)).map_err(failed("load"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = rustix::fs::open(folder, flags, Mode::empty()).map_err(failed("open the cgroup for"))?;
    attach_to(&cgroup, &program).map_err(failed("attach"))
}

/// The last rule that fits decides, so the last is asked first. Without one, access is denied.
fn assemble(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        // struct bpf_cgroup_dev_ctx: access << 16 | kind, major, minor.
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER32, ACCESS, KIND, 0, 0),
        instruction(SHIFT_RIGHT_IMMEDIATE32, ACCESS, 0, 0, 16),
        instruction(AND_IMMEDIATE32, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut conditions = conditions(rule);
        let always_fits = conditions.is_empty();
        conditions.push(instruction(MOVE_IMMEDIATE, VERDICT, 0, 0, i32::from(rule.allow)));
        conditions.push(instruction(EXIT, 0, 0, 0, 0));
        // A condition that does not hold skips the rest of its rule.
        let length = conditions.len();
        for (index, condition) in conditions.iter_mut().enumerate() {
            if condition.offset == SKIP_RULE {
                condition.offset = (length - index - 1) as i16;
            }
        }
        program.append(&mut conditions);
        // The kernel refuses a program with instructions that are never reached.
        if always_fits {
            return program;
        }
    }
    program.push(instruction(MOVE_IMMEDIATE, VERDICT, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// Stands for the distance to the end of a rule until that is known.
const SKIP_RULE: i16 = i16::MAX;

fn conditions(rule: &DeviceRule) -> Vec<Instruction> {
    let mut conditions = Vec::new();
    if let Devices::Some { kind, major, minor } = rule.devices {
        let kind = match kind {
            DeviceType::Block => BLOCK,
            DeviceType::Character => CHARACTER,
        };
        conditions.push(instruction(
            JUMP_IF_NOT_EQUAL_IMMEDIATE32,
            KIND,
            0,
            SKIP_RULE,
            kind,
        ));
        for (register, number) in [(MAJOR, major), (MINOR, minor)] {
            if let Some(number) = number {
                let number = number.cast_signed();
                conditions.push(instruction(
                    JUMP_IF_NOT_EQUAL_IMMEDIATE32,
                    register,
                    0,
                    SKIP_RULE,
                    number,
                ));
            }
        }
    }
    if rule.access != Access::ALL {
        conditions.push(instruction(MOVE_REGISTER32, SCRATCH, ACCESS, 0, 0));
        conditions.push(instruction(
            AND_IMMEDIATE32,
            SCRATCH,
            0,
            0,
            i32::from(rule.access.0),
        ));
        // A permission must cover all that is asked; a denial bites when it touches any of it.
        conditions.push(if rule.allow {
            instruction(JUMP_IF_NOT_EQUAL_REGISTER32, SCRATCH, ACCESS, SKIP_RULE, 0)
        } else {
            instruction(JUMP_IF_EQUAL_IMMEDIATE32, SCRATCH, 0, SKIP_RULE, 0)
        });
    }
    conditions
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes those that follow for zero.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes and what they point to outlive the call, and the sizes are theirs.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<LoadAttributes>(),
        )
    };
    // SAFETY: the kernel returned a fresh descriptor that nothing else owns.
    checked(returned).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn attach_to(cgroup: &OwnedFd, program: &OwnedFd) -> Result<(), Errno> {
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes outlive the call and the size is theirs.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attributes,
            size_of::<AttachAttributes>(),
        )
    };
    checked(returned).map(|_| ())
}
