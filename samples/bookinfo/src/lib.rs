//! The Bookinfo sample.
