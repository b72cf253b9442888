//! The command line as a request of `kiln.v1`.

use std::collections::HashMap;

use api::builder::{BuildRegistryAuth, BuildRegistryAuthTotal, build_registry_auth};
use api::contentservice::{
    CloneTargetMode, GitAuthMethod, GitConfig, GitInitializer, WorkspaceInitializer,
    workspace_initializer,
};
use api::kiln::v1 as wire;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use engine::spec::{
    BuildOptions, CacheMode, CacheTo, CachedSteps, Compression, MediaTypes, OnCacheError, Output,
};
use registry::keychain::{Credential, Keychain};
use source::git::{GitAuth, GitSource, TargetMode};

use super::context::{self, Input};
use super::outputs::Outputs;
use crate::args::cache::CacheFromArg;
use crate::args::named::{NamedArg, NamedWhat};
use crate::args::steps::Entitlement;
use crate::args::{BuildArgs, Network};
use crate::build::secrets;
use crate::failure::{Exit, Failure, Outcome};
use crate::place;

/// Returns the request for what the command line asks for. What a server cannot do is refused by name.
pub(super) fn request(
    args: &BuildArgs,
    input: Input,
    options: BuildOptions,
    outputs: &Outputs,
) -> Outcome<wire::StartBuildRequest> {
    refuse_unsupported(args, outputs)?;
    let Input::Git(git) = input else {
        let text = "a folder of this machine cannot be built on a server yet";
        return Err(Failure::text(Exit::Usage, text)
            .hint("give the address of a git repository, or build without --server"));
    };
    let secrets = secrets::read(&args.steps.secrets)?;
    let secrets = secrets.into_iter();
    let said = args.outputs.iter().find_map(|output| output.compression);
    Ok(wire::StartBuildRequest {
        request_id: String::new(),
        files: Some(repository(&git.source)),
        dockerfile_path: git.dockerfile_path.clone(),
        dockerfile_text: String::new(),
        context_path: git.context_path.clone(),
        target: options.target.unwrap_or_default(),
        platform: args
            .platform
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        build_args: options.build_args.into_iter().collect(),
        labels: options.labels.into_iter().collect(),
        annotations: options.annotations.into_iter().collect(),
        contexts: contexts(&args.contexts)?,
        no_cache: options.cache == CacheMode::Ignore,
        no_cache_stages: options.no_cache_stages,
        network: network(args.network).into(),
        extra_hosts: options.steps.extra_hosts.into_iter().map(host).collect(),
        ulimits: options.steps.ulimits.iter().map(ulimit).collect(),
        shm_bytes: options.steps.shm_bytes.unwrap_or(0),
        secrets: secrets
            .map(|(id, value)| (id, value.reveal().to_vec()))
            .collect(),
        entitlements: entitlements(args),
        outputs: outputs.spec.iter().filter_map(output).collect(),
        compression: compression(said).into(),
        media_types: media_types(options.media_types).into(),
        source_date_epoch: options.source_date_epoch,
        timeout_s: 0,
        auth: Some(auth(outputs, &args.contexts)?),
        triggered_by: "kiln build".to_owned(),
        project: String::new(),
        cache_from: args
            .earlier
            .cache_from
            .iter()
            .filter_map(cache_from)
            .collect(),
        cache_to: outputs.caches.iter().filter_map(cache_to).collect(),
    })
}

/// Returns an error for what the service has no words for: nothing is accepted and ignored.
fn refuse_unsupported(args: &BuildArgs, outputs: &Outputs) -> Outcome {
    let is_folder = |cache: &CacheFromArg| matches!(cache, CacheFromArg::Folder(..));
    let is_export = |output: &Output| matches!(output, Output::Export { .. });
    let to_folder = |cache: &CacheTo| matches!(cache, CacheTo::Folder { .. });
    let unsupported = [
        ("--ssh", !args.steps.ssh.is_empty()),
        (
            "--output to a file or folder",
            outputs.spec.iter().any(is_export),
        ),
        (
            "--cache-from type=local",
            args.earlier.cache_from.iter().any(is_folder),
        ),
        (
            "--cache-to type=local",
            outputs.caches.iter().any(to_folder),
        ),
    ];
    match unsupported.iter().find(|(_, is_used)| *is_used) {
        Some((name, _)) => {
            let text = format!("{name} is not supported with --server");
            Err(Failure::text(Exit::Usage, text))
        }
        None => Ok(()),
    }
}

