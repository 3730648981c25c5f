#!/usr/bin/env bash
# Builds the binary with its crash points, then runs every test of the workspace. Peers must be there: see setup.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# One selection and one set of features for all steps: anything else would build the crates, and the binary, twice.
select=(--locked --workspace --features landfall-cli/crash-points)

# 'Bad input' tests the clock with faketime, xfs with xfs_repair, ...: all of it is on the PATH of an administrator.
export PATH="$PATH:/usr/sbin:/sbin"

cargo build "${select[@]}" --all-targets
cargo test "${select[@]}" --quiet --doc
# Last, so that its closing line is the last thing to be read.
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run "${select[@]}"
else
    cargo test "${select[@]}" --no-fail-fast --lib --bins --tests
fi
