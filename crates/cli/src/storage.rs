//! `kiln du` and `kiln prune`, and collecting after a build.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::json;
use store::Store;
use store::collect::{Hold, Item, Kind, Policy};
use store::context::{Keeping, Swept};

use crate::args::storage::{DuArgs, Filter, Filters, PruneArgs};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::place::{self, Found, Ready};
use crate::terminal;

/// The file whose age says when the store was last collected after a build.
const COLLECTED: &str = "collected";
/// How often that is done.
const INTERVAL: Duration = Duration::from_secs(3600);

/// `kiln du`.
pub(crate) async fn du(args: DuArgs) -> Outcome {
    let ready = place::find(&args.place)?.ready()?;
    let usage = worker::storage::list(&ready.command)
        .await
        .or_exit(Exit::Machine)?;
    let (filters, now_s) = (Filters::of(&args.filters), now_s());
    let mut items = usage.items;
    let counted: u64 = items.iter().map(|item| item.bytes).sum();
    items.retain(|item| {
        let age_s = now_s.saturating_sub(item.used_at_s);
        filters.kinds.contains(&item.kind)
            && filters
                .unused_for
                .is_none_or(|least| age_s >= least.as_secs())
    });
    items.sort_by(|a, b| (a.used_at_s, &a.name).cmp(&(b.used_at_s, &b.name)));
    if args.json {
        for item in &items {
            let line = json!({
                "type": item.kind,
                "name": item.name,
                "bytes": item.bytes,
                "used_at": item.used_at_s,
                "hold": item.hold,
            });
            terminal::data(&line.to_string()).or_exit(Exit::Machine)?;
        }
        return Ok(());
    }
    if args.verbose {
        show(&items, now_s)?;
    }
    summary(&items)?;
    if args.filters.is_empty() {
        let other = usage.total_bytes.saturating_sub(counted);
        let line = format!("{:<12} {:>8} {:>12}", "other", "", humane(other));
        terminal::data(&line).or_exit(Exit::Machine)?;
        let line = format!(
            "{:<12} {:>8} {:>12}",
            "total",
            "",
            humane(usage.total_bytes)
        );
        terminal::data(&line).or_exit(Exit::Machine)?;
    }
    Ok(())
}

/// `kiln prune`.
pub(crate) async fn prune(args: PruneArgs) -> Outcome {
    let found = place::find(&args.place)?;
    let ready = found.ready()?;
    let filters = Filters::of(&args.filters);
    if args
        .filters
        .iter()
        .any(|filter| matches!(filter, Filter::Kind(Kind::Image)))
    {
        let text = "images are not pruned: whoever gave one a name removes it (type=image shows them in `kiln du` only)";
        return Err(Failure::text(Exit::Usage, text.to_owned()));
    }
    let swept = if filters.kinds.contains(&Kind::Context) {
        sweep(&ready, &found).await?
    } else {
        Swept::default()
    };
    let is_bounded = args.max_used_space.is_some() || args.min_free_space.is_some();
    let policy = Policy {
        kinds: filters.kinds,
        only_unused_for: filters.unused_for,
        // Without any bound, everything that nobody uses.
        unused_for: (!is_bounded).then_some(Duration::ZERO),
        max_bytes: args.max_used_space.map(|size| size.0),
        min_free_bytes: args.min_free_space.map(|size| size.0),
    };
    let collected = worker::storage::collect(&ready.command, policy)
        .await
        .or_exit(Exit::Machine)?;
    if args.verbose {
        show(&collected.removed, now_s())?;
    }
    let freed: u64 = collected.removed.iter().map(|item| item.bytes).sum();
    if swept != Swept::default() {
        let line = format!(
            "forgot {} uploaded folders whose time is over, removed {} of their contents, {}",
            swept.n_contexts,
            swept.n_contents,
            humane(swept.n_bytes)
        );
        terminal::data(&line).or_exit(Exit::Machine)?;
    }
    let line = format!(
        "removed {}, {}; left {}",
        collected.removed.len(),
        humane(freed),
        humane(collected.left_bytes)
    );
    terminal::data(&line).or_exit(Exit::Machine)
}

/// Forgets uploaded folders whose time is over, as the server does from time to time.
async fn sweep(ready: &Ready, found: &Found) -> Outcome<Swept> {
    let path = ready.command.state.join(worker::folder::STORE);
    if !path.join("contexts").is_dir() {
        return Ok(Swept::default());
    }
    let owner = ready.command.owner.map(place::store_owner);
    let keeping = Keeping {
        now_ms: crate::progress::now_ms(),
        lifetime: found.config.contexts.lifetime,
    };
    let sweep = move || -> anyhow::Result<Swept> {
        let store = Store::open(&path, owner)?;
        Ok(store.sweep_contexts(keeping, &|| true)?)
    };
    let swept = tokio::task::spawn_blocking(sweep).await;
    swept.or_exit(Exit::Internal)?.or_exit(Exit::Machine)
}

