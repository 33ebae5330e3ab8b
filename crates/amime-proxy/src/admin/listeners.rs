//! `/listeners`: names and addresses.

use std::fmt::Write;
use std::net::SocketAddr;

use amime_core::unix::{Shown, path_of};
use amime_engine::runtime::RuntimeDump;
use serde_json::{Value, json};

/// Envoy's text form.
pub(super) fn text(dump: &RuntimeDump) -> String {
    let mut out = String::new();
    for listener in &dump.listeners {
        let address =
            listener.address.map_or_else(String::new, |address| Shown(address).to_string());
        // A write to a `String` cannot fail.
        let _ = writeln!(out, "{}::{address}", listener.name);
    }
    out
}

/// Envoy's JSON form, `envoy.admin.v3.Listeners`.
pub(super) fn json(dump: &RuntimeDump) -> Value {
    let statuses: Vec<_> = dump
        .listeners
        .iter()
        .map(|listener| {
            json!({
                "name": listener.name,
                "local_address": listener.address.map(socket_address),
            })
        })
        .collect();
    json!({ "listener_statuses": statuses })
}

/// `envoy.config.core.v3.Address` of a socket.
pub(super) fn socket_address(address: SocketAddr) -> Value {
    if let Some(path) = path_of(address) {
        return json!({"pipe": {"path": &*path}});
    }
    json!({"socket_address": {
        "address": address.ip().to_string(),
        "port_value": address.port(),
    }})
}
