//! What the calls mean, in our words.
//!
//! How [`Service::build`] decides:
//!
//! 1. the caller resolved a base earlier, and the workspace image over it exists and may be given to this caller: done;
//! 2. else, that base can be resolved: it becomes the source;
//! 3. name the base image and the workspace image;
//! 4. the workspace image exists and may be given to this caller: done;
//! 5. the same request is being carried out: join;
//! 6. start.
//!
//! A request to rebuild skips 1, 2 and 4, never 5.

use std::sync::Arc;

use engine::spec::{
    BuildOptions, BuildSpec, CacheMode, Compression, Context, Limits, NetworkMode, Output, Purpose,
    Record, Registries, Source as SpecSource,
};
use oci::{Platform, Reference};
use registry::client::ProxyOptions;
use registry::hosts::Hosts;
use source::git::FetchOptions;
use source::initializer::Initializer;

use crate::access::{Repositories, Rights, Tenant};
use crate::agents::Agents;
use crate::builds::build::Build;
use crate::builds::provenance::Claim;
use crate::builds::{Builds, Order};
use crate::environment::Environment;
use crate::failure::{Blame, Failure};
use crate::images::{Images, Keychains};
use crate::names::{Inputs, Rebuild, base_tag, request_key, workspace_ref};
use crate::request::{BuildCall, Source};

/// Everything that a call works with. Shared by all of them.
#[derive(Debug)]
pub struct Service {
    /// What registries are asked.
    pub images: Images,
    /// The table of builds.
    pub builds: Builds,
    /// How builds are ordered.
    pub settings: Settings,
}

/// How builds are ordered.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where base images are published.
    pub base_repository: Reference,
    /// Where workspace images are published.
    pub workspace_repository: Reference,
    /// Whose each repository of the embedded registry is.
    pub repositories: Repositories,
    /// What names that callers of the default tenant choose begin with, in the embedded registry; there are none when not given.
    pub build_namespace: Option<String>,
    /// How workers reach registries; files read already.
    pub hosts: Hosts,
    /// Proxies on the way to registries.
    pub proxy: Option<ProxyOptions>,
    /// Where connections may lead.
    pub egress: egress::Policy,
    /// How workers fetch sources; through the same proxies.
    pub fetch: FetchOptions,
    /// What one build may use up.
    pub limits: Limits,
    /// Network of steps that do not say.
    pub network: NetworkMode,
    /// How new layers are compressed.
    pub compression: Compression,
    /// Time and ids.
    pub environment: Environment,
}

/// The names of what a request makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Of the base image.
    pub base: String,
    /// Of the workspace image.
    pub workspace: String,
}

/// Where the workspace image of a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It exists.
    Exists,
    /// It is being built.
    Building,
    /// Neither.
    Unknown,
}

/// What a caller is told when it cannot be found out.
const LOOK_UP_FAILED: &str = "cannot check if the image is already built";

/// What became of a request to build.
#[derive(Debug)]
pub enum Admitted {
    /// The image exists.
    Exists(Names),
    /// It is being built.
    Building(Arc<Build>),
}

impl Service {
    /// Returns the digest form of `reference`, as it was a moment ago at most.
    pub async fn resolve_base(
        &self,
        tenant: &Tenant,
        reference: &Reference,
        rights: &Rights,
    ) -> Result<Reference, Failure> {
        self.images.resolve_recent(tenant, reference, rights).await
    }

    /// Returns how the image of a source is called, and where it stands.
    pub async fn resolve_workspace(
        &self,
        tenant: &Tenant,
        source: &Source,
        rights: &Rights,
    ) -> Result<(Names, Standing), Failure> {
        let source = match source {
            Source::Image(reference) => {
                Source::Image(self.resolve_base(tenant, reference, rights).await?)
            }
            Source::File(_) => source.clone(),
        };
        let names = self.names(tenant, &source);
        let inputs = Inputs::of(&source);
        let standing = if self.may_reuse(&names.workspace, tenant, &inputs).await? {
            Standing::Exists
        } else if self.is_building(tenant, inputs) {
            Standing::Building
        } else {
            Standing::Unknown
        };
        Ok((names, standing))
    }

