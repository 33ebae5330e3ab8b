//! Manifests that come with the program: the mesh's own components and the
//! Bookinfo sample.

use amime_control::store::SourceFile;

/// Control plane, gateways, name service and mesh settings.
pub(crate) fn mesh() -> Vec<SourceFile> {
    vec![
        file("istiod.yaml", include_str!("istiod.yaml")),
        file("gateways.yaml", include_str!("gateways.yaml")),
        file("dns.yaml", include_str!("dns.yaml")),
    ]
}

/// Name service only.
pub(crate) fn platform() -> Vec<SourceFile> {
    vec![file("dns.yaml", include_str!("dns.yaml"))]
}

/// The sample with its gateway.
pub(crate) fn demo() -> Vec<SourceFile> {
    vec![
        file(
            "samples/bookinfo/bookinfo.yaml",
            include_str!("../../../../samples/bookinfo/bookinfo.yaml"),
        ),
        file(
            "samples/bookinfo/bookinfo-gateway.yaml",
            include_str!("../../../../samples/bookinfo/bookinfo-gateway.yaml"),
        ),
    ]
}

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.to_owned(), text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn built_in_manifests_have_no_faults() {
        for file in super::mesh().into_iter().chain(super::demo()) {
            let decoded = amime_api::decode::decode(&file.name, &file.text);
            assert!(decoded.errors.is_empty(), "{:?}", decoded.errors);
            assert!(!decoded.resources.is_empty());
        }
    }
}
