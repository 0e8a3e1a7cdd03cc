"""Offline mode where libvirt is not installed, as in an installer's environment: only Python, lxml and Crannog."""

import os
import subprocess
import sys
from pathlib import Path

import lxml
import pytest

import crannog

TOOLS = {
    "qvm-create": "qvm_create", "qvm-clone": "qvm_clone", "qvm-remove": "qvm_remove", "qvm-ls": "qvm_ls",
    "qvm-prefs": "qvm_prefs", "qubes-prefs": "qubes_prefs", "qvm-features": "qvm_features", "qvm-tags": "qvm_tags",
    "qvm-notes": "qvm_notes",
}  # fmt: skip


class Bare:
    """Runs tools by a Python that finds nothing but its standard library, lxml and Crannog."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        packages = folder / "packages"
        (packages / "bin").mkdir(parents=True)
        (packages / "bin" / "cp").symlink_to("/bin/cp")
        for module in (lxml, crannog):
            source = Path(str(module.__file__)).parent
            (packages / source.name).symlink_to(source)
        self._env = {"PYTHONPATH": str(packages), "CRANNOG_HOME": str(self.home), "PATH": str(packages / "bin")}

    def python(self, code: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a piece of Python there."""
        command = [sys.executable, "-S", "-c", code, *words]
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=60, check=False)

    def run(self, tool: str, *words: str) -> str:
        """Run a tool with --offline; return its output."""
        function = "main_service" if tool == "qvm-service" else "main"
        module = TOOLS.get(tool, "qvm_features")
        done = self.python(f"from crannog.cli.{module} import {function}; {function}()", "--offline", *words)
        assert (done.returncode, done.stderr) == (0, ""), (tool, words, done)
        return done.stdout


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path)


@pytest.mark.parametrize("module", ["libvirt", "libvirtaio"])
def test_libvirt_is_not_there(bare: Bare, module: str) -> None:
    assert f"No module named '{module}'" in bare.python(f"import {module}").stderr


def test_every_settings_tool_works(bare: Bare) -> None:
    bare.run("qvm-create", "--class", "TemplateVM", "debian")
    bare.run("qvm-create", "--template", "debian", "--label", "blue", "work")
    bare.run("qvm-prefs", "work", "memory", "512")
    bare.run("qvm-features", "work", "menu", "one two")
    bare.run("qvm-service", "work", "cups", "on")
    bare.run("qvm-tags", "work", "add", "mine")
    bare.run("qvm-notes", "work", "--set", "remember")
    bare.run("qubes-prefs", "default_template", "debian")
    bare.run("qvm-clone", "work", "play")
    bare.run("qvm-remove", "--force", "work")
    assert bare.run("qvm-ls", "--raw-data", "--fields", "name,state,label,memory,template").splitlines() == [
        "dom0|Running|black|-|-",
        "debian|Halted|red|400|-",
        "play|Halted|blue|512|debian",
    ]
    assert bare.run("qvm-features", "play").split() == ["menu", "one", "two", "service.cups", "1"]
    assert bare.run("qvm-service", "play").split() == ["cups", "on"]
    assert "mine" in bare.run("qvm-tags", "play").split()
    assert bare.run("qvm-notes", "play") == "remember\n"
    assert bare.run("qubes-prefs", "default_template") == "debian\n"
    left = {entry.name for entry in os.scandir(bare.home)}
    assert left == {"qubes.xml", "qubes.xml.lock", "history", "notes", "pools"}, (
        "no socket, no log, nothing of a daemon"
    )
