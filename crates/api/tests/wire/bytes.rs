//! Every message of the contract, through our types and back.

use std::collections::BTreeSet;

use api::{builder, contentservice};
use prost::{DecodeError, Message};

use crate::codec::{self, Fields, Value, decode, encode};
use crate::samples;
use crate::table::{Kind, Table};

/// Decodes and encodes with what was generated.
type Through = fn(&[u8]) -> Result<Vec<u8>, DecodeError>;

fn through<M: Message + Default>(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    Ok(M::decode(bytes)?.encode_to_vec())
}

macro_rules! types {
    ($($package:ident { $($name:ident $(in $module:ident)?),* $(,)? })*) => {
        [$($((
            concat!(stringify!($package), ".", $(types!(@outer $module), ".",)? stringify!($name)),
            through::<$package::$($module::)?$name> as Through,
        )),*),*]
    };
    (@outer file_download_initializer) => { "FileDownloadInitializer" };
}

/// Every message, under its name in the table.
const TYPES: [(&str, Through); 34] = types! {
    builder {
        BuildSource, BuildSourceReference, BuildSourceDockerfile, ResolveBaseImageRequest, ResolveBaseImageResponse,
        ResolveWorkspaceImageRequest, ResolveWorkspaceImageResponse, BuildRequest, BuildRegistryAuth,
        BuildRegistryAuthTotal, BuildRegistryAuthSelective, BuildResponse, LogsRequest, LogsResponse, ListBuildsRequest,
        ListBuildsResponse, BuildInfo, LogInfo, CreateSubassemblyRequest, CreateSubassemblyResponse,
        GetSubassemblyRequest, GetSubassemblyResponse, SubassemblyStatus,
    }
    contentservice {
        WorkspaceInitializer, CompositeInitializer, FileDownloadInitializer, FileInfo in file_download_initializer,
        EmptyInitializer, GitInitializer, GitConfig, SnapshotInitializer, PrebuildInitializer, FromBackupInitializer,
        GitStatus,
    }
};

/// A field that nobody has given out, in each of the wire's forms; behind it, whatever was there.
const UNKNOWN: [&[u8]; 6] = [
    b"\xc0\x3e\x01",
    b"\xc1\x3e\0\0\0\0\0\0\0\0",
    b"\xc2\x3e\x03new",
    b"\xc3\x3e\x08\x01\x12\x01x\xc4\x3e",
    b"\xc5\x3e\0\0\0\0",
    // The largest number that a field may have.
    b"\xf8\xff\xff\xff\x0f\x01",
];

#[test]
fn every_message_of_the_contract_is_tried() {
    let table = Table::read();
    let tried: BTreeSet<&str> = TYPES.iter().map(|(name, _)| *name).collect();
    let named: BTreeSet<&str> = table.messages.keys().map(String::as_str).collect();
    assert_eq!(tried, named);
}

#[test]
fn every_value_of_every_field_comes_back() {
    let table = Table::read();
    for (name, through) in TYPES {
        for sample in samples::of(&table, name, samples::DEPTH) {
            let bytes = encode(&sample);
            assert_eq!(
                decode(&table, name, &bytes),
                sample,
                "{name}: the codec itself"
            );
            let ours = through(&bytes).unwrap();
            assert_eq!(decode(&table, name, &ours), sample, "{name}");
        }
    }
}

#[test]
fn the_samples_reach_every_field() {
    let table = Table::read();
    for (name, fields) in &table.messages {
        let samples = samples::of(&table, name, samples::DEPTH);
        for field in fields {
            let holds = |sample: &Fields| sample.contains_key(&field.number);
            assert!(samples.iter().any(holds), "{name}.{}", field.name);
        }
    }
}

