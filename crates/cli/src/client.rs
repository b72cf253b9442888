//! Talking to a kiln server.

use std::time::Duration;

use api::builder::image_builder_client::ImageBuilderClient;
use api::builder::subassembly_service_client::SubassemblyServiceClient;
use api::builder::{
    BuildRegistryAuth, BuildRegistryAuthTotal, ResolveBaseImageRequest, build_registry_auth,
};
use api::kiln::v1::kiln_client::KilnClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};

use crate::environment;
use crate::failure::{Exit, Failure, OrExit, Outcome};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent connection is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Where distributions keep the certificates that the machine trusts.
const CERTIFICATE_FILES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// The published API.
    pub(crate) builder: ImageBuilderClient<Channel>,
    /// Its second service.
    pub(crate) subassemblies: SubassemblyServiceClient<Channel>,
    /// What it has no call for.
    pub(crate) kiln: KilnClient<Channel>,
}

/// Connects to the server at `address`: `host:port` for plain text, or a URL.
pub(crate) async fn connect(address: &str) -> Outcome<Client> {
    let url = if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let mut endpoint = Endpoint::from_shared(url.clone())
        .or_exit(Exit::Usage)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_while_idle(true);
    if url.starts_with("https://") {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(trusted()?));
        endpoint = endpoint.tls_config(tls).or_exit(Exit::Usage)?;
    }
    let failed = |error| {
        let error =
            anyhow::Error::new(error).context(format!("connect to the server at {address}"));
        Failure::new(Exit::Unreachable, error)
    };
    let channel = endpoint.connect().await.map_err(failed)?;
    Ok(Client {
        builder: ImageBuilderClient::new(channel.clone()),
        subassemblies: SubassemblyServiceClient::new(channel.clone()),
        kiln: KilnClient::new(channel),
    })
}

fn trusted() -> Outcome<Vec<u8>> {
    let named = environment::variable("SSL_CERT_FILE");
    let mut files = named.iter().map(String::as_str).chain(CERTIFICATE_FILES);
    let found = files.find_map(|file| std::fs::read(file).ok());
    found.ok_or_else(|| {
        Failure::text(
            Exit::Machine,
            "this machine has no file of trusted certificates",
        )
        .hint("install ca-certificates, or set SSL_CERT_FILE")
    })
}

/// Returns what `reference` points to, as the server sees it.
pub(crate) async fn resolve(client: &mut Client, reference: &str) -> Outcome<String> {
    let total = BuildRegistryAuthTotal { allow_all: true };
    let request = ResolveBaseImageRequest {
        r#ref: reference.to_owned(),
        auth: Some(BuildRegistryAuth {
            mode: Some(build_registry_auth::Mode::Total(total)),
            ..BuildRegistryAuth::default()
        }),
        use_retry_client: true,
    };
    let answer = client.builder.resolve_base_image(request).await;
    Ok(answer.map_err(failure)?.into_inner().r#ref)
}

/// Turns what a server answered into how the program ends.
#[expect(clippy::needless_pass_by_value, reason = "meant for map_err")]
pub(crate) fn failure(status: Status) -> Failure {
    let exit = match status.code() {
        Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => Exit::Usage,
        Code::Internal | Code::DataLoss => Exit::Internal,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unavailable
        | Code::Unauthenticated => Exit::Unreachable,
    };
    Failure::text(exit, format!("the server answered: {}", status.message()))
}
