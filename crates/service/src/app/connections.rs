//! The port: accept, encrypt, serve HTTP/1.1 and HTTP/2, drain.
//!
//! Nothing that a client does, and no error of accepting, ends the loop. A connection has limits: time for its handshake and its
//! request headers, streams at a time, resets that it may be ahead of us, pings that it must answer.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::calls::Handler;
use crate::identity::PeerNames;
use crate::telemetry::Metrics;

/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the headers of an HTTP/1.1 request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// HTTP/2 connections that say nothing are pinged this often.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Time to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 256;
/// Streams that a client has reset and we have not yet put away.
const PENDING_RESETS_MAX: usize = 64;
/// Largest headers of an HTTP/2 request.
const HEADERS_MAX_BYTES: u32 = 64 << 10;
/// What is buffered for one stream until its client reads: a thousand readers of a log may all be slow.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Pause after an error of accepting: it is mostly that there are no descriptors left, and they do not come back by asking.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What connections are served with.
pub(super) struct Server {
    pub(super) handler: Handler,
    pub(super) acceptor: Option<TlsAcceptor>,
    pub(super) metrics: Metrics,
    pub(super) max_connections: usize,
    pub(super) drain_timeout: Duration,
    /// Cancelled once nothing is accepted any more: streams end on it.
    pub(super) stop: CancellationToken,
}

/// Serves until `shutdown` resolves, then until everything open has ended or has had its time.
pub(super) async fn serve(
    listener: TcpListener,
    server: Server,
    shutdown: impl Future<Output = ()> + Send,
) {
    let graceful = GracefulShutdown::new();
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    let room = Arc::new(Semaphore::new(server.max_connections));
    let builder = Arc::new(builder());
    tokio::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            () = &mut shutdown => break,
            stream = accept(&listener, &room) => stream,
        };
        let (stream, permit) = match stream {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => continue,
                }
            }
        };
        let connection = Connection {
            builder: Arc::clone(&builder),
            handler: server.handler.clone(),
            acceptor: server.acceptor.clone(),
            watcher: graceful.watcher(),
        };
        let (cut, metrics) = (cut.clone(), server.metrics.clone());
        tasks.spawn(async move {
            metrics.connections.inc();
            cut.run_until_cancelled(connection.serve(stream)).await;
            metrics.connections.dec();
            drop(permit);
        });
    }
    drop(listener);
    server.stop.cancel();
    tasks.close();
    let drained = async {
        graceful.shutdown().await;
        tasks.wait().await;
    };
    if tokio::time::timeout(server.drain_timeout, drained)
        .await
        .is_err()
    {
        tracing::warn!(n = tasks.len(), "connections are cut");
        cut.cancel();
        tasks.wait().await;
    }
}

/// Accepts a connection once there is room for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await;
    let permit = permit.map_err(io::Error::other)?;
    let (stream, _peer) = listener.accept().await?;
    Ok((stream, permit))
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_header_list_size(HEADERS_MAX_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    builder
}

struct Connection {
    builder: Arc<auto::Builder<TokioExecutor>>,
    handler: Handler,
    acceptor: Option<TlsAcceptor>,
    watcher: hyper_util::server::graceful::Watcher,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        // Without it, a small message waits for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY is not set");
        }
        match self.acceptor.clone() {
            None => self.serve_http(stream, None).await,
            Some(acceptor) => {
                let handshake = acceptor.accept(stream);
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                    Ok(Ok(stream)) => {
                        let (_, session) = stream.get_ref();
                        let certificate = session.peer_certificates().and_then(|all| all.first());
                        let peer = certificate.map(|own| Arc::new(PeerNames::of(own)));
                        self.serve_http(stream, peer).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                    Err(_) => tracing::debug!("TLS handshake took too long"),
                }
            }
        }
    }

    async fn serve_http(
        self,
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
        peer: Option<Arc<PeerNames>>,
    ) {
        let handler = self.handler;
        let service = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (handler, peer) = (handler.clone(), peer.clone());
            async move {
                let answer = handler.handle(request.map(Body::new), peer.as_deref());
                Ok::<_, Infallible>(answer.await)
            }
        });
        let connection = self
            .builder
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
            .into_owned();
        if let Err(error) = self.watcher.watch(connection).await {
            tracing::debug!(error, "a connection ended badly");
        }
    }
}
