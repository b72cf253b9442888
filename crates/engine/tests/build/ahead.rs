//! Layers on their way to a registry before the build is through.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use engine::event::Event;
use engine::sandbox::{Script, StepCommand};
use engine::spec::Output;
use testkit::background::Background;
use testkit::docker_registry::DockerRegistry;
use testkit::proxy::{Action, Proxy, ProxyRequest, Rule};

use super::{Bench, Outcome, exit, put, succeed};

/// A file that nothing makes smaller: larger than what goes into one request.
const BIG: usize = 3 << 20;

fn bench(dockerfile: &str, host: &str) -> Bench {
    let mut bench = Bench::new(&[("Dockerfile", dockerfile), ("small", "small")]);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    });
    let noise: Vec<u8> = noise.take(BIG).collect();
    std::fs::write(bench.context.path().join("big"), noise).unwrap();
    bench.outputs = vec![Output::Publish {
        reference: format!("{host}/app:1").parse().unwrap(),
    }];
    bench
}

/// Waits for something that comes, within limits.
fn until(is_so: impl Fn() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it did not come to be");
}

fn count(requests: &[ProxyRequest], method: &str, status: u16) -> usize {
    let is_it = |request: &&ProxyRequest| {
        request.method == method && request.status == status && request.path.contains("/uploads/")
    };
    requests.iter().filter(is_it).count()
}

