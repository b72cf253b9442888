//! W9: a workspace image of an image that is built already, which is another name for the same blobs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use api::builder::build_source::From;
use api::builder::image_builder_client::ImageBuilderClient;
use api::builder::{
    BuildRegistryAuth, BuildRegistryAuthTotal, BuildRequest, BuildSource, BuildSourceReference,
    BuildStatus, build_registry_auth,
};
use testkit::proxy::Proxy;
use tonic::transport::Endpoint;

use crate::service;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Named {
    /// From the request to its success.
    pub(crate) took: Duration,
    /// What the registry was asked in all.
    pub(crate) n_requests: usize,
    /// How many of these sent a blob, or a part of one.
    pub(crate) n_sent: usize,
    /// How many fetched one. The configuration is: without it nobody knows what the layers of the manifest should hold.
    pub(crate) n_read: usize,
}

/// Has the service of `kiln` make a workspace image of `name`, which is in `registry`, in the same registry.
pub(crate) fn measure(
    kiln: &Path,
    scratch: &Path,
    (registry, name): (&str, &str),
) -> Result<Named> {
    let proxy = Proxy::in_front_of(registry);
    let config = format!(
        "base_image_repository = \"{0}/made/bases\"\nworkspace_image_repository = \"{0}/made/workspaces\"\n",
        proxy.host()
    );
    let (_server, address) = service::start(kiln, scratch, &config)?;
    let reference = BuildSourceReference {
        r#ref: format!("{}/{name}", proxy.host()),
    };
    let total = BuildRegistryAuthTotal { allow_all: true };
    let request = BuildRequest {
        source: Some(BuildSource {
            from: Some(From::Ref(reference)),
        }),
        auth: Some(BuildRegistryAuth {
            mode: Some(build_registry_auth::Mode::Total(total)),
            ..BuildRegistryAuth::default()
        }),
        ..BuildRequest::default()
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let took = runtime.block_on(build(&address, request))?;
    let requests = proxy.requests();
    let sent = requests.iter().filter(|request| {
        request.path.contains("/blobs/uploads/") && matches!(&*request.method, "PATCH" | "PUT")
    });
    let read = requests
        .iter()
        .filter(|request| request.path.contains("/blobs/") && request.method == "GET");
    Ok(Named {
        took,
        n_requests: requests.len(),
        n_sent: sent.count(),
        n_read: read.count(),
    })
}

/// Asks the service at `address` for a build; returns how long it took until its success.
pub(crate) async fn build(address: &str, request: BuildRequest) -> Result<Duration> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let mut client = ImageBuilderClient::new(endpoint.connect().await?);
    let began = Instant::now();
    let mut stream = client.build(request).await?.into_inner();
    let mut last = None;
    while let Some(response) = stream.message().await? {
        last = Some(response);
    }
    let last = last.context("the service says nothing")?;
    ensure!(
        last.status() == BuildStatus::DoneSuccess,
        "the build failed: {}",
        last.message
    );
    Ok(began.elapsed())
}
