//! Images without a registry: which command stands in for which image.
//!
//! Owns the mapping only; processes are `process`'s. Images are known by the
//! last part of their path, so that every registry and tag that published
//! them works.

use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `--image NAME=COMMAND`: the command that stands in for an image.
///
/// NAME is the image with or without registry and tag; the more exact one
/// wins. COMMAND is cut into words as a shell would, without expansions. It
/// stands in for the whole image, so a container's `command`, a path within
/// that image, is not used; its `args` follow COMMAND.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMapping {
    /// Image name.
    pub image: String,
    /// Program and arguments, never empty.
    pub command: Vec<String>,
}

/// An `--image` that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageMappingError {
    /// There is no `=`, or nothing before it.
    #[error("{0:?} is not of the form NAME=COMMAND")]
    NoName(String),
    /// There is nothing behind the `=`.
    #[error("--image {0}= names no command")]
    NoCommand(String),
    /// A quote is not closed.
    #[error("the command for image {0} has a quote that is not closed")]
    OpenQuote(String),
}

impl FromStr for ImageMapping {
    type Err = ImageMappingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let no_name = || ImageMappingError::NoName(text.to_owned());
        let (image, command) = text.split_once('=').ok_or_else(no_name)?;
        if image.is_empty() {
            return Err(no_name());
        }
        let command =
            words(command).ok_or_else(|| ImageMappingError::OpenQuote(image.to_owned()))?;
        if command.is_empty() {
            return Err(ImageMappingError::NoCommand(image.to_owned()));
        }
        Ok(Self { image: image.to_owned(), command })
    }
}

/// Cuts a command into words: blanks separate, quotes and backslashes keep.
/// None if a quote stays open.
fn words(text: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().extend(chars.next()),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => found.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word);
    quote.is_none().then_some(found)
}

/// What a container's image turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// The image's entry point.
    Command(Vec<String>),
    /// The control plane of this mesh.
    ControlPlane,
    /// The proxy of this mesh (`image: auto` or a proxy image).
    Proxy,
}

/// All known images.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    self_exe: String,
    mappings: Vec<ImageMapping>,
}

impl Images {
    pub(crate) fn new(self_exe: &Path, mappings: Vec<ImageMapping>) -> Self {
        Self { self_exe: self_exe.to_string_lossy().into_owned(), mappings }
    }

    /// The program for an image, or none.
    pub(crate) fn resolve(&self, image: &str) -> Option<Program> {
        if let Some(mapping) = self.mapped(image) {
            return Some(Program::Command(mapping.command.clone()));
        }
        let name = last_part(image);
        match name {
            "auto" | "proxyv2" | "amime-proxy" => return Some(Program::Proxy),
            "pilot" | "amimed" => return Some(Program::ControlPlane),
            _ => {}
        }
        let (role, port) = stand_in(name, image)?;
        let mut command = vec![self.self_exe.clone(), "bookinfo".to_owned(), role];
        if let Some(port) = port {
            command.extend(["--port".to_owned(), port.to_string()]);
        }
        Some(Program::Command(command))
    }

    /// The mapping with the longest name that fits.
    fn mapped(&self, image: &str) -> Option<&ImageMapping> {
        let untagged = without_tag(image);
        let fits = |mapping: &&ImageMapping| {
            let name = mapping.image.as_str();
            name == image || name == untagged || name == last_part(image)
        };
        self.mappings.iter().filter(fits).max_by_key(|mapping| mapping.image.len())
    }
}

