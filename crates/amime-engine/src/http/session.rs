//! Stateful sessions on a request's way: the endpoint that it names, and the
//! one that the client is told.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, header};

use super::attempt::Failure;
use super::exchange::Exchange;
use super::filters::OnResponse;
use crate::upstream::{ClusterRuntime, Host};
use amime_rules::stateful_session::{StatefulSession, Wanted};

/// The session of one request.
pub(crate) struct Session {
    settings: Arc<StatefulSession>,
    wanted: Wanted,
}

/// Seconds of the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Takes from the request what it says of its endpoint.
pub(super) fn begin(exchange: &Exchange, settings: &Arc<StatefulSession>) {
    let wanted = settings.wanted(&exchange.head.borrow(), now());
    let Some(wanted) = wanted else { return };
    let session = Rc::new(Session { settings: settings.clone(), wanted });
    exchange.on_response.borrow_mut().push(OnResponse::Session(session));
}

/// The endpoint that the request's session is with.
pub(super) fn host(
    exchange: &Exchange,
    cluster: &ClusterRuntime,
) -> Result<Option<Rc<Host>>, Failure> {
    let steps = exchange.on_response.borrow();
    let sessions = steps.iter().filter_map(|step| match step {
        OnResponse::Session(session) => Some(session),
        _ => None,
    });
    for session in sessions {
        let Wanted::Endpoint(address) = session.wanted else { continue };
        let host = address.and_then(|address| cluster.session(address));
        if host.is_none() && session.settings.strict {
            return Err(Failure::SessionLost(session.settings.missing_status));
        }
        return Ok(host);
    }
    Ok(None)
}

/// Tells the client of an endpoint that it did not name.
pub(super) fn tell(exchange: &Exchange, session: &Session, headers: &mut HeaderMap) {
    let log = exchange.log.borrow();
    let Some(host) = &log.host else { return };
    let address = host.endpoint.address;
    if session.wanted == Wanted::Endpoint(Some(address)) {
        return;
    }
    let Some((name, value)) = session.settings.tell(address, now()) else { return };
    if name == header::SET_COOKIE {
        headers.append(name, value);
    } else {
        headers.insert(name, value);
    }
}
