//! Trees of matchers: what is found of the inputs decides between branches.
//!
//! Owns the walk. What inputs and actions there are is its user's.
//!
//! Invariant: a branch that matches and comes to nothing is as one that does
//! not match; only the first action counts.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/xds/type/matcher/v3/matcher.proto>

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use envoy_types::pb::envoy::extensions::matching::input_matchers::ip::v3::Ip;
use envoy_types::pb::envoy::r#type::matcher::v3 as envoy;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig;
use envoy_types::pb::xds::r#type::matcher::v3 as pb;
use ipnet::IpNet;
use pb::matcher::matcher_list::predicate::{MatchType, SinglePredicate, single_predicate};
use pb::matcher::matcher_list::{FieldMatcher, Predicate as PbPredicate};
use pb::matcher::matcher_tree::TreeType;
use pb::matcher::on_match::OnMatch as Kind;
use pb::matcher::{MatcherType, OnMatch};

use super::faults::Faults;
use super::matcher::StringMatcher;
use super::values::{cidr, is, type_name, unpack, within};

/// A compiled `xds.type.matcher.v3.Matcher` over inputs `I`.
#[derive(Debug)]
pub struct Tree<I, A> {
    branches: Branches<I, A>,
    otherwise: Option<Box<Outcome<I, A>>>,
}

#[derive(Debug)]
enum Branches<I, A> {
    None,
    /// The first that holds.
    List(Vec<(Predicate<I>, Outcome<I, A>)>),
    Exact(I, HashMap<String, Outcome<I, A>>),
    /// The longest that fits.
    Prefix(I, Vec<(String, Outcome<I, A>)>),
}

#[derive(Debug)]
enum Outcome<I, A> {
    Tree(Tree<I, A>),
    Action(A),
}

#[derive(Debug)]
enum Predicate<I> {
    Text(I, StringMatcher),
    Address(I, Vec<IpNet>),
    Any(Vec<Predicate<I>>),
    All(Vec<Predicate<I>>),
    Not(Box<Predicate<I>>),
}

/// What the user of a tree makes of its inputs and actions; `None` after it
/// has said what is wrong.
pub trait Meaning {
    type Input;
    type Action;

    fn input(&mut self, any: &Any, faults: &mut Faults) -> Option<Self::Input>;

    fn action(&mut self, any: &Any, faults: &mut Faults) -> Option<Self::Action>;
}

impl<I, A> Tree<I, A> {
    pub fn compile<M: Meaning<Input = I, Action = A>>(
        value: &pb::Matcher,
        meaning: &mut M,
        faults: &mut Faults,
    ) -> Option<Self> {
        let branches = match value.matcher_type.as_ref() {
            None => Branches::None,
            Some(MatcherType::MatcherList(list)) => {
                let mut all = Vec::with_capacity(list.matchers.len());
                for (index, one) in list.matchers.iter().enumerate() {
                    let field = format!("matcher_list.matchers[{index}]");
                    all.push(faults.within(field, |faults| branch(one, meaning, faults))?);
                }
                Branches::List(all)
            }
            Some(MatcherType::MatcherTree(tree)) => {
                faults.within("matcher_tree", |faults| lookup(tree, meaning, faults))?
            }
        };
        let otherwise = match value.on_no_match.as_ref() {
            Some(value) => {
                let outcome = |faults: &mut Faults| Outcome::compile(value, meaning, faults);
                Some(Box::new(faults.within("on_no_match", outcome)?))
            }
            None => None,
        };
        Some(Self { branches, otherwise })
    }

    /// The action for what `get` says of inputs.
    pub fn find<'t, 'v>(&'t self, get: &impl Fn(&I) -> Option<Cow<'v, str>>) -> Option<&'t A> {
        let found = match &self.branches {
            Branches::None => None,
            Branches::List(all) => all
                .iter()
                .filter(|(predicate, _)| predicate.holds(get))
                .find_map(|(_, outcome)| outcome.find(get)),
            Branches::Exact(input, map) => {
                get(input).and_then(|text| map.get(&*text)).and_then(|outcome| outcome.find(get))
            }
            Branches::Prefix(input, all) => get(input).and_then(|text| {
                let mut fitting = all.iter().filter(|(prefix, _)| text.starts_with(prefix));
                fitting.find_map(|(_, outcome)| outcome.find(get))
            }),
        };
        found.or_else(|| self.otherwise.as_ref()?.find(get))
    }
}

fn branch<M: Meaning>(
    value: &FieldMatcher,
    meaning: &mut M,
    faults: &mut Faults,
) -> Option<(Predicate<M::Input>, Outcome<M::Input, M::Action>)> {
    let predicate = value.predicate.clone().unwrap_or_default();
    let predicate =
        faults.within("predicate", |faults| Predicate::compile(&predicate, meaning, faults))?;
    let outcome = value.on_match.clone().unwrap_or_default();
    let outcome =
        faults.within("on_match", |faults| Outcome::compile(&outcome, meaning, faults))?;
    Some((predicate, outcome))
}

fn lookup<M: Meaning>(
    value: &pb::matcher::MatcherTree,
    meaning: &mut M,
    faults: &mut Faults,
) -> Option<Branches<M::Input, M::Action>> {
    let input = input(value.input.as_ref(), meaning, faults)?;
    let map = match value.tree_type.as_ref() {
        Some(TreeType::ExactMatchMap(map) | TreeType::PrefixMatchMap(map)) => &map.map,
        Some(TreeType::CustomMatch(_)) | None => {
            faults.reject("tree_type", "only maps are supported");
            return None;
        }
    };
    let mut all = Vec::with_capacity(map.len());
    for (key, value) in map {
        let outcome = |faults: &mut Faults| Outcome::compile(value, meaning, faults);
        all.push((key.clone(), faults.within(format!("map[{key}]"), outcome)?));
    }
    Some(match value.tree_type.as_ref() {
        Some(TreeType::PrefixMatchMap(_)) => {
            all.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
            Branches::Prefix(input, all)
        }
        _ => Branches::Exact(input, all.into_iter().collect()),
    })
}

