"""The page of the benchmarks' results, made of results that are kept in a folder."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from benchmarks.harness import Figure, Row, find_names
from benchpage import page, results
from benchpage.results import Result

FIGURE = Figure(0.002, 0.001, 0.004, 5)
FIXED = Figure(0.01, 0.01, 0.01, 1)
ROWS = (
    Row("a call", FIGURE, "a fixed time", FIXED, 1.0),
    Row("the same, slow", replace(FIGURE, median=0.02, most=0.03, runs=40), "a fixed time", FIXED, 1.0),
)
RESULT = Result("calls", "What calls cost.\n\nIn two\nlines.\n", "2026-01-02T03:04:05", 12.4, {"Memory": "8 GiB"}, ROWS)


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def draw(result: Result, folder: str) -> str:
        Path(folder, f"{result.name}.svg").touch()
        return f"{result.name}.svg"

    monkeypatch.setattr(page, "draw", draw)
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


def write(docs: Path, *kept: Result) -> str:
    folder = str(docs.parent / "kept")
    for result in kept:
        results.save(result, folder)
    return Path(page.write(folder, str(docs))).read_text()


def test_what_is_kept_is_what_was_found(tmp_path: Path) -> None:
    results.save(replace(RESULT, seconds=1.0), str(tmp_path))
    results.save(RESULT, str(tmp_path))
    assert list(results.load(str(tmp_path))) == [RESULT]


@pytest.mark.parametrize("damage", [{"rows": [{}]}, {"name": "calls"}, {"rows": [], "more": 1}])
def test_a_damaged_result_is_told_of(tmp_path: Path, damage: dict[str, object]) -> None:
    (tmp_path / "x.json").write_text(json.dumps(damage))
    with pytest.raises(ValueError, match="damaged, delete it"):
        list(results.load(str(tmp_path)))


def test_the_page_has_every_row_and_says_what_was_missed(docs: Path) -> None:
    text = write(docs, RESULT)
    assert "| a call | 2.0 ms (1.0-4.0) | a fixed time: 10.0 ms | 0.20 | 1.00 | met |" in text
    assert "| the same, slow | 20.0 ms (1.0-30.0), 40 runs | a fixed time: 10.0 ms | 2.00 | 1.00 | **missed** |" in text
    assert "| [calls](#calls) | 2 | 1 | 12 s, on 2026-01-02 |" in text
    assert "What calls cost.\n\nIn two lines.\n" in text
    assert "| Memory | 8 GiB |" in text
    assert "![calls](performance/calls.svg)" in text
    assert (docs / "performance" / "calls.svg").exists()
    assert "Not measured here" in text
    assert [path.name for path in docs.iterdir() if path.is_file()] == ["performance.md"]


def test_results_of_two_machines_make_no_page(docs: Path) -> None:
    with pytest.raises(ValueError, match="of 2 machines"):
        write(docs, RESULT, replace(RESULT, name="other", machine={"Memory": "16 GiB"}))
    assert not (docs / "performance.md").exists()


@pytest.mark.parametrize("name", find_names())
def test_each_benchmark_can_be_loaded_and_says_what_it_measures(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert callable(module.measure)
    assert module.__doc__


def test_one_run_alone_is_said_to_be_one(docs: Path) -> None:
    text = write(docs, replace(RESULT, rows=(replace(ROWS[0], value=FIXED),)))
    assert "| a call | 10.0 ms, one run | a fixed time: 10.0 ms |" in text
