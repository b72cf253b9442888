//! A request of `kiln.v1` to build, in our words. Each field is carried out, or refused by its name: the message is taken apart
//! completely, so that a new field does not compile until somebody has decided about it.

mod files;
mod outputs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use api::kiln::v1 as wire;
use engine::sandbox::SecretBytes;
use engine::spec::{
    BuildOptions, CacheMode, CacheMountScope, Compression, MediaTypes, NetworkMode, Source,
    StepOptions, Ulimit,
};
use oci::{Platform, Reference};
use source::git::FetchOptions;

use self::files::{Beside, context, named_contexts};
use self::outputs::{caches_from, caches_to, uploaded_caches, wishes};
use super::{path, rights, short};
use crate::agents::AgentId;
use crate::failure::{Blame, Failure};
use crate::native::{Entitlement, NativeCall, Times};

/// Longest id of a request.
const REQUEST_ID_MAX_BYTES: usize = 128;
/// Most entries of a list or map that has no smaller limit.
const ENTRIES_MAX: usize = 1000;
/// Largest value of a build argument, label or annotation.
const VALUE_MAX_BYTES: usize = 128 << 10;
/// Largest secret, as with docker.
const SECRET_MAX_BYTES: usize = 500 << 10;
/// Most that all secrets may have together.
const SECRETS_MAX_BYTES: usize = 2 << 20;
/// Most SSH agents.
const AGENTS_MAX: usize = 16;
/// The folder that holds all files.
const ALL_FILES: &str = ".";

/// Returns what a request asks for.
#[expect(
    clippy::too_many_lines,
    reason = "a line or two for each field, all of them in one place"
)]
pub(crate) fn native_call(
    request: wire::StartBuildRequest,
    fetch: &FetchOptions,
) -> Result<NativeCall, Failure> {
    let wire::StartBuildRequest {
        request_id,
        files,
        dockerfile_path,
        dockerfile_text,
        context_path,
        target,
        platform,
        build_args,
        labels,
        annotations,
        contexts,
        no_cache,
        no_cache_stages,
        network,
        extra_hosts,
        ulimits,
        shm_bytes,
        secrets,
        ssh_agents,
        entitlements,
        outputs,
        compression,
        media_types,
        source_date_epoch,
        timeout_s,
        auth,
        triggered_by,
        project,
        cache_from,
        cache_to,
        cache_from_layouts,
        request_labels,
        step_timeout_s,
        step_idle_timeout_s,
    } = request;
    let files = files.ok_or_else(|| refused("files", "missing"))?;
    let beside = Beside {
        dockerfile_text,
        project: short("project", project)?,
    };
    let mut uploads = BTreeSet::new();
    let media_types = media_types_of(media_types)?;
    let annotations = texts("annotations", annotations)?;
    if media_types == MediaTypes::Docker && !annotations.is_empty() {
        let text = "docker's manifests have no place for them (media_types)";
        return Err(refused("annotations", text));
    }
    let (outputs, exported_caches) = wishes(outputs)?;
    let mut cache_to = caches_to(cache_to)?;
    cache_to.extend(exported_caches);
    let mut cache_from = caches_from(cache_from)?;
    cache_from.extend(uploaded_caches(cache_from_layouts, &mut uploads)?);
    Ok(NativeCall {
        request_id: request_id_of(request_id)?,
        source: Source::Dockerfile {
            context: context("files", files, beside, (fetch, &mut uploads))?,
            dockerfile: path(
                "dockerfile_path",
                &short("dockerfile_path", dockerfile_path)?,
            )?,
            context_path: Some(
                path("context_path", &short("context_path", context_path)?)?
                    .unwrap_or_else(|| ALL_FILES.to_owned()),
            ),
        },
        contexts: named_contexts(contexts, (fetch, &mut uploads))?,
        options: BuildOptions {
            target: given(short("target", target)?),
            build_args: texts("build_args", build_args)?,
            labels: texts("labels", labels)?,
            platform: platform_of(&platform)?,
            cache: if no_cache {
                CacheMode::Ignore
            } else {
                CacheMode::Use
            },
            no_cache_stages: words("no_cache_stages", no_cache_stages)?,
            annotations,
            steps: StepOptions {
                extra_hosts: hosts(extra_hosts)?,
                ulimits: limits(ulimits)?,
                shm_bytes: (shm_bytes > 0).then_some(shm_bytes),
            },
            // What one project leaves runs in the next build of the same one only.
            cache_mounts: CacheMountScope::Project,
            source_date_epoch,
            media_types,
            ..BuildOptions::default()
        },
        network: network_of(network)?,
        compression: compression_of(compression)?,
        secrets: secrets_of(secrets)?,
        agents: agents_of(ssh_agents)?,
        outputs,
        cache_from,
        cache_to,
        entitlements: entitlements_of(entitlements)?,
        times: Times {
            build_s: (timeout_s > 0).then_some(timeout_s),
            step_s: (step_timeout_s > 0).then_some(step_timeout_s),
            step_idle_s: (step_idle_timeout_s > 0).then_some(step_idle_timeout_s),
        },
        labels: super::list::labels(request_labels)?,
        rights: rights(auth)?,
        triggered_by: short("triggered_by", triggered_by)?,
        uploads,
    })
}

