//! Merging a delegating HTTP route with the routes of its delegate.

use amime_api::networking::{HttpMatchRequest, HttpRoute, StringMatch};

/// The delegate's route under the root's conditions; `None` if they contradict.
///
/// Settings of the delegate win; what it leaves open comes from the root.
pub(crate) fn merge_route(root: &HttpRoute, delegate: &HttpRoute) -> Option<HttpRoute> {
    let mut merged = delegate.clone();
    merged.r#match = merge_matches(&root.r#match, &delegate.r#match)?;
    merged.name = join_names(&root.name, &delegate.name);
    merged.rewrite = merged.rewrite.or_else(|| root.rewrite.clone());
    merged.direct_response = merged.direct_response.or_else(|| root.direct_response.clone());
    merged.timeout = merged.timeout.or(root.timeout);
    merged.retries = merged.retries.or_else(|| root.retries.clone());
    merged.fault = merged.fault.or_else(|| root.fault.clone());
    merged.mirror = merged.mirror.or_else(|| root.mirror.clone());
    merged.mirror_percent = merged.mirror_percent.or(root.mirror_percent);
    merged.mirror_percentage = merged.mirror_percentage.or_else(|| root.mirror_percentage.clone());
    merged.cors_policy = merged.cors_policy.or_else(|| root.cors_policy.clone());
    merged.headers = merged.headers.or_else(|| root.headers.clone());
    if merged.mirrors.is_empty() {
        merged.mirrors = root.mirrors.clone();
    }
    Some(merged)
}

fn join_names(root: &str, delegate: &str) -> String {
    match (root, delegate) {
        (root, "") => root.to_owned(),
        ("", delegate) => delegate.to_owned(),
        (root, delegate) => format!("{root}-{delegate}"),
    }
}

fn merge_matches(
    root: &[HttpMatchRequest],
    delegate: &[HttpMatchRequest],
) -> Option<Vec<HttpMatchRequest>> {
    if root.is_empty() {
        return Some(delegate.to_vec());
    }
    if delegate.is_empty() {
        return Some(root.to_vec());
    }
    let mut merged = Vec::new();
    for inner in delegate {
        let before = merged.len();
        let compatible = root.iter().filter(|outer| !contradicts(outer, inner));
        merged.extend(compatible.map(|outer| merge_match(outer, inner)));
        // Each condition of the delegate has to lie within some condition of
        // the root; otherwise the author meant something we cannot express.
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_match(root: &HttpMatchRequest, delegate: &HttpMatchRequest) -> HttpMatchRequest {
    let mut merged = delegate.clone();
    merged.name = join_names(&root.name, &delegate.name);
    merged.uri = merged.uri.or_else(|| root.uri.clone());
    merged.scheme = merged.scheme.or_else(|| root.scheme.clone());
    merged.method = merged.method.or_else(|| root.method.clone());
    merged.authority = merged.authority.or_else(|| root.authority.clone());
    for (own, inherited) in [
        (&mut merged.headers, &root.headers),
        (&mut merged.without_headers, &root.without_headers),
        (&mut merged.query_params, &root.query_params),
    ] {
        for (key, value) in inherited {
            own.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    for (key, value) in &root.source_labels {
        merged.source_labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    if merged.port == 0 {
        merged.port = root.port;
    }
    if merged.source_namespace.is_empty() {
        merged.source_namespace.clone_from(&root.source_namespace);
    }
    if merged.gateways.is_empty() {
        merged.gateways.clone_from(&root.gateways);
    }
    if merged.stat_prefix.is_empty() {
        merged.stat_prefix.clone_from(&root.stat_prefix);
    }
    merged
}

fn contradicts(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> bool {
    let texts = [
        (&root.uri, &leaf.uri),
        (&root.scheme, &leaf.scheme),
        (&root.method, &leaf.method),
        (&root.authority, &leaf.authority),
    ];
    let maps = [
        (&root.headers, &leaf.headers),
        (&root.without_headers, &leaf.without_headers),
        (&root.query_params, &leaf.query_params),
    ];
    let label_differs = |(key, value): (&String, &String)| {
        root.source_labels.get(key).is_some_and(|own| own != value)
    };
    let outside = |gateway: &String| !root.gateways.contains(gateway);
    texts.iter().any(|(root, leaf)| text_contradicts(root.as_ref(), leaf.as_ref()))
        || maps.iter().any(|(root, leaf)| {
            leaf.iter().any(|(key, value)| text_contradicts(root.get(key), Some(value)))
        })
        || root.ignore_uri_case != leaf.ignore_uri_case
        || (root.port > 0 && leaf.port > 0 && root.port != leaf.port)
        || (!root.source_namespace.is_empty() && root.source_namespace != leaf.source_namespace)
        || leaf.source_labels.iter().any(label_differs)
        || (!root.gateways.is_empty() && leaf.gateways.iter().any(outside))
}

/// True unless everything that `leaf` matches is matched by `root` too.
fn text_contradicts(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> bool {
    let (Some(root), Some(leaf)) = (root, leaf) else { return false };
    match (root, leaf) {
        (StringMatch::Exact(root), StringMatch::Exact(leaf)) => root != leaf,
        (StringMatch::Prefix(root), StringMatch::Prefix(leaf) | StringMatch::Exact(leaf)) => {
            !leaf.starts_with(root)
        }
        // Patterns cannot be compared, so they never merge with anything.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, uri: StringMatch) -> HttpRoute {
        let condition = HttpMatchRequest { uri: Some(uri), ..Default::default() };
        HttpRoute { name: name.into(), r#match: vec![condition], ..Default::default() }
    }

    #[test]
    fn a_delegate_narrows_its_root() {
        let root = route("root", StringMatch::Prefix("/a".into()));
        let inner = route("leaf", StringMatch::Exact("/a/b".into()));
        let merged = merge_route(&root, &inner).expect("compatible");
        assert_eq!(merged.name, "root-leaf");
        assert_eq!(merged.r#match[0].uri, Some(StringMatch::Exact("/a/b".into())));
    }

    #[test]
    fn a_delegate_outside_its_root_falls_away() {
        let root = route("root", StringMatch::Prefix("/a".into()));
        for uri in [StringMatch::Prefix("/".into()), StringMatch::Regex("/a.*".into())] {
            assert_eq!(merge_route(&root, &route("leaf", uri)), None);
        }
    }
}
