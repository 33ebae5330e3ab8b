//! Names for the networks that clients are in.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/ip_tagging_filter>

use std::net::IpAddr;

use envoy_types::pb::envoy::extensions::filters::http::ip_tagging::v3 as pb;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use pb::ip_tagging::RequestType;
use pb::ip_tagging::ip_tag_header::HeaderAction;

use super::faults::Faults;
use super::matcher::joined;
use super::values;

/// A compiled `IPTagging`.
#[derive(Debug)]
pub struct IpTags {
    /// Requests of internal clients, and of others.
    applies: (bool, bool),
    tags: Vec<(String, Vec<IpNet>)>,
    header: HeaderName,
    /// The client's own value goes.
    sanitize: bool,
}

impl IpTags {
    pub fn compile(value: &pb::IpTagging, faults: &mut Faults) -> Option<Self> {
        faults.reject_if(value.ip_tags_datasource.is_some(), "ip_tags_datasource");
        if value.ip_tags.is_empty() {
            faults.reject("ip_tags", "missing");
        }
        let tag = |tag: &pb::ip_tagging::IpTag| {
            let ranges = tag.ip_list.iter().filter_map(|range| values::cidr(range, faults));
            (tag.ip_tag_name.clone(), ranges.collect())
        };
        let tags = value.ip_tags.iter().map(tag).collect();
        let own = value.ip_tag_header.as_ref();
        let header = match own.map_or("x-envoy-ip-tags", |own| &own.header).parse() {
            Ok(header) => header,
            Err(_) => {
                faults.reject("ip_tag_header.header", "not a header");
                return None;
            }
        };
        Some(Self {
            applies: match value.request_type() {
                RequestType::Both => (true, true),
                RequestType::Internal => (true, false),
                RequestType::External => (false, true),
            },
            tags,
            header,
            sanitize: own.is_some_and(|own| own.action() == HeaderAction::Sanitize),
        })
    }

    /// Tells the tags of a client. True if headers have changed.
    pub fn apply(&self, headers: &mut HeaderMap, client: IpAddr, internal: bool) -> bool {
        if !(if internal { self.applies.0 } else { self.applies.1 }) {
            return false;
        }
        let of = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&client));
        let tags: Vec<&str> = self
            .tags
            .iter()
            .filter(|(_, ranges)| of(ranges))
            .map(|(name, _)| name.as_str())
            .collect();
        if tags.is_empty() {
            return self.sanitize && headers.remove(&self.header).is_some();
        }
        let tags = tags.join(",");
        let before = joined(headers, &self.header).filter(|_| !self.sanitize);
        let all = match before {
            Some(before) => [&before, &b","[..], tags.as_bytes()].concat(),
            None => tags.into_bytes(),
        };
        if let Ok(value) = HeaderValue::from_bytes(&all) {
            headers.insert(self.header.clone(), value);
        }
        true
    }
}
