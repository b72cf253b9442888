//! The wire of the published packages, which generated clients rely on: names, numbers and types are what `contract.golden` says, and
//! every message goes through our types and comes out as a codec that knows nothing but that file would have it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a test"
)]

mod bytes;
mod codec;
mod named;
mod samples;
mod table;

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

#[test]
fn the_published_packages_have_exactly_these_names_numbers_and_types() {
    let set = FileDescriptorSet::decode(api::DESCRIPTORS).unwrap();
    let mut lines = Vec::new();
    for file in &set.file {
        let package = file.package();
        if package != "builder" && package != "contentservice" {
            continue;
        }
        assert_eq!(file.syntax(), "proto3");
        lines.extend(
            file.service
                .iter()
                .flat_map(|service| calls(package, service)),
        );
        for message in &file.message_type {
            describe(package, message, &mut lines);
        }
        lines.extend(file.enum_type.iter().map(|it| describe_enum(package, it)));
    }
    lines.sort();
    let mut expected: Vec<String> = table::GOLDEN.lines().map(str::to_owned).collect();
    expected.sort();
    for (actual, expected) in lines.iter().zip(&expected) {
        assert_eq!(actual, expected);
    }
    assert_eq!(lines.len(), expected.len());
}

#[test]
fn the_services_are_served_under_their_published_names() {
    use api::builder::{image_builder_server, subassembly_service_server};
    let served = [
        image_builder_server::SERVICE_NAME,
        subassembly_service_server::SERVICE_NAME,
    ];
    let calls = table::GOLDEN
        .lines()
        .filter_map(|line| line.strip_prefix("rpc "));
    let mut named: Vec<&str> = calls
        .filter_map(|line| Some(line.split_once('/')?.0))
        .collect();
    named.dedup();
    assert_eq!(named, served);
}

#[test]
fn the_initializers_are_imported_under_their_published_path() {
    let set = FileDescriptorSet::decode(api::DESCRIPTORS).unwrap();
    let builder = set
        .file
        .iter()
        .find(|file| file.name() == "builder/imgbuilder.proto");
    assert_eq!(
        builder.unwrap().dependency,
        ["content-service-api/initializer.proto"]
    );
}

fn calls(package: &str, service: &ServiceDescriptorProto) -> Vec<String> {
    let name = format!("{package}.{}", service.name());
    let line = |method: &prost_types::MethodDescriptorProto| {
        assert!(!method.client_streaming());
        let stream = if method.server_streaming() {
            "stream "
        } else {
            ""
        };
        format!(
            "rpc {name}/{}({}) returns ({stream}{})",
            method.name(),
            bare(method.input_type()),
            bare(method.output_type())
        )
    };
    service.method.iter().map(line).collect()
}

fn describe(scope: &str, message: &DescriptorProto, lines: &mut Vec<String>) {
    let name = format!("{scope}.{}", message.name());
    let (entries, nested): (Vec<_>, Vec<_>) = message.nested_type.iter().partition(|nested| {
        nested
            .options
            .as_ref()
            .is_some_and(prost_types::MessageOptions::map_entry)
    });
    let maps: BTreeMap<String, String> = entries
        .into_iter()
        .map(|entry| {
            let of = |index: usize| type_of(&entry.field[index], &BTreeMap::new());
            (
                format!("{name}.{}", entry.name()),
                format!("map<{}, {}>", of(0), of(1)),
            )
        })
        .collect();
    let fields: Vec<String> = message
        .field
        .iter()
        .map(|field| {
            let oneof = match field.oneof_index {
                Some(index) => format!(
                    "oneof {}: ",
                    message.oneof_decl[usize::try_from(index).unwrap()].name()
                ),
                None => String::new(),
            };
            format!(
                "{oneof}{}: {} = {}",
                field.name(),
                type_of(field, &maps),
                field.number()
            )
        })
        .collect();
    lines.push(if fields.is_empty() {
        format!("message {name} {{ }}")
    } else {
        format!("message {name} {{ {} }}", fields.join("; "))
    });
    for message in nested {
        describe(&name, message, lines);
    }
    assert!(message.enum_type.is_empty());
}

fn describe_enum(scope: &str, it: &EnumDescriptorProto) -> String {
    let values: Vec<String> = it
        .value
        .iter()
        .map(|value| format!("{} = {}", value.name(), value.number()))
        .collect();
    format!("enum {scope}.{} {{ {} }}", it.name(), values.join("; "))
}

fn type_of(field: &FieldDescriptorProto, maps: &BTreeMap<String, String>) -> String {
    let name = match field.r#type() {
        Type::String => "string".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::Int64 => "int64".to_owned(),
        Type::Bytes => "bytes".to_owned(),
        Type::Message | Type::Enum => bare(field.type_name()).to_owned(),
        other => panic!("the published API has no {other:?}"),
    };
    match (field.label(), maps.get(&name)) {
        (Label::Repeated, Some(map)) => map.clone(),
        (Label::Repeated, None) => format!("repeated {name}"),
        _ => name,
    }
}

fn bare(name: &str) -> &str {
    name.trim_start_matches('.')
}
