//! `proxy-config`: what a proxy was told, from its admin interface.
//!
//! The writers here are pure: they take the JSON of `/config_dump` or
//! `/clusters?format=json` and return text in istioctl's form.

mod bootstrap;
mod cluster;
pub(crate) mod dump;
mod endpoint;
mod listener;
mod route;
mod secret;

pub(crate) use bootstrap::versions;
pub(crate) use cluster::ClusterFilter;
pub(crate) use endpoint::EndpointFilter;
pub(crate) use listener::ListenerFilter;
pub(crate) use route::RouteFilter;

use serde_json::Value;

use crate::output::Document;
use crate::table::Table;
use dump::ConfigDump;

/// Spaces between the columns of most tables.
const PADDING: usize = 5;

/// How a section is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// istioctl's table.
    Table {
        /// Whether a column in front names the resource with its type.
        named: bool,
    },
    /// The resources themselves.
    Document(Document),
}

/// Text of the clusters that pass the filter.
pub(crate) fn clusters(
    dump: &ConfigDump,
    filter: &ClusterFilter,
    view: View,
) -> anyhow::Result<String> {
    let clusters = cluster::select(dump, filter)?;
    render(clusters, view, cluster::table)
}

/// Text of the listeners that pass the filter.
pub(crate) fn listeners(
    dump: &ConfigDump,
    filter: &ListenerFilter,
    view: View,
) -> anyhow::Result<String> {
    let listeners = listener::select(dump, filter)?;
    render(listeners, view, |listeners, named| listener::table(listeners, filter.verbose, named))
}

/// Text of the route configurations that pass the filter.
pub(crate) fn routes(
    dump: &ConfigDump,
    filter: &RouteFilter,
    view: View,
) -> anyhow::Result<String> {
    let routes = route::select(dump, filter)?;
    render(routes, view, |routes, named| route::table(routes, filter.verbose, named))
}

/// Text of the endpoints in `/clusters?format=json` that pass the filter.
pub(crate) fn endpoints(
    clusters: &Value,
    filter: &EndpointFilter,
    view: View,
) -> anyhow::Result<String> {
    match view {
        View::Table { .. } => Ok(endpoint::table(clusters, filter).to_string()),
        View::Document(document) => document.render(&endpoint::select(clusters, filter)),
    }
}

/// Text of the secrets.
pub(crate) fn secrets(dump: &ConfigDump, now: i64, view: View) -> anyhow::Result<String> {
    let items = secret::items(dump, now)?;
    match view {
        View::Table { .. } if items.is_empty() => Ok("No secret items to show.\n".to_owned()),
        View::Table { named } => Ok(secret::table(&items, named).to_string()),
        View::Document(document) => document.render(&secret::document(&items)),
    }
}

/// Text of the bootstrap.
pub(crate) fn bootstrap(dump: &ConfigDump, document: Document) -> anyhow::Result<String> {
    document.render(&dump::camel_case(bootstrap::find(dump)?))
}

fn render(
    resources: Vec<&Value>,
    view: View,
    table: impl Fn(&[&Value], bool) -> Table,
) -> anyhow::Result<String> {
    match view {
        View::Table { named } => Ok(table(&resources, named).to_string()),
        View::Document(document) => {
            document.render(&resources.into_iter().map(dump::camel_case).collect())
        }
    }
}

#[cfg(test)]
mod tests;
