//! Options of `kiln build` about the language: named contexts, archives on standard input, checks, and what docker has and kiln has not.

use std::process::{Command, Stdio};

use testkit::git_server::{File, GitServer};
use testkit::process::{clean_command, run, tool};

use crate::command::{Bench, Ended};

/// Starts `command` with `input` on its standard input.
fn fed(command: &mut Command, input: &std::path::Path) -> Ended {
    let file = std::fs::File::open(input).unwrap();
    Ended::of(command.stdin(Stdio::from(file)).output().unwrap())
}

fn text(bench: &Bench, name: &str) -> String {
    std::fs::read_to_string(bench.path(name)).unwrap()
}

#[test]
fn folders_repositories_layouts_and_images_stand_for_names() {
    let bench = Bench::new();
    let git = GitServer::start();
    let mut repository = git.repository("files");
    repository.commit("main", &[File::new("sub/from-git", "git\n")]);
    // A layout of our own making, taken apart by tar.
    let ended = bench.build(&["-t", "app:v1", "-o", "type=oci,dest=oci.tar", "context"]);
    ended.well();
    std::fs::create_dir(bench.path("layout")).unwrap();
    let mut untar = clean_command(tool("tar", "tar"));
    run(untar
        .args(["-xf", "oci.tar", "-C", "layout"])
        .current_dir(bench.scratch.path()));
    bench.scratch.write("other/from-folder", "folder\n");
    bench.scratch.write("other/hidden", "");
    bench.scratch.write("other/.dockerignore", "hidden\n");
    bench.scratch.write(
        "context/Dockerfile",
        "FROM replaced AS tools\nFROM packed\nCOPY --from=folder . /\nCOPY --from=tools /bin/busybox /tools\n\
         COPY --from=repository from-git /\nRUN cat /made /from-folder > /all\n",
    );
    let repository = format!("repository={}#main:sub", git.url("files"));
    let image = format!("tools=docker-image://{}", bench.base);
    let built = bench.build(&[
        "--build-context",
        "folder=other",
        "--build-context",
        "packed=oci-layout://layout",
        "--build-context",
        &image,
        "--build-context",
        &repository,
        "-o",
        "root",
        "context",
    ]);
    built.well();
    assert_eq!(text(&bench, "root/all"), "made\nfolder\n");
    assert_eq!(text(&bench, "root/from-git"), "git\n");
    assert!(bench.path("root/tools").exists());
    assert!(!bench.path("root/hidden").exists());
    bench
        .build(&["--build-context", "scratch=other", "context"])
        .with(2, &["scratch", "always stands for itself"]);
    bench
        .build(&["--build-context", "folder=nowhere", "context"])
        .with(2, &["open the context \"nowhere\""]);
}

#[test]
fn the_history_of_a_repository_is_copied_only_if_that_is_asked_for() {
    let bench = Bench::new();
    let git = GitServer::start();
    let dockerfile = format!("FROM {}\nCOPY . /all\n", bench.base);
    let mut repository = git.repository("app");
    repository.commit("main", &[File::new("dockerfile", dockerfile)]);
    let url = format!("{}#main", git.url("app"));
    bench.build(&["-o", "without", &url]).well();
    assert!(bench.path("without/all/dockerfile").exists());
    assert!(!bench.path("without/all/.git").exists());
    let keep = "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1";
    bench
        .build(&["-o", "with", "--build-arg", keep, &url])
        .well();
    assert!(bench.path("with/all/.git/HEAD").exists());
}

#[test]
fn a_tar_on_standard_input_is_a_context_however_it_is_packed() {
    let bench = Bench::new();
    std::fs::rename(
        bench.path("context/Dockerfile"),
        bench.path("context/Other"),
    )
    .unwrap();
    for (flag, name) in [("-c", "plain.tar"), ("-cz", "gzip.tar"), ("-cJ", "xz.tar")] {
        let mut pack = clean_command(tool("tar", "tar"));
        run(pack
            .args([flag, "-f", name, "-C", "context", "."])
            .current_dir(bench.scratch.path()));
        let mut command = bench.command();
        command.args(["-f", "Other", "-o", name.trim_end_matches(".tar"), "-"]);
        fed(&mut command, &bench.path(name)).well();
        assert_eq!(
            text(&bench, &format!("{}/data", name.trim_end_matches(".tar"))),
            "data\n"
        );
    }
    bench
        .scratch
        .write("broken.tar", b"\x1f\x8b\x08 and nothing that follows");
    let mut command = bench.command();
    fed(command.arg("-"), &bench.path("broken.tar")).with(1, &["unpack the context"]);
}

