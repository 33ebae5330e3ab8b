//! The suites against a real Envoy, named by `AMIME_ENVOY`.

use std::path::PathBuf;

use amime_conformance::{Options, Product, RandomOptions, cases, h2spec, random};

fn products() -> (Product, Product) {
    let envoy = std::env::var_os("AMIME_ENVOY").expect("AMIME_ENVOY names an Envoy binary");
    let ours = env!("CARGO_BIN_EXE_amime-conformance");
    (Product::envoy(&PathBuf::from(envoy)), Product::ours(ours.as_ref(), &["proxy"]))
}

#[test]
fn both_proxies_answer_the_written_cases_alike() {
    let (envoy, ours) = products();
    let report = cases(&envoy, &ours, &Options::default()).expect("the cases run");
    println!("{report}");
    assert!(report.passed());
}

#[test]
fn we_keep_as_many_rules_of_http2_as_envoy() {
    let (envoy, ours) = products();
    let report = h2spec(&envoy, &ours, "").expect("the rules can be checked");
    println!("{report}");
    assert!(report.passed());
}

#[test]
fn both_proxies_choose_the_same_routes() {
    let (envoy, ours) = products();
    let options = RandomOptions { seed: 1, count: 12_000 };
    let report = random(&envoy, &ours, options).expect("the tables are taken");
    println!("{report}");
    assert!(report.passed());
}
