"""crannog.Screenshot of guests, run for real, where there is no picture. Pictures are in tests/gui/test_looks.py."""

import getpass
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.guest import agent
from tests.fakes import short_folder

SERVICE = Path(agent.__file__).parent / "gui/services/crannog.Screenshot"
Environment = dict[str, str]


@pytest.fixture
def session() -> Iterator[Environment]:
    """Return the environment of a service that the host calls in a session whose xpra is not there yet."""
    with short_folder() as folder:
        (folder / f"session.{getpass.getuser()}").touch()
        yield {
            "CRANNOG_SESSION_FOLDER": str(folder),
            "CRANNOG_GUI_SOCKET": str(folder / "xpra.sock"),
            "CRANNOG_GUI_WAIT": "1",
            "QREXEC_REMOTE_DOMAIN": "dom0",
        }


def serve(environment: Environment) -> str:
    """Run the service, which must fail without a picture; return its sentence."""
    done = subprocess.run([SERVICE], env=os.environ | environment, capture_output=True, timeout=50, check=False)
    complaint = done.stderr.decode()
    assert (done.returncode, done.stdout, complaint.count("\n")) == (1, b"", 1), complaint
    return complaint


@pytest.mark.parametrize("caller", ["vault", ""])
def test_who_gets_no_picture(session: Environment, caller: str) -> None:
    assert serve(session | {"QREXEC_REMOTE_DOMAIN": caller}).startswith(f"pictures are not for '{caller}': ")


def test_without_a_session(session: Environment) -> None:
    os.unlink(f"{session['CRANNOG_SESSION_FOLDER']}/session.{getpass.getuser()}")
    assert serve(session).startswith(f"no session of '{getpass.getuser()}' is ready: ")


def test_an_xpra_that_is_not_there(session: Environment) -> None:
    assert serve(session) == f"no display is forwarded: nobody listens at {session['CRANNOG_GUI_SOCKET']}\n"


def test_an_xpra_that_does_not_answer(session: Environment) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(session["CRANNOG_GUI_SOCKET"])
        listener.listen()
        assert serve(session) == "xpra did not answer within 1 s\n"


def test_an_xpra_that_closes_at_once(session: Environment) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(session["CRANNOG_GUI_SOCKET"])
        listener.listen()
        listener.shutdown(socket.SHUT_RDWR)
        assert serve(session).startswith("no display is forwarded: ")
