//! What is told of a build in the words of `kiln.v1`: made of its record, its state and the summary of its journal. Pure.
//!
//! The command line tells its own builds in the same words, so that a build looks the same wherever it was carried out.

use api::kiln::v1 as wire;
use engine::event::{FailureKind, Phase};
use engine::spec::{Purpose, Record};
use engine::state::BuildState;
use engine::summary::{StepStatus, StepSummary, Summary};

use super::convert::message;
use crate::builds::list::{Reason, Standing};

/// Returns a build.
pub fn build(record: &Record, state: &BuildState, ended_at_ms: Option<u64>) -> wire::Build {
    let image = match state {
        BuildState::Succeeded { image } => Some(image),
        _ => None,
    };
    wire::Build {
        build_id: record.id.to_string(),
        phase: phase(Standing::of(state)).into(),
        r#ref: record.reference.clone(),
        base_ref: record.base_reference.clone(),
        started_at_ms: ms(record.started_at_ms),
        digest: image.map(|i| i.digest.to_string()).unwrap_or_default(),
        message: message(state),
        ended_at_ms: ms(ended_at_ms.unwrap_or_default()),
        failure: failure(state),
        triggered_by: record.triggered_by.clone(),
        caller: record.caller.clone(),
        request_labels: record.labels.clone().into_iter().collect(),
        purpose: purpose(record.purpose).into(),
        n_run: image.map(|image| image.n_run).unwrap_or_default(),
        n_cached: image.map(|image| image.n_cached).unwrap_or_default(),
        builds_ahead: match state {
            BuildState::Queued { ahead } => *ahead,
            _ => None,
        },
    }
}

fn failure(state: &BuildState) -> Option<wire::BuildFailure> {
    let reason = Reason::of(state)?;
    let failed = match state {
        BuildState::Failed { failure } => Some(failure),
        _ => None,
    };
    let step = failed.and_then(|failure| failure.step);
    Some(wire::BuildFailure {
        reason: wire_reason(reason).into(),
        message: message(state),
        step: step.map(|step| step.0).unwrap_or_default(),
        exit_code: failed.and_then(|failure| failure.exit_code),
        is_users: failed.is_some_and(|failure| failure.kind.is_users()),
    })
}

/// Returns what the journal of a build tells.
pub fn detail(summary: &Summary) -> wire::BuildDetail {
    let entered = |(phase, at_ms): &(Phase, u64)| {
        let state = BuildState::Active { phase: *phase };
        wire::EnteredPhase {
            phase: self::phase(Standing::of(&state)).into(),
            at_ms: ms(*at_ms),
        }
    };
    let bases = summary
        .bases
        .iter()
        .map(|(reference, digest)| wire::PinnedBase {
            reference: reference.clone(),
            digest: digest.to_string(),
        });
    wire::BuildDetail {
        phases: summary.phases.iter().map(entered).collect(),
        steps: summary.steps.iter().map(step).collect(),
        bases: bases.collect(),
        commit: summary.commit.clone().unwrap_or_default(),
        warnings: summary.warnings.clone(),
        journal_bytes: summary.journal_bytes,
        // Only a server has it.
        request: None,
    }
}

fn step(step: &StepSummary) -> wire::BuildStep {
    let layer = |(digest, size, uncompressed): &(oci::Digest, u64, u64)| wire::StepLayer {
        digest: digest.to_string(),
        size_bytes: *size,
        uncompressed_bytes: *uncompressed,
    };
    let status = match step.status {
        StepStatus::Started => wire::StepStatus::Started,
        StepStatus::Cached => wire::StepStatus::Cached,
        StepStatus::Done => wire::StepStatus::Done,
        StepStatus::Failed => wire::StepStatus::Failed,
    };
    wire::BuildStep {
        step: step.step.0,
        name: step.name.clone(),
        status: status.into(),
        reason: step.reason.clone().unwrap_or_default(),
        started_at_ms: ms(step.started_at_ms),
        duration_ms: step.duration_ms,
        error: step.error.clone().unwrap_or_default(),
        layer: step.layer.as_ref().map(layer),
        dropped_bytes: step.dropped_bytes,
    }
}