fn input<M: Meaning>(
    value: Option<&TypedExtensionConfig>,
    meaning: &mut M,
    faults: &mut Faults,
) -> Option<M::Input> {
    let Some(any) = value.and_then(|value| value.typed_config.as_ref()) else {
        faults.reject("input", "missing");
        return None;
    };
    faults.within("input", |faults| meaning.input(any, faults))
}

impl<I, A> Outcome<I, A> {
    fn compile<M: Meaning<Input = I, Action = A>>(
        value: &OnMatch,
        meaning: &mut M,
        faults: &mut Faults,
    ) -> Option<Self> {
        faults.ignore_if(value.keep_matching, "keep_matching");
        match value.on_match.as_ref() {
            Some(Kind::Matcher(tree)) => {
                let compile = |faults: &mut Faults| Tree::compile(tree, meaning, faults);
                faults.within("matcher", compile).map(Self::Tree)
            }
            Some(Kind::Action(action)) => {
                let Some(any) = &action.typed_config else {
                    faults.reject("action", "missing");
                    return None;
                };
                let compile = |faults: &mut Faults| meaning.action(any, faults);
                faults.within("action", compile).map(Self::Action)
            }
            None => {
                faults.reject("on_match", "missing");
                None
            }
        }
    }

    fn find<'t, 'v>(&'t self, get: &impl Fn(&I) -> Option<Cow<'v, str>>) -> Option<&'t A> {
        match self {
            Self::Tree(tree) => tree.find(get),
            Self::Action(action) => Some(action),
        }
    }
}

impl<I> Predicate<I> {
    fn compile<M: Meaning<Input = I>>(
        value: &PbPredicate,
        meaning: &mut M,
        faults: &mut Faults,
    ) -> Option<Self> {
        let mut all = |list: &[PbPredicate], faults: &mut Faults| -> Option<Vec<Self>> {
            list.iter().map(|one| Self::compile(one, meaning, faults)).collect()
        };
        match value.match_type.as_ref() {
            Some(MatchType::OrMatcher(list)) => all(&list.predicate, faults).map(Self::Any),
            Some(MatchType::AndMatcher(list)) => all(&list.predicate, faults).map(Self::All),
            Some(MatchType::NotMatcher(inner)) => {
                Self::compile(inner, meaning, faults).map(|inner| Self::Not(Box::new(inner)))
            }
            Some(MatchType::SinglePredicate(single)) => Self::single(single, meaning, faults),
            None => {
                faults.reject("match_type", "missing");
                None
            }
        }
    }

    fn single<M: Meaning<Input = I>>(
        value: &SinglePredicate,
        meaning: &mut M,
        faults: &mut Faults,
    ) -> Option<Self> {
        let input = input(value.input.as_ref(), meaning, faults)?;
        match value.matcher.as_ref() {
            Some(single_predicate::Matcher::ValueMatch(text)) => {
                let text = string_matcher(text);
                StringMatcher::compile(&text, faults).map(|text| Self::Text(input, text))
            }
            Some(single_predicate::Matcher::CustomMatch(custom)) => {
                let any = custom.typed_config.clone().unwrap_or_default();
                if !is::<Ip>(&any) {
                    let reason = format!("{} is not supported", type_name(&any));
                    faults.reject("custom_match", reason);
                    return None;
                }
                let ranges: Ip = unpack(&any, faults)?;
                let nets = ranges.cidr_ranges.iter().filter_map(|range| cidr(range, faults));
                Some(Self::Address(input, nets.collect()))
            }
            None => {
                faults.reject("matcher", "missing");
                None
            }
        }
    }

    fn holds<'v>(&self, get: &impl Fn(&I) -> Option<Cow<'v, str>>) -> bool {
        match self {
            Self::Text(input, text) => get(input).is_some_and(|it| text.matches(it.as_bytes())),
            Self::Address(input, nets) => {
                let address = get(input).and_then(|text| text.parse::<IpAddr>().ok());
                address.is_some_and(|address| nets.iter().any(|net| within(net, address)))
            }
            Self::Any(all) => all.iter().any(|one| one.holds(get)),
            Self::All(all) => all.iter().all(|one| one.holds(get)),
            Self::Not(inner) => !inner.holds(get),
        }
    }
}

/// The same matcher in Envoy's own message.
fn string_matcher(value: &pb::StringMatcher) -> envoy::StringMatcher {
    use envoy::string_matcher::MatchPattern as To;
    use pb::string_matcher::MatchPattern as From;
    let pattern = value.match_pattern.as_ref().and_then(|pattern| match pattern {
        From::Exact(text) => Some(To::Exact(text.clone())),
        From::Prefix(text) => Some(To::Prefix(text.clone())),
        From::Suffix(text) => Some(To::Suffix(text.clone())),
        From::Contains(text) => Some(To::Contains(text.clone())),
        From::SafeRegex(regex) => Some(To::SafeRegex(envoy::RegexMatcher {
            regex: regex.regex.clone(),
            ..envoy::RegexMatcher::default()
        })),
        From::Custom(_) => None,
    });
    envoy::StringMatcher { ignore_case: value.ignore_case, match_pattern: pattern }
}
