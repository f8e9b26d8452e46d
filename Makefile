# vblk: `make help` says what each target does.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# command=Debian package, for scripts/require
TEST_TOOLS := qemu-img=qemu-utils qemu-io=qemu-utils mkfs.ext4=e2fsprogs debugfs=e2fsprogs \
              mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs losetup=mount 7zz=7zip nbdkit=nbdkit nbdcopy=libnbd-bin \
              cryptsetup=cryptsetup-bin fio=fio qemu-nbd=qemu-utils qemu-storage-daemon=qemu-system-common \
              fusermount3=fuse3 nbdsh=python3-libnbd nbd-client=nbd-client qemu-system-x86_64=qemu-system-x86 \
              busybox=busybox-static sshd=openssh-server glusterd=glusterfs-server gluster=glusterfs-client nginx=nginx-light
DEMO_TOOLS := mkfs.ext4=e2fsprogs debugfs=e2fsprogs
BENCH_TOOLS := qemu-img=qemu-utils qemu-io=qemu-utils mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs losetup=mount \
               fio=fio nbdkit=nbdkit nbdcopy=libnbd-bin qemu-nbd=qemu-utils \
               qemu-storage-daemon=qemu-system-common sshd=openssh-server \
               glusterd=glusterfs-server gluster=glusterfs-client

PYTEST_ARGS ?=
BENCH_ARGS ?=
T ?= 60
JOBS ?= auto
SEED ?= 0

.PHONY: help setup bytecode demo test crash soak bench fuzz lint format type docs

help: ## Say what each target does
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  make %-7s %s\n' "$$name" "$$text"; done

setup: $(READY) ## Make .venv with vblk and its development tools (PYTHON=python3.12 chooses one)
	@echo "$(VENV) is ready; try: $(BIN)/vblk --help"

$(READY): pyproject.toml scripts/setup
	@scripts/setup $(PYTHON) $(VENV)
	@touch $@

# Where PYTHONDONTWRITEBYTECODE is set every command would compile what it imports.
bytecode: $(READY)
	@$(BIN)/python -m compileall -q src

demo: bytecode ## Make a VHDX from a real disk, look into it, convert it, compare, and time it
	@scripts/require $(DEMO_TOOLS)
	@scripts/require qemu-img=qemu-utils || echo "going on without qemu-img"
	@$(BIN)/python scripts/demo.py

test: bytecode ## Install what the tests need, then run them (PYTEST_ARGS="-k name" chooses)
	@scripts/require $(TEST_TOOLS)
	@scripts/guest-kernel build/guest
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

crash: bytecode ## Explore more than 100,000 crash states, and print how many (SEED=0)
	@scripts/require $(TEST_TOOLS)
	@VBLK_CRASH=nightly VBLK_CRASH_SEED=$(SEED) PATH="$$PATH:/usr/sbin:/sbin" \
		$(BIN)/python -m pytest -n $(JOBS) -o timeout=7200 tests/crash tests/faults tests/e2e/test_cli_merge.py \
		tests/e2e/test_convert_resume.py $(PYTEST_ARGS)

soak: bytecode ## Let a storage daemon live hard for T seconds, and check every byte (T=3600 SEED=0)
	@scripts/require $(TEST_TOOLS)
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m tests.support.soak --seconds $(T) --seed $(SEED)

bench: bytecode ## Measure vblk against other programs and print ratios (BENCH_ARGS=--help)
	@scripts/require $(BENCH_TOOLS)
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m bench $(BENCH_ARGS)

fuzz: $(READY) ## Fuzz each parser for T seconds (T=60)
	@scripts/fuzz $(BIN)/python $(T)

lint: $(READY) ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(READY) ## Format the code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

type: $(READY) ## Check types, strictly, with mypy and pyright
	@$(BIN)/mypy
	@$(BIN)/pyright

docs: $(READY) ## Check that links, commands and files named in the documentation exist
	@$(BIN)/python scripts/check_docs.py
