"""qubes.ClipboardCopy and qubes.ClipboardPaste of guests, run for real, with a program in xclip's place."""

import getpass
import os
import subprocess
from pathlib import Path

import pytest

from crannog.guest import agent

SERVICES = Path(agent.__file__).parent / "gui/services"
XCLIP = """#!/bin/sh
case "$*" in
*-out*) cat "$CLIPBOARD" 2>/dev/null ;;
*) cat >"$CLIPBOARD"; [ ! -e "$CLIPBOARD.broken" ] ;;
esac
"""
Environment = dict[str, str]


@pytest.fixture
def session(tmp_path: Path) -> Environment:
    """Return the environment of a service that the host calls in a session."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "xclip").write_text(XCLIP)
    (programs / "xclip").chmod(0o755)
    (tmp_path / f"session.{getpass.getuser()}").touch()
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CRANNOG_SESSION_FOLDER": str(tmp_path),
        "CLIPBOARD": str(tmp_path / "clipboard"),
        "QREXEC_REMOTE_DOMAIN": "dom0",
    }


def serve(service: str, environment: Environment, data: bytes = b"") -> tuple[int, bytes, str]:
    done = subprocess.run(
        [SERVICES / service], input=data, env=os.environ | environment, capture_output=True, timeout=20, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode()


TEXTS = [b"x", "Grüße\n\t\x1b[31m\n\n".encode(), b"x" * 65536]


@pytest.mark.parametrize("text", TEXTS)
def test_text_goes_in_and_comes_out_as_it_is(session: Environment, text: bytes) -> None:
    assert serve("qubes.ClipboardPaste", session, text) == (0, b"", "")
    assert Path(session["CLIPBOARD"]).read_bytes() == text
    assert serve("qubes.ClipboardCopy", session) == (0, text, "")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "there is no text in the clipboard"),
        (b"x" * 65537, "longer than 65536 bytes"),
        (b"x" * 5_000_000, "longer than 65536 bytes"),
        (b"\xff", "no UTF-8 text"),
    ],
)
def test_what_is_no_text_is_not_copied(session: Environment, data: bytes, sentence: str) -> None:
    Path(session["CLIPBOARD"]).write_bytes(data)
    code, out, err = serve("qubes.ClipboardCopy", session)
    assert (code, out, err.count("\n")) == (1, b"", 1)
    assert sentence in err


@pytest.mark.parametrize("data", [b"", b"x" * 65537, b"\xff"])
def test_what_is_no_text_is_not_pasted(session: Environment, data: bytes) -> None:
    code, out, err = serve("qubes.ClipboardPaste", session, data)
    assert (code, out, err.count("\n")) == (1, b"", 1)
    assert not os.path.exists(session["CLIPBOARD"])


@pytest.mark.parametrize("service", ["qubes.ClipboardCopy", "qubes.ClipboardPaste"])
def test_who_gets_nothing(session: Environment, service: str) -> None:
    Path(session["CLIPBOARD"]).write_bytes(b"before")
    for caller in ("vault", ""):
        code, out, err = serve(service, session | {"QREXEC_REMOTE_DOMAIN": caller}, b"text")
        assert (code, out) == (1, b"")
        assert err.startswith(f"the clipboard is not for '{caller}': ")
    os.unlink(f"{session['CRANNOG_SESSION_FOLDER']}/session.{getpass.getuser()}")
    code, out, err = serve(service, session, b"text")
    assert (code, out) == (1, b"")
    assert err.startswith(f"no session of '{getpass.getuser()}' is ready: ")
    assert Path(session["CLIPBOARD"]).read_bytes() == b"before"


def test_without_xclip(session: Environment, tmp_path: Path) -> None:
    os.unlink(tmp_path / "bin/xclip")
    (tmp_path / "bin/timeout").symlink_to("/usr/bin/timeout")
    bare = session | {"PATH": str(tmp_path / "bin")}
    for service in ("qubes.ClipboardCopy", "qubes.ClipboardPaste"):
        assert serve(service, bare, b"text") == (1, b"", "there is no xclip here: install the package xclip\n")


def test_a_display_that_is_not_there(session: Environment) -> None:
    Path(session["CLIPBOARD"] + ".broken").touch()
    code, _, err = serve("qubes.ClipboardPaste", session, b"text")
    assert (code, err) == (1, "xclip cannot reach the display: see crannog-gui in the system's log\n")
