"""What runs of benchmarks have found, kept in a folder: one JSON file for each benchmark, that of its last run."""

import datetime
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.harness import Figure, Row
from benchpage.machine import describe

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "build", "bench")


@dataclass(frozen=True)
class Result:
    """One run of one benchmark. `about` is its module's text; `when` a date as in ISO 8601; `seconds` what it took."""

    name: str
    about: str
    when: str
    seconds: float
    machine: dict[str, str]
    rows: tuple[Row, ...]


def keep(name: str, about: str, rows: list[Row], began: float) -> None:
    """Keep what a benchmark of this machine has found; it began at the time `began`. Raises OSError."""
    when = datetime.datetime.fromtimestamp(began, datetime.UTC).isoformat(timespec="seconds")
    save(Result(name, about, when, time.time() - began, describe(), tuple(rows)))


def save(result: Result, folder: str = FOLDER) -> None:
    """Keep a result in place of the one before. Raises OSError."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{result.name}.json")
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(asdict(result), file, indent=1)
    os.replace(f"{path}.new", path)


def load(folder: str = FOLDER) -> Iterator[Result]:
    """Give all results that are kept, by name. Raises OSError, and ValueError for a file that is none of ours."""
    for entry in sorted(os.listdir(folder)):
        if entry.endswith(".json"):
            with open(os.path.join(folder, entry), encoding="utf-8") as file:
                yield _parse(json.load(file))


def _parse(data: dict[str, Any]) -> Result:
    try:
        rows = tuple(
            Row(**row | {"value": Figure(**row["value"]), "reference": Figure(**row["reference"])})
            for row in data.pop("rows")
        )
        return Result(**data, rows=rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a result of a benchmark is damaged, delete it: {error}") from error
