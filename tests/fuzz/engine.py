"""One target under a coverage-guided fuzzer: `python -m tests.fuzz.engine TARGET [words for libFuzzer]`."""

import sys

import atheris

INSTRUMENTED = ["crannog"]


def main() -> None:
    """Fuzz until the time is up or something is found. Never returns: the fuzzer ends the process."""
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
