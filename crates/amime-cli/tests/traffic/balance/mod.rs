//! Which endpoint gets a request, and what happens when it fails.

mod affinity;
mod limit;
mod outlier;
mod weight;

use crate::Test;

pub(crate) const TESTS: &[&[Test]] =
    &[affinity::TESTS, limit::TESTS, outlier::TESTS, weight::TESTS];
