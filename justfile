# Everything that must pass before a change goes in, without root.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
    cargo test --workspace

# Everything there is, as root on Debian.
ci:
    .ci/run

# The units in a booted systemd, as root.
systemd:
    tests/systemd/run

demo:
    cargo run --release --bin whimbrel-demo
