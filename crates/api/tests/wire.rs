//! Pins every name, number and type of the published packages: generated clients rely on them.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]
use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

/// Written by hand, not generated: one line for each message, enum and call.
const PUBLISHED: &str = "
rpc builder.ImageBuilder/Build(builder.BuildRequest) returns (stream builder.BuildResponse)
rpc builder.ImageBuilder/ListBuilds(builder.ListBuildsRequest) returns (builder.ListBuildsResponse)
rpc builder.ImageBuilder/Logs(builder.LogsRequest) returns (stream builder.LogsResponse)
rpc builder.ImageBuilder/ResolveBaseImage(builder.ResolveBaseImageRequest) returns (builder.ResolveBaseImageResponse)
rpc builder.ImageBuilder/ResolveWorkspaceImage(builder.ResolveWorkspaceImageRequest) returns (builder.ResolveWorkspaceImageResponse)
rpc builder.SubassemblyService/CreateSubassembly(builder.CreateSubassemblyRequest) returns (builder.CreateSubassemblyResponse)
rpc builder.SubassemblyService/GetSubassembly(builder.GetSubassemblyRequest) returns (builder.GetSubassemblyResponse)
message builder.BuildSource { oneof from: ref: builder.BuildSourceReference = 1; oneof from: file: builder.BuildSourceDockerfile = 2 }
message builder.BuildSourceReference { ref: string = 1 }
message builder.BuildSourceDockerfile { source: contentservice.WorkspaceInitializer = 1; dockerfile_version: string = 2; dockerfile_path: string = 3; context_path: string = 4 }
message builder.ResolveBaseImageRequest { ref: string = 1; auth: builder.BuildRegistryAuth = 2; use_retry_client: bool = 3 }
message builder.ResolveBaseImageResponse { ref: string = 1 }
message builder.ResolveWorkspaceImageRequest { source: builder.BuildSource = 1; auth: builder.BuildRegistryAuth = 2; use_retry_client: bool = 3 }
message builder.ResolveWorkspaceImageResponse { ref: string = 1; status: builder.BuildStatus = 2; base_ref: string = 3 }
message builder.BuildRequest { source: builder.BuildSource = 1; auth: builder.BuildRegistryAuth = 2; force_rebuild: bool = 3; triggered_by: string = 4; supervisor_ref: string = 5; base_image_name_resolved: string = 6; use_retry_client: bool = 7 }
message builder.BuildRegistryAuth { oneof mode: total: builder.BuildRegistryAuthTotal = 1; oneof mode: selective: builder.BuildRegistryAuthSelective = 2; additional: map<string, string> = 3 }
message builder.BuildRegistryAuthTotal { allow_all: bool = 1 }
message builder.BuildRegistryAuthSelective { allow_baserep: bool = 1; allow_workspacerep: bool = 2; any_of: repeated string = 3 }
message builder.BuildResponse { ref: string = 1; status: builder.BuildStatus = 2; message: string = 3; base_ref: string = 4; info: builder.BuildInfo = 5 }
enum builder.BuildStatus { unknown = 0; running = 1; done_success = 2; done_failure = 3 }
message builder.LogsRequest { build_ref: string = 1; censored: bool = 2; build_id: string = 3 }
message builder.LogsResponse { content: bytes = 1 }
message builder.ListBuildsRequest { }
message builder.ListBuildsResponse { builds: repeated builder.BuildInfo = 1 }
message builder.BuildInfo { ref: string = 1; status: builder.BuildStatus = 2; started_at: int64 = 3; base_ref: string = 4; build_id: string = 5; log_info: builder.LogInfo = 6 }
message builder.LogInfo { url: string = 1; headers: map<string, string> = 2 }
message builder.CreateSubassemblyRequest { oci_reference: string = 1 }
message builder.CreateSubassemblyResponse { status: builder.SubassemblyStatus = 1 }
message builder.GetSubassemblyRequest { oci_reference: string = 1 }
message builder.GetSubassemblyResponse { status: builder.SubassemblyStatus = 1 }
message builder.SubassemblyStatus { phase: builder.SubassemblyPhase = 1; message: string = 2; digest: string = 3; url: string = 4; manifest: bytes = 5 }
enum builder.SubassemblyPhase { SUBASSEMBLY_PHASE_UNSPECIFIED = 0; SUBASSEMBLY_PHASE_CREATING = 1; SUBASSEMBLY_PHASE_AVAILABLE = 2; SUBASSEMBLY_PHASE_UNAVAILABLE = 3 }
message contentservice.WorkspaceInitializer { oneof spec: empty: contentservice.EmptyInitializer = 1; oneof spec: git: contentservice.GitInitializer = 2; oneof spec: snapshot: contentservice.SnapshotInitializer = 3; oneof spec: prebuild: contentservice.PrebuildInitializer = 4; oneof spec: composite: contentservice.CompositeInitializer = 5; oneof spec: download: contentservice.FileDownloadInitializer = 6; oneof spec: backup: contentservice.FromBackupInitializer = 7 }
message contentservice.CompositeInitializer { initializer: repeated contentservice.WorkspaceInitializer = 1 }
message contentservice.FileDownloadInitializer { files: repeated contentservice.FileDownloadInitializer.FileInfo = 1; target_location: string = 2 }
message contentservice.FileDownloadInitializer.FileInfo { url: string = 1; file_path: string = 2; digest: string = 3 }
message contentservice.EmptyInitializer { }
message contentservice.GitInitializer { remote_uri: string = 1; upstream_Remote_uri: string = 2; target_mode: contentservice.CloneTargetMode = 3; clone_taget: string = 4; checkout_location: string = 5; config: contentservice.GitConfig = 6; full_clone: bool = 7 }
enum contentservice.CloneTargetMode { REMOTE_HEAD = 0; REMOTE_COMMIT = 1; REMOTE_BRANCH = 2; LOCAL_BRANCH = 3 }
message contentservice.GitConfig { custom_config: map<string, string> = 1; authentication: contentservice.GitAuthMethod = 2; auth_user: string = 3; auth_password: string = 4; auth_ots: string = 5 }
enum contentservice.GitAuthMethod { NO_AUTH = 0; BASIC_AUTH = 1; BASIC_AUTH_OTS = 2 }
message contentservice.SnapshotInitializer { snapshot: string = 1; from_volume_snapshot: bool = 2 }
message contentservice.PrebuildInitializer { prebuild: contentservice.SnapshotInitializer = 1; git: repeated contentservice.GitInitializer = 2 }
message contentservice.FromBackupInitializer { checkout_location: string = 1; from_volume_snapshot: bool = 2 }
message contentservice.GitStatus { branch: string = 1; latest_commit: string = 2; uncommited_files: repeated string = 3; untracked_files: repeated string = 4; unpushed_commits: repeated string = 5; total_uncommited_files: int64 = 6; total_untracked_files: int64 = 7; total_unpushed_commits: int64 = 8 }
";

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
    let mut expected: Vec<String> = PUBLISHED.trim().lines().map(str::to_owned).collect();
    expected.sort();
    for (actual, expected) in lines.iter().zip(&expected) {
        assert_eq!(actual, expected);
    }
    assert_eq!(lines.len(), expected.len());
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
