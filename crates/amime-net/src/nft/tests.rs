//! Encoding without a kernel; `tests/namespaces.rs` has the one with it.

use super::*;

#[test]
fn a_comment_is_cut_at_a_character() {
    let rule = Rule::new("é".repeat(200), vec![], Action::Accept);
    let mut batch = Batch::replace_table(Family::Ip, "t");
    batch.rule("c", &rule);
    let (bytes, _) = batch.messages.finish();
    assert!(bytes.len() < 700);
}

#[test]
fn every_message_has_a_description() {
    let mut batch = Batch::replace_table(Family::Inet, "t");
    batch.base_chain(BaseChain {
        name: "c",
        kind: ChainType::Nat,
        hook: Hook::Output,
        priority: -100,
    });
    let targets = vec!["10.0.0.1:80".parse().expect("address"); 3];
    batch.rule("c", &Rule::new("spread", vec![], Action::Dnat(targets)));
    batch.rule("c", &Rule::new("last", vec![Match::Mark(1)], Action::Return));
    let described = batch.descriptions.len();
    let (_, last) = batch.messages.finish();
    assert_eq!(described, last as usize);
    assert!(batch.descriptions[described - 1].contains("last"));
    assert!(batch.descriptions[described - 2].contains("spread"));
}
