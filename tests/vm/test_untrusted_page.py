"""docs/untrusted.md: what it has people run does what it says, and harms nothing but its VM."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.disposables import disposables
from tests.vm.home import Home, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
NAMES = ("thing", "untrusted.py", "agent.py")
"""What the page calls its programs, in their order."""
HARM = re.compile(rb"I run on (disp\d+) as user\nyour files are gone\nlo\n[0-9a-f]{32}\n")


@pytest.fixture(scope="module")
def folder(shared_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Have what the page wants to be there once, and return a folder with its programs."""
    page = (ROOT / "docs" / "untrusted.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```(?:sh|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    folder = tmp_path_factory.mktemp("untrusted")
    for name, program in zip(NAMES, programs, strict=True):
        (folder / name).write_text(program, encoding="utf-8")
    shared_home.ok("qvm-create", "--template", "debian-12", "--label", "red", "untrusted")
    shared_home.ok("qvm-prefs", "untrusted", "template_for_dispvms", "True")
    yield folder
    wait_until(lambda: not disposables(shared_home), "the last disposable is gone")
    shared_home.ok("qvm-remove", "--force", "untrusted")


def run(home: Home, folder: Path, *words: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=home.env, input=stdin, capture_output=True, timeout=120, check=False)


def test_by_hand(shared_home: Home, folder: Path) -> None:
    thing = (folder / "thing").read_bytes()
    done = shared_home.run("qvm-run", "--dispvm=untrusted", "--", "cat > thing && sh ./thing", stdin=thing)
    assert HARM.fullmatch(done.stdout)
    assert done.returncode == 42


def test_from_a_program(shared_home: Home, folder: Path) -> None:
    done = run(shared_home, folder, "untrusted.py", "thing")
    assert HARM.fullmatch(done.stdout)
    assert (done.returncode, done.stderr) == (42, b"")
    assert (folder / "thing").exists()


def test_for_an_agent(shared_home: Home, folder: Path) -> None:
    commands = b"echo hello > note\ncat note\nsleep 1000\nyes\nrm -rf ~/*; ls\n"
    done = run(shared_home, folder, "agent.py", stdin=commands)
    assert done.stdout.decode().splitlines() == [
        "> echo hello > note: exit code 0",
        "> cat note: exit code 0",
        "hello",
        "> sleep 1000: ended after 5 s",
        "> yes: the command has written more than 10000 bytes; allow more with max_output",
        "> rm -rf ~/*; ls: exit code 0",
    ]
    assert done.returncode == 0
