//! TLS, and who is let in when clients need certificates.

use std::path::Path;

use api::builder::ListBuildsRequest;
use api::builder::image_builder_client::ImageBuilderClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use service::config::{Tls, TlsClients};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use crate::harness::*;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap());
        Self {
            issuer: issuer.unwrap(),
        }
    }

    fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// Returns a certificate for `localhost`, and its key.
    fn sign(&self) -> (String, String) {
        self.sign_for("localhost")
    }

    /// Returns a certificate for `name`, and its key.
    fn sign_for(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn configured(folder: &Path, server: &Authority, clients: Option<&Authority>) -> Tls {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (cert, key) = server.sign();
    Tls {
        cert: file("cert.pem", &cert),
        key: file("key.pem", &key),
        client_ca: clients.map(|clients| file("clients.pem", &clients.certificate())),
        clients: TlsClients::default(),
    }
}

async fn serve(world: &World, tls: Tls) -> Server {
    let config = service::config::Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        state: Some(world.state().to_owned()),
        tls: Some(tls),
        ..service::config::Config::default()
    };
    world.serve_config(config).await
}

/// Connects as a client that trusts `authority` and shows `identity`.
async fn connect(
    server: &Server,
    authority: &Authority,
    identity: Option<(String, String)>,
) -> Option<ImageBuilderClient<Channel>> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority.certificate()))
        .domain_name("localhost");
    if let Some((cert, key)) = identity {
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    let endpoint = Channel::from_shared(format!("https://{}", server.address)).unwrap();
    let channel = soon(endpoint.tls_config(tls).unwrap().connect()).await;
    channel.ok().map(ImageBuilderClient::new)
}

/// Tells whether a client is served that trusts `authority` and shows `identity`.
async fn is_served(
    server: &Server,
    authority: &Authority,
    identity: Option<(String, String)>,
) -> bool {
    match connect(server, authority, identity).await {
        Some(mut client) => soon(client.list_builds(ListBuildsRequest {})).await.is_ok(),
        None => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_configured_only_tls_is_spoken() {
    let (world, authority) = (World::new(), Authority::new());
    let server = serve(&world, configured(world.state(), &authority, None)).await;
    assert!(is_served(&server, &authority, None).await);
    assert!(!is_served(&server, &Authority::new(), None).await);
    let plain = Channel::from_shared(server.url()).unwrap();
    if let Ok(channel) = soon(plain.connect()).await {
        let mut client = ImageBuilderClient::new(channel);
        assert!(
            soon(client.list_builds(ListBuildsRequest {}))
                .await
                .is_err()
        );
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_client_authorities_configured_only_their_clients_are_let_in() {
    let (world, authority, clients) = (World::new(), Authority::new(), Authority::new());
    let tls = configured(world.state(), &authority, Some(&clients));
    let server = serve(&world, tls).await;
    assert!(is_served(&server, &authority, Some(clients.sign())).await);
    assert!(!is_served(&server, &authority, None).await);
    assert!(!is_served(&server, &authority, Some(Authority::new().sign())).await);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_is_named_at_start() {
    let (world, authority) = (World::new(), Authority::new());
    let mut tls = configured(world.state(), &authority, None);
    tls.key = world.state().join("nothing.pem");
    let error = serve(&world, tls).await.failed().await;
    assert!(
        service::failure::chain(&error).contains("nothing.pem"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_or_a_token_says_who_calls() {
    use crate::tenants::{A, B, by, callers};

    let (world, authority, clients) = (World::new(), Authority::new(), Authority::new());
    let named = "[[callers]]\nname = \"by-certificate\"\ntenant = \"a\"\nrights = [\"build\"]\ncertificates = [\"dns:ci.example.com\"]\n";
    let mut config = service::config::parse(&callers()).unwrap().config;
    config.callers.extend(toml_callers(named));
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.state = Some(world.state().to_owned());
    config.tls = Some(Tls {
        clients: TlsClients::MayHaveCertificate,
        ..configured(world.state(), &authority, Some(&clients))
    });
    let server = world.serve_config(config).await;
    let is_served = async |identity: Option<(String, String)>, token: Option<&str>| {
        let Some(mut client) = connect(&server, &authority, identity).await else {
            return false;
        };
        let request = match token {
            Some(token) => by(token, ListBuildsRequest {}),
            None => tonic::Request::new(ListBuildsRequest {}),
        };
        soon(client.list_builds(request)).await.is_ok()
    };
    let known = || Some(clients.sign_for("ci.example.com"));
    assert!(is_served(known(), None).await);
    assert!(is_served(None, Some(A)).await);
    assert!(!is_served(None, None).await);
    // Signed, and nobody's.
    assert!(!is_served(Some(clients.sign_for("other.example.com")), None).await);
    assert!(!is_served(Some(clients.sign_for("example.com")), None).await);
    assert!(is_served(Some(clients.sign_for("other.example.com")), Some(B)).await);
    // Of the right name, and signed by somebody else.
    assert!(!is_served(Some(Authority::new().sign_for("ci.example.com")), None).await);
    // A token that is wrong is not made good by a certificate.
    assert!(!is_served(known(), Some("0123456789abcdef0123456789")).await);
    server.stopped().await;
}

/// Returns the callers of a configuration that has no TLS of its own yet.
fn toml_callers(text: &str) -> Vec<service::config::Caller> {
    #[derive(serde::Deserialize)]
    struct Table {
        callers: Vec<service::config::Caller>,
    }
    toml::from_str::<Table>(text).unwrap().callers
}