fn repository(source: &GitSource) -> wire::BuildFiles {
    let initializer = WorkspaceInitializer {
        spec: Some(workspace_initializer::Spec::Git(initializer(source))),
    };
    wire::BuildFiles {
        from: Some(wire::build_files::From::Workspace(initializer)),
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

fn contexts(args: &[NamedArg]) -> Outcome<HashMap<String, wire::NamedContext>> {
    use wire::named_context::What;
    let mut contexts = HashMap::new();
    for arg in args {
        let what = match &arg.what {
            NamedWhat::Scratch => What::Image("scratch".to_owned()),
            NamedWhat::Image(reference) => What::Image(reference.to_string()),
            NamedWhat::Repository(address) => {
                let input = context::repository_at(address)?;
                What::Files(wire::NamedFiles {
                    files: Some(repository(&input.source)),
                    folder: input.context_path,
                })
            }
            NamedWhat::Folder(_) | NamedWhat::Layout(..) => {
                let text = format!(
                    "--build-context {}: a folder of this machine is not supported with --server",
                    arg.name
                );
                return Err(Failure::text(Exit::Usage, text));
            }
        };
        let context = wire::NamedContext { what: Some(what) };
        if contexts.insert(arg.name.clone(), context).is_some() {
            let text = format!("two contexts are called {:?}", arg.name);
            return Err(Failure::text(Exit::Usage, text));
        }
    }
    Ok(contexts)
}

fn network(network: Option<Network>) -> wire::StepNetwork {
    match network {
        None => wire::StepNetwork::Unspecified,
        Some(Network::Default) => wire::StepNetwork::Default,
        Some(Network::None) => wire::StepNetwork::None,
        Some(Network::Host) => wire::StepNetwork::Host,
    }
}

fn host((name, address): (String, std::net::IpAddr)) -> wire::ExtraHost {
    let address = address.to_string();
    wire::ExtraHost { name, address }
}

fn ulimit(ulimit: &engine::spec::Ulimit) -> wire::Ulimit {
    wire::Ulimit {
        name: ulimit.name.as_str().to_owned(),
        soft: ulimit.soft,
        hard: ulimit.hard,
    }
}

fn entitlements(args: &BuildArgs) -> Vec<String> {
    let name = |entitlement: &Entitlement| match entitlement {
        Entitlement::HostNetwork => "network.host".to_owned(),
        Entitlement::Insecure => "security.insecure".to_owned(),
    };
    args.steps.allowed.iter().map(name).collect()
}

fn output(output: &Output) -> Option<wire::BuildOutput> {
    let kind = match output {
        Output::Publish { reference } => wire::build_output::Kind::Publish(reference.to_string()),
        Output::Keep { reference } => wire::build_output::Kind::Keep(reference.to_string()),
        Output::Export { .. } | Output::Subassembly { .. } => return None,
    };
    Some(wire::BuildOutput { kind: Some(kind) })
}

fn compression(compression: Option<Compression>) -> wire::LayerCompression {
    match compression {
        None => wire::LayerCompression::Unspecified,
        Some(Compression::Gzip) => wire::LayerCompression::Gzip,
        Some(Compression::Zstd) => wire::LayerCompression::Zstd,
    }
}

fn media_types(media_types: MediaTypes) -> wire::MediaTypes {
    match media_types {
        MediaTypes::Oci => wire::MediaTypes::Oci,
        MediaTypes::Docker => wire::MediaTypes::Docker,
    }
}

fn cache_from(cache: &CacheFromArg) -> Option<String> {
    match cache {
        CacheFromArg::Registry(reference) => Some(reference.to_string()),
        CacheFromArg::Folder(..) => None,
    }
}

fn cache_to(cache: &CacheTo) -> Option<wire::CacheTarget> {
    let kind = match cache {
        CacheTo::Inline => wire::cache_target::Kind::Inline(wire::InlineCache {}),
        CacheTo::Registry {
            reference,
            steps,
            on_error,
        } => wire::cache_target::Kind::Registry(wire::RegistryCache {
            reference: reference.to_string(),
            all_stages: *steps == CachedSteps::All,
            ignore_error: *on_error == OnCacheError::Warn,
        }),
        CacheTo::Folder { .. } => return None,
    };
    Some(wire::CacheTarget { kind: Some(kind) })
}

/// Returns the credentials that go with the request: the user's own, for the hosts that the command line names and no others.
fn auth(outputs: &Outputs, contexts: &[NamedArg]) -> Outcome<BuildRegistryAuth> {
    let published = outputs.spec.iter().filter_map(|output| match output {
        Output::Publish { reference } => Some(reference.host()),
        _ => None,
    });
    let cached = outputs.caches.iter().filter_map(|cache| match cache {
        CacheTo::Registry { reference, .. } => Some(reference.host()),
        CacheTo::Folder { .. } | CacheTo::Inline => None,
    });
    let images = contexts.iter().filter_map(|context| match &context.what {
        NamedWhat::Image(reference) => Some(reference.host()),
        _ => None,
    });
    let hosts: Vec<&str> = published.chain(cached).chain(images).collect();
    let keychain = place::keychain()?.only(&hosts);
    let total = BuildRegistryAuthTotal { allow_all: true };
    Ok(BuildRegistryAuth {
        mode: Some(build_registry_auth::Mode::Total(total)),
        additional: additional(&keychain),
    })
}

fn additional(keychain: &Keychain) -> HashMap<String, String> {
    let entry = |host: &str| {
        let text = match keychain.get(host)? {
            Credential::Basic { username, password } => {
                format!("{username}:{}", password.reveal())
            }
            Credential::IdentityToken(token) => token.reveal().to_owned(),
            // The request has no form for one that is sent as it is.
            Credential::RegistryToken(_) => return None,
        };
        Some((host.to_owned(), STANDARD.encode(text)))
    };
    keychain.hosts().filter_map(entry).collect()
}
