//! What registries say besides content: error documents and `WWW-Authenticate` challenges.
//!
//! Everything here comes from the other side and is read within limits; nothing is believed.

pub mod challenge;
pub mod errors;
