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
const SHIFT_LEFT_IMMEDIATE32: u8 = 0x64;
const OR_REGISTER32: u8 = 0x4c;
const JUMP: u8 = 0x05;
const EXIT: u8 = 0x95;

// Registers: the verdict, the context, and what is taken from it.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;
/// Major and minor number in one, as the kernel's `dev_t` has them.
const NUMBER: u8 = 7;

/// The widths of the two in `dev_t` (`<linux/kdev_t.h>`).
const MAJOR_BITS: u32 = 12;
const MINOR_BITS: u32 = 20;

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
///
/// Rules side by side that say the same of single devices of one kind share their question about the kind and their
/// answer: the kernel walks every path through a program before it takes it, so paths that meet again cost the most.
fn assemble(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        // struct bpf_cgroup_dev_ctx: access << 16 | kind, major, minor.
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER32, ACCESS, KIND, 0, 0),
        instruction(SHIFT_RIGHT_IMMEDIATE32, ACCESS, 0, 0, 16),
        instruction(AND_IMMEDIATE32, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        instruction(MOVE_REGISTER32, NUMBER, MAJOR, 0, 0),
        instruction(SHIFT_LEFT_IMMEDIATE32, NUMBER, 0, 0, MINOR_BITS as i32),
        instruction(OR_REGISTER32, NUMBER, MINOR, 0, 0),
    ];
    let mut rest: Vec<DeviceRule> = rules.to_vec();
    while let Some(rule) = rest.pop() {
        if let Some(listed) = Listed::of(&rule) {
            let mut questions = vec![listed.question];
            while let Some(next) = rest.last().and_then(Listed::of)
                && (next.allow, next.kind) == (listed.allow, listed.kind)
                && questions.len() < LONGEST_LIST
            {
                questions.push(next.question);
                rest.pop();
            }
            program.extend(list(listed.kind, listed.allow, &questions));
            continue;
        }
        let conditions = conditions(&rule);
        let always_fits = conditions.is_empty();
        program.extend(single(conditions, rule.allow));
        // The kernel refuses a program with instructions that are never reached.
        if always_fits {
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// Jumps reach 32,767 instructions.
const LONGEST_LIST: usize = 1000;

/// A rule about every access to one device, or to every device of a major number.
struct Listed {
    allow: bool,
    kind: DeviceType,
    /// The register to compare, and the value that fits.
    question: (u8, i32),
}

impl Listed {
    fn of(rule: &DeviceRule) -> Option<Listed> {
        let DeviceRule {
            allow,
            devices:
                Devices::Some {
                    kind,
                    major: Some(major),
                    minor,
                },
            access: Access::ALL,
        } = *rule
        else {
            return None;
        };
        let question = match minor {
            None => (MAJOR, major),
            // Numbers beyond what the kernel has would be mistaken for others.
            Some(minor) if major >> MAJOR_BITS == 0 && minor >> MINOR_BITS == 0 => {
                (NUMBER, major << MINOR_BITS | minor)
            }
            Some(_) => return None,
        };
        let question = (question.0, question.1.cast_signed());
        Some(Listed {
            allow,
            kind,
            question,
        })
    }
}

/// `if kind == K && (first || second || …) return answer;`
fn list(kind: DeviceType, allow: bool, questions: &[(u8, i32)]) -> Vec<Instruction> {
    // The answer's two instructions and the jump around them stand behind the questions.
    let count = questions.len() as i16;
    let mut program = vec![instruction(
        JUMP_IF_NOT_EQUAL_IMMEDIATE32,
        KIND,
        0,
        count + 3,
        number_of(kind),
    )];
    for (index, (register, value)) in (0..).zip(questions) {
        program.push(instruction(
            JUMP_IF_EQUAL_IMMEDIATE32,
            *register,
            0,
            count - index,
            *value,
        ));
    }
    program.push(instruction(JUMP, 0, 0, 2, 0));
    program.extend(answer(allow));
    program
}

/// `if every condition holds return answer;`: one that does not skips the rest.
fn single(mut conditions: Vec<Instruction>, allow: bool) -> Vec<Instruction> {
    conditions.extend(answer(allow));
    let length = conditions.len();
    for (index, condition) in conditions.iter_mut().enumerate() {
        if condition.offset == SKIP_RULE {
            condition.offset = (length - index - 1) as i16;
        }
    }
    conditions
}

fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(MOVE_IMMEDIATE, VERDICT, 0, 0, i32::from(allow)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// Stands for the distance to the end of a rule until that is known.
const SKIP_RULE: i16 = i16::MAX;

fn conditions(rule: &DeviceRule) -> Vec<Instruction> {
    let mut conditions = Vec::new();
    if let Devices::Some { kind, major, minor } = rule.devices {
        conditions.push(instruction(
            JUMP_IF_NOT_EQUAL_IMMEDIATE32,
            KIND,
            0,
            SKIP_RULE,
            number_of(kind),
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

fn number_of(kind: DeviceType) -> i32 {
    match kind {
        DeviceType::Block => BLOCK,
        DeviceType::Character => CHARACTER,
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel's interpreter makes of a program for one access.
    fn verdict(program: &[Instruction], kind: i32, asked: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(asked) << 16 | kind.cast_unsigned(), major, minor];
        let mut registers = [0u32; 10];
        let mut at = 0i64;
        loop {
            let Instruction {
                code,
                registers: operands,
                offset,
                immediate,
            } = program[usize::try_from(at).unwrap()];
            let (to, from) = (usize::from(operands & 0xf), usize::from(operands >> 4));
            let value = immediate.cast_unsigned();
            at += 1;
            let jump = match code {
                LOAD_WORD => {
                    registers[to] = context[usize::try_from(offset / 4).unwrap()];
                    false
                }
                MOVE_IMMEDIATE => {
                    registers[to] = value;
                    false
                }
                MOVE_REGISTER32 => {
                    registers[to] = registers[from];
                    false
                }
                AND_IMMEDIATE32 => {
                    registers[to] &= value;
                    false
                }
                OR_REGISTER32 => {
                    registers[to] |= registers[from];
                    false
                }
                SHIFT_RIGHT_IMMEDIATE32 => {
                    registers[to] >>= value;
                    false
                }
                SHIFT_LEFT_IMMEDIATE32 => {
                    registers[to] <<= value;
                    false
                }
                JUMP => true,
                JUMP_IF_EQUAL_IMMEDIATE32 => registers[to] == value,
                JUMP_IF_NOT_EQUAL_IMMEDIATE32 => registers[to] != value,
                JUMP_IF_NOT_EQUAL_REGISTER32 => registers[to] != registers[from],
                EXIT => return registers[usize::from(VERDICT)] == 1,
                _ => panic!("instruction {code:#x}"),
            };
            if jump {
                at += i64::from(offset);
            }
        }
    }

    /// The rules' words.
    fn allowed(rules: &[DeviceRule], kind: DeviceType, asked: u8, major: u32, minor: u32) -> bool {
        let fits = |rule: &&DeviceRule| {
            let device = match rule.devices {
                Devices::All => true,
                Devices::Some {
                    kind: of,
                    major: wanted_major,
                    minor: wanted_minor,
                } => {
                    of == kind
                        && wanted_major.is_none_or(|wanted| wanted == major)
                        && wanted_minor.is_none_or(|wanted| wanted == minor)
                }
            };
            let access = if rule.allow {
                asked & !rule.access.0 == 0
            } else {
                asked & rule.access.0 != 0
            };
            device && access
        };
        rules.iter().rev().find(fits).is_some_and(|rule| rule.allow)
    }

    fn number(most: u32) -> impl Strategy<Value = Option<u32>> {
        prop_oneof![
            2 => Just(None),
            6 => (0..4u32).prop_map(Some),
            1 => Just(Some(most)),
            1 => any::<u32>().prop_map(Some),
        ]
    }

    fn kind() -> impl Strategy<Value = DeviceType> {
        prop_oneof![Just(DeviceType::Block), Just(DeviceType::Character)]
    }

    fn rule() -> impl Strategy<Value = DeviceRule> {
        let some = (
            kind(),
            number((1 << MAJOR_BITS) - 1),
            number((1 << MINOR_BITS) - 1),
        )
            .prop_map(|(kind, major, minor)| Devices::Some { kind, major, minor });
        let devices = prop_oneof![1 => Just(Devices::All), 9 => some];
        let access = prop_oneof![Just(7), 1..8u8].prop_map(Access);
        (any::<bool>(), devices, access).prop_map(|(allow, devices, access)| DeviceRule {
            allow,
            devices,
            access,
        })
    }

    proptest! {
        #[test]
        fn the_program_says_what_the_rules_say(
            rules in prop::collection::vec(rule(), 0..12),
            kind in kind(),
            asked in 1..8u8,
            major in 0..4u32,
            minor in 0..4u32,
        ) {
            let program = assemble(&rules);
            let expected = allowed(&rules, kind, asked, major, minor);
            prop_assert_eq!(verdict(&program, number_of(kind), asked, major, minor), expected);
        }
    }

    #[test]
    fn the_default_devices_share_one_question_about_their_kind() {
        let program = assemble(&super::super::device_rules::plan(&[]).unwrap());
        let about_kind = program
            .iter()
            .filter(|instruction| instruction.code == JUMP_IF_NOT_EQUAL_IMMEDIATE32)
            .count();
        // The list, and the two rules that let every node be made.
        assert_eq!(about_kind, 3);
        assert!(verdict(&program, CHARACTER, 6, 1, 3));
        assert!(verdict(&program, CHARACTER, 6, 136, 77));
        assert!(verdict(&program, BLOCK, 1, 8, 0));
        assert!(!verdict(&program, BLOCK, 2, 8, 0));
        assert!(!verdict(&program, CHARACTER, 6, 10, 232));
    }
}
