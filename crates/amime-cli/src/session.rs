//! The running mesh that commands talk to, found through its state directory.

use std::path::PathBuf;

use amime_control::api::{ApiClient, ClientError};
use amime_local::StateDir;
use amime_local::client::{Client, ExecRequest, LogRequest};
use amime_local::status::MeshStatus;
use anyhow::Context;
use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::io::{stderr, stdin, stdout};

use crate::args::Globals;
use crate::relay::Relay;
use crate::target::Pod;

/// A mesh on this machine.
pub(crate) struct Session {
    client: Client,
    api: ApiClient,
    dir: PathBuf,
}

impl Session {
    /// The mesh of the state directory; nothing is contacted yet.
    pub(crate) fn of(globals: &Globals) -> anyhow::Result<Self> {
        let dir = state_dir(globals)?;
        let client = Client::new(&StateDir::new(&dir));
        Ok(Self { api: client.objects(), client, dir })
    }

    /// Objects and their changes.
    pub(crate) fn api(&self) -> &ApiClient {
        &self.api
    }

    /// Objects of a kind; no namespace means all.
    pub(crate) async fn list(
        &self,
        kind: &str,
        namespace: Option<&str>,
    ) -> anyhow::Result<Vec<Value>> {
        let objects = self.api.objects(kind, namespace, None).await;
        Ok(objects.map_err(|error| self.explain(error))?.items)
    }

    /// One object, or nothing.
    pub(crate) async fn find(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Option<Value>> {
        match self.api.objects(kind, Some(namespace), Some(name)).await {
            Ok(objects) => Ok(objects.items.into_iter().next()),
            Err(ClientError::Refused { status, .. }) if status == 404 => Ok(None),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// An error of the API in words that say what to do.
    pub(crate) fn explain(&self, error: ClientError) -> anyhow::Error {
        match error {
            ClientError::Connect { .. } => anyhow::anyhow!(
                "no mesh is running on {}; start one with `amime up`",
                self.dir.display()
            ),
            other => other.into(),
        }
    }

    /// Requests to a port inside a pod.
    pub(crate) fn relay(&self, pod: &Pod, port: u16) -> Relay {
        Relay::new(self.api.socket(), pod, port)
    }

    /// Text of a page inside a pod.
    pub(crate) async fn http_get(
        &self,
        pod: &Pod,
        port: u16,
        path: &str,
    ) -> anyhow::Result<String> {
        self.http(Method::GET, pod, port, path).await
    }

    /// Text of the answer to a POST without body.
    pub(crate) async fn http_post(
        &self,
        pod: &Pod,
        port: u16,
        path: &str,
    ) -> anyhow::Result<String> {
        self.http(Method::POST, pod, port, path).await
    }

    async fn http(
        &self,
        method: Method,
        pod: &Pod,
        port: u16,
        path: &str,
    ) -> anyhow::Result<String> {
        let Pod { namespace, name } = pod;
        let target = (namespace.as_str(), name.as_str(), port);
        let body = self.client.pod_request(method, target, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// What runs, and how it is doing.
    pub(crate) async fn status(&self) -> anyhow::Result<MeshStatus> {
        Ok(self.client.status().await?)
    }

    /// Runs a command in a pod with our own streams; its exit code.
    pub(crate) async fn exec(
        &self,
        pod: &Pod,
        container: Option<&str>,
        command: Vec<String>,
    ) -> anyhow::Result<i32> {
        let request = ExecRequest {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: container.map(str::to_owned),
            command,
        };
        Ok(self.client.exec(&request, stdin(), &mut stdout(), &mut stderr()).await?)
    }

    /// Copies a container's output to our own.
    pub(crate) async fn logs(
        &self,
        pod: &Pod,
        container: Option<&str>,
        follow: bool,
        tail: Option<usize>,
    ) -> anyhow::Result<()> {
        let request = LogRequest {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: container.map(str::to_owned),
            follow,
            tail,
        };
        Ok(self.client.logs(&request, &mut stdout()).await?)
    }

    /// Changes the number of pods of a Deployment or StatefulSet.
    pub(crate) async fn scale(&self, name: &str, namespace: &str, to: u32) -> anyhow::Result<()> {
        Ok(self.client.scale(namespace, name, to).await?)
    }

    /// The pods that run the control plane.
    pub(crate) async fn control_planes(&self, namespace: &str) -> anyhow::Result<Vec<Pod>> {
        let pods = self.list("pods", Some(namespace)).await?;
        let istiods = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == "istiod");
        Ok(istiods
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .map(|name| Pod { namespace: namespace.to_owned(), name: name.to_owned() })
            .collect())
    }
}

/// The state directory that was asked for, or the usual one.
pub(crate) fn state_dir(globals: &Globals) -> anyhow::Result<PathBuf> {
    match &globals.state_dir {
        Some(dir) => std::path::absolute(dir)
            .with_context(|| format!("{} is not a usable path", dir.display())),
        None => Ok(amime_local::default_state_dir(|name| std::env::var(name).ok())?),
    }
}
