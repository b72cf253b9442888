//! What may be stored of a build.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::BuildId;

/// What is stored of a build beside its journal: everything but secrets. `record.json` in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which build.
    pub id: BuildId,
    /// Whose.
    pub tenant: String,
    /// Who says to have asked for it; never trusted.
    #[serde(default)]
    pub triggered_by: String,
    /// Who has asked for it, as the operator calls them; nothing where nobody is told from anybody else.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub caller: String,
    /// Accepted and recorded.
    #[serde(default)]
    pub supervisor_ref: String,
    /// Name of the workspace image, or the first name it is published under.
    pub reference: String,
    /// Name of the base image.
    pub base_reference: String,
    /// When it was accepted, Unix milliseconds.
    pub started_at_ms: u64,
    /// Identity of the request: identical requests share it.
    #[serde(default)]
    pub key: String,
    /// What it makes.
    #[serde(default)]
    pub purpose: Purpose,
    /// What tells requests with the same id apart; nothing where there are none.
    #[serde(default)]
    pub request: String,
    /// What the request says about itself; told, and never trusted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What a build makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// An image.
    #[default]
    Image,
    /// A subassembly of an image that is there.
    Subassembly,
    /// An image under names that its caller chose.
    Named,
}

impl Purpose {
    /// Tells whether it is one of those that people ask for and see.
    pub fn is_image(self) -> bool {
        matches!(self, Self::Image | Self::Named)
    }
}
