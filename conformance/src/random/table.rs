//! Generated route tables and requests that are likely to meet their edges.
//!
//! Tables are kept as the JSON that Envoy reads, so that a smaller one is made
//! by leaving parts out. Texts come from small pools: what tables say and what
//! requests say has to coincide often, and nearly coincide even more often.

use fastrand::Rng;
use serde_json::{Map, Value, json};

const DOMAINS: [&str; 12] = [
    "*",
    "a.test",
    "b.test",
    "a.test:8080",
    "*.test",
    "*.a.test",
    "*-x.test",
    "a.*",
    "a.test.*",
    "A.Test:81",
    "[::1]",
    "x.a.test",
];
const HOSTS: [&str; 18] = [
    "a.test",
    "b.test",
    "A.TEST",
    "a.test:8080",
    "a.test:81",
    "x.a.test",
    "y.x.a.test",
    "q-x.test",
    "c.test",
    "a.org",
    "a.test.org",
    "[::1]",
    "[::1]:80",
    "test",
    ".test",
    "a.test.",
    "other",
    "b.test:8080",
];
const SEGMENTS: [&str; 12] =
    ["a", "b", "api", "v1", "A", "Api", "a.b", "x-y", "1", "a%2Fb", "%61", "a b"];
const PATTERNS: [&str; 8] =
    ["/a/[a-z]+", "/(a|b)", "/.*", "/api/v\\d+/?.*", "/[^/]+/[^/]+", ".*b", "/a(/.*)?", "/A.*"];
const VALUES: [&str; 9] = ["1", "on", "one", "ONE", "10", "15", "on,one", "a b", "o"];
const HEADERS: [&str; 3] = ["x-a", "x-b", "X-C"];
const PARAMETERS: [&str; 3] = ["k", "q", "K"];
const METHODS: [&str; 6] = ["GET", "GET", "GET", "POST", "DELETE", "OPTIONS"];

/// A request, as little as decides about its route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) host: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
}

impl Request {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let Self { method, host, target, headers } = self;
        let mut text = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nx-echo: echo\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if *method == "POST" {
            text.push_str("content-length: 0\r\n");
        }
        (text + "\r\n").into_bytes()
    }

    /// Requests that say a little less.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut all = vec![];
        for index in 0..self.headers.len() {
            let mut one = self.clone();
            one.headers.remove(index);
            all.push(one);
        }
        if let Some((path, _)) = self.target.split_once('?') {
            all.push(Self { target: path.to_owned(), ..self.clone() });
        }
        if let Some((path, _)) = self.target.trim_end_matches('/').rsplit_once('/') {
            let target = if path.is_empty() { "/" } else { path };
            all.push(Self { target: target.to_owned(), ..self.clone() });
        }
        all.retain(|one| one != self);
        all
    }
}

fn pick<'a>(rng: &mut Rng, pool: &[&'a str]) -> &'a str {
    pool[rng.usize(..pool.len())]
}

/// True so many times in a hundred.
fn chance(rng: &mut Rng, percent: u8) -> bool {
    rng.u8(..100) < percent
}

/// A connection manager with a generated route table.
pub(super) fn table(rng: &mut Rng) -> Value {
    let mut domains: Vec<_> = DOMAINS.to_vec();
    rng.shuffle(&mut domains);
    let hosts: Vec<_> = (0..rng.usize(1..=4))
        .map(|index| {
            let own: Vec<_> = (0..rng.usize(1..=2)).filter_map(|_| domains.pop()).collect();
            let routes = (0..rng.usize(1..=5)).map(|route| self::route(rng, index, route));
            json!({"name": format!("h{index}"), "domains": own, "routes": routes.collect::<Vec<_>>()})
        })
        .collect();
    let mut table = json!({"route_config": {"name": "routes", "virtual_hosts": hosts}});
    for (name, percent) in [("normalize_path", 50), ("merge_slashes", 30)] {
        if chance(rng, percent) {
            table[name] = true.into();
        }
    }
    if chance(rng, 20) {
        table["route_config"]["ignore_port_in_host_matching"] = true.into();
    }
    if chance(rng, 20) {
        let actions = ["KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_FORWARD"];
        table["path_with_escaped_slashes_action"] = pick(rng, &actions).into();
    }
    table
}