/// Has the store collected after a build, when that was long ago: by a process of its own, which nobody waits for.
pub(crate) async fn collect_if_due(ready: &Ready, found: &Found) {
    let state = &ready.command.state;
    let Ok(disk) = rustix::fs::statvfs(state) else {
        return;
    };
    let policy = found.config.cache.policy(disk.f_blocks * disk.f_frsize);
    let free_bytes = disk.f_bavail * disk.f_frsize;
    let is_full = policy
        .min_free_bytes
        .is_some_and(|wanted| free_bytes < wanted);
    if !is_due(&state.join(COLLECTED)) && !is_full {
        return;
    }
    if let Err(error) = worker::storage::collect_aside(&ready.command, policy).await {
        terminal::say(&format!("warning: {}.", engine::chain(&error)));
    }
}

/// Tells whether the last time was long ago, and notes that this is the next one. The first build of all has nothing to collect.
fn is_due(note: &Path) -> bool {
    let modified = fs::metadata(note).and_then(|found| found.modified());
    let is_recent = |at: &SystemTime| at.elapsed().is_ok_and(|elapsed| elapsed < INTERVAL);
    match modified {
        Ok(at) if is_recent(&at) => false,
        // What cannot be noted is tried again after the next build.
        _ => fs::write(note, "").is_ok() && modified.is_ok(),
    }
}

fn show(items: &[Item], now_s: u64) -> Outcome {
    for item in items {
        let hold = match item.hold {
            Hold::Free => "",
            Hold::InUse => "in use",
            Hold::Named => "named",
        };
        let age = age(now_s.saturating_sub(item.used_at_s));
        let line = format!(
            "{:<12} {:>12} {:>8} {:<7} {}",
            item.kind.as_str(),
            humane(item.bytes),
            age,
            hold,
            item.name
        );
        terminal::data(&line).or_exit(Exit::Machine)?;
    }
    Ok(())
}

fn summary(items: &[Item]) -> Outcome {
    let head = format!(
        "{:<12} {:>8} {:>12} {:>12}",
        "TYPE", "NUMBER", "SIZE", "RECLAIMABLE"
    );
    terminal::data(&head).or_exit(Exit::Machine)?;
    for kind in Kind::ALL {
        let of_kind = || items.iter().filter(|item| item.kind == kind);
        let bytes = |items: &mut dyn Iterator<Item = &Item>| items.map(|item| item.bytes).sum();
        let all: u64 = bytes(&mut of_kind());
        let free: u64 = bytes(&mut of_kind().filter(|item| item.hold == Hold::Free));
        let line = format!(
            "{:<12} {:>8} {:>12} {:>12}",
            kind.as_str(),
            of_kind().count(),
            humane(all),
            humane(free)
        );
        terminal::data(&line).or_exit(Exit::Machine)?;
    }
    Ok(())
}

fn age(seconds: u64) -> String {
    match seconds {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86_400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// Writes a size with the unit that leaves one to three digits before the point; units as docker's, of a thousand.
pub(crate) fn humane(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let (mut unit, mut per_unit) = (UNITS[0], 1000);
    for next in UNITS.into_iter().skip(1) {
        if bytes / per_unit < 1000 {
            break;
        }
        (unit, per_unit) = (next, per_unit * 1000);
    }
    let tenths = u128::from(bytes) * 10 / u128::from(per_unit);
    format!("{}.{}{unit}", tenths / 10, tenths % 10)
}

fn now_s() -> u64 {
    crate::progress::now_ms() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0kB"),
            (999_999, "999.9kB"),
            (1_000_000, "1.0MB"),
            (12_345_678_901, "12.3GB"),
            (u64::MAX, "18446744.0TB"),
        ] {
            assert_eq!(humane(bytes), text);
        }
    }

    #[test]
    fn the_store_is_collected_once_an_hour_and_not_the_first_time() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join(COLLECTED);
        assert!(!is_due(&note));
        assert!(!is_due(&note));
        let file = fs::File::open(&note).unwrap();
        file.set_modified(SystemTime::now() - INTERVAL * 2).unwrap();
        assert!(is_due(&note));
        assert!(!is_due(&note));
    }
}
