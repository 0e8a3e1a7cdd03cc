# Two commands do all the set-up on a fresh Debian 12 machine: `make demo` and `make test`.
.PHONY: setup demo test test-dm test-dm-files test-dm-lvm test-faults test-gui test-xen fuzz check bench lock clean

setup:
	@scripts/setup

demo:
	@scripts/setup
	@.venv/bin/python scripts/demo

test:
	@scripts/setup test
	@.venv/bin/python -m pytest $(ARGS)

# What needs device-mapper, as root, in two machines at the same time: each has half of what there is to do
# (docs/testing.md).
DM_FILES = tests/dm/test_device_mapper*.py tests/dm/test_lvm_thin.py
DM_LVM = tests/dm/test_machine.py tests/dm/test_lvm_thin_*.py
IN_LAB = scripts/dm-lab --timeout 1200 --vcpus 1 -- .venv/bin/python -m pytest

test-dm:
	@scripts/setup test
	@scripts/dm-lab -- true
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-dm-files test-dm-lvm

test-dm-files:
	@$(IN_LAB) $(DM_FILES) $(ARGS)

test-dm-lvm:
	@$(IN_LAB) $(DM_LVM) $(ARGS)

# Kills on each libvirt, as root; writes docs/reliability.md.
test-faults:
	@scripts/setup test
	@scripts/faults $(ARGS)

# Windows of guests, on a desktop without a screen (docs/display.md).
test-gui:
	@scripts/setup test
	@.venv/bin/python -m pytest tests/gui $(ARGS)

# Guests on a real Xen, in machines of their own; ARGS="--write" writes the table in docs/xen.md.
test-xen:
	@scripts/setup test
	@scripts/test-xen $(ARGS)

# Coverage-guided, for FUZZ_SECONDS (600) in all; exits with 1 and the path of the input when something is found.
fuzz:
	@scripts/setup fuzz
	@scripts/fuzz $(ARGS)

check:
	@scripts/check

# All benchmarks, one after the other; writes docs/performance.md, and exits with 1 when a target is missed. For a machine
# that does nothing else meanwhile; `scripts/bench NAME` runs one.
bench:
	@scripts/setup bench
	@scripts/bench all $(ARGS)

# The guest's agent, services and tools for an installed Debian (docs/guest.md); the package goes to build/.
guest-deb:
	@scripts/guest-deb

lock:
	@scripts/lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
