//! What a build of `kiln.v1` means: names that the caller chooses, settings that the operator bounds.
//!
//! Unlike builds of the published API, these have no names of ours: nothing is reused by name, and nothing is recorded about which inputs
//! made what stands under one. Two requests are the same build only if their caller says so, by a request id.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine::sandbox::SecretBytes;
use engine::spec::{
    BuildOptions, BuildSpec, CacheFrom, CacheTo, Compression, Context, ExportFormat, Limits,
    NamedContext, NetworkMode, Output, Purpose, Record, Source,
};
use oci::{Digest, Reference};
use source::git::{FetchOptions, GitAuth, GitDirectory, GitSource};

use crate::access::{Rights, Tenant};
use crate::agents::{AgentId, Agents};
use crate::builds::build::Build;
use crate::builds::{Joined, Order};
use crate::failure::{Blame, Failure};
use crate::lifecycle::Service;
use crate::outputs;

/// The build argument that lets COPY see `.git` of a repository.
const KEEP_GIT_ARGUMENT: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";
/// The name of the registry that is meant when none is said.
const DEFAULT_HOST: &str = "docker.io";
/// What its names begin with that have no other.
const DEFAULT_NAMESPACE: &str = "library/";

/// A request to build: decoded and checked, as far as it can be without knowing the server.
#[derive(Debug)]
pub struct NativeCall {
    /// Chosen by the caller: the same again is the same build.
    pub request_id: Option<String>,
    /// What to build from.
    pub source: Source,
    /// What stands for stages and images.
    pub contexts: BTreeMap<String, NamedContext>,
    /// How.
    pub options: BuildOptions,
    /// Network of steps, if it is said.
    pub network: Option<NetworkMode>,
    /// Compression of new layers, if it is said.
    pub compression: Option<Compression>,
    /// Secrets of steps.
    pub secrets: BTreeMap<String, SecretBytes>,
    /// SSH agents that the caller will lend.
    pub agents: BTreeSet<AgentId>,
    /// What becomes of the image.
    pub outputs: Vec<Wish>,
    /// Caches of others.
    pub cache_from: Vec<CacheFrom>,
    /// Caches for others.
    pub cache_to: Vec<CacheTo>,
    /// What the operator has to allow.
    pub entitlements: Vec<Entitlement>,
    /// How long it may take.
    pub times: Times,
    /// What the request says about itself.
    pub labels: BTreeMap<String, String>,
    /// With which credentials.
    pub rights: Rights,
    /// Who says to have asked; never trusted.
    pub triggered_by: String,
    /// Ids of the uploaded contexts that it names.
    pub uploads: BTreeSet<String>,
}

/// How long a build may take, where the request says it; the operator may say less.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// All of it, in seconds.
    pub build_s: Option<u64>,
    /// One step, in seconds.
    pub step_s: Option<u64>,
    /// One step without a word, in seconds.
    pub step_idle_s: Option<u64>,
}

/// What is to become of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// It gets this name, in whatever registry.
    Publish(Reference),
    /// It gets this name in the embedded registry.
    Keep(Reference),
    /// It becomes a file that the caller fetches.
    Export {
        /// Which of the request's outputs it is.
        index: u32,
        /// In which form.
        format: ExportFormat,
        /// Names recorded inside.
        references: Vec<Reference>,
    },
}

/// What the operator has to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entitlement {
    /// Steps may use the machine's network.
    HostNetwork,
    /// Steps may be kept from less.
    Insecure,
}

impl Service {
    /// Starts a build, or finds the one that was started for the same request.
    pub async fn start(
        &self,
        tenant: &Tenant,
        mut call: NativeCall,
    ) -> Result<(Arc<Build>, Joined), Failure> {
        let new_id = self.settings.environment.new_id;
        let id = new_id().map_err(|error| Failure::platform("cannot make a build id", error))?;
        let request_id = call.request_id.clone();
        let mut keychains = self.images.keychains(&call.rights).await?;
        // What a caller names is published as the caller, never as the service.
        keychains.publish = call.rights.additional.clone();
        let triggered_by = call.triggered_by.clone();
        let caller = call.rights.caller.clone();
        let labels = std::mem::take(&mut call.labels);
        let agents = Agents::new(std::mem::take(&mut call.agents));
        let mut spec = self.spec_of(tenant, call)?;
        let fingerprint = fingerprint(&spec, &agents);
        let key = match &request_id {
            Some(request_id) => key_of(tenant, request_id),
            // Nobody else has this one.
            None => format!("build {id}"),
        };
        if let Some(build) = self.builds.newest_under(&key) {
            return same_request(build, &fingerprint);
        }
        spec.id = id.clone();
        spec.registries = self.registries(tenant, keychains);
        let record = Record {
            id,
            tenant: tenant.as_str().to_owned(),
            triggered_by,
            caller,
            supervisor_ref: String::new(),
            reference: first_name(&spec.outputs),
            base_reference: String::new(),
            started_at_ms: (self.settings.environment.now_ms)(),
            key,
            purpose: Purpose::Named,
            request: fingerprint.clone(),
            labels,
        };
        let order = Order {
            record,
            spec,
            agents,
        };
        let (build, joined) = self.builds.start_or_join(order).await?;
        match joined {
            Joined::Started => Ok((build, joined)),
            Joined::Joined => same_request(build, &fingerprint),
        }
    }

