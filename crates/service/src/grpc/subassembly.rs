//! The calls about subassemblies.

use api::builder as wire;
use api::builder::subassembly_service_server::SubassemblyService;
use tonic::{Request, Response, Status};

use super::{Calls, caller_of, convert};
use crate::subassembly::Standing;

#[tonic::async_trait]
impl SubassemblyService for Calls {
    async fn create_subassembly(
        &self,
        request: Request<wire::CreateSubassemblyRequest>,
    ) -> Result<Response<wire::CreateSubassemblyResponse>, Status> {
        let caller = caller_of(&request);
        let image = convert::image_name("oci_reference", &request.into_inner().oci_reference)
            .map_err(|failure| failure.status())?;
        let all = self.inner.subassemblies.clone();
        // Goes on when the caller has gone: what was asked for is made.
        let standing = self
            .to_its_end(async move { all.create(&caller, &image).await })
            .await?;
        Ok(Response::new(wire::CreateSubassemblyResponse {
            status: Some(self.subassembly_status(standing)),
        }))
    }

    async fn get_subassembly(
        &self,
        request: Request<wire::GetSubassemblyRequest>,
    ) -> Result<Response<wire::GetSubassemblyResponse>, Status> {
        let caller = caller_of(&request);
        let image = convert::image_name("oci_reference", &request.into_inner().oci_reference)
            .map_err(|failure| failure.status())?;
        let standing = self.inner.subassemblies.get(&caller, &image).await;
        Ok(Response::new(wire::GetSubassemblyResponse {
            status: Some(self.subassembly_status(standing.map_err(|failure| failure.status())?)),
        }))
    }
}

impl Calls {
    fn subassembly_status(&self, standing: Standing) -> wire::SubassemblyStatus {
        let url = |digest: &oci::Digest| self.inner.downloads.url(&self.inner.log_base_url, digest);
        convert::subassembly_status(standing, url)
    }
}
