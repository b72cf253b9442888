//! What was measured, as a table for people and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::peer::{Peer, Timed};

/// Whom the goals are to.
const REFERENCE: &str = "buildkit";
const OURS: &str = "kiln";

/// Everything that was measured in one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: String,
    builders: Vec<String>,
    rows: Vec<Row>,
    /// What is measured of nobody else.
    told: Vec<String>,
    #[serde(skip)]
    names: Vec<&'static str>,
}

/// One workload.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    id: &'static str,
    what: &'static str,
    /// Highest ratio to the reference that is aimed at.
    goal: f64,
    cells: Vec<Cell>,
}

/// One builder's part of a row.
#[derive(Debug, Serialize)]
struct Cell {
    builder: &'static str,
    seconds: Vec<f64>,
    cpu_seconds: Vec<f64>,
    peak_bytes: u64,
    image_bytes: u64,
}

impl Row {
    pub(crate) fn new(id: &'static str, what: &'static str, goal: f64) -> Self {
        Self {
            id,
            what,
            goal,
            cells: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, builder: &'static str, timed: Timed) {
        let cell = self.cells.iter_mut().find(|cell| cell.builder == builder);
        if let Some(cell) = cell {
            cell.seconds.push(timed.seconds);
            cell.cpu_seconds.push(timed.cpu_seconds);
            cell.peak_bytes = cell.peak_bytes.max(timed.peak_bytes);
            cell.image_bytes = timed.image_bytes;
            return;
        }
        self.cells.push(Cell {
            builder,
            seconds: vec![timed.seconds],
            cpu_seconds: vec![timed.cpu_seconds],
            peak_bytes: timed.peak_bytes,
            image_bytes: timed.image_bytes,
        });
    }

    fn cell(&self, builder: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.builder == builder)
    }

    /// Returns how long we take, to how long `builder` does.
    fn ratio(&self, builder: &str) -> Option<f64> {
        Some(self.cell(OURS)?.median() / self.cell(builder)?.median())
    }
}

impl Cell {
    fn median(&self) -> f64 {
        median(&self.seconds)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Report {
    pub(crate) fn new(machine: String, peers: &[Peer]) -> Self {
        Self {
            machine,
            builders: peers.iter().map(Peer::version).collect(),
            rows: Vec::new(),
            told: Vec::new(),
            names: peers.iter().map(Peer::name).collect(),
        }
    }

    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn tell(&mut self, line: String) {
        self.told.push(line);
    }

    /// Prints the table.
    #[expect(clippy::print_stdout, reason = "it is the output of the program")]
    pub(crate) fn print(&self) {
        println!("{}", self.markdown());
    }

    /// Writes `bench.json` and `bench.md`.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        fs::write(folder.join("bench.md"), self.markdown())?;
        fs::write(
            folder.join("bench.json"),
            serde_json::to_string_pretty(self)?,
        )?;
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut out = format!("{}; {}\n\n", self.machine, self.builders.join("; "));
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a text cannot fail.
            let _infallible = writeln!(out, "{text}");
        };
        let heads = self.each(|name| format!(" {name}, s | CPU s | MB | MiB |"));
        let ratios = self.each_other(|name| format!(" {OURS} : {name} |"));
        line(format_args!("| | what |{heads}{ratios} goal |"));
        line(format_args!(
            "|---|---|{}{}---|",
            self.each(|_| "---|---|---|---|".to_owned()),
            self.each_other(|_| "---|".to_owned())
        ));
        for row in &self.rows {
            let cells = self.each(|name| cell_text(row.cell(name)));
            let ratios = self.each_other(|name| match row.ratio(name) {
                Some(ratio) => format!(" {ratio:.2} |"),
                None => " – |".to_owned(),
            });
            line(format_args!(
                "| {} | {} |{cells}{ratios} ≤ {:.2} |",
                row.id, row.what, row.goal
            ));
        }
        line(format_args!(
            "\nSeconds are medians; CPU s is the processor time of all processes of the builder; MB are the layers that were made, compressed; MiB the most memory of all processes of the builder at once; {OURS} : another is the ratio of their seconds, and the goal is that to {REFERENCE}."
        ));
        for told in &self.told {
            line(format_args!("\n{told}"));
        }
        out
    }

    /// Returns a text for each builder, one after another.
    fn each(&self, text: impl Fn(&str) -> String) -> String {
        self.names.iter().map(|name| text(name)).collect()
    }

    /// Returns a text for each builder that we are compared to, one after another.
    fn each_other(&self, text: impl Fn(&str) -> String) -> String {
        let others = self.names.iter().filter(|name| **name != OURS);
        others.map(|name| text(name)).collect()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sizes are shown with three digits"
)]
fn cell_text(cell: Option<&Cell>) -> String {
    match cell {
        Some(cell) => format!(
            " {:.2} | {:.2} | {:.1} | {:.0} |",
            cell.median(),
            median(&cell.cpu_seconds),
            cell.image_bytes as f64 / 1e6,
            cell.peak_bytes as f64 / f64::from(1 << 20)
        ),
        None => " – | – | – | – |".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(seconds: f64) -> Timed {
        Timed {
            seconds,
            cpu_seconds: 0.0,
            peak_bytes: 0,
            image_bytes: 0,
        }
    }

    #[test]
    fn every_builder_has_a_ratio_of_its_own() {
        let mut row = Row::new("W1", "something", 0.4);
        row.add("kiln", took(1.0));
        row.add("buildkit", took(4.0));
        row.add("docker", took(2.0));
        let report = Report {
            machine: "a machine".to_owned(),
            builders: Vec::new(),
            rows: vec![row],
            told: Vec::new(),
            names: vec!["kiln", "buildkit", "buildah", "docker"],
        };
        let text = report.markdown();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert!(
            lines[0].ends_with("| kiln : buildkit | kiln : buildah | kiln : docker | goal |"),
            "{text}"
        );
        assert!(lines[2].ends_with("| 0.25 | – | 0.50 | ≤ 0.40 |"), "{text}");
        let n_columns = |line: &str| line.matches('|').count();
        assert!(
            lines
                .iter()
                .all(|line| n_columns(line) == n_columns(lines[0])),
            "{text}"
        );
    }
}
