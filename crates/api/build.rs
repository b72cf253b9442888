//! Compiles `proto/` in process, without protoc, into client, server and descriptor set.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message as _;

const FILES: [&str; 4] = [
    "builder/imgbuilder.proto",
    "builder/subassembly.proto",
    "content-service-api/initializer.proto",
    "kiln/v1/kiln.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    for file in FILES {
        println!("cargo::rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // A piece of a log goes to many readers: they share its bytes.
    let shared = [
        ".builder.LogsResponse.content",
        ".kiln.v1.GetLogResponse.content",
    ];
    let build = shared
        .into_iter()
        .fold(tonic_prost_build::configure(), |build, field| {
            build.bytes(field)
        });
    build.compile_fds(descriptors)?;
    Ok(())
}
