//! Where resources come from: the control plane or a file, and what refers to
//! what.
//!
//! Envoy's configuration says at each reference where the resource behind it
//! comes from. The data path needs names only, so the way to each name is read
//! here, from the same messages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use amime_rules::Faults;
use amime_xds::{Resource, TypeUrl};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{
    ApiVersion, ConfigSource, TransportSocket, config_source::ConfigSourceSpecifier,
    transport_socket,
};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, UpstreamTlsContext,
    common_tls_context::ValidationContextType,
};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

/// Where a resource comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The control plane's stream.
    Ads,
    /// A file, read again when it is moved into place.
    File(FileSource),
}

/// A file with resources of one type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileSource {
    pub(crate) path: PathBuf,
    /// Watched instead of the file's own directory: whatever is moved into it
    /// says that the file changed.
    pub(crate) directory: Option<PathBuf>,
}

/// What is at hand to refer to.
#[derive(Clone, Debug, Default)]
pub(crate) struct AtHand {
    /// The bootstrap has an ADS server.
    pub(crate) ads: bool,
    /// Names of its static secrets.
    pub(crate) secrets: BTreeSet<String>,
}

/// One reference: a name and the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reference {
    type_url: TypeUrl,
    name: String,
    origin: Origin,
}

/// The references of every resource in force.
#[derive(Debug, Default)]
pub(crate) struct References {
    owners: BTreeMap<(TypeUrl, String), Vec<Reference>>,
}

/// References of one resource that is not in force yet.
#[derive(Debug, Default)]
pub(crate) struct Found(Vec<Reference>);

impl References {
    /// Takes over what `resource` refers to; true if that is something new.
    pub(crate) fn set(&mut self, resource: (TypeUrl, String), found: Found) -> bool {
        if found.0.is_empty() {
            return self.owners.remove(&resource).is_some();
        }
        let before = self.owners.get(&resource);
        let changed = before != Some(&found.0);
        self.owners.insert(resource, found.0);
        changed
    }

    /// Names of one type that come from `origin`.
    pub(crate) fn names(&self, type_url: TypeUrl, origin: &Origin) -> BTreeSet<String> {
        let all = self.owners.values().flatten();
        let of_it = all.filter(|one| one.type_url == type_url && one.origin == *origin);
        of_it.map(|one| one.name.clone()).collect()
    }

    /// Files that something refers to, by type.
    pub(crate) fn files(&self) -> BTreeSet<(TypeUrl, FileSource)> {
        let all = self.owners.values().flatten();
        all.filter_map(|one| match &one.origin {
            Origin::File(file) => Some((one.type_url, file.clone())),
            Origin::Ads => None,
        })
        .collect()
    }
}

/// Reads one config source; `None` with a fault if it cannot be served.
pub(crate) fn origin(
    source: &ConfigSource,
    at_hand: &AtHand,
    faults: &mut Faults,
) -> Option<Origin> {
    if source.resource_api_version() != ApiVersion::V3 {
        faults.reject("resource_api_version", "only V3 is spoken");
    }
    faults.ignore_if(!source.authorities.is_empty(), "authorities");
    match source.config_source_specifier.as_ref() {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => {
            if !at_hand.ads {
                faults.reject("ads", "there is no dynamic_resources.ads_config");
            }
            at_hand.ads.then_some(Origin::Ads)
        }
        #[allow(deprecated, reason = "bootstraps of today still name files this way")]
        Some(ConfigSourceSpecifier::Path(path)) => file(path, None, "path", faults),
        Some(ConfigSourceSpecifier::PathConfigSource(source)) => {
            let directory = source.watched_directory.as_ref().map(|one| one.path.as_str());
            file(&source.path, directory, "path_config_source.path", faults)
        }
        Some(ConfigSourceSpecifier::ApiConfigSource(api)) => {
            let reason = format!(
                "{} is not supported; use ads or path_config_source",
                api.api_type().as_str_name()
            );
            faults.reject("api_config_source.api_type", reason);
            None
        }
        None => {
            faults.reject("config_source_specifier", "missing");
            None
        }
    }
}

fn file(path: &str, directory: Option<&str>, field: &str, faults: &mut Faults) -> Option<Origin> {
    // A file that comes later would have to be guessed from its directory, and
    // Envoy refuses it too.
    if let Err(error) = std::fs::metadata(path) {
        faults.reject(field, format!("{path}: {error}"));
        return None;
    }
    let directory = directory.map(PathBuf::from);
    if directory.as_deref().is_some_and(|directory| !directory.is_dir()) {
        faults.reject("path_config_source.watched_directory", "not a directory");
        return None;
    }
    Some(Origin::File(FileSource { path: Path::new(path).to_owned(), directory }))
}

/// What a resource refers to. Messages that do not decode are left to those
/// who compile them.
pub(crate) fn references(resource: &Resource, at_hand: &AtHand, faults: &mut Faults) -> Found {
    let mut reader = Reader { at_hand, faults, found: Vec::new() };
    match resource.type_url {
        TypeUrl::Listener => {
            if let Ok(listener) = resource.decode::<Listener>() {
                reader.listener(&listener);
            }
        }
        TypeUrl::Cluster => {
            if let Ok(cluster) = resource.decode::<Cluster>() {
                reader.cluster(&cluster);
            }
        }
        _ => {}
    }
    Found(reader.found)
}