fn refused(field: &str, why: &str) -> Failure {
    Failure::new(Blame::Request, format!("{field}: {why}"))
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn request_id_of(text: String) -> Result<Option<String>, Failure> {
    let is_fine = text.len() <= REQUEST_ID_MAX_BYTES && text.bytes().all(|b| b.is_ascii_graphic());
    if is_fine {
        return Ok(given(text));
    }
    let why = format!("not up to {REQUEST_ID_MAX_BYTES} visible ASCII characters");
    Err(refused("request_id", &why))
}

fn name_of(field: &str, text: &str) -> Result<Reference, Failure> {
    let parsed: Result<Reference, oci::reference::ReferenceError> = text.parse();
    parsed.map_err(|error| Failure::field(field, &error))
}

/// Returns a name that something is to get: with a tag and without a digest.
fn new_name(field: &str, text: &str) -> Result<Reference, Failure> {
    let name = name_of(field, text)?;
    if name.digest().is_some() {
        return Err(refused(field, "a digest is for the build to find out"));
    }
    let tagged = name.with_tag(name.tag_or_latest());
    tagged.map_err(|error| Failure::field(field, &error))
}

fn platform_of(text: &str) -> Result<Platform, Failure> {
    let host = Platform::host();
    if text.is_empty() {
        return Ok(host);
    }
    let wanted: Result<Platform, oci::platform::PlatformError> = text.parse();
    let wanted = wanted.map_err(|error| Failure::field("platform", &error))?;
    if host.satisfies(&wanted) {
        return Ok(host);
    }
    let why = format!("this server builds for {host} only");
    Err(refused("platform", &why))
}

fn at_most(field: &str, n: usize, max: usize) -> Result<(), Failure> {
    if n <= max {
        return Ok(());
    }
    Err(refused(field, &format!("more than {max}")))
}

fn texts(
    field: &str,
    entries: HashMap<String, String>,
) -> Result<BTreeMap<String, String>, Failure> {
    at_most(field, entries.len(), ENTRIES_MAX)?;
    for (name, value) in &entries {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(refused(field, "a name is empty, or one holds = or NUL"));
        }
        if name.len() + value.len() > VALUE_MAX_BYTES {
            let why = format!("an entry is longer than {VALUE_MAX_BYTES} bytes");
            return Err(refused(field, &why));
        }
    }
    Ok(entries.into_iter().collect())
}

fn words(field: &str, words: Vec<String>) -> Result<Vec<String>, Failure> {
    at_most(field, words.len(), ENTRIES_MAX)?;
    words.into_iter().map(|word| short(field, word)).collect()
}

fn hosts(hosts: Vec<wire::ExtraHost>) -> Result<Vec<(String, IpAddr)>, Failure> {
    at_most("extra_hosts", hosts.len(), ENTRIES_MAX)?;
    let host = |host: wire::ExtraHost| {
        let wire::ExtraHost { name, address } = host;
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > 255 || !name.bytes().all(is_name) {
            return Err(refused("extra_hosts", "a name is none of a host"));
        }
        let address = address.parse();
        let address = address.map_err(|_| refused("extra_hosts", "an address is none"))?;
        Ok((name, address))
    };
    hosts.into_iter().map(host).collect()
}

