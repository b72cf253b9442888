//! A registry on a port of the system's choosing, and a client that sends exactly the bytes it is told to.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use oci::Digest;
use registry::server::{ServerOptions, router};
use store::Store;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A client waits so long for bytes; no test comes near it unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) store: Store,
    pub(crate) address: SocketAddr,
    pub(crate) dir: TempDir,
    runtime: Option<Runtime>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(ServerOptions::default())
    }

    pub(crate) fn start_with(options: ServerOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), None).unwrap();
        let runtime = Runtime::new().unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let routes = router(store.clone(), options);
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Self {
            store,
            address,
            dir,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a request with a body of known length.
    pub(crate) fn send(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
    ) -> Answer {
        let length = body.as_ref().len().to_string();
        let mut all = vec![("content-length", length.as_str())];
        all.extend_from_slice(headers);
        let mut stream = self.connect();
        stream.write_all(head(line, &all).as_bytes()).unwrap();
        // The answer may come, and the connection go, before everything is sent.
        let _ = stream.write_all(body.as_ref());
        Answer::read(stream)
    }

    /// Sends a request whose body is streamed.
    pub(crate) fn stream(&self, line: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let headers = [("transfer-encoding", "chunked")];
        stream.write_all(head(line, &headers).as_bytes()).unwrap();
        for piece in body.chunks(10_000) {
            stream
                .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                .unwrap();
            stream.write_all(piece).unwrap();
            stream.write_all(b"\r\n").unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
        Answer::read(stream)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path}"), &[], "")
    }

    /// Pushes a blob at once and returns its digest.
    pub(crate) fn push(&self, repository: &str, content: &[u8]) -> Digest {
        let digest = Digest::sha256(content);
        let line = format!("POST /v2/{repository}/blobs/uploads/?digest={digest}");
        let answer = self.send(&line, &[], content);
        assert_eq!(answer.status, 201, "{answer:?}");
        digest
    }

    /// Begins an upload and returns where it goes on.
    pub(crate) fn begin(&self, repository: &str) -> String {
        let line = format!("POST /v2/{repository}/blobs/uploads/");
        let answer = self.send(&line, &[], "");
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.header("location").to_owned()
    }

    /// Pushes a manifest of one layer and returns its bytes.
    pub(crate) fn push_image(&self, repository: &str, key: &str, layer: &[u8]) -> Vec<u8> {
        let config = b"{}";
        self.push(repository, config);
        self.push(repository, layer);
        let manifest = manifest(config, layer);
        let line = format!("PUT /v2/{repository}/manifests/{key}");
        let answer = self.send(&line, &[OCI], &manifest);
        assert_eq!(answer.status, 201, "{answer:?}");
        manifest
    }

    /// Returns how many files are left below a folder of the store.
    pub(crate) fn count(&self, folder: &str) -> usize {
        let path = self.store.path().join(folder);
        std::fs::read_dir(path).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
    }
}

pub(crate) const OCI: (&str, &str) = ("content-type", oci::media_type::OCI_MANIFEST);

/// Returns the bytes of a manifest of one layer.
pub(crate) fn manifest(config: &[u8], layer: &[u8]) -> Vec<u8> {
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": oci::media_type::OCI_MANIFEST,
        "config": {
            "mediaType": oci::media_type::OCI_CONFIG,
            "digest": Digest::sha256(config),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": oci::media_type::OCI_LAYER,
            "digest": Digest::sha256(layer),
            "size": layer.len(),
        }],
    })
    .to_string()
    .into_bytes()
}

/// Returns the head of a request after which the connection closes.
pub(crate) fn head(line: &str, headers: &[(&str, &str)]) -> String {
    let mut text = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        write!(text, "{name}: {value}\r\n").unwrap();
    }
    text.push_str("\r\n");
    text
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads until the server closes the connection.
    #[track_caller]
    pub(crate) fn read(stream: TcpStream) -> Self {
        Self::read_if_any(stream).unwrap_or_else(|| panic!("no answer"))
    }

    /// Reads until the server closes the connection, which it may do without a word.
    pub(crate) fn read_if_any(mut stream: TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        // A connection that is reset ends the answer as well as one that is closed.
        let _ = stream.read_to_end(&mut bytes);
        let _ = stream.shutdown(Shutdown::Both);
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head[9..12].parse().unwrap();
        let body = bytes[end + 4..].to_vec();
        Some(Self { status, head, body })
    }

    pub(crate) fn find(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        self.find(name)
            .unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.json()["errors"][0]["code"], code, "{self:?}");
    }
}
