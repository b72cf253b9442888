//! The client against registries that behave, misbehave and lie.

#[cfg(test)]
#[path = "client/auth.rs"]
mod auth;
#[cfg(test)]
#[path = "client/growing.rs"]
mod growing;
#[cfg(test)]
#[path = "client/pull.rs"]
mod pull;
#[cfg(test)]
#[path = "client/push.rs"]
mod push;
#[cfg(test)]
#[path = "client/real.rs"]
mod real;
#[cfg(test)]
mod support;
#[cfg(test)]
#[path = "client/tls.rs"]
mod tls;
