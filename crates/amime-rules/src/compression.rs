//! Compressors and decompressors of bodies: which coding, and of what.
//!
//! Spec: <https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/compressor_filter>

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::compression::{
    brotli::{compressor::v3::Brotli, decompressor::v3::Brotli as BrotliDecoder},
    gzip::{compressor::v3::Gzip, decompressor::v3::Gzip as GzipDecoder},
    zstd::{compressor::v3::Zstd, decompressor::v3::Zstd as ZstdDecoder},
};
use envoy_types::pb::envoy::extensions::filters::http::{
    compressor::v3 as pb, decompressor::v3 as de,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::faults::Faults;
use super::matcher::StringMatcher;
use super::values::{bool_or, is, type_name, u32_or, unpack};

/// A coding with what its encoder is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Gzip { level: u32 },
    Brotli { quality: u32, window_bits: u32 },
    Zstd { level: i32, checksum: bool },
}

impl Coding {
    /// Its name in `content-encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip { .. } => "gzip",
            Self::Brotli { .. } => "br",
            Self::Zstd { .. } => "zstd",
        }
    }

    fn encoder(library: Option<&core::TypedExtensionConfig>, faults: &mut Faults) -> Option<Self> {
        const FIELD: &str = "compressor_library";
        let Some(any) = library.and_then(|library| library.typed_config.as_ref()) else {
            faults.reject(FIELD, "missing");
            return None;
        };
        faults.within(FIELD, |faults| {
            if is::<Gzip>(any) {
                let gzip: Gzip = unpack(any, faults)?;
                faults.ignore_if(gzip.memory_level.is_some(), "memory_level");
                faults.ignore_if(gzip.window_bits.is_some(), "window_bits");
                faults.ignore_if(gzip.compression_strategy != 0, "compression_strategy");
                let level = u32::try_from(gzip.compression_level).unwrap_or(0);
                Some(Self::Gzip { level: if level == 0 { 6 } else { level.min(9) } })
            } else if is::<Brotli>(any) {
                let brotli: Brotli = unpack(any, faults)?;
                faults.ignore_if(brotli.encoder_mode != 0, "encoder_mode");
                faults.ignore_if(brotli.input_block_bits.is_some(), "input_block_bits");
                let field = "disable_literal_context_modeling";
                faults.ignore_if(brotli.disable_literal_context_modeling, field);
                Some(Self::Brotli {
                    quality: u32_or(brotli.quality.as_ref(), 3).min(11),
                    window_bits: u32_or(brotli.window_bits.as_ref(), 18).clamp(10, 24),
                })
            } else if is::<Zstd>(any) {
                let zstd: Zstd = unpack(any, faults)?;
                faults.ignore_if(zstd.strategy != 0, "strategy");
                faults.reject_if(zstd.dictionary.is_some(), "dictionary");
                let level = u32_or(zstd.compression_level.as_ref(), 3).min(22);
                let level = i32::try_from(level).unwrap_or(3);
                Some(Self::Zstd { level, checksum: zstd.enable_checksum })
            } else {
                faults.reject("typed_config", format!("{} is not supported", type_name(any)));
                None
            }
        })
    }

    /// What a decoder needs: only the name counts.
    fn decoder(library: Option<&core::TypedExtensionConfig>, faults: &mut Faults) -> Option<Self> {
        const FIELD: &str = "decompressor_library";
        let Some(any) = library.and_then(|library| library.typed_config.as_ref()) else {
            faults.reject(FIELD, "missing");
            return None;
        };
        faults.within(FIELD, |faults| {
            if is::<GzipDecoder>(any) {
                let gzip: GzipDecoder = unpack(any, faults)?;
                faults.ignore_if(gzip.max_inflate_ratio.is_some(), "max_inflate_ratio");
                Some(Self::Gzip { level: 0 })
            } else if is::<BrotliDecoder>(any) {
                Some(Self::Brotli { quality: 0, window_bits: 0 })
            } else if is::<ZstdDecoder>(any) {
                let zstd: ZstdDecoder = unpack(any, faults)?;
                faults.reject_if(!zstd.dictionaries.is_empty(), "dictionaries");
                Some(Self::Zstd { level: 0, checksum: false })
            } else {
                faults.reject("typed_config", format!("{} is not supported", type_name(any)));
                None
            }
        })
    }
}

