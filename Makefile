# `make demo` and `make test` need nothing but Rust on a Debian or Ubuntu machine: they install the
# packages they miss, build, and run. `make help` lists the rest.

CARGO ?= cargo
ROOT  := .ci/root.sh
BIN   := $(or $(CARGO_TARGET_DIR),target)/release/tidegate

.PHONY: help build demo test fmt clippy unit deny fuzz seeds bench bench-quick clean packages-build \
	packages-test packages-bench packages-fuzz

help:
	@echo "make demo         build, then show interactive streams with and without QoS in a lab"
	@echo "make test         everything CI runs: format, clippy, all tests, fuzz seeds, licences"
	@echo "make bench        all benchmarks with their peers (long); tables and JSON under bench/out"
	@echo "make build        the release binary, target/release/tidegate"
	@echo "make seeds SEEDS=1000   simulate delayed binding over lossy links with as many seeds each"
	@echo "make fuzz SECONDS=60 TARGET=pipeline   run a fuzz target, or several, or all"

packages-build:
	@.ci/packages.sh build
packages-test:
	@.ci/packages.sh test
	@.ci/python.sh
packages-bench:
	@.ci/packages.sh bench
packages-fuzz:
	@.ci/packages.sh fuzz

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
	$(ROOT) $(CARGO) test --locked --no-fail-fast
	@[ -n "$$TIDEGATE_CORPUS" ] || echo "NOT RUN: tests against public captures" \
		"(set TIDEGATE_CORPUS to the folder that holds them)"

deny:
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked --debug cargo-deny --no-default-features
	$(CARGO) fetch --quiet --locked  # also what other platforms would need: their licences count too
	$(CARGO) deny --offline check licenses bans sources
	@# Told, not failed on: what the database says changes without any change here.
	@if ! timeout 60 $(CARGO) deny fetch db >/dev/null 2>&1; then \
		echo "NOT CHECKED: advisories, their database can't be reached from here"; \
	else $(CARGO) deny --offline check advisories || echo "ADVISORIES: see above"; fi

# cargo-fuzz asks for nightly Rust; where there is none, the compiler in use is told to do what only
# nightly would. New inputs are kept in tests/fuzz/found, findings in tests/fuzz/artifacts; neither
# is committed.
TARGET  ?= pipeline
SECONDS ?= 60
FUZZ    := tests/fuzz
TARGETS := $(if $(filter all,$(TARGET)),$(basename $(notdir $(wildcard $(FUZZ)/fuzz_targets/*.rs))),$(TARGET))
fuzz: packages-fuzz
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked cargo-fuzz
	@set -e; nightly=; \
	if $(CARGO) +nightly --version >/dev/null 2>&1; then nightly=+nightly; \
	else export RUSTC_BOOTSTRAP=1; fi; \
	for t in $(TARGETS); do echo "== $$t"; mkdir -p $(FUZZ)/found/$$t; \
		$(CARGO) $$nightly fuzz run --fuzz-dir $(FUZZ) $$t $(FUZZ)/found/$$t \
			$(FUZZ)/corpus/$$t -- -max_total_time=$(SECONDS) -max_len=4096 -timeout=20; done

# CI takes a few seeds of each simulation; a seed that fails is printed, and fails again alone.
SEEDS ?= 1000
seeds: packages-build
	TIDEGATE_SIM_SEEDS=$(SEEDS) $(CARGO) test --release --locked --test sim

# One after another: they share two cores. Each prints a table and writes JSON. The last five
# compare forwarders, routers by name, shapers and shadows in namespaces of their own: they need root.
BENCHES := parse inspect ndpi qos pipeline routes
bench: packages-bench build
	$(CARGO) bench --locked --no-run
	mkdir -p bench/out
	set -e; for b in $(BENCHES); do echo; echo "== $$b"; \
		$(CARGO) bench --quiet --locked --bench $$b -- --json $(CURDIR)/bench/out/$$b.json; done
	@echo; echo "== veth"
	$(ROOT) $(CARGO) bench --quiet --locked --bench veth -- --json $(CURDIR)/bench/out/veth.json
	@echo; echo "== sni"
	$(ROOT) $(CARGO) bench --quiet --locked --bench sni -- --json $(CURDIR)/bench/out/sni.json
	@echo; echo "== veth_qos"
	$(ROOT) $(CARGO) bench --quiet --locked --bench veth_qos -- \
		--json $(CURDIR)/bench/out/veth_qos.json
	@echo; echo "== veth_htb"
	$(ROOT) $(CARGO) bench --quiet --locked --bench veth_htb -- \
		--json $(CURDIR)/bench/out/veth_htb.json
	@echo; echo "== shadow"
	$(ROOT) $(CARGO) bench --quiet --locked --bench shadow -- --json $(CURDIR)/bench/out/shadow.json

# Does it work? The figures are worth nothing.
bench-quick: packages-bench build
	mkdir -p bench/out
	$(ROOT) $(CARGO) bench --quiet --locked --bench veth -- --quick
