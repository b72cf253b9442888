//! The built program: as a server with clients, and as a command.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use api::builder::image_builder_client::ImageBuilderClient;
use api::builder::subassembly_service_client::SubassemblyServiceClient;
use api::kiln::v1::kiln_client::KilnClient;
use api::kiln::v1::{Build, GetBuildRequest};
use tonic::transport::{Channel, Endpoint};

use crate::faults::soak_time;
use crate::process::{self, Daemon, Stopped, processes_using};
use crate::scratch::{Scratch, mounts_below};

/// Time for the server to listen.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for workers to end after the server did.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the `kiln` that belongs to the running tests, building it once; `$KILN_BINARY` names another one.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("KILN_BINARY").map_or_else(build, PathBuf::from))
}

/// Builds the program into the target directory and in the profile of the running test.
fn build() -> PathBuf {
    let test =
        std::env::current_exe().unwrap_or_else(|error| panic!("find the running test: {error}"));
    // target/<profile>/deps/<test>
    let profile = test
        .ancestors()
        .nth(2)
        .unwrap_or_else(|| panic!("{} is in no target directory", test.display()));
    let target = profile.parent().unwrap_or(profile);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // With `--workspace`, features are those of the tests, and nothing is compiled a second time.
    command
        .args(["build", "--quiet", "--workspace", "--bin", "kiln"])
        .env("CARGO_TARGET_DIR", target);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    process::run(&mut command);
    profile.join("kiln")
}

/// A running `kiln serve` with a state directory of its own.
///
/// Dropping it ends the server, waits for its workers, and panics when a process or a mount is left.
#[derive(Debug)]
pub struct Kiln {
    daemon: Option<Daemon>,
    address: String,
    config: Option<PathBuf>,
    n_starts: usize,
    scratch: Scratch,
}

impl Kiln {
    /// Starts a server with the default configuration.
    #[must_use]
    pub fn start() -> Self {
        Self::with_config("")
    }

    /// Starts a server with this configuration file. It may reach this machine, where the peers of tests are, unless the configuration
    /// has its own word on that.
    #[must_use]
    pub fn with_config(config: &str) -> Self {
        let scratch = Scratch::new();
        let reach = if config.contains("egress") {
            ""
        } else {
            "egress.reach = \"private\"\n"
        };
        let config = &format!("{reach}{config}");
        let config = (!config.is_empty()).then(|| scratch.write("kiln.toml", config));
        let mut kiln = Self {
            daemon: None,
            address: String::new(),
            config,
            n_starts: 0,
            scratch,
        };
        kiln.start_again();
        kiln
    }

    /// Starts the server over the same state directory, ending the one that runs.
    pub fn start_again(&mut self) {
        drop(self.daemon.take());
        self.n_starts += 1;
        let state = self.state();
        let address_file = state.join("server/address");
        // An address left by a killed server would be taken for the new one's.
        let _absent = std::fs::remove_file(&address_file);
        let mut command = self.command();
        if soak_time().is_some() {
            // As a service manager starts it: where processors are shared by session, it has its own part.
            command = self.command_by(&process::tool("setsid", "util-linux"));
            command.arg(binary());
        }
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--state"])
            .arg(&state);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        let mut daemon = Daemon::start(&mut command, &self.log_path());
        self.address = daemon.wait_for("kiln serve", START_TIMEOUT, |_| {
            let text = std::fs::read_to_string(&address_file).ok()?;
            text.contains(':').then(|| text.trim().to_owned())
        });
        self.daemon = Some(daemon);
    }

    /// Kills the server as a crash would; its workers go on.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    /// Asks the server to end and returns how it did.
    pub fn stop(&mut self) -> Stopped {
        self.daemon
            .take()
            .map_or(Stopped::Gracefully, |mut daemon| daemon.stop())
    }

    /// Returns host and port of the server; also the host of the embedded registry.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.address
    }

    /// Returns the state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// Returns the process id of the server.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::id)
    }

    /// Returns what the server has written since it was started last.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::output).unwrap_or_default()
    }

    /// Returns a command of the built program with a clean environment and a home of its own.
    #[must_use]
    pub fn command(&self) -> Command {
        self.command_by(binary())
    }

    fn command_by(&self, program: &Path) -> Command {
        let mut command = process::clean_command(program);
        command
            .env("HOME", self.scratch.path())
            .env("XDG_CACHE_HOME", self.scratch.join("cache"));
        command
    }

    /// Connects to the server.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
            .unwrap_or_else(|error| panic!("address of the server: {error}"));
        endpoint
            .connect()
            .await
            .unwrap_or_else(|error| panic!("connect to {}: {error}\n{}", self.address, self.log()))
    }

    /// Returns a client of the published Image Builder API.
    pub async fn image_builder(&self) -> ImageBuilderClient<Channel> {
        ImageBuilderClient::new(self.channel().await)
    }

    /// Returns a client of the published subassembly API.
    pub async fn subassemblies(&self) -> SubassemblyServiceClient<Channel> {
        SubassemblyServiceClient::new(self.channel().await)
    }

    /// Returns a client of our own API.
    pub async fn native(&self) -> KilnClient<Channel> {
        KilnClient::new(self.channel().await)
    }

    /// Returns what the server says of a build that there is.
    pub async fn build_by_id(&self, build_id: &str) -> Build {
        let request = GetBuildRequest {
            build_id: build_id.to_owned(),
        };
        let found = self.native().await.get_build(request).await;
        let found = found.unwrap_or_else(|error| panic!("look for build {build_id}: {error}"));
        let build = found.into_inner().build;
        build.unwrap_or_else(|| panic!("build {build_id} is nothing"))
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.join(&format!("serve-{}.log", self.n_starts))
    }
}

impl Drop for Kiln {
    fn drop(&mut self) {
        let stopped = self.stop();
        let left = settle(self.scratch.path());
        let mounts = mounts_below(self.scratch.path());
        if std::thread::panicking() {
            // The test failed already; its own panic says why. The log helps to see what the server did.
            eprint_log(&self.log_path());
            return;
        }
        assert!(left.is_empty(), "processes left behind: {left:?}");
        assert!(mounts.is_empty(), "mounts left behind: {mounts:?}");
        assert_eq!(stopped, Stopped::Gracefully, "the server had to be killed");
    }
}

/// Waits for the processes that use `directory` to end, kills those that do not and returns them.
fn settle(directory: &Path) -> Vec<(u32, String)> {
    let started = std::time::Instant::now();
    loop {
        let left = processes_using(directory);
        if left.is_empty() || started.elapsed() > SETTLE_TIMEOUT {
            for (id, _) in &left {
                if let Some(pid) = i32::try_from(*id)
                    .ok()
                    .and_then(rustix::process::Pid::from_raw)
                {
                    // It may have ended by itself just now.
                    let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[expect(clippy::print_stderr, reason = "the output of a failed test")]
fn eprint_log(path: &Path) {
    let log = std::fs::read_to_string(path).unwrap_or_default();
    eprintln!("--- kiln serve\n{log}---");
}
