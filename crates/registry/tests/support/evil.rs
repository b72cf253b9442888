//! A registry that does what a test tells it to: any status, header or body, cut, reset, dripped or stalled.
//!
//! Speaks plain HTTP/1.1 over its own sockets, one request per connection, because an HTTP library would not let it break the
//! protocol. Everything that was asked is recorded.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oci::{Descriptor, Digest, Reference};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub(crate) fn is(&self, method: &str, path_end: &str) -> bool {
        self.method == method && self.path().ends_with(path_end)
    }

    /// Tells whether the body came without its length.
    pub(crate) fn is_chunked(&self) -> bool {
        self.headers.contains_key("transfer-encoding")
    }

    /// The offset of a `Range: bytes=n-`.
    pub(crate) fn range(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// How the body is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Manner {
    Whole,
    /// So many bytes, then the connection is closed.
    CutAfter(usize),
    /// So many bytes, then a reset.
    ResetAfter(usize),
    /// So many bytes, then nothing any more.
    StallAfter(usize),
    /// A chunked body that never ends.
    Endless,
    /// Not even a head.
    Silent,
    /// Headers without end.
    EndlessHead,
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) manner: Manner,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            manner: Manner::Whole,
        }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200).body(body)
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "reads better where it is called"
    )]
    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }
}

/// What is done with bodies whose length is not told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Chunked {
    /// Nobody may send one.
    Never,
    Whole,
    /// So many bytes are read, then it is answered.
    Until(usize),
}

type Handler = dyn Fn(&Asked, usize) -> Reply + Send + Sync;

/// A running registry; ends when dropped.
pub(crate) struct Evil {
    pub(crate) host: String,
    log: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Drop for Evil {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Evil {
    /// Starts a registry. `handler` is given the request and how many there were before it.
    pub(crate) async fn start(
        handler: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_on("127.0.0.1", handler).await
    }

    /// Starts a registry that takes bodies of unknown length.
    pub(crate) async fn start_chunked(
        chunked: Chunked,
        handler: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::launch("127.0.0.1", chunked, handler).await
    }

    pub(crate) async fn start_on(
        address: &str,
        handler: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::launch(address, Chunked::Never, handler).await
    }

    async fn launch(
        address: &str,
        chunked: Chunked,
        handler: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let task = tokio::spawn(serve(listener, chunked, Arc::clone(&log), handler));
        Self { host, log, task }
    }

    pub(crate) fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.host).parse().unwrap()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, method: &str, path_end: &str) -> usize {
        let asked = self.asked();
        asked.iter().filter(|a| a.is(method, path_end)).count()
    }
}

async fn serve(
    listener: TcpListener,
    chunked: Chunked,
    log: Arc<Mutex<Vec<Asked>>>,
    handler: Arc<Handler>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
        connections.spawn(async move {
            // A client that goes away is part of the game.
            let _ = one(socket, chunked, &log, &*handler).await;
        });
    }
}

async fn one(
    socket: TcpStream,
    chunked: Chunked,
    log: &Mutex<Vec<Asked>>,
    handler: &Handler,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(socket);
    let Some(asked) = read_request(&mut reader, chunked).await? else {
        return Ok(());
    };
    let n_before = {
        let mut log = log.lock().unwrap();
        log.push(asked.clone());
        log.len() - 1
    };
    let reply = handler(&asked, n_before);
    let mut socket = reader.into_inner();
    write_reply(&mut socket, &reply, &asked.method).await
}

async fn read_request(
    reader: &mut BufReader<TcpStream>,
    chunked: Chunked,
) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map(|v| v.parse().unwrap());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).await?;
    if headers.contains_key("transfer-encoding") {
        let most = match chunked {
            Chunked::Never => panic!("a body of unknown size"),
            Chunked::Whole => usize::MAX,
            Chunked::Until(n_bytes) => n_bytes,
        };
        body = read_chunks(reader, most).await?;
    }
    Ok(Some(Asked {
        method,
        target,
        headers,
        body,
    }))
}

/// Reads a body of unknown length, or at least `most` bytes of it.
async fn read_chunks(reader: &mut BufReader<TcpStream>, most: usize) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() < most {
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        let Ok(n_bytes) = usize::from_str_radix(line.trim_end(), 16) else {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        };
        let mut chunk = vec![0; n_bytes];
        reader.read_exact(&mut chunk).await?;
        // The end of the line.
        reader.read_exact(&mut [0; 2]).await?;
        if chunk.is_empty() {
            break;
        }
        body.extend(chunk);
    }
    Ok(body)
}

async fn write_reply(socket: &mut TcpStream, reply: &Reply, method: &str) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    let has_length = reply
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    match reply.manner {
        Manner::Silent => return std::future::pending().await,
        Manner::Endless => head.push_str("Transfer-Encoding: chunked\r\n"),
        _ if !has_length => {
            write!(head, "Content-Length: {}\r\n", reply.body.len()).unwrap();
        }
        _ => {}
    }
    socket.write_all(head.as_bytes()).await?;
    if let Manner::EndlessHead = reply.manner {
        loop {
            socket
                .write_all(b"X-More: and more, and more, and more\r\n")
                .await?;
        }
    }
    socket.write_all(b"\r\n").await?;
    if method == "HEAD" {
        return socket.shutdown().await;
    }
    let cut = |n: usize| &reply.body[..n.min(reply.body.len())];
    match reply.manner {
        Manner::Whole => socket.write_all(&reply.body).await?,
        Manner::CutAfter(n) => socket.write_all(cut(n)).await?,
        Manner::ResetAfter(n) => {
            socket.write_all(cut(n)).await?;
            socket.flush().await?;
            // Only bytes that were read reach the client before a reset does; it is one either way.
            #[expect(
                deprecated,
                reason = "a reset is the point, and closing with zero linger does not block"
            )]
            socket.set_linger(Some(Duration::ZERO))?;
            return Ok(());
        }
        Manner::StallAfter(n) => {
            socket.write_all(cut(n)).await?;
            socket.flush().await?;
            return std::future::pending().await;
        }
        Manner::Endless => loop {
            socket.write_all(b"400\r\n").await?;
            socket.write_all(&[b'a'; 1024]).await?;
            socket.write_all(b"\r\n").await?;
        },
        Manner::Silent | Manner::EndlessHead => unreachable!(),
    }
    socket.shutdown().await
}

/// Bytes that look like nothing, always the same.
pub(crate) fn noise(n_bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(n_bytes).collect()
}

/// The descriptor of `bytes` as a layer.
pub(crate) fn layer(bytes: &[u8]) -> Descriptor {
    descriptor(oci::media_type::OCI_LAYER_GZIP, bytes)
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
        platform: None,
        annotations: std::collections::BTreeMap::new(),
    }
}
