//! What is put under a name by those who use our types is read under the same name by the table.
//!
//! Bytes alone would not tell when two names were swapped in a type, so these messages are filled by name and read by name.

use std::fmt::Write as _;

use api::builder::*;
use api::contentservice::*;
use prost::Message;

use crate::codec::{Fields, Value, decode};
use crate::table::{Kind, Table};

/// Returns every leaf of a message as a line, under its path of names.
fn lines(name: &str, message: &impl Message) -> String {
    let table = Table::read();
    let mut out = String::new();
    describe(
        &table,
        name,
        "",
        &decode(&table, name, &message.encode_to_vec()),
        &mut out,
    );
    out
}

fn describe(table: &Table, message: &str, path: &str, fields: &Fields, out: &mut String) {
    for (number, value) in fields {
        let field = table.field(message, *number).unwrap();
        let path = format!("{path}{}", field.name);
        match value {
            Value::List(values) => {
                for (index, value) in values.iter().enumerate() {
                    leaf(table, &field.kind, &format!("{path}[{index}]"), value, out);
                }
            }
            value => leaf(table, &field.kind, &path, value, out),
        }
    }
}

fn leaf(table: &Table, kind: &Kind, path: &str, value: &Value, out: &mut String) {
    match (kind, value) {
        (Kind::Message(name), Value::Message(fields)) if fields.is_empty() => {
            writeln!(out, "{path} = {name}").unwrap();
        }
        (Kind::Message(name), Value::Message(fields)) => {
            describe(table, name, &format!("{path}."), fields, out);
        }
        (_, Value::Map(map)) => {
            for (key, value) in map {
                writeln!(out, "{path}[{key}] = {value}").unwrap();
            }
        }
        (_, Value::Bool(value)) => writeln!(out, "{path} = {value}").unwrap(),
        (_, Value::Number(value)) => writeln!(out, "{path} = {value}").unwrap(),
        (_, Value::Text(value)) => writeln!(out, "{path} = {value}").unwrap(),
        (_, Value::Bytes(value)) => writeln!(out, "{path} = {value:?}").unwrap(),
        (kind, value) => panic!("{kind:?} is {value:?}"),
    }
}

fn text(value: &str) -> String {
    value.to_owned()
}

fn workspace(spec: workspace_initializer::Spec) -> WorkspaceInitializer {
    WorkspaceInitializer { spec: Some(spec) }
}

fn git() -> GitInitializer {
    GitInitializer {
        remote_uri: text("remote"),
        upstream_remote_uri: text("upstream"),
        target_mode: CloneTargetMode::LocalBranch.into(),
        clone_taget: text("target"),
        checkout_location: text("location"),
        config: Some(GitConfig {
            custom_config: [(text("core.eol"), text("lf"))].into(),
            authentication: GitAuthMethod::BasicAuthOts.into(),
            auth_user: text("user"),
            auth_password: text("password"),
            auth_ots: text("ots"),
        }),
        full_clone: true,
    }
}

