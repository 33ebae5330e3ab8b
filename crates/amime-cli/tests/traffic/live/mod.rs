//! Changes while requests are served.

mod change;
mod refusal;

use crate::Test;

pub(crate) const TESTS: &[&[Test]] = &[change::TESTS, refusal::TESTS];
