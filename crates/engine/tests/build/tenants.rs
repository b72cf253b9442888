//! What tenants that are kept apart get of each other's layers: nothing that their own registries and folders do not send them.

use std::fs;
use std::path::{Path, PathBuf};

use engine::spec::{CacheMode, LayoutImage, NamedContext, Output, Readable, Registries};
use oci::Digest;
use serde_json::Value;
use testkit::docker_registry::DockerRegistry;
use testkit::process::run;

use super::{Bench, layout, manifest, succeed};

/// Where an index and a manifest have what they describe.
const MANIFEST: &str = "/manifests/0";
const CONFIG: &str = "/config";

/// Tenants that are kept apart.
fn divided() -> Registries {
    Registries {
        readable: Readable {
            without: vec!["tenants".to_owned()],
            ..Readable::default()
        },
        ..Registries::default()
    }
}

/// Copies an image from a layout to a registry.
fn copy(folder: &Path, name: &str) {
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:v1", folder.display()))
        .arg(format!("docker://{name}"));
    run(&mut skopeo);
}

/// Returns where a registry keeps a blob.
fn kept(registry: &DockerRegistry, hex: &str) -> PathBuf {
    let (start, _) = hex.split_at(2);
    let below = format!("docker/registry/v2/blobs/sha256/{start}/{hex}");
    registry.data().join(below)
}