fn route(rng: &mut Rng, host: usize, index: usize) -> Value {
    let (rule, has_prefix) = path_rule(rng);
    let mut rule = rule;
    if chance(rng, 20) && has_prefix {
        rule.insert("case_sensitive".into(), false.into());
    }
    if chance(rng, 40) {
        let rules = (0..rng.usize(1..=2)).map(|_| header_rule(rng));
        rule.insert("headers".into(), rules.collect::<Vec<_>>().into());
    }
    if chance(rng, 20) {
        rule.insert("query_parameters".into(), json!([parameter_rule(rng)]));
    }
    if chance(rng, 10) {
        let numerator = if rng.bool() { 100 } else { 0 };
        rule.insert("runtime_fraction".into(), json!({"default_value": {"numerator": numerator}}));
    }
    let mut route = Map::new();
    route.insert("match".into(), rule.into());
    let name = format!("{host}/{index}");
    route.insert(
        "response_headers_to_add".into(),
        json!([{"header": {"key": "x-route", "value": name}}]),
    );
    let (kind, action) = action(rng, has_prefix);
    route.insert(kind.into(), action);
    route.into()
}

/// The rule, and whether a prefix of what it matches can be rewritten.
fn path_rule(rng: &mut Rng) -> (Map<String, Value>, bool) {
    let mut rule = Map::new();
    match rng.u8(..10) {
        0..=3 => rule.insert("prefix".into(), path(rng, true).into()),
        4..=6 => rule.insert("path".into(), path(rng, true).into()),
        7 => {
            let path = path(rng, false);
            let path = if path == "/" { "/a".to_owned() } else { path };
            rule.insert("path_separated_prefix".into(), path.into())
        }
        _ => {
            let pattern = pick(rng, &PATTERNS);
            rule.insert("safe_regex".into(), json!({"regex": pattern}));
            return (rule, false);
        }
    };
    (rule, true)
}

fn path(rng: &mut Rng, may_end_in_slash: bool) -> String {
    let mut path = String::new();
    for _ in 0..rng.usize(..3) {
        path.push('/');
        // A space cannot stand in a request's target.
        path.push_str(&pick(rng, &SEGMENTS).replace(' ', "+"));
    }
    if path.is_empty() || (may_end_in_slash && chance(rng, 30)) {
        path.push('/');
    }
    path
}

fn text_rule(rng: &mut Rng) -> Value {
    let value = pick(rng, &VALUES);
    let kind = pick(rng, &["exact", "prefix", "suffix", "contains"]);
    if chance(rng, 15) {
        return json!({"safe_regex": {"regex": pick(rng, &["o.*", "[0-9]+", "on|one", ".*,.*"])}});
    }
    let mut rule = json!({kind: value});
    if chance(rng, 20) {
        rule["ignore_case"] = true.into();
    }
    rule
}

fn header_rule(rng: &mut Rng) -> Value {
    let mut rule = json!({"name": pick(rng, &HEADERS)});
    match rng.u8(..10) {
        0 => {
            rule["name"] = ":method".into();
            rule["string_match"] = json!({"exact": pick(rng, &METHODS)});
        }
        1 | 2 => rule["present_match"] = rng.bool().into(),
        3 => rule["range_match"] = json!({"start": 1, "end": 15}),
        _ => rule["string_match"] = text_rule(rng),
    }
    if chance(rng, 20) {
        rule["invert_match"] = true.into();
    }
    if chance(rng, 15) {
        rule["treat_missing_header_as_empty"] = true.into();
    }
    rule
}

fn parameter_rule(rng: &mut Rng) -> Value {
    let name = pick(rng, &PARAMETERS);
    if chance(rng, 30) {
        return json!({"name": name, "present_match": true});
    }
    json!({"name": name, "string_match": text_rule(rng)})
}

