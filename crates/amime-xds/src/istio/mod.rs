//! Messages that Istio defines beside Envoy's own.
//!
//! Written by hand from the field numbers, which are the interface; only the
//! fields that travel between the programs of a mesh are here.

pub mod alpn;
pub mod ca;
pub mod metadata_exchange;
pub mod nds;
pub mod peer_metadata;
pub mod stats;
pub mod typed_struct;

/// Gives a hand-written message its protobuf name and type URL.
macro_rules! named {
    ($message:ty, $package:literal, $name:literal) => {
        impl ::prost::Name for $message {
            const NAME: &'static str = $name;
            const PACKAGE: &'static str = $package;

            fn full_name() -> String {
                concat!($package, ".", $name).to_owned()
            }

            fn type_url() -> String {
                concat!("type.googleapis.com/", $package, ".", $name).to_owned()
            }
        }
    };
}
pub(crate) use named;
