//! How objects and pods are named on the command line: `KIND NAME`,
//! `KIND/NAME`, `[TYPE/]NAME[.NAMESPACE]`.

use amime_api::Kind;
use anyhow::{Context, bail};
use serde_json::Value;

use crate::session::Session;

/// A kind with the names that were given for it; none means all.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) kind: Kind,
    pub(crate) names: Vec<String>,
}

/// Reads `KIND[,KIND…] [NAME…]` or `KIND/NAME…`.
pub(crate) fn selections(words: &[String]) -> anyhow::Result<Vec<Selection>> {
    let (first, rest) = words.split_first().context("a kind is needed, such as pods")?;
    if words.iter().any(|word| word.contains('/')) {
        return words.iter().map(|word| kind_and_name(word)).collect();
    }
    let kinds = expand(first)?;
    if kinds.len() > 1 && !rest.is_empty() {
        bail!("names can follow one kind only; use KIND/NAME for several");
    }
    Ok(kinds.into_iter().map(|kind| Selection { kind, names: rest.to_vec() }).collect())
}

fn kind_and_name(word: &str) -> anyhow::Result<Selection> {
    let (kind, name) = word
        .split_once('/')
        .with_context(|| format!("{word:?} has no kind before the name; use KIND/NAME"))?;
    Ok(Selection { kind: Kind::parse(kind)?, names: vec![name.to_owned()] })
}

fn expand(list: &str) -> anyhow::Result<Vec<Kind>> {
    if list == "all" {
        return Ok(vec![Kind::Pod, Kind::Service, Kind::Deployment]);
    }
    list.split(',').map(|kind| Ok(Kind::parse(kind)?)).collect()
}

/// A pod, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Session {
    /// The pod that `[TYPE/]NAME[.NAMESPACE]` means: one of this name, or else
    /// the first of the workload or service of this name.
    pub(crate) async fn pod(&self, namespace: &str, text: &str) -> anyhow::Result<Pod> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (Some(Kind::parse(kind)?), name),
            None => (None, text),
        };
        // A pod's name has no dots in practice, so the first one ends it.
        let (name, namespace) = name.split_once('.').unwrap_or((name, namespace));
        let pods = self.list("pods", Some(namespace)).await?;
        choose(&pods, kind, name)
            .map(|found| Pod { namespace: namespace.to_owned(), name: found.to_owned() })
            .with_context(|| format!("pods \"{name}\" not found in namespace {namespace}"))
    }
}

fn choose<'a>(pods: &'a [Value], kind: Option<Kind>, name: &str) -> Option<&'a str> {
    let exact = pods.iter().filter_map(pod_name).find(|pod| *pod == name);
    if kind.is_none_or(|kind| kind == Kind::Pod) && exact.is_some() {
        return exact;
    }
    if kind == Some(Kind::Pod) {
        return None;
    }
    let of_workload = |pod: &&Value| {
        let labels = &pod["metadata"]["labels"];
        pod_name(pod).and_then(|pod| pod.strip_prefix(name)).is_some_and(is_pod_suffix)
            || labels["app"] == name
    };
    // A ready pod answers; one that is starting is better than none.
    let mut found: Vec<&Value> = pods.iter().filter(of_workload).collect();
    found.sort_by_key(|pod| !is_ready(pod));
    found.first().copied().and_then(pod_name)
}

fn pod_name(pod: &Value) -> Option<&str> {
    pod["metadata"]["name"].as_str()
}

/// `-7d9f8b6c5-x2kqp` behind a workload's name.
fn is_pod_suffix(rest: &str) -> bool {
    rest.strip_prefix('-').is_some_and(|rest| {
        rest.split('-').count() <= 2
            && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && rest.chars().any(|c| c.is_ascii_digit())
    })
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(words: &[&str], want: &[(Kind, &[&str])]) {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let got = selections(&words).expect("is read");
        let got: Vec<(Kind, Vec<&str>)> =
            got.iter().map(|s| (s.kind, s.names.iter().map(String::as_str).collect())).collect();
        let want: Vec<(Kind, Vec<&str>)> = want.iter().map(|(k, n)| (*k, n.to_vec())).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn kinds_and_names_in_every_spelling() {
        check(&["vs"], &[(Kind::VirtualService, &[])]);
        check(&["svc", "a", "b"], &[(Kind::Service, &["a", "b"])]);
        check(&["po,svc"], &[(Kind::Pod, &[]), (Kind::Service, &[])]);
        check(&["svc/a", "dr/b"], &[(Kind::Service, &["a"]), (Kind::DestinationRule, &["b"])]);
        assert!(selections(&["nothing".to_owned()]).is_err());
        assert!(selections(&[]).is_err());
    }

    fn pod(name: &str, app: &str, ready: &str) -> Value {
        json!({
            "metadata": { "name": name, "labels": { "app": app } },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        })
    }

    #[test]
    fn a_workload_stands_for_its_first_ready_pod() {
        let pods = [
            pod("reviews-v1-5d4f9-aaaaa", "reviews", "False"),
            pod("reviews-v1-5d4f9-bbbbb", "reviews", "True"),
            pod("reviews-v10-5d4f9-ccccc", "reviews", "True"),
        ];
        let all = |kind, name| choose(&pods, kind, name);
        assert_eq!(all(None, "reviews-v1"), Some("reviews-v1-5d4f9-bbbbb"));
        assert_eq!(all(None, "reviews-v1-5d4f9-aaaaa"), Some("reviews-v1-5d4f9-aaaaa"));
        assert_eq!(all(Some(Kind::Service), "reviews"), Some("reviews-v1-5d4f9-bbbbb"));
        assert_eq!(all(Some(Kind::Pod), "reviews-v1"), None);
        assert_eq!(all(None, "details"), None);
    }
}