fn action(rng: &mut Rng, has_prefix: bool) -> (&'static str, Value) {
    match rng.u8(..10) {
        0..=4 => ("direct_response", json!({"status": 200})),
        5 | 6 => ("redirect", redirect(rng, has_prefix)),
        _ => ("route", forward(rng, has_prefix)),
    }
}

fn redirect(rng: &mut Rng, has_prefix: bool) -> Value {
    let mut redirect = match rng.u8(..4) {
        0 if has_prefix => json!({"prefix_rewrite": pick(rng, &["/", "/n", "/n/", "/n/m"])}),
        1 => json!({"path_redirect": pick(rng, &["/to", "/to?z=1", "/"])}),
        2 => json!({"regex_rewrite": rewrite(rng)}),
        _ => json!({"host_redirect": "to.test"}),
    };
    if chance(rng, 30) {
        redirect["https_redirect"] = true.into();
    }
    if chance(rng, 20) {
        redirect["port_redirect"] = 8443.into();
    }
    if chance(rng, 20) {
        redirect["strip_query"] = true.into();
    }
    redirect
}

fn forward(rng: &mut Rng, has_prefix: bool) -> Value {
    let mut route = json!({"cluster": pick(rng, &["a", "b"])});
    match rng.u8(..4) {
        0 if has_prefix => route["prefix_rewrite"] = pick(rng, &["/", "/n", "/n/"]).into(),
        1 => route["regex_rewrite"] = rewrite(rng),
        _ => {}
    }
    match rng.u8(..6) {
        0 => route["host_rewrite_literal"] = "new.test".into(),
        1 => route["host_rewrite_header"] = "x-a".into(),
        _ => {}
    }
    route
}

fn rewrite(rng: &mut Rng) -> Value {
    let (pattern, substitution) = match rng.u8(..4) {
        0 => ("^/([^/]+)/(.*)$", "/\\2/\\1"),
        1 => ("a", "z"),
        2 => ("/", "//"),
        _ => ("^/a(/.*)?$", "/w\\1"),
    };
    json!({"pattern": {"regex": pattern}, "substitution": substitution})
}

/// A request that is likely to be near what `table` says.
pub(super) fn request(rng: &mut Rng, table: &Value) -> Request {
    let hosts = table["route_config"]["virtual_hosts"].as_array().map_or(&[][..], Vec::as_slice);
    let known_host = hosts.get(rng.usize(..hosts.len().max(1)));
    let known = known_host.and_then(|host| known_rule(rng, host)).filter(|_| chance(rng, 80));
    let known_path = |rule: &Value| {
        let kinds = ["path", "prefix", "path_separated_prefix"];
        kinds.iter().find_map(|kind| rule[kind].as_str()).map(str::to_owned)
    };
    let mut target = known.and_then(known_path).unwrap_or_else(|| path(rng, true));
    for _ in 0..rng.usize(..4).saturating_sub(1) {
        change_path(rng, &mut target);
    }
    if chance(rng, 40) {
        let name = pick(rng, &PARAMETERS);
        let value = pick(rng, &VALUES).replace(' ', "+");
        target.push_str(&format!("?{name}={value}"));
        if chance(rng, 30) {
            target.push_str(pick(rng, &["&k=one", "&q", "&k", "&", "&k=1&k=on"]));
        }
    }
    let mut headers = known_headers(rng, known);
    if chance(rng, 30) {
        headers.push((pick(rng, &HEADERS).to_owned(), pick(rng, &VALUES).to_owned()));
    }
    let method = METHODS[rng.usize(..METHODS.len())];
    Request { method, host: host(rng, hosts, known_host), target, headers }
}

/// A host of the rule that is aimed at, of the table, or any.
fn host(rng: &mut Rng, hosts: &[Value], known: Option<&Value>) -> String {
    let aimed = if chance(rng, 50) { known } else { None };
    let among = aimed.map_or(hosts, std::slice::from_ref);
    let domains = among.iter().filter_map(|host| host["domains"].as_array());
    let domains: Vec<_> = domains.flatten().filter_map(Value::as_str).collect();
    if domains.is_empty() || chance(rng, 15) {
        return pick(rng, &HOSTS).to_owned();
    }
    let label = pick(rng, &["a", "x", "b.c", "Q"]);
    pick(rng, &domains).replace('*', label)
}

