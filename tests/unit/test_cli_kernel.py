"""crannog kernel add, as a user runs it: from a package, a file or this host into the pool, by a name of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.image_world import RELEASE, FakeMirror, put_mirror

TOOL = os.path.join(os.path.dirname(sys.executable), "crannog")
NAME = re.compile(rf"{re.escape(RELEASE)}-[0-9a-f]{{8}}\n")
FILES = ["initramfs", "kernel.json", "modules.img", "vmlinux"]


class Host:
    """A home without a daemon, on a host with the fake package mirror."""

    def __init__(self, tmp_path: Path, mirror: FakeMirror) -> None:
        self.mirror = mirror
        self.kernels = tmp_path / "home/pools/linux-kernel"
        self.env = {**os.environ, "CRANNOG_HOME": str(tmp_path / "home"), "CRANNOG_CACHE": str(tmp_path / "cache")}

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [TOOL, "kernel", words[0], "--offline", *words[1:]]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False)

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fails(self, code: int, sentence: str, *words: str) -> None:
        done = self.run(*words)
        assert (done.returncode, done.stdout) == (code, "")
        complaint = done.stderr.splitlines()[-1]
        assert complaint.startswith("crannog kernel: ")
        assert sentence in complaint
        assert "Traceback" not in done.stderr


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, put_mirror(tmp_path, monkeypatch))


def test_a_kernel_is_added_once_whatever_it_is_called(host: Host) -> None:
    name = host.ok("add")
    assert NAME.fullmatch(name)
    assert sorted(os.listdir(host.kernels / name.strip())) == FILES
    assert host.ok("add") == name
    assert host.ok("add", "mine") == "mine\n"
    assert host.ok("list").split() == sorted([name.strip(), "mine"])
    assert host.mirror.calls() == ["extract", "extract"]
    host.ok("remove", "mine")
    assert host.ok("list") == name


def test_the_first_kernel_becomes_the_default(host: Host) -> None:
    name = host.ok("add").strip()
    prefs = [os.path.join(os.path.dirname(TOOL), "qubes-prefs"), "--offline", "default_kernel"]
    done = subprocess.run(prefs, env=host.env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == name


def test_a_package_by_its_name(host: Host) -> None:
    assert NAME.fullmatch(host.ok("add", "--package", "linux-image-test"))
    host.fails(2, "'a b' cannot be the name of a package", "add", "--package", "a b")


def test_a_package_that_is_a_file(host: Host, tmp_path: Path) -> None:
    (host.mirror.folder / "extract/DEBIAN").mkdir()
    control = "Package: linux\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@b.c>\nDescription: test\n"
    (host.mirror.folder / "extract/DEBIAN/control").write_text(control)
    package = str(tmp_path / "linux.deb")
    build = ["dpkg-deb", "--build", str(host.mirror.folder / "extract"), package]
    subprocess.run(build, check=True, capture_output=True)
    assert host.ok("add", "mine", "--from-package", package) == "mine\n"
    host.fails(9, "odd.deb cannot be read: No such file", "add", "--from-package", str(tmp_path / "odd.deb"))


@pytest.mark.parametrize(
    ("code", "sentence", "words"),
    [
        (2, "from one of --package, --from-package and --release", ("--package", "x", "--release", "6.1")),
        (3, "this host has no kernel '0.0' in /boot", ("--release", "0.0")),
        (3, "there is no template recipe 'odd'", ("--recipe", "odd")),
        (2, "'../x' cannot be the name of a kernel", ("../x",)),
    ],
)
def test_what_cannot_be_added_is_said(host: Host, code: int, sentence: str, words: tuple[str, ...]) -> None:
    host.fails(code, sentence, "add", *words)
    assert host.ok("list") == ""


def test_a_name_that_is_taken_is_refused_before_anything_is_fetched(host: Host) -> None:
    (host.kernels / "mine").mkdir(parents=True)
    host.fails(4, "there is a kernel 'mine' already", "add", "mine")
    assert host.mirror.calls() == []
