//! Talking to a kiln server, as whom the user says that we are.
//!
//! A token is read from a file, never taken from the command line, and sent to this machine or over TLS only. It is in no error and no
//! `Debug`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::builder::image_builder_client::ImageBuilderClient;
use api::builder::subassembly_service_client::SubassemblyServiceClient;
use api::builder::{
    BuildRegistryAuth, BuildRegistryAuthTotal, ResolveBaseImageRequest, build_registry_auth,
};
use api::kiln::v1::kiln_client::KilnClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use crate::args::Server;
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

/// Largest token file that is read.
const TOKEN_MAX_BYTES: u64 = 64 << 10;

/// A server, and who we are there.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// `host:port` for plain text, or a URL.
    pub(crate) address: String,
    token_file: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
}

impl Server {
    /// Returns the server that is meant, if one is.
    pub(crate) fn target(&self) -> Option<Target> {
        let address = self.address.clone()?;
        Some(Target {
            address,
            token_file: self.token_file.clone(),
            certificate: self.client_cert.clone().zip(self.client_key.clone()),
        })
    }
}

#[cfg(test)]
impl Target {
    /// Returns a server that asks nobody who they are.
    pub(crate) fn open(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            token_file: None,
            certificate: None,
        }
    }
}

/// A connection that says with each call who we are.
pub(crate) type Wire = InterceptedService<Channel, Bearer>;

/// What says who we are, if it is a token.
#[derive(Clone, Default)]
pub(crate) struct Bearer {
    header: Option<MetadataValue<Ascii>>,
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(…)")
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request
                .metadata_mut()
                .insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// A server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// The published API.
    pub(crate) builder: ImageBuilderClient<Wire>,
    /// Its second service.
    pub(crate) subassemblies: SubassemblyServiceClient<Wire>,
    /// What it has no call for.
    pub(crate) kiln: KilnClient<Wire>,
}

/// Connects to a server.
pub(crate) async fn connect(target: &Target) -> Outcome<Client> {
    let address = &target.address;
    let url = if address.contains("://") {
        address.clone()
    } else {
        format!("http://{address}")
    };
    let bearer = match &target.token_file {
        Some(path) => bearer(path, &url)?,
        None => Bearer::default(),
    };
    let mut endpoint = Endpoint::from_shared(url.clone())
        .or_exit(Exit::Usage)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_while_idle(true);
    if url.starts_with("https://") {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(trusted()?));
        if let Some((certificate, key)) = &target.certificate {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        endpoint = endpoint.tls_config(tls).or_exit(Exit::Usage)?;
    } else if target.certificate.is_some() {
        let text = format!("a certificate is shown over TLS only: write https://{address}");
        return Err(Failure::text(Exit::Usage, text));
    }
    let failed = |error| {
        let error =
            anyhow::Error::new(error).context(format!("connect to the server at {address}"));
        Failure::new(Exit::Unreachable, error)
    };
    let channel = endpoint.connect().await.map_err(failed)?;
    let (one, two, three) = (bearer.clone(), bearer.clone(), bearer);
    Ok(Client {
        builder: ImageBuilderClient::with_interceptor(channel.clone(), one),
        subassemblies: SubassemblyServiceClient::with_interceptor(channel.clone(), two),
        kiln: KilnClient::with_interceptor(channel, three),
    })
}

/// Reads a token that is to be sent to `url`: the first line that is one, as the server's files of tokens have them.
fn bearer(path: &Path, url: &str) -> Outcome<Bearer> {
    if !url.starts_with("https://") && !is_this_machine(url) {
        let text = format!("a token is not sent in plain text over a network, to {url}");
        return Err(Failure::text(Exit::Usage, text).hint("write https://"));
    }
    let text = read(path)?;
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let token = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    let token = token.and_then(|token| std::str::from_utf8(token).ok());
    let header = token.and_then(|token| format!("Bearer {token}").parse().ok());
    let Some(mut header): Option<MetadataValue<Ascii>> = header else {
        let text = format!("{} holds no token", path.display());
        return Err(Failure::text(Exit::Usage, text));
    };
    header.set_sensitive(true);
    Ok(Bearer {
        header: Some(header),
    })
}

fn is_this_machine(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else {
        return false;
    };
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    use std::io::Read as _;

    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(TOKEN_MAX_BYTES).read_to_end(&mut bytes));
    let read = read.map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("read {}", path.display()));
        Failure::new(Exit::Usage, error)
    });
    read.map(|_| bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_this_machine_or_over_tls_and_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "# mine\n\n 0123456789abcdef0123456789abcdef \n").unwrap();
        for url in [
            "http://127.0.0.1:1",
            "http://localhost:1",
            "http://[::1]:1",
            "https://kiln.example.com",
        ] {
            let bearer = bearer(&path, url).ok().unwrap();
            let header = bearer.header.clone().unwrap();
            assert_eq!(header, "Bearer 0123456789abcdef0123456789abcdef");
            assert!(!format!("{bearer:?} {header:?}").contains("0123"));
        }
        for url in [
            "http://kiln.example.com",
            "http://10.0.0.1:80",
            "http://localhost.example.com",
        ] {
            let refused = bearer(&path, url).unwrap_err().report().unwrap();
            assert!(
                refused.contains("plain text") && !refused.contains("0123"),
                "{refused}"
            );
        }
        std::fs::write(&path, "# none\n").unwrap();
        assert!(bearer(&path, "http://localhost").is_err());
    }
}
