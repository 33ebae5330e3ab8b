//! Workloads that make pods from a template.

use super::pod::PodSpec;
use crate::meta::{LabelSelector, ObjectMeta};

messages! {
    /// Template of pods.
    pub struct PodTemplateSpec {
        /// Labels and annotations of the pods.
        pub metadata: ObjectMeta,
        /// Spec of the pods.
        pub spec: PodSpec,
    }

    /// Spec of a deployment.
    pub struct DeploymentSpec {
        /// Pods wanted; one by default.
        pub replicas: Option<i32>,
        /// Labels of its pods; the template's in old API versions.
        pub selector: Option<LabelSelector>,
        /// What to run.
        pub template: PodTemplateSpec,
    }

    /// Spec of a stateful set.
    pub struct StatefulSetSpec {
        /// Pods wanted; one by default.
        pub replicas: Option<i32>,
        /// Labels of its pods.
        pub selector: Option<LabelSelector>,
        /// Headless service of the pods.
        pub service_name: String,
        /// What to run.
        pub template: PodTemplateSpec,
    }

    /// Spec of a replica set.
    pub struct ReplicaSetSpec {
        /// Pods wanted; one by default.
        pub replicas: Option<i32>,
        /// Labels of its pods.
        pub selector: Option<LabelSelector>,
        /// What to run.
        pub template: PodTemplateSpec,
    }

    /// Spec of a daemon set.
    pub struct DaemonSetSpec {
        /// Labels of its pods.
        pub selector: Option<LabelSelector>,
        /// What to run.
        pub template: PodTemplateSpec,
    }

    /// Spec of a job.
    pub struct JobSpec {
        /// Pods at the same time; one by default.
        pub parallelism: Option<i32>,
        /// Successes wanted; one by default.
        pub completions: Option<i32>,
        /// Failures before it gives up; six by default.
        pub backoff_limit: Option<i32>,
        /// Labels of its pods.
        pub selector: Option<LabelSelector>,
        /// What to run.
        pub template: PodTemplateSpec,
    }
}
