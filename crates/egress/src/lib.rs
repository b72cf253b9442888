//! Where kiln may connect to on behalf of a request: the one policy for git, downloads, ADD, one-time secrets and registries.
//!
//! A name is resolved once, each of its addresses is classified, and what is then connected to is one of those addresses and no
//! other: a name that changes its mind between the two (DNS rebinding) gains nothing. Addresses are judged as they are, whatever they
//! were written as, and addresses within addresses (IPv4 in IPv6) as what they lead to.
//!
//! * [`address`]: what kind of place an address is;
//! * [`Policy`]: which places may be reached, by kind, by network and by name;
//! * [`Resolver`]: for HTTP clients, which do the connecting themselves.
//!
//! What it does not cover: a proxy resolves names itself, so that behind one only hosts written as addresses are judged. What a step
//! may reach is another matter, and decided by its network.

#![forbid(unsafe_code)]

pub mod address;
mod policy;
mod resolver;

pub use policy::{Network, ParseNetworkError, Policy, Reach, Refused};
pub use resolver::{LookUpError, Resolver, refusal_in};
