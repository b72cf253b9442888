//! What is asked of the list of builds and of logs, in our words.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use api::kiln::v1 as wire;
use engine::event::StepId;
use engine::excerpt::{Form, Selection};
use engine::spec::Purpose;

use super::short;
use crate::builds::list::{Filter, Place};
use crate::builds::log::{Names, Until, Wanted};
use crate::failure::{Blame, Failure};
use crate::grpc::told;

/// How many builds are on a page when nobody says.
const PAGE_DEFAULT: usize = 100;
/// Most builds on a page.
const PAGE_MAX: usize = 1000;
/// Most labels of a request, and the longest of them with its value.
const LABELS_MAX: usize = 64;
const LABEL_MAX_BYTES: usize = 256;

/// What is asked of the list.
#[derive(Debug)]
pub(crate) struct ListCall {
    pub(crate) filter: Filter,
    pub(crate) from: Option<Place>,
    pub(crate) size: usize,
}

fn refused(field: &str, why: &str) -> Failure {
    Failure::new(Blame::Request, format!("{field}: {why}"))
}

/// Returns what a request asks of the list.
pub(crate) fn list_call(request: wire::ListBuildsRequest) -> Result<ListCall, Failure> {
    let wire::ListBuildsRequest {
        phases,
        reasons,
        r#ref,
        triggered_by,
        request_labels,
        since_ms,
        until_ms,
        purposes,
        page_size,
        page_token,
    } = request;
    let filter = Filter {
        standings: set("phases", phases, told::standing)?,
        reasons: set("reasons", reasons, told::reason)?,
        reference: given(short("ref", r#ref)?),
        triggered_by: given(short("triggered_by", triggered_by)?),
        labels: labels(request_labels)?,
        since_ms: time("since_ms", since_ms)?,
        until_ms: Some(time("until_ms", until_ms)?).filter(|until| *until > 0),
        purposes: set("purposes", purposes, purpose)?,
    };
    let from = given(short("page_token", page_token)?);
    let from = from.map(|token| Place::parse(&token, &filter)).transpose();
    Ok(ListCall {
        from: from.map_err(|error| refused("page_token", &error.to_string()))?,
        filter,
        size: match page_size {
            0 => PAGE_DEFAULT,
            size => usize::try_from(size).unwrap_or(PAGE_MAX).min(PAGE_MAX),
        },
    })
}

/// Returns which build a request for a log means, and what of it.
pub(crate) fn log_call(request: wire::GetLogRequest) -> Result<(String, Wanted), Failure> {
    let wire::GetLogRequest {
        build_id,
        offset,
        step,
        since_ms,
        form,
        follow,
        censored,
    } = request;
    let selection = Selection {
        step: (step > 0).then_some(StepId(step)),
        since_ms: time("since_ms", since_ms)?,
        form: match wire::LogForm::try_from(form) {
            Ok(wire::LogForm::Unspecified | wire::LogForm::Text) => Form::Text,
            Ok(wire::LogForm::Raw) => Form::Raw,
            Err(_) => return Err(refused("form", "unknown")),
        },
    };
    let wanted = Wanted {
        offset,
        names: if censored {
            Names::Censored
        } else {
            Names::Shown
        },
        selection,
        until: if follow { Until::End } else { Until::Now },
    };
    Ok((build_id, wanted))
}

/// Returns the labels of a request.
pub(crate) fn labels(labels: HashMap<String, String>) -> Result<BTreeMap<String, String>, Failure> {
    const FIELD: &str = "request_labels";
    if labels.len() > LABELS_MAX {
        return Err(refused(FIELD, &format!("more than {LABELS_MAX}")));
    }
    for (name, value) in &labels {
        if name.is_empty() || name.len() + value.len() > LABEL_MAX_BYTES {
            let why =
                format!("a name is empty, or longer than {LABEL_MAX_BYTES} bytes with its value");
            return Err(refused(FIELD, &why));
        }
        if name.contains('=') || name.chars().chain(value.chars()).any(char::is_control) {
            return Err(refused(
                FIELD,
                "a name holds =, or one holds control characters",
            ));
        }
    }
    Ok(labels.into_iter().collect())
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn time(field: &str, ms: i64) -> Result<u64, Failure> {
    u64::try_from(ms).map_err(|_| refused(field, "is negative"))
}

fn purpose(purpose: wire::BuildPurpose) -> Option<Purpose> {
    match purpose {
        wire::BuildPurpose::Unspecified => None,
        wire::BuildPurpose::Image => Some(Purpose::Image),
        wire::BuildPurpose::Named => Some(Purpose::Named),
        wire::BuildPurpose::Subassembly => Some(Purpose::Subassembly),
    }
}

fn set<W: TryFrom<i32>, T: Ord>(
    field: &str,
    numbers: Vec<i32>,
    ours: impl Fn(W) -> Option<T>,
) -> Result<BTreeSet<T>, Failure> {
    let known = |number: i32| W::try_from(number).ok().and_then(&ours);
    let all = numbers
        .into_iter()
        .map(|number| known(number).ok_or_else(|| refused(field, "unknown")));
    all.collect()
}
