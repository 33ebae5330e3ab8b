//! `proxy-status`: where each proxy stands, from istiod's `/debug/syncz`.

use serde_json::Value;
use time::OffsetDateTime;

use crate::age;
use crate::table::Table;

/// Spaces between columns.
const PADDING: usize = 5;

/// Types with a place of their own, in istioctl's order.
const KNOWN: [&str; 4] = ["CDS", "LDS", "EDS", "RDS"];
/// Types that the verbose table shows even when nobody asked for them.
const ALWAYS: [&str; 5] = ["CDS", "ECDS", "EDS", "LDS", "RDS"];

/// One istiod's answer.
pub(crate) struct Answer {
    /// Pod that answered.
    pub(crate) istiod: String,
    /// Its `/debug/syncz`.
    pub(crate) statuses: Vec<Value>,
}

/// A row for each proxy with the types it has subscribed to.
pub(crate) fn short(answers: &[Answer], namespace: Option<&str>) -> Table {
    let mut table =
        Table::new(PADDING, ["NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES"]);
    for (istiod, status) in rows(answers, namespace) {
        let types = types_of(status);
        let subscribed = format!("{} ({})", types.len(), types.join(","));
        let [name, cluster, version] =
            ["proxy", "cluster_id", "istio_version"].map(|f| text(status, f).to_owned());
        table.row([name, cluster, istiod.to_owned(), version, subscribed]);
    }
    table
}

/// A row for each proxy with the state of each type.
pub(crate) fn verbose(answers: &[Answer], namespace: Option<&str>, now: OffsetDateTime) -> Table {
    let rows = rows(answers, namespace);
    let mut types: Vec<&str> = ALWAYS.to_vec();
    for kind in rows.iter().flat_map(|(_, status)| types_of(status)) {
        if !types.contains(&kind) {
            types.push(kind);
        }
    }
    types[ALWAYS.len()..].sort_unstable();
    let header = ["NAME", "CLUSTER"].into_iter().chain(types.iter().copied());
    let mut table = Table::new(PADDING, header.chain(["ISTIOD", "VERSION"]));
    for (istiod, status) in rows {
        let first = ["proxy", "cluster_id"].map(|field| text(status, field).to_owned());
        let cells = types.iter().map(|kind| state(&status["types"][*kind], now));
        let last = [istiod.to_owned(), text(status, "istio_version").to_owned()];
        table.row(first.into_iter().chain(cells).chain(last));
    }
    table
}

/// Proxies that have rejected something, each with its error.
pub(crate) fn errors(answers: &[Answer], namespace: Option<&str>) -> Vec<String> {
    let mut errors = Vec::new();
    for (_, status) in rows(answers, namespace) {
        for kind in types_of(status) {
            if let Some(error) = status["types"][kind]["error"].as_str() {
                errors.push(format!("{} {kind}: {error}", text(status, "proxy")));
            }
        }
    }
    errors
}

/// Proxies by name, with the pod that serves them.
fn rows<'a>(answers: &'a [Answer], namespace: Option<&str>) -> Vec<(&'a str, &'a Value)> {
    let of_answer = |answer: &'a Answer| {
        answer.statuses.iter().map(move |status| (answer.istiod.as_str(), status))
    };
    let mut rows: Vec<(&str, &Value)> = answers
        .iter()
        .flat_map(of_answer)
        .filter(|(_, status)| {
            let own = text(status, "proxy").split_once('.').map(|(_, namespace)| namespace);
            namespace.is_none() || namespace == own
        })
        .collect();
    rows.sort_by_key(|(_, status)| text(status, "proxy"));
    rows
}

fn text<'a>(status: &'a Value, field: &str) -> &'a str {
    status[field].as_str().unwrap_or_default()
}

/// Subscribed types: the known ones in their order, then the rest by name.
fn types_of(status: &Value) -> Vec<&str> {
    let Some(types) = status["types"].as_object() else { return Vec::new() };
    let known = KNOWN.into_iter().filter(|kind| types.contains_key(*kind));
    let mut others: Vec<&str> =
        types.keys().map(String::as_str).filter(|kind| !KNOWN.contains(kind)).collect();
    others.sort_unstable();
    known.chain(others).collect()
}

fn state(of_type: &Value, now: OffsetDateTime) -> String {
    let Some(state) = of_type["state"].as_str() else { return "IGNORED".to_owned() };
    let at = match state {
        "SYNCED" => of_type["acked_at"].as_str().or(of_type["sent_at"].as_str()),
        "NOT SENT" => None,
        _ => of_type["sent_at"].as_str(),
    };
    at.map_or_else(|| state.to_owned(), |at| format!("{state} ({})", age::since(at, now)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answers() -> Vec<Answer> {
        let synced = json!({
            "state": "SYNCED", "sent_at": "1969-12-31T23:59:00Z", "acked_at": "1969-12-31T23:59:10Z"
        });
        let error = json!({
            "state": "ERROR", "sent_at": "1969-12-31T23:50:00Z", "error": "no such cluster"
        });
        let proxy = |name: &str, types: Value| {
            json!({
                "proxy": name, "cluster_id": "Kubernetes", "istio_version": "1.30.0", "types": types
            })
        };
        vec![Answer {
            istiod: "istiod-6f".to_owned(),
            statuses: vec![
                proxy("reviews-v1.default", json!({ "RDS": error, "CDS": synced, "NDS": synced })),
                proxy(
                    "ingress.istio-system",
                    json!({ "LDS": synced, "CDS": { "state": "NOT SENT" } }),
                ),
            ],
        }]
    }

    #[test]
    fn each_proxy_tells_its_types() {
        assert_eq!(
            short(&answers(), None).to_string(),
            "NAME                     CLUSTER        ISTIOD        VERSION     SUBSCRIBED TYPES\n\
             ingress.istio-system     Kubernetes     istiod-6f     1.30.0      2 (CDS,LDS)\n\
             reviews-v1.default       Kubernetes     istiod-6f     1.30.0      3 (CDS,RDS,NDS)\n"
        );
    }

    #[test]
    fn a_namespace_narrows_the_list() {
        let text = short(&answers(), Some("default")).to_string();
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn verbose_tells_states_and_ages() {
        let table = verbose(&answers(), Some("default"), OffsetDateTime::UNIX_EPOCH).to_string();
        let cells: Vec<&str> = table.lines().nth(1).expect("a row").split("     ").collect();
        assert_eq!(
            cells
                .iter()
                .map(|cell| cell.trim())
                .filter(|cell| !cell.is_empty())
                .collect::<Vec<_>>(),
            [
                "reviews-v1.default",
                "Kubernetes",
                "SYNCED (50s)",
                "IGNORED",
                "IGNORED",
                "IGNORED",
                "ERROR (10m)",
                "SYNCED (50s)",
                "istiod-6f",
                "1.30.0"
            ]
        );
    }

    #[test]
    fn rejections_are_told() {
        assert_eq!(errors(&answers(), None), ["reviews-v1.default RDS: no such cluster"]);
    }
}
