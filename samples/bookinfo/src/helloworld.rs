//! `helloworld`: says which version and instance answered.

use http::{Request, StatusCode};

use crate::config::Config;
use crate::reply::{self, Reply};

/// The service.
pub(crate) struct Helloworld {
    greeting: String,
}

impl Helloworld {
    pub(crate) fn new(config: &Config) -> Self {
        let Config { version, instance, .. } = config;
        Self { greeting: format!("Hello version: {version}, instance: {instance}\n") }
    }

    /// Answers one request.
    pub(crate) fn handle<B>(&self, request: &Request<B>) -> Reply {
        match request.uri().path() {
            "/hello" => reply::text(StatusCode::OK, self.greeting.clone()),
            "/health" => reply::text(StatusCode::OK, "Helloworld is healthy"),
            _ => reply::not_found(),
        }
    }
}
