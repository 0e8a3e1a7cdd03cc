"""All benchmarks, one after the other, each in a process of its own, and the page of what they found."""

import subprocess
import sys

from benchpage import page, results


def run_all(names: list[str], runs: int) -> int:
    """Run benchmarks, print their tables, write the page; return 1 when a target was missed or a benchmark failed."""
    failures = []
    for name in names:
        print(f"\n{name}", flush=True)
        code = subprocess.run(
            [sys.executable, sys.argv[0], name, "--runs", str(runs), "--keep"], check=False
        ).returncode
        if code:
            failures.append(name)
    print(f"\nwritten: {page.write(results.FOLDER)}")
    if failures:
        print(f"missed a target, or failed: {', '.join(failures)}")
    return 1 if failures else 0
