//! The shop's stock: one book, and what two readers say about it.

use serde_json::{Value, json};

/// Title of the only book.
pub(crate) const TITLE: &str = "The Comedy of Errors";

/// Blurb of the book, as HTML.
pub(crate) const DESCRIPTION_HTML: &str = "Two pairs of identical twins, parted in a shipwreck, \
    turn up in the same town on the same day. <b>William Shakespeare's</b> shortest play lives \
    on mistaken identity and quick wit (<a \
    href=\"https://en.wikipedia.org/wiki/The_Comedy_of_Errors\">more on Wikipedia</a>).";

/// Reviewers and their words, in the order they are shown.
pub(crate) const REVIEWS: [(&str, &str); 2] = [
    (
        "Reviewer1",
        "I laughed from the first mix-up to the last. Short, quick and full of good nonsense!",
    ),
    (
        "Reviewer2",
        "Great fun, though it has less depth than his later plays and the ending comes in a rush.",
    ),
];

/// Stars that each reviewer gives until someone posts others.
pub(crate) const STARS: [(&str, u64); 2] = [("Reviewer1", 5), ("Reviewer2", 4)];

/// The catalogue.
pub(crate) fn products() -> Value {
    json!([{ "id": 0, "title": TITLE, "descriptionHtml": DESCRIPTION_HTML }])
}

/// What `details` knows about book `id`.
pub(crate) fn details(id: u64) -> Value {
    json!({
        "id": id,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    })
}