/// A victim's image, in a store where tenants are kept apart, and in a folder.
async fn robbed() -> (Bench, tempfile::TempDir, String) {
    let mut bench = Bench::new(&[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "secret")]);
    bench.tenant = "victim";
    let made = bench.build(succeed).await;
    let folder = tempfile::tempdir().unwrap();
    layout(&bench.store(), made.image(), "v1", folder.path());
    let manifest = manifest(&bench.store(), made.image());
    let hex = manifest.layers.first().unwrap().digest.hex().to_owned();
    bench.tenant = "thief";
    bench.registries = divided();
    (bench, folder, hex)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_tenant_is_had_by_its_bytes_and_not_by_its_digest() {
    let mut bench = Bench::new(&[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "secret")]);
    bench.tenant = "victim";
    let made = bench.build(succeed).await;
    let folder = tempfile::tempdir().unwrap();
    layout(&bench.store(), made.image(), "v1", folder.path());
    let registry = DockerRegistry::start();
    let name = format!("{}/stolen:1", registry.host());
    copy(folder.path(), &name);

    // Whoever has the bytes gets the layer, from a folder and from a registry.
    bench.tenant = "thief";
    bench.registries = divided();
    let path = folder.path().to_owned();
    let image = LayoutImage::Default;
    let packed = NamedContext::Layout { path, image };
    bench.contexts.insert("packed".to_owned(), packed);
    let from = |base: &str| format!("FROM {base}\nRUN cat /a\n");
    bench.write("Dockerfile", &from("packed"));
    assert!(bench.build(succeed).await.result.is_ok());
    bench.write("Dockerfile", &from(&name));
    let outcome = bench.build(succeed).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);

    // Whoever has only the digest does not.
    let manifest = manifest(&bench.store(), made.image());
    let hex = manifest.layers.first().unwrap().digest.hex();
    fs::write(folder.path().join("blobs/sha256").join(hex), "").unwrap();
    fs::remove_dir_all(kept(&registry, hex)).unwrap();
    bench.tenant = "other thief";
    bench.write("Dockerfile", &from("packed"));
    assert!(bench.build(succeed).await.result.is_err());
    bench.write("Dockerfile", &from(&name));
    let outcome = bench.build(succeed).await;
    let message = &outcome.failure().message;
    assert!(message.contains(hex), "{message}");
    // Where there is one tenant, what is here is here.
    bench.registries.readable = Readable::default();
    bench.options.cache = CacheMode::Ignore;
    let outcome = bench.build(succeed).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_says_to_have_a_layer_of_another_tenant_does_not_get_it() {
    let (mut bench, folder, hex) = robbed().await;
    let registry = DockerRegistry::start();
    let name = format!("{}/stolen:1", registry.host());
    copy(folder.path(), &name);
    // It has the length of the layer, and answers accordingly, and none of its bytes.
    let data = kept(&registry, &hex).join("data");
    let n_bytes = usize::try_from(fs::metadata(&data).unwrap().len()).unwrap();
    fs::write(&data, vec![0; n_bytes]).unwrap();
    bench.write("Dockerfile", &format!("FROM {name}\nRUN cat /a\n"));
    let outcome = bench.build(succeed).await;
    let message = &outcome.failure().message;
    assert!(message.contains(&hex), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_tenant_is_pushed_nowhere() {
    let (mut bench, folder, hex) = robbed().await;
    let (registry, other) = (DockerRegistry::start(), DockerRegistry::start());
    let name = format!("{}/stolen:1", registry.host());
    copy(folder.path(), &name);
    fs::remove_dir_all(kept(&registry, &hex)).unwrap();
    // Nothing of the base is needed, and its bytes are here.
    bench.write("Dockerfile", &format!("FROM {name}\nLABEL a=b\n"));
    for target in [&registry, &other] {
        let reference = format!("{}/mine:1", target.host()).parse().unwrap();
        bench.outputs = vec![Output::Publish { reference }];
        let outcome = bench.build(succeed).await;
        let message = &outcome.failure().message;
        assert!(message.contains(&hex), "{message}");
        assert!(!kept(target, &hex).exists());
    }
    // Whose registry has it may push it.
    copy(folder.path(), &name);
    for target in [&registry, &other] {
        let reference = format!("{}/mine:1", target.host()).parse().unwrap();
        bench.outputs = vec![Output::Publish { reference }];
        bench.build(succeed).await.image();
        assert!(kept(target, &hex).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_unpacked_is_not_taken_for_another_layer_whose_image_says_it_is_that() {
    let (mut bench, folder, hex) = robbed().await;
    let config = layer_config(folder.path());
    let stolen = config["rootfs"]["diff_ids"].clone();
    bench.registries = Registries::default();
    for is_here in [true, false] {
        let mut maker = Bench::new(&[("Dockerfile", "FROM scratch\nCOPY b /b\n"), ("b", "mine")]);
        let made = maker.build(succeed).await;
        let lying = tempfile::tempdir().unwrap();
        layout(&maker.store(), made.image(), "v1", lying.path());
        let mut config = layer_config(lying.path());
        config["rootfs"]["diff_ids"] = stolen.clone();
        replace_config(lying.path(), &config);
        let path = lying.path().to_owned();
        let image = LayoutImage::Default;
        let lying = NamedContext::Layout { path, image };
        let bench = if is_here { &mut bench } else { &mut maker };
        bench.contexts.insert("lying".to_owned(), lying);
        bench.write("Dockerfile", "FROM lying\nRUN cat /a\n");
        let outcome = bench.build(succeed).await;
        let message = &outcome.failure().message;
        assert!(message.contains("its content is"), "{message}");
        assert!(!message.contains(&hex), "{message}");
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Returns the file of what the descriptor at `pointer` means.
fn file(folder: &Path, document: &Value, pointer: &str) -> PathBuf {
    let digest = document.pointer(&format!("{pointer}/digest")).unwrap();
    let digest: Digest = digest.as_str().unwrap().parse().unwrap();
    folder.join("blobs/sha256").join(digest.hex())
}

/// Returns the configuration of the image in a layout.
fn layer_config(folder: &Path) -> Value {
    let index = json(&folder.join("index.json"));
    let manifest = json(&file(folder, &index, MANIFEST));
    json(&file(folder, &manifest, CONFIG))
}

/// Gives the image in a layout another configuration.
fn replace_config(folder: &Path, config: &Value) {
    let mut index = json(&folder.join("index.json"));
    let mut manifest = json(&file(folder, &index, MANIFEST));
    replace(folder, (&mut manifest, CONFIG), config);
    replace(folder, (&mut index, MANIFEST), &manifest);
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

/// Lets a descriptor of a document mean `content`.
fn replace(folder: &Path, (document, pointer): (&mut Value, &str), content: &Value) {
    let bytes = content.to_string();
    let descriptor = document.pointer_mut(pointer).unwrap();
    let descriptor = descriptor.as_object_mut().unwrap();
    let digest = Digest::sha256(bytes.as_bytes()).to_string();
    descriptor.insert("digest".to_owned(), digest.into());
    descriptor.insert("size".to_owned(), bytes.len().into());
    fs::write(file(folder, document, pointer), bytes).unwrap();
}
