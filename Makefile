# ctrl-exec: `make demo` runs the main job, `make test` passes the tests; each sets up what it needs.
.POSIX:
.PHONY: help deps build static test test-fast kernels demo bench size lint fuzz api-fuzz ci clean

ARCH = $(shell uname -m)
STATIC = target/dist/ctrl-exec-$(ARCH)
# rustup's cargo where there is one, else the distribution's.
CARGO = $(shell command -v cargo || echo /usr/bin/cargo)

help:
	@echo "make demo    build, then pair a dispatcher and an agent in a temporary folder and run scripts"
	@echo "make test    build the static binary, run every test against it"
	@echo "make build   host build (debug)          make static  static musl binary in target/dist"
	@echo "make bench   ratios to references        make size    sizes and idle memory against the bounds"
	@echo "make kernels boot the static binary on Linux 5.10, 6.1 and 6.12 in QEMU and try profiles there (root, Debian)"
	@echo "make dist    packages for Debian, Alpine, OpenWrt and containers in target/dist/packages (PARTIAL=1: of the binaries that are there)"
	@echo "make lint    rustfmt, clippy, cargo deny make ci      everything that CI runs"
	@echo "make fuzz    every parser of foreign bytes, FUZZ_SECONDS (20) each"
	@echo "make api-fuzz    schemathesis against a real API with two agents, about three minutes (fetches it from PyPI)"

deps:
	@sh dist/deps.sh static

build:
	@sh dist/deps.sh
	$(CARGO) build --locked

static: deps
	sh dist/static.sh

test: static
	CTRL_EXEC_TEST_BIN=$(CURDIR)/$(STATIC) $(CARGO) test --locked

# The same tests against the debug build: quicker while working.
test-fast:
	$(CARGO) test --locked

kernels: static
	sh dist/kernels.sh $(STATIC)

demo: static
	$(STATIC) demo

bench: static
	sh dist/static.sh --example bare-http
	CTRL_EXEC_TEST_BIN=$(CURDIR)/$(STATIC) CTRL_EXEC_BENCH_BARE=$(CURDIR)/target/dist/bare-http-$(ARCH) $(CARGO) bench --locked --bench main

size: static
	sh dist/size.sh $(STATIC)

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --test api_schemathesis -- -D warnings
	@command -v cargo-deny >/dev/null 2>&1 || test -x "$$HOME/.cargo/bin/cargo-deny" || $(CARGO) install --quiet --locked cargo-deny@0.20.2
	PATH="$$PATH:$$HOME/.cargo/bin" sh dist/deny.sh

# What it finds stays in fuzz/corpus, and every `make test` replays that.
fuzz: deps
	sh dist/fuzz.sh

# Fails where the tool cannot be had.
api-fuzz: static
	CTRL_EXEC_TEST_BIN=$(CURDIR)/$(STATIC) sh dist/api-fuzz.sh

# From the binaries in target/dist; docs/packages.md says what is made, and how it is signed.
.PHONY: dist
dist: static
	sh dist/package/deps.sh
	CARGO=$(CARGO) python3 dist/package/main.py $(if $(PARTIAL),--partial)

ci:
	bash .ci/run

clean:
	$(CARGO) clean
