"""What a guest's session starts by itself: real files, and real programs that say that they were started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crannog.guest.gui import autostart
from crannog.guest.gui.autostart import SkippedError, expand, is_wanted, parse_entry, split_command
from tests.unit.rpc_world import wait_until

ENTRY = "[Desktop Entry]\nType=Application\nName=Name\nExec={}\n"


class Place:
    """A home and a system's folder, with a program that notes how it was started."""

    def __init__(self, folder: Path) -> None:
        self.home, self.system, self.notes = folder / "home", folder / "xdg", folder / "notes"
        for path in (self.home / ".config/autostart", self.system / "autostart", folder / "bin", self.notes):
            path.mkdir(parents=True)
        note = folder / "bin/note"
        note.write_text(f'#!/bin/sh\nname=$1; shift\n{{ pwd; printf "%s\\n" "$@"; }} >{self.notes}/.new-$name\n')
        with note.open("a") as file:
            file.write(f"mv {self.notes}/.new-$name {self.notes}/$name\n")
        note.chmod(0o755)
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "XDG_CONFIG_DIRS": f"{self.system}:relative",
        }

    def write(self, name: str, text: str, *, is_users: bool = False) -> None:
        """Write a file of the system's, or of the user's."""
        folder = self.home / ".config/autostart" if is_users else self.system / "autostart"
        (folder / name).write_text(text)

    def run(self, **more: str) -> str:
        """Start everything; return what was said."""
        done = subprocess.run(
            [sys.executable, "-I", autostart.__file__],
            env=self.environment | more,
            stderr=subprocess.PIPE,
            timeout=20,
            check=True,
        )
        return done.stderr.decode()

    def started(self, *names: str) -> dict[str, list[str]]:
        """Wait for these notes, then for all that there are; return the lines of each."""
        wait_until(lambda: {path.name for path in self.notes.glob("[!.]*")} >= set(names))
        return {path.name: path.read_text().splitlines() for path in self.notes.glob("[!.]*")}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_programs_of_the_system_and_of_the_user_are_started_once(place: Place) -> None:
    place.write("a.desktop", ENTRY.format("note a one 'two' \"three four\" %U"))
    place.write("b.desktop", ENTRY.format("note b") + f"Path={place.system}\n", is_users=True)
    place.write("c.txt", ENTRY.format("note c"))
    said = place.run()
    assert place.started("a", "b") == {
        "a": [str(place.home), "one", "'two'", "three four"],
        "b": [str(place.system), ""],
    }
    assert said.count("crannog-autostart: ") == 2


def test_a_file_of_the_users_replaces_the_systems(place: Place) -> None:
    place.write("a.desktop", ENTRY.format("note a system"))
    place.write("a.desktop", ENTRY.format("note a user"), is_users=True)
    place.write("b.desktop", ENTRY.format("note b system"))
    place.write("b.desktop", "[Desktop Entry]\nHidden=true\n", is_users=True)
    place.write("last.desktop", ENTRY.format("note last"))
    place.run()
    started = place.started("a", "last")
    assert set(started) == {"a", "last"}
    assert started["a"][1:] == ["user"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[Desktop Entry]\nnonsense\n",
        "[Other]\nType=Application\nExec=note bad\n",
        "[Desktop Entry]\nType=Link\nExec=note bad\n",
        "[Desktop Entry]\nType=Application\n",
        ENTRY.format('note "bad'),
        ENTRY.format("note bad %z"),
        ENTRY.format("%f"),
        ENTRY.format("no-such-program bad"),
        ENTRY.format("note bad") + "#" * 70000,
        ENTRY.format("note bad\x00"),
    ],
)
def test_bad_files_are_skipped_and_named(place: Place, text: str) -> None:
    place.write("bad.desktop", text)
    (place.system / "autostart/binary.desktop").write_bytes(b"[Desktop Entry]\n\xff\xfe")
    (place.system / "autostart/gone.desktop").symlink_to("nowhere")
    (place.system / "autostart/folder.desktop").mkdir()
    place.write("good.desktop", ENTRY.format("note good"))
    said = place.run()
    assert set(place.started("good")) == {"good"}
    for name in ("bad", "binary", "gone", "folder"):
        assert said.count(f"{name}.desktop is skipped: ") == 1, said


