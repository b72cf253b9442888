//! End-to-end tests: the built program, real registries, real git, and independent readers of what was built.
//!
//! One test binary, so that everything is linked once. What can be tested closer to where it is written is tested there; here is
//! what a user was promised. Everything listens on loopback ports that the system picks and is put away by its owner's `Drop`.
//!
//! | module | what it holds |
//! |---|---|
//! | `scene` | a server, a registry and a git server, and requests to build what is in it |
//! | `reader` | skopeo, umoci and runc: what others make of our images |
//! | `c_program` | the story of the README: a C program in two stages |
//! | `words` | what a caller is told: codes and texts of the published API, failed steps, syntax errors |
//! | `initializers` | what a workspace can be filled with beside a repository |
//! | `isolation` | what a step must not reach |
//! | `durability` | clients and servers that go away |
//! | `endings` | builds that are cancelled, and made once more |
//! | `history` | builds that are looked at afterwards, and how they end |
//! | `mounts` | `RUN --mount` |
//! | `steps` | secrets, agents, names of hosts, limits of steps |
//! | `command` | `kiln build` without a server |
//! | `language` | the same: options about the Dockerfile |
//! | `commits` | the same: commits that were fetched before |
//! | `copying` | the same: COPY and ADD |
//! | `remote` | `kiln build --server` |
//! | `sharing` | caches that travel from machine to machine |
//! | `storage` | what is kept, and what is collected |
//! | `fsck` | what is wrong in a state directory is found and put right |
//! | `sdk` | the clients for Go and TypeScript, in their own languages |
//! | `subassembly` | one image's root filesystem as one file |
//! | `http` | HTTP as the server speaks it, for the others |
//! | `corpus` | Dockerfiles as folders, each with what BuildKit makes of it |
//! | `soak` | what must hold whatever happens and however long: kills, full disks |
//! | `ordinary_user` | the same as somebody who is not root |

#![cfg(test)]
#![forbid(unsafe_code)]

mod c_program;
mod command;
mod commits;
mod copying;
mod corpus;
mod durability;
mod endings;
mod fsck;
mod history;
mod http;
mod initializers;
mod isolation;
mod language;
mod mounts;
mod ordinary_user;
mod reader;
mod remote;
mod scene;
mod sdk;
mod sharing;
mod soak;
mod steps;
mod storage;
mod subassembly;
mod words;
