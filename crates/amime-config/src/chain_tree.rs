//! Filter chains chosen by a tree of matchers instead of by their own criteria.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/listener/v3/listener.proto#envoy-v3-api-field-config-listener-v3-listener-filter-chain-matcher>

use std::borrow::Cow;
use std::collections::HashMap;

use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3 as inputs;
use envoy_types::pb::google::protobuf::{Any, StringValue};
use prost::Message;

use super::chain_match::{ChainInput, is_local};
use amime_rules::Faults;
use amime_rules::matcher_tree::{Meaning, Tree};
use amime_rules::values::{is, type_name};

/// What is looked at of a connection.
#[derive(Clone, Copy, Debug)]
enum Input {
    DestinationIp,
    DestinationPort,
    SourceIp,
    SourcePort,
    DirectSourceIp,
    SourceType,
    ServerName,
    Transport,
    Application,
}

/// The tree of a listener. An action that names no chain of it closes the
/// connection, as in Envoy.
#[derive(Debug)]
pub struct ChainTree(Tree<Input, Option<usize>>);

/// Positions of chains by their names.
struct Chains(HashMap<String, usize>);

impl ChainTree {
    pub(crate) fn compile(value: &listener::Listener, faults: &mut Faults) -> Option<Self> {
        let tree = value.filter_chain_matcher.as_ref()?;
        let mut chains = HashMap::with_capacity(value.filter_chains.len());
        for (index, chain) in value.filter_chains.iter().enumerate() {
            faults.enter(format!("filter_chains[{index}]"));
            faults.reject_if(chain.filter_chain_match.is_some(), "filter_chain_match");
            if chain.name.is_empty() || chains.insert(chain.name.clone(), index).is_some() {
                faults.reject("name", "a tree needs a name of its own for each chain");
            }
            faults.leave();
        }
        let compile = |faults: &mut Faults| Tree::compile(tree, &mut Chains(chains), faults);
        faults.within("filter_chain_matcher", compile).map(Self)
    }

    /// The position of a connection's chain; `None` if nothing matches, and
    /// `Some(None)` if it is to be closed.
    pub fn find(&self, input: &ChainInput<'_>) -> Option<Option<usize>> {
        self.0.find(&|which: &Input| value(*which, input)).copied()
    }
}

impl Meaning for Chains {
    type Input = Input;
    type Action = Option<usize>;

    fn input(&mut self, any: &Any, faults: &mut Faults) -> Option<Input> {
        let known = [
            (is::<inputs::DestinationIpInput>(any), Input::DestinationIp),
            (is::<inputs::DestinationPortInput>(any), Input::DestinationPort),
            (is::<inputs::SourceIpInput>(any), Input::SourceIp),
            (is::<inputs::SourcePortInput>(any), Input::SourcePort),
            (is::<inputs::DirectSourceIpInput>(any), Input::DirectSourceIp),
            (is::<inputs::SourceTypeInput>(any), Input::SourceType),
            (is::<inputs::ServerNameInput>(any), Input::ServerName),
            (is::<inputs::TransportProtocolInput>(any), Input::Transport),
            (is::<inputs::ApplicationProtocolInput>(any), Input::Application),
        ];
        let found = known.into_iter().find_map(|(is, input)| is.then_some(input));
        if found.is_none() {
            faults.reject("", format!("{} is not supported", type_name(any)));
        }
        found
    }

    fn action(&mut self, any: &Any, faults: &mut Faults) -> Option<Option<usize>> {
        if type_name(any) != "google.protobuf.StringValue" {
            faults.reject("", "must be the name of a filter chain");
            return None;
        }
        let name = StringValue::decode(any.value.as_slice()).unwrap_or_default().value;
        Some(self.0.get(&name).copied())
    }
}

/// The text of an input, as Envoy has it.
fn value<'v>(which: Input, input: &ChainInput<'v>) -> Option<Cow<'v, str>> {
    let known = |text: &'v str| Some(Cow::Borrowed(text)).filter(|text| !text.is_empty());
    match which {
        Input::DestinationIp => Some(input.destination.ip().to_canonical().to_string().into()),
        Input::DestinationPort => Some(input.destination.port().to_string().into()),
        Input::SourceIp => Some(input.source.ip().to_canonical().to_string().into()),
        Input::SourcePort => Some(input.source.port().to_string().into()),
        Input::DirectSourceIp => Some(input.direct_source.to_canonical().to_string().into()),
        Input::SourceType => is_local(input).then_some(Cow::Borrowed("local")),
        Input::ServerName => known(input.server_name),
        Input::Transport => known(input.transport),
        Input::Application => {
            let names = input.application.iter().map(|name| String::from_utf8_lossy(name));
            let list: Vec<String> = names.map(|name| format!("'{name}'")).collect();
            (!list.is_empty()).then(|| list.join(",").into())
        }
    }
}
