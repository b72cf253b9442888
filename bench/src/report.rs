//! What was measured, as a table for people and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::peer::{Peer, Timed};

/// Whom the ratios are to.
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

    fn ratio(&self) -> Option<f64> {
        Some(self.cell(OURS)?.median() / self.cell(REFERENCE)?.median())
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
        let heads: Vec<String> = self
            .names
            .iter()
            .map(|name| format!(" {name}, s | CPU s | MB | MiB |"))
            .collect();
        let heads = heads.concat();
        line(format_args!("| | what |{heads} ratio | goal |"));
        line(format_args!(
            "|---|---|{}---|---|",
            "---|---|---|---|".repeat(self.names.len())
        ));
        for row in &self.rows {
            let cells: Vec<String> = self
                .names
                .iter()
                .map(|name| cell_text(row.cell(name)))
                .collect();
            let cells = cells.concat();
            let ratio = row
                .ratio()
                .map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
            line(format_args!(
                "| {} | {} |{cells} {ratio} | ≤ {:.2} |",
                row.id, row.what, row.goal
            ));
        }
        line(format_args!(
            "\nSeconds are medians; CPU s is the processor time of all processes of the builder; MB are the layers that were made, compressed; MiB the most memory of all processes of the builder at once; ratio is {OURS} to {REFERENCE}."
        ));
        for told in &self.told {
            line(format_args!("\n{told}"));
        }
        out
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
