//! What a process puts in its registers, and what it finds there.

use std::fmt;

use crate::registers::{Registers, VectorUnit};

/// All exceptions masked: the registers are never computed with, but the program itself must not trap.
const MXCSR: u32 = 0x1f80;
/// MXCSR's rounding mode, two bits.
const ROUNDING_SHIFT: u32 = 13;

/// Contents that no other process and no other round has in any register.
pub(crate) fn pattern(process: u32, round: u32, unit: VectorUnit) -> Registers {
    let mut registers = Registers::default();
    let mut state = u64::from(process + 1) << 32 | u64::from(round);
    let (vectors, lanes) = unit.shape();
    for vector in registers.vectors.iter_mut().take(vectors) {
        vector
            .iter_mut()
            .take(lanes)
            .for_each(|lane| *lane = next(&mut state));
    }
    registers
        .masks
        .iter_mut()
        .take(unit.masks())
        .for_each(|mask| *mask = next(&mut state));
    registers.mxcsr = MXCSR | (process % 4) << ROUNDING_SHIFT;
    registers
}

/// SplitMix64: any two states give different sequences.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The first register that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    register: String,
    expected: u64,
    found: u64,
}

/// Compares the registers that `unit` has.
pub(crate) fn difference(expected: &Registers, found: &Registers, unit: VectorUnit) -> Option<Difference> {
    let (vectors, lanes) = unit.shape();
    let letter = if unit == VectorUnit::Avx { 'y' } else { 'z' };
    let in_vectors = (0..vectors)
        .flat_map(|vector| (0..lanes).map(move |lane| (vector, lane)))
        .map(|(vector, lane)| {
            let value = |registers: &Registers| registers.vectors[vector][lane];
            (
                format!("{letter}mm{vector}, bits {} and up", lane * 64),
                value(expected),
                value(found),
            )
        });
    let in_masks =
        (0..unit.masks()).map(|mask| (format!("k{mask}"), expected.masks[mask], found.masks[mask]));
    let in_mxcsr = [(
        "MXCSR".to_owned(),
        u64::from(expected.mxcsr),
        u64::from(found.mxcsr),
    )];
    in_vectors
        .chain(in_masks)
        .chain(in_mxcsr)
        .find(|(_, expected, found)| expected != found)
        .map(|(register, expected, found)| Difference {
            register,
            expected,
            found,
        })
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: expected {:#018x}, found {:#018x}",
            self.register, self.expected, self.found
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNITS: [VectorUnit; 2] = [VectorUnit::Avx, VectorUnit::Avx512];

    #[test]
    fn equal_registers_do_not_differ() {
        for unit in UNITS {
            assert_eq!(difference(&pattern(0, 7, unit), &pattern(0, 7, unit), unit), None);
        }
    }

    #[test]
    fn one_bit_in_any_lane_of_any_vector_is_found_and_named() {
        for unit in UNITS {
            let expected = pattern(2, 3, unit);
            let (vectors, lanes) = unit.shape();
            for (vector, lane) in (0..vectors).flat_map(|vector| (0..lanes).map(move |lane| (vector, lane))) {
                let mut found = expected.clone();
                found.vectors[vector][lane] ^= 1 << 63;
                let difference = difference(&expected, &found, unit).unwrap();
                assert!(
                    difference
                        .register
                        .ends_with(&format!("mm{vector}, bits {} and up", lane * 64))
                );
                assert_eq!(difference.expected ^ difference.found, 1 << 63);
            }
        }
    }

    #[test]
    fn one_bit_in_any_mask_is_found_and_named() {
        let expected = pattern(2, 3, VectorUnit::Avx512);
        for mask in 0..8 {
            let mut found = expected.clone();
            found.masks[mask] ^= 1;
            let difference = difference(&expected, &found, VectorUnit::Avx512).unwrap();
            assert_eq!(difference.register, format!("k{mask}"));
        }
    }

    #[test]
    fn another_mxcsr_is_found() {
        let expected = pattern(2, 3, VectorUnit::Avx);
        let mut found = expected.clone();
        found.mxcsr = 0x1f80;
        assert_eq!(
            difference(&expected, &found, VectorUnit::Avx).unwrap().register,
            "MXCSR"
        );
    }

    /// What a kernel that saves only SSE does: the upper halves are another process's.
    #[test]
    fn upper_halves_of_another_process_are_found() {
        let (expected, other) = (pattern(0, 5, VectorUnit::Avx), pattern(1, 5, VectorUnit::Avx));
        let mut found = expected.clone();
        for (vector, from) in found.vectors.iter_mut().zip(other.vectors) {
            vector[2..].copy_from_slice(&from[2..]);
        }
        let difference = difference(&expected, &found, VectorUnit::Avx).unwrap();
        assert_eq!(difference.register, "ymm0, bits 128 and up");
    }

    #[test]
    fn no_lane_is_the_same_in_two_processes_or_two_rounds() {
        let registers = [(0, 0), (1, 0), (0, 1), (3, 9)]
            .map(|(process, round)| pattern(process, round, VectorUnit::Avx512));
        for (index, one) in registers.iter().enumerate() {
            for other in &registers[index + 1..] {
                let same = one
                    .vectors
                    .iter()
                    .flatten()
                    .zip(other.vectors.iter().flatten())
                    .any(|(a, b)| a == b);
                assert!(!same);
            }
        }
    }

    #[test]
    fn a_difference_says_what_was_expected_and_what_was_found() {
        let difference = Difference {
            register: "zmm5, bits 64 and up".to_owned(),
            expected: 0x10,
            found: 0xff,
        };
        let text = "zmm5, bits 64 and up: expected 0x0000000000000010, found 0x00000000000000ff";
        assert_eq!(difference.to_string(), text);
    }
}
