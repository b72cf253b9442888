//! What an OCI archive holds, in words that can be compared: configuration, history, and the files of each layer.
//!
//! Everything is read by libraries that Kiln does not use for it. Digests of blobs are not looked at here: `reader` has others check them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Value, json};

/// Longest file whose text is shown instead of its digest.
const TEXT_MAX_BYTES: usize = 240;

/// How an image is described.
pub(super) struct Terms<'a> {
    /// Layers that are not described but named, by the digest of their tar.
    pub(super) bases: &'a BTreeMap<String, String>,
    /// Whether times of files are part of it.
    pub(super) times: bool,
}

/// Describes the image in an OCI archive.
pub(super) fn describe(archive: &Path, terms: &Terms<'_>) -> Value {
    let blobs = members(archive);
    let json = |name: &str| -> Value { serde_json::from_slice(&blobs[name]).unwrap() };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        format!("blobs/{}", digest.replace(':', "/"))
    };
    let mut manifest = json(&blob(&json("index.json")["manifests"][0]));
    while let Some(first) = manifest.pointer("/manifests/0") {
        manifest = json(&blob(first));
    }
    let mut config = json(&blob(&manifest["config"]));
    let root = config.as_object_mut().unwrap();
    let history = root.remove("history").unwrap_or(Value::Null);
    let diff_ids = root.remove("rootfs").unwrap()["diff_ids"].take();
    let layers = manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .zip(diff_ids.as_array().into_iter().flatten());
    let layers: Vec<Value> = layers
        .map(
            |(descriptor, diff_id)| match terms.bases.get(diff_id.as_str().unwrap()) {
                Some(base) => json!(format!("base {base}")),
                None => layer(&blobs[&blob(descriptor)], terms),
            },
        )
        .collect();
    let mut image = json!({ "config": config, "history": history, "layers": layers });
    level(&mut image, terms);
    image
}

/// Takes away what `docs/dockerfile-compatibility.md` explains for every image: empty layers, and times of making.
fn level(image: &mut Value, terms: &Terms<'_>) {
    let mut layers = Vec::new();
    let mut old = std::mem::take(image["layers"].as_array_mut().unwrap()).into_iter();
    let is_empty = |layer: &Value| layer.as_array().is_some_and(Vec::is_empty);
    for entry in image["history"].as_array_mut().into_iter().flatten() {
        if entry["empty_layer"].as_bool() != Some(true) {
            match old.next() {
                Some(layer) if is_empty(&layer) => entry["empty_layer"] = true.into(),
                Some(layer) => layers.push(layer),
                None => layers.push("history has a layer more than the image".into()),
            }
        }
        let entry = entry.as_object_mut().unwrap();
        entry.retain(|name, value| {
            (terms.times || name != "created") && *value != Value::Bool(false) && !value.is_null()
        });
    }
    layers.extend(old);
    image["layers"] = layers.into();
    if !terms.times {
        image["config"].as_object_mut().unwrap().remove("created");
    }
    if image["history"].is_null() {
        image["history"] = json!([]);
    }
}

/// Returns the files in a tar.
fn members(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(archive).unwrap());
    let mut members = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry
            .path()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_start_matches("./")
            .to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        members.insert(name, content);
    }
    members
}

/// An entry of a layer.
struct Entry {
    path: String,
    /// What a hard link links to.
    same_as: Option<String>,
    /// Kind, mode and owner.
    head: String,
    /// Everything else.
    tail: String,
}

/// Returns one line for each entry of a layer, sorted by path.
fn layer(blob: &[u8], terms: &Terms<'_>) -> Value {
    let mut unpacked = Vec::new();
    if blob.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(blob)
            .read_to_end(&mut unpacked)
            .unwrap();
    } else {
        unpacked.extend_from_slice(blob);
    }
    let mut archive = tar::Archive::new(unpacked.as_slice());
    let mut entries: Vec<Entry> = archive
        .entries()
        .unwrap()
        .map(|entry| read(entry.unwrap(), terms))
        .collect();
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    tie(&mut entries);
    let lines = entries.iter().map(
        |Entry {
             path, head, tail, ..
         }| match path.rsplit_once('/').unwrap_or(("", path)) {
            // It has no other meaning than its name.
            (_, name) if name.starts_with(".wh.") && tail == " = " => format!("deleted {path}"),
            _ => format!("{head} {path}{tail}"),
        },
    );
    lines.collect()
}

