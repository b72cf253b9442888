//! The calls: decode, ask [`crate::lifecycle`], encode. One short function each.
//!
//! Only this module and what is below it name the wire's types. Who calls is found out before ([`crate::identity`]), and whether it may make
//! the call at all is decided by `check`; what it may make it on is what is its tenant's. A stream that a client stops reading is dropped with its
//! connection; the build that it showed goes on, and is not known to this module any more.

mod agent;
mod convert;
mod history;
mod native;
mod output;
mod retry;
mod stream;
mod subassembly;
pub mod told;
mod upload;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;

use api::builder as wire;
use api::builder::image_builder_server::{ImageBuilder, ImageBuilderServer};
use api::builder::subassembly_service_server::SubassemblyServiceServer;
use api::kiln::v1::kiln_server::KilnServer;
use futures_util::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::{Routes, RoutesBuilder};
use tonic::{Request, Response, Status};

use crate::access::{Caller, Right, Rights, Tenant};
use crate::builds::build::Build;
use crate::builds::log::{self, Names as LogNames, Wanted};
use crate::contexts::Contexts;
use crate::failure::{Blame, Failure};
use crate::grpc::retry::Asked;
use crate::lifecycle::{Admitted, Service, Standing, not_found};
use crate::request::BuildCall;
use crate::subassembly::Subassemblies;
use crate::web::download::Downloads;
use crate::web::tokens::LogTokens;

/// What the calls are made of. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Calls {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    service: Arc<Service>,
    tokens: LogTokens,
    log_base_url: String,
    subassemblies: Subassemblies,
    contexts: Contexts,
    downloads: Downloads,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What [`Calls`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// What the calls mean.
    pub service: Arc<Service>,
    /// Opens log streams.
    pub tokens: LogTokens,
    /// `http://host:port`: what comes before `/logs/<id>`.
    pub log_base_url: String,
    /// Every subassembly.
    pub subassemblies: Subassemblies,
    /// Every folder that was uploaded.
    pub contexts: Contexts,
    /// Makes addresses of their files.
    pub downloads: Downloads,
    /// Cancelled when the service is about to stop.
    pub shutdown: CancellationToken,
    /// What goes on when its caller has gone.
    pub tasks: TaskTracker,
}

impl Calls {
    /// Returns the calls.
    pub fn new(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                service: parts.service,
                tokens: parts.tokens,
                log_base_url: parts.log_base_url,
                subassemblies: parts.subassemblies,
                contexts: parts.contexts,
                downloads: parts.downloads,
                shutdown: parts.shutdown,
                tasks: parts.tasks,
            }),
        }
    }

    /// Adds the services to the routes of the server.
    pub fn add_to(&self, routes: &mut RoutesBuilder, max_request_bytes: usize) {
        routes
            .add_service(
                ImageBuilderServer::new(self.clone()).max_decoding_message_size(max_request_bytes),
            )
            .add_service(SubassemblyServiceServer::new(self.clone()))
            .add_service(KilnServer::new(self.clone()));
    }

    fn service(&self) -> &Arc<Service> {
        &self.inner.service
    }

    /// Returns what is left of `rights` for a caller.
    fn bounded(&self, caller: &Caller, rights: Rights) -> Rights {
        rights.of(caller, &self.service().settings.repositories)
    }

    /// Returns what a request of a caller may pull with.
    fn rights(
        &self,
        caller: &Caller,
        auth: Option<wire::BuildRegistryAuth>,
    ) -> Result<Rights, Failure> {
        Ok(self.bounded(caller, convert::rights(auth)?))
    }

    fn log_info(&self, build: &Build) -> wire::LogInfo {
        let inner = &self.inner;
        convert::log_info(inner.tokens.grant(&inner.log_base_url, &build.record.id))
    }

    /// Runs `work` to its end, also when the caller goes away meanwhile.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Status> {
        let done = self.inner.tasks.spawn(work).await;
        done.map_err(|error| Failure::platform("the request failed", error).status())?
            .map_err(|failure| failure.status())
    }

    /// Sees to it that an image is built, and keeps what was asked.
    async fn admit(
        &self,
        caller: &Caller,
        mut call: BuildCall,
        asked: Asked,
    ) -> Result<Admitted, Status> {
        call.rights = self.bounded(caller, call.rights);
        let tenant = caller.tenant.clone();
        let service = Arc::clone(self.service());
        let admitted = async move {
            let admitted = service.build(&tenant, call).await?;
            if let Admitted::Building(build) = &admitted {
                retry::keep(service.builds.requests(), &build.record.id, asked).await;
            }
            Ok(admitted)
        };
        self.to_its_end(admitted).await
    }

    fn find(&self, tenant: &Tenant, id: &str, reference: &str) -> Result<Arc<Build>, Failure> {
        let builds = &self.service().builds;
        let found = match (id, reference) {
            ("", "") => {
                let text = "neither build_id nor build_ref is given";
                return Err(Failure::new(Blame::Request, text));
            }
            ("", reference) => builds.newest_of(tenant, reference),
            (id, _) => id.parse().ok().and_then(|id| builds.find(tenant, &id)),
        };
        found.ok_or_else(not_found)
    }
}

