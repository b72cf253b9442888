//! What `--from` means: a stage by number or name, a named context, an image.

use std::collections::BTreeMap;

use super::types::{BaseKey, PlanOptions};
use super::{mount, named};
use crate::ast::{Body, Instruction};
use crate::diagnostic::{Diagnostic, Span};
use crate::suggest::did_you_mean;

/// The base that is none.
pub(super) const SCRATCH: &str = "scratch";

/// Where files are taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Context,
    Stage(usize),
    Image(BaseKey),
    /// A named context.
    Named(String),
    /// Nowhere: `scratch`, or a named context that stands for it.
    Nothing,
}

/// What `from` may name.
pub(super) struct Known<'a> {
    pub(super) options: &'a PlanOptions,
    pub(super) names: &'a BTreeMap<String, usize>,
    pub(super) n_stages: usize,
    /// The stage that copies.
    pub(super) current: usize,
}

/// Returns where `instruction` copies from, `None` when it does not copy.
pub(super) fn origin(
    instruction: &Instruction,
    known: &Known<'_>,
) -> Result<Option<Origin>, Diagnostic> {
    if !matches!(instruction.body, Body::Copy(_)) {
        return Ok(matches!(instruction.body, Body::Add(_)).then_some(Origin::Context));
    }
    let Some(flag) = instruction.flag("from") else {
        return Ok(Some(Origin::Context));
    };
    let name = flag.value.as_deref().unwrap_or_default();
    match named_origin(name, flag.span, known)? {
        Origin::Nothing => Err(Diagnostic::error(
            flag.span,
            format!("there is nothing to copy in {name}"),
        )),
        origin => Ok(Some(origin)),
    }
}

/// Returns everything that `instruction` takes files from but the context, and where it says so.
pub(super) fn origins(
    instruction: &Instruction,
    known: &Known<'_>,
) -> Result<Vec<(Origin, Span)>, Diagnostic> {
    let mut origins = Vec::new();
    for (name, span) in mount::froms(instruction)? {
        origins.push((named_origin(&name, span, known)?, span));
    }
    if let Some(origin) = origin(instruction, known)? {
        let span = instruction.flag("from").map(|flag| flag.span);
        origins.push((origin, span.unwrap_or(instruction.keyword)));
    }
    origins.retain(|(origin, _)| *origin != Origin::Context);
    Ok(origins)
}

/// Tells whether `instruction` takes files from a stage that comes later.
pub(super) fn is_later(instruction: &Instruction, known: &Known<'_>) -> bool {
    let flag = instruction.flag("from").and_then(|flag| flag.value.clone());
    let mounts = mount::froms(instruction).unwrap_or_default().into_iter();
    flag.into_iter()
        .chain(mounts.map(|(name, _)| name))
        .any(|name| {
            let index = name.parse::<usize>().ok();
            let index = index.or_else(|| known.names.get(&name.to_ascii_lowercase()).copied());
            index.is_some_and(|index| index > known.current && index < known.n_stages)
        })
}

/// Returns what `name` means where files are to be taken from it; `span` is where it stands.
pub(super) fn named_origin(
    name: &str,
    span: Span,
    known: &Known<'_>,
) -> Result<Origin, Diagnostic> {
    let error = |message: String| Diagnostic::error(span, message);
    if name.is_empty() {
        return Ok(Origin::Context);
    }
    if name.contains('$') {
        return Err(error("from cannot hold variables".to_owned())
            .with_hint("name a stage after it: FROM ${IMAGE} AS name, and copy from that"));
    }
    let index = match name.parse::<i64>() {
        Ok(number) => match usize::try_from(number) {
            Ok(index) if index < known.n_stages => Some(index),
            _ => {
                let message = format!("there is no stage number {number}");
                return Err(error(message).with_hint("stages are counted from 0"));
            }
        },
        Err(_) => known.names.get(&name.to_ascii_lowercase()).copied(),
    };
    match index {
        Some(index) if index == known.current => {
            Err(error("a stage cannot copy from itself".to_owned()))
        }
        Some(index) if index > known.current => Err(error(format!(
            "stage {name:?} is defined after the stage that copies from it"
        ))
        .with_hint("move the FROM of that stage up")),
        Some(index) => Ok(Origin::Stage(index)),
        None if name == SCRATCH => Ok(Origin::Nothing),
        None => {
            if let Some(origin) = named::origin(known.options, name) {
                return Ok(origin);
            }
            let reference = name.parse().map_err(|reason| {
                let names = known.names.keys().map(String::as_str);
                error(format!(
                    "{name:?} is neither a stage nor an image: {reason}"
                ))
                .with_hint_if(did_you_mean(name, names))
            })?;
            Ok(Origin::Image(BaseKey {
                reference,
                platform: known.options.platform.clone(),
                layout: None,
            }))
        }
    }
}
