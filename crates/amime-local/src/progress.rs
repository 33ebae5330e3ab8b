//! What happens while the mesh starts, as events for a display.

use serde::{Deserialize, Serialize};

/// One event of a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
#[non_exhaustive]
pub enum Progress {
    /// A step began, moved on or ended.
    Step {
        /// What it is about: `network`, `istiod`, `default/reviews-v1`.
        name: String,
        /// How it stands.
        state: StepState,
    },
    /// Something that the user should know, and that stops nothing.
    Warning {
        /// One sentence.
        message: String,
    },
    /// The start failed; the mesh is going down again.
    Failed {
        /// The whole cause.
        message: String,
    },
    /// All that was asked for is ready.
    Ready {
        /// Where the host reaches the ingress gateway.
        url: String,
        /// Milliseconds since the start of the supervisor.
        elapsed_ms: u64,
    },
}

/// How a step stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum StepState {
    /// Under way.
    Started,
    /// Under way, with a count.
    Waiting {
        /// Pods that are ready.
        ready: u32,
        /// Pods wanted.
        wanted: u32,
        /// What the first one that is not ready waits for; may be empty.
        reason: String,
    },
    /// Done.
    Done,
}
