//! Requests of the published API that tests and measurements share.

use api::builder::build_source::From;
use api::builder::{
    BuildRegistryAuth, BuildRegistryAuthTotal, BuildRequest, BuildSource, BuildSourceDockerfile,
    build_registry_auth,
};
use api::contentservice::{
    CloneTargetMode, GitInitializer, WorkspaceInitializer, workspace_initializer,
};

/// Returns the right to use every credential that the service has.
#[must_use]
pub fn all_credentials() -> BuildRegistryAuth {
    let total = BuildRegistryAuthTotal { allow_all: true };
    BuildRegistryAuth {
        mode: Some(build_registry_auth::Mode::Total(total)),
        ..BuildRegistryAuth::default()
    }
}

/// Returns a request to build the Dockerfile at the root of a commit.
#[must_use]
pub fn of_commit(url: &str, commit: &str) -> BuildRequest {
    let git = GitInitializer {
        remote_uri: url.to_owned(),
        target_mode: CloneTargetMode::RemoteCommit.into(),
        clone_taget: commit.to_owned(),
        ..GitInitializer::default()
    };
    let file = BuildSourceDockerfile {
        source: Some(WorkspaceInitializer {
            spec: Some(workspace_initializer::Spec::Git(git)),
        }),
        dockerfile_version: commit.to_owned(),
        dockerfile_path: "Dockerfile".to_owned(),
        context_path: ".".to_owned(),
    };
    BuildRequest {
        source: Some(BuildSource {
            from: Some(From::File(file)),
        }),
        auth: Some(all_credentials()),
        triggered_by: "tests".to_owned(),
        ..BuildRequest::default()
    }
}