    /// Sees to it that the image of a source is built.
    pub async fn build(&self, tenant: &Tenant, mut call: BuildCall) -> Result<Admitted, Failure> {
        if let (Some(base), Rebuild::IfMissing) = (call.resolved_base.take(), call.rebuild) {
            let workspace = workspace_ref(&self.workspace_repository(tenant), &base);
            if self
                .is_resolved_base_done(&workspace, &base, tenant, &call)
                .await?
            {
                return Ok(Admitted::Exists(Names { base, workspace }));
            }
            if let Some(resolved) = self.pin_resolved_base(&base, tenant, &call).await? {
                call.source = Source::Image(resolved);
            }
        }
        call.source = self.pin(&call.source, &call.rights).await?;
        let names = self.names(tenant, &call.source);
        let inputs = Inputs::of(&call.source);
        let key = request_key(tenant, &inputs, call.rebuild);
        let is_there = async || self.may_reuse(&names.workspace, tenant, &inputs).await;
        let is_wanted = call.rebuild == Rebuild::IfMissing;
        if is_wanted && is_there().await? {
            return Ok(Admitted::Exists(names));
        }
        if let Some(build) = self.builds.running_under(&key) {
            return Ok(Admitted::Building(build));
        }
        // One that has ended since the registry was asked has left its image.
        if is_wanted && self.builds.newest_under(&key).is_some() && is_there().await? {
            return Ok(Admitted::Exists(names));
        }
        let keychains = self.images.keychains(&call.rights).await?;
        let order = self.order(tenant, call, names, key, keychains)?;
        let (build, _) = self.builds.start_or_join(order).await?;
        Ok(Admitted::Building(build))
    }

    /// Returns the source with a digest where it had a tag: the one that it has now, for what was pushed before a build was asked for is
    /// what it is built from.
    async fn pin(&self, source: &Source, rights: &Rights) -> Result<Source, Failure> {
        match source {
            Source::Image(reference) => {
                let resolved = self.images.resolve(reference, rights).await?;
                Ok(Source::Image(resolved))
            }
            Source::File(_) => Ok(source.clone()),
        }
    }

    /// Returns where a tenant's base images are published.
    pub(crate) fn base_repository(&self, tenant: &Tenant) -> Reference {
        let settings = &self.settings;
        settings
            .repositories
            .part_of(&settings.base_repository, tenant)
    }

    /// Returns where a tenant's workspace images are published.
    pub(crate) fn workspace_repository(&self, tenant: &Tenant) -> Reference {
        let settings = &self.settings;
        settings
            .repositories
            .part_of(&settings.workspace_repository, tenant)
    }

    fn names(&self, tenant: &Tenant, source: &Source) -> Names {
        let base = match source {
            Source::Image(reference) => reference.to_string(),
            Source::File(file) => {
                let tag = base_tag(&file.fields, tenant, &Inputs::of(source));
                format!("{}:{tag}", self.base_repository(tenant).name())
            }
        };
        let workspace = workspace_ref(&self.workspace_repository(tenant), &base);
        Names { base, workspace }
    }

    /// Tells whether an image stands under `name` that may be given to who asks for these inputs.
    async fn may_reuse(
        &self,
        name: &str,
        tenant: &Tenant,
        inputs: &Inputs<'_>,
    ) -> Result<bool, Failure> {
        let reference: Reference = name
            .parse()
            .map_err(|error| Failure::platform("cannot produce workspace image ref", error))?;
        let Some(digest) = self.images.existing(&reference).await? else {
            return Ok(false);
        };
        let (builds, name) = (self.builds.clone(), name.to_owned());
        let (identity, is_plain) = (inputs.identity(tenant), inputs.are_plain());
        let allowed = tokio::task::spawn_blocking(move || {
            let claim = Claim {
                identity: &identity,
                is_plain,
            };
            builds.provenance().allows(&name, &digest, claim)
        });
        allowed
            .await
            .map_err(|error| Failure::platform(LOOK_UP_FAILED, error))?
            .map_err(|error| Failure::platform(LOOK_UP_FAILED, error))
    }

    /// Tells whether the workspace image over a base that the caller resolved earlier is there for this caller.
    async fn is_resolved_base_done(
        &self,
        workspace: &str,
        base: &str,
        tenant: &Tenant,
        call: &BuildCall,
    ) -> Result<bool, Failure> {
        match base.parse::<Reference>() {
            // The name covers the content: what stands under it was made of this digest, whoever asked for it.
            Ok(reference) if reference.digest().is_some() => {
                let source = Source::Image(reference);
                self.may_reuse(workspace, tenant, &Inputs::of(&source))
                    .await
            }
            _ => {
                self.may_reuse(workspace, tenant, &Inputs::of(&call.source))
                    .await
            }
        }
    }

