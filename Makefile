# Two commands do all the set-up on a fresh Debian 12 machine: `make demo` and `make test`.
.PHONY: setup demo test test-unit test-vm test-slow test-dm test-dm-files test-dm-lvm test-faults test-gui test-xen fuzz \
	check bench lock clean

PYTEST = .venv/bin/python -m pytest
# What guests start from is built before the tests, which have time limits; what is in the cache costs nothing.
IMAGES = .venv/bin/python -m tests.vm.images

setup:
	@scripts/setup

demo:
	@scripts/setup
	@.venv/bin/python scripts/demo

# What needs no guest on all processors, then guests, one test after the other; with ARGS, one pytest with just these
# (docs/testing.md).
test:
ifeq ($(strip $(ARGS)),)
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-vm
else
	@scripts/setup test
	@$(PYTEST) $(ARGS)
endif

# At most four at once: some of the tests say how long a thing may take.
test-unit:
	@scripts/setup test
	@$(PYTEST) tests/unit tests/property --numprocesses=auto --maxprocesses=4 --dist=worksteal $(ARGS)

test-vm:
	@scripts/setup test
	@$(IMAGES)
	@$(PYTEST) tests/vm -m "not slow" $(ARGS)

# What the others leave out, as it takes long and something near to it is shown by them.
test-slow:
	@scripts/setup test
	@$(IMAGES)
	@$(PYTEST) tests/vm tests/gui -m slow $(ARGS)

# What needs device-mapper, as root, in two machines, at the same time unless DM_JOBS is 1: each has half of what there
# is to do (docs/testing.md).
DM_FILES = tests/dm/test_device_mapper*.py tests/dm/test_lvm_thin.py
DM_LVM = tests/dm/test_machine.py tests/dm/test_lvm_thin_*.py
IN_LAB = scripts/dm-lab --timeout 1200 --vcpus 1 -- .venv/bin/python -m pytest

DM_JOBS = 2
test-dm:
	@scripts/setup test
	@scripts/dm-lab -- true
	@$(MAKE) --no-print-directory --jobs=$(DM_JOBS) --output-sync=target test-dm-files test-dm-lvm

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
	@$(IMAGES)
	@$(PYTEST) tests/gui -m "not slow" $(ARGS)

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
