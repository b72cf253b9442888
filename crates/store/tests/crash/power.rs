//! What a machine that goes down may leave of the same work: at any moment, with what was not waited for there, gone or in parts.

use std::path::Path;

use store::check::{Finding, Severity};
use testkit::faults::{Victim, figure};
use testkit::power;

use super::{Loss, look_after, prepare};

/// Looks after as many states as there is time for.
pub(super) fn every_state(scratch: &Path) {
    let victim = Victim::new(&std::env::current_exe().unwrap(), &["work"]);
    let first = scratch.join("recorded");
    std::fs::create_dir(&first).unwrap();
    prepare(&first);
    let recording = power::record(&victim, &first);
    let seen = power::every_state(&recording, scratch, &|folder, when| {
        // It has come up again since.
        let boot = folder.join("store/boot");
        if boot.exists() {
            std::fs::write(&boot, "another one").unwrap();
        }
        look_after(folder, Loss::Power, when);
    });
    figure(
        "F10",
        &[
            ("store_states", seen.n_states.to_string()),
            ("moments", seen.n_moments.to_string()),
            ("pending_max", seen.n_pending_max.to_string()),
            ("seed", seen.seed.to_string()),
            ("invariant_breaks", "0".to_owned()),
            ("acknowledged_lost", "0".to_owned()),
        ],
    );
}

/// Tells whether something wrong is of what may be lost with the power, is never taken for whole, and is made again by whoever needs it.
pub(super) fn is_made_again(finding: &Finding) -> bool {
    finding.severity == Severity::Damaged
        && finding.remedy.is_some()
        && finding.subject.contains("steps/noted")
}
