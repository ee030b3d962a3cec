# `make help` lists what can be made. What is built lands in out/; the guest kernel also stays in a cache outside the
# checkout (kernel-config/README.md).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules

BIN := out/bin
SHARE := out/share/bulkhead
# Where cargo puts binaries; .cargo/config.toml names the target.
TARGET := $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu
RELEASE := $(TARGET)/release
CACHE := $(or $(BULKHEAD_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bulkhead)

# Debian packages that building and testing take; kernel-config/build adds its own.
PACKAGES := busybox-static gcc libc6-dev make shellcheck
# Used from PATH, or installed once into the cache.
DENY := PATH="$$PATH:$(CACHE)/tools/bin" cargo deny

.PHONY: help demo test testable bench deps kernel build lint docs audit clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: deps build kernel ## run one image behind both walls and print what differs
	@cargo run --quiet --release --locked -p image-builder -- busybox out/demo-image
	@$(BIN)/bulkhead compare oci:out/demo-image:latest

test: testable ## every test, with a count
	@.ci/test

# Clients that the tests drive the OCI command line with.
testable: PACKAGES += containerd containernetworking-plugins docker.io e2fsprogs netavark podman
testable: deps build kernel ## what the tests expect in out/
	@cargo build --release --locked -p avx-switch -p kernel-timers
	@install -m 755 $(addprefix $(RELEASE)/,avx-switch kernel-timers) $(BIN)

bench: deps build kernel ## what a start costs, ours beside crun and runc where they are installed
	@cargo run --quiet --release --locked -p benches

deps: ## install the Debian packages that are missing (as root)
	@command -v cargo >/dev/null || { echo "Rust is missing: install it with rustup (https://rustup.rs)" >&2; exit 1; }
	@missing=(); for name in $(PACKAGES); do \
		[[ $$(dpkg-query -W -f='$${db:Status-Status}' $$name 2>/dev/null) == installed ]] || missing+=($$name); \
	done; \
	if (($${#missing[@]})); then \
		((EUID == 0)) || { echo "packages are missing; run: sudo apt-get install $${missing[*]}" >&2; exit 1; }; \
		echo "installing $${missing[*]}"; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq update; \
		apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi

kernel: ## the guest kernel, from the cache or compiled in some minutes
	@mkdir -p $(SHARE)
	@kernel=$$(kernel-config/build); cmp -s "$$kernel" $(SHARE)/vmlinux || { \
		cp "$$kernel" $(SHARE)/vmlinux.new; mv $(SHARE)/vmlinux.new $(SHARE)/vmlinux; }

# An invocation for each: cargo unites the features of what it builds at once, which would give the agent both halves of ttrpc
# and the OCI command line the code of virtual machines and images that it must be free of. Those two and the VMM are
# small by their profile (Cargo.toml), and those two are loaded where they are linked: relocating them would be a page fault
# and a copy for each page of their tables. The VMM is not: where it is loaded, its guest should not know.
build: ## the binaries and the initramfs
	@cargo build --release --locked -p runtime --bin bulkhead --bin bulkhead-attendant
	@cargo rustc --profile small --locked -p vmm --bin bulkhead-vmm
	@cargo rustc --profile small --locked -p runtime --no-default-features --bin bulkhead-oci -- -C relocation-model=static
	@cargo rustc --profile small --locked -p agent --bin bulkhead-agent -- -C relocation-model=static
	@mkdir -p $(BIN) $(SHARE)
	@install -m 755 $(addprefix $(RELEASE)/,bulkhead bulkhead-attendant) $(addprefix $(TARGET)/small/,bulkhead-vmm bulkhead-oci bulkhead-agent) $(BIN)
	@agent/make-initramfs $(BIN)/bulkhead-agent $(SHARE)/initramfs.cpio

lint: $(CACHE)/tools/bin/cargo-deny ## format, clippy, documentation, scripts, licences
	@cargo fmt --all --check
	@cargo clippy --quiet --workspace --all-targets --locked -- -D warnings
	@RUSTDOCFLAGS='-D warnings' cargo doc --quiet --workspace --no-deps --locked
	@shellcheck kernel-config/build kernel-config/profile agent/make-initramfs fuzz/run .ci/run .ci/test
	@$(DENY) --locked check licenses bans sources

docs: ## the code's documentation, under target/
	@cargo doc --workspace --no-deps --locked

audit: $(CACHE)/tools/bin/cargo-deny ## known vulnerabilities of dependencies (needs a network)
	@$(DENY) --locked check advisories

# Compiling it takes minutes, hence the cache; nothing is done where it is installed already.
$(CACHE)/tools/bin/cargo-deny:
	@command -v cargo-deny >/dev/null || cargo install cargo-deny --locked --root $(CACHE)/tools

clean: ## remove what was built; kernels stay in the cache
	@cargo clean --quiet
	@rm -rf out
