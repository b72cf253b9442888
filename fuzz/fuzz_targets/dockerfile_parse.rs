//! Any text is parsed and planned, or refused with words about a place in it; the same every time.

#![no_main]

use std::collections::BTreeMap;

use dockerfile::{Base, NamedContext, PlanOptions, PlanOutcome, Scope};
use libfuzzer_sys::fuzz_target;

/// Rounds of resolving bases: triggers can ask for more, but not for ever.
const MAX_ROUNDS: usize = 16;

fuzz_target!(|data: &[u8]| {
    let (file, findings) = dockerfile::parse(data);
    assert_eq!(
        (&file, &findings),
        (&dockerfile::parse(data).0, &dockerfile::parse(data).1)
    );
    let text = String::from_utf8_lossy(data);
    for finding in &findings {
        dockerfile::render(finding, &text, "Dockerfile");
    }
    if findings.iter().any(dockerfile::Diagnostic::is_error) {
        return;
    }
    let platform: oci::Platform = "linux/amd64".parse().expect("a platform");
    let context = |name: &str, context| (name.to_owned(), context);
    let options = PlanOptions {
        scope: Scope::All,
        contexts: BTreeMap::from([
            context("files", NamedContext::Files),
            context("packed", NamedContext::Layout),
            context("nothing", NamedContext::Scratch),
        ]),
        ..PlanOptions::new(platform)
    };
    let settings = dockerfile::lint::Settings::of(&file, &options.build_args);
    for finding in dockerfile::lint::check(&file) {
        dockerfile::render(&finding, &text, "Dockerfile");
        if let Ok((settings, _)) = &settings {
            settings.keeps(&file, &finding);
        }
    }
    dockerfile::outline::targets(&file);
    let graph = match dockerfile::stages(&file, &options) {
        Ok(graph) => graph,
        Err(findings) => {
            return findings
                .iter()
                .for_each(|finding| drop(dockerfile::render(finding, &text, "Dockerfile")));
        }
    };
    let mut bases = BTreeMap::new();
    for need in &graph.needs {
        let config = oci::ImageConfig::scratch(&need.key.platform);
        bases.insert(
            need.key.clone(),
            Base {
                pinned: need.key.reference.clone(),
                config,
            },
        );
    }
    for _ in 0..MAX_ROUNDS {
        match dockerfile::plan(&file, &graph, &options, &bases) {
            Ok(PlanOutcome::Ready(plan)) => {
                dockerfile::outline::outline(&file, &graph, &plan);
                for finding in &plan.warnings {
                    dockerfile::render(finding, &text, "Dockerfile");
                }
                return;
            }
            Ok(PlanOutcome::NeedsBases(needs)) => {
                let n_before = bases.len();
                for need in needs {
                    let config = oci::ImageConfig::scratch(&need.key.platform);
                    bases.insert(
                        need.key.clone(),
                        Base {
                            pinned: need.key.reference.clone(),
                            config,
                        },
                    );
                }
                assert!(bases.len() > n_before, "asks again for what it was given");
            }
            Err(findings) => {
                return findings
                    .iter()
                    .for_each(|finding| drop(dockerfile::render(finding, &text, "Dockerfile")));
            }
        }
    }
});
