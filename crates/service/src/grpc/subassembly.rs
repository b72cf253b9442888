//! Subassemblies: known to reflection, not made yet.

use api::builder as wire;
use api::builder::subassembly_service_server::SubassemblyService;
use tonic::{Request, Response, Status};

use crate::failure::{Blame, Failure};

/// Answers that there are none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unsupported;

fn unsupported() -> Status {
    let text = "subassemblies are not supported by this version of kiln";
    Failure::new(Blame::Unsupported, text).status()
}

#[tonic::async_trait]
impl SubassemblyService for Unsupported {
    async fn create_subassembly(
        &self,
        _request: Request<wire::CreateSubassemblyRequest>,
    ) -> Result<Response<wire::CreateSubassemblyResponse>, Status> {
        Err(unsupported())
    }

    async fn get_subassembly(
        &self,
        _request: Request<wire::GetSubassemblyRequest>,
    ) -> Result<Response<wire::GetSubassemblyResponse>, Status> {
        Err(unsupported())
    }
}