#[test]
fn defaults_are_not_written_but_for_what_has_presence() {
    let table = Table::read();
    for (name, through) in TYPES {
        for field in &table.messages[name] {
            let default = match &field.kind {
                Kind::Bool => Value::Bool(false),
                Kind::Int64 | Kind::Enum(_) => Value::Number(0),
                Kind::Text => Value::Text(String::new()),
                Kind::Bytes => Value::Bytes(Vec::new()),
                Kind::Map => Value::Map([(String::new(), String::new())].into()),
                Kind::Message(_) => Value::Message(Fields::new()),
            };
            let written = field.is_repeated || matches!(field.kind, Kind::Map | Kind::Message(_));
            let sample = if field.is_repeated {
                Fields::from([(field.number, Value::List(vec![default.clone(), default]))])
            } else {
                Fields::from([(field.number, default)])
            };
            let ours = decode(&table, name, &through(&encode(&sample)).unwrap());
            let expected = if written { sample } else { Fields::new() };
            assert_eq!(ours, expected, "{name}.{}", field.name);
        }
    }
}

#[test]
fn what_is_not_known_is_skipped_wherever_it_stands() {
    let table = Table::read();
    for (name, through) in TYPES {
        for sample in samples::of(&table, name, 1) {
            let known = encode(&sample);
            for unknown in UNKNOWN {
                for bytes in [[unknown, &known].concat(), [&known, unknown].concat()] {
                    assert_eq!(
                        decode(&table, name, &bytes),
                        sample,
                        "{name}: the codec itself"
                    );
                    let ours = through(&bytes).unwrap();
                    assert_eq!(decode(&table, name, &ours), sample, "{name}");
                }
            }
        }
    }
}

#[test]
fn of_what_is_said_twice_the_last_counts_and_messages_are_merged() {
    let table = Table::read();
    let mut tried = BTreeSet::new();
    for (name, through) in TYPES {
        let fields = &table.messages[name];
        let alone = |number: u32| {
            let samples = samples::of(&table, name, 2).into_iter();
            let alone = samples.filter(|it| it.len() == 1 && it.contains_key(&number));
            alone.collect::<Vec<Fields>>()
        };
        for field in fields {
            let samples = alone(field.number);
            let (first, last) = (samples.first().unwrap(), samples.last().unwrap());
            let both = through(&[encode(first), encode(last)].concat()).unwrap();
            let expected = match (&field.kind, field.is_repeated) {
                (_, true) => joined(first, last, field.number),
                // The first sample of a message is the empty one, so that merging leaves the last.
                _ if field.kind == Kind::Map => merged_maps(first, last, field.number),
                _ => last.clone(),
            };
            assert_eq!(
                decode(&table, name, &both),
                expected,
                "{name}.{}",
                field.name
            );
            // Another choice of the same oneof takes the place of the first.
            for other in fields
                .iter()
                .filter(|it| it.oneof.is_some() && it.oneof == field.oneof)
            {
                if other.number == field.number {
                    continue;
                }
                let other = alone(other.number).pop().unwrap();
                let both = through(&[encode(last), encode(&other)].concat()).unwrap();
                assert_eq!(decode(&table, name, &both), other, "{name}.{}", field.name);
                tried.insert(name);
            }
        }
    }
    let with_oneof = [
        "builder.BuildRegistryAuth",
        "builder.BuildSource",
        "contentservice.WorkspaceInitializer",
    ];
    assert_eq!(tried, BTreeSet::from(with_oneof));
}

fn joined(first: &Fields, last: &Fields, number: u32) -> Fields {
    let (Value::List(first), Value::List(last)) = (&first[&number], &last[&number]) else {
        panic!("no lists");
    };
    Fields::from([(number, Value::List([&first[..], last].concat()))])
}

fn merged_maps(first: &Fields, last: &Fields, number: u32) -> Fields {
    let (Value::Map(first), Value::Map(last)) = (&first[&number], &last[&number]) else {
        panic!("no maps");
    };
    let mut all = first.clone();
    all.extend(last.clone());
    Fields::from([(number, Value::Map(all))])
}

