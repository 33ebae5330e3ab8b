//! Why bytes are not a message.

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The request's method is not one that is passed on.
    #[error("unknown method")]
    Method,
    /// The request's target has characters that no target has.
    #[error("malformed request target")]
    Target,
    /// The request's target cannot be split into authority and path.
    #[error("malformed URL in the request line")]
    Url,
    /// The request's absolute target is neither `http` nor `https`.
    #[error("unsupported scheme in the request line")]
    Scheme,
    /// The version is not of the form `HTTP/1.1`.
    #[error("malformed HTTP version")]
    Version,
    /// The response's first line has no status.
    #[error("malformed status line")]
    Status,
    /// A header line without a name, a colon, or with a name that is no token.
    #[error("malformed header line")]
    Header,
    /// Control characters where text is expected.
    #[error("header value contains invalid characters")]
    Characters,
    /// The head is longer than the limit.
    #[error("headers size exceeds limit")]
    HeadTooLarge,
    /// There are more headers, or trailers, than the limit.
    #[error("headers count exceeds limit")]
    TooManyHeaders,
    /// `content-length` is repeated or is not a number.
    #[error("malformed or repeated content-length")]
    ContentLength,
    /// Both `content-length` and `transfer-encoding` are there.
    #[error("both content-length and transfer-encoding")]
    LengthAndEncoding,
    /// A transfer encoding other than `chunked`.
    #[error("unsupported transfer encoding")]
    TransferEncoding,
    /// A length where there cannot be a body.
    #[error("a body is not allowed here")]
    BodyNotAllowed,
    /// A chunk's size line is malformed.
    #[error("malformed chunk size")]
    Chunk,
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Truncated,
}

impl ParseError {
    /// Status that the sender of such a request gets.
    pub fn status(self) -> u16 {
        match self {
            Self::HeadTooLarge | Self::TooManyHeaders => 431,
            Self::TransferEncoding => 501,
            _ => 400,
        }
    }

    /// Envoy's name of the cause, for access logs.
    pub fn details(self) -> &'static str {
        match self {
            Self::Url => "http1.invalid_url",
            Self::Scheme => "http1.invalid_scheme",
            Self::Characters => "http1.invalid_characters",
            Self::HeadTooLarge => "http1.headers_too_large",
            Self::TooManyHeaders => "http1.too_many_headers",
            Self::LengthAndEncoding => "http1.content_length_and_chunked_not_allowed",
            Self::TransferEncoding => "http1.invalid_transfer_encoding",
            Self::BodyNotAllowed => "http1.body_disallowed",
            Self::Method
            | Self::Target
            | Self::Version
            | Self::Status
            | Self::Header
            | Self::ContentLength
            | Self::Chunk
            | Self::Truncated => "http1.codec_error",
        }
    }
}