/// Which messages of one direction are compressed.
#[derive(Debug)]
pub struct Direction {
    min_length: u64,
    types: Vec<String>,
    matchers: Vec<StringMatcher>,
}

/// Envoy's default of `min_content_length`.
const MIN_LENGTH: u32 = 30;

/// Types that are compressed when none are named.
const TYPES: [&str; 8] = [
    "application/javascript",
    "application/json",
    "application/xhtml+xml",
    "image/svg+xml",
    "text/css",
    "text/html",
    "text/plain",
    "text/xml",
];

impl Direction {
    fn compile(value: &pb::compressor::CommonDirectionConfig, faults: &mut Faults) -> Option<Self> {
        if !enabled(value.enabled.as_ref()) {
            return None;
        }
        let matchers = value.content_type_matcher.iter();
        let matchers = matchers.filter_map(|it| StringMatcher::compile(it, faults)).collect();
        Some(Self {
            min_length: u32_or(value.min_content_length.as_ref(), MIN_LENGTH).into(),
            types: types(&value.content_type),
            matchers,
        })
    }

    /// True if a message is long enough, as far as is known.
    pub fn is_long_enough(&self, headers: &HeaderMap) -> bool {
        headers.get(header::CONTENT_LENGTH).is_none_or(|length| {
            let length = length.to_str().ok().and_then(|length| length.parse::<u64>().ok());
            length.is_some_and(|length| length >= self.min_length)
        })
    }

    /// True if the type is one to compress.
    pub fn takes_type(&self, headers: &HeaderMap) -> bool {
        let Some(kind) = headers.get(header::CONTENT_TYPE) else { return true };
        let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        match &*self.matchers {
            [] => self.types.iter().any(|known| known == kind),
            matchers => matchers.iter().any(|matcher| matcher.matches(kind.as_bytes())),
        }
    }
}

fn types(named: &[String]) -> Vec<String> {
    match named {
        [] => TYPES.map(str::to_owned).to_vec(),
        named => named.to_vec(),
    }
}

fn enabled(flag: Option<&core::RuntimeFeatureFlag>) -> bool {
    bool_or(flag.and_then(|flag| flag.default_value.as_ref()), true)
}

/// A compiled `Compressor`.
#[derive(Debug)]
pub struct Compressor {
    pub coding: Coding,
    pub request: Option<Direction>,
    pub response: Option<Direction>,
    pub disable_on_etag: bool,
    pub weaken_etag: bool,
    pub remove_accept_encoding: bool,
    pub uncompressible: Vec<u16>,
    pub choose_first: bool,
}

impl Compressor {
    pub fn compile(value: &pb::Compressor, faults: &mut Faults) -> Option<Self> {
        let coding = Coding::encoder(value.compressor_library.as_ref(), faults);
        let request = value.request_direction_config.as_ref().and_then(|request| {
            let common = request.common_config.clone().unwrap_or_default();
            faults.within("request_direction_config", |it| Direction::compile(&common, it))
        });
        let compressor = match &value.response_direction_config {
            Some(response) => Self {
                coding: coding?,
                request,
                response: faults.within("response_direction_config", |faults| {
                    faults.ignore_if(response.status_header_enabled, "status_header_enabled");
                    let common = response.common_config.clone().unwrap_or_default();
                    Direction::compile(&common, faults)
                }),
                disable_on_etag: response.disable_on_etag_header,
                weaken_etag: response.weaken_etag_on_compress,
                remove_accept_encoding: response.remove_accept_encoding_header,
                uncompressible: response
                    .uncompressible_response_codes
                    .iter()
                    .filter_map(|code| u16::try_from(*code).ok())
                    .collect(),
                choose_first: value.choose_first,
            },
            // The older fields say the same.
            None => Self {
                coding: coding?,
                request,
                response: enabled(value.runtime_enabled.as_ref()).then(|| Direction {
                    min_length: u32_or(value.content_length.as_ref(), MIN_LENGTH).into(),
                    types: types(&value.content_type),
                    matchers: Vec::new(),
                }),
                disable_on_etag: value.disable_on_etag_header,
                weaken_etag: false,
                remove_accept_encoding: value.remove_accept_encoding_header,
                uncompressible: Vec::new(),
                choose_first: value.choose_first,
            },
        };
        Some(compressor)
    }
}

