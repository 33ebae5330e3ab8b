//! What `get` prints of each kind.