/// Makes the first name of a file that has several the file, and the others its hard links: any of them may be first in an archive.
fn tie(entries: &mut [Entry]) {
    for index in 0..entries.len() {
        let Some(target) = entries[index].same_as.take() else {
            continue;
        };
        let original = entries
            .iter()
            .position(|entry| entry.path == target && !entry.head.starts_with('h'));
        let Some(original) = original else {
            entries[index].tail = format!(" -> {target}");
            continue;
        };
        if index < original {
            let (head, tail) = (
                entries[original].head.clone(),
                entries[original].tail.clone(),
            );
            let moved = entries[index].path.clone();
            for entry in entries
                .iter_mut()
                .filter(|entry| entry.same_as.as_ref() == Some(&target))
            {
                entry.same_as = Some(moved.clone());
            }
            entries[original].head.replace_range(..1, "h");
            entries[original].tail = format!(" -> {moved}");
            (entries[index].head, entries[index].tail) = (head, tail);
            // Those that were tied before are tied to a name that is before this one.
        } else {
            entries[index].tail = format!(" -> {target}");
        }
    }
}

/// Reads an entry.
fn read(mut entry: tar::Entry<'_, &[u8]>, terms: &Terms<'_>) -> Entry {
    let clean = |bytes: &[u8]| {
        let path = shown(bytes);
        path.strip_prefix("./")
            .unwrap_or(&path)
            .trim_end_matches('/')
            .to_owned()
    };
    let path = clean(entry.path_bytes().as_ref());
    let header = entry.header();
    let kind = match header.entry_type() {
        tar::EntryType::Directory => "d",
        tar::EntryType::Symlink => "l",
        tar::EntryType::Link => "h",
        tar::EntryType::Fifo => "p",
        tar::EntryType::Char => "c",
        tar::EntryType::Block => "b",
        _ => "-",
    };
    let head = format!(
        "{kind} {:04o} {}:{}",
        header.mode().unwrap() & 0o7777,
        header.uid().unwrap(),
        header.gid().unwrap()
    );
    let mut tail = String::new();
    if matches!(kind, "c" | "b") {
        let number = |number: std::io::Result<Option<u32>>| number.unwrap().unwrap_or(0);
        write!(
            tail,
            " {}:{}",
            number(header.device_major()),
            number(header.device_minor())
        )
        .unwrap();
    }
    if terms.times {
        write!(tail, " @{}", header.mtime().unwrap()).unwrap();
    }
    let mut same_as = None;
    if let Some(target) = entry.link_name_bytes() {
        if kind == "h" {
            same_as = Some(clean(&target));
        } else {
            write!(tail, " -> {}", shown(&target)).unwrap();
        }
    }
    tail.push_str(&xattrs(&mut entry));
    if kind == "-" {
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        tail.push_str(&text(&content));
    }
    Entry {
        path,
        same_as,
        head,
        tail,
    }
}

/// Returns the extended attributes of an entry, sorted.
fn xattrs(entry: &mut tar::Entry<'_, &[u8]>) -> String {
    let mut xattrs = Vec::new();
    for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
        let extension = extension.unwrap();
        if let Some(name) = extension.key().unwrap().strip_prefix("SCHILY.xattr.") {
            xattrs.push(format!(" [{name}={}]", shown(extension.value_bytes())));
        }
    }
    xattrs.sort();
    xattrs.concat()
}

/// Returns the content of a file: its text, or its digest if it is long or no text.
fn text(content: &[u8]) -> String {
    let is_text = |text: &&str| {
        content.len() <= TEXT_MAX_BYTES
            && text
                .chars()
                .all(|c| c == '\n' || c == '\t' || !c.is_control())
    };
    match std::str::from_utf8(content).ok().filter(is_text) {
        Some(text) => format!(" = {text}"),
        None => format!(" = {} bytes sha256:{}", content.len(), sha256(content)),
    }
}

/// Returns the digest of bytes in hexadecimal.
pub(super) fn sha256(content: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
    digest
        .as_ref()
        .iter()
        .fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
}

/// Returns bytes as text; what is no text is `\xHH`.
fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                write!(text, "\\x{:02x}", u32::from(c)).unwrap();
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").unwrap();
        }
    }
    if text.len() > TEXT_MAX_BYTES {
        return format!(
            "{} bytes sha256:{}",
            bytes.len(),
            sha256(std::ffi::OsStr::from_bytes(bytes).as_bytes())
        );
    }
    text
}
