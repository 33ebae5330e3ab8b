//! Configuration from an object store's API.
//!
//! Survives the store: while it is away the last state stays in force, and
//! when it is back only the differences are sent on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use amime_api::{ObjectKey, Resource, decode};
use amime_model::Change;
use http::StatusCode;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Event, Events, QUEUE};
use crate::api::{ApiClient, ClientError, WatchLine, WatchStream, WatchedObject};
use crate::metrics::Count;
use crate::store::ResumePoint;

const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Follows the API on a Unix socket.
#[derive(Debug)]
pub struct ApiSource {
    client: ApiClient,
    rejected: Count,
    held: BTreeMap<ObjectKey, Arc<Resource>>,
    /// Keys seen since an initial list began; what is not among them at its
    /// end has been deleted while we did not look.
    listed: Option<BTreeSet<ObjectKey>>,
    since: Option<ResumePoint>,
    synced: bool,
}

/// The receiver is gone, so there is nobody to work for.
struct Unwanted;

impl ApiSource {
    /// Starts following; ends with `shutdown` or when the events are dropped.
    pub fn start(socket: PathBuf, rejected: Count, shutdown: CancellationToken) -> Events {
        let (events, receiver) = mpsc::channel(QUEUE);
        let source = Self {
            client: ApiClient::new(socket),
            rejected,
            held: BTreeMap::new(),
            listed: None,
            since: None,
            synced: false,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = source.run(&events) => {}
                () = shutdown.cancelled() => {}
            }
        });
        receiver
    }

    async fn run(mut self, events: &mpsc::Sender<Event>) {
        let mut backoff = MIN_BACKOFF;
        let mut reported = false;
        loop {
            match self.client.watch(self.since.as_ref()).await {
                Ok(stream) => {
                    if reported {
                        tracing::info!(socket = %self.client.socket().display(), "source is back");
                    }
                    (backoff, reported) = (MIN_BACKOFF, false);
                    match self.follow(stream, events).await {
                        Ok(ended) => tracing::info!(?ended, "watch ended, starting anew"),
                        Err(Unwanted) => return,
                    }
                }
                Err(ClientError::Refused { status: StatusCode::GONE, .. }) => self.since = None,
                Err(error) => {
                    // Once an outage, not once a try.
                    if !reported {
                        let socket = self.client.socket().display();
                        let held = self.held.len();
                        let cause = &error as &dyn std::error::Error;
                        tracing::warn!(%socket, held, error = cause, "waiting for the source");
                        reported = true;
                    }
                    if events.is_closed() {
                        return;
                    }
                }
            }
            // Jitter keeps several followers from coming back in step.
            tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Takes lines until the watch ends; returns why it did.
    async fn follow(
        &mut self,
        mut stream: WatchStream,
        events: &mpsc::Sender<Event>,
    ) -> Result<Option<ClientError>, Unwanted> {
        self.listed = self.since.is_none().then(BTreeSet::new);
        loop {
            let line = match stream.next().await {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(error)),
            };
            self.take(line, events).await?;
        }
    }

    async fn take(
        &mut self,
        line: WatchLine,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Unwanted> {
        let revision = match line {
            WatchLine::Added(watched) | WatchLine::Modified(watched) => {
                let revision = watched.revision;
                self.upsert(watched, events).await?;
                revision
            }
            WatchLine::Deleted(watched) => {
                if let Some(resource) = self.decode(&watched) {
                    self.note(watched.revision);
                    self.delete(resource.key(), events).await?;
                }
                watched.revision
            }
            WatchLine::Synced { revision, instance } => {
                self.list_ended(ResumePoint { instance, revision }, events).await?;
                revision
            }
        };
        // An object of an initial list has the list's revision, which is not complete yet.
        match self.listed {
            Some(_) => Ok(()),
            None => send(events, Event::Revision(revision)).await,
        }
    }

    async fn upsert(
        &mut self,
        watched: WatchedObject,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Unwanted> {
        let Some(resource) = self.decode(&watched) else { return Ok(()) };
        self.note(watched.revision);
        let key = resource.key();
        if let Some(listed) = &mut self.listed {
            listed.insert(key.clone());
        }
        let same = |held: &Arc<Resource>| {
            held.metadata().resource_version == resource.metadata().resource_version
                && held.metadata().uid == resource.metadata().uid
        };
        if self.held.get(&key).is_some_and(same) {
            return Ok(());
        }
        let resource = Arc::new(resource);
        self.held.insert(key, resource.clone());
        send(events, Event::Change(Change::Set(resource))).await
    }

    async fn delete(
        &mut self,
        key: ObjectKey,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Unwanted> {
        if self.held.remove(&key).is_none() {
            return Ok(());
        }
        send(events, Event::Change(Change::Delete(key))).await
    }

    async fn list_ended(
        &mut self,
        point: ResumePoint,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), Unwanted> {
        if let Some(listed) = self.listed.take() {
            let gone: Vec<ObjectKey> =
                self.held.keys().filter(|key| !listed.contains(key)).cloned().collect();
            for key in gone {
                self.delete(key, events).await?;
            }
        }
        self.since = Some(point);
        if !std::mem::replace(&mut self.synced, true) {
            tracing::info!(objects = self.held.len(), "source is in sync");
            send(events, Event::Synced).await?;
        }
        Ok(())
    }

    /// During a list the revision is that of the list, which is not complete yet.
    fn note(&mut self, revision: u64) {
        if let (None, Some(since)) = (&self.listed, &mut self.since) {
            since.revision = since.revision.max(revision);
        }
    }

    fn decode(&mut self, watched: &WatchedObject) -> Option<Resource> {
        match decode::from_json(&watched.file, &watched.object) {
            Ok(resource) => Some(resource),
            Err(errors) => {
                self.rejected.increment();
                for error in errors {
                    tracing::warn!(%error, "object not usable, the last good one stays in force");
                }
                self.keep_listed(&watched.object);
                None
            }
        }
    }

    /// An object that is there but unreadable has not been deleted.
    fn keep_listed(&mut self, object: &serde_json::Value) {
        let text = |pointer: &str| object.pointer(pointer).and_then(|value| value.as_str());
        let kind = text("/kind").and_then(|kind| amime_api::Kind::parse(kind).ok());
        if let (Some(kind), Some(name), Some(listed)) =
            (kind, text("/metadata/name"), &mut self.listed)
        {
            let namespace = text("/metadata/namespace").unwrap_or_default().to_owned();
            listed.insert(ObjectKey { kind, namespace, name: name.to_owned() });
        }
    }
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Unwanted> {
    events.send(event).await.map_err(|_| Unwanted)
}
