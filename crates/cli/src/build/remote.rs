//! `kiln build --server`: the same request that any client of the published API makes.

use std::time::Duration;

use api::builder::{
    BuildRegistryAuth, BuildRegistryAuthTotal, BuildRequest, BuildResponse, BuildSource,
    BuildSourceDockerfile, BuildStatus, LogsRequest, build_registry_auth, build_source,
};
use api::contentservice::{
    CloneTargetMode, GitAuthMethod, GitConfig, GitInitializer, WorkspaceInitializer,
    workspace_initializer,
};
use api::kiln::v1::GetBuildRequest;
use serde_json::json;
use source::git::{GitAuth, GitSource, TargetMode};
use tokio::task::JoinHandle;

use super::context::{self, GitInput, Input};
use super::outputs::write_file;
use crate::args::BuildArgs;
use crate::client::{self, Client};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::git;
use crate::progress::Style;
use crate::terminal;

/// How long the end of the log is waited for once the build has ended.
const LOG_GRACE: Duration = Duration::from_secs(30);

/// Builds on the server at `address`.
pub(crate) async fn run(address: &str, args: &BuildArgs) -> Outcome {
    refuse_unsupported(args)?;
    let input = match context::read(&args.context, args.file.as_deref())? {
        Input::Git(input) => *input,
        Input::Folder(_) | Input::Archive(_) => {
            let text = "a folder of this machine cannot be built on a server yet";
            return Err(Failure::text(Exit::Usage, text)
                .hint("give the address of a git repository, or build without --server"));
        }
    };
    let input = pinned(input).await?;
    let mut client = client::connect(address).await?;
    let style = if args.quiet {
        Style::Quiet
    } else {
        Style::choose(args.progress)
    };
    let request = request(&input, args);
    let built = tokio::select! {
        built = follow(&mut client, request, style) => built?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.or_exit(Exit::Internal)?;
            return Err(Failure::text(Exit::Interrupted, "interrupted")
                .hint("the build goes on: see `kiln ls` and `kiln logs` with the same --server"));
        }
    };
    tell(&mut client, args, &built, style).await
}

/// Returns an error for what the published API has no words for: nothing is accepted and ignored.
fn refuse_unsupported(args: &BuildArgs) -> Outcome {
    let unsupported = [
        ("-t", !args.tags.is_empty()),
        ("--target", args.target.is_some()),
        ("--build-arg", !args.arguments.is_empty()),
        ("--build-context", !args.contexts.is_empty()),
        ("--label", !args.labels.is_empty()),
        ("--annotation", !args.annotations.is_empty()),
        ("--pull", args.earlier.pull),
        (
            "--no-cache-filter",
            !args.earlier.no_cache_filter.is_empty(),
        ),
        ("--cache-from", !args.earlier.cache_from.is_empty()),
        ("--cache-to", !args.earlier.cache_to.is_empty()),
        ("--push", args.push),
        ("--output", !args.outputs.is_empty()),
        ("--iidfile", args.iidfile.is_some()),
        ("--platform", args.platform.is_some()),
        ("--network", args.network.is_some()),
        ("--secret", !args.steps.secrets.is_empty()),
        ("--ssh", !args.steps.ssh.is_empty()),
        ("--allow", !args.steps.allowed.is_empty()),
        ("--add-host", !args.steps.hosts.is_empty()),
        ("--ulimit", !args.steps.ulimits.is_empty()),
        ("--shm-size", args.steps.shm_size.is_some()),
    ];
    match unsupported.iter().find(|(_, is_used)| *is_used) {
        Some((name, _)) => {
            let text = format!("{name} is not supported with --server yet");
            Err(Failure::text(Exit::Usage, text))
        }
        None => Ok(()),
    }
}

/// Replaces a branch or tag by the commit that it stands for now: names of images are made of what is asked for.
async fn pinned(mut input: GitInput) -> Outcome<GitInput> {
    if let Some(commit) = git::commit_of(&input.source).await? {
        input.source.target_mode = TargetMode::RemoteCommit;
        input.source.target = commit;
    }
    Ok(input)
}

fn request(input: &GitInput, args: &BuildArgs) -> BuildRequest {
    let initializer = WorkspaceInitializer {
        spec: Some(workspace_initializer::Spec::Git(initializer(&input.source))),
    };
    let file = BuildSourceDockerfile {
        source: Some(initializer),
        dockerfile_version: input.source.target.clone(),
        dockerfile_path: input.dockerfile_path.clone(),
        context_path: input.context_path.clone(),
    };
    let total = BuildRegistryAuthTotal { allow_all: true };
    BuildRequest {
        source: Some(BuildSource {
            from: Some(build_source::From::File(file)),
        }),
        auth: Some(BuildRegistryAuth {
            mode: Some(build_registry_auth::Mode::Total(total)),
            ..BuildRegistryAuth::default()
        }),
        force_rebuild: args.no_cache,
        triggered_by: "kiln build".to_owned(),
        ..BuildRequest::default()
    }
}

