//! Debian's docker-registry as a child process on a port that the system chose.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub(crate) struct DockerRegistry {
    pub(crate) host: String,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl DockerRegistry {
    /// Starts a registry that anybody may use.
    pub(crate) fn plain() -> Self {
        Self::start(|_| String::new())
    }

    /// Starts a registry for one user.
    pub(crate) fn with_password(user: &str, password: &str) -> Self {
        Self::start(|directory| {
            let output = Command::new("htpasswd")
                .args(["-Bbn", user, password])
                .output()
                .expect("htpasswd is missing: install the Debian package apache2-utils");
            let file = directory.join("htpasswd");
            std::fs::write(&file, output.stdout).unwrap();
            format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                file.display()
            )
        })
    }

    fn start(auth: impl FnOnce(&Path) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '127.0.0.1:0'}}\n{}",
            directory.path().join("data").display(),
            auth(directory.path())
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is missing: install the Debian package docker-registry");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let host = loop {
            let line = lines.next().expect("docker-registry ended").unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
                break rest[..end.unwrap_or(rest.len())].to_owned();
            }
        };
        // Somebody has to read what it says, or it stops when the pipe is full.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            host,
            child,
            _directory: directory,
        }
    }
}
