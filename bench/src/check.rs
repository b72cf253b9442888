//! Whether an image is what it should be, asked of the registry with tools that are none of the builders.

use std::io::Read as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::process;

/// What an image has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// Layers beside the base's.
    pub(crate) layers_above_base: usize,
    /// A file that one of them has.
    pub(crate) has: &'static str,
}

/// Checks the image and returns the size of the layers that were added, compressed.
pub(crate) fn image(reference: &str, expected: &Expected, n_base_layers: usize) -> Result<u64> {
    let manifest = manifest(reference)?;
    let layers = layers(&manifest);
    let added = layers.get(n_base_layers..).unwrap_or_default();
    ensure!(
        added.len() == expected.layers_above_base,
        "{reference} has {} layers above its base, not {}",
        added.len(),
        expected.layers_above_base
    );
    let found = added
        .iter()
        .rev()
        .map(|layer| has_file(reference, layer, expected.has))
        .collect::<Result<Vec<bool>>>()?;
    ensure!(
        found.contains(&true),
        "{reference} has no file {}",
        expected.has
    );
    Ok(added
        .iter()
        .filter_map(|layer| layer.get("size")?.as_u64())
        .sum())
}

/// Returns how many layers an image has.
pub(crate) fn n_layers(reference: &str) -> Result<usize> {
    Ok(layers(&manifest(reference)?).len())
}

fn layers(manifest: &Value) -> Vec<Value> {
    let layers = manifest.get("layers").and_then(Value::as_array);
    layers.cloned().unwrap_or_default()
}

/// Returns the manifest: the first image's, where there is an index.
fn manifest(reference: &str) -> Result<Value> {
    let (name, tag) = reference.rsplit_once(':').context("a name without tag")?;
    let (host, repository) = name.split_once('/').context("a name without host")?;
    let get = |key: &str| -> Result<Value> {
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
        let url = format!("http://{host}/v2/{repository}/manifests/{key}");
        let text = process::run(Command::new(curl()).args(["-sSf", "-H", accept, &url]));
        Ok(serde_json::from_str(&text)?)
    };
    let manifest = get(tag)?;
    match manifest
        .pointer("/manifests/0/digest")
        .and_then(Value::as_str)
    {
        Some(digest) => get(digest),
        None => Ok(manifest),
    }
}

fn has_file(reference: &str, layer: &Value, name: &str) -> Result<bool> {
    let digest = layer
        .get("digest")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let name_part = reference
        .rsplit_once(':')
        .map_or(reference, |(name, _)| name);
    let (host, repository) = name_part.split_once('/').context("a name without host")?;
    let mut blob = Command::new(curl())
        .args([
            "-sSf",
            &format!("http://{host}/v2/{repository}/blobs/{digest}"),
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = blob.stdout.take().context("no output")?;
    let mut list = Command::new(process::tool("tar", "tar"))
        .args(["--list", "--gzip"])
        .stdin(stdout)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut names = String::new();
    if let Some(mut output) = list.stdout.take() {
        output.read_to_string(&mut names)?;
    }
    let listed = list.wait()?;
    blob.wait()?;
    ensure!(
        listed.success(),
        "layer {digest} of {reference} cannot be read"
    );
    Ok(names
        .lines()
        .any(|line| line.trim_start_matches("./").trim_end_matches('/') == name))
}

fn curl() -> std::path::PathBuf {
    process::tool("curl", "curl")
}