fn phase(standing: Standing) -> wire::BuildPhase {
    match standing {
        Standing::Queued => wire::BuildPhase::Queued,
        Standing::Resolving => wire::BuildPhase::Resolving,
        Standing::Planning => wire::BuildPhase::Planning,
        Standing::Running => wire::BuildPhase::Running,
        Standing::Pushing => wire::BuildPhase::Pushing,
        Standing::Succeeded => wire::BuildPhase::Succeeded,
        Standing::Failed => wire::BuildPhase::Failed,
        Standing::Cancelled => wire::BuildPhase::Cancelled,
    }
}

/// Returns where a build of this phase stands; `None` for one that is not known here.
pub fn standing(phase: wire::BuildPhase) -> Option<Standing> {
    Some(match phase {
        wire::BuildPhase::Unspecified => return None,
        wire::BuildPhase::Queued => Standing::Queued,
        wire::BuildPhase::Resolving => Standing::Resolving,
        wire::BuildPhase::Planning => Standing::Planning,
        wire::BuildPhase::Running => Standing::Running,
        wire::BuildPhase::Pushing => Standing::Pushing,
        wire::BuildPhase::Succeeded => Standing::Succeeded,
        wire::BuildPhase::Failed => Standing::Failed,
        wire::BuildPhase::Cancelled => Standing::Cancelled,
    })
}

/// Returns a reason in the wire's words.
pub fn wire_reason(reason: Reason) -> wire::FailureReason {
    match reason {
        Reason::Cancelled => wire::FailureReason::Cancelled,
        Reason::Failed(kind) => match kind {
            FailureKind::Dockerfile => wire::FailureReason::Dockerfile,
            FailureKind::Source => wire::FailureReason::Source,
            FailureKind::BaseImageMissing => wire::FailureReason::BaseImageMissing,
            FailureKind::BaseImage => wire::FailureReason::BaseImage,
            FailureKind::Credentials => wire::FailureReason::Credentials,
            FailureKind::Registry => wire::FailureReason::Registry,
            FailureKind::OutOfMemory => wire::FailureReason::OutOfMemory,
            FailureKind::OutOfDisk => wire::FailureReason::OutOfDisk,
            FailureKind::Timeout => wire::FailureReason::Timeout,
            FailureKind::WorkerLost => wire::FailureReason::WorkerLost,
            FailureKind::Platform => wire::FailureReason::Platform,
        },
    }
}

/// Returns a reason of the wire in our words; `None` for one that is not known here.
pub fn reason(reason: wire::FailureReason) -> Option<Reason> {
    let all = FailureKind::ALL.into_iter().map(Reason::Failed);
    let mut all = all.chain([Reason::Cancelled]);
    all.find(|known| wire_reason(*known) == reason)
}

fn purpose(purpose: Purpose) -> wire::BuildPurpose {
    match purpose {
        Purpose::Image => wire::BuildPurpose::Image,
        Purpose::Subassembly => wire::BuildPurpose::Subassembly,
        Purpose::Named => wire::BuildPurpose::Named,
    }
}

pub(super) fn ms(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_phase_has_a_word_of_its_own() {
        for kind in FailureKind::ALL {
            let known = Reason::Failed(kind);
            let told = wire_reason(known);
            assert_eq!(reason(told), Some(known));
            assert_eq!(
                told.as_str_name(),
                format!("FAILURE_REASON_{}", kind.word().to_uppercase())
            );
        }
        assert_eq!(reason(wire::FailureReason::Unspecified), None);
        for number in 1..=8 {
            let told = wire::BuildPhase::try_from(number).unwrap();
            assert_eq!(standing(told).map(phase), Some(told));
        }
        assert_eq!(standing(wire::BuildPhase::Unspecified), None);
    }
}
