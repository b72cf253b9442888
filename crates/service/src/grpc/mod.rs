//! The calls: decode, ask [`crate::lifecycle`], encode. One short function each.
//!
//! Only this module and what is below it name the wire's types. A stream that a client stops reading is dropped with its
//! connection; the build that it showed goes on, and is not known to this module any more.

mod agent;
mod convert;
mod history;
mod native;
mod output;
mod stream;
mod subassembly;
pub mod told;
mod upload;
mod watch;

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

use crate::access::Tenant;
use crate::builds::build::Build;
use crate::builds::log::{self, Names as LogNames, Wanted};
use crate::contexts::Contexts;
use crate::failure::{Blame, Failure};
use crate::lifecycle::{Admitted, Service, Standing, not_found};
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

/// Returns whose request it is. There is one tenant until tenants are configured: the trusted caller.
fn tenant_of<T>(_request: &Request<T>) -> Tenant {
    Tenant::default()
}

#[tonic::async_trait]
impl ImageBuilder for Calls {
    async fn resolve_base_image(
        &self,
        request: Request<wire::ResolveBaseImageRequest>,
    ) -> Result<Response<wire::ResolveBaseImageResponse>, Status> {
        let request = request.into_inner();
        let decoded = convert::reference(&request.r#ref)
            .and_then(|r| Ok((r, convert::rights(request.auth)?)));
        let (reference, rights) = decoded.map_err(|failure| failure.status())?;
        let resolved = self.service().resolve_base(&reference, &rights).await;
        let resolved = resolved.map_err(|failure| failure.status())?;
        Ok(Response::new(wire::ResolveBaseImageResponse {
            r#ref: resolved.to_string(),
        }))
    }

    async fn resolve_workspace_image(
        &self,
        request: Request<wire::ResolveWorkspaceImageRequest>,
    ) -> Result<Response<wire::ResolveWorkspaceImageResponse>, Status> {
        let tenant = tenant_of(&request);
        let request = request.into_inner();
        let service = self.service();
        let decoded = convert::source(request.source, &service.settings.fetch)
            .and_then(|source| Ok((source, convert::rights(request.auth)?)));
        let (source, rights) = decoded.map_err(|failure| failure.status())?;
        let resolved = service.resolve_workspace(&tenant, &source, &rights).await;
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
        let tenant = tenant_of(&request);
        let call = convert::build_call(request.into_inner(), &self.service().settings.fetch)
            .map_err(|failure| failure.status())?;
        let service = Arc::clone(self.service());
        let admitted = self
            .to_its_end(async move { service.build(&tenant, call).await })
            .await?;
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
