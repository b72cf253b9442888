//! Debian's `docker-registry`: the registry that most of the world runs, in the version a user is likely to have.

use std::time::Duration;

use crate::process::{self, Daemon};
use crate::scratch::Scratch;

/// Time for the registry to listen.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running registry; it and everything in it vanish when this is dropped.
#[derive(Debug)]
pub struct DockerRegistry {
    // Before the directory it writes to.
    daemon: Daemon,
    host: String,
    credentials: Option<(String, String)>,
    scratch: Scratch,
}

impl DockerRegistry {
    /// Starts a registry for everybody.
    #[must_use]
    pub fn start() -> Self {
        Self::launch(None)
    }

    /// Starts a registry that wants this user name and password.
    #[must_use]
    pub fn with_basic_auth(user: &str, password: &str) -> Self {
        Self::launch(Some((user.to_owned(), password.to_owned())))
    }

    fn launch(credentials: Option<(String, String)>) -> Self {
        let program = process::tool("docker-registry", "docker-registry");
        let scratch = Scratch::new();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  delete:\n    enabled: true\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            scratch.join("data").display()
        );
        if let Some((user, password)) = &credentials {
            let htpasswd = process::tool("htpasswd", "apache2-utils");
            // The registry reads bcrypt only.
            let line =
                process::run(process::clean_command(htpasswd).args(["-Bbn", user, password]));
            let path = scratch.write("htpasswd", line);
            config.push_str("auth:\n  htpasswd:\n    realm: testkit\n    path: ");
            config.push_str(&path.to_string_lossy());
            config.push('\n');
        }
        let config = scratch.write("config.yml", config);
        let mut command = process::clean_command(program);
        command.arg("serve").arg(config);
        let mut daemon = Daemon::start(&mut command, &scratch.join("log"));
        // Bound to port 0, it tells the port it got.
        let host = daemon.wait_for("docker-registry", START_TIMEOUT, |daemon| {
            let output = daemon.output();
            let rest = output.split("listening on 127.0.0.1:").nth(1)?;
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            rest.chars()
                .nth(port.len())
                .map(|_| format!("127.0.0.1:{port}"))
        });
        Self {
            daemon,
            host,
            credentials,
            scratch,
        }
    }

    /// Returns host and port, the first part of the name of every image in here.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the user name and password it wants.
    #[must_use]
    pub fn credentials(&self) -> Option<(&str, &str)> {
        self.credentials
            .as_ref()
            .map(|(user, password)| (user.as_str(), password.as_str()))
    }

    /// Returns a docker configuration file with the credentials.
    #[must_use]
    pub fn docker_config(&self) -> String {
        docker_config(&[(&self.host, self.credentials())])
    }

    /// Returns what the registry has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.output()
    }

    /// Returns where the registry keeps its files.
    #[must_use]
    pub fn data(&self) -> std::path::PathBuf {
        self.scratch.join("data")
    }
}

/// Returns a docker configuration file with the credentials of several hosts.
#[must_use]
pub fn docker_config(hosts: &[(&str, Option<(&str, &str)>)]) -> String {
    use base64::Engine as _;
    let encode = |(user, password): (&str, &str)| {
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    };
    let auths: serde_json::Map<String, serde_json::Value> = hosts
        .iter()
        .filter_map(|(host, credentials)| {
            Some((
                (*host).to_owned(),
                serde_json::json!({ "auth": encode((*credentials)?) }),
            ))
        })
        .collect();
    serde_json::json!({ "auths": auths }).to_string()
}
