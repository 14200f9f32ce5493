# The commands of this project. CI (`.ci/run`) runs `make test`, then what of the longer ones fits its time. `make help` lists the targets.
# Everything that is fetched or built lies in the cache, outside the checkout: a clean clone reuses it.
SHELL := /bin/bash
export DUCKPIPE_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/duckpipe
export CARGO_TARGET_DIR ?= $(DUCKPIPE_CACHE)/target
export DUCKDB_LIB_DIR ?= $(DUCKPIPE_CACHE)/duckdb
export DUCKPIPE_EXTENSIONS ?= $(DUCKPIPE_CACHE)/extensions
export LD_LIBRARY_PATH := $(DUCKDB_LIB_DIR)$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
# dev: its dependencies are optimised a little (Cargo.toml), and demo and tests share one build. release takes several times as long.
PROFILE ?= dev
STEP := scripts/step.sh
# Beside the tests, dependencies are built with the features that tests want: alone, the program would build Arrow a second time.
BUILD_TARGETS := --bin duckpipe $(if $(filter dev,$(PROFILE)),--workspace --test main)

# Black-box tests wait for servers some of the time: more of them than there are cores keep these busy. (Twice as many take
# longer, by measurement: the processors are what they wait for.)
TEST_THREADS ?= $(shell echo $$(($$(nproc) * 3 / 2)))

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help env build demo demo-clean test unit lint lint-texts fmt deny bench bench-end-to-end bench-compaction test-memory test-postgres fuzz upheaval soak bootstrap-build bootstrap-all optimised-program

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  cache: $(DUCKPIPE_CACHE)"

bootstrap-build:
	@scripts/bootstrap.sh duckdb extensions
bootstrap-all:
	@scripts/bootstrap.sh duckdb extensions postgres minio

build: bootstrap-build ## The program: bin/duckpipe (PROFILE=release for an optimised one)
	@$(STEP) build cargo build --profile $(PROFILE) $(BUILD_TARGETS)
	@scripts/link-program.sh $(PROFILE)

demo: ## A private Postgres, a lake that follows it, and the same query on both (./demo)
	@scripts/demo.sh

demo-clean: ## Stops what the demo left running and removes ./demo
	@scripts/demo.sh clean

# What `cargo clippy` does, but while building: it would compile all dependencies a second time.
LINTED := env RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings__CLIPPY_HACKERY__
# Tests open lakes all the time: DuckDB would hash its extensions each time, which were checked when they were fetched.
TRUSTED := DUCKPIPE_TRUST_EXTENSIONS=1

test: bootstrap-all lint-texts ## Everything: lints, unit tests, black-box tests on real Postgres, MinIO and DuckDB
	@$(STEP) "build and lint" $(LINTED) cargo test --workspace --all-targets --no-run
	@$(STEP) tests env $(TRUSTED) $(LINTED) cargo test --workspace -- --test-threads $(TEST_THREADS)

unit: bootstrap-build ## Only what needs no server
	@$(STEP) "unit tests" cargo test --workspace --lib

lint: bootstrap-build lint-texts ## Format, clippy without warnings
	@$(STEP) clippy cargo clippy --workspace --all-targets -- -D warnings

