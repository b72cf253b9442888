//! Without a server: a worker makes the file, in this machine's store.

use engine::spec::{BuildOptions, BuildSpec, Output, Purpose, Record, Source};
use engine::subassembly::{self, Format, Stored};
use oci::{Digest, Platform, Reference};
use store::Store;

use super::{Found, Shape, not_there};
use crate::args::subassembly::{CreateArgs, GetArgs};
use crate::build::explain::Explained;
use crate::build::local::{self, TENANT};
use crate::build::report;
use crate::failure::{Exit, OrExit, Outcome};
use crate::inspect;
use crate::place::{self, Ready};
use crate::progress::{Style, now_ms};

/// `kiln subassembly create`.
pub(super) async fn create(args: &CreateArgs) -> Outcome {
    let found = place::find(&args.place)?;
    let ready = found.ready()?;
    let format = args.format.unwrap_or(found.config.subassembly.format);
    let id = local::new_id()?;
    let record = Record {
        id: id.clone(),
        tenant: TENANT.to_owned(),
        triggered_by: "kiln subassembly".to_owned(),
        caller: String::new(),
        supervisor_ref: String::new(),
        reference: args.reference.to_string(),
        base_reference: String::new(),
        started_at_ms: now_ms(),
        key: String::new(),
        purpose: Purpose::Subassembly,
        request: String::new(),
        labels: std::collections::BTreeMap::new(),
    };
    worker::prepare(&ready.command, &record).or_exit(Exit::Machine)?;
    let spec = BuildSpec {
        cache_from: Vec::new(),
        cache_to: Vec::new(),
        secrets: std::collections::BTreeMap::new(),
        ssh: std::collections::BTreeMap::new(),
        id,
        tenant: TENANT.to_owned(),
        source: Source::Image {
            reference: args.reference.clone(),
        },
        options: BuildOptions {
            platform: Platform::host(),
            ..BuildOptions::default()
        },
        outputs: vec![Output::Subassembly {
            format,
            tenant: TENANT.to_owned(),
            bucket: None,
        }],
        registries: local::registries(&found)?,
        contexts: std::collections::BTreeMap::new(),
        fetch: local::fetch_options(&found),
        limits: found.config.limits.clone(),
    };
    let style = Style::choose(args.progress);
    let state = local::carry_out(&ready, &spec, style, &Explained::default()).await?;
    let image = report::image(state, style)?;
    match look_up(&ready, &image.digest, format)? {
        Some(stored) => found_of(&ready, stored).tell(Shape::from(args.json)),
        None => not_there(
            "unavailable",
            "its file is gone again",
            Shape::from(args.json),
        ),
    }
}

/// `kiln subassembly get`.
pub(super) async fn get(args: &GetArgs) -> Outcome {
    let found = place::find(&args.place)?;
    let ready = found.ready()?;
    let format = args.format.unwrap_or(found.config.subassembly.format);
    let shape = Shape::from(args.json);
    let image = digest_of(&args.place, &ready, &args.reference).await?;
    let Some(stored) = look_up(&ready, &image, format)? else {
        return not_there("unavailable", "nobody has made it here", shape);
    };
    if let Some(path) = &args.output {
        let blob = open(&ready)?
            .open_blob(&stored.digest)
            .or_exit(Exit::Machine)?;
        let Some(mut blob) = blob else {
            return not_there("unavailable", "its file is gone", shape);
        };
        crate::build::outputs::write_file(path, |file| std::io::copy(&mut blob, file).map(drop))
            .or_exit(Exit::Machine)?;
    }
    found_of(&ready, stored).tell(shape)
}

/// Returns the image that a reference means: by its digest, by the name that it was kept under here, or by asking its registry.
pub(super) async fn digest_of(
    place: &crate::args::Place,
    ready: &Ready,
    reference: &Reference,
) -> Outcome<Digest> {
    if let Some(digest) = reference.digest() {
        return Ok(digest.clone());
    }
    if let Some(digest) = engine::kept_image(&open(ready)?, reference) {
        return Ok(digest);
    }
    let resolved = inspect::resolve_image(place, reference).await?;
    Ok(resolved
        .digest()
        .cloned()
        .unwrap_or_else(|| Digest::sha256(b"")))
}

/// Returns the subassembly of an image that was made here.
pub(super) fn look_up(ready: &Ready, image: &Digest, format: Format) -> Outcome<Option<Stored>> {
    let key = subassembly::key(TENANT, image, format);
    subassembly::find(&open(ready)?, &key).or_exit(Exit::Machine)
}

/// Opens the store.
pub(super) fn open(ready: &Ready) -> Outcome<Store> {
    let owner = ready.command.owner.map(place::store_owner);
    Store::open(&ready.command.state.join(worker::folder::STORE), owner).or_exit(Exit::Machine)
}

fn found_of(ready: &Ready, stored: Stored) -> Found {
    let path = path_of(ready, &stored.digest);
    Found {
        digest: stored.digest.to_string(),
        location: path.display().to_string(),
        manifest: stored.manifest,
    }
}

/// Returns where the store keeps a file.
pub(super) fn path_of(ready: &Ready, digest: &Digest) -> std::path::PathBuf {
    let folder = ready.command.state.join(worker::folder::STORE);
    folder.join("blobs/sha256").join(digest.hex())
}
