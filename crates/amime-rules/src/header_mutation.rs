//! The filter that edits headers, trailers and query parameters in the order of
//! its lists.

use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3 as pb;

use super::faults::Faults;
use super::headers::HeaderEdits;
use super::query_edits::QueryEdits;

/// A compiled `HeaderMutation`.
#[derive(Debug)]
pub struct HeaderMutation {
    pub request: HeaderEdits,
    pub query: QueryEdits,
    pub response: HeaderEdits,
    pub request_trailers: HeaderEdits,
    pub response_trailers: HeaderEdits,
    /// A route's edits come after its parents', not before.
    pub specific_wins: bool,
}

impl HeaderMutation {
    pub fn compile(value: &pb::Mutations, specific_wins: bool, faults: &mut Faults) -> Self {
        let query = QueryEdits::compile(&value.query_parameter_mutations, faults);
        let mut edits = |list: &[_], field: &str| HeaderEdits::mutations(list, field, &mut *faults);
        Self {
            query,
            request: edits(&value.request_mutations, "mutations.request_mutations"),
            response: edits(&value.response_mutations, "mutations.response_mutations"),
            request_trailers: edits(
                &value.request_trailers_mutations,
                "mutations.request_trailers_mutations",
            ),
            response_trailers: edits(
                &value.response_trailers_mutations,
                "mutations.response_trailers_mutations",
            ),
            specific_wins,
        }
    }
}
