"""Which programs show VMs, and what is said of those that are missing."""

from pathlib import Path

import pytest

from crannog.adapters.display import parts
from crannog.core.displays import DisplayKind

SCREEN, AGENT = DisplayKind.SCREEN, DisplayKind.AGENT


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a host that has everything."""
    bare: dict[DisplayKind, dict[str, str]] = {kind: {} for kind in DisplayKind}
    for kind, wanted in parts.PACKAGES.items():
        for part, package in wanted.items():
            path = tmp_path / part.lstrip("/").replace("*", "x") if part.startswith("/") else tmp_path / "bin" / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o755)
            bare[kind][f"{tmp_path}{part}" if part.startswith("/") else part] = package
    monkeypatch.setattr(parts, "PACKAGES", bare)
    return tmp_path


def look(host: Path, kind: DisplayKind) -> str:
    return parts.missing_parts(kind, {"DISPLAY": ":0", "PATH": str(host / "bin")})


def test_a_host_that_has_everything(host: Path) -> None:
    assert [look(host, kind) for kind in DisplayKind] == ["", ""]
    told = parts.describe_parts({"DISPLAY": ":0", "PATH": str(host / "bin")})
    assert told == ["VMs are shown on display :0."]


@pytest.mark.parametrize(
    ("part", "package", "kinds"),
    [
        ("bin/bwrap", "bubblewrap", {SCREEN, AGENT}),
        ("bin/prlimit", "util-linux", {SCREEN, AGENT}),
        ("bin/xpra", "xpra", {AGENT}),
        ("usr/lib/python3/dist-packages/PIL/__init__.py", "python3-pil", {AGENT}),
        ("usr/lib/python3/dist-packages/gi/_gi_cairox.so", "python3-gi-cairo", {AGENT}),
        ("usr/lib/x/girepository-1.0/GtkVnc-2.0.typelib", "gir1.2-gtk-vnc-2.0", {SCREEN}),
    ],
)
def test_each_part_is_missed_by_what_needs_it(host: Path, part: str, package: str, kinds: set[DisplayKind]) -> None:
    (host / part).unlink()
    assert {kind for kind in DisplayKind if look(host, kind)} == kinds
    for kind in kinds:
        assert look(host, kind).endswith(f"cannot be shown: install {package} (apt-get install {package})")
    (host / part).touch(0o755)
    assert [look(host, kind) for kind in DisplayKind] == ["", ""], "it is looked for anew each time"


def test_without_a_desktop_that_is_the_reason(host: Path) -> None:
    (host / "bin/xpra").unlink()
    problems = {parts.missing_parts(kind, {"PATH": str(host / "bin")}) for kind in DisplayKind}
    assert problems == {"there is no desktop to show VMs on: crannogd was started without the variable DISPLAY"}
    told = parts.describe_parts({"PATH": str(host / "bin")})
    assert told == [
        "VMs are not shown: crannogd was started without a desktop.",
        "WARNING: to show the windows of VMs: apt-get install xpra",
    ]
