//! `productpage`: the web page and the public API, made of the answers of
//! `details`, `reviews` and `ratings`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};

use crate::client::Upstream;
use crate::config::{Config, Timeouts};
use crate::reply::{self, Reply};
use crate::{books, forward, page};

/// Longest login form, in bytes.
const MAX_FORM: usize = 4 << 10;

/// Answer of a service: its document, or the status and a message to show.
pub(crate) type Answer = Result<Value, (StatusCode, &'static str)>;

/// The service.
pub(crate) struct Productpage {
    details: Service,
    reviews: Service,
    ratings: Service,
    results: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

struct Service {
    name: &'static str,
    upstream: Upstream,
    tries: u32,
    sorry: &'static str,
}

impl Productpage {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            details: Service {
                name: "details",
                upstream: Upstream::new(&config.details),
                tries: 1,
                sorry: "Sorry, product details are currently unavailable for this book.",
            },
            reviews: Service {
                name: "reviews",
                upstream: Upstream::new(&config.reviews),
                tries: Timeouts::REVIEWS_TRIES,
                sorry: "Sorry, product reviews are currently unavailable for this book.",
            },
            ratings: Service {
                name: "ratings",
                upstream: Upstream::new(&config.ratings),
                tries: 1,
                sorry: "Sorry, product ratings are currently unavailable for this book.",
            },
            results: Mutex::default(),
        }
    }

    /// Answers one request.
    pub(crate) async fn handle<B>(&self, request: Request<B>) -> Reply
    where
        B: Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        match (&parts.method, path) {
            (&Method::POST, "/login") => login(&parts.headers, body).await,
            (&Method::GET, "/logout") => logout(&parts.headers),
            (&Method::GET | &Method::HEAD, _) => self.read(path, &parts.headers).await,
            _ => reply::error(StatusCode::METHOD_NOT_ALLOWED, "only GET"),
        }
    }

    async fn read(&self, path: &str, headers: &HeaderMap) -> Reply {
        match path {
            "/" | "/index.html" => reply::html(page::index()),
            "/productpage" => self.product_page(headers).await,
            "/health" => reply::text(StatusCode::OK, "Product page is healthy"),
            "/metrics" => reply::text(StatusCode::OK, self.metrics()),
            "/static/style.css" => {
                reply::with_type(StatusCode::OK, "text/css; charset=utf-8", page::STYLE)
            }
            "/static/mark.svg" => reply::with_type(StatusCode::OK, "image/svg+xml", page::MARK),
            "/api/v1/products" => reply::json(StatusCode::OK, &books::products()),
            _ => match path.strip_prefix("/api/v1/products/") {
                Some(rest) => self.product(rest, headers).await,
                None => reply::not_found(),
            },
        }
    }

    async fn product_page(&self, headers: &HeaderMap) -> Reply {
        let forwarded = forward::headers_of_user(headers);
        // One after the other, so that a trace reads as the page is built.
        let details = self.ask(&self.details, 0, &forwarded).await;
        let reviews = self.ask(&self.reviews, 0, &forwarded).await;
        let user = forward::logged_in(headers);
        reply::html(page::product(user.as_deref(), &details, &reviews))
    }

    async fn product(&self, rest: &str, headers: &HeaderMap) -> Reply {
        let (id, service) = match rest.split_once('/') {
            None => (rest, &self.details),
            Some((id, "reviews")) => (id, &self.reviews),
            Some((id, "ratings")) => (id, &self.ratings),
            Some(_) => return reply::not_found(),
        };
        let Ok(id) = id.parse() else {
            return reply::error(StatusCode::BAD_REQUEST, "please provide numeric product id");
        };
        match self.ask(service, id, &forward::headers_of_user(headers)).await {
            Ok(document) => reply::json(StatusCode::OK, &document),
            Err((status, sorry)) => reply::error(status, sorry),
        }
    }

    async fn ask(&self, service: &Service, id: u64, headers: &HeaderMap) -> Answer {
        let path = format!("/{}/{id}", service.name);
        let mut status = StatusCode::INTERNAL_SERVER_ERROR;
        for _ in 0..service.tries {
            status = match service.upstream.fetch(&path, headers, Timeouts::PRODUCTPAGE).await {
                Ok((status, body)) => {
                    self.count(service.name, status);
                    match (status, serde_json::from_slice(&body)) {
                        (StatusCode::OK, Ok(document)) => return Ok(document),
                        (StatusCode::OK, Err(_)) => StatusCode::INTERNAL_SERVER_ERROR,
                        (status, _) => status,
                    }
                }
                Err(error) => {
                    eprintln!("{}: {error}", service.name);
                    self.count(service.name, StatusCode::INTERNAL_SERVER_ERROR);
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            };
        }
        Err((status, service.sorry))
    }

    fn count(&self, service: &'static str, status: StatusCode) {
        let mut results = self.results.lock().expect("no panic while held");
        *results.entry((service, status.as_u16())).or_default() += 1;
    }

    fn metrics(&self) -> String {
        let mut out = String::from(
            "# HELP request_result_total Answers of the services called.\n\
             # TYPE request_result_total counter\n",
        );
        for ((app, code), count) in self.results.lock().expect("no panic while held").iter() {
            writeln!(
                out,
                "request_result_total{{destination_app=\"{app}\",response_code=\"{code}\"}} {count}"
            )
            .expect("writing to a String cannot fail");
        }
        out
    }
}

