//! Where things are: the state directory, the configuration, and how workers are started there.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use registry::client::{Options as ClientOptions, ProxyOptions};
use registry::keychain::Keychain;
use service::config::{self, Config};
use store::Store;
use worker::WorkerCommand;
use worker::userns::{self, Owner, UserNsOptions};

use crate::args::Place;
use crate::environment;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::terminal;

/// The configuration and the state directory, read and found but not made.
#[derive(Debug)]
pub(crate) struct Found {
    /// The configuration.
    pub(crate) config: Config,
    /// Where it was read from, if it was.
    pub(crate) config_file: Option<PathBuf>,
    /// The state directory.
    pub(crate) state: PathBuf,
}

/// A state directory that is ready for workers.
#[derive(Debug)]
pub(crate) struct Ready {
    /// How workers are started in it.
    pub(crate) command: WorkerCommand,
    /// What user namespace they make for themselves.
    pub(crate) user_namespace: UserNsOptions,
}

/// Reads the configuration and finds the state directory.
pub(crate) fn find(place: &Place) -> Outcome<Found> {
    let (config, config_file) = configuration(place)?;
    let state = place.state.clone().or_else(|| config.state.clone());
    let state = state.or_else(environment::default_state).ok_or_else(|| {
        Failure::text(Exit::Usage, "there is no home folder to keep state in")
            .hint("say --state DIR")
    })?;
    let state = std::path::absolute(state).or_exit(Exit::Usage)?;
    Ok(Found {
        config,
        config_file,
        state,
    })
}

fn configuration(place: &Place) -> Outcome<(Config, Option<PathBuf>)> {
    let is_default = place.config.is_none();
    let Some(path) = place.config.clone().or_else(environment::default_config) else {
        return Ok((Config::default(), None));
    };
    let text = match fs::read_to_string(&path) {
        Err(error) if is_default && error.kind() == io::ErrorKind::NotFound => {
            return Ok((Config::default(), None));
        }
        read => read
            .with_context(|| format!("read the configuration {}", path.display()))
            .or_exit(Exit::Usage)?,
    };
    let parsed = config::parse(&text)
        .with_context(|| format!("read the configuration {}", path.display()))
        .or_exit(Exit::Usage)?;
    for warning in &parsed.warnings {
        terminal::say(&format!("warning: {}: {warning}", path.display()));
    }
    let path = std::path::absolute(path).or_exit(Exit::Usage)?;
    Ok((parsed.config, Some(path)))
}

/// Returns the credentials that `docker login` and `podman login` have left.
pub(crate) fn keychain() -> Outcome<Keychain> {
    let mut keychain = Keychain::empty();
    for path in environment::credential_files() {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let error = anyhow::Error::new(error)
                    .context(format!("read the credentials in {}", path.display()));
                return Err(Failure::new(Exit::Usage, error));
            }
        };
        let found = Keychain::from_docker_config(&bytes)
            .with_context(|| format!("read the credentials in {}", path.display()))
            .or_exit(Exit::Usage)?;
        keychain.merge(found);
    }
    Ok(keychain)
}

/// Returns how registries are talked to from here: through the proxies that the environment names.
pub(crate) fn client_options() -> ClientOptions {
    let proxies = environment::proxies();
    let is_any = proxies.http.is_some() || proxies.https.is_some();
    ClientOptions {
        proxy: is_any.then(|| ProxyOptions {
            http: proxies.http,
            https: proxies.https,
            no_proxy: proxies.no_proxy.unwrap_or_default(),
        }),
        ..ClientOptions::default()
    }
}

impl Found {
    /// Makes the state directory if it is not there, and finds out as whom workers run.
    pub(crate) fn ready(&self) -> Outcome<Ready> {
        let options = UserNsOptions {
            base: self.config.worker.user_namespace_base,
            ..UserNsOptions::default()
        };
        let owner = userns::data_plane_owner(&options)
            .or_exit(Exit::Machine)
            .map_err(|failure| failure.hint("`kiln doctor` tells what this machine lacks"))?;
        let is_root = rustix::process::geteuid().is_root();
        let owner = is_root.then_some(owner);
        let state = self.make_state().or_exit(Exit::Machine)?;
        if let Some(owner) = owner {
            check_reachable(&state, owner)?;
        }
        // Made here, so that it belongs to whom workers are; they open it for themselves.
        let store = state.join(worker::folder::STORE);
        Store::open(&store, owner.map(store_owner)).or_exit(Exit::Machine)?;
        // What others left who were killed; of those who live it takes nothing.
        worker::sweep(&state);
        let base = options.base.map(|base| base.to_string());
        Ok(Ready {
            command: WorkerCommand {
                program: PathBuf::from("/proc/self/exe"),
                state,
                arguments: base
                    .into_iter()
                    .flat_map(|base| [crate::worker_args::BASE.to_owned(), base])
                    .collect(),
                owner,
            },
            user_namespace: options,
        })
    }

    fn make_state(&self) -> anyhow::Result<PathBuf> {
        let failed = || format!("create the state directory {}", self.state.display());
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o711);
        builder.create(&self.state).with_context(failed)?;
        fs::canonicalize(&self.state).with_context(failed)
    }
}

/// Returns the same ids in the store's words.
pub(crate) fn store_owner(owner: Owner) -> store::Owner {
    store::Owner {
        uid: owner.uid,
        gid: owner.gid,
    }
}

/// Workers of root are somebody else: they must be able to walk to the state directory.
fn check_reachable(state: &Path, owner: Owner) -> Outcome {
    let closed = state.ancestors().find(|folder| {
        fs::metadata(folder).is_ok_and(|found| {
            let is_theirs = found.uid() == owner.uid || found.gid() == owner.gid;
            !is_theirs && found.mode() & 0o001 == 0
        })
    });
    let Some(folder) = closed else {
        return Ok(());
    };
    let text = format!(
        "workers run as user {}, who cannot enter {}",
        owner.uid,
        folder.display()
    );
    Err(Failure::text(Exit::Machine, text).hint(format!(
        "choose another --state, or run `chmod o+x {}`",
        folder.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(config: Option<PathBuf>) -> Place {
        let state = Some(PathBuf::from("/nonexistent/state"));
        Place { state, config }
    }

    #[test]
    fn a_configuration_that_was_named_must_be_there_and_right() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kiln.toml");
        let failure = find(&place(Some(path.clone()))).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        fs::write(&path, "unknown_key = 1").unwrap();
        assert_eq!(
            find(&place(Some(path.clone()))).unwrap_err().exit(),
            Exit::Usage
        );
        fs::write(&path, "[limits]\nwall_time_s = 5\n").unwrap();
        let found = find(&place(Some(path))).unwrap();
        assert_eq!(found.config.limits.wall_time_s, 5);
        assert_eq!(found.state, Path::new("/nonexistent/state"));
    }

    #[test]
    fn the_documented_configuration_is_the_default_one() {
        let parsed = config::parse(config::print_documented()).unwrap();
        assert_eq!(parsed.config, Config::default());
    }

    #[test]
    fn a_folder_that_workers_cannot_enter_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let (uid, gid) = (123_456, 123_456);
        let failure =
            check_reachable(&folder.path().join("state"), Owner { uid, gid }).unwrap_err();
        let report = failure.report().unwrap();
        assert!(
            report.contains(&format!("cannot enter {}", folder.path().display())),
            "{report}"
        );
    }
}
