# Two commands do everything on a fresh Debian or Ubuntu machine, from a bare clone:
#   make demo    builds landfall and shows the whole story on a disk that it makes itself
#   make test    installs what the tests need, builds, and runs all of them
# The others: setup (only install), static (a release that needs nothing of the system), lint (format, clippy, docs), bench,
# fuzz (FUZZ_SECONDS per target).

SHELL := bash
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

.PHONY: setup demo test static lint bench fuzz
.DEFAULT_GOAL := test

setup:
	@tests/tools/setup.sh

demo:
	@tests/tools/setup.sh build
	cargo build --locked --release --package landfall-cli --bin landfall
	@"$${CARGO_TARGET_DIR:-target}/release/landfall" demo

# One file that runs on any Linux of this architecture: the C library is in it.
static:
	@tests/tools/setup.sh build
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$$(uname -m)-unknown-linux-gnu" --package landfall-cli --bin landfall

test: setup
	@tests/tools/test.sh

lint:
	@tests/tools/setup.sh build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --all-features --no-deps

bench: setup
	cargo build --locked --release --package landfall-cli --bin landfall
	@bash tests/bench/run.sh

fuzz:
	@tests/tools/setup.sh build
	LANDFALL_FUZZ_SECONDS="$${FUZZ_SECONDS:-300}" cargo test --locked --package landfall-tests --test fuzz_short -- libfuzzer --nocapture
