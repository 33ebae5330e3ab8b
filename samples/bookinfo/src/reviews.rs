//! `reviews`: what readers say; with stars from `ratings` in v2 and v3.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::books;
use crate::client::Upstream;
use crate::config::{Config, Timeouts};
use crate::forward;
use crate::reply::{self, Reply};

/// The service.
pub(crate) struct Reviews {
    version: String,
    instance: String,
    cluster: Option<String>,
    stars: Option<Stars>,
}

struct Stars {
    color: String,
    timeout: Duration,
    ratings: Upstream,
}

impl Reviews {
    pub(crate) fn new(config: &Config) -> Self {
        let stars = config.enable_ratings.then(|| Stars {
            color: config.star_color.clone(),
            timeout: match config.star_color.as_str() {
                "black" => Timeouts::RATINGS_BLACK,
                _ => Timeouts::RATINGS_OTHER,
            },
            ratings: Upstream::new(&config.ratings),
        });
        Self {
            version: config.version.clone(),
            instance: config.instance.clone(),
            cluster: config.cluster.clone(),
            stars,
        }
    }

    /// Answers one request.
    pub(crate) async fn handle<B>(&self, request: &Request<B>) -> Reply {
        let path = request.uri().path();
        if request.method() != Method::GET {
            return reply::error(StatusCode::METHOD_NOT_ALLOWED, "only GET");
        }
        if path == "/health" {
            return reply::json(StatusCode::OK, &json!({ "status": "Reviews is healthy" }));
        }
        let Some(id) = path.strip_prefix("/reviews/") else { return reply::not_found() };
        let Ok(number) = id.parse::<u64>() else {
            return reply::error(StatusCode::BAD_REQUEST, "please provide numeric product ID");
        };
        let ratings = match &self.stars {
            Some(stars) => stars.of_book(number, &forward::headers(request.headers())).await,
            None => vec![None; books::REVIEWS.len()],
        };
        reply::json(StatusCode::OK, &self.document(number, ratings))
    }

    fn document(&self, id: u64, ratings: Vec<Option<Value>>) -> Value {
        let reviews: Vec<Value> = books::REVIEWS
            .iter()
            .zip(ratings)
            .map(|((reviewer, text), rating)| {
                let mut review = json!({ "reviewer": reviewer, "text": text });
                if let Some(rating) = rating {
                    review["rating"] = rating;
                }
                review
            })
            .collect();
        json!({
            "id": id.to_string(),
            "podname": self.instance,
            "clustername": self.cluster,
            "version": self.version,
            "reviews": reviews,
        })
    }
}

impl Stars {
    /// A rating for each review, in their order.
    async fn of_book(&self, id: u64, headers: &HeaderMap) -> Vec<Option<Value>> {
        let answer = self.ratings.fetch(&format!("/ratings/{id}"), headers, self.timeout).await;
        let stars = match answer {
            Ok((StatusCode::OK, body)) => parse(&body),
            Ok((status, _)) => {
                eprintln!("ratings answered {status}");
                None
            }
            Err(error) => {
                eprintln!("ratings: {error}");
                None
            }
        };
        books::REVIEWS
            .iter()
            .map(|(reviewer, _)| match &stars {
                Some(stars) => {
                    stars.get(*reviewer).map(|count| json!({ "stars": count, "color": self.color }))
                }
                None => Some(json!({ "error": "Ratings service is currently unavailable" })),
            })
            .collect()
    }
}

fn parse(body: &Bytes) -> Option<Value> {
    let mut document: Value = serde_json::from_slice(body).ok()?;
    document.get_mut("ratings").map(Value::take)
}
