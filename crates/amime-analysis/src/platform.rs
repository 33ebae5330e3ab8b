//! Rules of the platform's kinds, as far as a mesh would choke on what breaks them.
//!
//! A Kubernetes API server checks these itself; the local platform has none.

use amime_api::Resource;
use amime_api::k8s::{Container, IntOrString, PodSpec, PodTemplateSpec, ServiceSpec};
use amime_api::meta::LabelSelector;

use crate::problem::{At, Report};
use crate::syntax;

pub(crate) fn check(resource: &Resource, report: &mut Report) {
    let at = At::root("spec");
    match resource {
        Resource::Service(object) => {
            // Service names are DNS labels: they become host names.
            report.check(
                &At::root("metadata").field("name"),
                syntax::dns_label(&object.metadata.name),
            );
            check_service(&object.spec, &at, report);
        }
        Resource::Namespace(object) => {
            report.check(
                &At::root("metadata").field("name"),
                syntax::dns_label(&object.metadata.name),
            );
        }
        Resource::Pod(object) => check_pod(&object.spec, &at, report),
        Resource::Deployment(object) => {
            let spec = &object.spec;
            check_template(spec.replicas, spec.selector.as_ref(), &spec.template, &at, report);
        }
        Resource::StatefulSet(object) => {
            let spec = &object.spec;
            check_template(spec.replicas, spec.selector.as_ref(), &spec.template, &at, report);
        }
        Resource::ReplicaSet(object) => {
            let spec = &object.spec;
            check_template(spec.replicas, spec.selector.as_ref(), &spec.template, &at, report);
        }
        Resource::DaemonSet(object) => {
            let spec = &object.spec;
            check_template(None, spec.selector.as_ref(), &spec.template, &at, report);
        }
        Resource::Job(object) => check_template(None, None, &object.spec.template, &at, report),
        _ => {}
    }
}

fn check_service(spec: &ServiceSpec, at: &At, report: &mut Report) {
    const TYPES: [&str; 5] = ["", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    if !TYPES.contains(&spec.r#type.as_str()) {
        let message = format!("{:?} is none of {}", spec.r#type, TYPES[1..].join(", "));
        report.error(&at.field("type"), message);
    }
    if spec.r#type == "ExternalName" {
        report.check(&at.field("externalName"), syntax::host_name(&spec.external_name));
    } else if spec.ports.is_empty() && spec.cluster_ip != "None" {
        report.error(&at.field("ports"), "at least one port is required");
    }
    if !matches!(spec.cluster_ip.as_str(), "" | "None") {
        report.check(&at.field("clusterIP"), syntax::ip(&spec.cluster_ip));
    }
    for (index, port) in spec.ports.iter().enumerate() {
        let at = at.field("ports").nth(index);
        report.check(&at.field("port"), syntax::port(port.port.into()));
        if !matches!(port.protocol.as_str(), "" | "TCP" | "UDP" | "SCTP") {
            report.error(
                &at.field("protocol"),
                format!("{:?} is none of TCP, UDP, SCTP", port.protocol),
            );
        }
        if port.name.is_empty() && spec.ports.len() > 1 {
            report.error(&at.field("name"), "a name is required if there are several ports");
        } else if !port.name.is_empty() {
            report.check(&at.field("name"), syntax::dns_label(&port.name));
        }
        if let Some(IntOrString::Int(number)) = port.target_port {
            report.check(&at.field("targetPort"), syntax::port(u32::try_from(number).unwrap_or(0)));
        }
        let earlier = &spec.ports[..index];
        if !port.name.is_empty() && earlier.iter().any(|other| other.name == port.name) {
            report.error(&at.field("name"), format!("port name {:?} is given twice", port.name));
        }
        let transport = |protocol: &str| {
            if protocol.is_empty() { "TCP".to_owned() } else { protocol.to_owned() }
        };
        if earlier.iter().any(|other| {
            other.port == port.port && transport(&other.protocol) == transport(&port.protocol)
        }) {
            report.error(&at.field("port"), format!("port {} is given twice", port.port));
        }
    }
}

fn check_template(
    replicas: Option<i32>,
    selector: Option<&LabelSelector>,
    template: &PodTemplateSpec,
    at: &At,
    report: &mut Report,
) {
    if replicas.is_some_and(|replicas| replicas < 0) {
        report.error(&at.field("replicas"), "must not be negative");
    }
    let at = at.field("template");
    if selector.is_some_and(|selector| !selector.selects(&template.metadata.labels)) {
        report.error(
            &at.field("metadata").field("labels"),
            "the selector does not select the template",
        );
    }
    for (key, value) in &template.metadata.labels {
        let check = syntax::label_key(key).and_then(|()| syntax::label_value(value));
        report.check(&at.field("metadata").field("labels").key(key), check);
    }
    check_pod(&template.spec, &at.field("spec"), report);
}

fn check_pod(spec: &PodSpec, at: &At, report: &mut Report) {
    if spec.containers.is_empty() {
        report.error(&at.field("containers"), "at least one container is required");
    }
    let mut names: Vec<&str> = Vec::new();
    for (list, containers) in
        [("initContainers", &spec.init_containers), ("containers", &spec.containers)]
    {
        for (at, container) in at.each(list, containers) {
            check_container(container, &at, report);
            if names.contains(&container.name.as_str()) {
                report.error(
                    &at.field("name"),
                    format!("container {:?} is given twice", container.name),
                );
            }
            names.push(&container.name);
        }
    }
    if !matches!(spec.restart_policy.as_str(), "" | "Always" | "OnFailure" | "Never") {
        let message = format!("{:?} is none of Always, OnFailure, Never", spec.restart_policy);
        report.error(&at.field("restartPolicy"), message);
    }
}

fn check_container(container: &Container, at: &At, report: &mut Report) {
    report.check(&at.field("name"), syntax::dns_label(&container.name));
    if container.image.is_empty() {
        report.error(&at.field("image"), "an image is required");
    }
    for (at, port) in at.each("ports", &container.ports) {
        report.check(&at.field("containerPort"), syntax::port(port.container_port.into()));
    }
    for (at, variable) in at.each("env", &container.env) {
        if variable.name.is_empty() {
            report.error(&at.field("name"), "a name is required");
        }
        if !variable.value.is_empty() && variable.value_from.is_some() {
            report.error(&at.field("valueFrom"), "cannot be given together with value");
        }
    }
}
