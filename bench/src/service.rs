//! A server of our own, and W10: how many references a running service resolves in a second, asked by many callers at once.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use api::builder::image_builder_client::ImageBuilderClient;
use api::builder::{
    BuildRegistryAuth, BuildRegistryAuthTotal, ResolveBaseImageRequest, build_registry_auth,
};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// Callers, each with one request at a time.
const CALLERS: u64 = 64;
/// Connections that they share.
const CONNECTIONS: usize = 4;
/// How long they ask.
const ASKING: Duration = Duration::from_secs(5);
/// How long a server may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resolved {
    /// Answers in a second, of a name that was resolved a moment ago.
    pub(crate) per_second: f64,
    /// Of all answers the slowest of a hundred, in milliseconds.
    pub(crate) p99_ms: f64,
}

/// A server that ends with this value.
pub(crate) struct Server(Child);

impl Server {
    /// Returns the most memory that it has held, in KiB.
    pub(crate) fn peak_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.split_whitespace().next());
        Ok(peak.context("no VmHWM")?.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures the service of `kiln`, which resolves `reference`.
pub(crate) fn measure(
    kiln: &Path,
    scratch: &Path,
    (reference, config): (&str, &str),
) -> Result<Resolved> {
    let (_server, address) = start(kiln, scratch, config)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(ask(&address, reference))
}

/// Starts a server over a state directory of its own, with this configuration besides. Returns where it listens.
pub(crate) fn start(kiln: &Path, scratch: &Path, config: &str) -> Result<(Server, String)> {
    let text = format!("egress.reach = \"private\"\n{config}");
    let config = scratch.join("service.toml");
    std::fs::write(&config, text)?;
    let state = scratch.join("service");
    crate::peer::remove_tree(&state);
    start_over(kiln, &state, &config)
}

/// Starts a server over a state directory.
pub(crate) fn start_over(kiln: &Path, state: &Path, config: &Path) -> Result<(Server, String)> {
    // What one before has left would be taken for this one's.
    let _absent = std::fs::remove_file(state.join("server/address"));
    let child = Command::new(kiln)
        .args(["serve", "--listen", "127.0.0.1:0", "--state"])
        .arg(state)
        .arg("--config")
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start kiln serve")?;
    let server = Server(child);
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        let text = std::fs::read_to_string(state.join("server/address")).unwrap_or_default();
        if text.contains(':') {
            return Ok((server, text.trim().to_owned()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("kiln serve does not listen")
}

async fn ask(address: &str, reference: &str) -> Result<Resolved> {
    let mut clients: Vec<ImageBuilderClient<Channel>> = Vec::new();
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        clients.push(ImageBuilderClient::new(endpoint.connect().await?));
    }
    let total = BuildRegistryAuthTotal { allow_all: true };
    let request = ResolveBaseImageRequest {
        r#ref: reference.to_owned(),
        auth: Some(BuildRegistryAuth {
            mode: Some(build_registry_auth::Mode::Total(total)),
            ..BuildRegistryAuth::default()
        }),
        ..ResolveBaseImageRequest::default()
    };
    // The first one asks the registry.
    for client in &mut clients {
        client.resolve_base_image(request.clone()).await?;
    }
    let n_answers = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    let began = Instant::now();
    for client in clients.iter().cycle().take(usize::try_from(CALLERS)?) {
        let (mut client, request, n) = (client.clone(), request.clone(), Arc::clone(&n_answers));
        callers.spawn(async move {
            let mut took = Vec::new();
            while began.elapsed() < ASKING {
                let asked = Instant::now();
                client.resolve_base_image(request.clone()).await?;
                took.push(asked.elapsed());
                n.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, tonic::Status>(took)
        });
    }
    let mut took = Vec::new();
    while let Some(caller) = callers.join_next().await {
        took.extend(caller??);
    }
    took.sort_unstable();
    let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a count of seconds' work")]
    let n = n_answers.load(Ordering::Relaxed) as f64;
    Ok(Resolved {
        per_second: n / began.elapsed().as_secs_f64(),
        p99_ms: p99.as_secs_f64() * 1000.0,
    })
}
