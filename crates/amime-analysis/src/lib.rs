//! Says what is wrong with configuration.
//!
//! [`validate`] looks at one object and refuses what cannot work; [`analyze`] looks at a whole
//! snapshot and finds what does not fit together. Both return values and change nothing; codes
//! are those of Istio's catalogue.
//!
//! ```
//! use amime_analysis::{Severity, validate};
//!
//! let text = "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: a}}";
//! let decoded = amime_api::decode::decode("dr.yaml", text);
//! let problems = validate(&decoded.resources[0]);
//! assert_eq!(problems[0].to_string(), "Error [IST0106] spec.host: a host name is required");
//! assert_eq!(problems[0].severity, Severity::Error);
//! ```

mod analyze;
mod destination_rule;
mod envoy_filter;
mod extensions;
mod gateway;
mod http_route;
mod localities;
mod platform;
mod problem;
mod security;
mod service_entry;
mod shared;
mod sidecar;
mod syntax;
mod validate;
mod virtual_service;

pub use analyze::{Message, analyze};
pub use problem::{Code, Problem, Severity};
pub use validate::{Delegates, validate, validate_with};
