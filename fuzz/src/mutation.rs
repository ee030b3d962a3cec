//! Mutants of inputs: of any bytes, and of JSON documents by their values, because a document with a byte changed is
//! mostly none any more.

use serde_json::{Map, Value};

/// Numbers without end, the same for the same seed (SplitMix64, Steele et al., 2014).
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// Those of this seed.
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ number >> 31
    }

    /// Below `bound`, or 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound.max(1) as u64)) as usize
    }
}

/// Values at which readers go wrong.
const NUMBERS: [i64; 14] = [
    0,
    1,
    -1,
    7,
    64,
    255,
    4096,
    65536,
    i32::MAX as i64,
    u32::MAX as i64,
    1 << 32,
    i64::MAX,
    i64::MIN,
    1 << 53,
];
const TEXTS: [&str; 16] = [
    "",
    "/",
    ".",
    "..",
    "../x",
    "\0",
    "a\u{0}b",
    "/dev/null",
    "0-4095",
    "1-0",
    "max",
    "rw,ro",
    "é\u{1f980}",
    "proc",
    "SCMP_ACT_ALLOW",
    "\u{1b}[2J",
];

/// A mutant of `data`, one or a few steps away.
pub fn mutate(data: &[u8], is_json: bool, numbers: &mut Numbers) -> Vec<u8> {
    match serde_json::from_slice(data) {
        // Some mutants of documents are none.
        Ok(document) if is_json && numbers.below(5) > 0 => text_of(&mutate_document(document, numbers)),
        _ => mutate_bytes(data.to_vec(), numbers),
    }
}

/// `document` as text.
pub fn text_of(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

fn mutate_bytes(mut data: Vec<u8>, numbers: &mut Numbers) -> Vec<u8> {
    for _ in 0..=numbers.below(4) {
        let position = numbers.below(data.len());
        let end = data.len().min(position + 1 + numbers.below(32));
        let byte = numbers.next() as u8;
        match (numbers.below(6), data.get_mut(position)) {
            (0, Some(there)) => *there ^= 1 << (byte % 8),
            (1, Some(there)) => *there = byte,
            (2, Some(_)) => drop(data.drain(position..end)),
            (3, Some(_)) => data.truncate(position),
            (4, Some(_)) => {
                let piece = data.get(position..end).unwrap_or_default().to_vec();
                data.splice(position..position, piece);
            }
            _ => data.insert(position, byte),
        }
    }
    data
}

fn mutate_document(mut document: Value, numbers: &mut Numbers) -> Value {
    for _ in 0..=numbers.below(3) {
        let elsewhere = some_value(&mut document.clone(), numbers).clone();
        change(some_value(&mut document, numbers), elsewhere, numbers);
    }
    document
}

/// A value of the document, as often a leaf as a branch.
fn some_value<'a>(mut value: &'a mut Value, numbers: &mut Numbers) -> &'a mut Value {
    loop {
        let length = match value {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        if length == 0 || numbers.below(8) == 0 {
            return value;
        }
        let index = numbers.below(length);
        value = match value {
            Value::Array(list) => &mut list[index],
            Value::Object(map) => match map.values_mut().nth(index) {
                Some(value) => value,
                None => unreachable!("{index} is below {length}"),
            },
            _ => unreachable!("it has a length"),
        };
    }
}

fn change(value: &mut Value, elsewhere: Value, numbers: &mut Numbers) {
    let number = NUMBERS[numbers.below(NUMBERS.len())];
    let text = TEXTS[numbers.below(TEXTS.len())];
    match (value, numbers.below(6)) {
        (Value::Object(map), 0 | 1) => drop(remove_some(map, numbers)),
        (Value::Object(map), 2) => drop(map.insert(text.to_owned(), elsewhere)),
        (Value::Array(list), 0) => drop(list.pop()),
        (Value::Array(list), 1) => list.push(elsewhere),
        // The next of its kind: a rule, a mount, a mapping twice.
        (Value::Array(list), 2 | 3) => {
            let copies = list.clone();
            list.extend(copies);
        }
        (Value::String(there), 0) => there.push_str(text),
        (Value::String(there), 1) => drop(there.pop()),
        (Value::String(there), 2 | 3) => *there = text.to_owned(),
        (Value::Number(there), 0..=3) => *there = number.into(),
        (value, 4) => *value = elsewhere,
        (value, _) => {
            *value = match numbers.below(6) {
                0 => Value::Null,
                1 => true.into(),
                2 => text.into(),
                3 => Value::Array(Vec::new()),
                4 => Value::Object(Map::new()),
                _ => number.into(),
            }
        }
    }
}

fn remove_some(map: &mut Map<String, Value>, numbers: &mut Numbers) -> Option<Value> {
    let key = map.keys().nth(numbers.below(map.len()))?.clone();
    map.remove(&key)
}
