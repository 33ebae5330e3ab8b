# Short names for what is done every day; `just` alone lists them.

default:
    @just --list

# Start a mesh on this machine.
up *ARGS:
    cargo run --release -- up {{ARGS}}

# Everything CI does.
ci:
    .ci/run

# Rules that need no build: format, tidy.
tidy:
    cargo fmt --all --check
    cargo xtask tidy

# Lints of everything.
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Tests of everything.
test *ARGS:
    cargo test --workspace {{ARGS}}

# Licences, bans and sources of dependencies.
deny:
    cargo deny check bans licenses sources

# Compare the proxy with Envoy (AMIME_ENVOY names the Envoy binary).
bench *ARGS:
    cargo build --release -p amime-proxy -p amime-bench
    cargo run --release -p amime-bench -- {{ARGS}}

# Send the same requests to Envoy and to our proxy (AMIME_ENVOY names the Envoy binary).
conformance *ARGS:
    cargo run -p amime-conformance -- cases {{ARGS}}

# Count the rules of HTTP/2 that Envoy and our proxy keep.
h2spec *ARGS:
    cargo run -p amime-conformance -- h2spec {{ARGS}}
