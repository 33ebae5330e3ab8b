//! Edits of trailers, which wait until the body they follow has passed.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::body::DownstreamBody;
use super::exchange::Exchange;
use super::filters::Payload;
use super::held::HeldBody;
use super::stage::{Output, Stage, StageError};
use super::{prepare, response};
use amime_rules::header_mutation::HeaderMutation;

/// Edits the trailers of a body, if it has some.
struct TrailerEdits {
    exchange: Rc<Exchange>,
    mutation: Arc<HeaderMutation>,
    of_request: bool,
}

impl Stage for TrailerEdits {
    fn data(&mut self, data: Bytes, out: &mut Output) -> Result<(), StageError> {
        out.push(data);
        Ok(())
    }

    fn end(&mut self, trailers: Option<HeaderMap>, out: &mut Output) -> Result<(), StageError> {
        out.trailers = trailers.map(|mut trailers| {
            let Self { exchange, mutation, of_request } = self;
            if *of_request {
                let head = exchange.head.borrow();
                let edits = &mutation.request_trailers;
                prepare::with_input(exchange, &head, |input| edits.apply(&mut trailers, input));
            } else {
                let status = exchange.log.borrow().status;
                response::edit(exchange, &mut trailers, status, &[&mutation.response_trailers]);
            }
            trailers
        });
        Ok(())
    }
}

/// Has the trailers of a request edited.
pub(super) fn edit_request(
    exchange: &Rc<Exchange>,
    body: &mut DownstreamBody,
    mutation: &Arc<HeaderMutation>,
) {
    let stage =
        TrailerEdits { exchange: exchange.clone(), mutation: mutation.clone(), of_request: true };
    HeldBody::of(body, exchange).watch(Box::new(stage));
}

/// Has the trailers of a response edited.
pub(super) fn edit_response(
    exchange: &Rc<Exchange>,
    mutation: Arc<HeaderMutation>,
    payload: &mut Payload<'_>,
) {
    // What is there whole has no trailers.
    if let Payload::Stream(stages) = payload
        && !mutation.response_trailers.is_empty()
    {
        stages.push(Box::new(TrailerEdits {
            exchange: exchange.clone(),
            mutation,
            of_request: false,
        }));
    }
}
