//! What went wrong on a connection of HTTP/2.

/// The codec's own error behind hyper's.
pub(crate) fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

/// True if it is us who ended the connection, for what came on it.
pub(crate) fn breaks_protocol(error: &hyper::Error) -> bool {
    cause(error).is_some_and(|error| error.is_library() && error.is_go_away())
}
