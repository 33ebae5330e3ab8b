//! What listener, network and HTTP filters have in common: a name and a packed
//! configuration.

use amime_xds::json::{Lists, merge_any};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::Any;

/// A filter of any kind.
pub(super) trait Named {
    fn name_mut(&mut self) -> &mut String;
    fn config_mut(&mut self) -> Option<&mut Any>;
}

macro_rules! named {
    ($filter:ident, $config:ident) => {
        impl Named for $filter {
            fn name_mut(&mut self) -> &mut String {
                &mut self.name
            }

            fn config_mut(&mut self) -> Option<&mut Any> {
                match &mut self.config_type {
                    Some($config::ConfigType::TypedConfig(any)) => Some(any),
                    _ => None,
                }
            }
        }
    };
}

named!(Filter, filter);
named!(ListenerFilter, listener_filter);
named!(HttpFilter, http_filter);

/// Merges a filter into another: its name, if it has one, and its
/// configuration, if it is of the same type.
pub(super) fn merge<F: Named>(target: &mut F, mut patch: F, lists: Lists) {
    let Some(config) = target.config_mut() else { return };
    if let Some(own) = patch.config_mut() {
        // Another type says nothing about this filter.
        drop(merge_any(config, own, lists));
    }
    let name = patch.name_mut();
    if !name.is_empty() {
        *target.name_mut() = std::mem::take(name);
    }
}
