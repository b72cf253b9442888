//! What steps ask for that only the operator can allow. Told before anything runs, whatever is in the cache.

use dockerfile::{Op, RunNetwork, RunOp, RunSecurity};

use super::Execution;
use super::stage::located;
use crate::event::{Failure, FailureKind};
use crate::failure::failure;
use crate::spec::{Limits, NetworkMode};

/// Fails when a step of the plan asks for what is not allowed.
pub(super) fn check(execution: &Execution) -> Result<(), Failure> {
    for ulimit in &execution.options.steps.ulimits {
        if let Err(maximum) = ulimit.check() {
            let (name, hard) = (ulimit.name.as_str(), ulimit.hard);
            let message = format!("limit {name} cannot be {hard} here: it is at most {maximum}");
            return Err(failure(FailureKind::Dockerfile, message));
        }
    }
    let most = execution.limits.step_shm_bytes;
    if let Some(asked) = execution.options.steps.shm_bytes
        && asked > most
    {
        let message = format!(
            "/dev/shm cannot have {asked} bytes here: it has {most} at most (limits.step_shm_bytes)"
        );
        return Err(failure(FailureKind::Dockerfile, message));
    }
    for step in execution.plan.stages.iter().flat_map(|stage| &stage.steps) {
        if let Op::Run(op) = &step.op {
            check_run(op, execution.options.network, &execution.limits)
                .map_err(|f| located(execution, step, f))?;
        }
    }
    Ok(())
}

fn check_run(op: &RunOp, default: NetworkMode, limits: &Limits) -> Result<(), Failure> {
    let is_host = match op.network {
        RunNetwork::Host => true,
        RunNetwork::Default => default == NetworkMode::Host,
        RunNetwork::None => false,
    };
    if is_host && !limits.allow_host_network {
        return Err(failure(
            FailureKind::Dockerfile,
            "the network of the host is not allowed here (--allow network.host, or the operator's setting allow_host_network)",
        ));
    }
    if op.security == RunSecurity::Insecure && !limits.allow_insecure {
        return Err(failure(
            FailureKind::Dockerfile,
            "security.insecure is not allowed here (--allow security.insecure, or the operator's setting allow_insecure)",
        ));
    }
    Ok(())
}