/// What was said of the push.
fn said(outcome: &Outcome, bench: &Bench) -> String {
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    let folder = bench.state.path().join("builds");
    let mut text = String::new();
    for build in std::fs::read_dir(folder).unwrap() {
        let mut reader = engine::journal::Reader::open(&build.unwrap().path()).unwrap();
        while let Some(record) = reader.next().unwrap() {
            if let engine::journal::Body::Output { bytes, .. } = record.body {
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_the_image_is_at_the_registry_before_the_next_step_ends() {
    let registry = DockerRegistry::start();
    let proxy = Arc::new(Proxy::in_front_of(registry.host()));
    let dockerfile =
        "FROM scratch AS base\nCOPY big /big\nFROM base\nCOPY small /\nRUN [\"/wait\"]\n";
    let mut bench = bench(dockerfile, &proxy.host());
    let seen = Arc::clone(&proxy);
    let outcome = bench.build(move |step: &StepCommand| -> Script {
        until(|| count(&seen.requests(), "PUT", 201) == 2);
        put(step, "made", "by the step");
        exit(0)
    });
    let outcome = outcome.await;
    let text = said(&outcome, &bench);
    assert!(text.contains("sent while steps ran: 3 layers, 3"), "{text}");
    assert!(!text.contains("could not be sent"), "{text}");
    // Each was sent once. The others and the configuration are small: one request begins, one sends.
    let requests = proxy.requests();
    assert_eq!(count(&requests, "PATCH", 202), 1, "{requests:?}");
    assert_eq!(count(&requests, "POST", 202), 4, "{requests:?}");
    assert_eq!(count(&requests, "PUT", 201), 4, "{requests:?}");
    // Looked for once before, when they were small or had to wait, and once at the end.
    let is_look = |request: &&ProxyRequest| request.method == "HEAD";
    let n_looks = requests.iter().filter(is_look).count();
    assert!((7..=8).contains(&n_looks), "{requests:?}");
    assert_eq!(count(&requests, "DELETE", 204), 0, "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_the_image_does_not_hold_is_not_sent() {
    let registry = DockerRegistry::start();
    let proxy = Proxy::in_front_of(registry.host());
    let dockerfile =
        "FROM scratch AS base\nCOPY big small /\nFROM scratch\nCOPY --from=base /small /\n";
    let mut bench = bench(dockerfile, &proxy.host());
    assert!(bench.build(succeed).await.result.is_ok());
    let requests = proxy.requests();
    assert_eq!(count(&requests, "POST", 202), 2, "{requests:?}");
    assert_eq!(count(&requests, "PATCH", 202), 0, "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_the_registry_that_shares_the_store() {
    let registry = DockerRegistry::start();
    let proxy = Proxy::in_front_of(registry.host());
    let mut bench = bench("FROM scratch\nCOPY big /big\n", &proxy.host());
    bench.registries.embedded = vec![proxy.host()];
    assert!(bench.build(succeed).await.result.is_ok());
    assert_eq!(proxy.requests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_refuses_bodies_without_length_gets_the_image_all_the_same() {
    let registry = DockerRegistry::start();
    let proxy = Arc::new(Proxy::in_front_of(registry.host()));
    proxy.rule(
        Rule::new("/uploads/", Action::Status(411))
            .method("PATCH")
            .times(1),
    );
    let dockerfile = "FROM scratch\nCOPY big /big\nRUN [\"/wait\"]\nCOPY big /again\n";
    let mut bench = bench(dockerfile, &proxy.host());
    let seen = Arc::clone(&proxy);
    let outcome = bench.build(move |step: &StepCommand| -> Script {
        until(|| count(&seen.requests(), "PATCH", 411) == 1);
        // The session was put away, too.
        until(|| count(&seen.requests(), "DELETE", 204) == 1);
        put(step, "made", "by the step");
        exit(0)
    });
    let outcome = outcome.await;
    let text = said(&outcome, &bench);
    assert!(!text.contains("sent while steps ran:"), "{text}");
    // The log of the push says why it took that long: of the layer that broke off, once.
    let is_layer = |event: &Event| match event {
        Event::LayerWritten { digest, .. } => Some(digest.clone()),
        _ => None,
    };
    let first = outcome.events.iter().find_map(is_layer).unwrap();
    let is_told = |line: &&str| line.contains("could not be sent while steps ran");
    let told: Vec<&str> = text.lines().filter(is_told).collect();
    let [line] = &told[..] else {
        panic!("{text}");
    };
    assert!(line.starts_with(&format!("layer {first} ")), "{line}");
    assert!(line.contains("411"), "{line}");
    // It is nothing to worry about.
    let is_warning = |event: &Event| matches!(event, Event::Warning { .. });
    assert!(
        !outcome.events.iter().any(is_warning),
        "{:?}",
        outcome.events
    );
    // Both large layers as usual, the second one without having been tried.
    let requests = proxy.requests();
    assert_eq!(count(&requests, "PATCH", 202), 2, "{requests:?}");
    assert_eq!(count(&requests, "POST", 202), 5, "{requests:?}");
}

type Seen = Arc<Mutex<Vec<String>>>;

/// Begins sessions, and never answers for what it is sent.
async fn stuck(State(seen): State<Seen>, request: Request) -> Response {
    let method = request.method().to_string();
    seen.lock().unwrap().push(method.clone());
    match method.as_str() {
        "POST" => (
            axum::http::StatusCode::ACCEPTED,
            [("location", "/v2/app/blobs/uploads/s1")],
        )
            .into_response(),
        "PATCH" => std::future::pending().await,
        "DELETE" => axum::http::StatusCode::NO_CONTENT.into_response(),
        _ => axum::http::StatusCode::NOT_FOUND.into_response(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fails_or_is_cancelled_leaves_no_session() {
    for is_cancelled in [false, true] {
        let seen = Seen::default();
        let router = Router::new().fallback(stuck).with_state(Arc::clone(&seen));
        let server = Background::serve(router);
        let dockerfile = "FROM scratch\nCOPY big /big\nRUN [\"/wait\"]\n";
        let mut bench = bench(dockerfile, &server.address().to_string());
        let (asked, cancel) = (Arc::clone(&seen), bench.cancel.clone());
        let outcome = bench.build(move |_: &StepCommand| -> Script {
            until(|| asked.lock().unwrap().iter().any(|method| method == "PATCH"));
            if is_cancelled {
                // The step itself succeeds: what waits then is the push.
                cancel.cancel();
                return exit(0);
            }
            exit(1)
        });
        let outcome = outcome.await;
        assert!(outcome.result.is_err());
        let seen = seen.lock().unwrap();
        // Before the build ended.
        assert_eq!(seen.last().map(String::as_str), Some("DELETE"), "{seen:?}");
    }
}
