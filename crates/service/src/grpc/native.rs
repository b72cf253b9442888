//! What the published API has no call for.

use api::kiln::v1 as wire;
use api::kiln::v1::kiln_server::Kiln;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Calls, convert, tenant_of, upload};
use crate::lifecycle::not_found;

#[tonic::async_trait]
impl Kiln for Calls {
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
        let build = id
            .parse()
            .ok()
            .and_then(|id| self.service().builds.find(&tenant, &id))
            .ok_or_else(|| not_found().status())?;
        Ok(Response::new(wire::GetBuildResponse {
            build: Some(convert::native(&build, &build.progress())),
        }))
    }

    async fn cancel_build(
        &self,
        request: Request<wire::CancelBuildRequest>,
    ) -> Result<Response<wire::CancelBuildResponse>, Status> {
        let tenant = tenant_of(&request);
        let id = request.into_inner().build_id;
        let builds = &self.service().builds;
        let build = id
            .parse()
            .ok()
            .and_then(|id| builds.find(&tenant, &id))
            .ok_or_else(|| not_found().status())?;
        let cancelled = builds.cancel(&build).await;
        cancelled.map_err(|failure| failure.status())?;
        Ok(Response::new(wire::CancelBuildResponse {
            build: Some(convert::native(&build, &build.progress())),
        }))
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
}
