//! What is counted, and the text it is told in.
//!
//! The names of the published service are kept; our own begin with `kiln_`. Numbers only: nothing here tells one caller's builds
//! from another's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::builds::list::Reason;

/// Upper bounds of the histograms of calls, in seconds.
const CALL_BUCKETS: [f64; 14] = [
    0.005, 0.025, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 30.0, 60.0, 120.0, 240.0, 480.0, 600.0,
];
/// Upper bounds of the histogram of builds, in seconds.
const BUILD_BUCKETS: [f64; 11] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Success {
    success: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// Which call. The labels are those of every gRPC server's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "the names of the labels")]
struct Call {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
}

/// Which call, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "the names of the labels")]
struct Handled {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
    grpc_code: String,
}

/// Everything that is counted. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    builds_started: Counter,
    builds_done: Family<Success, Counter>,
    builds_failed: Family<Why, Counter>,
    builds_begun_again: Counter,
    builds_running: Gauge,
    build_seconds: Histogram,
    calls_started: Family<Call, Counter>,
    calls_handled: Family<Handled, Counter>,
    call_seconds: Family<Call, Histogram, fn() -> Histogram>,
    /// Connections that are open.
    pub connections: Gauge,
    /// Builds that wait for their turn.
    pub builds_waiting: Gauge,
}

/// A name of one of the calls that are served, as `/package.Service/Method`.
#[derive(Debug, Clone)]
pub struct CallName {
    label: Call,
}

impl CallName {
    /// Parses the path of a request. A path that is none of ours is counted as `unknown`, so that nobody can make up labels.
    pub fn parse(path: &str) -> Self {
        const STREAMS: [&str; 7] = [
            "/builder.ImageBuilder/Build",
            "/builder.ImageBuilder/Logs",
            "/kiln.v1.Kiln/WatchBuild",
            "/kiln.v1.Kiln/GetLog",
            "/kiln.v1.Kiln/DownloadOutput",
            "/grpc.health.v1.Health/Watch",
            "",
        ];
        const TALKS: [&str; 2] = ["/kiln.v1.Kiln/CreateContext", "/kiln.v1.Kiln/ForwardAgent"];
        const UNARY: [&str; 13] = [
            "/builder.ImageBuilder/ResolveBaseImage",
            "/builder.ImageBuilder/ResolveWorkspaceImage",
            "/builder.ImageBuilder/ListBuilds",
            "/builder.SubassemblyService/CreateSubassembly",
            "/builder.SubassemblyService/GetSubassembly",
            "/kiln.v1.Kiln/GetVersion",
            "/kiln.v1.Kiln/GetBuild",
            "/kiln.v1.Kiln/CancelBuild",
            "/kiln.v1.Kiln/StartBuild",
            "/kiln.v1.Kiln/ListBuilds",
            "/kiln.v1.Kiln/ListArtifacts",
            "/kiln.v1.Kiln/RetryBuild",
            "/grpc.health.v1.Health/Check",
        ];
        let is_stream = STREAMS.contains(&path);
        let is_talk = TALKS.contains(&path);
        let known = is_stream || is_talk || UNARY.contains(&path);
        let mut parts = path.splitn(3, '/').skip(1);
        let mut part = || match parts.next() {
            Some(part) if known => part.to_owned(),
            _ => "unknown".to_owned(),
        };
        Self {
            label: Call {
                grpc_type: match (is_talk, is_stream) {
                    (true, _) => "bidi_stream",
                    (false, true) => "server_stream",
                    (false, false) => "unary",
                },
                grpc_service: part(),
                grpc_method: part(),
            },
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Arc::default(),
            builds_started: Counter::default(),
            builds_done: Family::default(),
            builds_failed: Family::default(),
            builds_begun_again: Counter::default(),
            builds_running: Gauge::default(),
            build_seconds: Histogram::new(BUILD_BUCKETS),
            calls_started: Family::default(),
            calls_handled: Family::default(),
            call_seconds: Family::new_with_constructor(|| Histogram::new(CALL_BUCKETS)),
            connections: Gauge::default(),
            builds_waiting: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // The encoder adds `_total` to counters.
        registry.register(
            "gitpod_image_builder_builds_started",
            "Builds that were started",
            self.builds_started.clone(),
        );
        registry.register(
            "gitpod_image_builder_builds_done",
            "Builds that ended",
            self.builds_done.clone(),
        );
        registry.register(
            "kiln_builds_failed",
            "Builds that failed or were ended, by reason",
            self.builds_failed.clone(),
        );
        registry.register(
            "kiln_builds_begun_again",
            "Tries of builds after one whose worker was killed",
            self.builds_begun_again.clone(),
        );
        registry.register(
            "kiln_builds_running",
            "Builds that have not ended",
            self.builds_running.clone(),
        );
        registry.register(
            "kiln_build_duration_seconds",
            "How long builds took, from their order to their end",
            self.build_seconds.clone(),
        );
        registry.register(
            "kiln_builds_waiting",
            "Builds that wait for their turn",
            self.builds_waiting.clone(),
        );
        registry.register(
            "kiln_connections_open",
            "Connections that are open",
            self.connections.clone(),
        );
        registry.register(
            "grpc_server_started",
            "Calls that were started",
            self.calls_started.clone(),
        );
        registry.register(
            "grpc_server_handled",
            "Calls that ended",
            self.calls_handled.clone(),
        );
        registry.register(
            "grpc_server_handling_seconds",
            "How long calls took",
            self.call_seconds.clone(),
        );
    }

    /// Counts a build that was accepted.
    pub fn build_started(&self) {
        self.builds_started.inc();
        self.builds_running.inc();
    }

    /// Counts a build of an earlier process that goes on.
    pub fn build_adopted(&self) {
        self.builds_running.inc();
    }

    /// Counts how often a build has begun once more because its worker was killed.
    pub fn build_begun_again(&self, n_times: u64) {
        self.builds_begun_again.inc_by(n_times);
    }

    /// Counts a build that ended.
    pub fn build_done(&self, outcome: Outcome, duration: Duration) {
        let success = match outcome {
            Outcome::Succeeded => "true",
            Outcome::Failed(reason) => {
                let reason = reason.word();
                self.builds_failed.get_or_create(&Why { reason }).inc();
                "false"
            }
        };
        let label = Success {
            success: success.to_owned(),
        };
        self.builds_done.get_or_create(&label).inc();
        self.builds_running.dec();
        self.build_seconds.observe(duration.as_secs_f64());
    }

    /// Counts a call that begins.
    pub fn call_started(&self, name: &CallName) {
        self.calls_started.get_or_create(&name.label).inc();
    }

    /// Counts a call that ended.
    pub fn call_handled(&self, name: &CallName, code: tonic::Code, duration: Duration) {
        let label = Handled {
            grpc_type: name.label.grpc_type,
            grpc_service: name.label.grpc_service.clone(),
            grpc_method: name.label.grpc_method.clone(),
            // The words that the usual dashboards know: `OK`, `NotFound`.
            grpc_code: match code {
                tonic::Code::Ok => "OK".to_owned(),
                tonic::Code::Cancelled => "Canceled".to_owned(),
                other => format!("{other:?}"),
            },
        };
        self.calls_handled.get_or_create(&label).inc();
        self.call_seconds
            .get_or_create(&name.label)
            .observe(duration.as_secs_f64());
    }

    /// Returns everything in the text format of Prometheus.
    pub fn text(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => text,
            // A String takes everything.
            Err(std::fmt::Error) => String::new(),
        }
    }
}

