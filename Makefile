# Two commands do all the set-up on a fresh Debian 12 machine: `make demo` and `make test`.
.PHONY: setup demo test test-dm test-dm-mapped test-dm-lvm test-faults check bench lock clean

setup:
	@scripts/setup

demo:
	@scripts/setup
	@.venv/bin/python scripts/demo

test:
	@scripts/setup test
	@.venv/bin/python -m pytest $(ARGS)

# What needs device-mapper, as root, in two machines of their own at the same time (docs/testing.md).
test-dm:
	@scripts/setup test
	@scripts/dm-lab -- true
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-dm-mapped test-dm-lvm

test-dm-mapped:
	@scripts/dm-lab --timeout 900 -- .venv/bin/python -m pytest tests/dm/test_machine.py tests/dm/test_device_mapper*.py $(ARGS)

test-dm-lvm:
	@scripts/dm-lab --timeout 900 -- .venv/bin/python -m pytest tests/dm/test_lvm_thin*.py $(ARGS)

# Kills on each libvirt, as root; writes docs/reliability.md.
test-faults:
	@scripts/setup test
	@scripts/faults $(ARGS)

check:
	@scripts/check

bench:
	@scripts/setup
	@.venv/bin/python scripts/bench start
	@.venv/bin/python scripts/bench model
	@.venv/bin/python scripts/bench api
	@.venv/bin/python scripts/bench lifecycle
	@.venv/bin/python scripts/bench policy

lock:
	@scripts/lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
