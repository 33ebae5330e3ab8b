//! Redirects, and substitutions in paths.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;
use envoy_types::pb::envoy::extensions::internal_redirect::previous_routes::v3::PreviousRoutesConfig;
use envoy_types::pb::envoy::extensions::internal_redirect::safe_cross_scheme::v3::SafeCrossSchemeConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use http::{HeaderName, StatusCode};
use regex::bytes::Regex;

use super::faults::Faults;
use super::matcher::regex;
use super::values::{is, type_name, u32_or, unpack};

/// A redirect answer.
#[derive(Debug)]
pub struct Redirect {
    pub status: StatusCode,
    pub host: String,
    pub port: u32,
    pub scheme: Option<String>,
    pub https: bool,
    pub path: RedirectPath,
    pub strip_query: bool,
}

#[derive(Debug)]
pub enum RedirectPath {
    Keep,
    Replace(String),
    Prefix(String),
    Regex(Regex, String),
}

/// Redirects of an upstream that are followed here.
#[derive(Debug)]
pub struct InternalRedirect {
    /// So many in a row.
    pub max: u32,
    pub status_codes: Vec<u16>,
    /// From http to https and back.
    pub cross_scheme: bool,
    /// Headers of the redirecting response that the next request gets.
    pub copy: Vec<HeaderName>,
    /// All of them have to agree.
    pub predicates: Vec<RedirectPredicate>,
}

/// What a redirect must be for it to be followed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPredicate {
    /// To a route that no redirect from the same route went to before.
    NewRoute,
    /// To a route of one of these names.
    ToOneOf(Vec<String>),
    /// Not from http to https.
    SafeScheme,
}

impl RedirectPredicate {
    fn compile(value: &TypedExtensionConfig, faults: &mut Faults) -> Option<Self> {
        let any = value.typed_config.as_ref()?;
        if is::<PreviousRoutesConfig>(any) {
            Some(Self::NewRoute)
        } else if is::<SafeCrossSchemeConfig>(any) {
            Some(Self::SafeScheme)
        } else if is::<AllowListedRoutesConfig>(any) {
            let config: AllowListedRoutesConfig = unpack(any, faults)?;
            Some(Self::ToOneOf(config.allowed_route_names))
        } else {
            faults.reject("typed_config", format!("{} is not supported", type_name(any)));
            None
        }
    }
}

impl InternalRedirect {
    pub fn compile(value: &pb::InternalRedirectPolicy, faults: &mut Faults) -> Option<Self> {
        let predicate = |(index, value): (usize, &TypedExtensionConfig)| {
            let field = format!("predicates[{index}]");
            faults.within(field, |faults| RedirectPredicate::compile(value, faults))
        };
        let predicates = value.predicates.iter().enumerate().filter_map(predicate).collect();
        let codes =
            value.redirect_response_codes.iter().filter_map(|code| u16::try_from(*code).ok());
        let mut status_codes: Vec<u16> =
            codes.filter(|code| matches!(code, 301 | 302 | 303 | 307 | 308)).collect();
        if value.redirect_response_codes.is_empty() {
            status_codes.push(302);
        }
        let mut copy = Vec::with_capacity(value.response_headers_to_copy.len());
        for name in &value.response_headers_to_copy {
            match name.to_ascii_lowercase().parse() {
                Ok(name) => copy.push(name),
                Err(_) => {
                    faults.reject("response_headers_to_copy", format!("`{name}` is no header"));
                }
            }
        }
        Some(Self {
            max: u32_or(value.max_internal_redirects.as_ref(), 1),
            status_codes,
            cross_scheme: value.allow_cross_scheme_redirect,
            copy,
            predicates,
        })
    }
}

impl Redirect {
    pub fn compile(value: &pb::RedirectAction, faults: &mut Faults) -> Option<Self> {
        use pb::redirect_action::{
            PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
        };
        let status = match value.response_code() {
            RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
            RedirectResponseCode::Found => StatusCode::FOUND,
            RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
            RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
            RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
        };
        let path = match value.path_rewrite_specifier.as_ref() {
            None => RedirectPath::Keep,
            // Set but empty, as control planes send it, means the same.
            Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) => RedirectPath::Replace(path.clone()),
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                RedirectPath::Prefix(prefix.clone())
            }
            Some(PathRewriteSpecifier::RegexRewrite(value)) => {
                let (regex, text) = substitution(value, faults)?;
                RedirectPath::Regex(regex, text)
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                faults.reject("path_rewrite", "not supported");
                return None;
            }
        };
        let (scheme, https) = match value.scheme_rewrite_specifier.as_ref() {
            Some(SchemeRewriteSpecifier::HttpsRedirect(on)) => (None, *on),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => (Some(scheme.clone()), false),
            None => (None, false),
        };
        Some(Self {
            status,
            host: value.host_redirect.clone(),
            port: value.port_redirect,
            scheme,
            https,
            path,
            strip_query: value.strip_query,
        })
    }
}

/// A pattern and RE2 substitution, `\1` turned into `${1}`.
pub fn substitution(
    value: &RegexMatchAndSubstitute,
    faults: &mut Faults,
) -> Option<(Regex, String)> {
    let pattern = value.pattern.as_ref().map_or("", |pattern| &pattern.regex);
    let regex = regex(pattern, false, faults)?;
    let mut text = String::new();
    let mut chars = value.substitution.chars();
    while let Some(char) = chars.next() {
        match char {
            '$' => text.push_str("$$"),
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    text.push_str(&format!("${{{digit}}}"));
                }
                Some('\\') => text.push('\\'),
                _ => {
                    faults.reject("substitution", "stray backslash");
                    return None;
                }
            },
            other => text.push(other),
        }
    }
    Some((regex, text))
}
