"""What a series found: frozen values, and the JSON file in which the last of them are kept."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

URIS = ("qemu:///embed", "qemu:///session", "qemu:///system")
FILE = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Result:
    """One fault: at which point it was made, what came of it, and how long that took."""

    point: str
    answer: str
    """What the tool said that worked on the VM at that moment: `done`, its sentence, or nothing without a tool."""
    state: str
    """The VM's state afterwards."""
    wrong: tuple[str, ...]
    """What was left over, or is not as it must be, a sentence each."""
    seconds: float
    """From the fault to the state that lasts, with nothing left over."""

    @property
    def is_good(self) -> bool:
        """Tell whether all was as it must be."""
        return not self.wrong


@dataclass(frozen=True)
class Rounds:
    """Many rounds of a VM's whole life, while others read states."""

    rounds: int
    reads: int
    """States that were read meanwhile, with tools and through the API."""
    wrong: tuple[str, ...]
    """Errors of either side, and what was left over at the end."""
    seconds: float

    @property
    def is_good(self) -> bool:
        """Tell whether all was as it must be."""
        return not self.wrong


Report = Callable[[str], None]
"""Told each result as it comes, in one line."""

Found = dict[str, dict[str, tuple[Result | Rounds, ...]]]
"""Results by series and URI."""


def load(path: Path = FILE) -> Found:
    """Return what the file says; nothing when there is none."""
    if not path.exists():
        return {}
    raw = json.loads(path.read_text())
    return {
        series: {uri: tuple(_read(values) for values in results) for uri, results in by_uri.items()}
        for series, by_uri in raw.items()
    }


def _read(values: dict[str, object]) -> Result | Rounds:
    kind: type[Result | Rounds] = Rounds if "rounds" in values else Result
    wrong = values.pop("wrong")
    assert isinstance(wrong, list)
    return kind(wrong=tuple(wrong), **values)  # type: ignore[arg-type]


def save(found: Found, path: Path = FILE) -> None:
    """Write the file anew."""
    raw = {
        series: {uri: [dataclasses.asdict(result) for result in results] for uri, results in sorted(by_uri.items())}
        for series, by_uri in sorted(found.items())
    }
    path.write_text(json.dumps(raw, indent=1) + "\n")
