//! `make bench`: the same builds by kiln and by its peers, in turn, and the ratios between them.
//!
//! 1. make the base images once and push them to a plain registry, not to kiln's own, so that everybody pulls and pushes over HTTP;
//! 2. for each workload, build it with each builder in turn, round after round, each time into a fresh repository;
//! 3. check that every image is what it should be, with tools that are none of the builders;
//! 4. print medians and ratios, and write them as JSON and Markdown.
//!
//! A peer that is not found is left out, loudly. Nothing here passes or fails by its time.

#![forbid(unsafe_code)]

mod again;
mod bases;
mod check;
mod context;
mod docker;
mod filesystem;
mod machine;
mod memory;
mod peer;
mod report;
mod scale;
mod service;
mod subscribers;
mod workload;
mod workspace;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use testkit::docker_registry::DockerRegistry;

use crate::peer::Peer;
use crate::report::Report;
use crate::subscribers::Writes;
use crate::workload::{Bench, Workload};

/// What is measured, how often, and against whom.
#[derive(Debug, Parser)]
#[command(about = "Times builds of kiln and its peers")]
struct Args {
    /// Workloads (W1, W1m, W2 … W8, W4g, W9, W10, W11), or `scale` [default: all workloads]
    #[arg(value_name = "WORKLOAD")]
    workloads: Vec<String>,
    /// How often each is built by each builder
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The kiln to measure
    #[arg(long, value_name = "FILE")]
    kiln: PathBuf,
    /// Another kiln to measure beside it: what a change bought
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// How many MB the build of W11 writes
    #[arg(long, value_name = "MB", default_value_t = 100)]
    log_mb: usize,
    /// How many kB the build of W11 writes in a second
    #[arg(long, value_name = "KB", default_value_t = 500)]
    kb_per_s: usize,
    /// Where reports are written [default: nowhere]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Peers that are not wanted although they are there
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Where states of builders are kept while they work: a file system that can hold overlays [default: one made for this, in a
    /// file below /var/tmp]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let wanted = |id: &str| args.workloads.is_empty() || args.workloads.iter().any(|w| w == id);
    let registry = DockerRegistry::start();
    let usual = std::path::Path::new("/var/tmp");
    let own = match args.scratch {
        Some(_) => None,
        None => Some(filesystem::Own::make(usual)?),
    };
    let named = args.scratch.as_deref();
    let scratch = named.or(own.as_ref().map(filesystem::Own::path));
    let scratch = scratch.unwrap_or(usual);
    let scratch = tempfile_in(scratch)?;
    let mut peers = Peer::find_all(
        (&args.kiln, args.before.as_deref()),
        scratch.path(),
        registry.host(),
    )?;
    peers.retain(|peer| !args.without.iter().any(|name| name == peer.name()));
    let mut report = Report::new(machine::describe(), &peers);
    let workloads: Vec<&Workload> = workload::ALL
        .iter()
        .filter(|workload| wanted(workload.id))
        .collect();
    bases::push(&workloads, registry.host());
    let bench = Bench {
        registry: registry.host().to_owned(),
        scratch: scratch.path().to_owned(),
        rounds: args.rounds.max(1),
    };
    for workload in workloads {
        let row = bench
            .measure(workload, &mut peers)
            .with_context(|| format!("measure {}", workload.id))?;
        report.add(row);
    }
    for peer in &mut peers {
        peer.stop();
    }
    let of_service = OfService {
        kiln: &args.kiln,
        scratch: scratch.path(),
        registry: registry.host(),
    };
    if wanted("W4g") {
        of_service.build_again(&mut report)?;
    }
    if wanted("W9") {
        of_service.name(&mut report)?;
    }
    if wanted("W10") {
        of_service.resolve(&mut report)?;
    }
    if wanted("W11") {
        let writes = Writes {
            megabytes: args.log_mb,
            rate: args.kb_per_s,
        };
        of_service.follow(writes, &mut report)?;
    }
    // Not among the workloads: it takes long, and has no goal.
    if args.workloads.iter().any(|wanted| wanted == "scale") {
        let base = bases::push_debian(registry.host());
        for line in scale::measure(&args.kiln, scratch.path(), &base)? {
            report.tell(line);
        }
    }
    report.print();
    match &args.out {
        Some(folder) => report.write(folder),
        None => Ok(()),
    }
}

/// What is measured of kiln's service alone.
struct OfService<'a> {
    kiln: &'a Path,
    scratch: &'a Path,
    registry: &'a str,
}

