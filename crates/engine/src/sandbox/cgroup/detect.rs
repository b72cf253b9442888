//! What of cgroups this process may use.

use std::path::{Path, PathBuf};

use super::CONTROLLERS;

/// Which cgroups this process may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupMode {
    /// None: there are none, or they belong to somebody else.
    None,
    /// Version 1 (or the mixed layout): one hierarchy per controller.
    One {
        /// Each usable controller with this process's own cgroup in its hierarchy.
        own: Vec<(String, PathBuf)>,
    },
    /// Version 2: one hierarchy.
    Two {
        /// This process's own cgroup.
        own: PathBuf,
    },
}

impl CgroupMode {
    /// Finds out by reading `/proc` and asking whether the directories may be written.
    pub fn detect() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self::of(
            &read("/proc/self/mountinfo"),
            &read("/proc/self/cgroup"),
            &is_writable,
        )
    }

    fn of(mounts: &str, own: &str, usable: &dyn Fn(&Path) -> bool) -> Self {
        let mounts = cgroup_mounts(mounts);
        if let Some(mount) = mounts.iter().find(|mount| mount.version_two) {
            let own = below(mount, path_in(own, ""), usable);
            let controllers =
                std::fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
            let has = |name: &str| {
                controllers
                    .split_ascii_whitespace()
                    .any(|word| word == name)
            };
            if has("memory") && has("pids") && usable(&own) {
                return Self::Two { own };
            }
        }
        let mut found = Vec::new();
        for controller in CONTROLLERS {
            let mount = mounts
                .iter()
                .find(|mount| mount.options.iter().any(|option| option == controller));
            if let Some(mount) = mount {
                let own = below(mount, path_in(own, controller), usable);
                if usable(&own) {
                    found.push((controller.to_owned(), own));
                }
            }
        }
        if found.is_empty() {
            Self::None
        } else {
            Self::One { own: found }
        }
    }
}

fn is_writable(directory: &Path) -> bool {
    rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
}

struct Mount {
    point: PathBuf,
    version_two: bool,
    options: Vec<String>,
}

fn cgroup_mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = left.split(' ').nth(4)?;
            let mut words = right.split(' ');
            let (kind, options) = (words.next()?, words.nth(1)?);
            let version_two = kind == "cgroup2";
            (version_two || kind == "cgroup").then(|| Mount {
                point: PathBuf::from(point),
                version_two,
                options: options.split(',').map(str::to_owned).collect(),
            })
        })
        .collect()
}

/// This process's path in the hierarchy of `controller`; the empty name is version 2.
fn path_in<'a>(own: &'a str, controller: &str) -> &'a str {
    own.lines()
        .find_map(|line| {
            let mut words = line.splitn(3, ':');
            let (_number, controllers, path) = (words.next()?, words.next()?, words.next()?);
            controllers
                .split(',')
                .any(|name| name == controller)
                .then_some(path)
        })
        .unwrap_or("/")
}

/// The directory of a path; inside a container the mount may begin further down than the path says.
fn below(mount: &Mount, path: &str, usable: &dyn Fn(&Path) -> bool) -> PathBuf {
    let directory = mount.point.join(path.trim_start_matches('/'));
    if usable(&directory) {
        directory
    } else {
        mount.point.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/\n";

    #[test]
    fn the_mixed_layout_is_used_by_its_version_one_controllers() {
        let mode = CgroupMode::of(HYBRID, OWN, &|_| true);
        let own = vec![
            (
                "memory".to_owned(),
                PathBuf::from("/sys/fs/cgroup/memory/a/b"),
            ),
            ("cpu".to_owned(), PathBuf::from("/sys/fs/cgroup/cpu/")),
        ];
        assert_eq!(mode, CgroupMode::One { own });
    }

    #[test]
    fn cgroups_of_somebody_else_are_not_used() {
        assert_eq!(CgroupMode::of(HYBRID, OWN, &|_| false), CgroupMode::None);
    }

    #[test]
    fn a_delegated_cgroup_of_version_two_is_used() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("s")).unwrap();
        std::fs::write(dir.path().join("s/cgroup.controllers"), "cpu memory pids").unwrap();
        let mounts = format!(
            "30 23 0:26 / {} rw - cgroup2 cgroup2 rw\n",
            dir.path().display()
        );
        let mode = CgroupMode::of(&mounts, "0::/s\n", &|path| path.is_dir());
        assert_eq!(
            mode,
            CgroupMode::Two {
                own: dir.path().join("s")
            }
        );
    }
}
