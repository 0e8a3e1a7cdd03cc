"""The guest's part of the agent display, as far as it needs no display: tests/gui has the rest."""

import os
import pwd
import socket
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from crannog.guest import agent
from crannog.guest.gui import session
from crannog.images.guestfiles import list_agent_files, list_guest_files, list_gui_files
from crannog.images.recipe import RECIPES

TOP = Path(__file__).resolve().parents[2]
WAIT = TOP / "src/crannog/guest/gui/services/crannog.Display+wait"


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        ("SEAMLESS", "SEAMLESS"),
        ("FULLSCREEN\n", "FULLSCREEN"),
        ("", "SEAMLESS"),
        ("fullscreen", "SEAMLESS"),
        ("FULLSCREEN" * 1000, "SEAMLESS"),
        ("\udcff", "SEAMLESS"),
    ],
)
def test_the_mode(tmp_path: Path, content: str, mode: str) -> None:
    path = tmp_path / "gui-mode"
    path.write_text(content, errors="surrogateescape")
    assert session.read_mode(str(path)) == mode


def test_the_mode_of_a_guest_that_was_told_none(tmp_path: Path) -> None:
    assert session.read_mode(str(tmp_path / "none")) == "SEAMLESS"


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ("size = 2560x1600\n", "2560x1600"),
        ("# size = 1x1\nsize=800x600", "800x600"),
        ("size = 1920x1080 -auth /dev/null\n", session.SIZE),
        ("", session.SIZE),
    ],
)
def test_the_size(tmp_path: Path, content: str, size: str) -> None:
    (tmp_path / "gui.conf").write_text(content)
    assert session.read_size(str(tmp_path / "gui.conf")) == size
    assert session.read_size(str(tmp_path / "none")) == session.SIZE


def test_the_cookie_is_in_xs_own_format(tmp_path: Path) -> None:
    cookie = bytes(range(16))
    path = tmp_path / "Xauthority"
    path.write_bytes(session.make_authority(cookie))
    words, at = [], 2
    data = path.read_bytes()
    while at < len(data):
        (length,) = struct.unpack_from(">H", data, at)
        words.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    assert struct.unpack_from(">H", data) == (0xFFFF,)  # FamilyWild (Xauth.h)
    assert words == [b"", b"0", b"MIT-MAGIC-COOKIE-1", cookie]


@pytest.mark.parametrize("mode", [session.SEAMLESS, session.FULLSCREEN])
def test_xpra_listens_for_the_user_alone_and_starts_nothing(mode: str) -> None:
    words = session.list_xpra_words(mode)
    assert [word for word in words if word.startswith("--bind")] == [f"--bind={session.SOCKET}"]
    assert {"--socket-permissions=600", "--start-new-commands=no", "--clipboard=no", "--html=no"} <= set(words)
    assert words[1:3] == (["start", ":0"] if mode == session.SEAMLESS else ["shadow", ":0"])


def test_waiting_for_the_display(tmp_path: Path) -> None:
    path = str(tmp_path / "xpra.sock")
    environment = {"CRANNOG_GUI_SOCKET": path, "CRANNOG_GUI_WAIT": "0.3"}
    command = [sys.executable, str(WAIT)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=False, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith(b"no display is forwarded: nobody listens at ")
    environment["CRANNOG_GUI_WAIT"] = "20"
    with subprocess.Popen(command, env=environment) as waiting, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert waiting.poll() is None
        listener.listen()
        assert waiting.wait(60) == 0


def test_programs_of_the_user_find_the_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRANNOG_SESSION_FOLDER", str(tmp_path))
    user = pwd.getpwuid(os.getuid())
    assert "DISPLAY" not in agent.make_environment(user)
    (tmp_path / f"environment.{user.pw_name}").write_text("DISPLAY=:0\nXAUTHORITY=/run/crannog/gui/Xauthority\n")
    environment = agent.make_environment(user)
    assert (environment["DISPLAY"], environment["XAUTHORITY"]) == (":0", "/run/crannog/gui/Xauthority")


@pytest.mark.parametrize("unit", ["xpra.service", "xpra.socket"])
def test_xpras_own_server_is_kept_from_starting(unit: str) -> None:
    files = {file.path: (file.content or b"").decode() for file in list_gui_files()}
    assert "\nConditionPathExists=/etc/crannog/" in files[f"usr/lib/systemd/system/{unit}.d/50-crannog.conf"]
    assert f"disable {unit}\n" in files["usr/lib/systemd/system-preset/50-crannog-gui.preset"]


def test_what_the_session_runs_is_installed_beside_it() -> None:
    files = {file.path: file.mode for file in list_gui_files()}
    for path in (session.PROGRAMS, session.AUTOSTART, session.KEYBOARD, session.OWN_KEYBOARD):
        assert files[f"usr/lib/crannog/gui/{os.path.basename(path)}"] == 0o755


def test_plain_images_have_nothing_of_it() -> None:
    gui = {file.path for file in list_gui_files()}
    plain = {file.path: file.content for file in list_guest_files("x", b"agent")}
    graphical = {file.path: file.content for file in list_guest_files("x", b"agent", has_gui=True)}
    assert not gui & set(plain)
    assert gui <= set(graphical)
    assert not gui & {file.path for file in list_agent_files(b"agent")}
    assert b"session.py" in (graphical["etc/inittab"] or b"")
    assert b"session.py" not in (plain["etc/inittab"] or b"")
    assert RECIPES["debian-12-gui"].has_gui
    assert set(RECIPES["debian-12"].packages) < set(RECIPES["debian-12-gui"].packages)


def test_the_agent_looks_where_the_session_is_installed() -> None:
    assert agent.GUI in {"/" + file.path for file in list_gui_files()}


def test_the_package(tmp_path: Path) -> None:
    out = subprocess.run([TOP / "scripts/guest-deb", tmp_path], stdout=subprocess.PIPE, check=True, timeout=50)
    package = Path(out.stdout.decode().split()[1])
    assert package.name.startswith("crannog-guest-gui_")
    with (tmp_path / "files.tar").open("wb") as output:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=output, check=True)
    with tarfile.open(tmp_path / "files.tar") as archive:
        found = {member.name.removeprefix("./") for member in archive if not member.isdir()}
    assert found == {file.path for file in list_gui_files() if file.content is not None or file.target}
    subprocess.run(["dpkg-deb", "--control", package, tmp_path / "control"], check=True)
    for script in ("postinst", "prerm"):
        subprocess.run(["sh", "-n", tmp_path / "control" / script], check=True)
