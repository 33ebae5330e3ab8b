//! Dynamic metadata of a request: what filters write, and what load balancing
//! takes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;

use super::exchange::Exchange;
use super::filters::OnResponse;
use amime_rules::criteria::{MetadataMatch, NAMESPACE};
use amime_rules::metadata::{HeaderToMetadata, Rule, SetMetadata};

/// Notes what the request's headers say, and that the response's are to be
/// looked at.
pub(super) fn begin(exchange: &Exchange, rules: &Arc<HeaderToMetadata>) {
    of_headers(exchange, &rules.request, &mut exchange.head.borrow_mut().headers);
    if !rules.response.is_empty() {
        exchange.on_response.borrow_mut().push(OnResponse::ToMetadata(rules.clone()));
    }
}

/// Notes what headers say.
pub(super) fn of_headers(exchange: &Exchange, rules: &[Rule], headers: &mut HeaderMap) {
    let mut found = BTreeMap::new();
    rules.iter().for_each(|rule| rule.apply(headers, &mut found));
    if found.is_empty() {
        return;
    }
    let mut metadata = exchange.metadata.borrow_mut();
    let metadata = metadata.get_or_insert_default();
    found.iter().for_each(|(namespace, fields)| metadata.put(namespace, fields));
}

/// Notes what is configured.
pub(super) fn set(exchange: &Exchange, values: &SetMetadata) {
    values.apply(exchange.metadata.borrow_mut().get_or_insert_default());
}

/// The route's criteria with those of the request over them; `None` if the
/// request has none of its own.
pub(super) fn criteria(
    exchange: &Exchange,
    route: Option<&MetadataMatch>,
) -> Option<MetadataMatch> {
    let metadata = exchange.metadata.borrow();
    let own = metadata.as_ref()?.namespace(NAMESPACE)?;
    Some(MetadataMatch::over(route, own))
}
