"""Pools of different drivers in one home, with the tools: what is made, copied and changed from one to another."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.adapters.storage.drivers import open_pools
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.vms import QubeBase
from tests.contract.benches import SIZE, image, peek
from tests.mounts import disk_file_system

BIN = os.path.dirname(sys.executable)
DRIVERS = ("plain", "qcow2", "reflink")
PAIRS = [(one, other) for one in DRIVERS for other in DRIVERS if one != other]


class Home:
    """A home without a daemon, with a pool of each driver that is called like it."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.folder = folder
        self.paths = Paths(str(folder / "home"), str(folder / "cache"))
        os.makedirs(self.paths.home)
        for driver in DRIVERS:
            self.ok("qvm-pool", "add", driver, driver, "-o", f"dir_path={disk}/{folder.name}-{driver}")

    def run(self, tool: str, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [f"{BIN}/{tool}", "--offline", *words],
            env={**os.environ, "CRANNOG_HOME": self.paths.home, "CRANNOG_CACHE": self.paths.cache},
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def ok(self, tool: str, *words: str) -> str:
        code, output, errors = self.run(tool, *words)
        assert (code, errors) == (0, ""), (tool, words, code, output, errors)
        return output

    def vm(self, name: str) -> QubeBase:
        return FileStore(self.paths.store, self.paths.kernels).load().find_vm(name)

    def pools_of(self, name: str) -> dict[str, str]:
        return {volume.name: volume.pool for volume in self.vm(name).pool_volumes()}

    def content(self, name: str, volume: str) -> str:
        """Return the letter that the content of a volume consists of at the place where the tests look."""
        vm = self.vm(name)
        held = vm.volumes[volume]
        return peek(open_pools(self.paths, vm.registry.pools.values())[held.pool].newest(held.vid))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with disk_file_system(tmp_path_factory.mktemp("disk"), "btrfs") as folder:
        yield folder


@pytest.fixture
def home(tmp_path: Path, disk: Path) -> Home:
    return Home(tmp_path, disk)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_vms_go_from_one_pool_to_another(home: Home, one: str, other: str, tmp_path: Path) -> None:
    root = image(tmp_path, "r")
    home.ok("qvm-create", "--class", "TemplateVM", "-P", one, "--root-copy-from", root, "debian")
    assert home.pools_of("debian") == {"root": one, "private": one, "volatile": one}
    home.ok("qvm-create", "--template", "debian", "-p", f"private={other}", "work")
    assert {**home.pools_of("work"), "root": one, "private": other} == home.pools_of("work")
    home.ok("qvm-volume", "import", "work:private", image(tmp_path, "p"))
    home.ok("qubes-prefs", "default_pool", other)
    for source, copy in (("debian", "debian-copy"), ("work", "work-copy")):
        home.ok("qvm-clone", source, copy)
    assert home.pools_of("debian-copy")["root"] == other
    assert (home.content("debian-copy", "root"), home.content("work-copy", "private")) == ("r", "p")
    home.ok("qvm-create", "--standalone", "--template", "debian", "alone")
    assert (home.pools_of("alone")["root"], home.content("alone", "root")) == (other, "r")
    for name in ("work", "work-copy", "debian"):
        home.ok("qvm-remove", "--force", name)
    assert (home.content("debian-copy", "root"), home.content("alone", "root")) == ("r", "r")


@pytest.mark.parametrize("driver", DRIVERS)
def test_volumes_change_by_the_tools(home: Home, driver: str, tmp_path: Path) -> None:
    home.ok("qvm-create", "--class", "TemplateVM", "-P", driver, "--root-copy-from", image(tmp_path, "a"), "debian")
    home.ok("qvm-volume", "import", "debian:root", image(tmp_path, "b"))
    home.ok("qvm-volume", "revert", "debian:root")
    assert home.content("debian", "root") == "a"
    home.ok("qvm-volume", "config", "debian:root", "revisions_to_keep", "0")
    home.ok("qvm-volume", "resize", "debian:root", f"{2 * SIZE}")
    assert home.content("debian", "root") == "a"
    assert f"{2 * SIZE}" in home.ok("qvm-volume", "info", "debian:root")
    home.ok("qvm-volume", "clear", "--force", "debian:root")
    assert home.content("debian", "root") == "\0"
    info = dict(line.split(maxsplit=1) for line in home.ok("qvm-pool", "info", driver).splitlines())
    assert info["driver"] == driver
    home.ok("qvm-remove", "--force", "debian")
    home.ok("qvm-pool", "remove", driver)


def test_a_pool_that_cannot_be_is_refused_with_a_sentence(home: Home, tmp_path: Path) -> None:
    code, output, errors = home.run("qvm-pool", "add", "fast", "reflink", "-o", f"dir_path={tmp_path}/vms")
    assert (code, output) == (9, "")
    assert errors.endswith(" cannot share data; choose a folder on btrfs or xfs, or driver qcow2\n")
    assert not (tmp_path / "vms").exists()