#[test]
fn the_halves_of_a_message_are_one_message() {
    let table = Table::read();
    let half = |number: u32, text: &str| {
        let status = Value::Message([(number, Value::Text(text.to_owned()))].into());
        encode(&[(1, status)].into())
    };
    let bytes = [half(2, "why"), half(3, "sha256:x"), half(2, "because")].concat();
    let ours = through::<builder::GetSubassemblyResponse>(&bytes).unwrap();
    let status = [
        (2, Value::Text("because".to_owned())),
        (3, Value::Text("sha256:x".to_owned())),
    ];
    let expected = Fields::from([(1, Value::Message(status.into()))]);
    assert_eq!(
        decode(&table, "builder.GetSubassemblyResponse", &ours),
        expected
    );
}

#[test]
fn entries_of_maps_may_lack_a_half_be_turned_around_and_come_twice() {
    let table = Table::read();
    let entries: [&[u8]; 5] = [
        b"\x12\x06\x12\x01b\x0a\x01a",
        b"\x12\x03\x0a\x01k",
        b"\x12\x03\x12\x01v",
        b"\x12\x06\x0a\x01a\x12\x01c",
        b"\x0a\x01u",
    ];
    let ours = through::<builder::LogInfo>(&entries.concat()).unwrap();
    let headers = [("a", "c"), ("k", ""), ("", "v")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let expected = [
        (1, Value::Text("u".to_owned())),
        (2, Value::Map(headers.into())),
    ];
    assert_eq!(
        decode(&table, "builder.LogInfo", &ours),
        Fields::from(expected)
    );
}

#[test]
fn bytes_that_are_no_message_are_an_error() {
    let table = Table::read();
    for (name, through) in TYPES {
        for sample in samples::of(&table, name, 1) {
            let whole = encode(&sample);
            for length in 0..whole.len().min(100) {
                // Cut between two fields it is a shorter message; cut anywhere else it is none.
                let cut = &whole[..length];
                if let Ok(ours) = through(cut) {
                    let shorter = decode(&table, name, &ours);
                    let is_part = shorter.keys().all(|number| sample.contains_key(number));
                    assert!(is_part, "{name}: {cut:?}");
                }
            }
        }
        for bad in [
            // A group without an end, an end without a group, wire types that are none, the field number 0.
            &b"\xc3\x3e"[..],
            b"\xc4\x3e",
            b"\xc6\x3e\x01",
            b"\xc7\x3e\x01",
            b"\x00\x01",
            // A number that does not end, lengths that lead out.
            b"\xc0\x3e\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\xc2\x3e\x05four",
            b"\xc2\x3e\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\xc1\x3e\0\0\0",
        ] {
            assert!(through(bad).is_err(), "{name}: {bad:?}");
        }
        for field in &table.messages[name] {
            let mut bytes = Vec::new();
            if field.kind == Kind::Text {
                // A text that is none.
                codec::put_varint(u64::from(field.number << 3 | 2), &mut bytes);
                bytes.extend(b"\x02\xc3\x28");
            } else {
                // Four bytes where a number or a length belongs.
                codec::put_varint(u64::from(field.number << 3 | 5), &mut bytes);
                bytes.extend([0; 4]);
            }
            assert!(through(&bytes).is_err(), "{name}.{}", field.name);
        }
    }
}

#[test]
fn messages_in_messages_end_somewhere() {
    let mut bytes = Vec::new();
    for _ in 0..10_000 {
        // A workspace that is a composite of one workspace.
        let mut inner = vec![0x0a];
        codec::put_varint(bytes.len() as u64, &mut inner);
        inner.extend(&bytes);
        bytes = vec![0x2a];
        codec::put_varint(inner.len() as u64, &mut bytes);
        bytes.extend(inner);
    }
    assert!(through::<contentservice::WorkspaceInitializer>(&bytes).is_err());
}
