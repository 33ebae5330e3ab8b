//! The HTML of `productpage`.
//!
//! Invariant: every text that came from outside is escaped.

use std::fmt::Write as _;

use serde_json::Value;

use crate::productpage::Answer;
use crate::{books, productpage};

/// Style sheet, served under `/static`.
pub(crate) const STYLE: &str = include_str!("static/style.css");
/// The shop's mark, served under `/static`.
pub(crate) const MARK: &str = include_str!("static/mark.svg");

const STARS_MAX: u64 = 5;

/// The start page.
pub(crate) fn index() -> String {
    let mut tree = String::new();
    service_tree(&productpage::services(), &mut tree);
    let body = format!(
        "<main class=\"narrow\"><h1>A book shop in four services</h1>\
         <p>This shop sells one book. Its page is put together from the answers of three \
         other services, which makes it a handy thing to try a mesh on.</p>\
         <p><a class=\"button\" href=\"/productpage\">Open the product page</a></p>\
         <h2>Who calls whom</h2><ul class=\"tree\">{tree}</ul></main>"
    );
    frame(None, &body)
}

fn service_tree(service: &Value, out: &mut String) {
    let name = escape(service["name"].as_str().unwrap_or_default());
    write!(out, "<li><code>{name}</code>").expect("writing to a String cannot fail");
    let children = service["children"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !children.is_empty() {
        out.push_str("<ul>");
        children.iter().for_each(|child| service_tree(child, out));
        out.push_str("</ul>");
    }
    out.push_str("</li>");
}

/// The product page for `user`, with what the services answered.
pub(crate) fn product(user: Option<&str>, details: &Answer, reviews: &Answer) -> String {
    let body = format!(
        "<main><header class=\"book\"><h1>{title}</h1><p>{blurb}</p></header>\
         <section id=\"details\"><h2>Book Details</h2>{details}</section>\
         <section id=\"reviews\"><h2>Book Reviews</h2>{reviews}</section></main>",
        title = books::TITLE,
        blurb = books::DESCRIPTION_HTML,
        details = match details {
            Ok(document) => details_table(document),
            Err((_, sorry)) => error_box("Error fetching product details!", sorry),
        },
        reviews = match reviews {
            Ok(document) => review_list(document),
            Err((_, sorry)) => error_box("Error fetching product reviews!", sorry),
        },
    );
    frame(user, &body)
}

fn error_box(title: &str, text: &str) -> String {
    format!(
        "<div class=\"error\" role=\"alert\"><h3>{}</h3><p>{}</p></div>",
        escape(title),
        escape(text)
    )
}

fn details_table(document: &Value) -> String {
    const ROWS: [(&str, &str); 8] = [
        ("author", "Author"),
        ("year", "Year"),
        ("type", "Type"),
        ("pages", "Pages"),
        ("publisher", "Publisher"),
        ("language", "Language"),
        ("ISBN-10", "ISBN-10"),
        ("ISBN-13", "ISBN-13"),
    ];
    let mut out = String::from("<dl>");
    for (key, label) in ROWS {
        let value = match &document[key] {
            Value::Null => continue,
            Value::String(text) => escape(text),
            other => escape(&other.to_string()),
        };
        write!(out, "<div><dt>{label}</dt><dd>{value}</dd></div>")
            .expect("writing to a String cannot fail");
    }
    out.push_str("</dl>");
    out
}

fn review_list(document: &Value) -> String {
    let mut out = String::new();
    for review in document["reviews"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let text = escape(review["text"].as_str().unwrap_or_default());
        let reviewer = escape(review["reviewer"].as_str().unwrap_or_default());
        write!(
            out,
            "<article><blockquote>{text}</blockquote><footer>{reviewer}{stars}</footer></article>",
            stars = stars(&review["rating"]),
        )
        .expect("writing to a String cannot fail");
    }
    let by = escape(document["podname"].as_str().unwrap_or("unknown"));
    let version = document["version"].as_str().map(|v| format!(" ({})", escape(v)));
    let version = version.unwrap_or_default();
    write!(out, "<p class=\"served\">Reviews served by: <code>{by}</code>{version}</p>")
        .expect("writing to a String cannot fail");
    out
}

fn stars(rating: &Value) -> String {
    if let Some(error) = rating["error"].as_str() {
        return format!("<span class=\"rating-error\">{}</span>", escape(error));
    }
    let Some(count) = rating["stars"].as_u64() else { return String::new() };
    let full = count.min(STARS_MAX);
    let color = if rating["color"] == "red" { "red" } else { "black" };
    format!(
        "<span class=\"stars {color}\" role=\"img\" aria-label=\"{full} of {STARS_MAX} stars\">{}\
         <span class=\"empty\">{}</span></span>",
        "★".repeat(full as usize),
        "★".repeat((STARS_MAX - full) as usize),
    )
}

fn frame(user: Option<&str>, body: &str) -> String {
    let account = match user {
        Some(user) => format!(
            "<span>Signed in as <b>{}</b></span> <a href=\"/logout\">Sign out</a>",
            escape(user)
        ),
        None => "<form method=\"post\" action=\"/login\">\
                 <input name=\"username\" placeholder=\"User name\" aria-label=\"User name\" \
                 required pattern=\"[A-Za-z0-9_.@\\-]+\"><button>Sign in</button></form>"
            .to_owned(),
    };
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Simple Bookstore App</title>\
         <link rel=\"icon\" href=\"/static/mark.svg\"><link rel=\"stylesheet\" href=\"/static/style.css\">\
         </head><body><nav><a class=\"brand\" href=\"/\"><img src=\"/static/mark.svg\" alt=\"\" \
         width=\"28\" height=\"28\">Bookinfo</a><div class=\"account\">{account}</div></nav>{body}\
         </body></html>\n"
    )
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(reviews: Answer, want: &[&str]) {
        let html = product(None, &Ok(books::details(0)), &reviews);
        for text in want {
            assert!(html.contains(text), "{text:?} is not in {html}");
        }
    }

    #[test]
    fn the_page_shows_stars_in_the_colour_of_the_version() {
        let review = json!({
            "reviewer": "Reviewer1", "text": "ok", "rating": { "stars": 4, "color": "red" }
        });
        check(
            Ok(json!({ "podname": "reviews-v3-a", "version": "v3", "reviews": [review] })),
            &["class=\"stars red\"", "★★★★<", "4 of 5", "<code>reviews-v3-a</code> (v3)"],
        );
    }

    #[test]
    fn a_missing_rating_shows_no_stars_and_a_failed_one_says_so() {
        assert_eq!(stars(&Value::Null), "");
        assert!(stars(&json!({ "error": "down" })).contains("down"));
    }

    #[test]
    fn a_failed_service_leaves_the_rest_of_the_page() {
        check(
            Err((StatusCode::SERVICE_UNAVAILABLE, "Sorry, no reviews")),
            &["Sorry, no reviews", "Error fetching product reviews!", "William Shakespeare"],
        );
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let html = product(Some("<b>"), &Ok(json!({})), &Ok(json!({ "podname": "<i>" })));
        assert!(html.contains("&lt;b&gt;") && html.contains("&lt;i&gt;"), "{html}");
    }
}
