"""All targets under the fuzzer, each for its part of the time, one on each processor (`make fuzz`)."""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import CORPUS, SEED_MAX, TARGETS

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "build" / "fuzz"
"""Where inputs are kept from run to run, with findings and logs."""
SECONDS = 600
INPUT_SECONDS = 30
MEMORY_MB = 1024
START_SECONDS = 120
"""What a run may take beyond its time."""
_STATS = re.compile(r"stat::(number_of_executed_units|new_units_added|peak_rss_mb):\s+(\d+)")
_COVERED = re.compile(r" cov: (\d+) ")


@dataclass(frozen=True)
class Outcome:
    """What a target's run came to. `finding` is the input that something is wrong with."""

    name: str
    seconds: int
    runs: int
    covered: int
    added: int
    memory: int
    finding: Path | None
    log: Path
    is_broken: bool

    def __str__(self) -> str:
        verdict = f"FOUND {self.finding}" if self.finding else "BROKEN" if self.is_broken else "nothing found"
        figures = f"{self.runs:>9} runs  {self.covered:>5} points  {self.added:>5} new inputs  {self.memory:>4} MB"
        return f"{self.name:<15} {self.seconds:>4} s {figures}  {verdict}"


def fuzz(name: str, seconds: int) -> Outcome:
    """Run one target for that long, or to its first finding."""
    inputs, findings, log = PLACE / "inputs" / name, PLACE / "findings", PLACE / "log" / f"{name}.log"
    for folder in (inputs, findings, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(findings.glob(f"{name}-*"))
    command = [sys.executable, "-m", "tests.fuzz.engine", name, str(inputs), str(CORPUS / name)]
    command += [f"-max_total_time={seconds}", f"-max_len={SEED_MAX}", f"-timeout={INPUT_SECONDS}"]
    command += [f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={findings}/{name}-", "-print_final_stats=1"]
    with log.open("wb") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False, timeout=seconds + START_SECONDS)
    return _read(name, seconds, log, sorted(set(findings.glob(f"{name}-*")) - before), done.returncode)


def _read(name: str, seconds: int, log: Path, found: list[Path], code: int) -> Outcome:
    text = log.read_text(errors="replace")
    stats = {key: int(value) for key, value in _STATS.findall(text)}
    covered = [int(number) for number in _COVERED.findall(text)]
    runs = stats.get("number_of_executed_units", 0)
    return Outcome(
        name,
        seconds,
        runs,
        covered=covered[-1] if covered else 0,
        added=stats.get("new_units_added", 0),
        memory=stats.get("peak_rss_mb", 0),
        finding=found[0] if found else None,
        log=log,
        is_broken=code != 0 or not runs,
    )


def run_all(names: list[str], seconds: int) -> int:
    """Run the targets for `seconds` in all; return the exit code: 1 when something was found."""
    jobs = os.cpu_count() or 1
    each = max(1, -(-seconds * min(jobs, len(names)) // len(names)))
    print(f"fuzz: {len(names)} targets, {each} s each, {jobs} at once", flush=True)
    bad = []
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(lambda name: fuzz(name, each), names):
            print(outcome, flush=True)
            if outcome.is_broken or outcome.finding:
                bad.append(outcome)
    for outcome in bad:
        end = outcome.log.read_text(errors="replace").splitlines()[-40:]
        print(f"\n{outcome.name}: the end of {outcome.log}", *end, sep="\n")
        if outcome.finding:
            print(f"\n{outcome.name} fails with {outcome.finding}")
            print(f"see it again with: scripts/fuzz --again {outcome.name} {outcome.finding}")
    return 1 if bad else 0


def main() -> int:
    """Read the command line and run; return the exit code."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzz what reads bytes from guests, and policy.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"which ones; else all: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS") or SECONDS))
    parser.add_argument("--again", action="store_true", help="give one target one input: TARGET FILE")
    options = parser.parse_args()
    if options.again:
        name, path = options.targets
        TARGETS[name](Path(path).read_bytes())
        print(f"{name}: nothing is wrong with {path}")
        return 0
    names = options.targets or list(TARGETS)
    unknown = set(names) - TARGETS.keys()
    if unknown:
        parser.error(f"there is no target {', '.join(sorted(unknown))}; known are {', '.join(TARGETS)}")
    return run_all(names, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
