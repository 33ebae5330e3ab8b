//! What went wrong on a connection of HTTP/2.

/// True if it is us who ended the connection, for what came on it.
pub(crate) fn breaks_protocol(error: &hyper::Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|error| error.is_library() && error.is_go_away())
}
