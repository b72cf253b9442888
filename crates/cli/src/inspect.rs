//! Commands that look and change nothing, and are not about builds: `resolve`, `config`, `version`, `completions`.

use clap::CommandFactory;
use oci::{Document, Platform, Reference};
use registry::client::Client;

use crate::args::{Cli, Place, ResolveArgs};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::{client, place, terminal};

/// `kiln resolve`.
pub(crate) async fn resolve(args: ResolveArgs) -> Outcome {
    let resolved = match args.server.target() {
        Some(server) => {
            let mut client = client::connect(&server).await?;
            client::resolve(&mut client, &args.reference.to_string()).await?
        }
        None => resolve_image(&args.place, &args.reference)
            .await?
            .to_string(),
    };
    terminal::data(&resolved).or_exit(Exit::Machine)
}

/// Returns the digest form of `reference`, as this machine's user sees it.
pub(crate) async fn resolve_image(place: &Place, reference: &Reference) -> Outcome<Reference> {
    let found = place::find(place)?;
    let hosts = found
        .config
        .registry
        .with_files_read()
        .or_exit(Exit::Usage)?;
    let keychain = place::keychain()?;
    let client = Client::new(hosts, keychain, place::client_options()).or_exit(Exit::Usage)?;
    let resolved = client.resolve(reference).await.or_exit(Exit::Unreachable)?;
    let host = Platform::host();
    let digest = match resolved.document {
        Document::Manifest(_) => resolved.descriptor.digest,
        Document::Index(index) => {
            let serves = |platform: &Platform| platform.satisfies(&host);
            let found = index
                .manifests
                .into_iter()
                .find(|entry| entry.platform.as_ref().is_some_and(serves));
            let missing = || {
                let text = format!("{reference} has no image for {host}");
                Failure::text(Exit::Unreachable, text)
            };
            found.ok_or_else(missing)?.digest
        }
    };
    Ok(reference.with_digest(digest))
}

/// `kiln config`.
pub(crate) fn config() -> Outcome {
    terminal::data_bytes(service::config::print_documented().as_bytes()).or_exit(Exit::Machine)
}

/// `kiln version`.
pub(crate) fn version() -> Outcome {
    terminal::data(&format!("kiln {}", env!("CARGO_PKG_VERSION"))).or_exit(Exit::Machine)
}

/// `kiln completions`.
pub(crate) fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut script);
    terminal::data_bytes(&script).or_exit(Exit::Machine)
}
