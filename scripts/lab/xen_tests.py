"""`scripts/test-xen`: tests/xen in real Xen hosts, and the table of what came of it in docs/xen.md."""

import argparse
import collections
import concurrent.futures
import dataclasses
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from typing import Any

from crannog.config import Paths
from crannog.guest import agent
from crannog.images.builder import build_template
from crannog.images.kernel import build_kernel
from lab.program import PROJECT
from lab.xen import NO_HVM

MARK = "XEN-RESULT "
"""As in tests/xen/conftest.py."""
PAGE = os.path.join(PROJECT, "docs", "xen.md")
BEGIN, END = "<!-- results: written by scripts/test-xen --write -->", "<!-- end of results -->"
_RECIPE = "debian-12"
_LONGEST_FACT = 300


@dataclasses.dataclass(frozen=True)
class Host:
    """One boot of the lab: what is different about it, and the tests that run there."""

    name: str
    options: tuple[str, ...]
    words: tuple[str, ...]
    timeout: int


_ALL_GUESTS = ("tests/xen", "--ignore=tests/xen/test_no_hvm.py")
HOSTS = (
    Host("with PV and PVH guests", (), (*_ALL_GUESTS, "-k", "pv"), 2400),
    Host("with HVMs", (), (*_ALL_GUESTS, "-k", "not pv"), 2400),
    Host("without HVMs", ("--cpu", NO_HVM), ("tests/xen/test_no_hvm.py",), 900),
)
_AT_ONCE = 2
"""Two at a time, on one processor each: an HVM waits for dom0 at each access to a device, and an emulator
that has to wake another thread for that is several times as slow, all the more beside other work."""


@dataclasses.dataclass
class Outcome:
    """What came of one host's run."""

    code: int
    seconds: float
    results: list[dict[str, Any]]


def build_images(report: Any = print) -> None:  # noqa: ANN401 - print's own type
    """Build what the hosts' templates are made of; it goes to the cache, which the lab shows them."""
    cache = Paths().cache
    for mode in ("pv", "hvm"):
        build_template(_RECIPE, mode, cache, report, agent_path=str(agent.__file__))
    build_kernel(cache, report, recipe=_RECIPE)


def run_host(host: Host, further: list[str]) -> Outcome:
    """Run the tests in one boot of the lab, showing what they print."""
    pytest = [".venv/bin/python", "-m", "pytest", "-v", "--timeout=600", *host.words, *further]
    hvm = "no" if host.options else "yes"
    lab_words = ["--vcpus", "1", "--timeout", str(host.timeout), *host.options]
    command = [os.path.join(PROJECT, "scripts", "xen-lab"), *lab_words]
    began = time.monotonic()
    results = []
    with subprocess.Popen(
        [*command, "--", "env", f"XEN_HVM={hvm}", *pytest], stdout=subprocess.PIPE, text=True, errors="replace"
    ) as lab:
        assert lab.stdout is not None  # noqa: S101 - it is a pipe
        for line in lab.stdout:
            if line.startswith(MARK):
                results.append(json.loads(line.removeprefix(MARK)))
            else:
                print(f"{host.name}: {line}", end="", flush=True)
    return Outcome(lab.returncode, time.monotonic() - began, results)


def make_table(outcomes: dict[str, Outcome]) -> str:
    """Return the results as Markdown."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    lines = [f"Run on {today}; seconds of the whole host, with its boot, in the lines that name it.", ""]
    lines += ["| test | outcome | s | what was compared |", "|---|---|---|---|"]
    for name, outcome in outcomes.items():
        ended = "passed" if outcome.code == 0 else f"ended with {outcome.code}"
        lines.append(f"| **host {name}** | {ended} | {outcome.seconds:.0f} | |")
        lines += _make_rows(outcome.results)
    return "\n".join(lines)


def _make_rows(results: list[dict[str, Any]]) -> list[str]:
    """Return a row for each test that failed or has something to say, and one for all others of its file."""
    told = [result for result in results if result["facts"] or result["outcome"] != "passed"]
    rows = [_make_row(result) for result in told]
    others = collections.Counter(result["test"].partition("::")[0] for result in results if result not in told)
    seconds = {
        file: sum(r["seconds"] for r in results if r["test"].startswith(file) and r not in told) for file in others
    }
    return [*rows, *(f"| `{file}`: {n} others | passed | {seconds[file]:.0f} | |" for file, n in others.items())]


def _make_row(result: dict[str, Any]) -> str:
    facts = "; ".join(" ".join(str(fact)[:_LONGEST_FACT].replace("|", "/").split()) for fact in result["facts"])
    return f"| `{result['test']}` | {result['outcome']} | {result['seconds']:.0f} | {facts} |"


def write_table(table: str) -> None:
    """Put the table between the page's marks."""
    with open(PAGE, encoding="utf-8") as file:
        before, _, rest = file.read().partition(BEGIN)
    _, _, after = rest.partition(END)
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n{table}\n{END}{after}")


def main(arguments: list[str]) -> int:
    """Do what the command line says, and return the exit code."""
    parser = argparse.ArgumentParser(prog="test-xen", description="Run tests/xen in real Xen hosts.")
    parser.add_argument("--write", action="store_true", help="write the table of results to docs/xen.md")
    parser.add_argument("further", nargs="*", metavar="PYTEST-ARGUMENT", help="given to pytest, after '--'")
    options = parser.parse_args(arguments)
    build_images()
    for host in HOSTS:
        print(f"test-xen: a host {host.name}: {shlex.join(host.words)}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda host: run_host(host, options.further), HOSTS)
        outcomes = {host.name: outcome for host, outcome in zip(HOSTS, found, strict=True)}
    table = make_table(outcomes)
    if options.write:
        write_table(table)
    print(table)
    failed = [name for name, outcome in outcomes.items() if outcome.code]
    if failed:
        print(f"test-xen: failed on the host {' and the host '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
