//! Asks a repository which commit a branch or tag stands for, with the user's own git and its configuration.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use source::git::{GitAuth, GitSource, TargetMode};
use tokio::process::Command;

use crate::failure::{Exit, Failure, OrExit, Outcome};

/// How long the repository may take to answer.
const TIMEOUT: Duration = Duration::from_secs(60);
const COMMIT_LENGTHS: [usize; 2] = [40, 64];

/// Returns the commit that `source` means now; nothing when it can only be found out by fetching (an abbreviated commit).
pub(crate) async fn commit_of(source: &GitSource) -> Outcome<Option<String>> {
    if is_commit(&source.target) {
        return Ok(None);
    }
    let wanted = wanted(source);
    let listed = list(source, &wanted).await?;
    let found = wanted.iter().find_map(|name| {
        listed
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .find(|(_, listed)| listed == name)
            .map(|(commit, _)| commit.to_owned())
    });
    if found.is_none() && source.target_mode == TargetMode::RemoteHead {
        let text = format!("the repository {} has no HEAD", source.remote.as_str());
        return Err(Failure::text(Exit::BuildFailed, text));
    }
    Ok(found.filter(|commit| is_commit(commit)))
}

fn is_commit(text: &str) -> bool {
    COMMIT_LENGTHS.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Returns the names under which the target may be listed, best first: a tag goes before a branch of the same name.
fn wanted(source: &GitSource) -> Vec<String> {
    let target = &source.target;
    match source.target_mode {
        TargetMode::RemoteHead | TargetMode::LocalBranch => vec!["HEAD".to_owned()],
        _ if target.starts_with("refs/") => vec![format!("{target}^{{}}"), target.clone()],
        TargetMode::RemoteBranch => vec![format!("refs/heads/{target}")],
        TargetMode::RemoteCommit => vec![
            format!("refs/tags/{target}^{{}}"),
            format!("refs/tags/{target}"),
            format!("refs/heads/{target}"),
        ],
    }
}

async fn list(source: &GitSource, names: &[String]) -> Outcome<String> {
    let mut command = Command::new("git");
    command
        .args(["ls-remote", "--", source.remote.as_str()])
        .args(names)
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let GitAuth::Basic { user, password } = &source.auth {
        // Not on the command line: everybody on this machine can read that.
        let header = STANDARD.encode(format!("{user}:{password}"));
        command
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "http.extraHeader")
            .env(
                "GIT_CONFIG_VALUE_0",
                format!("Authorization: Basic {header}"),
            );
    }
    let missing = |error| {
        let error = anyhow::Error::new(error).context("run git");
        Failure::new(Exit::Machine, error).hint("install the package git")
    };
    let output = tokio::time::timeout(TIMEOUT, command.output())
        .await
        .or_exit(Exit::Unreachable)?
        .map_err(missing)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let text = format!(
            "list the repository {}: {}",
            source.remote.as_str(),
            said.trim()
        );
        return Err(Failure::text(Exit::Unreachable, text));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
