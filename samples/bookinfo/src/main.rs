//! Entry point of the stand-alone `bookinfo` program.

use clap::Parser;

/// One thread is enough for a sample and keeps a pod at a few megabytes.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    bookinfo::run(bookinfo::Args::parse()).await
}