#[test]
fn a_request_to_build_is_read_as_it_was_meant() {
    let request = BuildRequest {
        source: Some(BuildSource {
            from: Some(build_source::From::File(BuildSourceDockerfile {
                source: Some(workspace(workspace_initializer::Spec::Git(git()))),
                dockerfile_version: text("version"),
                dockerfile_path: text("dockerfile"),
                context_path: text("context"),
            })),
        }),
        auth: Some(BuildRegistryAuth {
            additional: [(text("host"), text("credential"))].into(),
            mode: Some(build_registry_auth::Mode::Selective(
                BuildRegistryAuthSelective {
                    allow_baserep: true,
                    allow_workspacerep: true,
                    any_of: vec![text("one"), text("two")],
                },
            )),
        }),
        force_rebuild: true,
        triggered_by: text("somebody"),
        supervisor_ref: text("supervisor"),
        base_image_name_resolved: text("resolved"),
        use_retry_client: true,
    };
    let expected = "\
source.file.source.git.remote_uri = remote
source.file.source.git.upstream_Remote_uri = upstream
source.file.source.git.target_mode = 3
source.file.source.git.clone_taget = target
source.file.source.git.checkout_location = location
source.file.source.git.config.custom_config[core.eol] = lf
source.file.source.git.config.authentication = 2
source.file.source.git.config.auth_user = user
source.file.source.git.config.auth_password = password
source.file.source.git.config.auth_ots = ots
source.file.source.git.full_clone = true
source.file.dockerfile_version = version
source.file.dockerfile_path = dockerfile
source.file.context_path = context
auth.selective.allow_baserep = true
auth.selective.allow_workspacerep = true
auth.selective.any_of[0] = one
auth.selective.any_of[1] = two
auth.additional[host] = credential
force_rebuild = true
triggered_by = somebody
supervisor_ref = supervisor
base_image_name_resolved = resolved
use_retry_client = true
";
    assert_eq!(lines("builder.BuildRequest", &request), expected);
}

#[test]
fn rights_that_stand_beside_each_other_are_told_apart() {
    let selective = |allow_baserep, allow_workspacerep| BuildRegistryAuthSelective {
        allow_baserep,
        allow_workspacerep,
        any_of: Vec::new(),
    };
    let name = "builder.BuildRegistryAuthSelective";
    assert_eq!(
        lines(name, &selective(true, false)),
        "allow_baserep = true\n"
    );
    assert_eq!(
        lines(name, &selective(false, true)),
        "allow_workspacerep = true\n"
    );
    let forced = BuildRequest {
        force_rebuild: true,
        ..BuildRequest::default()
    };
    assert_eq!(
        lines("builder.BuildRequest", &forced),
        "force_rebuild = true\n"
    );
}

#[test]
fn every_choice_of_a_source_is_read_as_it_was_meant() {
    use workspace_initializer::Spec;
    let snapshot = SnapshotInitializer {
        snapshot: text("name"),
        from_volume_snapshot: true,
    };
    let download = FileDownloadInitializer {
        files: vec![file_download_initializer::FileInfo {
            url: text("url"),
            file_path: text("path"),
            digest: text("digest"),
        }],
        target_location: text("location"),
    };
    let prebuild = PrebuildInitializer {
        prebuild: Some(snapshot.clone()),
        git: vec![GitInitializer {
            clone_taget: text("main"),
            ..GitInitializer::default()
        }],
    };
    let backup = FromBackupInitializer {
        checkout_location: text("location"),
        from_volume_snapshot: true,
    };
    let specs = [
        Spec::Empty(EmptyInitializer {}),
        Spec::Snapshot(snapshot),
        Spec::Prebuild(prebuild),
        Spec::Download(download),
        Spec::Backup(backup),
    ];
    let initializer = specs.map(workspace).to_vec();
    let all = workspace(Spec::Composite(CompositeInitializer { initializer }));
    let expected = "\
composite.initializer[0].empty = contentservice.EmptyInitializer
composite.initializer[1].snapshot.snapshot = name
composite.initializer[1].snapshot.from_volume_snapshot = true
composite.initializer[2].prebuild.prebuild.snapshot = name
composite.initializer[2].prebuild.prebuild.from_volume_snapshot = true
composite.initializer[2].prebuild.git[0].clone_taget = main
composite.initializer[3].download.files[0].url = url
composite.initializer[3].download.files[0].file_path = path
composite.initializer[3].download.files[0].digest = digest
composite.initializer[3].download.target_location = location
composite.initializer[4].backup.checkout_location = location
composite.initializer[4].backup.from_volume_snapshot = true
";
    assert_eq!(lines("contentservice.WorkspaceInitializer", &all), expected);
    let reference = BuildSource {
        from: Some(build_source::From::Ref(BuildSourceReference {
            r#ref: text("image"),
        })),
    };
    assert_eq!(
        lines("builder.BuildSource", &reference),
        "ref.ref = image\n"
    );
    let total = BuildRegistryAuth {
        mode: Some(build_registry_auth::Mode::Total(BuildRegistryAuthTotal {
            allow_all: true,
        })),
        ..BuildRegistryAuth::default()
    };
    assert_eq!(
        lines("builder.BuildRegistryAuth", &total),
        "total.allow_all = true\n"
    );
}

