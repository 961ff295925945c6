#!/bin/sh
# Builds every fuzz target and runs one after the other.
#
#   tests/fuzz/run.sh [SECONDS [TARGET…]]      SECONDS per target, 600 by default
#
# Exits with 1 when a target found something; the input that shows it is in artifacts/.
# Needs a C++ compiler. See README.md.
set -eu

cd "$(dirname "$0")"
seconds=${1:-600}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- packets frames invite config keys

# Coverage feedback as libFuzzer wants it, on a stable compiler (what `cargo fuzz` passes too).
# A target triple keeps the flags off build scripts and macros.
RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
 -Cllvm-args=-sanitizer-coverage-level=4 \
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
 -Cllvm-args=-sanitizer-coverage-pc-table \
 -Cllvm-args=-sanitizer-coverage-trace-compares"
export RUSTFLAGS
host=$(rustc -vV | sed -n 's/^host: //p')
CARGO_TARGET_DIR=$PWD/target
export CARGO_TARGET_DIR
nice -n 19 cargo build --quiet --locked --release --bins --target "$host"

mkdir -p target/logs
failed=
for target in "$@"; do
    corpus=corpus/$target log=target/logs/$target.log
    mkdir -p "$corpus" "artifacts/$target"
    dictionary=dictionaries/$target.dict
    set +e
    SEEDS=$corpus nice -n 19 "target/$host/release/$target" "$corpus" \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -len_control=20 -reload=0 \
        -print_final_stats=1 -artifact_prefix="artifacts/$target/" \
        ${dictionary:+$([ -f "$dictionary" ] && printf -- '-dict=%s' "$dictionary")} 2>"$log"
    status=$?
    set -e
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    reached=$(grep -o 'cov: [0-9]* ft: [0-9]* corp: [^ ]*' "$log" | tail -n 1)
    edges=$(sed -n 's/^INFO: Loaded 1 PC tables (\([0-9]*\) PCs).*/\1/p' "$log")
    case $status in
    0) verdict=clean ;;
    72) verdict=ENDED failed="$failed $target" ;; # by a signal
    *) verdict=FOUND failed="$failed $target" ;;
    esac
    printf '%-8s %-6s %12s runs %8s/s  %s of %s edges\n' \
        "$target" "$verdict" "${runs:-?}" "${speed:-?}" "$reached" "${edges:-?}"
    [ "$verdict" != FOUND ] || { grep -a -A 1 'panicked at' "$log"; grep -a 'Test unit written' "$log"; } || true
done
[ -z "$failed" ] || { echo "not clean:$failed (inputs in $PWD/artifacts, logs in $PWD/target/logs)" >&2; exit 1; }
