//! The story of the README: a C program is compiled in one stage and copied into an empty one.

use api::builder::BuildStatus;
use testkit::bases;
use testkit::git_server::File;

use crate::reader;
use crate::scene::{Scene, Target};

const MAIN_C: &str = r#"
#include <stdio.h>
int main(int argc, char **argv) { printf("hello from %s\n", argc > 1 ? argv[1] : "nobody"); return 0; }
"#;

fn files(base: &str) -> Vec<File> {
    let dockerfile = format!(
        "FROM {base} AS build\nWORKDIR /src\nCOPY main.c .\nRUN gcc -O2 -static -o /out main.c && /out test\n\
         FROM build AS unused\nRUN exit 1\n\
         FROM scratch\nLABEL made.by=kiln\nCOPY --from=build --chmod=0755 /out /hello\nUSER 65532:65532\nENTRYPOINT [\"/hello\"]\nCMD [\"kiln\"]\n"
    );
    vec![
        File::new("Dockerfile", dockerfile),
        File::new("main.c", MAIN_C),
    ]
}

async fn is_built_pulled_and_run(target: Target) {
    let scene = Scene::start(target);
    let base = scene.base(&bases::debian_with_c(), "base/debian-c:bookworm");
    let credentials = match target {
        Target::Registry => scene.registry.credentials(),
        Target::Embedded => None,
    };

    let request = scene.repository("hello", &files(&base));
    let said = scene.build(request.clone()).await;
    let image = said.image();
    let first = said.responses.first().unwrap();
    assert_eq!(first.status(), BuildStatus::Running);
    let info = first.info.as_ref().unwrap();
    assert_eq!(info.r#ref, image);
    assert!(!info.build_id.is_empty() && !info.base_ref.is_empty() && info.started_at > 0);
    let log = scene.log(&said.build_id().unwrap()).await;
    assert!(log.contains("hello from test"), "{log}");
    assert!(
        !log.contains("exit 1"),
        "a stage that nothing needs was run:\n{log}"
    );

    let mut pulled = reader::pull(&image, credentials);
    assert_eq!(pulled.run(), "hello from kiln\n");
    let config = pulled.config();
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Labels"]["made.by"], "kiln");
    let digest = reader::digest(&image, credentials);

    // The image is there: one message, without info, and nothing is done.
    let again = scene.build(request.clone()).await;
    assert_eq!(again.responses.len(), 1);
    assert_eq!(again.image(), image);
    assert!(again.last().info.is_none());
    assert!(!again.last().base_ref.is_empty());

    // Another name for the same content: everything comes from the cache, and the bytes are the same.
    let mut renamed = request;
    let Some(api::builder::build_source::From::File(file)) = renamed
        .source
        .as_mut()
        .and_then(|source| source.from.as_mut())
    else {
        panic!("not a file source");
    };
    file.dockerfile_version.push('x');
    let cached = scene.build(renamed).await;
    assert_ne!(cached.image(), image);
    assert_eq!(reader::digest(&cached.image(), credentials), digest);
    let log = scene.log(&cached.build_id().unwrap()).await;
    assert!(
        !log.contains("hello from test"),
        "a step was run again:\n{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_c_program_is_built_pushed_to_a_registry_with_a_password_pulled_and_run() {
    is_built_pulled_and_run(Target::Registry).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_c_program_is_built_into_the_embedded_registry_pulled_and_run() {
    is_built_pulled_and_run(Target::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_that_share_nothing_make_the_same_digest() {
    let mut digests = Vec::new();
    for _ in 0..2 {
        let scene = Scene::start(Target::Embedded);
        let base = scene.busybox();
        // The base's name holds a port; the content must not.
        let dockerfile = format!(
            "FROM {base}\nRUN mkdir -p /a/b && echo x > /a/b/c && ln -s c /a/b/d\nCOPY . /files\n"
        );
        let files = [
            File::new("Dockerfile", dockerfile),
            File::executable("run", "#!/bin/sh\n"),
        ];
        let ignored = File::new(".dockerignore", "Dockerfile\n.git\n");
        let request = scene.repository("same", &[files.to_vec(), vec![ignored]].concat());
        let said = scene.build(request).await;
        let mut pulled = reader::pull(&said.image(), None);
        assert!(pulled.root().join("files/run").exists());
        let layers = pulled.config()["rootfs"]["diff_ids"].clone();
        digests.push(layers);
    }
    assert_eq!(digests[0], digests[1]);
}