/// Role of the sample program and the port that the image listens on.
fn stand_in(name: &str, image: &str) -> Option<(String, Option<u16>)> {
    if let Some(role) = name.strip_prefix("examples-bookinfo-") {
        return bookinfo_role(role).map(|role| (role, Some(9080)));
    }
    if let Some(version) = name.strip_prefix("examples-helloworld-") {
        return Some((format!("helloworld-{version}"), Some(5000)));
    }
    let repository = without_tag(image);
    match name {
        "httpbin" if repository.contains("mccutchen") => Some(("httpbin".to_owned(), Some(8080))),
        "httpbin" => Some(("httpbin".to_owned(), Some(80))),
        "go-httpbin" => Some(("httpbin".to_owned(), Some(8080))),
        // The image takes its ports as arguments.
        "tcp-echo-server" | "tcp-echo" => Some(("tcp-echo".to_owned(), None)),
        "curl" | "curl-ssl" | "sleep" => Some(("sleep".to_owned(), None)),
        _ => None,
    }
}

/// `reviews-v2`, also from variants such as `ratings-v2` with a database.
fn bookinfo_role(role: &str) -> Option<String> {
    const SERVICES: [&str; 4] = ["productpage", "details", "reviews", "ratings"];
    let service = role.split('-').next()?;
    SERVICES.contains(&service).then(|| role.to_owned())
}

fn without_tag(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

fn last_part(image: &str) -> &str {
    let name = without_tag(image);
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(image: &str, want: Option<&str>) {
        let mappings = ["web=sh -c 'echo hi'", "example.com/web=other", "istio/proxyv2:9=mine"];
        let mappings = mappings.map(|text| text.parse().expect("mapping")).to_vec();
        let got = Images::new(Path::new("amime"), mappings).resolve(image);
        let got = got.map(|program| match program {
            Program::Command(words) => words.join("|"),
            other => format!("{other:?}"),
        });
        assert_eq!(got.as_deref(), want);
    }

    #[test]
    fn images_of_all_registries_and_tags_are_known() {
        check(
            "docker.io/istio/examples-bookinfo-reviews-v2:1.16.2",
            Some("amime|bookinfo|reviews-v2|--port|9080"),
        );
        check(
            "registry.istio.io/release/examples-bookinfo-productpage-v1:1.20.3",
            Some("amime|bookinfo|productpage-v1|--port|9080"),
        );
        check("istio/examples-bookinfo-details-v1", Some("amime|bookinfo|details-v1|--port|9080"));
        check("docker.io/kennethreitz/httpbin", Some("amime|bookinfo|httpbin|--port|80"));
        check("docker.io/mccutchen/go-httpbin:v2.15.0", Some("amime|bookinfo|httpbin|--port|8080"));
        check("curlimages/curl", Some("amime|bookinfo|sleep"));
        check("localhost:5000/curlimages/curl", Some("amime|bookinfo|sleep"));
        check("pstauffer/curl@sha256:00", Some("amime|bookinfo|sleep"));
        check(
            "docker.io/istio/examples-helloworld-v2",
            Some("amime|bookinfo|helloworld-v2|--port|5000"),
        );
        check("auto", Some("Proxy"));
        check("docker.io/istio/pilot:1.30", Some("ControlPlane"));
        check("nginx", None);
        check("examples-bookinfo-mysqldb", None);
    }

    #[test]
    fn the_more_exact_mapping_wins_over_others_and_the_built_in() {
        check("web:3", Some("sh|-c|echo hi"));
        check("example.com/web:3", Some("other"));
        check("istio/proxyv2:9", Some("mine"));
        check("istio/proxyv2:10", Some("Proxy"));
    }

    #[test]
    fn a_command_is_cut_as_by_a_shell() {
        let cut = |text| words(text).expect("closed");
        assert_eq!(cut(r#" a 'b c' "d \"e" f\ g '' "#), ["a", "b c", "d \"e", "f g", ""]);
        assert_eq!(words("a 'b"), None);
        let parse = |text: &str| text.parse::<ImageMapping>().expect_err("wrong");
        assert_eq!(parse("web"), ImageMappingError::NoName("web".into()));
        assert_eq!(parse("=x"), ImageMappingError::NoName("=x".into()));
        assert_eq!(parse("web= "), ImageMappingError::NoCommand("web".into()));
        assert_eq!(parse("web='"), ImageMappingError::OpenQuote("web".into()));
    }
}
