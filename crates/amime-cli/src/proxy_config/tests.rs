//! The writers, over one recorded dump.

use expect_test::{ExpectFile, expect_file};

use super::*;

/// A moment in which the fixture's certificates are valid: 2026-12-01.
const NOW: i64 = 1_796_083_200;
const TABLE: View = View::Table { named: false };

fn dump() -> ConfigDump {
    ConfigDump::parse(include_str!("testdata/config_dump.json")).expect("fixture parses")
}

fn statuses() -> Value {
    serde_json::from_str(include_str!("testdata/clusters.json")).expect("fixture parses")
}

#[track_caller]
fn check(got: anyhow::Result<String>, want: ExpectFile) {
    want.assert_eq(&got.expect("the dump has it"));
}

fn listener_filter(verbose: bool) -> ListenerFilter {
    ListenerFilter { address: String::new(), port: 0, kind: String::new(), verbose }
}

fn route_filter(verbose: bool) -> RouteFilter {
    RouteFilter { name: String::new(), verbose }
}

#[test]
fn clusters_are_listed_by_host_and_subset() {
    let filter = ClusterFilter::default();
    check(clusters(&dump(), &filter, TABLE), expect_file!["testdata/clusters.txt"]);
}

#[test]
fn clusters_are_filtered() {
    let filter = ClusterFilter {
        fqdn: "reviews".to_owned(),
        subset: "v2".to_owned(),
        port: 9080,
        ..ClusterFilter::default()
    };
    check(clusters(&dump(), &filter, TABLE), expect_file!["testdata/clusters_filtered.txt"]);
}

#[test]
fn listeners_show_matches_and_destinations() {
    let filter = listener_filter(true);
    check(listeners(&dump(), &filter, TABLE), expect_file!["testdata/listeners.txt"]);
}

#[test]
fn listeners_show_types_when_terse() {
    let filter = listener_filter(false);
    check(listeners(&dump(), &filter, TABLE), expect_file!["testdata/listeners_short.txt"]);
}

#[test]
fn routes_show_domains_matches_and_origin() {
    let filter = route_filter(true);
    check(routes(&dump(), &filter, TABLE), expect_file!["testdata/routes.txt"]);
}

#[test]
fn routes_show_the_number_of_hosts_when_terse() {
    let filter = route_filter(false);
    check(routes(&dump(), &filter, TABLE), expect_file!["testdata/routes_short.txt"]);
}

#[test]
fn endpoints_are_listed_by_address() {
    let filter = EndpointFilter::default();
    check(endpoints(&statuses(), &filter, TABLE), expect_file!["testdata/endpoints.txt"]);
}

#[test]
fn secrets_show_validity() {
    check(secrets(&dump(), NOW, TABLE), expect_file!["testdata/secrets.txt"]);
}

#[test]
fn an_expired_certificate_is_not_valid() {
    let later = secrets(&dump(), NOW + 20 * 365 * 86_400, TABLE).expect("the dump has secrets");
    assert!(!later.contains("true"), "{later}");
}

#[test]
fn named_tables_say_the_type_of_each_resource() {
    let view = View::Table { named: true };
    let text = clusters(&dump(), &ClusterFilter::default(), view).expect("has clusters");
    assert!(text.contains("cluster/outbound|9080|v2|reviews"), "{text}");
    let text = listeners(&dump(), &listener_filter(true), view).expect("has listeners");
    assert!(text.contains("listener/virtualInbound"), "{text}");
}

#[test]
fn documents_have_camel_case_fields_and_verbatim_metadata() {
    let filter = RouteFilter { name: "9080".to_owned(), verbose: true };
    let view = View::Document(Document::Json);
    check(routes(&dump(), &filter, view), expect_file!["testdata/routes.json"]);
}

#[test]
fn the_bootstrap_tells_the_versions() {
    check(versions(&dump()), expect_file!["testdata/versions.txt"]);
    check(bootstrap(&dump(), Document::Yaml), expect_file!["testdata/bootstrap.yaml"]);
}

#[test]
fn a_dump_in_camel_case_reads_the_same() {
    let camel = dump::camel_case(dump().value()).to_string();
    let camel = ConfigDump::parse(&camel).expect("still a dump");
    let filter = listener_filter(true);
    let tables = [&dump(), &camel].map(|d| listeners(d, &filter, TABLE).expect("has listeners"));
    assert_eq!(tables[0], tables[1]);
}

#[test]
fn text_that_is_no_dump_is_refused() {
    assert!(ConfigDump::parse("{}").is_err());
    assert!(ConfigDump::parse("<html>").is_err());
    let empty = ConfigDump::parse(r#"{"configs": []}"#).expect("an empty dump");
    let error = clusters(&empty, &ClusterFilter::default(), TABLE).expect_err("nothing there");
    assert_eq!(error.to_string(), "no clusters found");
}
