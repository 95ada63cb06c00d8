# ctrl-exec: `make demo` runs the main job, `make test` passes the tests; each sets up what it needs.
.POSIX:
.PHONY: help deps build static static-all arch-check test test-fast kernels demo bench size lint fuzz api-fuzz dist dist-check dist-check-full manual ci clean

ARCH = $(shell uname -m)
PROFILE = full
STATIC = target/dist/ctrl-exec-$(ARCH)
# rustup's cargo where there is one, else the distribution's.
CARGO = $(shell command -v cargo || echo /usr/bin/cargo)

help:
	@echo "make demo    build, then pair a dispatcher and an agent in a temporary folder and run scripts"
	@echo "make test    build the static binary, run every test against it"
	@echo "make build   host build (debug)          make static  static musl binary in target/dist"
	@echo "make static ARCH=aarch64|armv7|mipsel PROFILE=router    for another machine; without dispatcher and API (docs/architectures.md)"
	@echo "make static-all    every combination that is offered     make arch-check    try them under qemu-user"
	@echo "make bench   ratios to references        make size    sizes and idle memory against the bounds"
	@echo "make kernels boot the static binary on Linux 5.10, 6.1 and 6.12 in QEMU and try profiles there (root, Debian)"
	@echo "make dist-check    packages, and install and service files under systemd's tools, OpenRC, a simulated router (root, Debian); -full: more"
	@echo "make dist    packages for Debian, Alpine, OpenWrt and containers in target/dist/packages (PARTIAL=1: of the binaries that are there)"
	@echo "make lint    rustfmt, clippy, cargo deny make ci      everything that CI runs"
	@echo "make manual  manual pages and shell completions in target/dist/share"
	@echo "make fuzz    every parser of foreign bytes, FUZZ_SECONDS (20) each"
	@echo "make api-fuzz    schemathesis against a real API with two agents, about three minutes (fetches it from PyPI)"

deps:
	@ARCH=$(ARCH) sh dist/deps.sh static

build:
	@sh dist/deps.sh
	$(CARGO) build --locked

static: deps
	ARCH=$(ARCH) PROFILE=$(PROFILE) sh dist/static.sh

# What is offered, router builds behind a stroke. Minutes each.
OFFERED = x86_64 aarch64 aarch64-router armv7 armv7-router mipsel-router

static-all: deps
	for one in $(OFFERED); do \
		case $$one in *-router) profile=router ;; *) profile=full ;; esac; \
		ARCH=$${one%-router} sh dist/deps.sh static && ARCH=$${one%-router} PROFILE=$$profile sh dist/static.sh || exit 1; \
	done

# As root: executor and detached runs too. The dispatcher of a router's test is this machine's own.
arch-check: static-all
	for arch in aarch64 armv7 mipsel; do sh dist/checks/arch.sh $$arch || exit 1; done

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
	$(CARGO) clippy --locked --no-default-features --lib --bins -- -D warnings
	$(CARGO) clippy --locked --test api_schemathesis -- -D warnings
	@command -v cargo-deny >/dev/null 2>&1 || test -x "$$HOME/.cargo/bin/cargo-deny" || $(CARGO) install --quiet --locked cargo-deny@0.20.2
	PATH="$$PATH:$$HOME/.cargo/bin" sh dist/deny.sh

# What it finds stays in fuzz/corpus, and every `make test` replays that.
fuzz: deps
	sh dist/fuzz.sh

# Fails where the tool cannot be had.
api-fuzz: static
	CTRL_EXEC_TEST_BIN=$(CURDIR)/$(STATIC) sh dist/api-fuzz.sh

# Manual pages and shell completions, of what the programs say of themselves.
manual: deps
	$(CARGO) run --quiet --locked --example manual -- target/dist/share

# Packages of every binary that is offered, or (PARTIAL=1) of those that are there; docs/packages.md says what is made, and how it is signed.
dist: manual
	$(MAKE) $(if $(PARTIAL),static,static-all)
	sh dist/package/deps.sh
	CARGO=$(CARGO) python3 dist/package/main.py $(if $(PARTIAL),--partial)

# Service files and packages, as root; dist/checks/ has a program for each part, which can be run alone. Of the other machines' binaries those
# that are there are packaged and looked at.
dist-check:
	$(MAKE) dist PARTIAL=1
	CTRL_EXEC_TEST_BIN=$(CURDIR)/$(STATIC) sh dist/check.sh

# All packages, the binaries of other machines under qemu-user, and the newest OpenRC.
dist-check-full: dist arch-check
	CTRL_EXEC_TEST_BIN=$(CURDIR)/$(STATIC) sh dist/check.sh --full

ci:
	bash .ci/run

clean:
	$(CARGO) clean
