//! What the published API has no call for.

use std::sync::Arc;

use api::kiln::v1 as wire;
use api::kiln::v1::kiln_server::Kiln;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Calls, agent, caller_of, convert, history, output, tenant_of, upload, watch};
use crate::access::Tenant;
use crate::builds::Joined;
use crate::builds::build::Build;
use crate::lifecycle::not_found;

impl Calls {
    pub(super) fn native_build(&self, tenant: &Tenant, id: &str) -> Result<Arc<Build>, Status> {
        let builds = &self.service().builds;
        let found = id.parse().ok().and_then(|id| builds.find(tenant, &id));
        found.ok_or_else(|| not_found().status())
    }
}

#[tonic::async_trait]
impl Kiln for Calls {
    type WatchBuildStream = BoxStream<'static, Result<wire::WatchBuildResponse, Status>>;

    async fn start_build(
        &self,
        request: Request<wire::StartBuildRequest>,
    ) -> Result<Response<wire::StartBuildResponse>, Status> {
        let caller = caller_of(&request);
        let tenant = caller.tenant.clone();
        let service = Arc::clone(self.service());
        let call = convert::native_call(request.into_inner(), &service.settings.fetch);
        let mut call = call.map_err(|failure| failure.status())?;
        call.rights = self.bounded(&caller, call.rights);
        let (contexts, tasks) = (self.inner.contexts.clone(), self.inner.tasks.clone());
        let started = async move {
            let mut leases = Vec::new();
            // What was asked before has its files, or has ended: they may be gone by now.
            let was_asked = service.was_asked(&tenant, call.request_id.as_deref());
            for context_id in call.uploads.iter().filter(|_| !was_asked) {
                leases.push(contexts.lease(&tenant, context_id).await?);
            }
            let (build, joined) = service.start(&tenant, call).await?;
            if !leases.is_empty() && joined == Joined::Started {
                // What a build is made from is kept until it has ended, however long it waits for its turn.
                let build = Arc::clone(&build);
                let stop = service.builds.stopping();
                tasks.spawn(async move {
                    stop.run_until_cancelled(build.ended()).await;
                    drop(leases);
                });
            }
            Ok((build, joined))
        };
        let (build, joined) = self.to_its_end(started).await?;
        Ok(Response::new(wire::StartBuildResponse {
            build: Some(convert::native(&build, &build.progress())),
            already_started: joined == Joined::Joined,
        }))
    }

    async fn watch_build(
        &self,
        request: Request<wire::WatchBuildRequest>,
    ) -> Result<Response<Self::WatchBuildStream>, Status> {
        let tenant = tenant_of(&request);
        let wire::WatchBuildRequest { build_id, skip } = request.into_inner();
        let build = self.native_build(&tenant, &build_id)?;
        let records = watch::records(build, skip, self.inner.shutdown.clone());
        Ok(Response::new(records))
    }

    async fn get_version(
        &self,
        _request: Request<wire::GetVersionRequest>,
    ) -> Result<Response<wire::GetVersionResponse>, Status> {
        Ok(Response::new(wire::GetVersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn get_build(
        &self,
        request: Request<wire::GetBuildRequest>,
    ) -> Result<Response<wire::GetBuildResponse>, Status> {
        let tenant = tenant_of(&request);
        let id = request.into_inner().build_id;
        let build = self.native_build(&tenant, &id)?;
        let told = history::build(&build).await;
        Ok(Response::new(told.map_err(|failure| failure.status())?))
    }

    async fn list_builds(
        &self,
        request: Request<wire::ListBuildsRequest>,
    ) -> Result<Response<wire::ListBuildsResponse>, Status> {
        let tenant = tenant_of(&request);
        let call = convert::list_call(request.into_inner());
        let call = call.map_err(|failure| failure.status())?;
        let page = history::page(&self.service().builds, &tenant, call);
        Ok(Response::new(page))
    }

    type GetLogStream = BoxStream<'static, Result<wire::GetLogResponse, Status>>;

    async fn get_log(
        &self,
        request: Request<wire::GetLogRequest>,
    ) -> Result<Response<Self::GetLogStream>, Status> {
        let tenant = tenant_of(&request);
        let call = convert::log_call(request.into_inner());
        let (build_id, wanted) = call.map_err(|failure| failure.status())?;
        let build = self.native_build(&tenant, &build_id)?;
        let text = history::log(build, wanted, self.inner.shutdown.clone());
        Ok(Response::new(text))
    }

    async fn list_artifacts(
        &self,
        request: Request<wire::ListArtifactsRequest>,
    ) -> Result<Response<wire::ListArtifactsResponse>, Status> {
        let tenant = tenant_of(&request);
        let build = self.native_build(&tenant, &request.into_inner().build_id)?;
        let made = history::artifacts(&build).await;
        let artifacts = made.map_err(|failure| failure.status())?;
        Ok(Response::new(wire::ListArtifactsResponse { artifacts }))
    }

    async fn cancel_build(
        &self,
        request: Request<wire::CancelBuildRequest>,
    ) -> Result<Response<wire::CancelBuildResponse>, Status> {
        let tenant = tenant_of(&request);
        let id = request.into_inner().build_id;
        let build = self.native_build(&tenant, &id)?;
        let cancelled = self.service().builds.cancel(&build).await;
        cancelled.map_err(|failure| failure.status())?;
        Ok(Response::new(wire::CancelBuildResponse {
            build: Some(convert::native(&build, &build.progress())),
        }))
    }

    type ForwardAgentStream = BoxStream<'static, Result<wire::ForwardAgentResponse, Status>>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<wire::ForwardAgentRequest>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let tenant = tenant_of(&request);
        let questions = agent::forward(self, tenant, request.into_inner());
        Ok(Response::new(questions))
    }

    type CreateContextStream = BoxStream<'static, Result<wire::CreateContextResponse, Status>>;

    async fn create_context(
        &self,
        request: Request<Streaming<wire::CreateContextRequest>>,
    ) -> Result<Response<Self::CreateContextStream>, Status> {
        let tenant = tenant_of(&request);
        let answers = upload::receive(self, tenant, request.into_inner());
        Ok(Response::new(answers))
    }

    type DownloadOutputStream = BoxStream<'static, Result<wire::DownloadOutputResponse, Status>>;

    async fn download_output(
        &self,
        request: Request<wire::DownloadOutputRequest>,
    ) -> Result<Response<Self::DownloadOutputStream>, Status> {
        let tenant = tenant_of(&request);
        let wire::DownloadOutputRequest { build_id, output } = request.into_inner();
        let build = build_id
            .parse()
            .ok()
            .and_then(|id| self.service().builds.find(&tenant, &id))
            .ok_or_else(|| not_found().status())?;
        let sent = output::send(&build, output, self.inner.shutdown.clone()).await;
        Ok(Response::new(sent.map_err(|failure| failure.status())?))
    }
}