fn initializer(source: &GitSource) -> GitInitializer {
    let mode = match source.target_mode {
        TargetMode::RemoteHead => CloneTargetMode::RemoteHead,
        TargetMode::RemoteCommit => CloneTargetMode::RemoteCommit,
        TargetMode::RemoteBranch => CloneTargetMode::RemoteBranch,
        TargetMode::LocalBranch => CloneTargetMode::LocalBranch,
    };
    let mut config = GitConfig::default();
    if let GitAuth::Basic { user, password } = &source.auth {
        config.authentication = GitAuthMethod::BasicAuth.into();
        config.auth_user.clone_from(user);
        config.auth_password.clone_from(password);
    }
    GitInitializer {
        remote_uri: source.remote.as_str().to_owned(),
        target_mode: mode.into(),
        clone_taget: source.target.clone(),
        config: Some(config),
        ..GitInitializer::default()
    }
}

/// What the server said at the end.
struct Built {
    reference: String,
    base_reference: String,
    /// Not there when nothing had to be built.
    id: Option<String>,
}

async fn follow(client: &mut Client, request: BuildRequest, style: Style) -> Outcome<Built> {
    let answered = client.builder.build(request).await;
    let mut responses = answered.map_err(client::failure)?.into_inner();
    let mut log: Option<Log> = None;
    while let Some(response) = responses.message().await.map_err(client::failure)? {
        let id = response.info.as_ref().map(|info| info.build_id.clone());
        if log.is_none()
            && let Some(id) = id.filter(|id| !id.is_empty())
        {
            log = Some(Log::start(client, id, style));
        }
        match response.status() {
            BuildStatus::Unknown | BuildStatus::Running => {}
            BuildStatus::DoneSuccess => {
                let id = finish(log).await;
                return Ok(Built::new(response, id));
            }
            BuildStatus::DoneFailure => {
                finish(log).await;
                return Err(failed(&response));
            }
        }
    }
    let text = "the server ended the stream before the build had ended";
    Err(Failure::text(Exit::Unreachable, text))
}

impl Built {
    fn new(response: BuildResponse, id: Option<String>) -> Self {
        let (reference, base_reference) = match response.info {
            Some(info) => (info.r#ref, info.base_ref),
            None => (response.r#ref, response.base_ref),
        };
        Self {
            reference,
            base_reference,
            id,
        }
    }
}

fn failed(response: &BuildResponse) -> Failure {
    let message = crate::progress::clean::clean(
        response.message.as_bytes(),
        crate::progress::clean::Colours::Drop,
    );
    // The published convention: what the Dockerfile's author can fix begins this way.
    let is_authors =
        message.starts_with("build failed: ") || message.contains("base image does not exist");
    let exit = if is_authors {
        Exit::BuildFailed
    } else {
        Exit::Unreachable
    };
    Failure::text(exit, message)
}

/// The log of a build on its way to the user.
struct Log {
    id: String,
    task: JoinHandle<()>,
}

impl Log {
    fn start(client: &Client, build_id: String, style: Style) -> Self {
        let mut builder = client.builder.clone();
        let request = LogsRequest {
            build_id: build_id.clone(),
            ..LogsRequest::default()
        };
        let task = tokio::spawn(async move {
            let mut log = match builder.logs(request).await {
                Ok(log) => log.into_inner(),
                Err(status) => {
                    terminal::say(&format!("warning: no log: {}.", status.message()));
                    return;
                }
            };
            while let Ok(Some(piece)) = log.message().await {
                show(style, piece.content);
            }
        });
        Self { id: build_id, task }
    }
}

fn show(style: Style, content: Vec<u8>) {
    if style == Style::Rawjson {
        let text = String::from_utf8_lossy(&content);
        terminal::say(&json!({ "log": text }).to_string());
    } else {
        terminal::say_bytes(&style.text(content));
    }
}

/// Waits for the rest of the log, and returns which build it was of.
async fn finish(log: Option<Log>) -> Option<String> {
    let mut log = log?;
    if tokio::time::timeout(LOG_GRACE, &mut log.task)
        .await
        .is_err()
    {
        log.task.abort();
    }
    Some(log.id)
}

async fn tell(client: &mut Client, args: &BuildArgs, built: &Built, style: Style) -> Outcome {
    let digest = digest(client, built).await?;
    if let Some(path) = &args.metadata_file {
        let metadata = json!({
            "containerimage.digest": digest,
            "image.name": built.reference,
            "kiln.base.name": built.base_reference,
            "kiln.build.id": built.id,
        });
        let text = format!("{metadata:#}\n");
        let write = |file: &mut std::fs::File| std::io::Write::write_all(file, text.as_bytes());
        write_file(path, write).or_exit(Exit::Machine)?;
    }
    match style {
        Style::Quiet => terminal::data(&digest).or_exit(Exit::Machine)?,
        Style::Rawjson => {
            let line = json!({ "image": built.reference, "digest": digest });
            terminal::say(&line.to_string());
        }
        Style::Plain | Style::PlainTerminal(_) | Style::Tty(_) => {
            if built.id.is_none() {
                terminal::say("the image is there already; nothing had to be built");
            }
            terminal::say(&format!("image {}\n  is  {digest}", built.reference));
        }
    }
    Ok(())
}

async fn digest(client: &mut Client, built: &Built) -> Outcome<String> {
    if let Some(id) = &built.id {
        let request = GetBuildRequest {
            build_id: id.clone(),
        };
        let answer = client.kiln.get_build(request).await;
        let found = answer.map_err(client::failure)?.into_inner().build;
        return Ok(found.unwrap_or_default().digest);
    }
    let resolved = client::resolve(client, &built.reference).await?;
    Ok(resolved
        .rsplit_once('@')
        .map_or(resolved.clone(), |(_, digest)| digest.to_owned()))
}