    /// Tells whether a request of this id was made before.
    pub fn was_asked(&self, tenant: &Tenant, request_id: Option<&str>) -> bool {
        let known = request_id.and_then(|id| self.builds.newest_under(&key_of(tenant, id)));
        known.is_some()
    }

    /// Returns what the worker is told, without id and registries.
    fn spec_of(&self, tenant: &Tenant, call: NativeCall) -> Result<BuildSpec, Failure> {
        let settings = &self.settings;
        let limits = self.limits_of(&call)?;
        let outputs = call.outputs.iter();
        let outputs = outputs.map(|wish| self.output(tenant, wish));
        let outputs: Vec<Output> = outputs.collect::<Result<_, _>>()?;
        for cache in &call.cache_to {
            if let CacheTo::Registry { reference, .. } = cache {
                self.output(tenant, &Wish::Publish(reference.clone()))?;
            }
        }
        let git_directory = git_directory(&call.options);
        Ok(BuildSpec {
            id: engine::id::BuildId::from_random([0; 16]),
            tenant: tenant.as_str().to_owned(),
            source: call.source,
            options: BuildOptions {
                network: call.network.unwrap_or(settings.network),
                compression: call.compression.unwrap_or(settings.compression),
                ..call.options
            },
            contexts: call.contexts,
            secrets: call.secrets,
            ssh: BTreeMap::new(),
            cache_from: call.cache_from,
            cache_to: call.cache_to,
            outputs,
            registries: engine::spec::Registries::default(),
            fetch: FetchOptions {
                git_directory,
                ..settings.fetch.clone()
            },
            limits,
        })
    }

    /// Returns what the build may use up: what the operator says, or less.
    fn limits_of(&self, call: &NativeCall) -> Result<Limits, Failure> {
        let limits = self.settings.limits.clone();
        let wants_host = call.network == Some(NetworkMode::Host)
            || call.entitlements.contains(&Entitlement::HostNetwork);
        if wants_host && !limits.allow_host_network {
            let text = "network.host: this server gives no build the network of its machine (limits.allow_host_network)";
            return Err(Failure::new(Blame::Forbidden, text));
        }
        let wants_insecure = call.entitlements.contains(&Entitlement::Insecure);
        if wants_insecure && !limits.allow_insecure {
            let text =
                "security.insecure: this server runs no insecure steps (limits.allow_insecure)";
            return Err(Failure::new(Blame::Forbidden, text));
        }
        let most = limits.step_shm_bytes;
        if call
            .options
            .steps
            .shm_bytes
            .is_some_and(|asked| asked > most)
        {
            let text = format!("shm_bytes: more than {most} (limits.step_shm_bytes)");
            return Err(Failure::new(Blame::Request, text));
        }
        let times = call.times;
        let at_most = |asked: Option<u64>, most: u64| asked.map_or(most, |s| s.min(most));
        Ok(Limits {
            wall_time_s: at_most(times.build_s, limits.wall_time_s),
            step_time_s: at_most(times.step_s, limits.step_time_s),
            step_idle_s: match (times.step_idle_s, limits.step_idle_s) {
                (Some(asked), Some(most)) => Some(asked.min(most)),
                (asked, most) => asked.or(most),
            },
            // It takes both: the operator's word and the request's. The operator's own default needs no asking.
            allow_host_network: limits.allow_host_network
                && (wants_host
                    || (call.network.is_none() && self.settings.network == NetworkMode::Host)),
            allow_insecure: wants_insecure,
            ..limits
        })
    }

    /// Returns what the worker is told to do with the image. Never under a name that the server itself looks images up by: nobody
    /// records which inputs made what a caller puts there.
    fn output(&self, tenant: &Tenant, wish: &Wish) -> Result<Output, Failure> {
        let output = self.named(tenant, wish)?;
        let settings = &self.settings;
        let own = [&settings.base_repository, &settings.workspace_repository];
        if let Output::Publish { reference } = &output
            && (own.iter().any(|own| own.name() == reference.name())
                || (self.is_embedded(reference)
                    && settings.repositories.is_services(reference.repository())))
        {
            let text = format!("{}: this repository is the server's own", reference.name());
            return Err(Failure::new(Blame::Forbidden, text));
        }
        Ok(output)
    }

    /// Tells whether a name is one in the embedded registry, which has several hosts.
    fn is_embedded(&self, name: &Reference) -> bool {
        let embedded = self.images.embedded_hosts();
        embedded.iter().any(|host| host == name.host())
    }

