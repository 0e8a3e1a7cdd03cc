# Two commands do all the set-up on a fresh Debian 12 machine: `make demo` and `make test`.
.PHONY: setup demo test check bench lock clean

setup:
	@scripts/setup

demo:
	@scripts/setup
	@.venv/bin/python scripts/demo

test:
	@scripts/setup test
	@.venv/bin/python -m pytest $(ARGS)

check:
	@scripts/check

bench:
	@scripts/setup
	@.venv/bin/python scripts/bench start
	@.venv/bin/python scripts/bench model
	@.venv/bin/python scripts/bench api

lock:
	@scripts/lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
