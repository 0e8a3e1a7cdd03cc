"""Cleaning a guest's console: nothing that a terminal would obey comes through."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.rpc.console import MAX_BYTES, MAX_COLUMNS, MAX_LINES, clean_tail, read_tail

ESCAPES = st.sampled_from(
    [b"\x1b", b"[", b"\x1b[0m", b"\x1b]0;title\x07", b"\x9b2J", b"\r", b"\n", b"A", b"\x08", b"\xc2\x9b"]
)


@given(st.binary(max_size=5000) | st.lists(ESCAPES, max_size=60).map(b"".join))
def test_only_short_printable_lines_come_through(untrusted_bytes: bytes) -> None:
    text = clean_tail(untrusted_bytes)
    lines = text.split("\n") if text else []
    assert len(lines) <= MAX_LINES
    for line in lines:
        assert line.startswith("  | ")
        assert len(line) <= MAX_COLUMNS + 4
        assert line.isascii()
        assert line.isprintable()


@pytest.mark.parametrize(
    ("untrusted_bytes", "text"),
    [
        (b"", ""),
        (b"\r\n\r\n  \r\n", ""),
        (b"login: \x1b[1;31mred\x1b[0m\r\n", "  | login: red"),
        (b"\x1b\x1b[0m[0mx", "  | ?[0mx"),
        (b"\x1b]0;evil\x07x", "  | 0;evil?x"),
        (b"\x9b2J", "  | ?2J"),
        (b"a\tb", "  | a?b"),
        (b"x" * 500, "  | " + "x" * MAX_COLUMNS),
        (b"\n".join(b"%d" % i for i in range(20)), "\n".join(f"  | {i}" for i in range(8, 20))),
    ],
)
def test_examples(untrusted_bytes: bytes, text: str) -> None:
    assert clean_tail(untrusted_bytes) == text


def test_only_the_end_of_a_large_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with path.open("wb") as file:
        file.truncate(2**40)
        file.seek(0, 2)
        file.write(b"the end")
    assert len(read_tail(str(path))) == MAX_BYTES
    assert read_tail(str(path)).endswith(b"the end")


@pytest.mark.parametrize("name", ["absent", "."])
def test_what_cannot_be_read_is_empty(tmp_path: Path, name: str) -> None:
    assert read_tail(str(tmp_path / name)) == b""


def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"\x1b[2Jpanic\n")
    command = [sys.executable, "-m", "crannog.rpc.console", str(path)]
    assert subprocess.run(command, capture_output=True, check=True, timeout=20).stdout == b"  | panic\n"
