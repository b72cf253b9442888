//! The wire: gRPC types generated from `proto/`, and nothing else.
//!
//! | module | package |
//! |---|---|
//! | [`builder`] | `builder`: the published Image Builder API, numbers and names pinned by a test |
//! | [`contentservice`] | `contentservice`: what a workspace is filled with |
//! | [`kiln`] | `kiln.v1`: what the published API has no call for |
//!
//! Only `service::grpc` and `cli` name these types; everything else works on types of its own.

#![forbid(unsafe_code)]

/// The published Image Builder API.
pub mod builder {
    #![expect(
        clippy::pedantic,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        clippy::large_enum_variant,
        reason = "generated"
    )]
    tonic::include_proto!("builder");
}

/// What a workspace is filled with.
pub mod contentservice {
    #![expect(clippy::pedantic, reason = "generated")]
    tonic::include_proto!("contentservice");
}

/// What the published API has no call for.
pub mod kiln {
    /// Version 1.
    pub mod v1 {
        #![expect(
            clippy::pedantic,
            clippy::allow_attributes,
            clippy::allow_attributes_without_reason,
            reason = "generated"
        )]
        tonic::include_proto!("kiln.v1");
    }
}

/// Encoded `FileDescriptorSet` of every package, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