/// What calls begin with that everybody may make: who asks whether a service is there has no token.
const HEALTH: &str = "/grpc.health.v1.Health/";
/// What calls begin with that every known caller may make: they say what is published anyway.
const REFLECTION: &str = "/grpc.reflection.";
/// What the names of calls begin with that change nothing. A call of another name needs the right to build.
const READING: [&str; 6] = ["Get", "List", "Watch", "Logs", "Resolve", "Download"];

/// Decides whether a caller may make the call of this path at all.
pub(crate) fn check(path: &str, caller: Option<&Caller>) -> Result<(), Failure> {
    if path.starts_with(HEALTH) {
        return Ok(());
    }
    let Some(caller) = caller else {
        let text = "this server needs a token or a certificate of one of its callers";
        return Err(Failure::new(Blame::Credentials, text));
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let right = if READING.iter().any(|word| name.starts_with(word)) {
        Right::Read
    } else {
        Right::Build
    };
    if path.starts_with(REFLECTION) || caller.may(right) {
        return Ok(());
    }
    let text = match right {
        Right::Read => "this caller may not look at builds: it has not the right \"read\"",
        _ => "this caller may not build: it has not the right \"build\"",
    };
    Err(Failure::new(Blame::Forbidden, text))
}

/// Returns who sent a request.
fn caller_of<T>(request: &Request<T>) -> Arc<Caller> {
    let known = request.extensions().get::<Arc<Caller>>();
    // Nobody comes so far without one. If somebody does, there is nothing for them.
    let nobody = || {
        Arc::new(Caller {
            name: String::new(),
            tenant: Tenant::nobody(),
            rights: BTreeSet::new(),
        })
    };
    known.map_or_else(nobody, Arc::clone)
}

/// Returns whose request it is.
fn tenant_of<T>(request: &Request<T>) -> Tenant {
    caller_of(request).tenant.clone()
}

#[tonic::async_trait]
impl ImageBuilder for Calls {
    async fn resolve_base_image(
        &self,
        request: Request<wire::ResolveBaseImageRequest>,
    ) -> Result<Response<wire::ResolveBaseImageResponse>, Status> {
        let caller = caller_of(&request);
        let request = request.into_inner();
        let decoded = convert::reference(&request.r#ref)
            .and_then(|r| Ok((r, self.rights(&caller, request.auth)?)));
        let (reference, rights) = decoded.map_err(|failure| failure.status())?;
        let tenant = &caller.tenant;
        let resolved = self.service().resolve_base(tenant, &reference, &rights);
        let resolved = resolved.await;
        let resolved = resolved.map_err(|failure| failure.status())?;
        Ok(Response::new(wire::ResolveBaseImageResponse {
            r#ref: resolved.to_string(),
        }))
    }

    async fn resolve_workspace_image(
        &self,
        request: Request<wire::ResolveWorkspaceImageRequest>,
    ) -> Result<Response<wire::ResolveWorkspaceImageResponse>, Status> {
        let caller = caller_of(&request);
        let request = request.into_inner();
        let service = self.service();
        let decoded = convert::source(request.source, &service.settings.fetch)
            .and_then(|source| Ok((source, self.rights(&caller, request.auth)?)));
        let (source, rights) = decoded.map_err(|failure| failure.status())?;
        let resolved = service.resolve_workspace(&caller.tenant, &source, &rights);
        let resolved = resolved.await;
        let (names, standing) = resolved.map_err(|failure| failure.status())?;
        let status = match standing {
            Standing::Exists => wire::BuildStatus::DoneSuccess,
            Standing::Building => wire::BuildStatus::Running,
            Standing::Unknown => wire::BuildStatus::Unknown,
        };
        Ok(Response::new(wire::ResolveWorkspaceImageResponse {
            r#ref: names.workspace,
            status: status.into(),
            base_ref: names.base,
        }))
    }

    type BuildStream = BoxStream<'static, Result<wire::BuildResponse, Status>>;

    async fn build(
        &self,
        request: Request<wire::BuildRequest>,
    ) -> Result<Response<Self::BuildStream>, Status> {
        let caller = caller_of(&request);
        let request = request.into_inner();
        let asked = Asked::Published(Box::new(request.clone()));
        let call = convert::build_call(request, &self.service().settings.fetch)
            .map_err(|failure| failure.status())?;
        let admitted = self.admit(&caller, call, asked).await?;
        Ok(Response::new(match admitted {
            Admitted::Exists(names) => stream::exists(names),
            Admitted::Building(build) => {
                let log_info = self.log_info(&build);
                stream::follow(build, log_info, self.inner.shutdown.clone())
            }
        }))
    }

    type LogsStream = BoxStream<'static, Result<wire::LogsResponse, Status>>;

    async fn logs(
        &self,
        request: Request<wire::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let tenant = tenant_of(&request);
        let request = request.into_inner();
        let build = self.find(&tenant, &request.build_id, &request.build_ref);
        let build = build.map_err(|failure| failure.status())?;
        let names = if request.censored {
            LogNames::Censored
        } else {
            LogNames::Shown
        };
        let wanted = Wanted {
            names,
            ..Wanted::default()
        };
        let text = log::read(build, wanted, self.inner.shutdown.clone());
        Ok(Response::new(stream::log(text)))
    }

    async fn list_builds(
        &self,
        request: Request<wire::ListBuildsRequest>,
    ) -> Result<Response<wire::ListBuildsResponse>, Status> {
        let running = self.service().builds.running(&tenant_of(&request));
        let builds = running
            .iter()
            .map(|build| convert::info(build, &build.progress(), self.log_info(build)))
            .collect();
        Ok(Response::new(wire::ListBuildsResponse { builds }))
    }
}

/// Returns routes with nothing in them yet.
pub fn routes() -> RoutesBuilder {
    Routes::builder()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_needs_a_caller_and_what_changes_something_the_right_to_build() {
        let with = |right| Caller {
            rights: BTreeSet::from([right]),
            ..Caller::trusted()
        };
        let (reads, builds, pulls) = (with(Right::Read), with(Right::Build), with(Right::Pull));
        for (path, needs_build) in [
            ("/builder.ImageBuilder/Build", true),
            ("/builder.ImageBuilder/Logs", false),
            ("/builder.ImageBuilder/ListBuilds", false),
            ("/builder.ImageBuilder/ResolveBaseImage", false),
            ("/builder.ImageBuilder/ResolveWorkspaceImage", false),
            ("/builder.SubassemblyService/CreateSubassembly", true),
            ("/builder.SubassemblyService/GetSubassembly", false),
            ("/kiln.v1.Kiln/GetVersion", false),
            ("/kiln.v1.Kiln/GetBuild", false),
            ("/kiln.v1.Kiln/WatchBuild", false),
            ("/kiln.v1.Kiln/DownloadOutput", false),
            ("/kiln.v1.Kiln/CancelBuild", true),
            ("/kiln.v1.Kiln/StartBuild", true),
            ("/kiln.v1.Kiln/CreateContext", true),
            ("/kiln.v1.Kiln/ForwardAgent", true),
            ("/kiln.v1.Kiln/Whatever", true),
            ("/", true),
            ("", true),
        ] {
            let blame = |caller| check(path, caller).err().map(|failure| failure.blame());
            assert_eq!(blame(None), Some(Blame::Credentials), "{path}");
            assert_eq!(blame(Some(&builds)), None, "{path}");
            assert_eq!(blame(Some(&pulls)), Some(Blame::Forbidden), "{path}");
            let refused = needs_build.then_some(Blame::Forbidden);
            assert_eq!(blame(Some(&reads)), refused, "{path}");
        }
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        assert!(check(reflection, Some(&pulls)).is_ok() && check(reflection, None).is_err());
        assert!(check("/grpc.health.v1.Health/Check", None).is_ok());
    }
}
