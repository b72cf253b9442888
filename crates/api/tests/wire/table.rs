//! The contract as a table, read from `contract.golden`, which a person wrote: nothing in here knows what was generated.

use std::collections::BTreeMap;

/// Written by hand, not generated: one line for each call, message and enum of the published packages.
pub(crate) const GOLDEN: &str = include_str!("../contract.golden");

/// Every message and enum of the contract.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) messages: BTreeMap<String, Vec<Field>>,
    pub(crate) enums: BTreeMap<String, Vec<i64>>,
}

/// One field of a message.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    pub(crate) is_repeated: bool,
    /// The oneof that the field belongs to.
    pub(crate) oneof: Option<String>,
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Bool,
    Int64,
    Text,
    Bytes,
    /// Text to text.
    Map,
    Enum(String),
    Message(String),
}

impl Table {
    /// Reads the golden file; panics when it makes no sense.
    pub(crate) fn read() -> Self {
        let mut enums = BTreeMap::new();
        for (name, body) in entries("enum ") {
            let numbers = parts(body).map(|value| value.split_once(" = ").unwrap().1);
            enums.insert(name, numbers.map(|n| n.parse().unwrap()).collect());
        }
        let is_message: Vec<String> = entries("message ").map(|(name, _)| name).collect();
        let kind = |text: &str| match text {
            "bool" => Kind::Bool,
            "int64" => Kind::Int64,
            "string" => Kind::Text,
            "bytes" => Kind::Bytes,
            "map<string, string>" => Kind::Map,
            name if enums.contains_key(name) => Kind::Enum(name.to_owned()),
            name if is_message.iter().any(|known| known == name) => Kind::Message(name.to_owned()),
            other => panic!("what is {other}?"),
        };
        let field = |text: &str| {
            let (text, number) = text.rsplit_once(" = ").unwrap();
            let (text, type_) = text.rsplit_once(": ").unwrap();
            let (oneof, name) = match text.split_once(": ") {
                Some((oneof, name)) => (Some(oneof.strip_prefix("oneof ").unwrap()), name),
                None => (None, text),
            };
            Field {
                name: name.to_owned(),
                number: number.parse().unwrap(),
                kind: kind(type_.trim_start_matches("repeated ")),
                is_repeated: type_.starts_with("repeated "),
                oneof: oneof.map(str::to_owned),
            }
        };
        let messages =
            entries("message ").map(|(name, body)| (name, parts(body).map(field).collect()));
        Self {
            messages: messages.collect(),
            enums: enums.clone(),
        }
    }

    /// Returns the field of a message that has a number.
    pub(crate) fn field(&self, message: &str, number: u32) -> Option<&Field> {
        let fields = &self.messages[message];
        fields.iter().find(|field| field.number == number)
    }
}

/// Returns name and body of every line of one kind.
fn entries(kind: &str) -> impl Iterator<Item = (String, &'static str)> {
    let lines = GOLDEN
        .lines()
        .filter_map(move |line| line.strip_prefix(kind));
    lines.map(|line| {
        let (name, body) = line.split_once(" {").unwrap();
        (name.to_owned(), body.strip_suffix('}').unwrap())
    })
}

fn parts(body: &str) -> impl Iterator<Item = &str> {
    body.split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}
