//! The four services together, each a process of its own on a free port.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    fn start(role: &str, env: &[(&str, String)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bookinfo"))
            .args([role, "--port", "0"])
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env("HOSTNAME", format!("{role}-pod"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("it says where it listens");
        let port = line.trim().rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
        Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    fn get(&self, path: &str, headers: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: shop\r\n{headers}"), "")
    }

    fn send(&self, head: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        let length = body.len();
        write!(stream, "{head}connection: close\r\ncontent-length: {length}\r\n\r\n{body}")
            .expect("request is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answer is text");
        answer
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Shop {
    productpage: Service,
    _others: Vec<Service>,
}

/// A shop with one version of `reviews`.
fn shop(reviews: &str) -> Shop {
    let ratings = Service::start("ratings", &[]);
    let details = Service::start("details", &[]);
    let reviews = Service::start(reviews, &[("RATINGS_HOSTNAME", ratings.address.to_string())]);
    let productpage = Service::start(
        "productpage",
        &[
            ("DETAILS_HOSTNAME", details.address.to_string()),
            ("REVIEWS_HOSTNAME", reviews.address.to_string()),
            ("RATINGS_HOSTNAME", ratings.address.to_string()),
        ],
    );
    Shop { productpage, _others: vec![ratings, details, reviews] }
}

#[track_caller]
fn check(answer: &str, status: &str, texts: &[&str]) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    for text in texts {
        assert!(answer.contains(text), "{text:?} is not in {answer}");
    }
}

#[test]
fn the_page_joins_details_reviews_and_stars() {
    let shop = shop("reviews-v3");
    check(
        &shop.productpage.get("/productpage", ""),
        "200",
        &["<title>Simple Bookstore App</title>", "Shakespeare", "stars red", "reviews-v3-pod"],
    );
}

#[test]
fn version_one_has_no_stars() {
    let shop = shop("reviews-v1");
    let page = shop.productpage.get("/productpage", "");
    check(&page, "200", &["Reviewer1", "reviews-v1-pod"]);
    assert!(!page.contains("class=\"stars"), "{page}");
}

#[test]
fn the_api_passes_documents_on() {
    let shop = shop("reviews-v2");
    let get = |path: &str| shop.productpage.get(path, "");
    check(&get("/api/v1/products"), "200", &["The Comedy of Errors"]);
    check(&get("/api/v1/products/0"), "200", &["ISBN-13"]);
    check(
        &get("/api/v1/products/0/reviews"),
        "200",
        &["\"color\":\"black\"", "\"version\":\"v2\""],
    );
    check(&get("/api/v1/products/0/ratings"), "200", &["\"Reviewer2\":4"]);
    check(&get("/api/v1/products/x"), "400", &["numeric"]);
    check(&get("/metrics"), "200", &["destination_app=\"reviews\",response_code=\"200\"} 1"]);
}

#[test]
fn a_login_is_kept_in_a_cookie() {
    let shop = shop("reviews-v1");
    let head = "POST /login HTTP/1.1\r\nhost: shop\r\n";
    check(&shop.productpage.send(head, "username=jason"), "302", &["user=jason"]);
    let page = shop.productpage.get("/productpage", "cookie: user=jason\r\n");
    check(&page, "200", &["<b>jason</b>", "Sign out"]);
}

#[test]
fn a_missing_service_costs_only_its_part_of_the_page() {
    let reviews = Service::start("reviews-v1", &[]);
    // A port that was free a moment ago and that nobody listens on.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let productpage = Service::start(
        "productpage",
        &[
            ("DETAILS_HOSTNAME", gone.expect("bound").to_string()),
            ("REVIEWS_HOSTNAME", reviews.address.to_string()),
        ],
    );
    let page = productpage.get("/productpage", "");
    check(&page, "200", &["product details are currently unavailable", "Reviewer2"]);
}
