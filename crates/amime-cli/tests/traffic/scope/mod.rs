//! Scope: whose configuration counts where.

mod export;
mod lookup;
mod sidecar;

use crate::Test;

pub(crate) const TESTS: &[&[Test]] = &[export::TESTS, lookup::TESTS, sidecar::TESTS];
