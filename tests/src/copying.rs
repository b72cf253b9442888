//! COPY and ADD by the built program: files with all that files have, from a folder, an archive and a repository.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use testkit::git_server::{File, GitServer};
use testkit::process::{clean_command, run, tool};

use crate::command::Bench;

/// A tar archive of entries without content: name, mode and kind.
fn archive(entries: &[(&str, &str, u8)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, mode, kind) in entries {
        let mut header = [0u8; 512];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, mode);
        put(108, "0000005");
        put(116, "0000006");
        put(124, "00000000000");
        put(136, "00000000000");
        put(148, "        ");
        put(257, "ustar\x0000");
        header[156] = *kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        bytes.extend_from_slice(&header);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn mkfifo() -> Command {
    clean_command(tool("mkfifo", "coreutils"))
}

#[test]
fn files_arrive_with_everything_that_files_have() {
    let bench = Bench::new();
    let server = GitServer::start();
    server
        .repository("r.git")
        .commit("main", &[File::executable("sub/run", "#!/bin/sh\n")]);
    let tool = bench.scratch.write("context/tree/tool", "x");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(&tool, bench.path("context/tree/same")).unwrap();
    run(mkfifo().arg(bench.path("context/tree/pipe")));
    let tar = archive(&[
        ("./", "0000700", b'5'),
        ("./dev/", "0000755", b'5'),
        ("./dev/console", "0000600", b'3'),
        ("./bin/su", "0004755", b'0'),
    ]);
    bench.scratch.write("context/root.tar", tar);
    bench.dockerfile(&format!(
        "COPY tree /tree\nADD root.tar /root.d/\nADD {}#main:sub /sub/\nCOPY --link --parents tree/./tool /linked/\n\
         COPY --chmod=u=rwX,go= --chown=7:8 tree /private\n\
         RUN stat -c '%n %a %u:%g %h %F' /tree/* /root.d /root.d/bin/su /sub/run /linked/tool /private/tool && ls /root.d/dev | wc -l\n",
        server.url("r.git")
    ));
    let built = bench.build(&["--progress", "plain", "context"]).well();
    for line in [
        "/tree/pipe 644 0:0 1 fifo",
        "/tree/same 4755 0:0 2 regular file",
        "/tree/tool 4755 0:0 2 regular file",
        "/root.d 755 0:0",
        "/root.d/bin/su 4755 5:6 1 regular empty file",
        "/sub/run 755 0:0 1 regular file",
        "/linked/tool 4755 0:0 1 regular file",
        "/private/tool 700 7:8 2 regular file",
        "left out 1 device files, which builds cannot make: dev/console",
    ] {
        assert!(
            built.stderr.contains(line),
            "{line:?} is not in\n{}",
            built.stderr
        );
    }
    let again = bench.build(&["context"]).well();
    assert!(again.stderr.contains("0 steps run"), "{}", again.stderr);
}

#[test]
fn files_that_cannot_be_lent_to_the_worker_are_copied_and_others_are_not_even_looked_at() {
    let bench = Bench::new();
    let stranger = |path: &str| {
        let path = bench.scratch.write(path, "kept from others\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(70_000), None)
    };
    if stranger("context/deep/down/file").is_err() {
        // Only root gives files away, and only root's worker is somebody else.
        return;
    }
    bench.dockerfile("COPY data /data\n");
    let built = bench.build(&["context"]).well();
    assert!(!built.stderr.contains("cannot be lent"), "{}", built.stderr);
    bench.dockerfile("COPY . /context\nRUN cat /context/deep/down/file\n");
    let built = bench.build(&["--progress", "plain", "context"]).well();
    for words in ["once more with a copy", "kept from others"] {
        assert!(built.stderr.contains(words), "{words:?}: {}", built.stderr);
    }
    // When it shows at once there is no first try.
    stranger("context/near").unwrap();
    let built = bench.build(&["context"]).well();
    assert!(!built.stderr.contains("cannot be lent"), "{}", built.stderr);
    // What is wrong for another reason is told once.
    fs::remove_file(bench.path("context/near")).unwrap();
    fs::remove_dir_all(bench.path("context/deep")).unwrap();
    bench.dockerfile("COPY none /x\n");
    let failed = bench.build(&["--progress", "plain", "context"]);
    assert_eq!(failed.stderr.matches("does not exist").count(), 1);
}

#[test]
fn what_cannot_be_copied_is_told_with_its_line() {
    let bench = Bench::new();
    for (line, words) in [
        ("COPY none /x", "\"none\" does not exist"),
        ("COPY --chown=nobody-here data /x", "nobody-here"),
        ("COPY data /bin/busybox/x", "is not a directory"),
        ("ADD http://127.0.0.1:1/x /x", "could not be reached"),
        ("ADD git@example.com:a/b.git /x", "not over ssh"),
        ("COPY --parents none/x /x", "does not exist"),
    ] {
        bench.dockerfile(&format!("{line}\n"));
        bench.build(&["context"]).with(1, &[words, "Dockerfile:2"]);
    }
}
