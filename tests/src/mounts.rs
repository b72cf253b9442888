//! `RUN --mount`, by the built program and real containers: what a command sees, what stays, and what must not get out.

use std::process::{Command, Stdio};

use testkit::process::finish;

use crate::command::{Bench, Ended};

fn build(bench: &Bench, arguments: &[&str]) -> Ended {
    let mut command = bench.command();
    command
        .args(["--progress", "plain", "context"])
        .args(arguments);
    Ended::of(finish(&mut command))
}

/// Builds what must succeed; returns what was said.
fn built(bench: &Bench, lines: &str, arguments: &[&str]) -> String {
    bench.dockerfile(lines);
    let ended = build(bench, arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stderr
}

/// Builds what must fail as the author's fault; returns what was said.
fn refused(bench: &Bench, lines: &str, arguments: &[&str]) -> String {
    bench.dockerfile(lines);
    let ended = build(bench, arguments);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    ended.stderr
}

/// Returns the files of the image that was just exported as a tar to `out.tar`, without those of the base.
fn exported(bench: &Bench, lines: &str, arguments: &[&str]) -> Vec<String> {
    let base = names(bench, "", arguments);
    let mut found = names(bench, lines, arguments);
    found.retain(|name| !base.contains(name));
    found
}

fn names(bench: &Bench, lines: &str, arguments: &[&str]) -> Vec<String> {
    let output = ["-o", "type=tar,dest=out.tar"];
    built(bench, lines, &[&output[..], arguments].concat());
    let mut list = Command::new("tar");
    list.arg("tf").arg(bench.path("out.tar"));
    let listed = finish(&mut list).stdout;
    let names = String::from_utf8(listed).unwrap();
    names.lines().map(str::to_owned).collect()
}

#[test]
fn files_of_the_context_of_stages_and_of_images_are_seen_and_leave_nothing() {
    let bench = Bench::new();
    bench.scratch.write("context/.dockerignore", "secret\n");
    bench.scratch.write("context/secret", "no\n");
    bench.scratch.write("context/dir/file", "from a file\n");
    let base = bench.base.clone();
    let lines = format!(
        "RUN mkdir -p /made/deep && echo from a stage > /made/deep/x && ln -s deep /made/link\n\
         FROM {base}\n\
         WORKDIR /work\n\
         RUN --mount=target=. --mount=from=0,source=/made/link,target=/srv/new/stage,rw \
         --mount=from={base},source=/bin,target=/base --mount=source=dir/file,target=/srv/one \
         --mount=type=tmpfs,target=/tmp/memory,size=1m --mount=from=scratch,target=/void \
         set -e; cat data dir/file /srv/new/stage/x /srv/one; test ! -e secret; test -x /base/sh; \
         test -z \"$(ls /void)\"; test \"$(stat -c %u:%g data)\" = 0:0; \
         ! touch new; ! touch /base/x; touch /srv/new/stage/gone; \
         ! head -c 2000000 /dev/zero > /tmp/memory/x; echo kept > /kept\n"
    );
    let found = exported(&bench, &lines, &[]);
    assert_eq!(
        found,
        ["kept", "work/"],
        "only what was written outside of mounts stays"
    );
}

#[test]
fn a_changed_file_of_a_mount_is_a_miss_and_a_touched_one_is_not() {
    let bench = Bench::new();
    bench.scratch.write("context/dir/file", "1\n");
    let lines = "RUN --mount=source=dir,target=/in cat /in/file > /out\n";
    assert!(built(&bench, lines, &[]).contains("not built before"));
    bench
        .scratch
        .write("context/other", "not part of the mount\n");
    bench.scratch.write("context/dir/file", "1\n");
    let second = built(&bench, lines, &[]);
    assert!(
        second.contains("cached") && !second.contains("cache miss"),
        "{second}"
    );
    bench.scratch.write("context/dir/file", "2\n");
    let third = built(&bench, lines, &[]);
    assert!(third.contains("dir/file changed"), "{third}");
}

#[test]
fn caches_stay_from_build_to_build_and_are_in_no_layer() {
    let bench = Bench::new();
    let add = |n: &str, id: &str| {
        format!(
            "ENV N={n}\nRUN --mount=type=cache,id={id},target=/var/cache/x,uid=5,mode=0750 \
             echo {n} >> /var/cache/x/list; cat /var/cache/x/list > /list; \
             stat -c %u:%g:%a /var/cache/x; echo list is $(cat /list | tr '\\n' ,)\n"
        )
    };
    let first = built(&bench, &add("1", "a"), &[]);
    assert!(
        first.contains("list is 1,") && first.contains("5:0:750"),
        "{first}"
    );
    let second = built(&bench, &add("2", "a"), &[]);
    assert!(second.contains("list is 1,2,"), "{second}");
    assert!(built(&bench, &add("3", "b"), &[]).contains("list is 3,"));
    // An id decides nothing about a result.
    assert!(!built(&bench, &add("3", "c"), &[]).contains("list is 3"));
    let uncached = built(&bench, &add("4", "a"), &["--no-cache"]);
    assert!(uncached.contains("list is 1,2,4,"), "{uncached}");
    let found = exported(&bench, &add("5", "a"), &[]);
    assert_eq!(found, ["list"]);
}

#[test]
fn a_cache_begins_with_what_it_is_told_to_and_ids_are_no_paths() {
    let bench = Bench::new();
    let lines = "RUN mkdir /seed; echo seeded > /seed/x\nFROM base\n\
        RUN --mount=type=cache,id=../../../../srv,from=0,source=/seed,target=/c cat /c/x; echo more >> /c/x\n\
        RUN --mount=type=cache,id=../../../../srv,from=0,source=/seed,target=/d cat /d/x | tr '\\n' ,\n";
    let said = built(&bench, &lines.replace("base", &bench.base), &[]);
    assert!(said.contains("seeded,more,"), "{said}");
    let missing = "RUN --mount=type=cache,target=/c,source=../../etc true\n";
    let said = refused(&bench, missing, &[]);
    assert!(
        said.contains("/etc, which is to be mounted at /c, does not exist"),
        "{said}"
    );
    assert!(said.contains("Dockerfile:2"), "{said}");
}

/// Starts two builds that use one cache mount at the same time, each waiting for a sign of the other for so many quarters of a second.
fn two_at_once(sharing: &str, patience: u32) -> [String; 2] {
    let bench = Bench::new();
    let dockerfile = |name: &str, other: &str| {
        format!(
            "FROM {}\nRUN --mount=type=cache,id=m,target=/c,sharing={sharing} touch /c/{name}; \
             for i in $(seq {patience}); do if test -e /c/{other}; then echo {name} met {other}; break; fi; sleep 0.25; done; \
             rm /c/{name}; echo {name} is done\n",
            bench.base
        )
    };
    let start = |name: &str, other: &str| {
        let folder = format!("context-{name}");
        bench
            .scratch
            .write(&format!("{folder}/Dockerfile"), dockerfile(name, other));
        let mut command = bench.command();
        command
            .args(["--progress", "plain", &folder])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    // Whatever a build does once for all comes first.
    built(&bench, "RUN true\n", &[]);
    let builds = [start("a", "b"), start("b", "a")];
    builds.map(|child| {
        let ended = Ended::of(child.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stderr
    })
}

#[test]
fn two_builds_share_a_cache_or_take_turns_or_have_one_each() {
    let has_met = |said: &[String; 2]| {
        let is_it = |line: &str| {
            line.trim_end().ends_with("a met b") || line.trim_end().ends_with("b met a")
        };
        said.iter().any(|said| said.lines().any(is_it))
    };
    // As long as it may take a busy machine to start the second one.
    let shared = two_at_once("shared", 120);
    assert!(has_met(&shared), "{shared:?}");
    for alone in ["private", "locked"] {
        let said = two_at_once(alone, 8);
        assert!(!has_met(&said), "{alone}: {said:?}");
    }
}

#[test]
fn a_killed_build_lets_go_of_a_locked_cache() {
    let bench = Bench::new();
    let lines = "RUN --mount=type=cache,id=l,target=/c,sharing=locked echo holding; sleep 600\n";
    bench.dockerfile(lines);
    let mut command = bench.command();
    command
        .args(["--progress", "plain", "context"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.trim_end().ends_with("holding") {
        line.clear();
        let n = std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_ne!(n, 0, "the build ended");
    }
    let worker = worker_of(&bench);
    let killed = Command::new("kill").args(["-9", &worker]).status().unwrap();
    assert!(killed.success());
    child.wait().unwrap();
    let after = "RUN --mount=type=cache,id=l,target=/c,sharing=locked echo mine now\n";
    assert!(built(&bench, after, &[]).contains("mine now"));
}

/// Returns the process id of the one worker whose build has not ended.
fn worker_of(bench: &Bench) -> String {
    let builds = std::fs::read_dir(bench.path("state/builds")).unwrap();
    let locks = builds.map(|build| build.unwrap().path().join("lock"));
    let pids = locks.filter_map(|lock| std::fs::read_to_string(lock).ok());
    let alive = |pid: &String| std::path::Path::new(&format!("/proc/{pid}")).exists();
    let alive: Vec<String> = pids
        .map(|pid| pid.trim().to_owned())
        .filter(alive)
        .collect();
    assert_eq!(alive.len(), 1, "{alive:?}");
    alive.into_iter().next().unwrap()
}

#[test]
fn targets_and_sources_stay_inside_whatever_links_there_are() {
    let bench = Bench::new();
    let canary = bench.path("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "").unwrap();
    let canary = canary.to_str().unwrap().to_owned();
    // A mount point below a directory that the command tries to replace: the canary's empty file and directory stay.
    let lines = format!(
        "RUN --mount=type=tmpfs,target=/a/b rm -rf /a; ln -s {canary} /a; ls -ld /a/b > /seen; true\n\
         RUN ln -s {canary} /away; ln -s / /rootdir; ln -s /proc /kernel\n\
         RUN --mount=type=tmpfs,target=/away/new touch /away/new/x\n\
         RUN --mount=from=0,source=/,target=/self true; true\n"
    );
    let said = refused(&bench, &lines, &[]);
    assert!(said.contains("cannot copy from itself"), "{said}");
    let lines = lines.lines().take(3).collect::<Vec<_>>().join("\n");
    let base = &bench.base;
    built(&bench, &lines, &[]);
    assert!(bench.path("canary/file").is_file() && !bench.path("canary/new").exists());
    let said = refused(
        &bench,
        "RUN ln -s /proc /kernel\nRUN --mount=type=tmpfs,target=/kernel/self true\n",
        &[],
    );
    assert!(
        said.contains("nothing can be mounted at /kernel/self"),
        "{said}"
    );
    let breakout = format!(
        "RUN ln -s / /rootdir; ln -s ../../../../.. /up\nFROM {base}\n\
         RUN --mount=type=bind,from=0,source=/rootdir,target=/in,rw touch /in/BIND_BREAKOUT; ls /in\n\
         RUN --mount=type=bind,from=0,source=/up,target=/in,rw touch /in/BIND_BREAKOUT; ls /in\n"
    );
    built(&bench, &breakout, &[]);
    assert!(!std::path::Path::new("/BIND_BREAKOUT").exists());
}

#[test]
fn nested_targets_lie_in_each_other_whatever_their_order() {
    let bench = Bench::new();
    let lines = "RUN --mount=type=tmpfs,target=/a/b/c --mount=type=tmpfs,target=/a --mount=target=/a/b/d/e \
        set -e; touch /a/b/c/x /a/y; cat /a/b/d/e/data\n";
    assert!(exported(&bench, lines, &[]).is_empty());
    let said = refused(
        &bench,
        "RUN --mount=target=/a --mount=type=tmpfs,target=/a/missing true\n",
        &[],
    );
    assert!(said.contains("mount at /a/missing"), "{said}");
}

#[test]
fn a_heredoc_has_its_mounts_too() {
    let bench = Bench::new();
    let lines = "RUN --mount=target=/in <<A cat > /out && cat <<'B' >> /out && cat /in/data >> /out\none\nA\ntwo $HOME\nB\n\
        RUN --mount=target=/in <<EOF\n#!/bin/sh -e\ncat /out /in/data\nEOF\n";
    let said = built(&bench, lines, &[]);
    for text in ["one", "two $HOME", "data"] {
        assert!(
            said.lines().any(|line| line.trim_end().ends_with(text)),
            "{text}: {said}"
        );
    }
}

#[test]
fn what_a_stage_does_to_its_files_is_not_seen_by_who_has_mounted_them() {
    let bench = Bench::new();
    let base = bench.base.clone();
    let lines = format!(
        "RUN mkdir /d && echo inside > /d/f\n\
         FROM {base} AS empty\n\
         FROM first AS flips\n\
         RUN i=0; while test $i -lt 300; do mv /d /e && ln -s /etc /d && rm /d && echo $i > /e/f && mv /e /d; i=$((i+1)); done\n\
         FROM empty AS looks\n\
         RUN --mount=type=bind,from=first,source=/d,target=/m --mount=type=bind,from=first,target=/all,rw \
         i=0; while test $i -lt 300; do test \"$(cat /m/f)\" = inside || exit 1; rm -r /all/d; ln -s /etc /all/d; i=$((i+1)); \
         rm /all/d; mkdir /all/d; done; touch /looked\n\
         FROM empty\n\
         COPY --from=flips /d/f /flipped\n\
         COPY --from=looks /looked /looked\n\
         COPY --from=first /d/f /first\n\
         RUN cat /flipped /first | rev\n"
    );
    let text = format!("FROM {base} AS first\n{lines}");
    bench.scratch.write("context/Dockerfile", text);
    let ended = build(&bench, &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("992"), "{}", ended.stderr);
    assert!(ended.stderr.contains("edisni"), "{}", ended.stderr);
}
