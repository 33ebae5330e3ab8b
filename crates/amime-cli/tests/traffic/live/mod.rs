//! Changes while requests are served.

mod refusal;

use crate::Test;

pub(crate) const TESTS: &[&[Test]] = &[refusal::TESTS];
