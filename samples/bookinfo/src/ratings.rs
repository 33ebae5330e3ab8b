//! `ratings`: stars per reader, kept in memory.
//!
//! Versions `v-faulty`, `v-delayed`, `v-unavailable` and `v-unhealthy` misbehave
//! on purpose; `v2` would need a database and says so.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};

use crate::books;
use crate::config::Config;
use crate::reply::{self, Reply};

/// Largest body of a POST, in bytes.
const MAX_POST: usize = 64 << 10;
/// Most products that posted ratings are kept for.
const MAX_PRODUCTS: usize = 1024;
const DELAY: Duration = Duration::from_secs(7);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Half of the answers are 503.
    Errors,
    /// Half of the answers come late.
    Delays,
    /// Every other minute all answers are 503.
    Outages,
    /// As outages, in spans of 15 minutes and with `/health` telling.
    Unhealthy,
    /// Wants a database, which is not there.
    NoDatabase,
}

impl Fault {
    fn of_version(version: &str) -> Self {
        match version {
            "v-faulty" => Self::Errors,
            "v-delayed" => Self::Delays,
            "v-unavailable" => Self::Outages,
            "v-unhealthy" => Self::Unhealthy,
            "v2" => Self::NoDatabase,
            _ => Self::None,
        }
    }
}

/// The service.
pub(crate) struct Ratings {
    fault: Fault,
    started: Instant,
    posted: Mutex<BTreeMap<u64, Value>>,
}

impl Ratings {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            fault: Fault::of_version(&config.version),
            started: Instant::now(),
            posted: Mutex::default(),
        }
    }

    /// Answers one request.
    pub(crate) async fn handle<B>(&self, request: Request<B>) -> Reply
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let path = request.uri().path();
        if path == "/health" {
            return self.health();
        }
        let Some(id) = path.strip_prefix("/ratings/") else { return reply::not_found() };
        let Ok(id) = id.parse::<u64>() else {
            return reply::error(StatusCode::BAD_REQUEST, "please provide numeric product ID");
        };
        match *request.method() {
            Method::GET => self.read(id).await,
            Method::POST => self.write(id, request.into_body()).await,
            _ => reply::error(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST"),
        }
    }

    fn health(&self) -> Reply {
        if self.fault == Fault::Unhealthy && self.is_down() {
            return reply::json(
                StatusCode::INTERNAL_SERVER_ERROR,
                &json!({ "status": "Ratings is not healthy" }),
            );
        }
        reply::json(StatusCode::OK, &json!({ "status": "Ratings is healthy" }))
    }

    fn is_down(&self) -> bool {
        let span = if self.fault == Fault::Unhealthy { 900 } else { 60 };
        (self.started.elapsed().as_secs() / span) % 2 == 1
    }

    async fn read(&self, id: u64) -> Reply {
        match self.fault {
            Fault::Errors if fastrand::bool() => unavailable(),
            Fault::Outages | Fault::Unhealthy if self.is_down() => unavailable(),
            Fault::NoDatabase => reply::error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "could not connect to ratings database",
            ),
            Fault::Delays if fastrand::bool() => {
                tokio::time::sleep(DELAY).await;
                reply::json(StatusCode::OK, &self.stars(id))
            }
            _ => reply::json(StatusCode::OK, &self.stars(id)),
        }
    }

    async fn write<B>(&self, id: u64, body: B) -> Reply
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if self.fault == Fault::NoDatabase {
            let message = "Post not implemented for database backed ratings";
            return reply::error(StatusCode::NOT_IMPLEMENTED, message);
        }
        let parsed = match Limited::new(body, MAX_POST).collect().await {
            Ok(body) => serde_json::from_slice::<Value>(&body.to_bytes()).ok(),
            Err(_) => None,
        };
        let Some(ratings) = parsed else {
            return reply::error(StatusCode::BAD_REQUEST, "please provide valid ratings JSON");
        };
        {
            let mut posted = self.posted.lock().expect("no panic while held");
            if posted.len() < MAX_PRODUCTS || posted.contains_key(&id) {
                posted.insert(id, ratings);
            }
        }
        reply::json(StatusCode::OK, &self.stars(id))
    }

    fn stars(&self, id: u64) -> Value {
        let posted = self.posted.lock().expect("no panic while held");
        let ratings = posted.get(&id).cloned().unwrap_or_else(|| {
            books::STARS
                .into_iter()
                .map(|(name, stars)| (name.to_owned(), Value::from(stars)))
                .collect()
        });
        json!({ "id": id, "ratings": ratings })
    }
}

fn unavailable() -> Reply {
    reply::error(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable")
}
