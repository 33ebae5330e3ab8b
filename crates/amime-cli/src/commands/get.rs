//! `get`: objects as tables and documents.

use std::time::SystemTime;

use amime_api::{Kind, Resource, columns, decode};
use amime_control::api::WatchLine;
use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::apply::qualified;
use crate::args::{Globals, Output};
use crate::output::{self, Document};
use crate::session::Session;
use crate::table::Table;
use crate::target::{self, Selection};

/// Spaces between columns, as kubectl has them.
const PADDING: usize = 3;

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// `KIND[,KIND…] [NAME…]` or `KIND/NAME…`; `all` for pods, services and deployments
    #[arg(required = true, value_name = "KIND NAME")]
    targets: Vec<String>,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Format: short, wide, json, yaml or name
    #[arg(short, long)]
    output: Option<Output>,
    /// Only objects with these labels: `app=reviews,version!=v1`
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Go on and print changes
    #[arg(short, long)]
    watch: bool,
    /// Leave out the headers
    #[arg(long)]
    no_headers: bool,
}

/// Prints objects.
pub(crate) async fn run(globals: &Globals, args: GetArgs) -> anyhow::Result<()> {
    let session = Session::of(globals)?;
    let selections = target::selections(&args.targets)?;
    let requirements = requirements(args.selector.as_deref().unwrap_or_default())?;
    let namespace = if args.all_namespaces { None } else { Some(globals.namespace()) };
    let one = selections.len() == 1 && selections.iter().all(|s| s.names.len() == 1);
    let mut found = Vec::new();
    let mut faults = Vec::new();
    for selection in &selections {
        let mut objects = fetch(&session, namespace, selection, &mut faults).await?;
        objects.retain(|object| requirements.iter().all(|r| r.holds(object)));
        found.push((selection.kind, objects));
    }
    match args.output {
        Some(Output::Json) => output::print(document(Document::Json, found, one)?)?,
        Some(Output::Yaml) => output::print(document(Document::Yaml, found, one)?)?,
        Some(Output::Name) => names(&found)?,
        _ => tables(&args, namespace, &selections, &found)?,
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    if args.watch {
        watch(&session, namespace, &args, &selections, &requirements).await?;
    }
    Ok(())
}

async fn fetch(
    session: &Session,
    namespace: Option<&str>,
    selection: &Selection,
    faults: &mut Vec<String>,
) -> anyhow::Result<Vec<Value>> {
    let kind = selection.kind;
    if selection.names.is_empty() {
        return session.list(kind.plural(), namespace).await;
    }
    let Some(namespace) = namespace else {
        bail!("an object cannot be asked for by name across all namespaces");
    };
    let mut found = Vec::new();
    for name in &selection.names {
        match session.find(kind.plural(), namespace, name).await? {
            Some(object) => found.push(object),
            None => faults.push(format!("{} \"{name}\" not found", qualified(kind))),
        }
    }
    Ok(found)
}

fn document(
    document: Document,
    found: Vec<(Kind, Vec<Value>)>,
    one: bool,
) -> anyhow::Result<String> {
    let mut items: Vec<Value> = found.into_iter().flat_map(|(_, objects)| objects).collect();
    if one {
        return items.pop().map_or(Ok(String::new()), |object| document.render(&object));
    }
    let list = json!({ "apiVersion": "v1", "items": items, "kind": "List", "metadata": {} });
    document.render(&list)
}

fn names(found: &[(Kind, Vec<Value>)]) -> anyhow::Result<()> {
    for (kind, objects) in found {
        for object in objects {
            output::line(format_args!("{}/{}", qualified(*kind), field(object, "name")))?;
        }
    }
    Ok(())
}

fn tables(
    args: &GetArgs,
    namespace: Option<&str>,
    selections: &[Selection],
    found: &[(Kind, Vec<Value>)],
) -> anyhow::Result<()> {
    let several = selections.len() > 1;
    // What was asked for by name and is missing has its own message.
    let named = selections.iter().any(|selection| !selection.names.is_empty());
    let mut first = true;
    for (kind, objects) in found.iter().filter(|(_, objects)| !objects.is_empty()) {
        if !first {
            println!();
        }
        first = false;
        let shape = Shape {
            wide: args.output == Some(Output::Wide),
            with_namespace: namespace.is_none() && kind.is_namespaced(),
            with_kind: several,
            headers: !args.no_headers,
        };
        output::print(shape.table(*kind, objects, SystemTime::now())?)?;
    }
    if first && !args.watch && !named {
        match namespace {
            Some(namespace) if found.iter().any(|(kind, _)| kind.is_namespaced()) => {
                eprintln!("No resources found in {namespace} namespace.");
            }
            _ => eprintln!("No resources found"),
        }
    }
    Ok(())
}

/// How a table looks.
struct Shape {
    wide: bool,
    with_namespace: bool,
    with_kind: bool,
    headers: bool,
}

impl Shape {
    fn table(&self, kind: Kind, objects: &[Value], now: SystemTime) -> anyhow::Result<Table> {
        let mut table = if self.headers {
            let namespace = self.with_namespace.then_some("NAMESPACE");
            let headers = columns::headers(kind, self.wide);
            Table::new(PADDING, namespace.into_iter().chain(headers))
        } else {
            Table::headless(PADDING)
        };
        for object in objects {
            let mut cells = columns::columns(&resource(object)?, self.wide, now);
            if self.with_kind
                && let Some(name) = cells.first_mut()
            {
                *name = format!("{}/{name}", qualified(kind));
            }
            let namespace = self.with_namespace.then(|| field(object, "namespace").to_owned());
            table.row(namespace.into_iter().chain(cells));
        }
        Ok(table)
    }
}

fn resource(object: &Value) -> anyhow::Result<Resource> {
    let decoded = decode::decode("the API", &object.to_string());
    let fault = || {
        let faults: Vec<String> = decoded.errors.iter().map(ToString::to_string).collect();
        format!("an object cannot be read: {}", faults.join("; "))
    };
    decoded.resources.first().cloned().with_context(fault)
}

fn field<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
}