#[test]
fn what_is_answered_is_read_as_it_was_meant() {
    let info = BuildInfo {
        r#ref: text("ref"),
        status: BuildStatus::DoneSuccess.into(),
        started_at: 1_700_000_000,
        base_ref: text("base"),
        build_id: text("id"),
        log_info: Some(LogInfo {
            url: text("url"),
            headers: [(text("token"), text("secret"))].into(),
        }),
    };
    let response = BuildResponse {
        r#ref: text("outer"),
        status: BuildStatus::DoneFailure.into(),
        message: text("message"),
        base_ref: text("outer base"),
        info: Some(info.clone()),
    };
    let of_info = |path: &str| {
        format!(
            "{path}.ref = ref\n{path}.status = 2\n{path}.started_at = 1700000000\n{path}.base_ref = base\n{path}.build_id = id\n\
             {path}.log_info.url = url\n{path}.log_info.headers[token] = secret\n"
        )
    };
    let expected = format!(
        "ref = outer\nstatus = 3\nmessage = message\nbase_ref = outer base\n{}",
        of_info("info")
    );
    assert_eq!(lines("builder.BuildResponse", &response), expected);
    let list = ListBuildsResponse { builds: vec![info] };
    assert_eq!(
        lines("builder.ListBuildsResponse", &list),
        of_info("builds[0]")
    );
}

#[test]
fn the_other_answers_are_read_as_they_were_meant() {
    let resolved = ResolveWorkspaceImageResponse {
        r#ref: text("ref"),
        status: BuildStatus::Running.into(),
        base_ref: text("base"),
    };
    let expected = "ref = ref\nstatus = 1\nbase_ref = base\n";
    assert_eq!(
        lines("builder.ResolveWorkspaceImageResponse", &resolved),
        expected
    );
    let logs = LogsRequest {
        build_ref: text("ref"),
        censored: true,
        build_id: text("id"),
    };
    let expected = "build_ref = ref\ncensored = true\nbuild_id = id\n";
    assert_eq!(lines("builder.LogsRequest", &logs), expected);
    let piece = LogsResponse {
        content: vec![0, 255].into(),
    };
    assert_eq!(
        lines("builder.LogsResponse", &piece),
        "content = [0, 255]\n"
    );
    let made = GetSubassemblyResponse {
        status: Some(SubassemblyStatus {
            phase: SubassemblyPhase::Unavailable.into(),
            message: text("message"),
            digest: text("digest"),
            url: text("url"),
            manifest: b"{}".to_vec(),
        }),
    };
    let expected = "status.phase = 3\nstatus.message = message\nstatus.digest = digest\nstatus.url = url\nstatus.manifest = [123, 125]\n";
    assert_eq!(lines("builder.GetSubassemblyResponse", &made), expected);
    let status = GitStatus {
        branch: text("branch"),
        latest_commit: text("commit"),
        uncommited_files: vec![text("a")],
        untracked_files: vec![text("b")],
        unpushed_commits: vec![text("c")],
        total_uncommited_files: 1,
        total_untracked_files: 2,
        total_unpushed_commits: i64::MAX,
    };
    let expected = "branch = branch\nlatest_commit = commit\nuncommited_files[0] = a\nuntracked_files[0] = b\nunpushed_commits[0] = c\n\
        total_uncommited_files = 1\ntotal_untracked_files = 2\ntotal_unpushed_commits = 9223372036854775807\n";
    assert_eq!(lines("contentservice.GitStatus", &status), expected);
}
