//! Routes of a virtual host found by a tree of matchers.
//!
//! Owns what the tree looks at of a request; the routes themselves stand in the
//! virtual host, and still have to match.

use std::borrow::Cow;
use std::ops::Range;

use envoy_types::pb::envoy::config::route::v3::{Route, RouteList};
use envoy_types::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;

use super::faults::Faults;
use super::head::RequestHead;
use super::matcher::HeaderSource;
use super::matcher_tree::{Meaning, Tree};
use super::values::{is, type_name, unpack};

/// The tree of a virtual host.
#[derive(Debug)]
pub struct RouteTree(Tree<HeaderSource, Range<usize>>);

/// The routes that actions have, in the order in which they were met.
#[derive(Default)]
struct Routes(Vec<Route>);

impl RouteTree {
    /// The tree, and the routes whose positions it knows.
    pub fn compile(value: &Matcher, faults: &mut Faults) -> Option<(Self, Vec<Route>)> {
        let mut routes = Routes::default();
        let compile = |faults: &mut Faults| Tree::compile(value, &mut routes, faults);
        let tree = faults.within("matcher", compile)?;
        Some((Self(tree), routes.0))
    }

    /// Positions of the routes for a request, the first of which that matches
    /// is meant.
    pub fn find(&self, head: &RequestHead) -> Option<Range<usize>> {
        self.0.find(&|header: &HeaderSource| text(header, head)).cloned()
    }
}

fn text<'v>(header: &HeaderSource, head: &'v RequestHead) -> Option<Cow<'v, str>> {
    Some(match header.value(head)? {
        Cow::Borrowed(value) => String::from_utf8_lossy(value),
        Cow::Owned(value) => String::from_utf8_lossy(&value).into_owned().into(),
    })
}

impl Meaning for Routes {
    type Input = HeaderSource;
    type Action = Range<usize>;

    /// Of requests, only headers may be looked at, as in Envoy.
    fn input(&mut self, any: &Any, faults: &mut Faults) -> Option<HeaderSource> {
        if !is::<HttpRequestHeaderMatchInput>(any) {
            faults.reject("", format!("{} is not supported", type_name(any)));
            return None;
        }
        let input: HttpRequestHeaderMatchInput = unpack(any, faults)?;
        let source = HeaderSource::parse(&input.header_name);
        if source.is_none() {
            faults.reject("header_name", format!("`{}` is no header", input.header_name));
        }
        source
    }

    fn action(&mut self, any: &Any, faults: &mut Faults) -> Option<Range<usize>> {
        let first = self.0.len();
        if is::<RouteList>(any) {
            let list: RouteList = unpack(any, faults)?;
            self.0.extend(list.routes);
        } else {
            self.0.push(unpack(any, faults)?);
        }
        Some(first..self.0.len())
    }
}
