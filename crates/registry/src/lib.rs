//! Both ends of the OCI distribution protocol: a client for any registry, and the registry that is embedded in the server.
//!
//! The client trusts no registry: bytes count only once their digest was verified, a push only once the registry has
//! answered for everything, and a credential goes only to the host that it was given for.
//!
//! | module | what it holds |
//! |---|---|
//! | [`hosts`] | how each registry is reached: mirrors, plain http, certificates |
//! | [`keychain`] | the credentials of each registry, and [`keychain::Secret`] that keeps them out of logs |
//! | [`wire`] | error documents and `WWW-Authenticate` challenges |
//! | [`client`] | pulling and pushing |
//! | [`server`] | the embedded registry over a [`store::Store`] |

#![forbid(unsafe_code)]

pub mod client;
pub mod hosts;
pub mod keychain;
pub mod server;
pub mod wire;