#[test]
fn the_cache_is_left_out_for_the_stages_that_are_named() {
    let bench = Bench::new();
    let text = format!(
        "FROM {0} AS one\nRUN echo 1 > /1\nFROM {0} AS two\nRUN echo 2 > /2\nFROM {0}\nCOPY --from=one /1 /\nCOPY --from=two /2 /\n",
        bench.base
    );
    bench.scratch.write("context/Dockerfile", text);
    let build = |more: &[&str]| {
        let line = [more, &["--metadata-file", "metadata.json", "context"]].concat();
        let ended = bench.build(&line).well();
        let metadata: serde_json::Value =
            serde_json::from_slice(&std::fs::read(bench.path("metadata.json")).unwrap()).unwrap();
        (metadata["kiln.steps.run"].as_u64(), ended.stderr)
    };
    assert_eq!(build(&[]).0, Some(4));
    assert_eq!(build(&[]).0, Some(0));
    assert_eq!(build(&["--no-cache-filter", "TWO"]).0, Some(1));
    assert_eq!(build(&["--no-cache-filter=one,two"]).0, Some(2));
    let (n_run, words) = build(&["--no-cache-filter=three", "--progress=plain"]);
    assert_eq!(n_run, Some(0));
    assert!(words.contains("no stage called \"three\""), "{words}");
}

#[test]
fn with_pull_an_image_that_was_kept_here_does_not_count() {
    let bench = Bench::new();
    bench.build(&["-t", "127.0.0.1:9/kept:1", "context"]).well();
    bench
        .scratch
        .write("context/Dockerfile", "FROM 127.0.0.1:9/kept:1\nRUN true\n");
    bench.build(&["context"]).well();
    bench
        .build(&["--pull", "context"])
        .with(3, &["127.0.0.1:9"]);
}

#[test]
fn a_base_that_is_not_there_is_told_with_its_line() {
    let bench = Bench::new();
    let (host, _) = bench.base.split_once('/').unwrap();
    let text = format!(
        "FROM {0} AS builder\n\nFROM {host}/none:1 AS x\nRUN true\n",
        bench.base
    );
    bench.scratch.write("context/Dockerfile", text);
    bench.build(&["context"]).with(
        1,
        &[
            "build failed: base image does not exist: ",
            "--> Dockerfile:3:1",
            "none:1 AS x",
        ],
    );
}

#[test]
fn annotations_are_in_the_manifest() {
    let bench = Bench::new();
    let line = [
        "--annotation",
        "org.example.a=1",
        "--annotation",
        "manifest:b=2",
    ];
    let out = ["-o", "type=oci,dest=oci.tar", "context"];
    bench.build(&[&line[..], &out].concat()).well();
    let mut inspect = clean_command(tool("skopeo", "skopeo"));
    let raw = run(inspect
        .args(["inspect", "--raw", "oci-archive:oci.tar"])
        .env("HOME", "/nonexistent")
        .current_dir(bench.scratch.path()));
    let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let expected = serde_json::json!({"org.example.a": "1", "b": "2"});
    assert_eq!(manifest["annotations"], expected);
    let docker = [
        "-o",
        "type=oci,dest=oci.tar,oci-mediatypes=false",
        "context",
    ];
    bench
        .build(&[&line[..], &docker].concat())
        .with(2, &["--annotation needs OCI media types"]);
}

#[test]
fn what_docker_has_and_kiln_has_not_is_answered_in_words() {
    let bench = Bench::new();
    for (option, words) in [
        ("--sbom", "list of packages"),
        ("--sbom=true", "list of packages"),
        ("--provenance=mode=max", "how an image was made"),
        ("--attest=type=sbom", "no statements"),
        ("--cache-from=type=gha", "\"gha\" are not supported"),
        ("--cache-to=type=s3,bucket=x", "\"s3\" are not supported"),
        ("--load", "docker load"),
        ("--platform=linux/s390x", "linux/s390x"),
        ("--platform=linux/amd64,linux/arm64", "one at a time"),
        (
            "--output=type=oci,dest=x,compression-level=3",
            "level of compression",
        ),
    ] {
        bench.build(&[option, "context"]).with(2, &[words]);
    }
    bench
        .build(&[
            "--build-arg",
            "BUILDKIT_SYNTAX=example.com/other",
            "context",
        ])
        .with(1, &["BUILDKIT_SYNTAX", "example.com/other"]);
    let fine = [
        "--provenance=false",
        "--sbom=false",
        "--attest=type=provenance,disabled=true",
    ];
    bench.build(&[&fine[..], &["context"]].concat()).well();
}