fn known_rule<'a>(rng: &mut Rng, host: &'a Value) -> Option<&'a Value> {
    let routes = host["routes"].as_array()?;
    Some(&routes[rng.usize(..routes.len())]["match"])
}

/// Headers that a rule asks for, mostly.
fn known_headers(rng: &mut Rng, rule: Option<&Value>) -> Vec<(String, String)> {
    let rules = rule.and_then(|rule| rule["headers"].as_array()).into_iter().flatten();
    let mut headers = vec![];
    for rule in rules.filter(|rule| rule["name"] != ":method") {
        let text = &rule["string_match"];
        let kinds = ["exact", "prefix", "suffix", "contains"];
        let value = kinds.iter().find_map(|kind| text[kind].as_str());
        let value = value.unwrap_or_else(|| pick(rng, &VALUES));
        if chance(rng, 80) {
            headers.push((rule["name"].as_str().unwrap_or("x-a").to_owned(), value.to_owned()));
        }
    }
    headers
}

fn change_path(rng: &mut Rng, path: &mut String) {
    match rng.u8(..9) {
        0 => path.push_str("/b"),
        1 => path.push('/'),
        2 => path.push('x'),
        3 => *path = path.to_ascii_uppercase(),
        4 => path.insert(0, '/'),
        5 => path.push_str("/../c"),
        6 => path.push_str("/./b"),
        7 => path.push_str("%2Fb"),
        _ => path.push_str("\\b"),
    }
}

/// Tables that say a little less, still valid.
pub(super) fn smaller(table: &Value) -> Vec<Value> {
    let mut all = vec![];
    remove_parts(table, &mut |smaller| all.push(smaller));
    all
}

/// Calls `found` with `value` less one part, for each part that may go.
fn remove_parts(value: &Value, found: &mut dyn FnMut(Value)) {
    const LISTS: [&str; 5] = ["virtual_hosts", "routes", "domains", "headers", "query_parameters"];
    const OPTIONAL: [&str; 13] = [
        "normalize_path",
        "merge_slashes",
        "ignore_port_in_host_matching",
        "path_with_escaped_slashes_action",
        "case_sensitive",
        "headers",
        "query_parameters",
        "runtime_fraction",
        "invert_match",
        "treat_missing_header_as_empty",
        "ignore_case",
        "strip_query",
        "https_redirect",
    ];
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if OPTIONAL.contains(&name.as_str()) {
                    let mut less = fields.clone();
                    less.remove(name);
                    found(less.into());
                }
                if let (Value::Array(items), true) = (field, LISTS.contains(&name.as_str())) {
                    for index in (0..items.len()).filter(|_| items.len() > 1) {
                        let mut less = items.clone();
                        less.remove(index);
                        let mut fields = fields.clone();
                        fields.insert(name.clone(), less.into());
                        found(fields.into());
                    }
                }
                remove_parts(field, &mut |less| {
                    let mut fields = fields.clone();
                    fields.insert(name.clone(), less);
                    found(fields.into());
                });
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                remove_parts(item, &mut |less| {
                    let mut items = items.clone();
                    items[index] = less;
                    found(items.into());
                });
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_table() {
        let make = |seed| {
            let mut rng = Rng::with_seed(seed);
            let table = table(&mut rng);
            let request = request(&mut rng, &table);
            (table, request)
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
    }

    #[test]
    fn smaller_tables_lack_one_part_each() {
        let table = json!({
            "merge_slashes": true,
            "route_config": {"virtual_hosts": [{"routes": [{"match": {"path": "/"}}, {"name": "b"}]}]},
        });
        let sizes: Vec<_> = smaller(&table).iter().map(|one| one.to_string().len()).collect();
        assert_eq!(sizes.len(), 3, "the option and either route: {sizes:?}");
        assert!(sizes.iter().all(|size| *size < table.to_string().len()));
    }
}