struct Reader<'a> {
    at_hand: &'a AtHand,
    faults: &'a mut Faults,
    found: Vec<Reference>,
}

impl Reader<'_> {
    fn within(&mut self, field: impl Into<String>, read: impl FnOnce(&mut Self)) {
        self.faults.enter(field);
        read(self);
        self.faults.leave();
    }

    fn refer(&mut self, type_url: TypeUrl, name: &str, source: &ConfigSource) {
        if let Some(origin) = origin(source, self.at_hand, self.faults) {
            self.found.push(Reference { type_url, name: name.to_owned(), origin });
        }
    }

    fn listener(&mut self, listener: &Listener) {
        for (index, chain) in listener.filter_chains.iter().enumerate() {
            self.within(format!("filter_chains[{index}]"), |reader| reader.chain(chain));
        }
        if let Some(chain) = &listener.default_filter_chain {
            self.within("default_filter_chain", |reader| reader.chain(chain));
        }
    }

    fn chain(&mut self, chain: &FilterChain) {
        for (index, filter) in chain.filters.iter().enumerate() {
            let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
            let Some(manager) = unpack::<HttpConnectionManager>(any) else { continue };
            let Some(RouteSpecifier::Rds(rds)) = &manager.route_specifier else { continue };
            let Some(source) = &rds.config_source else { continue };
            self.within(format!("filters[{index}].typed_config.rds.config_source"), |reader| {
                reader.refer(TypeUrl::Route, &rds.route_config_name, source);
            });
        }
        self.socket::<DownstreamTlsContext>(chain.transport_socket.as_ref(), |context| {
            context.common_tls_context.as_ref()
        });
    }

    fn cluster(&mut self, cluster: &Cluster) {
        if let Some(eds) = &cluster.eds_cluster_config
            && let Some(source) = &eds.eds_config
        {
            let name = if eds.service_name.is_empty() { &cluster.name } else { &eds.service_name };
            self.within("eds_cluster_config.eds_config", |reader| {
                reader.refer(TypeUrl::Endpoint, name, source);
            });
        }
        let common = |context: &UpstreamTlsContext| context.common_tls_context.clone();
        self.socket::<UpstreamTlsContext>(cluster.transport_socket.as_ref(), |context| {
            context.common_tls_context.as_ref()
        });
        for (index, one) in cluster.transport_socket_matches.iter().enumerate() {
            let Some(any) = typed_config(one.transport_socket.as_ref()) else { continue };
            let Some(common) = unpack::<UpstreamTlsContext>(any).as_ref().and_then(common) else {
                continue;
            };
            self.within(format!("transport_socket_matches[{index}]"), |reader| {
                reader.within(TLS_CONTEXT, |reader| reader.tls(&common));
            });
        }
    }

    fn socket<M: Message + Name + Default>(
        &mut self,
        socket: Option<&TransportSocket>,
        common: impl Fn(&M) -> Option<&CommonTlsContext>,
    ) {
        let context = typed_config(socket).and_then(unpack::<M>);
        if let Some(common) = context.as_ref().and_then(common) {
            self.within(TLS_CONTEXT, |reader| reader.tls(common));
        }
    }

    fn tls(&mut self, common: &CommonTlsContext) {
        for (index, secret) in common.tls_certificate_sds_secret_configs.iter().enumerate() {
            let field = format!("tls_certificate_sds_secret_configs[{index}]");
            self.within(field, |reader| reader.secret(secret));
        }
        match &common.validation_context_type {
            Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
                let field = "validation_context_sds_secret_config";
                self.within(field, |reader| reader.secret(secret));
            }
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                let Some(secret) = &combined.validation_context_sds_secret_config else { return };
                let field = "combined_validation_context.validation_context_sds_secret_config";
                self.within(field, |reader| reader.secret(secret));
            }
            _ => {}
        }
    }

    fn secret(&mut self, secret: &SdsSecretConfig) {
        match &secret.sds_config {
            Some(source) => {
                self.within("sds_config", |reader| {
                    reader.refer(TypeUrl::Secret, &secret.name, source);
                });
            }
            // Without a source the name is that of a static secret.
            None if self.at_hand.secrets.contains(&secret.name) => {}
            None => {
                let reason = format!("no static secret is named {:?}", secret.name);
                self.faults.reject("name", reason);
            }
        }
    }
}

const TLS_CONTEXT: &str = "transport_socket.typed_config.common_tls_context";

fn typed_config(socket: Option<&TransportSocket>) -> Option<&Any> {
    match &socket?.config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => Some(any),
        None => None,
    }
}

fn unpack<M: Message + Name + Default>(any: &Any) -> Option<M> {
    let is_it = any.type_url.rsplit('/').next() == Some(M::full_name().as_str());
    is_it.then(|| M::decode(any.value.as_slice()).ok()).flatten()
}
