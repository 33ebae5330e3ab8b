//! Load reports as they stand in headers: encoded, as JSON or as text.
//!
//! Invariant: a report is bounded by the head that carries it, and nothing in
//! it can do more than be refused.
//!
//! Spec: <https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto>

use std::collections::{HashMap, HashSet};

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderName};
use prost::Message;
use serde::Deserialize;

const HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics");
const HEADER_BIN: HeaderName = HeaderName::from_static("endpoint-load-metrics-bin");

/// Why there is no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReportError {
    #[error("there is none")]
    Missing,
    #[error("the header is not in a known format")]
    Format,
    #[error("not an encoded report")]
    Encoding,
    #[error("not a report in JSON")]
    Json,
    #[error("not a metric with a number")]
    Metric,
    #[error("a metric is there twice")]
    Twice,
}

/// What an endpoint says of itself; the message of the standard.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct LoadReport {
    #[prost(double, tag = "1")]
    #[serde(alias = "cpu_utilization", deserialize_with = "number")]
    pub(super) cpu_utilization: f64,
    #[prost(double, tag = "2")]
    #[serde(alias = "mem_utilization", deserialize_with = "number")]
    mem_utilization: f64,
    #[prost(uint64, tag = "3")]
    #[serde(deserialize_with = "number")]
    rps: u64,
    #[prost(map = "string, double", tag = "4")]
    #[serde(alias = "request_cost", deserialize_with = "numbers")]
    request_cost: HashMap<String, f64>,
    #[prost(map = "string, double", tag = "5")]
    #[serde(deserialize_with = "numbers")]
    utilization: HashMap<String, f64>,
    #[prost(double, tag = "6")]
    #[serde(alias = "rps_fractional", deserialize_with = "number")]
    pub(super) rps_fractional: f64,
    #[prost(double, tag = "7")]
    #[serde(deserialize_with = "number")]
    pub(super) eps: f64,
    #[prost(map = "string, double", tag = "8")]
    #[serde(alias = "named_metrics", deserialize_with = "numbers")]
    named_metrics: HashMap<String, f64>,
    #[prost(double, tag = "9")]
    #[serde(alias = "application_utilization", deserialize_with = "number")]
    pub(super) application_utilization: f64,
}

/// In protobuf's JSON every number may be a text, and null is as good as none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Loose<T> {
    Number(T),
    Text(String),
    Null(()),
}

impl<T: Default + std::str::FromStr<Err: std::fmt::Display>> Loose<T> {
    fn read<E: serde::de::Error>(self) -> Result<T, E> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(text) => text.parse().map_err(E::custom),
            Self::Null(()) => Ok(T::default()),
        }
    }
}

fn number<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de> + std::str::FromStr<Err: std::fmt::Display>,
{
    Loose::<T>::deserialize(from)?.read()
}

fn numbers<'de, D>(from: D) -> Result<HashMap<String, f64>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let map = Option::<HashMap<String, Loose<f64>>>::deserialize(from)?.unwrap_or_default();
    map.into_iter().map(|(name, value)| Ok((name, value.read()?))).collect()
}

