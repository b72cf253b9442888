//! What the sandbox is asked to do for a RUN: over which files, as whom, with which variables, host name, network and limits.
//!
//! Blocking, as all of `rootfs`. What it is made of was fetched before, and nothing runs yet.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dockerfile::{RunNetwork, RunOp, RunSecurity, Step};

use super::Execution;
use super::mounts::{self, Attached, Fetched};
use super::prospect::prospect;
use crate::event::{Failure, FailureKind};
use crate::failure::{dockerfile as dockerfile_failure, failure, platform};
use crate::rootfs::root::Root;
use crate::rootfs::user;
use crate::sandbox::{self, Confinement, Network, StepCommand, StepLimits, UserIds};
use crate::spec::NetworkMode;

/// Largest `/etc/passwd` that is read.
const PASSWD_MAX_BYTES: u64 = 10 << 20;
/// The host name of steps.
const HOST_NAME: &str = "buildkitsandbox";
/// The build argument that gives them another one.
pub(super) const HOST_NAME_ARGUMENT: &str = "BUILDKIT_SANDBOX_HOSTNAME";
/// Longest host name.
const HOST_NAME_MAX_BYTES: usize = 64;
/// Where scripts of heredocs are put, in a layer that is never part of the image.
const SCRIPTS: &str = ".kiln";

/// Returns it, and the directory that becomes the layer.
pub(super) fn command(
    execution: &Execution,
    step: &Step,
    (op, fetched): (&RunOp, &Fetched),
    lowers: Vec<PathBuf>,
) -> Result<(StepCommand, PathBuf), Failure> {
    let (mut attached, mut etc) = (Attached::default(), String::new());
    let prospect = prospect(execution, lowers, |view, scratch| {
        attached = mounts::attach(execution, op, fetched, view)?;
        let (layer, place) = init_layer(view, scratch, op, &attached.places)?;
        etc = place;
        Ok(Some(layer))
    })?;
    let user = user_ids(&prospect.view, &step.user)?;
    let mut env: Vec<(String, String)> = (*step.env).clone();
    for (name, value) in &op.proxy {
        for name in [name.to_ascii_uppercase(), name.to_ascii_lowercase()] {
            if !env.iter().any(|(known, _)| *known == name) {
                env.push((name, value.clone()));
            }
        }
    }
    for (name, value) in attached.env {
        env.retain(|(known, _)| *known != name);
        env.push((name, value));
    }
    complete_env(&mut env, &prospect.view, &user);
    let scripts = |arg: &String| match &op.script {
        Some(script) => arg.replace(&script.path, &format!("/{SCRIPTS}/script")),
        None => arg.clone(),
    };
    let (limits, asked) = (&execution.limits, &execution.options.steps);
    let usual = StepLimits::default();
    let command = StepCommand {
        root: prospect.root,
        args: op.args.iter().map(scripts).collect(),
        env,
        cwd: step.workdir.clone(),
        user,
        network: network(execution, op.network),
        confinement: confinement(op),
        hostname: host_name(execution)?,
        etc,
        extra_hosts: asked
            .extra_hosts
            .iter()
            .map(|(name, address)| (name.clone(), address.to_string()))
            .collect(),
        limits: StepLimits {
            memory_bytes: limits.step_memory_bytes,
            processes: Some(limits.step_pids),
            wall_time: Duration::from_secs(limits.step_time_s),
            idle_time: limits.step_idle_s.map(Duration::from_secs),
            shm_bytes: asked.shm_bytes.unwrap_or(usual.shm_bytes),
            ulimits: asked.ulimits.clone(),
            ..usual
        },
        mounts: attached.mounts,
        held: attached.held,
        stdin: None,
    };
    Ok((command, prospect.upper))
}

/// Makes the layer of what is mounted on, and returns it and where `/etc` is.
fn init_layer(
    view: &Root,
    scratch: &Path,
    op: &RunOp,
    places: &[sandbox::Place],
) -> Result<(PathBuf, String), Failure> {
    let init = scratch.join("init");
    fs::create_dir(&init).map_err(|e| platform("create the init layer", &e))?;
    let etc = sandbox::prepare_init_layer(view.as_fd(), &init, places)
        .map_err(|e| platform("create the init layer", &e))?;
    if let Some(script) = &op.script {
        let write = || {
            let folder = init.join(SCRIPTS);
            fs::create_dir(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
            let path = folder.join("script");
            fs::write(&path, &script.content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        };
        write().map_err(|e| platform("write the script of a heredoc", &e))?;
    }
    Ok((init, etc))
}

/// Docker gives every command a PATH and a HOME.
fn complete_env(env: &mut Vec<(String, String)>, view: &Root, user: &UserIds) {
    const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let has = |env: &[(String, String)], name: &str| env.iter().any(|(known, _)| known == name);
    if !has(env, "PATH") {
        env.push(("PATH".to_owned(), PATH.to_owned()));
    }
    if !has(env, "HOME") {
        env.push(("HOME".to_owned(), home_of(view, user.uid)));
    }
}

/// Returns the home of a user by the image's own `/etc/passwd`; `/` when it says nothing.
fn home_of(view: &Root, uid: u32) -> String {
    let passwd = view
        .read_file(Path::new("/etc/passwd"), PASSWD_MAX_BYTES)
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&passwd);
    let home = text.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let is_user = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (is_user && home.starts_with('/')).then(|| home.to_owned())
    });
    home.unwrap_or_else(|| {
        if uid == 0 {
            "/root".to_owned()
        } else {
            "/".to_owned()
        }
    })
}

/// Returns the numbers of `user[:group]`, by the files of the image.
pub(super) fn user_ids(view: &Root, user: &str) -> Result<UserIds, Failure> {
    let found = user::lookup_user(view, user)
        .map_err(|e| dockerfile_failure(&format!("user {user:?}"), &e))?;
    Ok(UserIds {
        uid: found.uid,
        gid: found.gid,
        groups: found.supplementary,
    })
}

/// Returns the name that steps see for their machine.
fn host_name(execution: &Execution) -> Result<String, Failure> {
    let given = execution.options.build_args.get(HOST_NAME_ARGUMENT);
    let Some(name) = given.filter(|name| !name.is_empty()) else {
        return Ok(HOST_NAME.to_owned());
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.len() > HOST_NAME_MAX_BYTES || !name.split('.').all(is_label) {
        let message = format!("build argument {HOST_NAME_ARGUMENT}: {name:?} is not a host name");
        return Err(failure(FailureKind::Dockerfile, message));
    }
    Ok(name.clone())
}

/// Returns what the command is kept from.
fn confinement(op: &RunOp) -> Confinement {
    match op.security {
        RunSecurity::Sandbox => Confinement::Sandbox,
        RunSecurity::Insecure => Confinement::Insecure,
    }
}

pub(super) fn network_mode(execution: &Execution, asked: RunNetwork) -> NetworkMode {
    match asked {
        RunNetwork::Default => execution.options.network,
        RunNetwork::None => NetworkMode::None,
        RunNetwork::Host => NetworkMode::Host,
    }
}

pub(super) fn network(execution: &Execution, asked: RunNetwork) -> Network {
    match network_mode(execution, asked) {
        NetworkMode::Default => Network::Default,
        NetworkMode::None => Network::Isolated,
        // Whether it may was asked before anything ran, and the sandbox asks again.
        NetworkMode::Host => Network::Host,
    }
}
