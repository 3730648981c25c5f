#!/usr/bin/env bash
# make bench: builds, makes the corpus, runs everything, writes docs/PERFORMANCE.md. Root for the corpus; 30 GiB of disk.
#   BENCH_DIR (default ./bench-data)   BENCH_SIZE (default 8G)   BENCH_ROUNDS (default 2)
set -euo pipefail
cd "$(dirname "$0")/../.."
DIR=$(realpath -m "${BENCH_DIR:-bench-data}")
if ! command -v restic >/dev/null || ! command -v fio >/dev/null || [ ! -x /usr/bin/time ]; then
  SUDO=; [ "$(id -u)" = 0 ] || SUDO=sudo
  $SUDO apt-get install -y --no-install-recommends restic fio time >/dev/null || echo "restic or fio could not be installed: it will be named as missing" >&2
fi
cargo build --release --bin landfall --bin bare-loop
tests/bench/make-corpus.sh "$DIR/corpus" "${BENCH_SIZE:-8G}"
python3 tests/bench/run.py --landfall target/release/landfall --bare-loop target/release/bare-loop --corpus "$DIR/corpus" \
  --work "$DIR/work" --rounds "${BENCH_ROUNDS:-2}" --report docs/PERFORMANCE.md
python3 tests/bench/gateway.py --landfall target/release/landfall --work "$DIR/gateway" --report docs/PERFORMANCE.md
python3 tests/bench/hosts.py --landfall target/release/landfall --work "$DIR/hosts" --report docs/PERFORMANCE.md
python3 tests/bench/serve.py --landfall target/release/landfall --work "$DIR/serve" --report docs/PERFORMANCE.md
python3 tests/bench/boot.py --landfall target/release/landfall --work "$DIR/boot" --peers "${LANDFALL_PEERS:-target/peers}" --report docs/PERFORMANCE.md