impl LoadReport {
    /// The report in headers or trailers.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, ReportError> {
        if let Some(value) = headers.get(HEADER_BIN) {
            return Self::encoded(value.as_bytes());
        }
        let value = headers.get(HEADER).ok_or(ReportError::Missing)?.as_bytes();
        let at = value.iter().position(|byte| *byte == b' ').ok_or(ReportError::Format)?;
        let (format, rest) = (&value[..at], &value[at + 1..]);
        match format {
            b"BIN" => Self::encoded(rest),
            b"JSON" => serde_json::from_slice(rest).map_err(|_| ReportError::Json),
            b"TEXT" => Self::text(std::str::from_utf8(rest).map_err(|_| ReportError::Metric)?),
            _ => Err(ReportError::Format),
        }
    }

    fn encoded(value: &[u8]) -> Result<Self, ReportError> {
        // Those who write the header often leave the padding out.
        const BASE64: GeneralPurpose = GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let bytes = BASE64.decode(value).map_err(|_| ReportError::Encoding)?;
        Self::decode(bytes.as_slice()).map_err(|_| ReportError::Encoding)
    }

    fn text(value: &str) -> Result<Self, ReportError> {
        let mut report = Self::default();
        let mut seen = HashSet::new();
        for pair in value.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, number) = pair.split_once(['=', ':']).ok_or(ReportError::Metric)?;
            let number: f64 = number.trim().parse().map_err(|_| ReportError::Metric)?;
            if !number.is_finite() {
                return Err(ReportError::Metric);
            }
            if !seen.insert(name) {
                return Err(ReportError::Twice);
            }
            report.set(name, number)?;
        }
        Ok(report)
    }

    fn set(&mut self, name: &str, number: f64) -> Result<(), ReportError> {
        let slot = match name {
            "cpu_utilization" => &mut self.cpu_utilization,
            "mem_utilization" => &mut self.mem_utilization,
            "application_utilization" => &mut self.application_utilization,
            "eps" => &mut self.eps,
            "rps_fractional" => &mut self.rps_fractional,
            _ => {
                let (map, key) = name.split_once('.').ok_or(ReportError::Metric)?;
                let map = match map {
                    "named_metrics" => &mut self.named_metrics,
                    "utilization" => &mut self.utilization,
                    // As text, costs cannot be told.
                    _ => return Err(ReportError::Metric),
                };
                if key.is_empty() {
                    return Err(ReportError::Metric);
                }
                map.entry(key.to_owned()).or_default()
            }
        };
        *slot = number;
        Ok(())
    }

    /// The metric of this name; `*` in a map stands for the greatest in it.
    pub(super) fn metric(&self, name: &str) -> Option<f64> {
        match name {
            "cpu_utilization" => return Some(self.cpu_utilization),
            "mem_utilization" => return Some(self.mem_utilization),
            "application_utilization" => return Some(self.application_utilization),
            "eps" => return Some(self.eps),
            "rps_fractional" => return Some(self.rps_fractional),
            _ => {}
        }
        let (map, key) = name.split_once('.')?;
        let map = match map {
            "named_metrics" => &self.named_metrics,
            "utilization" => &self.utilization,
            "request_cost" => &self.request_cost,
            _ => return None,
        };
        match key {
            "*" => map.values().copied().reduce(f64::max),
            key => map.get(key).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&'static str, &str)]) -> Result<LoadReport, ReportError> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a value"));
        }
        LoadReport::read(&headers)
    }

    fn want() -> LoadReport {
        LoadReport {
            cpu_utilization: 0.5,
            rps_fractional: 100.0,
            named_metrics: HashMap::from([("a".to_owned(), 0.25)]),
            ..LoadReport::default()
        }
    }

    #[test]
    fn a_report_reads_the_same_in_every_format() {
        use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
        let bytes = want().encode_to_vec();
        let text = "TEXT cpu_utilization=0.5, rps_fractional:100,named_metrics.a=0.25";
        let json = r#"JSON {"cpuUtilization": 0.5, "rps_fractional": "100", "eps": null, "namedMetrics": {"a": "0.25"}}"#;
        let one = "endpoint-load-metrics";
        assert_eq!(read(&[(one, text)]), Ok(want()));
        assert_eq!(read(&[(one, json)]), Ok(want()));
        for encoded in [STANDARD.encode(&bytes), STANDARD_NO_PAD.encode(&bytes)] {
            assert_eq!(read(&[(one, &format!("BIN {encoded}"))]), Ok(want()));
            assert_eq!(read(&[("endpoint-load-metrics-bin", &encoded)]), Ok(want()));
        }
    }

    #[test]
    fn what_is_no_report_says_so() {
        let read = |value: &str| read(&[("endpoint-load-metrics", value)]);
        assert_eq!(super::LoadReport::read(&HeaderMap::new()), Err(ReportError::Missing));
        assert_eq!(read("cpu_utilization=0.5"), Err(ReportError::Format));
        assert_eq!(read("XML <a/>"), Err(ReportError::Format));
        assert_eq!(read("BIN %%%"), Err(ReportError::Encoding));
        assert_eq!(read("JSON {\"unknown\": 1}"), Err(ReportError::Json));
        assert_eq!(read("TEXT cpu_utilization=high"), Err(ReportError::Metric));
        assert_eq!(read("TEXT cpu_utilization=inf"), Err(ReportError::Metric));
        assert_eq!(read("TEXT unknown=1"), Err(ReportError::Metric));
        assert_eq!(read("TEXT request_cost.a=1"), Err(ReportError::Metric));
        assert_eq!(read("TEXT cpu_utilization =1"), Err(ReportError::Metric));
        assert_eq!(read("TEXT named_metrics.=1"), Err(ReportError::Metric));
        assert_eq!(read("TEXT eps=1,eps=2"), Err(ReportError::Twice));
    }
}