    /// Returns the digest form of a base that the caller resolved earlier; `None` when its source is to be used instead.
    async fn pin_resolved_base(
        &self,
        base: &str,
        tenant: &Tenant,
        call: &BuildCall,
    ) -> Result<Option<Reference>, Failure> {
        let Ok(reference) = base.parse::<Reference>() else {
            return Ok(None);
        };
        // A tag in our own base repository may hold what other inputs made.
        let is_ours = reference.name() == self.base_repository(tenant).name();
        if is_ours && reference.digest().is_none() {
            let inputs = Inputs::of(&call.source);
            if !self.may_reuse(base, tenant, &inputs).await? {
                return Ok(None);
            }
        }
        // With what the caller may use: naming an image gives nobody a right to it.
        Ok(self.images.resolve(&reference, &call.rights).await.ok())
    }

    fn is_building(&self, tenant: &Tenant, inputs: Inputs<'_>) -> bool {
        [Rebuild::IfMissing, Rebuild::Force]
            .into_iter()
            .any(|rebuild| {
                let key = request_key(tenant, &inputs, rebuild);
                self.builds.running_under(&key).is_some()
            })
    }

    fn order(
        &self,
        tenant: &Tenant,
        call: BuildCall,
        names: Names,
        key: String,
        keychains: Keychains,
    ) -> Result<Order, Failure> {
        let settings = &self.settings;
        let new_id = settings.environment.new_id;
        let id = new_id().map_err(|error| Failure::platform("cannot make a build id", error))?;
        let published = match &call.source {
            // The base is there already, and not ours to write.
            Source::Image(_) => vec![&names.workspace],
            Source::File(_) => vec![&names.base, &names.workspace],
        };
        let outputs = published
            .into_iter()
            .map(|name| {
                Ok(Output::Publish {
                    reference: name.parse()?,
                })
            })
            .collect::<Result<Vec<Output>, oci::reference::ReferenceError>>()
            .map_err(|error| Failure::platform("cannot produce workspace image ref", error))?;
        let spec = BuildSpec {
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            secrets: std::collections::BTreeMap::new(),
            ssh: std::collections::BTreeMap::new(),
            contexts: std::collections::BTreeMap::new(),
            id: id.clone(),
            tenant: tenant.as_str().to_owned(),
            source: spec_source(call.source),
            options: self.options(call.rebuild),
            outputs,
            registries: self.registries(tenant, keychains),
            fetch: settings.fetch.clone(),
            limits: settings.limits.clone(),
        };
        let record = Record {
            id,
            tenant: tenant.as_str().to_owned(),
            triggered_by: call.triggered_by,
            caller: call.rights.caller,
            supervisor_ref: call.supervisor_ref,
            reference: names.workspace,
            base_reference: names.base,
            started_at_ms: (settings.environment.now_ms)(),
            key,
            purpose: Purpose::Image,
            request: String::new(),
            labels: std::collections::BTreeMap::new(),
        };
        Ok(Order {
            record,
            spec,
            agents: Agents::default(),
        })
    }

    /// Returns how a worker reaches registries for a tenant.
    pub(crate) fn registries(&self, tenant: &Tenant, keychains: Keychains) -> Registries {
        let settings = &self.settings;
        Registries {
            hosts: settings.hosts.clone(),
            pull: keychains.pull,
            publish: keychains.publish,
            proxy: settings.proxy.clone(),
            egress: settings.egress.clone(),
            embedded: self.images.embedded_hosts().to_vec(),
            readable: settings.repositories.readable(tenant),
            use_kept: false,
        }
    }

    /// Returns how a worker builds.
    pub(crate) fn options(&self, rebuild: Rebuild) -> BuildOptions {
        BuildOptions {
            // What the published API promises, whatever this machine is.
            platform: Platform::linux_amd64(),
            cache: match rebuild {
                Rebuild::IfMissing => CacheMode::Use,
                Rebuild::Force => CacheMode::Ignore,
            },
            network: self.settings.network,
            compression: self.settings.compression,
            ..BuildOptions::default()
        }
    }
}

fn spec_source(source: Source) -> SpecSource {
    match source {
        Source::Image(reference) => SpecSource::Image { reference },
        Source::File(file) => SpecSource::Dockerfile {
            context: match file.initializer {
                Initializer::Git(git) => Context::Git(*git),
                initializer => Context::Filled { initializer },
            },
            dockerfile: file.dockerfile,
            context_path: file.context_path,
        },
    }
}

/// Returns the failure that a build is not known, or not the caller's: the same words for both.
pub fn not_found() -> Failure {
    Failure::new(Blame::Missing, "build not found")
}
