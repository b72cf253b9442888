//! A sandbox, a base to run steps on, and short words for running them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::sandbox::{
    CgroupParent, Confinement, LauncherImage, Namespaces, NamespacesOptions, Network, OutputSink,
    Permission, Sandbox as _, SandboxError, StepCommand, StepExit, StepLimits, StepMount, Stream,
    UserIds, prepare_init_layer,
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use tokio_util::sync::CancellationToken;

/// Who started the process that became root in a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starter {
    Root,
    User,
}

pub(crate) struct Rig {
    pub(crate) sandbox: Namespaces,
    pub(crate) starter: Starter,
    pub(crate) image_path: PathBuf,
    pub(crate) has_cgroups: bool,
    pub(crate) dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new(
        image: LauncherImage,
        cgroups: Option<CgroupParent>,
        starter: Starter,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        make_base(&base);
        add_probe(&base);
        let image_path = image.path();
        let has_cgroups = cgroups.is_some();
        let options = NamespacesOptions {
            cgroups,
            insecure: Permission::Allowed,
            ..NamespacesOptions::new(image)
        };
        Self {
            sandbox: Namespaces::new(options),
            starter,
            image_path,
            has_cgroups,
            dir,
        }
    }

    /// A rig of its own around another sandbox.
    pub(crate) fn with_sandbox(sandbox: Namespaces, starter: Starter) -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_base(&dir.path().join("base"));
        Self {
            sandbox,
            starter,
            image_path: PathBuf::new(),
            has_cgroups: false,
            dir,
        }
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    /// A step that runs a shell script on the usual base.
    pub(crate) fn sh(&self, script: &str) -> Run<'_> {
        self.command(&["/bin/sh", "-c", script])
    }

    pub(crate) fn command(&self, args: &[&str]) -> Run<'_> {
        Run {
            rig: self,
            base: self.base(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cwd: "/".to_owned(),
            user: UserIds::default(),
            network: Network::Isolated,
            confinement: Confinement::Sandbox,
            limits: StepLimits {
                wall_time: Duration::from_secs(30),
                ..StepLimits::default()
            },
            stdin: None,
            mounts: Vec::new(),
        }
    }
}

/// What a step wrote and how it ended.
pub(crate) struct Outcome {
    pub(crate) exit: Result<StepExit, SandboxError>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
    pub(crate) scratch: tempfile::TempDir,
}

impl Outcome {
    /// The standard output of a step that must have succeeded.
    pub(crate) fn text(&self) -> &str {
        assert_eq!(
            self.exit.as_ref().unwrap(),
            &StepExit::Code(0),
            "stdout {} stderr {}",
            self.stdout,
            self.stderr
        );
        self.stdout.trim_end()
    }

    pub(crate) fn exit(&self) -> StepExit {
        *self.exit.as_ref().unwrap()
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.scratch.path().join("upper")
    }
}

pub(crate) struct Run<'a> {
    rig: &'a Rig,
    pub(crate) base: PathBuf,
    args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) user: UserIds,
    pub(crate) network: Network,
    pub(crate) confinement: Confinement,
    pub(crate) limits: StepLimits,
    pub(crate) stdin: Option<File>,
    pub(crate) mounts: Vec<StepMount>,
}

impl Run<'_> {
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) async fn go(self) -> Outcome {
        self.go_until(CancellationToken::new()).await
    }

    pub(crate) async fn go_until(self, cancel: CancellationToken) -> Outcome {
        let written = Arc::new(Mutex::new((Vec::new(), Vec::new())));
        let into = Arc::clone(&written);
        let sink: OutputSink = Arc::new(move |stream, bytes| {
            assert!(bytes.len() <= engine::sandbox::MAX_CHUNK_BYTES);
            let mut written = into.lock().unwrap();
            match stream {
                Stream::Stdout => written.0.extend_from_slice(bytes),
                Stream::Stderr => written.1.extend_from_slice(bytes),
            }
        });
        let scratch = tempfile::tempdir_in(self.rig.dir.path()).unwrap();
        let (root, etc) = root_over(&self.base, scratch.path());
        let step = StepCommand {
            root,
            args: self.args,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            network: self.network,
            confinement: self.confinement,
            hostname: "step".to_owned(),
            etc,
            extra_hosts: vec![("extra".to_owned(), "192.0.2.77".to_owned())],
            limits: self.limits,
            mounts: self.mounts,
            held: Vec::new(),
            stdin: self.stdin,
        };
        let begun = Instant::now();
        let exit = self.rig.sandbox.run(step, sink, cancel).await;
        let took = begun.elapsed();
        let (stdout, stderr) = std::mem::take(&mut *written.lock().unwrap());
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Outcome {
            exit,
            stdout: text(stdout),
            stderr: text(stderr),
            took,
            scratch,
        }
    }
}

/// Mounts `base` with its init layer and a writable layer over it, as the engine does; and says where `/etc` is.
pub(crate) fn root_over(base: &Path, scratch: &Path) -> (OwnedFd, String) {
    for directory in ["init", "upper", "work"] {
        fs::create_dir(scratch.join(directory)).unwrap();
    }
    fs::set_permissions(scratch.join("upper"), fs::Permissions::from_mode(0o755)).unwrap();
    let etc = prepare_init_layer(
        File::open(base).unwrap().as_fd(),
        &scratch.join("init"),
        &[],
    )
    .unwrap();
    let lowers = format!("{}:{}", scratch.join("init").display(), base.display());
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(context.as_fd(), "lowerdir", lowers.as_str()).unwrap();
    for (key, directory) in [("upperdir", "upper"), ("workdir", "work")] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, scratch.join(directory).as_path())
            .unwrap();
    }
    rustix::mount::fsconfig_set_flag(context.as_fd(), "userxattr").unwrap();
    rustix::mount::fsconfig_create(context.as_fd()).unwrap();
    let root = rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    );
    (root.unwrap(), etc)
}

/// A root filesystem with busybox and all its names.
pub(crate) fn make_base(base: &Path) {
    for directory in ["", "bin", "etc", "tmp", "home"] {
        fs::create_dir(base.join(directory)).unwrap();
    }
    fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let copied = fs::copy("/bin/busybox", base.join("bin/busybox"));
    assert!(
        copied.is_ok(),
        "{copied:?}: install the package busybox-static"
    );
    let names = Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap()
        .stdout;
    for name in String::from_utf8(names)
        .unwrap()
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", base.join("bin").join(name)).unwrap();
    }
    let mut file = File::create(base.join("bin/not-executable")).unwrap();
    file.write_all(b"#!/bin/sh\n").unwrap();
}

/// Adds this program, with what it is linked to, as `/probe`.
fn add_probe(base: &Path) {
    fs::copy("/proc/self/exe", base.join("probe")).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut libraries: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(5))
        .filter(|path| path.starts_with('/') && path.contains(".so"))
        .collect();
    libraries.sort_unstable();
    libraries.dedup();
    fs::create_dir(base.join("lib")).unwrap();
    fs::create_dir(base.join("lib64")).unwrap();
    for library in libraries {
        let name = Path::new(library).file_name().unwrap();
        fs::copy(library, base.join("lib").join(name)).unwrap();
        symlink(
            Path::new("../lib").join(name),
            base.join("lib64").join(name),
        )
        .unwrap();
    }
}