fn limits(limits: Vec<wire::Ulimit>) -> Result<Vec<Ulimit>, Failure> {
    at_most("ulimits", limits.len(), ENTRIES_MAX)?;
    let limit = |limit: wire::Ulimit| {
        let wire::Ulimit { name, soft, hard } = limit;
        let name = name.parse();
        let name =
            name.map_err(|error: engine::sandbox::NoSuchLimit| Failure::field("ulimits", &error))?;
        let limit = Ulimit { name, soft, hard };
        if soft > hard {
            return Err(refused("ulimits", "a soft limit is above its hard limit"));
        }
        limit
            .check()
            .map_err(|max| refused("ulimits", &format!("a limit is above {max}")))?;
        Ok(limit)
    };
    limits.into_iter().map(limit).collect()
}

fn secrets_of(secrets: HashMap<String, Vec<u8>>) -> Result<BTreeMap<String, SecretBytes>, Failure> {
    at_most("secrets", secrets.len(), ENTRIES_MAX)?;
    let total: usize = secrets.values().map(Vec::len).sum();
    at_most("secrets, in bytes", total, SECRETS_MAX_BYTES)?;
    let mut read = BTreeMap::new();
    for (id, value) in secrets {
        if id.is_empty() || id.len() > REQUEST_ID_MAX_BYTES {
            return Err(refused("secrets", "an id is empty or too long"));
        }
        at_most("secrets: one, in bytes", value.len(), SECRET_MAX_BYTES)?;
        read.insert(id, SecretBytes::new(value));
    }
    Ok(read)
}

fn agents_of(ids: Vec<String>) -> Result<BTreeSet<AgentId>, Failure> {
    at_most("ssh_agents", ids.len(), AGENTS_MAX)?;
    let mut agents = BTreeSet::new();
    for id in ids {
        let id = id
            .parse()
            .map_err(|error| Failure::field("ssh_agents", &error))?;
        if !agents.insert(id) {
            return Err(refused("ssh_agents", "an id is given twice"));
        }
    }
    Ok(agents)
}

fn entitlements_of(names: Vec<String>) -> Result<Vec<Entitlement>, Failure> {
    let entitlement = |name: String| match name.as_str() {
        "network.host" => Ok(Entitlement::HostNetwork),
        "security.insecure" => Ok(Entitlement::Insecure),
        _ => Err(refused(
            "entitlements",
            "there are network.host and security.insecure",
        )),
    };
    names.into_iter().map(entitlement).collect()
}

fn network_of(number: i32) -> Result<Option<NetworkMode>, Failure> {
    match wire::StepNetwork::try_from(number) {
        Ok(wire::StepNetwork::Unspecified) => Ok(None),
        Ok(wire::StepNetwork::Default) => Ok(Some(NetworkMode::Default)),
        Ok(wire::StepNetwork::None) => Ok(Some(NetworkMode::None)),
        Ok(wire::StepNetwork::Host) => Ok(Some(NetworkMode::Host)),
        Err(_) => Err(refused("network", "unknown")),
    }
}

fn compression_of(number: i32) -> Result<Option<Compression>, Failure> {
    match wire::LayerCompression::try_from(number) {
        Ok(wire::LayerCompression::Unspecified) => Ok(None),
        Ok(wire::LayerCompression::Gzip) => Ok(Some(Compression::Gzip)),
        Ok(wire::LayerCompression::Zstd) => Ok(Some(Compression::Zstd)),
        Err(_) => Err(refused("compression", "unknown")),
    }
}

fn media_types_of(number: i32) -> Result<MediaTypes, Failure> {
    match wire::MediaTypes::try_from(number) {
        Ok(wire::MediaTypes::Unspecified | wire::MediaTypes::Oci) => Ok(MediaTypes::Oci),
        Ok(wire::MediaTypes::Docker) => Ok(MediaTypes::Docker),
        Err(_) => Err(refused("media_types", "unknown")),
    }
}