/// A compiled `CompressorPerRoute`.
#[derive(Debug, Default)]
pub struct CompressorRoute {
    pub off: bool,
    pub coding: Option<Coding>,
    pub remove_accept_encoding: Option<bool>,
}

impl CompressorRoute {
    pub fn compile(value: &pb::CompressorPerRoute, faults: &mut Faults) -> Self {
        use pb::compressor_per_route::Override;
        match &value.r#override {
            Some(Override::Disabled(_)) => Self { off: true, ..Self::default() },
            Some(Override::Overrides(value)) => {
                let library = value.compressor_library.as_ref();
                let response = value.response_direction_config.as_ref();
                Self {
                    off: false,
                    coding: library.and_then(|it| Coding::encoder(Some(it), faults)),
                    remove_accept_encoding: response
                        .and_then(|response| response.remove_accept_encoding_header.as_ref())
                        .map(|remove| remove.value),
                }
            }
            None => {
                faults.reject("override", "missing");
                Self::default()
            }
        }
    }
}

/// A compiled `Decompressor`.
#[derive(Debug)]
pub struct Decompressor {
    pub coding: Coding,
    /// `Some(true)`: also where `cache-control` forbids to change the body.
    pub request: Option<bool>,
    pub response: Option<bool>,
    /// Tell upstreams that the coding is understood.
    pub advertise: bool,
    /// Trailers that tell sizes: before, and after.
    pub sizes: [HeaderName; 2],
}

impl Decompressor {
    pub fn compile(value: &de::Decompressor, faults: &mut Faults) -> Option<Self> {
        let library = value.decompressor_library.as_ref();
        let coding = Coding::decoder(library, faults)?;
        let name = library.map_or("", |library| &library.name).to_ascii_lowercase();
        let size = |what| format!("x-envoy-decompressor-{name}-{what}-bytes").parse();
        let (Ok(compressed), Ok(uncompressed)) = (size("compressed"), size("uncompressed")) else {
            faults.reject("decompressor_library.name", "not a part of a header's name");
            return None;
        };
        let request = value.request_direction_config.clone().unwrap_or_default();
        let response = value.response_direction_config.clone().unwrap_or_default();
        let direction = |common: Option<de::decompressor::CommonDirectionConfig>| {
            let common = common.unwrap_or_default();
            enabled(common.enabled.as_ref()).then_some(common.ignore_no_transform_header)
        };
        let response = direction(response.common_config);
        let advertise = bool_or(request.advertise_accept_encoding.as_ref(), true);
        Some(Self {
            coding,
            request: direction(request.common_config),
            response,
            advertise: advertise && response.is_some(),
            sizes: [compressed, uncompressed],
        })
    }

    /// True if what the headers are of is in the coding, outermost.
    pub fn applies(&self, forced: Option<bool>, headers: &HeaderMap) -> bool {
        let Some(forced) = forced else { return false };
        (forced || !no_transform(headers))
            && outermost(headers).is_some_and(|it| it.eq_ignore_ascii_case(self.coding.name()))
    }
}

fn outermost(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get(header::CONTENT_ENCODING)?.to_str().ok()?;
    Some(all.split(',').next().unwrap_or_default().trim())
}

/// Takes the outermost coding off `content-encoding`.
pub fn take_coding(headers: &mut HeaderMap) {
    let all = headers.get(header::CONTENT_ENCODING).and_then(|all| all.to_str().ok());
    let rest = all.and_then(|all| all.split_once(',')).map(|(_, rest)| rest.trim().to_owned());
    match rest.and_then(|rest| HeaderValue::from_str(&rest).ok()) {
        Some(rest) => {
            headers.insert(header::CONTENT_ENCODING, rest);
        }
        None => {
            headers.remove(header::CONTENT_ENCODING);
        }
    }
}

/// True if `cache-control` forbids to change the body.
pub fn no_transform(headers: &HeaderMap) -> bool {
    headers.get_all(header::CACHE_CONTROL).iter().any(|value| {
        value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("no-transform"))
    })
}
