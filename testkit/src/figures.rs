//! What tests measure, held against what it has to be: a row for each figure, printed, and kept for the table at the end of a soak.
//!
//! What is a matter of right or wrong has to hold always; what is a matter of time only in a soak, which has the machine for itself. Names are
//! those of docs/operations.md. The file that `$KILN_SOAK_FIGURES` names gets each row as `name<TAB>what<TAB>value<TAB>goal<TAB>verdict`.

use std::io::Write as _;
use std::path::PathBuf;

use crate::faults::soak_time;

/// What a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Goal {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::AtLeast(least) => write!(f, "≥ {least}"),
        }
    }
}

/// The rows of one figure.
#[derive(Debug)]
pub struct Figures {
    name: &'static str,
    missed: Vec<String>,
}

impl Figures {
    /// Begins those of a name, as `F1`.
    #[must_use]
    pub fn of(name: &'static str) -> Self {
        let missed = Vec::new();
        Self { name, missed }
    }

    /// Notes what has to hold always.
    pub fn must(&mut self, what: &str, value: f64, goal: Goal) {
        self.row(what, value, Some(goal));
    }

    /// Notes what has to hold in a soak, and is only told in an ordinary run.
    pub fn soak(&mut self, what: &str, value: f64, goal: Goal) {
        self.row(what, value, soak_time().map(|_| goal));
    }

    /// Notes what only says how much was done.
    pub fn told(&mut self, what: &str, value: f64) {
        self.row(what, value, None);
    }

    /// Panics with all that was missed.
    ///
    /// # Panics
    /// When anything was.
    pub fn hold(self) {
        assert!(self.missed.is_empty(), "missed: {}", self.missed.join("; "));
    }

    #[expect(clippy::print_stdout, reason = "what it is for")]
    fn row(&mut self, what: &str, value: f64, goal: Option<Goal>) {
        // Counts are whole.
        let value_text = if value.fract() == 0.0 {
            format!("{value}")
        } else {
            format!("{value:.2}")
        };
        let (goal_text, verdict) = match goal {
            None => (String::new(), ""),
            Some(goal) if goal.is_met_by(value) => (goal.to_string(), "ok"),
            Some(goal) => (goal.to_string(), "MISSED"),
        };
        println!("{} {what}: {value_text} {goal_text} {verdict}", self.name);
        if verdict == "MISSED" {
            self.missed.push(format!(
                "{} {what} is {value_text} and not {goal_text}",
                self.name
            ));
        }
        keep([self.name, what, &value_text, &goal_text, verdict]);
    }
}

/// Adds a row to the table of this soak, if there is one.
pub(crate) fn keep(row: [&str; 5]) {
    let Some(path) = std::env::var_os("KILN_SOAK_FIGURES").map(PathBuf::from) else {
        return;
    };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path);
    let line = format!("{}\n", row.join("\t"));
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .unwrap_or_else(|error| panic!("write to {}: {error}", path.display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_on_its_side_only() {
        assert!(Goal::AtMost(2.0).is_met_by(2.0) && !Goal::AtMost(2.0).is_met_by(2.01));
        assert!(Goal::AtLeast(50.0).is_met_by(50.0) && !Goal::AtLeast(50.0).is_met_by(49.9));
    }

    #[test]
    #[should_panic(expected = "F0 lost is 1 and not ≤ 0")]
    fn what_is_missed_is_a_panic_in_the_end() {
        let mut figures = Figures::of("F0");
        figures.must("lost", 1.0, Goal::AtMost(0.0));
        figures.told("done", 7.5);
        figures.hold();
    }
}
