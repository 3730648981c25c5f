#!/usr/bin/env bash
# Runs every fuzz target for some seconds: fuzz.sh SECONDS. Needs a nightly toolchain and cargo-fuzz; says so where they are not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:?seconds for each target}
if [ ! -f tests/fuzz/Cargo.toml ]; then
    echo 'fuzz: there are no fuzz targets in tests/fuzz'
    exit 0
fi
if ! cargo +nightly --version >/dev/null 2>&1 || ! cargo fuzz --version >/dev/null 2>&1; then
    echo 'fuzz: SKIPPED: needs a nightly toolchain and cargo-fuzz (cargo install cargo-fuzz)' >&2
    exit 0
fi
cd tests
for target in $(cargo +nightly fuzz list); do
    echo "fuzz: $target, $seconds s"
    log=$(mktemp)
    if ! cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=4096 >"$log" 2>&1; then
        tail -n 40 "$log"
        rm -f "$log"
        echo "fuzz: $target FAILED" >&2
        exit 1
    fi
    rm -f "$log"
done