lint-texts:
	@$(STEP) format cargo fmt --all --check
	@if command -v docker-compose >/dev/null; then $(STEP) "compose file" docker-compose config --quiet; fi
	@if command -v shellcheck >/dev/null; then $(STEP) "shell scripts" shellcheck -x -S warning scripts/*.sh minio/*.sh .ci/run; fi

fmt: ## Formats the code
	cargo fmt --all

# Licences, sources and bans of deny.toml are checked by tests/dependencies.rs in every `make test`; cargo-deny adds the advisories.
deny: bootstrap-all ## Licences, sources and bans of all dependencies; with cargo-deny installed, RustSec's advisories too
	@if cargo deny --version >/dev/null 2>&1; then $(STEP) deny cargo deny check; \
	else $(STEP) deny cargo test --quiet --test main dependencies; echo "cargo-deny is not installed: advisories were not looked up"; fi

env: ## What plain cargo needs: eval "$$(make -s env)"
	@for name in DUCKPIPE_CACHE CARGO_TARGET_DIR DUCKDB_LIB_DIR DUCKPIPE_EXTENSIONS LD_LIBRARY_PATH; do printf 'export %s=%q\n' $$name "$${!name}"; done

bench: bootstrap-all ## Micro-benchmarks
	@$(STEP) bench cargo bench --workspace --bench decode

# Measurements drive an optimised program from tests and benches that need not be. `make bench` shares its dependencies.
MEASURED := env DUCKPIPE_PROGRAM=$(CARGO_TARGET_DIR)/release/duckpipe
optimised-program: bootstrap-all
	@$(STEP) "build of the program" cargo build --release --workspace --bin duckpipe --bench decode

bench-end-to-end: optimised-program ## Snapshot and backlog beside COPY, pg_recvlogical and DuckDB's own CREATE TABLE AS
	@$(STEP) "bench end to end" $(MEASURED) cargo bench --profile dev --bench end_to_end

bench-compaction: optimised-program ## Compaction beside DuckLake's own merge and rewrite, and scans afterwards
	@$(STEP) "bench compaction" $(MEASURED) cargo bench --profile dev --bench compaction

test-memory: optimised-program ## Peak memory with 5M rows and transactions of 5M changes (takes over 20 minutes, and the build of the program)
	@$(STEP) "memory" $(MEASURED) DUCKPIPE_TEST_ROWS=$${DUCKPIPE_TEST_ROWS:-5000000} cargo test --workspace --test main memory:: -- --nocapture --test-threads 1

# What depends on the server: its WAL and what is done with it, end to end. Where the lake lies does not: one place is enough.
POSTGRES_CORE := --skip postgres_local --skip postgres_s3 --skip the_largest_value --skip the_widest_table changes:: differential::random_writes_duckdb_local generated:: history::replays_duckdb keyless::equal_rows_are_counted_duckdb \
  lifecycle:: newcomers::come_and_go_duckdb partitions:: prefix_consistency:: renames::follows_duckdb renames::where_it_can_duckdb \
  resumed_copy::goes_on_duckdb resync::what_only_a_copy_mends_duckdb standby:: stopped_table:: streamed:: truncate:: types:: row_filters::needs
VERSIONS ?= 14 15 16 17 18
test-postgres: bootstrap-all ## The core of the black-box tests on Postgres 14 to 18 (VERSIONS="14 18")
	@scripts/bootstrap.sh $(VERSIONS:%=postgres-%)
	@for version in $(VERSIONS); do \
	  $(STEP) "tests on Postgres $$version" env DUCKPIPE_POSTGRES_BIN=$${DUCKPIPE_POSTGRES_DIR:-/var/tmp/duckpipe-postgres}/$$version/bin \
	    $(LINTED) cargo test --workspace --test main -- --test-threads $(TEST_THREADS) $(POSTGRES_CORE) || exit 1; \
	done

# A DuckDB file has one process that writes it: there the library's own handles are fuzzed, on Postgres `sync` and `compact` as processes.
fuzz: bootstrap-all ## Compaction against its model: 20 seeds of 200 steps on each catalog (DUCKPIPE_FUZZ_SEEDS, _STEPS)
	@$(STEP) "fuzz" env $(TRUSTED) DUCKPIPE_FUZZ_SEEDS=$${DUCKPIPE_FUZZ_SEEDS:-20} DUCKPIPE_FUZZ_STEPS=$${DUCKPIPE_FUZZ_STEPS:-200} \
	  $(LINTED) cargo test --workspace --lib --test main -- --test-threads 2 --exact \
	  compact::tests::fuzz::any_order_of_maintenance_reads_as_its_model_in_a_file compaction_fuzz::processes_in_any_order_postgres_local

upheaval: bootstrap-all ## Everything that a source can do, while sync is killed: 200 seeds (DUCKPIPE_UPHEAVAL_SEEDS on each catalog)
	@$(STEP) "upheaval" env DUCKPIPE_UPHEAVAL_SEEDS=$${DUCKPIPE_UPHEAVAL_SEEDS:-100} \
	  $(LINTED) cargo test --workspace --test main upheaval:: -- --test-threads 2

soak: optimised-program ## An hour of random updates on 5M rows, on both catalogs: does the lake keep its size? (DUCKPIPE_SOAK_MINUTES, _ROWS, _RATE, _UPDATES)
	@$(STEP) "soak" $(MEASURED) cargo test --workspace --test main soak:: -- --ignored --nocapture --test-threads 1