def test_try_exec_and_terminals(place: Place) -> None:
    place.write("a.desktop", ENTRY.format("note a") + "TryExec=note\n")
    place.write("b.desktop", ENTRY.format("note b") + "TryExec=/no/such/program\n")
    place.write("c.desktop", ENTRY.format("note c") + "Terminal=true\n")
    terminal = Path(place.environment["PATH"].split(":")[0]) / "x-terminal-emulator"
    terminal.write_text('#!/bin/sh\n[ "$1" = -e ] && shift && exec "$@" terminal\n')
    terminal.chmod(0o755)
    said = place.run()
    assert set(place.started("a", "c")) == {"a", "c"}
    assert place.started("c")["c"][1:] == ["terminal"]
    assert "skipped" not in said


def test_without_any_folder_nothing_happens(place: Place) -> None:
    assert place.run(HOME="/nonexistent", XDG_CONFIG_DIRS="/nonexistent") == ""


@pytest.mark.parametrize(
    ("lines", "desktops", "wanted"),
    [
        ("", ["X-Crannog"], True),
        ("OnlyShowIn=GNOME;XFCE;", ["X-Crannog"], False),
        ("OnlyShowIn=GNOME;X-Crannog", ["X-Crannog"], True),
        ("NotShowIn=X-Crannog;", ["X-Crannog"], False),
        ("NotShowIn=KDE;", ["X-Crannog"], True),
        ("OnlyShowIn=XFCE;\nNotShowIn=Other;", ["XFCE", "Other"], True),
        ("OnlyShowIn=XFCE;\nNotShowIn=Other;", ["Other", "XFCE"], False),
        ("OnlyShowIn=", ["X-Crannog"], False),
        ("Hidden=true", ["X-Crannog"], False),
        ("Hidden=false", ["X-Crannog"], True),
        ("X-GNOME-Autostart-enabled=false", ["X-Crannog"], False),
    ],
)
def test_what_is_for_this_desktop(lines: str, desktops: list[str], wanted: bool) -> None:
    assert is_wanted(parse_entry(f"[Desktop Entry]\nType=Application\n{lines}"), desktops) is wanted


def test_the_environment_names_the_desktop(place: Place) -> None:
    place.write("a.desktop", ENTRY.format("note a") + "OnlyShowIn=XFCE;\n")
    place.run()
    place.run(XDG_CURRENT_DESKTOP="XFCE")
    assert set(place.started("a")) == {"a"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a b  c", ["a", "b", "c"]),
        ('"/opt/my programs/x" --y', ["/opt/my programs/x", "--y"]),
        (r'sh -c "echo \\"hi\\" \\$HOME \\`id\\` \\\\"', ["sh", "-c", 'echo "hi" $HOME `id` \\']),
        (r"a\sb", ["a", "b"]),
        ('a "" b', ["a", "", "b"]),
        ("a'b c'", ["a'b", "c'"]),
        ("a;b $(x)", ["a;b", "$(x)"]),
    ],
)
def test_quoting(value: str, words: list[str]) -> None:
    assert split_command(value) == words


@pytest.mark.parametrize("value", ['"a', r'"a\\x"', '"a\\'])
def test_wrong_quoting(value: str) -> None:
    with pytest.raises(SkippedError):
        split_command(value)


def test_field_codes() -> None:
    keys = {"Name": "My\\sName", "Icon": "icon"}
    words = ["x", "%f", "%F", "%u", "%U", "%i", "--name=%c", "%k", "100%%", "a%fb", "%d", "%m"]
    assert expand(words, keys, "/p") == ["x", "--icon", "icon", "--name=My Name", "/p", "100%", "ab"]
    assert expand(["x", "%i", "%c"], {}, "/p") == ["x", ""]
    for wrong in ("%", "%x"):
        with pytest.raises(SkippedError):
            expand(["x", wrong], keys, "/p")


def test_folders() -> None:
    assert autostart.list_folders({"HOME": "/h"}) == ["/h/.config/autostart", "/etc/xdg/autostart"]
    assert autostart.list_folders({"HOME": "/h", "XDG_CONFIG_HOME": "/c", "XDG_CONFIG_DIRS": "/a:b:/d"}) == [
        "/c/autostart",
        "/a/autostart",
        "/d/autostart",
    ]
    assert os.path.isabs(autostart.list_folders({})[0])
