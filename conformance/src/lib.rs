//! Holds a real Envoy and our proxy to the same requests.
//!
//! Three suites, one command each: `cases` sends written cases through both
//! and compares all that can be seen from outside, `random` compares routing
//! over generated tables, `h2spec` counts the HTTP/2 rules that each keeps.
//!
//! Owns servers, clients, cases and the comparison; proxies are processes
//! that get a bootstrap file and Envoy's flags.
//!
//! Invariant: nothing here knows how a proxy works, so that what is compared
//! is what a user would see.
//!
//! ```no_run
//! use amime_conformance::{Options, Product, cases};
//!
//! let envoy = Product::envoy("envoy".as_ref());
//! let ours = Product::ours("amime-proxy".as_ref(), &[]);
//! let report = cases(&envoy, &ours, &Options::default()).expect("both proxies start");
//! assert!(report.passed(), "{report}");
//! ```

mod backend;
mod bootstrap;
mod case;
mod certs;
mod client;
mod coding;
mod h2spec;
mod lists;
mod outcome;
mod product;
mod random;
mod report;
mod suite;
mod wire;

use std::path::{Path, PathBuf};

pub use h2spec::{H2Report, h2spec};
pub use product::Product;
pub use random::{RandomOptions, RandomReport, random};
pub use report::Report;
pub use suite::cases;

/// What of the written cases is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only bootstraps whose name contains this.
    pub only: String,
    /// Only cases whose name contains this.
    pub case: String,
    /// Where expanded bootstraps and logs are left; default: nowhere.
    pub keep: Option<PathBuf>,
}

/// The folder of cases and lists, beside the sources.
fn data_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
