//! Messages as bytes and back, by the table alone: a second reading of what proto3 says, which shares no line with what was generated.

use std::collections::BTreeMap;

use crate::table::{Kind, Table};

/// What a field holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    /// Of an enum too.
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
    Map(BTreeMap<String, String>),
    Message(Fields),
    List(Vec<Value>),
}

/// The fields of a message that are on the wire, by number.
pub(crate) type Fields = BTreeMap<u32, Value>;

const VARINT: u32 = 0;
const EIGHT_BYTES: u32 = 1;
const LENGTH: u32 = 2;
const GROUP: u32 = 3;
const GROUP_END: u32 = 4;
const FOUR_BYTES: u32 = 5;

/// Appends a number, seven bits in each byte.
pub(crate) fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number > 0x7f {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(u64::from(number << 3 | LENGTH), out);
    put_varint(bytes.len() as u64, out);
    out.extend(bytes);
}

/// Returns a message as bytes: every field that is given, whatever it holds.
pub(crate) fn encode(fields: &Fields) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, value) in fields {
        match value {
            Value::List(values) => values
                .iter()
                .for_each(|value| put(*number, value, &mut out)),
            value => put(*number, value, &mut out),
        }
    }
    out
}

fn put(number: u32, value: &Value, out: &mut Vec<u8>) {
    let mut put_number = |value: u64| {
        put_varint(u64::from(number << 3 | VARINT), out);
        put_varint(value, out);
    };
    match value {
        Value::Bool(value) => put_number(u64::from(*value)),
        Value::Number(value) => put_number(*value as u64),
        Value::Text(text) => put_bytes(number, text.as_bytes(), out),
        Value::Bytes(bytes) => put_bytes(number, bytes, out),
        Value::Message(fields) => put_bytes(number, &encode(fields), out),
        Value::Map(map) => {
            for (key, value) in map {
                let entry = [
                    (1, Value::Text(key.clone())),
                    (2, Value::Text(value.clone())),
                ];
                put_bytes(number, &encode(&entry.into()), out);
            }
        }
        Value::List(_) => panic!("a list in a list"),
    }
}

/// Returns what bytes say; panics when they are no such message. Numbers that the table does not have are skipped.
pub(crate) fn decode(table: &Table, message: &str, mut bytes: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes);
        let number = u32::try_from(tag >> 3).unwrap();
        let form = (tag & 7) as u32;
        let Some(field) = table.field(message, number) else {
            skip(form, &mut bytes);
            continue;
        };
        let expected = match field.kind {
            Kind::Bool | Kind::Int64 | Kind::Enum(_) => VARINT,
            _ => LENGTH,
        };
        assert_eq!(form, expected, "{message}.{}", field.name);
        let value = match &field.kind {
            Kind::Bool => Value::Bool(take_varint(&mut bytes) != 0),
            Kind::Int64 | Kind::Enum(_) => Value::Number(take_varint(&mut bytes) as i64),
            Kind::Text => Value::Text(text(take_bytes(&mut bytes))),
            Kind::Bytes => Value::Bytes(take_bytes(&mut bytes).to_vec()),
            Kind::Message(name) => Value::Message(decode(table, name, take_bytes(&mut bytes))),
            Kind::Map => {
                let (key, value) = entry(take_bytes(&mut bytes));
                let Value::Map(map) = fields
                    .entry(number)
                    .or_insert_with(|| Value::Map(BTreeMap::new()))
                else {
                    panic!("not a map");
                };
                map.insert(key, value);
                continue;
            }
        };
        if field.is_repeated {
            let Value::List(list) = fields.entry(number).or_insert(Value::List(Vec::new())) else {
                panic!("not a list");
            };
            list.push(value);
        } else {
            let before = fields.insert(number, value);
            assert!(
                before.is_none(),
                "{message}.{} was written twice",
                field.name
            );
        }
    }
    fields
}

/// Returns key and value of an entry of a map; what is not written is empty.
fn entry(mut bytes: &[u8]) -> (String, String) {
    let mut both = [String::new(), String::new()];
    while !bytes.is_empty() {
        let index = match take_varint(&mut bytes) {
            0x0a => 0,
            0x12 => 1,
            other => panic!("tag {other} in an entry of a map"),
        };
        both[index] = text(take_bytes(&mut bytes));
    }
    both.into()
}

fn skip(form: u32, bytes: &mut &[u8]) {
    match form {
        VARINT => _ = take_varint(bytes),
        EIGHT_BYTES => *bytes = &bytes[8..],
        LENGTH => _ = take_bytes(bytes),
        FOUR_BYTES => *bytes = &bytes[4..],
        GROUP => loop {
            let form = (take_varint(bytes) & 7) as u32;
            if form == GROUP_END {
                return;
            }
            skip(form, bytes);
        },
        other => panic!("there is no wire type {other}"),
    }
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return number;
        }
    }
    panic!("a number of more than ten bytes");
}

fn take_bytes<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = usize::try_from(take_varint(bytes)).unwrap();
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