#[test]
fn checks_end_with_one_if_there_is_something_to_tell() {
    let bench = Bench::new();
    bench.dockerfile("ENV A=$PATH B=$NOTHING\nCMD x\n");
    let ended = bench.build(&["--check", "context"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let told = String::from_utf8(ended.stdout).unwrap();
    for words in [
        "warning[UndefinedVar]: the variable \"NOTHING\"",
        "Dockerfile:2:15",
        "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/",
        "2 warnings.",
    ] {
        assert!(told.contains(words), "{words} is not in\n{told}");
    }
    bench
        .build(&[
            "--check",
            "--build-arg",
            "BUILDKIT_DOCKERFILE_CHECK=skip=all",
            "context",
        ])
        .well();
    let ended = bench
        .build(&["--call=targets,format=json", "context"])
        .well();
    let targets: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(targets["targets"][0]["base"], bench.base);
    bench.dockerfile("ENV A\nRUNN x\n");
    let ended = bench.build(&["--check", "context"]);
    assert_eq!(ended.code, Some(1));
    let told = String::from_utf8(ended.stdout).unwrap();
    assert!(
        told.contains("did you mean RUN?") && told.ends_with("2 errors.\n"),
        "{told}"
    );
}

#[test]
fn repositories_and_archives_are_checked_as_folders_are() {
    let bench = Bench::new();
    let git = GitServer::start();
    let text = format!(
        "FROM {}\nENV A=$PATH B=$NOTHING\nCOPY hidden /\nCMD x\n",
        bench.base
    );
    let files = [
        File::new("sub/dockerfile", text.clone()),
        File::new("sub/.dockerignore", "hidden\n"),
        File::symlink("sub/out", "/etc/hostname"),
    ];
    git.repository("r.git").commit("main", &files);
    let url = format!("{}#main:sub", git.url("r.git"));
    let told = |ended: Ended| {
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let text = String::from_utf8(ended.stdout).unwrap();
        for words in [
            "\"NOTHING\"",
            "CopyIgnoredFile",
            "JSONArgsRecommended",
            "3 warnings.",
        ] {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
        text
    };
    let text_of_git = told(bench.build(&["--check", &url]));
    assert!(text_of_git.contains("sub/dockerfile:2:15"), "{text_of_git}");
    let missing = format!("{}#main", git.url("r.git"));
    bench
        .build(&["--check", &missing])
        .with(1, &["there is no Dockerfile"]);
    bench
        .build(&["--check", "-f", "out", &url])
        .with(1, &["there is no Dockerfile"]);
    bench
        .build(&["--check", &git.url("none.git")])
        .with(1, &["none.git"]);

    bench.scratch.write("context/Dockerfile", &text);
    bench.scratch.write("context/.dockerignore", "hidden\n");
    let archive = bench.path("context.tar.gz");
    let mut pack = Command::new("tar");
    pack.arg("czf")
        .arg(&archive)
        .arg("-C")
        .arg(bench.path("context"))
        .arg(".");
    run(&mut pack);
    told(fed(bench.command().args(["--check", "-"]), &archive));
}

#[test]
fn checks_look_into_images_that_were_kept_here_and_into_layouts() {
    let bench = Bench::new();
    bench.dockerfile("ENV KNOWN=1\n");
    bench.build(&["-t", "kept:1", "context"]).well();
    bench
        .build(&["-o", "type=oci,dest=oci.tar", "context"])
        .well();
    std::fs::create_dir(bench.path("layout")).unwrap();
    let mut untar = clean_command(tool("tar", "tar"));
    run(untar
        .args(["-xf", "oci.tar", "-C", "layout"])
        .current_dir(bench.scratch.path()));
    for base in ["kept:1", "packed"] {
        let text = format!("FROM {base}\nENV A=$KNOWN B=$NOTHING\n");
        bench.scratch.write("context/Dockerfile", text);
        let layout = ["--build-context", "packed=oci-layout://layout"];
        let ended = bench.build(&[&["--check", "context"], &layout[..]].concat());
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(!ended.stderr.contains("note:"), "{}", ended.stderr);
        let told = String::from_utf8(ended.stdout).unwrap();
        assert!(
            told.contains("\"NOTHING\"") && told.contains("1 warning."),
            "{told}"
        );
    }
}
