//! What the published API has no call for.

use std::sync::Arc;

use api::kiln::v1 as wire;
use api::kiln::v1::kiln_server::Kiln;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::retry::{self, Asked};
use super::{Calls, agent, caller_of, convert, history, output, tenant_of, upload, watch};
use crate::access::{Caller, Right, Tenant};
use crate::builds::Joined;
use crate::builds::build::Build;
use crate::failure::{Blame, Failure};
use crate::lifecycle::{Admitted, not_found};
use crate::native::NativeCall;

/// The label of a build that names the one whose request it is.
const RETRY_OF: &str = "kiln.retry-of";

impl Calls {
    pub(super) fn native_build(&self, tenant: &Tenant, id: &str) -> Result<Arc<Build>, Status> {
        let builds = &self.service().builds;
        let found = id.parse().ok().and_then(|id| builds.find(tenant, &id));
        found.ok_or_else(|| not_found().status())
    }

    /// Starts a build, and keeps what was asked.
    async fn start_native(
        &self,
        caller: &Caller,
        mut call: NativeCall,
        asked: Asked,
    ) -> Result<(Arc<Build>, Joined), Status> {
        call.rights = self.bounded(caller, call.rights);
        let tenant = caller.tenant.clone();
        let service = Arc::clone(self.service());
        let (contexts, tasks) = (self.inner.contexts.clone(), self.inner.tasks.clone());
        let started = async move {
            let mut leases = Vec::new();
            // What was asked before has its files, or has ended: they may be gone by now.
            let was_asked = service.was_asked(&tenant, call.request_id.as_deref());
            for context_id in call.uploads.iter().filter(|_| !was_asked) {
                leases.push(contexts.lease(&tenant, context_id).await?);
            }
            let (build, joined) = service.start(&tenant, call).await?;
            if joined == Joined::Started {
                retry::keep(service.builds.requests(), &build.record.id, asked).await;
            }
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
        self.to_its_end(started).await
    }

    /// Returns what was asked of a build, completed with what has come again.
    async fn asked_again(
        &self,
        build: &Build,
        given: wire::RetryBuildRequest,
    ) -> Result<Asked, Failure> {
        if !build.has_ended() {
            return Err(Failure::new(Blame::State, "the build has not ended"));
        }
        let requests = self.service().builds.requests();
        let asked = retry::asked(requests, &build.record.id).await?;
        let asked = asked.ok_or_else(|| {
            let text = "the request of this build is not kept: it was too large, or is no build of a request";
            Failure::new(Blame::State, text)
        })?;
        asked.completed(given)
    }

    async fn make_again(
        &self,
        caller: &Caller,
        before: &Build,
        asked: Asked,
    ) -> Result<(Arc<Build>, Joined), Status> {
        let fetch = &self.service().settings.fetch;
        match asked.clone() {
            Asked::Native(request) => {
                let call = convert::native_call(*request, fetch);
                let mut call = call.map_err(|failure| failure.status())?;
                let id = before.record.id.to_string();
                call.labels.insert(RETRY_OF.to_owned(), id);
                self.start_native(caller, call, asked).await
            }
            Asked::Published(request) => {
                let call = convert::build_call(*request, fetch);
                let call = call.map_err(|failure| failure.status())?;
                let now_ms = (self.service().settings.environment.now_ms)();
                match self.admit(caller, call, asked).await? {
                    Admitted::Building(build) if build.record.started_at_ms >= now_ms => {
                        Ok((build, Joined::Started))
                    }
                    Admitted::Building(build) => Ok((build, Joined::Joined)),
                    Admitted::Exists(names) => {
                        let text = format!("{}: the image is there by now", names.workspace);
                        Err(Failure::new(Blame::State, text).status())
                    }
                }
            }
        }
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
        let request = request.into_inner();
        let asked = Asked::Native(Box::new(request.clone()));
        let call = convert::native_call(request, &self.service().settings.fetch);
        let call = call.map_err(|failure| failure.status())?;
        let (build, joined) = self.start_native(&caller, call, asked).await?;
        Ok(Response::new(wire::StartBuildResponse {
            build: Some(convert::native(&build, &build.progress())),
            already_started: joined == Joined::Joined,
        }))
    }

    async fn retry_build(
        &self,
        request: Request<wire::RetryBuildRequest>,
    ) -> Result<Response<wire::RetryBuildResponse>, Status> {
        let caller = caller_of(&request);
        let request = request.into_inner();
        let build = self.native_build(&caller.tenant, &request.build_id)?;
        let asked = self.asked_again(&build, request).await;
        let asked = asked.map_err(|failure| failure.status())?;
        let (build, joined) = self.make_again(&caller, &build, asked).await?;
        Ok(Response::new(wire::RetryBuildResponse {
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
        let told = history::build(self.service().builds.requests(), &build).await;
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
        let caller = caller_of(&request);
        let wire::DownloadOutputRequest { build_id, output } = request.into_inner();
        let build = build_id
            .parse()
            .ok()
            .and_then(|id| self.service().builds.find(&caller.tenant, &id))
            .ok_or_else(|| not_found().status())?;
        // Who may only look takes nothing away from who builds.
        let then = if caller.may(Right::Build) {
            output::Fetched::Removed
        } else {
            output::Fetched::Kept
        };
        let sent = output::send(&build, (output, then), self.inner.shutdown.clone()).await;
        Ok(Response::new(sent.map_err(|failure| failure.status())?))
    }
}
