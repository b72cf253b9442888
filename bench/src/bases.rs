//! The base images, made once from Debian's packages and kept like those of the tests.

use testkit::bases::{self, Base};

use crate::workload::Workload;

/// What `ws` holds beside Debian's minimal set: an image that somebody works in.
const WS_PACKAGES: &str =
    "build-essential,git,python3,nodejs,curl,ca-certificates,locales,sudo,vim";

/// A base image by the name that Dockerfiles use.
fn base(name: &str) -> Base {
    match name {
        "ws" => bases::debian(WS_PACKAGES, 1),
        "ws6" => bases::debian(WS_PACKAGES, 6),
        _ => bases::debian("", 1),
    }
}

/// Pushes the bases of `workloads` to the registry.
pub(crate) fn push(workloads: &[&Workload], registry: &str) {
    let mut names: Vec<&str> = workloads.iter().map(|workload| workload.base).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        base(name).push(registry, &format!("{name}:latest"), None);
    }
}

/// Pushes Debian to the registry and returns its name there.
pub(crate) fn push_debian(registry: &str) -> String {
    base("debian").push(registry, "debian:latest", None)
}

/// Pushes the image that somebody works in to the registry.
pub(crate) fn push_workspace(registry: &str) {
    base("ws").push(registry, "ws:latest", None);
}
