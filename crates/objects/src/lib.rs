//! Named objects of bytes: in a folder, or in a bucket of a store that speaks the protocol of S3.
//!
//! What is promised for both:
//!
//! * an object is there as a whole or not at all, whatever becomes of who puts it;
//! * putting one takes memory for a few parts, however large it is;
//! * a [`Name`] stays below the folder, or below the prefix of the bucket.
//!
//! Who may have an object is decided elsewhere; that somebody may, is said by an address that expires ([`Objects::presign`]).
//! Nothing here reads the environment, and [`Keys`] are shown nowhere.

#![forbid(unsafe_code)]

mod bucket;
mod error;
mod name;
mod objects;

pub use self::bucket::{Bucket, Keys};
pub use self::error::ObjectError;
pub use self::name::{Name, ParseNameError};
pub use self::objects::{Listed, Objects, Place, SIGNED_MAX};
