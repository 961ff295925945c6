#!/bin/sh
# Replays the corpora and tells how many lines of each parser they reach.
#
#   tests/fuzz/coverage.sh [TARGET…]
#
# Needs the compiler's own LLVM tools: rustup component add llvm-tools.
set -eu

cd "$(dirname "$0")"
[ $# -gt 0 ] || set -- packets frames invite config keys

host=$(rustc -vV | sed -n 's/^host: //p')
tools=$(rustc --print sysroot)/lib/rustlib/$host/bin
CARGO_TARGET_DIR=$PWD/target/coverage
export CARGO_TARGET_DIR
RUSTFLAGS="--cfg fuzzing -Cinstrument-coverage" \
    nice -n 19 cargo build --quiet --locked --release --bins --target "$host"

profiles=$CARGO_TARGET_DIR/profiles
rm -rf "$profiles"
mkdir -p "$profiles"
objects=
for target in "$@"; do
    program=$CARGO_TARGET_DIR/$host/release/$target
    LLVM_PROFILE_FILE=$profiles/$target.profraw \
        nice -n 19 "$program" "corpus/$target" -runs=1 2>"$profiles/$target.log"
    objects="$objects -object $program"
done
"$tools/llvm-profdata" merge -o "$profiles/all.profdata" "$profiles"/*.profraw
# shellcheck disable=SC2086 # one word each
"$tools/llvm-cov" report $objects -instr-profile "$profiles/all.profdata" \
    -show-branch-summary=false -show-region-summary=false \
    -ignore-filename-regex='/(registry|rustc|rustlib|fuzz)/'