/// Prints a row, without headers, for each change from now on.
async fn watch(
    session: &Session,
    namespace: Option<&str>,
    args: &GetArgs,
    selections: &[Selection],
    requirements: &[Requirement],
) -> anyhow::Result<()> {
    let mut changes = session.api().watch(None).await.map_err(|e| session.explain(e))?;
    let mut synced = false;
    while let Some(line) = changes.next().await? {
        let object = match line {
            WatchLine::Synced { .. } => {
                synced = true;
                continue;
            }
            WatchLine::Added(watched)
            | WatchLine::Modified(watched)
            | WatchLine::Deleted(watched) => watched.object,
        };
        let kind = object["kind"].as_str().unwrap_or_default();
        let wanted = selections.iter().find(|selection| {
            let named = selection.names.is_empty()
                || selection.names.iter().any(|n| n == field(&object, "name"));
            selection.kind.name() == kind && named
        });
        let here = namespace.is_none_or(|n| field(&object, "namespace") == n);
        let Some(selection) = wanted.filter(|_| synced && here) else { continue };
        if requirements.iter().all(|requirement| requirement.holds(&object)) {
            let shape = Shape {
                wide: args.output == Some(Output::Wide),
                with_namespace: namespace.is_none() && selection.kind.is_namespaced(),
                with_kind: selections.len() > 1,
                headers: false,
            };
            output::print(shape.table(selection.kind, &[object], SystemTime::now())?)?;
        }
    }
    Ok(())
}

/// One part of a label selector.
#[derive(Debug, PartialEq, Eq)]
enum Requirement {
    Equal(String, String),
    NotEqual(String, String),
    Present(String),
    Absent(String),
}

impl Requirement {
    fn holds(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        match self {
            Self::Equal(key, value) => label(key) == Some(value),
            Self::NotEqual(key, value) => label(key) != Some(value),
            Self::Present(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
        }
    }
}

fn requirements(selector: &str) -> anyhow::Result<Vec<Requirement>> {
    selector.split(',').map(str::trim).filter(|part| !part.is_empty()).map(requirement).collect()
}

fn requirement(text: &str) -> anyhow::Result<Requirement> {
    let pair = |(key, value): (&str, &str)| (key.trim().to_owned(), value.trim().to_owned());
    if let Some((key, value)) = text.split_once("!=").map(pair) {
        return Ok(Requirement::NotEqual(key, value));
    }
    if let Some((key, value)) = text.split_once("==").or(text.split_once('=')).map(pair) {
        return Ok(Requirement::Equal(key, value));
    }
    ensure!(!text.contains(char::is_whitespace), "{text:?} is not a requirement on labels");
    Ok(match text.strip_prefix('!') {
        Some(key) => Requirement::Absent(key.to_owned()),
        None => Requirement::Present(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, namespace: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": name, "namespace": namespace, "labels": { "app": name },
                "creationTimestamp": "1969-12-31T23:59:00Z",
            },
            "spec": { "clusterIP": "10.96.0.7", "ports": [{ "port": 9080, "name": "http" }] },
        })
    }

    #[track_caller]
    fn check(shape: &Shape, want: &str) {
        let objects = [service("reviews", "default"), service("details", "shop")];
        let table = shape.table(Kind::Service, &objects, SystemTime::UNIX_EPOCH);
        assert_eq!(table.expect("objects are read").to_string(), want);
    }

    #[test]
    fn tables_look_like_those_of_kubectl() {
        let shape = Shape { wide: false, with_namespace: true, with_kind: false, headers: true };
        check(
            &shape,
            "NAMESPACE   NAME      TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)    AGE\n\
             default     reviews   ClusterIP   10.96.0.7    <none>        9080/TCP   60s\n\
             shop        details   ClusterIP   10.96.0.7    <none>        9080/TCP   60s\n",
        );
        let shape = Shape { wide: false, with_namespace: false, with_kind: true, headers: false };
        check(
            &shape,
            "service/reviews   ClusterIP   10.96.0.7   <none>   9080/TCP   60s\n\
             service/details   ClusterIP   10.96.0.7   <none>   9080/TCP   60s\n",
        );
    }

    #[test]
    fn selectors_have_kubectls_forms() {
        let object = service("reviews", "default");
        let holds = |text: &str| {
            requirements(text).expect("selector is read").iter().all(|r| r.holds(&object))
        };
        assert!(holds("") && holds("app=reviews") && holds("app==reviews,version!=v1"));
        assert!(holds("app,!version"));
        assert!(!holds("app!=reviews") && !holds("version") && !holds("app=details"));
        assert!(requirements("app in (a b)").is_err());
    }

    #[test]
    fn one_object_is_printed_alone_and_several_as_a_list() {
        let found = || vec![(Kind::Service, vec![service("reviews", "default")])];
        let one = document(Document::Json, found(), true).expect("is JSON");
        let list = document(Document::Json, found(), false).expect("is JSON");
        assert!(one.contains("\"kind\": \"Service\"") && !one.contains("\"List\""));
        assert!(list.contains("\"kind\": \"List\""));
    }
}
