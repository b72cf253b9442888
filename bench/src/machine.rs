//! What the figures were taken on.

use std::fs;
use std::process::Command;

/// Returns processor, cores, memory and kernel, in a line.
pub(crate) fn describe() -> String {
    let first = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{}, {cores} cores, {} memory, Linux {}, load at start {}",
        first("/proc/cpuinfo", "model name"),
        first("/proc/meminfo", "MemTotal"),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
    )
}

/// Returns the first line of what a program says of its version.
pub(crate) fn version(program: &std::path::Path) -> String {
    let asked = Command::new(program).arg("--version").output();
    let text = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Returns the processor time of a process and of its children that have ended; of `self`, of the children alone.
pub(crate) fn cpu_seconds(process: &str) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: state is the first field, user time the twelfth.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let n_own = if process == "self" { 2 } else { 0 };
    let ticks = fields.split_whitespace().skip(11 + n_own).take(4 - n_own);
    let ticks = ticks.filter_map(|field| field.parse::<u32>().ok());
    ticks.map(f64::from).sum::<f64>() / TICKS_PER_SECOND
}

/// Returns the processor time of a process, of everything that descends from it and runs (dockerd's containerd does), and of what has ended.
pub(crate) fn cpu_seconds_of_all(process: u32) -> f64 {
    let below: f64 = children(process).into_iter().map(cpu_seconds_of_all).sum();
    cpu_seconds(&process.to_string()) + below
}

fn children(process: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, fields)| {
            let parent = fields.split_whitespace().nth(1)?;
            parent.parse().ok()
        });
        parent == Some(process)
    })
    .collect()
}
