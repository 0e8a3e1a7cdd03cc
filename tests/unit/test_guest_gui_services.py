"""qubes.SetGuiMode and qubes.OpenURL of guests, run for real."""

import getpass
import os
import stat
import subprocess
from pathlib import Path

import pytest

from crannog.guest import agent

SERVICES = Path(agent.__file__).parent / "services"


def serve(service: str, data: bytes, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [SERVICES / service], input=data, env=os.environ | environment, capture_output=True, timeout=20, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# -- qubes.SetGuiMode


@pytest.mark.parametrize("data", [b"SEAMLESS", b"SEAMLESS\n", b"FULLSCREEN"])
def test_a_mode_is_kept_where_everybody_reads_it(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "gui-mode"
    file.write_text("before\n")
    file.chmod(0o600)
    assert serve("qubes.SetGuiMode", data, CRANNOG_GUI_MODE_FILE=str(file)) == (0, "", "")
    assert file.read_bytes() == data.strip() + b"\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"seamless", b"SEAMLESS FULLSCREEN", b"SEAMLESS\nFULLSCREEN", b" SEAMLESS", b"*", b"x" * 100_000],
)
def test_anything_else_changes_nothing(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "gui-mode"
    file.write_text("before\n")
    code, out, err = serve("qubes.SetGuiMode", data, CRANNOG_GUI_MODE_FILE=str(file))
    assert (code, out, err) == (1, "", "stdin names neither SEAMLESS nor FULLSCREEN\n")
    assert file.read_text() == "before\n"


def test_a_mode_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    code, _, err = serve("qubes.SetGuiMode", b"SEAMLESS", CRANNOG_GUI_MODE_FILE=str(tmp_path / "no/gui-mode"))
    assert code != 0
    assert "gui-mode" in err


# -- qubes.OpenURL


@pytest.fixture
def session(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a service in a session, where xdg-open tells what it was given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    write_program(programs / "xdg-open", "xdg")
    for name in ("head", "id", "sh"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    (tmp_path / f"session.{getpass.getuser()}").touch()
    return {"PATH": str(programs), "CRANNOG_SESSION_FOLDER": str(tmp_path), "BROWSER": ""}


def write_program(path: Path, says: str) -> None:
    path.write_text(f'#!/bin/sh\nprintf "%s(%s)" {says} "$@"\nexit 5\n')
    path.chmod(0o755)


URLS = [
    "http://example.org",
    "https://example.org/a?b=c&d=$(reboot);e#f",
    "ftp://example.org/x%20y",
    "https://de.example.org/Köln",
    "https://[::1]:80/",
    "https://example.org/" + "x" * 8000,
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("end", ["", "\n"])
def test_an_url_is_opened(session: dict[str, str], url: str, end: str) -> None:
    assert serve("qubes.OpenURL", (url + end).encode(), **session) == (5, f"xdg({url})", "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"example.org",
        b"file:///etc/passwd",
        b"javascript:alert(1)",
        b"--help",
        b"http:example.org",
        b"http://",
        b"https:///etc/passwd",
        b"xhttp://example.org",
        b" http://example.org",
    ],
)
def test_what_is_no_url_of_the_net_is_refused(session: dict[str, str], data: bytes) -> None:
    code, out, err = serve("qubes.OpenURL", data, **session)
    assert (code, out) == (1, "")
    assert err.startswith(("stdin has no URL that begins with http://", "the URL holds a character"))


@pytest.mark.parametrize("odd", [b" ", b"\n", b"\r", b"\t", b"\x1b", b"\x7f", b'"', b"<", b">", b"\\", b"`"])
def test_characters_that_no_url_has_are_refused(session: dict[str, str], odd: bytes) -> None:
    result = serve("qubes.OpenURL", b"http://example.org/" + odd + b"x", **session)
    assert result == (1, "", "the URL holds a character that no URL has\n")


def test_an_url_without_end_is_refused(session: dict[str, str]) -> None:
    result = serve("qubes.OpenURL", b"http://example.org/" + b"x" * 100_000, **session)
    assert result == (1, "", "the URL is longer than 8192 bytes\n")


def test_without_a_session_nothing_is_opened(session: dict[str, str]) -> None:
    os.unlink(f"{session['CRANNOG_SESSION_FOLDER']}/session.{getpass.getuser()}")
    code, out, err = serve("qubes.OpenURL", b"http://example.org", **session)
    assert (code, out) == (1, "")
    assert err.startswith(f"no session of '{getpass.getuser()}' is ready: ")


def test_browser_is_used_without_xdg_open(session: dict[str, str]) -> None:
    os.unlink(f"{session['PATH']}/xdg-open")
    code, _, err = serve("qubes.OpenURL", b"http://example.org", **session)
    assert (code, err) == (1, "nothing opens URLs here: install xdg-utils, or name a program in BROWSER\n")
    session["BROWSER"] = "surfer"
    code, _, err = serve("qubes.OpenURL", b"http://example.org", **session)
    assert (code, err) == (1, "BROWSER names 'surfer', which is not here\n")
    write_program(Path(session["PATH"]) / "surfer", "surf")
    assert serve("qubes.OpenURL", b"http://example.org", **session) == (5, "surf(http://example.org)", "")