async fn login<B>(headers: &HeaderMap, body: B) -> Reply
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let form = match Limited::new(body, MAX_FORM).collect().await {
        Ok(form) => form.to_bytes(),
        Err(_) => return reply::error(StatusCode::BAD_REQUEST, "please provide a login form"),
    };
    match user_of_form(&form) {
        Some(user) => back_with_cookie(headers, &format!("user={user}; Path=/; HttpOnly")),
        None => reply::error(StatusCode::BAD_REQUEST, "please provide a user name"),
    }
}

fn logout(headers: &HeaderMap) -> Reply {
    back_with_cookie(headers, "user=; Path=/; Max-Age=0")
}

fn back_with_cookie(headers: &HeaderMap, cookie: &str) -> Reply {
    let mut reply = reply::text(StatusCode::FOUND, Bytes::new());
    // Back to where the form was, but never to another site.
    let back = headers
        .get(header::REFERER)
        .and_then(|value| value.to_str().ok()?.parse::<http::Uri>().ok())
        .map(|uri| uri.path().trim_start_matches('/').to_owned())
        .and_then(|path| HeaderValue::from_str(&format!("/{path}")).ok())
        .unwrap_or_else(|| HeaderValue::from_static("/productpage"));
    reply.headers_mut().insert(header::LOCATION, back);
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        reply.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    reply
}

/// The field `username`; only characters that can stand in a cookie.
fn user_of_form(form: &[u8]) -> Option<String> {
    let form = std::str::from_utf8(form).ok()?;
    let name = form.split('&').find_map(|pair| pair.strip_prefix("username="))?;
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    let name = name.replace("%40", "@");
    (!name.is_empty() && name.len() <= 64 && name.chars().all(safe)).then_some(name)
}

/// Description of the services and what they call, for the start page.
pub(crate) fn services() -> Value {
    let ratings = json!({ "name": "ratings", "children": [] });
    json!({
        "name": "productpage",
        "children": [
            { "name": "details", "children": [] },
            { "name": "reviews", "children": [ratings] },
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_form_gives_a_user_that_fits_a_cookie() {
        assert_eq!(user_of_form(b"username=jason&passwd=x").as_deref(), Some("jason"));
        assert_eq!(user_of_form(b"passwd=x&username=a%40b").as_deref(), Some("a@b"));
        assert_eq!(user_of_form(b"username=a%0d%0aX"), None);
        assert_eq!(user_of_form(b"username="), None);
    }

    #[test]
    fn a_login_goes_back_to_this_site_only() {
        let mut headers = HeaderMap::new();
        let there = HeaderValue::from_static("http://elsewhere.example//evil/productpage");
        headers.insert(header::REFERER, there);
        let reply = logout(&headers);
        assert_eq!(reply.headers()[header::LOCATION], "/evil/productpage");
    }
}
