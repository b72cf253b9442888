//! What a machine needs for builds, checked one by one, with the remedy for what is missing.
