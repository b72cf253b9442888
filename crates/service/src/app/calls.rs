//! Who sends a request, whether it is gRPC or not, and what is counted of the former.
//!
//! Every request is given its caller here, before anything else is looked at: what is below finds it among the request's extensions, and
//! where it is not there, nobody knows who calls.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::middleware::Next;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Code;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
use tonic_web::GrpcWebLayer;
use tower::ServiceExt as _;
use tower_http::catch_panic::CatchPanicLayer;

use crate::access::Caller;
use crate::grpc::{self, Calls};
use crate::identity::{Callers, PeerNames};
use crate::telemetry::{CallName, Metrics};

const GRPC_STATUS: &str = "grpc-status";

/// Returns the gRPC services: ours, health and reflection, each also as gRPC-web.
pub(super) fn grpc(
    calls: &Calls,
    health: HealthService,
    max_request_bytes: usize,
) -> Result<Router, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(api::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = grpc::routes();
    calls.add_to(&mut routes, max_request_bytes);
    routes
        .add_service(HealthServer::new(health))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let prepared = routes.routes().prepare();
    let checked = prepared
        .into_axum_router()
        .layer(axum::middleware::from_fn(admission));
    // Outside: what is refused is refused in the words of gRPC-web too.
    Ok(checked.layer(GrpcWebLayer::new()))
}

/// Lets a call through whose caller may make it.
async fn admission(request: Request<Body>, next: Next) -> Response<Body> {
    let caller = request.extensions().get::<Arc<Caller>>();
    match grpc::check(request.uri().path(), caller.map(AsRef::as_ref)) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.status().into_http(),
    }
}

/// Answers every request of the port. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Handler {
    callers: Callers,
    grpc: Router,
    web: Router,
    metrics: Metrics,
}

impl Handler {
    /// Returns what answers gRPC with `grpc` and everything else with `web`.
    pub(super) fn new(callers: Callers, (grpc, web): (Router, Router), metrics: Metrics) -> Self {
        Self {
            callers,
            grpc: grpc.layer(CatchPanicLayer::new()),
            web: web.layer(CatchPanicLayer::new()),
            metrics,
        }
    }

    /// Answers one request of a peer with these names.
    pub(super) async fn handle(
        &self,
        mut request: Request<Body>,
        peer: Option<&PeerNames>,
    ) -> Response<Body> {
        if let Some(caller) = self.callers.identify(request.headers(), peer) {
            request.extensions_mut().insert(caller);
        }
        if !is_grpc(request.headers()) {
            return answer(self.web.clone(), request).await;
        }
        let mut call = Counted {
            name: CallName::parse(request.uri().path()),
            metrics: self.metrics.clone(),
            started: Instant::now(),
            is_told: false,
        };
        self.metrics.call_started(&call.name);
        let mut response = answer(self.grpc.clone(), request).await;
        if is_undecodable(response.headers()) {
            let code = HeaderValue::from(Code::InvalidArgument as i32);
            response.headers_mut().insert(GRPC_STATUS, code);
        }
        if let Some(code) = code_in(response.headers()) {
            call.tell(code);
        }
        response.map(|body| Body::new(CountedBody { body, call }))
    }
}

async fn answer(router: Router, request: Request<Body>) -> Response<Body> {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(infallible) => match infallible {},
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Tells whether a request was refused because its bytes are no message: the caller's fault, which the library calls ours.
fn is_undecodable(headers: &HeaderMap) -> bool {
    code_in(headers) == Some(Code::Internal)
        && headers.get("grpc-message").is_some_and(|text| {
            text.as_bytes()
                .starts_with(b"failed%20to%20decode%20Protobuf")
        })
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    let value = headers.get(GRPC_STATUS)?;
    Some(Code::from_bytes(value.as_bytes()))
}

/// A call that is counted once, at its end.
struct Counted {
    name: CallName,
    metrics: Metrics,
    started: Instant,
    is_told: bool,
}

impl Counted {
    fn tell(&mut self, code: Code) {
        if !std::mem::replace(&mut self.is_told, true) {
            let duration: Duration = self.started.elapsed();
            self.metrics.call_handled(&self.name, code, duration);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // No status was sent: the client has gone.
        self.tell(Code::Cancelled);
    }
}

/// The body of an answer, whose trailers tell how the call ended.
struct CountedBody {
    body: Body,
    call: Counted,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(code) = frame.trailers_ref().and_then(code_in) {
                    this.call.tell(code);
                }
            }
            Some(Err(_)) => this.call.tell(Code::Unknown),
            // gRPC-web has its trailers within the data; that it ended is all that can be seen.
            None => this.call.tell(Code::Ok),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