/// How a build ended, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Succeeded,
    /// Otherwise.
    Failed(Reason),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_names_are_kept() {
        let metrics = Metrics::default();
        metrics.build_started();
        metrics.build_done(Outcome::Succeeded, Duration::from_secs(2));
        let timeout = Reason::Failed(engine::event::FailureKind::Timeout);
        metrics.build_done(Outcome::Failed(timeout), Duration::from_secs(2));
        let name = CallName::parse("/builder.ImageBuilder/Build");
        metrics.call_started(&name);
        metrics.call_handled(&name, tonic::Code::Ok, Duration::from_millis(1));
        let text = metrics.text();
        for line in [
            "gitpod_image_builder_builds_started_total 1",
            "gitpod_image_builder_builds_done_total{success=\"true\"} 1",
            "kiln_builds_failed_total{reason=\"timeout\"} 1",
            "kiln_builds_running -1",
            "grpc_server_handled_total{grpc_type=\"server_stream\",grpc_service=\"builder.ImageBuilder\",grpc_method=\"Build\",grpc_code=\"OK\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains("grpc_server_handling_seconds_bucket"));
    }

    #[test]
    fn a_path_that_is_not_ours_makes_no_label() {
        let metrics = Metrics::default();
        for path in ["/x.Evil/1", "", "/", "/builder.ImageBuilder/Nope"] {
            metrics.call_started(&CallName::parse(path));
        }
        assert!(!metrics.text().contains("Evil") && !metrics.text().contains("Nope"));
    }
}
