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

# The Debian packages, and what people do with them in a booted systemd, as root.
packages:
    cargo deb -p whimbrel-gateway
    cargo deb -p whimbrel

# Writes what the packages have beside the programs, after a change of commands or keys.
papers:
    cargo run -p whimbrel-papers

try-packages:
    tests/systemd/packages

# A laptop that really sleeps, in QEMU, with ssh open across it, as root: two minutes.
sleep:
    tests/sleep/run

demo:
    cargo run --release --bin whimbrel-demo

# Ten thousand sudden deaths of the gateway, with traffic in both directions: a quarter of an hour.
kills:
    WHIMBREL_KILLS=10000 WHIMBREL_PATIENCE=7200 \
        cargo test --release -p whimbrel-tests --test restarts -- kills_at_random --show-output

# Ten thousand seeds of the world in which sessions are resumed, a thousand of that of both ends.
worlds:
    WHIMBREL_SEEDS=10000 cargo test --release -p whimbrel-carrier --test world
    WHIMBREL_SEEDS=1000 cargo test --release -p whimbrel-tests --test realworld

# An hour of networks that come and go.
roam:
    WHIMBREL_SOAK=3600 WHIMBREL_PATIENCE=7200 \
        cargo test --release -p whimbrel-tests --test moves -- at_random --show-output
