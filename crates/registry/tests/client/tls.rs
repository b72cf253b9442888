//! Certificates and the way from https to http.

use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, CertifiedIssuer, Issuer, KeyPair};
use registry::client::{Client, ErrorKind};
use registry::hosts::{HostConfig, Hosts, KeyPair as HostKeyPair, Pem};
use registry::keychain::Keychain;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::support::evil::layer;
use super::support::options;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Returns certificate and key, as PEM, for `name`.
fn issue(ca: &Issuer<'_, KeyPair>, name: &str, is_expired: Expired) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    if let Expired::Yes = is_expired {
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    }
    let certificate = params.signed_by(&key, ca).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[derive(Clone, Copy)]
enum Expired {
    Yes,
    No,
}

/// A server that gives one answer, over TLS.
struct Server {
    host: String,
    n_connections: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(
        (certificate, key): (String, String),
        client_ca: Option<&str>,
        answer: String,
    ) -> Self {
        let certificates = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = rustls::RootCertStore::empty();
                roots
                    .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
                    .unwrap();
                let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    provider,
                );
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = builder.with_single_cert(certificates, key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let n_connections = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&n_connections);
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                *counted.lock().unwrap() += 1;
                let Ok(mut stream) = acceptor.accept(socket).await else {
                    continue;
                };
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        Self {
            host: format!("localhost:{port}"),
            n_connections,
            task,
        }
    }

    async fn read(&self, config: HostConfig) -> Result<(), registry::client::Error> {
        let hosts = Hosts::new([(self.host.clone(), config)]).unwrap();
        let client = Client::new(hosts, Keychain::empty(), options()).unwrap();
        let repository = format!("{}/a/b", self.host).parse().unwrap();
        let read = client.blob_bytes(&repository, &layer(b"bytes"), 100).await;
        read.map(drop)
    }
}

fn bytes() -> String {
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nbytes".to_owned()
}

fn trusting(ca: &Ca) -> HostConfig {
    HostConfig {
        ca: vec![Pem::Text(ca.pem())],
        ..HostConfig::default()
    }
}

#[tokio::test]
async fn only_certificates_of_trusted_authorities_are_believed() {
    let ca = authority();
    let server = Server::start(issue(&ca, "localhost", Expired::No), None, bytes()).await;
    server.read(trusting(&ca)).await.unwrap();
    let blind = HostConfig {
        insecure: Some(true),
        ..HostConfig::default()
    };
    server.read(blind).await.unwrap();
    let n_before = *server.n_connections.lock().unwrap();
    let strict = HostConfig {
        http: Some(false),
        ..HostConfig::default()
    };
    let error = server.read(strict).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let other = server.read(trusting(&authority())).await;
    assert!(other.is_err());
    let n_tries = *server.n_connections.lock().unwrap() - n_before;
    assert_eq!(
        n_tries, 2,
        "a certificate does not get better by being asked for again"
    );
}

#[tokio::test]
async fn expired_certificates_and_those_of_others_are_refused() {
    let ca = authority();
    for certificate in [
        issue(&ca, "localhost", Expired::Yes),
        issue(&ca, "elsewhere.example", Expired::No),
    ] {
        let server = Server::start(certificate, None, bytes()).await;
        assert!(server.read(trusting(&ca)).await.is_err());
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_when_one_is_configured() {
    let ca = authority();
    let server = issue(&ca, "localhost", Expired::No);
    let server = Server::start(server, Some(&ca.pem()), bytes()).await;
    assert!(server.read(trusting(&ca)).await.is_err());
    let (certificate, key) = issue(&ca, "client", Expired::No);
    let directory = tempfile::tempdir().unwrap();
    let (cert_path, key_path) = (
        directory.path().join("c.pem"),
        directory.path().join("k.pem"),
    );
    std::fs::write(&cert_path, certificate).unwrap();
    std::fs::write(&key_path, key).unwrap();
    let config = HostConfig {
        keypair: vec![HostKeyPair {
            key: Pem::File(key_path),
            cert: Pem::File(cert_path),
        }],
        ..trusting(&ca)
    };
    server.read(config).await.unwrap();
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_refused() {
    let ca = authority();
    let answer = "HTTP/1.1 307 X\r\nLocation: http://localhost:1/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let certificate = issue(&ca, "localhost", Expired::No);
    let server = Server::start(certificate, None, answer.to_owned()).await;
    let error = server.read(trusting(&ca)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("https to http"), "{error}");
}

#[test]
fn a_certificate_that_is_none_is_told_at_once() {
    let config = HostConfig {
        ca: vec![Pem::File("/nowhere/ca.pem".into())],
        ..HostConfig::default()
    };
    let hosts = Hosts::new([("a.example".to_owned(), config)]).unwrap();
    let error = Client::new(hosts, Keychain::empty(), options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains("/nowhere/ca.pem"), "{source}");
}
