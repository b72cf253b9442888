//! ONBUILD: the instructions that bases bring along, and which stages are needed because of them.

use std::collections::BTreeMap;

use super::origin::{Known, Origin, origins};
use super::types::{
    Base, BaseKey, BaseNeed, GraphBase, NeedKind, PlanOptions, Replaced, StageGraph,
};
use crate::ast::{Body, Dockerfile, Instruction};
use crate::diagnostic::{Diagnostic, Span};
use crate::limits::{TRIGGERS_MAX, TRIGGERS_TOTAL_MAX};
use crate::parse::parse_trigger;

/// What there is to be done, triggers included.
#[derive(Debug)]
pub(super) struct Work {
    /// For each stage of the Dockerfile, whether the target needs it.
    pub(super) reachable: Vec<bool>,
    /// For each stage, the instructions that come before its own.
    pub(super) triggers: Vec<Vec<Instruction>>,
    /// Names of stages.
    pub(super) names: BTreeMap<String, usize>,
}

/// The work, or what is missing to know it.
#[derive(Debug)]
pub(super) enum Collected {
    Ready(Work),
    NeedsBases(Vec<BaseNeed>),
}

/// Finds all instructions of all needed stages.
pub(super) fn collect(
    file: &Dockerfile,
    graph: &StageGraph,
    options: &PlanOptions,
    bases: &BTreeMap<BaseKey, Base>,
) -> Result<Collected, Vec<Diagnostic>> {
    let n_stages = graph.stages.len();
    let names = graph.stages.iter().enumerate();
    let names = names.filter_map(|(index, stage)| stage.name.clone().map(|name| (name, index)));
    let mut collector = Collector {
        file,
        graph,
        options,
        bases,
        missing: graph.needs.clone(),
        n_triggers: 0,
        work: Work {
            reachable: graph.stages.iter().map(|stage| stage.reachable).collect(),
            triggers: vec![Vec::new(); n_stages],
            names: names.collect(),
        },
    };
    // From the last stage back: a stage can only make earlier ones needed.
    for index in (0..n_stages).rev() {
        if collector.work.reachable.get(index) == Some(&true) {
            collector.stage(index).map_err(|error| vec![error])?;
        }
    }
    let mut missing = collector.missing;
    missing.retain(|need| !bases.contains_key(&need.key));
    missing.sort_by_key(|need| need.span.start);
    Ok(if missing.is_empty() {
        Collected::Ready(collector.work)
    } else {
        Collected::NeedsBases(missing)
    })
}

struct Collector<'a> {
    file: &'a Dockerfile,
    graph: &'a StageGraph,
    options: &'a PlanOptions,
    bases: &'a BTreeMap<BaseKey, Base>,
    missing: Vec<BaseNeed>,
    n_triggers: usize,
    work: Work,
}

impl Collector<'_> {
    fn stage(&mut self, index: usize) -> Result<(), Diagnostic> {
        let graph = self.graph;
        let Some(stage) = graph.stages.get(index) else {
            return Ok(());
        };
        let triggers = match &stage.base {
            GraphBase::Scratch | GraphBase::Files(_) => Vec::new(),
            GraphBase::Stage(parent) => {
                self.mark(*parent);
                self.triggers_of_stage(*parent)
            }
            GraphBase::Image(key) => {
                self.need(key.clone(), stage.span, NeedKind::From);
                match self.bases.get(key) {
                    Some(base) if stage.replaced == Replaced::No => {
                        triggers_of_base(base, stage.span)?
                    }
                    _ => Vec::new(),
                }
            }
        };
        self.n_triggers += triggers.len();
        if self.n_triggers > TRIGGERS_TOTAL_MAX {
            let message = format!("more than {TRIGGERS_TOTAL_MAX} ONBUILD triggers in one build");
            return Err(Diagnostic::error(stage.span, message));
        }
        let own = self.file.instructions.get(stage.instructions.clone());
        for instruction in triggers.iter().chain(own.unwrap_or_default()) {
            self.edge(index, instruction)?;
        }
        if let Some(slot) = self.work.triggers.get_mut(index) {
            *slot = triggers;
        }
        Ok(())
    }

    fn edge(&mut self, current: usize, instruction: &Instruction) -> Result<(), Diagnostic> {
        let known = Known {
            options: self.options,
            names: &self.work.names,
            n_stages: self.graph.stages.len(),
            current,
        };
        for (origin, span) in origins(instruction, &known)? {
            match origin {
                Origin::Stage(index) => self.mark(index),
                Origin::Image(key) => self.need(key, span, NeedKind::CopyFrom),
                Origin::Context | Origin::Named(_) | Origin::Nothing => {}
            }
        }
        Ok(())
    }

    fn mark(&mut self, index: usize) {
        if let Some(reachable) = self.work.reachable.get_mut(index) {
            *reachable = true;
        }
    }

    fn need(&mut self, key: BaseKey, span: Span, kind: NeedKind) {
        if !self.missing.iter().any(|need| need.key == key) {
            self.missing.push(BaseNeed {
                key,
                span,
                kind,
                hint: None,
            });
        }
    }

    fn triggers_of_stage(&self, index: usize) -> Vec<Instruction> {
        let stage = self.graph.stages.get(index);
        let range = stage.map(|stage| stage.instructions.clone());
        let instructions = range.and_then(|range| self.file.instructions.get(range));
        let inner = |instruction: &Instruction| match &instruction.body {
            Body::OnBuild(on_build) => Some(on_build.instruction.clone()),
            _ => None,
        };
        instructions
            .unwrap_or_default()
            .iter()
            .filter_map(inner)
            .collect()
    }
}

fn triggers_of_base(base: &Base, span: Span) -> Result<Vec<Instruction>, Diagnostic> {
    let texts = &base.config.config.on_build;
    if texts.len() > TRIGGERS_MAX {
        let message = format!("the base brings more than {TRIGGERS_MAX} ONBUILD triggers");
        return Err(Diagnostic::error(span, message));
    }
    let mut triggers = Vec::new();
    for text in texts {
        let trigger = parse_trigger(text, span)?;
        let refused = matches!(trigger.body, Body::From { .. });
        if refused {
            let keyword = trigger.body.keyword();
            let message =
                format!("the base brings {keyword} as an ONBUILD trigger, which is not allowed");
            return Err(Diagnostic::error(span, message));
        }
        triggers.push(trigger);
    }
    Ok(triggers)
}
