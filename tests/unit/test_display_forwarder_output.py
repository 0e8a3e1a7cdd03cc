"""What is let through of a client's output."""

import os

import pytest

from crannog.display import forwarder_output
from crannog.display.forwarder_output import LOG_LINES_MAX, LOG_LINES_SUM_MAX, Output


def feed(status: bytes, log: bytes) -> list[str]:
    """Return what a new client's output comes to, when it has written this and ended."""
    ends = [os.pipe(), os.pipe()]
    output = Output(ends[0][0], ends[1][0])
    for (_, end), data in zip(ends, (status, log), strict=True):
        os.write(end, data)
        os.close(end)
    lines: list[str] = []
    while output.filenos():
        lines += output.read(output.filenos())
    for end, _ in ends:
        os.close(end)
    return lines


def test_one_count_of_many_is_left() -> None:
    assert feed(b"connected\n" + b"".join(b"windows %d\n" % n for n in range(100)), b"") == ["connected", "windows 99"]


def test_clients_write_so_much_to_the_log_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forwarder_output.Output, "_logged_sum", 0)
    for _ in range(LOG_LINES_SUM_MAX // LOG_LINES_MAX + 10):
        feed(b"", b"line\n" * (LOG_LINES_MAX + 50))
    assert capfd.readouterr().err.count("client: line\n") == LOG_LINES_SUM_MAX
