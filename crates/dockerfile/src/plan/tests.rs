use std::time::Instant;

use oci::{ImageConfig, Platform};
use proptest::prelude::*;

use super::*;

fn options() -> PlanOptions {
    PlanOptions::new(Platform::linux_amd64())
}

/// Plans `text`; every base is an empty image with `triggers`.
fn planned(text: &str, triggers: &[String]) -> Result<Plan, Vec<Diagnostic>> {
    let (file, found) = crate::parse(text.as_bytes());
    let errors: Vec<_> = found.into_iter().filter(Diagnostic::is_error).collect();
    if !errors.is_empty() {
        return Err(errors);
    }
    let options = options();
    let graph = stages(&file, &options)?;
    let mut bases = BTreeMap::new();
    loop {
        match plan(&file, &graph, &options, &bases)? {
            PlanOutcome::Ready(plan) => return Ok(plan),
            PlanOutcome::NeedsBases(needs) => {
                assert!(!needs.is_empty());
                for need in needs {
                    let mut config = ImageConfig::scratch(&need.key.platform);
                    if need.kind == NeedKind::From {
                        config.config.on_build = triggers.to_vec();
                    }
                    let pinned = need.key.reference.clone();
                    assert!(bases.insert(need.key, Base { pinned, config }).is_none());
                }
            }
        }
    }
}

/// Joins what `line` gives for 0 to `count`.
fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(line).collect::<Vec<_>>().concat()
}

fn first_error(text: &str) -> String {
    planned(text, &[]).unwrap_err().remove(0).to_string()
}

#[test]
fn bases_of_triggers_are_asked_for_before_there_is_a_plan() {
    let (file, _) = crate::parse(b"FROM unused AS u\nFROM a AS x\nFROM x\nCOPY --from=b / /\n");
    let options = options();
    let graph = stages(&file, &options).unwrap();
    let names = |needs: &[BaseNeed]| -> Vec<String> {
        needs
            .iter()
            .map(|need| need.key.reference.familiar())
            .collect()
    };
    assert_eq!(names(&graph.needs), ["a", "b"]);
    let mut bases = BTreeMap::new();
    for need in &graph.needs {
        let mut config = ImageConfig::scratch(&need.key.platform);
        config.config.on_build = vec![
            "COPY --from=tools / /".to_owned(),
            "COPY --from=u / /".to_owned(),
        ];
        let pinned = need.key.reference.clone();
        bases.insert(need.key.clone(), Base { pinned, config });
    }
    // The image that files are copied from has triggers too, and they are none of our business.
    let PlanOutcome::NeedsBases(needs) = plan(&file, &graph, &options, &bases).unwrap() else {
        panic!("planned without its bases");
    };
    assert_eq!(names(&needs), ["unused", "tools"]);
}

#[test]
fn an_image_that_was_perhaps_meant_to_be_a_stage_comes_with_a_hint() {
    let (file, _) = crate::parse(b"FROM a AS builder\nFROM bulider\nCOPY --from=nginx / /\n");
    let graph = stages(&file, &options()).unwrap();
    let hints: Vec<_> = graph
        .needs
        .iter()
        .map(|need| need.hint.as_deref())
        .collect();
    assert_eq!(hints, [Some("did you mean builder?"), None]);
}

#[test]
fn environments_are_shared_until_they_change() {
    let plan = planned("FROM a\nRUN 1\nRUN 2\nENV A=1\nRUN 3\n", &[]).unwrap();
    let steps = &plan.stages[0].steps;
    assert!(std::sync::Arc::ptr_eq(&steps[0].env, &steps[1].env));
    assert_eq!(steps[1].env.len(), 1);
    assert_eq!(steps[2].env.len(), 2);
}

#[test]
fn steps_are_labelled_as_buildkit_labels_them() {
    let text = "FROM a AS x\n".to_owned() + &"RUN y\n".repeat(9);
    let plan = planned(&(text + "FROM x\nRUN z\n"), &[]).unwrap();
    let label = |stage: usize, step: usize| {
        let stage = &plan.stages[stage];
        stage.label(stage.steps[step].number)
    };
    assert_eq!(label(0, 0), "[x  2/10]");
    assert_eq!(label(0, 8), "[x 10/10]");
    assert_eq!(label(1, 0), "[stage-1 1/1]");
}

/// D-06.
#[test]
fn growing_variables_are_refused() {
    let doubling = "FROM a\nENV A=xxxxxxxxxxxxxxxx\n".to_owned() + &"ENV A=$A$A\n".repeat(40);
    assert_eq!(
        first_error(&doubling),
        format!(
            "line 16: the value is longer than {} bytes",
            crate::limits::VALUE_MAX_BYTES
        )
    );
    let value = "x".repeat(60_000);
    let many = lines(30, |n| format!("ENV A{n}={value}\n"));
    assert!(first_error(&format!("FROM a\n{many}")).contains("bytes"));
    let globals = lines(18, |n| format!("ARG A{}=$A{n}$A{n}\n", n + 1));
    assert!(first_error(&format!("ARG A0={value}\n{globals}FROM a\n")).contains("value is longer"));
}