impl OfService<'_> {
    /// W4g and W4s.
    fn build_again(&self, report: &mut Report) -> Result<()> {
        let base = bases::push_debian(self.registry);
        let again = again::measure(self.kiln, self.scratch, &base)?;
        let s = |time: std::time::Duration| time.as_secs_f64();
        report.tell(format!(
            "W4g: a commit of 40 000 files, through the service: {:.2} s for the first time, {:.3} s again, {:.2} s when it is to be built from no cache, {:.2} s with `kiln build --server`, from the cache",
            s(again.first),
            s(again.exists),
            s(again.forced),
            s(again.cached)
        ));
        report.tell(format!(
            "W4s: a folder of 40 000 files, sent to the service by `kiln build --server`: {:.2} s for the first time, {:.2} s again",
            s(again.folder_first),
            s(again.folder)
        ));
        Ok(())
    }

    /// W9.
    fn name(&self, report: &mut Report) -> Result<()> {
        bases::push_workspace(self.registry);
        let of = (self.registry, "ws:latest");
        let named = workspace::measure(self.kiln, self.scratch, of)?;
        report.tell(format!(
            "W9: a workspace image of a built image of 700 MB: {:.2} s, {} requests to the registry, {} sent a blob (goal: none), {} read one (goal: the configuration alone)",
            named.took.as_secs_f64(),
            named.n_requests,
            named.n_sent,
            named.n_read
        ));
        Ok(())
    }

    /// W10.
    fn resolve(&self, report: &mut Report) -> Result<()> {
        let reference = bases::push_debian(self.registry);
        for (what, config) in [
            ("that was resolved a moment ago", ""),
            (
                "that the registry is asked for each time",
                "ref_cache.fresh_for = \"0s\"\n",
            ),
        ] {
            let resolved = service::measure(self.kiln, self.scratch, (&reference, config))?;
            report.tell(format!(
                "W10: 64 callers resolve a reference {what}: {:.0} answers a second, 99 of 100 within {:.1} ms (goal of the former: 10 000 a \
                 second; callers and service share the machine)",
                resolved.per_second, resolved.p99_ms
            ));
        }
        Ok(())
    }

    /// W11.
    fn follow(&self, writes: Writes, report: &mut Report) -> Result<()> {
        let base = bases::push_debian(self.registry);
        let followed = subscribers::measure(self.kiln, self.scratch, &base, writes)?;
        report.tell(format!(
            "W11: a build writes {} bytes of log at {} kB/s, 1 000 subscribers of whom 50 do not read: every byte to all others, half of \
             the lines within {} ms, 99 of 100 within {} ms (goal: 250 ms), {} MiB at most in the server (goal: 256 MiB; subscribers and \
             service share the machine)",
            followed.log_bytes,
            writes.rate,
            followed.p50_ms,
            followed.p99_ms,
            followed.peak_kib / 1024
        ));
        Ok(())
    }
}

/// Makes a folder that other users may pass through, as kiln's workers are others.
fn tempfile_in(parent: &std::path::Path) -> Result<Scratch> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = parent.join(format!("kiln-bench-{}", std::process::id()));
    std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711))?;
    Ok(Scratch(path))
}

/// A folder that goes with the program.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        peer::remove_tree(&self.0);
    }
}
