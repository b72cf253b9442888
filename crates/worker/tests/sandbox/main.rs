//! Steps in real containers, as root and as an ordinary user.
//!
//! The launcher re-executes the running program, so this binary has no test harness: its `main` plays every role.
//!
//! | first argument | role |
//! |---|---|
//! | `step-init` | the launcher, exactly as `kiln` dispatches it |
//! | `inside` | enters a user namespace as a worker does and runs the cases |
//! | `probe` | runs inside a container and tries what a step must not do |
//! | `measure` | times whole runs of `true`, for decision record 0002 |
//! | anything else | starts `inside` as this user and, when that is root, as an ordinary user made for the test; a word filters cases by name |
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test with a main of its own"
)]

mod cases;
mod hostile;
mod insecure;
mod probe;
mod rig;
mod starters;

use std::process::ExitCode;
use std::sync::Arc;

use rig::{Rig, Starter};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(engine::sandbox::STEP_INIT) => engine::sandbox::step_init_main(),
        Some("probe") => probe::main(&args[2..]),
        Some("inside") => inside(
            args.get(2).map(String::as_str),
            args.get(3).map(String::as_str),
        ),
        Some("measure") => measure(),
        // What `cargo test -- --list` and the like ask for.
        Some("--list") => ExitCode::SUCCESS,
        _ => starters::main(
            args.iter()
                .skip(1)
                .find(|word| !word.starts_with('-'))
                .map(String::as_str),
        ),
    }
}

/// Enters a user namespace and runs the cases whose names contain `filter`.
fn inside(starter: Option<&str>, filter: Option<&str>) -> ExitCode {
    let starter = if starter == Some("root") {
        Starter::Root
    } else {
        Starter::User
    };
    let options = worker::userns::UserNsOptions::default();
    let cgroups = match starter {
        Starter::Root => {
            let owner = worker::userns::data_plane_owner(&options).unwrap();
            let name = format!("test-{}", std::process::id());
            let planned = engine::sandbox::planned_cgroups(&name);
            planned.inspect(|cgroups| cgroups.make(owner.uid, owner.gid).unwrap())
        }
        Starter::User => None,
    };
    if let Some(cgroups) = &cgroups {
        cgroups.join().unwrap();
    }
    let entered = worker::userns::enter(&options).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let rig = Arc::new(Rig::new(entered.image, cgroups, starter));
    let mut failed = 0;
    let all = cases::CASES
        .iter()
        .chain(hostile::CASES)
        .chain(insecure::CASES);
    for (name, case) in all.filter(|(name, _)| name.contains(filter.unwrap_or_default())) {
        let passed = runtime
            .block_on(async { tokio::spawn(case(Arc::clone(&rig))).await })
            .is_ok();
        failed += i32::from(!passed);
        let word = if passed { "ok" } else { "FAILED" };
        println!("test {starter:?}::{name} ... {word}");
    }
    runtime.block_on(rig.sandbox.shut_down());
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints how long whole runs of `true` take, overlay mount not included.
fn measure() -> ExitCode {
    let entered = worker::userns::enter(&worker::userns::UserNsOptions::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let rig = Rig::new(entered.image, None, Starter::Root);
    let mut times = runtime.block_on(async {
        let mut times = Vec::new();
        for _ in 0..50 {
            times.push(rig.command(&["true"]).go().await.took);
        }
        times
    });
    times.sort();
    println!(
        "median {:?}, least {:?}, most {:?}, n {}",
        times[25],
        times[0],
        times[49],
        times.len()
    );
    ExitCode::SUCCESS
}
