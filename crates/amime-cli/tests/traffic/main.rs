//! Every feature of traffic management, from YAML to bytes on the wire.
//!
//! One mesh serves all tests; each has hosts of its own, so that several may
//! run at a time. The pods run this program too, as [`portal`]s: clients and
//! servers are code of the tests, see [`client`] and [`server`].
//!
//! Needs root or user namespaces; everything stays in namespaces of its own
//! and on loopback.

mod balance;
mod client;
mod egress;
mod gateway;
mod live;
mod mesh;
mod portal;
mod routing;
mod scope;
mod server;
mod tls;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use mesh::Mesh;

/// A test: a sentence, and what proves it.
type Test = (&'static str, fn(&Mesh));

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == portal::ARGUMENT) {
        return portal::run(&args[1..]);
    }
    let arguments = Arguments::from_args();
    let themes: [(&str, &[&[Test]]); 6] = [
        ("routing", routing::TESTS),
        ("gateway", gateway::TESTS),
        ("egress", egress::TESTS),
        ("scope", scope::TESTS),
        ("balance", balance::TESTS),
        ("live", live::TESTS),
    ];
    // Started by the thread that lives longest: the mesh ends with it.
    let mesh = (!arguments.list).then(|| Arc::new(Mesh::start()));
    let trial = |theme: &str, &(name, test): &Test| {
        let mesh = mesh.clone();
        let name = format!("{theme}::{}", name.replace(' ', "_"));
        Trial::test(name, move || {
            if let Some(mesh) = mesh {
                test(&mesh);
            }
            Ok(())
        })
    };
    let trials = themes.iter().flat_map(|(theme, tests)| {
        tests.iter().flat_map(|tests| tests.iter()).map(move |test| trial(theme, test))
    });
    let trials = trials.collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
