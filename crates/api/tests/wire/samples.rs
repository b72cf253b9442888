//! Values for every field of the table.

use std::collections::BTreeMap;

use crate::codec::{Fields, Value};
use crate::table::{Field, Kind, Table};

/// How deep messages within messages are filled: from `BuildRequest` down to the settings of git, and composites in composites.
pub(crate) const DEPTH: u32 = 6;

/// Returns messages in which every field appears: alone with each of its values, and with all others, once for each choice of a oneof.
pub(crate) fn of(table: &Table, message: &str, depth: u32) -> Vec<Fields> {
    let fields = &table.messages[message];
    let mut samples = vec![Fields::new()];
    for field in fields {
        let alone = values(table, field, depth).into_iter();
        samples.extend(alone.map(|value| Fields::from([(field.number, value)])));
    }
    let last = |field: &Field| Some((field.number, values(table, field, depth).pop()?));
    let plain: Fields = fields
        .iter()
        .filter(|it| it.oneof.is_none())
        .filter_map(last)
        .collect();
    for choice in fields.iter().filter(|it| it.oneof.is_some()) {
        let mut full = plain.clone();
        full.extend(last(choice));
        samples.push(full);
    }
    samples.push(plain);
    samples
}

/// Returns values of a field that are written: nothing that is a default, but for what has presence.
fn values(table: &Table, field: &Field, depth: u32) -> Vec<Value> {
    let text = |text: &str| Value::Text(text.to_owned());
    let singles = match &field.kind {
        Kind::Bool => vec![Value::Bool(true)],
        Kind::Int64 => [1, -1, 127, 128, i64::MAX, i64::MIN]
            .map(Value::Number)
            .into(),
        Kind::Text => vec![
            text("a\0b"),
            text("käse 🧀"),
            text(&"x".repeat(200)),
            // Every field another text: swapped fields would be seen.
            text(&field.name),
        ],
        Kind::Bytes => vec![Value::Bytes(vec![0xff; 300]), Value::Bytes(vec![0, 0xfe])],
        Kind::Map => {
            let map = |pairs: &[(&str, &str)]| {
                let pairs = pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
                Value::Map(pairs.collect::<BTreeMap<_, _>>())
            };
            vec![
                map(&[("", "")]),
                map(&[("k", "")]),
                map(&[("", "v"), ("a", "b"), (&field.name, "c")]),
            ]
        }
        // What this side does not know yet is kept, too.
        Kind::Enum(name) => {
            let known = table.enums[name]
                .iter()
                .copied()
                .filter(|value| *value != 0);
            known
                .chain([99, -1, i64::from(i32::MAX)])
                .map(Value::Number)
                .collect()
        }
        Kind::Message(name) => match depth.checked_sub(1) {
            Some(depth) => of(table, name, depth)
                .into_iter()
                .map(Value::Message)
                .collect(),
            None => vec![Value::Message(Fields::new())],
        },
    };
    if !field.is_repeated {
        return singles;
    }
    // The last of a list of messages is the fullest: enough for the way in, and all of them once.
    let fullest = singles.last().cloned().into_iter().collect();
    let mut many = singles;
    if field.kind == Kind::Text {
        many.push(text(""));
    }
    vec![Value::List(many), Value::List(fullest)]
}