    fn named(&self, tenant: &Tenant, wish: &Wish) -> Result<Output, Failure> {
        let hosts = self.images.embedded_hosts();
        match wish {
            Wish::Publish(reference) if !self.is_embedded(reference) => Ok(Output::Publish {
                reference: reference.clone(),
            }),
            Wish::Publish(reference) => {
                let prefix = self.namespace(tenant)?;
                if !reference.repository().starts_with(&format!("{prefix}/")) {
                    let text = format!(
                        "{}: in the registry of this server, names of builds are below {}/{prefix}/",
                        reference.name(),
                        reference.host()
                    );
                    return Err(Failure::new(Blame::Forbidden, text));
                }
                Ok(Output::Publish {
                    reference: reference.clone(),
                })
            }
            Wish::Export {
                index,
                format,
                references,
            } => Ok(Output::Export {
                format: *format,
                name: outputs::name(*index),
                references: references.clone(),
            }),
            Wish::Keep(reference) => {
                let prefix = self.namespace(tenant)?;
                let host = hosts.first().map(String::as_str).unwrap_or_default();
                let tag = reference.tag_or_latest();
                let name = format!("{host}/{prefix}/{}:{tag}", kept_name(reference));
                let reference = name.parse().map_err(|_| {
                    let text = format!("{reference} cannot be kept here: it is no name in the registry of this server");
                    Failure::new(Blame::Request, text)
                })?;
                Ok(Output::Publish { reference })
            }
        }
    }

    /// Returns what the tenant's names in the embedded registry begin with.
    fn namespace(&self, tenant: &Tenant) -> Result<String, Failure> {
        let settings = &self.settings;
        let Some(namespace) = &settings.build_namespace else {
            let text = "this server keeps no images under names of builds (build_namespace)";
            return Err(Failure::new(Blame::Forbidden, text));
        };
        let tenants = settings.repositories.tenants.as_ref();
        Ok(match tenants.filter(|_| !tenant.is_default()) {
            Some(tenants) => format!("{tenants}/{}", tenant.as_str()),
            None => namespace.clone(),
        })
    }
}

/// Returns what is left of a name without what everybody leaves out.
fn kept_name(reference: &Reference) -> String {
    let repository = reference.repository();
    match reference.host() {
        DEFAULT_HOST => {
            let short = repository.strip_prefix(DEFAULT_NAMESPACE);
            short.unwrap_or(repository).to_owned()
        }
        host => format!("{host}/{repository}"),
    }
}

fn first_name(outputs: &[Output]) -> String {
    let name = outputs.iter().find_map(|output| match output {
        Output::Publish { reference } => Some(reference.to_string()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn key_of(tenant: &Tenant, request_id: &str) -> String {
    format!("request {} {request_id}", tenant.as_str())
}

/// Returns what tells two requests apart, without their secrets: of those, only which there are.
fn fingerprint(spec: &BuildSpec, agents: &Agents) -> String {
    let source = match &spec.source {
        Source::Dockerfile {
            context,
            dockerfile,
            context_path,
        } => Source::Dockerfile {
            context: plain(context),
            dockerfile: dockerfile.clone(),
            context_path: context_path.clone(),
        },
        source @ Source::Image { .. } => source.clone(),
    };
    let contexts = spec.contexts.iter().map(|(name, named)| {
        let named = match named {
            NamedContext::Files { context, folder } => NamedContext::Files {
                context: plain(context),
                folder: folder.clone(),
            },
            named => named.clone(),
        };
        (name, named)
    });
    let contexts: BTreeMap<&String, NamedContext> = contexts.collect();
    let secrets: Vec<&String> = spec.secrets.keys().collect();
    let agents = agents.ids();
    let agents: Vec<&str> = agents.iter().map(AgentId::as_str).collect();
    let caches = (&spec.cache_from, &spec.cache_to);
    let all = (
        source,
        contexts,
        &spec.options,
        &spec.outputs,
        (secrets, agents),
        caches,
    );
    // Strings, numbers, lists and sorted maps: writing them down cannot fail.
    let text = serde_json::to_string(&all).unwrap_or_default();
    Digest::sha256(text.as_bytes()).hex().to_owned()
}

fn plain(context: &Context) -> Context {
    match context {
        Context::Git(git) => Context::Git(GitSource {
            auth: GitAuth::None,
            ..git.clone()
        }),
        Context::Filled { initializer } => Context::Filled {
            initializer: initializer.identity(),
        },
        Context::Archive { .. } | Context::Directory { .. } | Context::Uploaded { .. } => {
            context.clone()
        }
    }
}

fn same_request(build: Arc<Build>, fingerprint: &str) -> Result<(Arc<Build>, Joined), Failure> {
    if build.record.request == fingerprint {
        return Ok((build, Joined::Joined));
    }
    let text = "request_id: another request had this id";
    Err(Failure::new(Blame::Conflict, text))
}

/// As with docker, COPY sees the files of a commit, and its history only if that is asked for.
fn git_directory(options: &BuildOptions) -> GitDirectory {
    let asked = options.build_args.get(KEEP_GIT_ARGUMENT);
    GitDirectory::of_argument(asked.map(String::as_str))
}
