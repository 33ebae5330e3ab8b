//! Egress: what leaves the mesh.

mod entry;
mod gateway;
mod origination;
mod policy;

use crate::Test;

pub(crate) const TESTS: &[&[Test]] =
    &[entry::TESTS, policy::TESTS, origination::TESTS, gateway::TESTS];
