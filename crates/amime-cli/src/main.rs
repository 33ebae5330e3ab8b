//! The `amime` command line.
fn main() {}
