//! The service over its real ports: gRPC with the generated client, HTTP, the embedded registry; only workers are scripted.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod admission;
mod agents;
mod building;
mod contexts;
mod drain;
mod harness;
mod history;
mod hostile;
mod http2;
mod joining;
mod logs;
mod native;
mod outputs;
mod recent;
mod registries;
mod resolving;
mod restart;
mod retry;
mod reuse;
mod subscribers;
mod tenants;
mod tls;
mod web;

/// A file that is not declared above would be forgotten without a word.
#[test]
fn no_file_of_this_folder_is_forgotten() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/service");
    let main = include_str!("main.rs");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.strip_suffix(".rs").unwrap().to_owned();
        assert!(
            module == "main" || main.contains(&format!("\nmod {module};\n")),
            "{name}"
        );
    }
}
