//! The command line as a request of `kiln.v1`.

use std::collections::HashMap;

use api::builder::{BuildRegistryAuth, BuildRegistryAuthTotal, build_registry_auth};
use api::kiln::v1 as wire;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use engine::spec::{
    BuildOptions, CacheMode, CacheTo, CachedSteps, Compression, ExportFormat, MediaTypes,
    OnCacheError, Output,
};
use registry::keychain::{Credential, Keychain};

use super::files::Files;
use super::outputs::Outputs;
use crate::args::cache::CacheFromArg;
use crate::args::named::{NamedArg, NamedWhat};
use crate::args::steps::Entitlement;
use crate::args::times::SecondsArg;
use crate::args::{BuildArgs, Network};
use crate::build::secrets;
use crate::failure::Outcome;
use crate::place;

fn seconds(given: Option<SecondsArg>) -> u64 {
    given.map(|seconds| seconds.0).unwrap_or_default()
}

/// Returns the request for what the command line asks for.
pub(super) fn request(
    args: &BuildArgs,
    files: Files,
    options: BuildOptions,
    outputs: &Outputs,
) -> Outcome<wire::StartBuildRequest> {
    let secrets = secrets::read(&args.steps.secrets)?;
    let secrets = secrets.into_iter();
    let said = args.outputs.iter().find_map(|output| output.compression);
    Ok(wire::StartBuildRequest {
        request_id: String::new(),
        files: Some(files.from),
        dockerfile_path: files.dockerfile_path,
        dockerfile_text: files.dockerfile_text,
        context_path: files.context_path,
        target: options.target.unwrap_or_default(),
        platform: args
            .platform
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        build_args: options.build_args.into_iter().collect(),
        labels: options.labels.into_iter().collect(),
        annotations: options.annotations.into_iter().collect(),
        contexts: files.contexts,
        no_cache: options.cache == CacheMode::Ignore,
        no_cache_stages: options.no_cache_stages,
        network: network(args.network).into(),
        extra_hosts: options.steps.extra_hosts.into_iter().map(host).collect(),
        ulimits: options.steps.ulimits.iter().map(ulimit).collect(),
        shm_bytes: options.steps.shm_bytes.unwrap_or(0),
        secrets: secrets
            .map(|(id, value)| (id, value.reveal().to_vec()))
            .collect(),
        ssh_agents: args.steps.ssh.iter().map(|ssh| ssh.id.clone()).collect(),
        entitlements: entitlements(args),
        outputs: outputs
            .spec
            .iter()
            .filter_map(output)
            .chain(outputs.caches.iter().filter_map(exported_cache))
            .collect(),
        compression: compression(said).into(),
        media_types: media_types(options.media_types).into(),
        source_date_epoch: options.source_date_epoch,
        timeout_s: seconds(args.times.timeout),
        step_timeout_s: seconds(args.times.step_timeout),
        step_idle_timeout_s: seconds(args.times.step_idle_timeout),
        request_labels: args.times.labels().into_iter().collect(),
        auth: Some(auth(outputs, &args.earlier.cache_from, &args.contexts)?),
        triggered_by: "kiln build".to_owned(),
        project: files.project,
        cache_from: args
            .earlier
            .cache_from
            .iter()
            .filter_map(cache_from)
            .collect(),
        cache_to: outputs.caches.iter().filter_map(cache_to).collect(),
        cache_from_layouts: files.caches,
    })
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
        Output::Export {
            format, references, ..
        } => wire::build_output::Kind::Export(wire::ExportedFile {
            format: export_format(*format).into(),
            references: references.iter().map(ToString::to_string).collect(),
        }),
        Output::Subassembly { .. } => return None,
    };
    Some(wire::BuildOutput { kind: Some(kind) })
}

fn export_format(format: ExportFormat) -> wire::ExportFormat {
    match format {
        ExportFormat::Oci => wire::ExportFormat::Oci,
        ExportFormat::Docker => wire::ExportFormat::Docker,
        // A folder comes as an archive, and becomes one here.
        ExportFormat::Tar | ExportFormat::Local => wire::ExportFormat::Tar,
    }
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
        CacheTo::Folder { .. } | CacheTo::Archive { .. } => return None,
    };
    Some(wire::CacheTarget { kind: Some(kind) })
}

/// A cache that becomes a folder here comes as an archive: they follow the other outputs.
fn exported_cache(cache: &CacheTo) -> Option<wire::BuildOutput> {
    let (CacheTo::Folder { steps, .. } | CacheTo::Archive { steps, .. }) = cache else {
        return None;
    };
    let kind = wire::build_output::Kind::Cache(wire::ExportedCache {
        all_stages: *steps == CachedSteps::All,
    });
    Some(wire::BuildOutput { kind: Some(kind) })
}

/// Returns the credentials that go with the request: the user's own, for the hosts that the command line names and no others.
fn auth(
    outputs: &Outputs,
    caches: &[CacheFromArg],
    contexts: &[NamedArg],
) -> Outcome<BuildRegistryAuth> {
    let published = outputs.spec.iter().filter_map(|output| match output {
        Output::Publish { reference } => Some(reference.host()),
        _ => None,
    });
    let written = outputs.caches.iter().filter_map(|cache| match cache {
        CacheTo::Registry { reference, .. } => Some(reference.host()),
        CacheTo::Folder { .. } | CacheTo::Archive { .. } | CacheTo::Inline => None,
    });
    let images = contexts.iter().filter_map(|context| match &context.what {
        NamedWhat::Image(reference) => Some(reference.host()),
        _ => None,
    });
    let read = caches.iter().filter_map(|cache| match cache {
        CacheFromArg::Registry(reference) => Some(reference.host()),
        CacheFromArg::Folder(..) => None,
    });
    let named = published.chain(written).chain(read).chain(images);
    let hosts: Vec<&str> = named.collect();
    let keychain = place::keychain()?.only(&hosts);
    let total = BuildRegistryAuthTotal { allow_all: true };
    Ok(BuildRegistryAuth {
        mode: Some(build_registry_auth::Mode::Total(total)),
        additional: additional(&keychain),
    })
}

pub(crate) fn additional(keychain: &Keychain) -> HashMap<String, String> {
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
