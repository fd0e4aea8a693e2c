# `make demo` and `make test` need nothing but Rust on a Debian or Ubuntu machine: they install the
# packages they miss, build, and run. `make help` lists the rest.

CARGO ?= cargo
ROOT  := .ci/root.sh
BIN   := $(or $(CARGO_TARGET_DIR),target)/release/tidegate

.PHONY: help build demo test fmt clippy unit deny fuzz bench bench-quick clean packages-build \
	packages-test packages-bench

help:
	@echo "make demo         build, then show interactive streams with and without QoS in a lab"
	@echo "make test         everything CI runs: format, clippy, all tests, fuzz seeds, licences"
	@echo "make bench        all benchmarks with their peers (long); tables and JSON under bench/out"
	@echo "make build        the release binary, target/release/tidegate"
	@echo "make fuzz SECONDS=60 TARGET=pipeline   run a fuzz target (nightly Rust and cargo-fuzz)"

packages-build:
	@.ci/packages.sh build
packages-test:
	@.ci/packages.sh test
packages-bench:
	@.ci/packages.sh bench

build: packages-build
	$(CARGO) build --release --locked

demo: build
	$(ROOT) $(BIN) demo

test: packages-test fmt clippy unit deny

fmt:
	$(CARGO) fmt --all --check

clippy: packages-build
	$(CARGO) clippy --locked --all-targets -- -D warnings

# Namespace tests need root; they build their own namespaces and touch nothing else.
unit: packages-test
	$(CARGO) test --locked --no-run
	$(ROOT) $(CARGO) test --locked

deny:
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --debug cargo-deny --no-default-features
	$(CARGO) fetch --quiet --locked  # also what other platforms would need: their licences count too
	$(CARGO) deny --offline check licenses bans sources

# New inputs are kept in tests/fuzz/found, findings in tests/fuzz/artifacts; neither is committed.
TARGET  ?= pipeline
SECONDS ?= 60
FUZZ    := tests/fuzz
fuzz: packages-build
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	@mkdir -p $(FUZZ)/found/$(TARGET)
	$(CARGO) +nightly fuzz run --fuzz-dir $(FUZZ) $(TARGET) $(FUZZ)/found/$(TARGET) \
		$(FUZZ)/corpus/$(TARGET) -- -max_total_time=$(SECONDS) -max_len=4096 -timeout=20

# One after another: they share two cores. Each prints a table and writes JSON. The last compares
# forwarders in namespaces of its own, and needs root.
BENCHES := parse inspect qos pipeline
bench: packages-bench build
	$(CARGO) bench --locked --no-run
	mkdir -p bench/out
	set -e; for b in $(BENCHES); do echo; echo "== $$b"; \
		$(CARGO) bench --quiet --locked --bench $$b -- --json $(CURDIR)/bench/out/$$b.json; done
	@echo; echo "== veth"
	$(ROOT) $(CARGO) bench --quiet --locked --bench veth -- --json $(CURDIR)/bench/out/veth.json

# Does it work? The figures are worth nothing.
bench-quick: packages-bench build
	mkdir -p bench/out
	$(ROOT) $(CARGO) bench --quiet --locked --bench veth -- --quick
