# The words that people and CI use. Everything a target needs it installs or builds itself, once, into
# $(CACHE); nothing it starts outlives it.
CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/hadoop-token-csi
export HADOOP_TOKEN_CSI_CACHE := $(CACHE)

.DEFAULT_GOAL := help
.PHONY: help packages format lint unit e2e test torture demo bench images deny

help: ## Show these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

packages: # Debian packages without which nothing compiles
	@tests/packages.sh

format: ## Format the code
	cargo fmt --all

lint: packages ## Check format and lints
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

unit: packages ## Run unit tests
	cargo test --locked --workspace --exclude tests

# The whole workspace is selected wherever that can be: another selection means other features, and cargo would
# compile the dependencies once more.
e2e: packages ## Run end-to-end tests on real parts: Kerberos, Hadoop, Kubernetes
	cargo test --locked --workspace --test docs --test names --test interrupt --test sanity --test e2e

test: lint ## Everything that must hold: format, lints, unit and end-to-end tests
	cargo test --locked --workspace

torture: packages ## Kill programs everywhere, take parts away, soak: an hour and a half (PHASES="matrix outages rotation soak")
	cargo run --locked --bin torture -- $(PHASES)

demo: packages ## Watch one pod get, keep and lose a token (KEEP=1 leaves a shell with kubectl)
	cargo run --locked --bin demo

bench: packages ## Measure against peers in Java and Go (table, and target/bench/results.json), and the decision
	cargo run --locked --release --package tests --bin bench
	cargo bench --locked --package controller --features bench --bench decision

images: packages ## Pack the programs into OCI archives under target/images
	deploy/images/build.sh target/images

deny: ## Check licences, sources and duplicates of dependencies (needs cargo-deny)
	cargo deny check bans licenses sources
