//! The filter that edits headers in the order of its list.

use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3 as pb;

use super::faults::Faults;
use super::headers::HeaderEdits;

/// A compiled `HeaderMutation`.
#[derive(Debug)]
pub struct HeaderMutation {
    pub request: HeaderEdits,
    pub response: HeaderEdits,
    /// A route's edits come after its parents', not before.
    pub specific_wins: bool,
}

impl HeaderMutation {
    pub(crate) fn compile(value: &pb::Mutations, specific_wins: bool, faults: &mut Faults) -> Self {
        let query = !value.query_parameter_mutations.is_empty();
        faults.ignore_if(query, "mutations.query_parameter_mutations");
        let trailers = !value.response_trailers_mutations.is_empty();
        faults.ignore_if(trailers, "mutations.response_trailers_mutations");
        let trailers = !value.request_trailers_mutations.is_empty();
        faults.ignore_if(trailers, "mutations.request_trailers_mutations");
        let mut edits = |list: &[_], field: &str| HeaderEdits::mutations(list, field, &mut *faults);
        Self {
            request: edits(&value.request_mutations, "mutations.request_mutations"),
            response: edits(&value.response_mutations, "mutations.response_mutations"),
            specific_wins,
        }
    }
}
