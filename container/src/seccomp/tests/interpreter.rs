//! Classic BPF as the kernel runs it over a system call.

use super::super::assembler::{
    AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_OR_EQUAL, LOAD_WORD, RETURN,
};

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CallData {
    pub(super) number: u32,
    pub(super) machine: u32,
    pub(super) arguments: [u64; 6],
}

impl CallData {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.machine,
            16..64 if offset.is_multiple_of(4) => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                (argument >> (offset % 8 * 8)) as u32
            }
            _ => panic!("no field is read from offset {offset}"),
        }
    }
}

/// What the program returns, and after how many instructions. A program the kernel would refuse is a panic.
pub(super) fn run(program: &[libc::sock_filter], data: &CallData) -> (u32, usize) {
    let (mut counter, mut accumulator, mut steps) = (0, 0, 0);
    loop {
        let instruction = program[counter];
        let k = instruction.k;
        counter += 1;
        steps += 1;
        let jump = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
        match instruction.code {
            LOAD_WORD => accumulator = data.word(k),
            AND => accumulator &= k,
            JUMP => counter += k as usize,
            JUMP_EQUAL => counter += jump(accumulator == k),
            JUMP_GREATER => counter += jump(accumulator > k),
            JUMP_GREATER_OR_EQUAL => counter += jump(accumulator >= k),
            RETURN => return (k, steps),
            code => panic!("the compiler makes no instruction {code:#x}"),
        }
    }
}
