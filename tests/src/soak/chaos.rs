//! Building from and pushing to a registry that fails at random.

use testkit::bases;
use testkit::docker_registry::DockerRegistry;
use testkit::faults::{Dice, figure, soak_time};
use testkit::kiln::binary;
use testkit::process::{clean_command, finish};
use testkit::proxy::{Chaos, Proxy};
use testkit::scratch::Scratch;

use super::Course;
use crate::reader;

/// Images of an ordinary run, which is short.
const IMAGES: usize = 8;

/// Pulls a base into an empty state directory, adds a layer and pushes the image; returns its digest, or what went wrong.
fn there_and_back(host: &str, n: usize, dice: &mut Dice) -> Result<String, String> {
    let scratch = Scratch::new();
    let dockerfile = format!("FROM {host}/base/busybox:1\nCOPY noise /noise\n");
    scratch.write("context/Dockerfile", dockerfile);
    let size = 1000 + dice.below(100_000);
    let noise: Vec<u8> = (0..size / 8)
        .flat_map(|_| dice.below(u64::MAX).to_le_bytes())
        .collect();
    scratch.write("context/noise", noise);
    scratch.write("kiln.toml", crate::ordinary_user::network_config());
    let mut command = clean_command(binary());
    command
        .current_dir(scratch.path())
        .env("HOME", scratch.path())
        .env("KILN_STATE", scratch.join("state"))
        .env("KILN_CONFIG", scratch.join("kiln.toml"))
        .args([
            "build",
            "--quiet",
            "--push",
            "-t",
            &format!("{host}/soak/app:{n}"),
            "context",
        ]);
    let output = finish(&mut command);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn a_registry_that_fails_at_random_costs_time_and_nothing_else() {
    let registry = DockerRegistry::start();
    bases::busybox().push(registry.host(), "base/busybox:1", None);
    let proxy = Proxy::in_front_of(registry.host());
    let seed = u64::from(std::process::id());
    // Per thousand requests.
    proxy.chaos(Chaos {
        seed,
        server_errors: 50,
        disconnects: 20,
        truncations: 10,
        too_many: 10,
        flips: 1,
    });
    let mut dice = Dice::new(seed);
    let course = Course::of(IMAGES);
    let (mut n_images, mut failures) = (0, Vec::new());
    while course.goes_on(n_images) {
        match there_and_back(&proxy.host(), n_images, &mut dice) {
            // What stands in the registry itself, read by somebody else, who compares every digest.
            Ok(digest) => {
                let found =
                    reader::digest(&format!("{}/soak/app:{n_images}", registry.host()), None);
                assert_eq!(found, digest, "another image came to the registry");
            }
            Err(error) => failures.push(error),
        }
        n_images += 1;
    }
    let requests = proxy.requests();
    let faults = requests
        .iter()
        .filter(|request| matches!(request.status, 0 | 429 | 503));
    figure(
        "F12",
        &[
            ("images", n_images.to_string()),
            ("requests", requests.len().to_string()),
            ("refused_or_broken", faults.count().to_string()),
            ("failed", failures.len().to_string()),
            ("wrong_content", "0".to_owned()),
            ("seed", seed.to_string()),
            ("seconds", course.seconds()),
        ],
    );
    // One in a thousand may fail: of as few as an ordinary run has, none does.
    let n_allowed = soak_time().map_or(0, |_| n_images.div_ceil(1000));
    assert!(failures.len() <= n_allowed, "{failures:#?}");
}
