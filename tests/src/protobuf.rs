//! Protocol buffers as far as a test needs them: written by field number, and read without a schema.

/// A message being written.
#[derive(Debug, Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// One without fields.
    pub fn new() -> Message {
        Message::default()
    }

    /// Adds a string.
    #[must_use]
    pub fn text(self, field: u32, text: &str) -> Message {
        self.bytes(field, text.as_bytes())
    }

    /// Adds the strings of a repeated field.
    #[must_use]
    pub fn texts(self, field: u32, texts: &[&str]) -> Message {
        texts.iter().fold(self, |message, text| message.text(field, text))
    }

    /// Adds an integer, a boolean or an enumerator.
    #[must_use]
    pub fn number(mut self, field: u32, number: u64) -> Message {
        self.varint(u64::from(field) << 3);
        self.varint(number);
        self
    }

    /// Adds a message.
    #[must_use]
    pub fn message(self, field: u32, message: Message) -> Message {
        self.bytes(field, &message.0)
    }

    /// What goes over the wire.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn bytes(mut self, field: u32, bytes: &[u8]) -> Message {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// A message that was read.
#[derive(Debug, Clone, Default)]
pub struct Fields(Vec<(u32, Field)>);

#[derive(Debug, Clone)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Fields {
    /// Reads a message.
    pub fn read(mut bytes: &[u8]) -> Fields {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Number(varint(&mut bytes)),
                2 => {
                    let length = varint(&mut bytes) as usize;
                    let (field, rest) = bytes.split_at(length);
                    bytes = rest;
                    Field::Bytes(field.to_vec())
                }
                kind => panic!("a field of wire type {kind}"),
            };
            fields.push(((key >> 3) as u32, field));
        }
        Fields(fields)
    }

    /// An integer, which is 0 if it is missing.
    pub fn number(&self, field: u32) -> u64 {
        match self.find(field) {
            Some(Field::Number(number)) => *number,
            _ => 0,
        }
    }

    /// A string, which is empty if it is missing.
    pub fn text(&self, field: u32) -> String {
        match self.find(field) {
            Some(Field::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        }
    }

    /// A message, which has no fields if it is missing.
    pub fn message(&self, field: u32) -> Fields {
        match self.find(field) {
            Some(Field::Bytes(bytes)) => Fields::read(bytes),
            _ => Fields::default(),
        }
    }

    /// Whether a field is there.
    pub fn has(&self, field: u32) -> bool {
        self.find(field).is_some()
    }

    fn find(&self, field: u32) -> Option<&Field> {
        let mut found = self.0.iter().filter(|(number, _)| *number == field);
        found.next_back().map(|(_, field)| field)
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("a number that ends");
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}