/// D-05.
#[test]
fn configurations_and_plans_have_a_largest_size() {
    let started = Instant::now();
    let label = format!("LABEL a={}\n", "x".repeat(60_000));
    assert!(first_error(&format!("FROM a\n{}", label.repeat(17))).contains("configuration"));
    let names = lines(9_000, |n| format!("ENV A{n}=1\nEXPOSE {n}\nVOLUME /{n}\n"));
    let few = names
        .split_inclusive('\n')
        .take(9_900)
        .collect::<Vec<_>>()
        .concat();
    assert!(planned(&format!("FROM a\n{few}"), &[]).is_ok());
    let value = "x".repeat(60_000);
    let pairs = lines(8, |n| format!("ENV A{n}={value}\n"));
    let text = format!("FROM a\n{pairs}{}", "ARG X=1\nRUN x\n".repeat(1_000));
    assert!(
        first_error(&text).contains("steps of this Dockerfile"),
        "{}",
        first_error(&text)
    );
    assert!(
        first_error("FROM a\nEXPOSE 1-65535 1-65535/udp 1-65535/sctp 1-65535\n")
            .contains("more than")
    );
    assert!(
        started.elapsed().as_secs() < 60,
        "took {:?}",
        started.elapsed()
    );
}

/// D-05: rules cost no more than the rest.
#[test]
fn broken_rules_are_told_up_to_a_limit() {
    let started = Instant::now();
    let names = lines(4_000, |n| format!("ENV NAME_{n}=1\nARG OTHER_{n}\n"));
    let text = format!("FROM a\n{names}EXPOSE{}\n", " 1:80/TCP".repeat(5_000));
    let asks = format!("LABEL a=\"{}\"\n", lines(5_000, |n| format!("$N_{n}")));
    let plan = planned(&format!("{text}{}", asks.repeat(8)), &[]).unwrap();
    let n_rules = plan
        .warnings
        .iter()
        .filter(|one| one.rule.is_some())
        .count();
    assert_eq!(n_rules, crate::limits::LINTS_MAX);
    let froms = format!("FROM a:{}\n", lines(4_000, |n| format!("${{N_{n}}}"))).repeat(12);
    let globals = lines(8_000, |n| format!("ARG N{n}=1\n"));
    assert!(planned(&format!("{globals}{froms}FROM a\n"), &[]).is_err());
    assert!(
        started.elapsed().as_secs() < 60,
        "took {:?}",
        started.elapsed()
    );
}

/// D-07.
#[test]
fn triggers_are_limited() {
    let triggers = |n: usize| vec!["RUN x".to_owned(); n];
    assert!(planned("FROM a\n", &triggers(crate::limits::TRIGGERS_MAX)).is_ok());
    let error = planned("FROM a\n", &triggers(1000)).unwrap_err().remove(0);
    assert!(
        error.to_string().contains("more than 128 ONBUILD triggers"),
        "{error}"
    );
    let chain = lines(20, |n| match n {
        0 => "FROM base0 AS s0\n".to_owned(),
        n => format!("FROM base{n} AS s{n}\nCOPY --from=s{} a b\n", n - 1),
    });
    let error = planned(&chain, &triggers(128)).unwrap_err().remove(0);
    assert!(error.to_string().contains("in one build"), "{error}");
}

/// D-08: the image is needed under its own name only, whatever the reference looks like.
#[test]
fn only_registries_are_asked_for_bases() {
    for text in ["docker-daemon:x", "oci-layout:x", "dir:x"] {
        let plan = planned(&format!("FROM {text}\n"), &[]).unwrap();
        let BaseRef::Image(key) = &plan.stages[0].base else {
            panic!("{text}")
        };
        assert_eq!(key.reference.host(), "docker.io");
    }
    for text in [
        "docker-archive:/etc/x",
        "oci-layout:///x",
        "file:///x",
        "../x",
        "/x",
        "-x",
    ] {
        assert!(planned(&format!("FROM {text}\n"), &[]).is_err(), "{text}");
    }
}

#[test]
fn every_error_has_a_place() {
    for text in [
        "FROM a\nUSER 0x0\n",
        "FROM a\nCOPY --chmod=x a b\n",
        "FROM a\nENV A=${B?}\nEXPOSE x\n",
    ] {
        for error in planned(text, &[]).unwrap_err() {
            assert!(error.span.line > 1, "{error:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_dockerfile_makes_planning_panic(
        lines in prop::collection::vec(
            "(FROM a AS [ab]|FROM [ab$]{1,2}|RUN|COPY( --from=[0-2ab])?|ADD|ENV|ARG|LABEL|WORKDIR|USER|EXPOSE|VOLUME|CMD|STOPSIGNAL|SHELL|ENTRYPOINT|ONBUILD RUN|HEALTHCHECK CMD) [$a-c{}:=/.0-9\"\\[\\], -]{0,16}",
            0..10,
        ),
        trigger in "(RUN|COPY( --from=[a0])?|ENV|USER) [$a-c=/ ]{0,8}",
    ) {
        let text = format!("FROM a AS a\n{}\n", lines.join("\n"));
        let _ = planned(&text, &[trigger]);
    }
}
