//! Leaves filters out of a patch that the proxy does not have.

use serde_json::Value;

use crate::proxy::Proxy;

/// Lists whose items are filters, in both spellings.
const LISTS: [&str; 5] =
    ["filters", "http_filters", "httpFilters", "listener_filters", "listenerFilters"];
/// Messages that stand for another, whose type they name.
const WRAPPERS: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];

/// The value without filters that the proxy lacks; `None` if it is one itself.
///
/// A value that is merged into a filter says more about one that is there.
pub(super) fn for_proxy(proxy: &Proxy, value: &Value, merges: bool) -> Option<Value> {
    if !proxy.names_extensions() {
        return Some(value.clone());
    }
    if !merges && is_lacking(proxy, value) {
        return None;
    }
    let mut value = value.clone();
    prune(proxy, &mut value);
    Some(value)
}

fn prune(proxy: &Proxy, value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| prune(proxy, item)),
        Value::Object(fields) => {
            for (key, field) in fields {
                if let (true, Value::Array(items)) = (LISTS.contains(&key.as_str()), &mut *field) {
                    items.retain(|item| !is_lacking(proxy, item));
                }
                prune(proxy, field);
            }
        }
        _ => {}
    }
}

/// True for a filter of a kind that the proxy does not have.
fn is_lacking(proxy: &Proxy, filter: &Value) -> bool {
    let field = |names: [&str; 2]| names.iter().find_map(|name| filter.get(name));
    let typed = field(["typed_config", "typedConfig"]).and_then(type_of);
    if let Some(type_url) = typed {
        return !proxy.has_extension_of(type_url);
    }
    let discovery = field(["config_discovery", "configDiscovery"]);
    let types = discovery.and_then(|d| d.get("type_urls").or_else(|| d.get("typeUrls")));
    let mut types = types.and_then(Value::as_array).into_iter().flatten().peekable();
    types.peek().is_some()
        && !types.filter_map(Value::as_str).any(|url| proxy.has_extension_of(url))
}

/// Type of a packed message, or of the one that it stands for.
fn type_of(config: &Value) -> Option<&str> {
    let outer = config.get("@type")?.as_str()?;
    if !WRAPPERS.iter().any(|wrapper| outer.ends_with(wrapper)) {
        return Some(outer);
    }
    config.get("type_url").or_else(|| config.get("typeUrl"))?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LUA: &str = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua";
    const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

    #[track_caller]
    fn check(extensions: Value, value: Value, want: Option<Value>) {
        let mut proxy = json!({"type": "sidecar", "id": "a.b", "ips": ["10.0.0.1"]});
        if !extensions.is_null() {
            proxy["extensions"] = extensions;
        }
        let proxy = Proxy::from_json(&proxy.to_string()).expect("a proxy");
        assert_eq!(for_proxy(&proxy, &value, false), want);
    }

    #[test]
    fn only_proxies_that_name_their_extensions_lack_any() {
        let filter = json!({"name": "x", "typed_config": {"@type": LUA}});
        check(Value::Null, filter.clone(), Some(filter.clone()));
        check(json!(["envoy.filters.http.lua"]), filter.clone(), Some(filter.clone()));
        check(json!(["envoy.filters.http.router"]), filter, None);
    }

    #[test]
    fn filters_are_left_out_at_any_depth() {
        let chain = |filters: Value| json!({"filters": [{"typed_config": {"@type": ROUTER, "http_filters": filters}}]});
        let wrapped =
            json!({"typed_config": {"@type": "t/xds.type.v3.TypedStruct", "type_url": LUA}});
        let kept = json!({"typed_config": {"@type": ROUTER}});
        check(
            json!(["envoy.filters.http.router"]),
            chain(json!([wrapped, kept])),
            Some(chain(json!([kept]))),
        );
    }
}
