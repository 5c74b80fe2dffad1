//! The `.fuse` file.
