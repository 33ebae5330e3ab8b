//! Macros that spare each API type the same five derive and serde lines.
//!
//! Strictness is not expressed here: unknown fields, oneofs and snake_case spellings are the
//! business of [`crate::decode`], which sees every struct's field list.

/// Message types: all fields optional on the wire, JSON names in lowerCamelCase.
macro_rules! messages {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )* }
    )*) => { $(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name { $( $(#[$field_meta])* pub $field: $type, )* }
    )* };
}

/// Closed sets of names, spelled in SCREAMING_SNAKE_CASE on the wire.
macro_rules! values {
    ($(
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$variant_meta:meta])* $variant:ident, )* }
    )*) => { $(
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum $name { $( $(#[$variant_meta])* $variant, )* }
    )* };
}
