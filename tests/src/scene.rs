//! A server, a registry and a git server, and requests to build what is in it.

use std::time::Duration;

use api::builder::build_source::From;
use api::builder::{
    BuildRequest, BuildResponse, BuildSource, BuildSourceReference, BuildStatus, LogsRequest,
};
use api::contentservice::{GitAuthMethod, GitConfig, workspace_initializer};
use testkit::bases::{self, Base};
use testkit::docker_registry::DockerRegistry;
use testkit::git_server::{File, GitServer};
use testkit::kiln::Kiln;
pub(crate) use testkit::requests::{all_credentials, of_commit as request};
use testkit::scratch::Scratch;

/// How long one build of these tests may take.
pub(crate) const BUILD_TIMEOUT: Duration = Duration::from_secs(300);

/// Everything a build needs.
pub(crate) struct Scene {
    pub(crate) kiln: Kiln,
    pub(crate) git: GitServer,
    pub(crate) registry: DockerRegistry,
    _scratch: Scratch,
}

/// Where images go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// The registry of the scene.
    Registry,
    /// The server's own.
    Embedded,
}

/// What a stream of a build said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) responses: Vec<BuildResponse>,
}

impl Scene {
    /// Starts everything, with a registry that wants credentials, which the server has.
    pub(crate) fn start(target: Target) -> Self {
        let registry = DockerRegistry::with_basic_auth("kiln", "correct horse");
        Self::around(registry, target, "")
    }

    /// Starts everything around a registry; `config` is added to the server's configuration.
    pub(crate) fn around(registry: DockerRegistry, target: Target, config: &str) -> Self {
        let scratch = Scratch::new();
        let secrets = scratch.write("docker-config.json", registry.docker_config());
        let mut text = format!("pull_secret_file = \"{}\"\n", secrets.display());
        if matches!(target, Target::Registry) {
            let host = registry.host();
            text = format!(
                "{text}base_image_repository = \"{host}/made/bases\"
workspace_image_repository = \"{host}/made/workspaces\"
"
            );
        }
        text.push_str(&crate::ordinary_user::network_config());
        text.push_str(config);
        Self {
            kiln: Kiln::with_config(&text),
            git: GitServer::start(),
            registry,
            _scratch: scratch,
        }
    }

    /// Puts a base image into the registry and returns its name.
    pub(crate) fn base(&self, base: &Base, name: &str) -> String {
        base.push(self.registry.host(), name, self.registry.credentials())
    }

    /// Puts busybox into the registry and returns its name.
    pub(crate) fn busybox(&self) -> String {
        self.base(&bases::busybox(), "base/busybox:1")
    }

    /// Makes a repository with one commit and returns a request to build it.
    pub(crate) fn repository(&self, name: &str, files: &[File]) -> BuildRequest {
        let commit = self.git.repository(name).commit("main", files);
        request(&self.git.url(name), &commit)
    }

    /// Makes a repository with only a Dockerfile and returns a request to build it.
    pub(crate) fn dockerfile(&self, name: &str, text: &str) -> BuildRequest {
        self.repository(name, &[File::new("Dockerfile", text)])
    }

    /// Builds, and returns what the stream said until its end.
    pub(crate) async fn build(&self, request: BuildRequest) -> Said {
        build(&self.kiln, request).await
    }

    /// Returns the whole log of a build.
    pub(crate) async fn log(&self, build_id: &str) -> String {
        let mut client = self.kiln.image_builder().await;
        let request = LogsRequest {
            build_id: build_id.to_owned(),
            ..LogsRequest::default()
        };
        let log = async {
            let mut stream = client.logs(request).await.unwrap().into_inner();
            let mut bytes = Vec::new();
            while let Some(piece) = stream.message().await.unwrap() {
                bytes.extend(piece.content);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        tokio::time::timeout(BUILD_TIMEOUT, log).await.unwrap()
    }
}

/// Builds with `kiln`, and returns what the stream said until its end.
pub(crate) async fn build(kiln: &Kiln, request: BuildRequest) -> Said {
    let mut client = kiln.image_builder().await;
    let said = async {
        let mut stream = client.build(request).await.unwrap().into_inner();
        let mut responses = Vec::new();
        while let Some(response) = stream.message().await.unwrap() {
            responses.push(response);
        }
        Said { responses }
    };
    tokio::time::timeout(BUILD_TIMEOUT, said).await.unwrap()
}

impl Said {
    /// Returns the last message.
    pub(crate) fn last(&self) -> &BuildResponse {
        self.responses.last().unwrap()
    }

    /// Returns the id of the build; there is none when nothing had to be built.
    pub(crate) fn build_id(&self) -> Option<String> {
        let infos = self.responses.iter().filter_map(|said| said.info.as_ref());
        infos.map(|info| info.build_id.clone()).next()
    }

    /// Returns the name of the image; panics unless the build ended well.
    pub(crate) fn image(&self) -> String {
        let last = self.last();
        assert_eq!(last.status(), BuildStatus::DoneSuccess, "{}", last.message);
        match &last.info {
            Some(info) => info.r#ref.clone(),
            None => last.r#ref.clone(),
        }
    }

    /// Returns the text of the failure; panics unless the build failed.
    pub(crate) fn failure(&self) -> &str {
        let last = self.last();
        assert_eq!(last.status(), BuildStatus::DoneFailure, "{last:?}");
        &last.message
    }
}

/// Lets a request fetch its repository with a password.
pub(crate) fn set_password(request: &mut BuildRequest, user: &str, password: &str) {
    let from = request
        .source
        .as_mut()
        .and_then(|source| source.from.as_mut());
    let Some(From::File(file)) = from else {
        panic!("not a file source")
    };
    let spec = file.source.as_mut().and_then(|source| source.spec.as_mut());
    let Some(workspace_initializer::Spec::Git(git)) = spec else {
        panic!("not git")
    };
    git.config = Some(GitConfig {
        authentication: GitAuthMethod::BasicAuth.into(),
        auth_user: user.to_owned(),
        auth_password: password.to_owned(),
        ..GitConfig::default()
    });
}

/// Returns a request to make a workspace image of an image.
pub(crate) fn reference_request(reference: &str) -> BuildRequest {
    let reference = BuildSourceReference {
        r#ref: reference.to_owned(),
    };
    BuildRequest {
        source: Some(BuildSource {
            from: Some(From::Ref(reference)),
        }),
        auth: Some(all_credentials()),
        ..BuildRequest::default()
    }
}
