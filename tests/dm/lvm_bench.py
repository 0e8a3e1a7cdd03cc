"""Pools of driver lvm-thin in a volume group on a loop device, for the tests of a class."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crannog.adapters.storage.dm_tables import digest
from crannog.adapters.storage.lvm_commands import Place
from crannog.adapters.storage.lvm_names import State
from crannog.adapters.storage.lvm_thin import LvmThinPool
from crannog.ports.storage import Pool
from tests.dm.devices import MIB, loop_device, run

EXTENT = 65536
"""Bytes of a physical extent, the least that volumes differ by: the contract makes one larger by so much."""
PLACE = Place("dm-test", "thin.pool")


@contextmanager
def thin_pool(folder: Path, size: int = 48 * MIB) -> Iterator[Place]:
    """Make a volume group with a thin pool that refuses what it has no room for, and remove both afterwards."""
    with loop_device(folder / "disk", size + 16 * MIB) as device:
        run("vgcreate", "--physicalextentsize", f"{EXTENT}b", PLACE.group, device)
        try:
            make_thin_pool(PLACE, size)
            # As long as one is active, the thin pool's own devices neither come nor go.
            run("lvcreate", "--thin", "--virtualsize", "1m", "--name", "anchor", str(PLACE))
            yield PLACE
        finally:
            run("vgremove", "--force", "--yes", PLACE.group)


def make_thin_pool(place: Place, size: int) -> None:
    run(
        "lvcreate", "--type", "thin-pool", "--size", f"{size}b", "--chunksize", "64k", "--zero", "y",
        "--name", place.thin_pool, place.group,
    )  # fmt: skip
    run("lvchange", "--errorwhenfull", "y", str(place))


class LvmBench:
    """Pools in one thin pool, of a home of its own."""

    def __init__(self, place: Place, home: Path) -> None:
        self.place = place
        self.home = home

    def open(self, name: str = "p") -> Pool:
        return LvmThinPool(name, self.place, str(self.home))

    def volumes(self, name: str = "p") -> dict[str, list[str]]:
        """Return the tags of the pool's LVs, without their prefix, by the names of the LVs."""
        fields = ("--reportformat", "json", "--units", "b", "-o", "lv_name,lv_size,lv_tags,lv_attr")
        rows = json.loads(run("lvs", *fields, self.place.group))["report"][0]["lv"]
        listed = {
            f"{row['lv_name']} {row['lv_size']} {row['lv_attr'][1]}": row["lv_tags"].replace("crannog.", "").split(",")
            for row in rows
        }
        own = {f"home={digest(str(self.home.resolve()))}", f"pool={name}"}
        return {name: tags for name, tags in listed.items() if own <= set(tags)}

    def active(self) -> list[str]:
        return sorted(list_active())

    def contents(self) -> list[str]:
        found = self.volumes().items()
        return sorted(f"{self.said(tags, 'vid')} {name} {self.said(tags, 'state')}" for name, tags in found)

    def half_made(self) -> list[str]:
        found = self.volumes().items()
        return [name for name, tags in found if f"state={State.HALF_MADE}" in tags or "mark=doomed" in tags]

    @staticmethod
    def said(tags: list[str], name: str) -> str:
        return next(tag.partition("=")[2] for tag in tags if tag.startswith(f"{name}="))

    @contextmanager
    def full(self) -> Iterator[None]:
        run("lvcreate", "--thin", "--virtualsize", "1g", "--name", "ballast", str(self.place))
        ballast = f"/dev/{self.place.group}/ballast"
        try:
            complaint = fails("dd", "if=/dev/zero", f"of={ballast}", f"bs={EXTENT}", "oflag=direct")
            assert "No space left on device" in complaint
            yield
        finally:
            run("lvremove", "--yes", f"{self.place.group}/ballast")

    def close(self) -> None:
        """Remove all LVs of this home."""
        tag = f"crannog.home={digest(str(self.home.resolve()))}"
        names = run("lvs", "--noheadings", "-o", "lv_name", "--select", f'lv_tags = "{tag}"', self.place.group).split()
        if names:
            run("lvremove", "--yes", *(f"{self.place.group}/{name}" for name in names))


class InThinPool:
    """Tests in one thin pool, each in a home of its own."""

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
        with thin_pool(tmp_path_factory.mktemp("group")) as place:
            yield place

    @pytest.fixture
    def bench(self, place: Place, tmp_path: Path) -> Iterator[LvmBench]:
        made = LvmBench(place, tmp_path / "home")
        yield made
        made.close()

    @pytest.fixture
    def small_bench(self, bench: LvmBench) -> LvmBench:
        return bench


def list_active() -> set[str]:
    """Return the devices of device-mapper that are ours."""
    names = run("dmsetup", "info", "--columns", "--noheadings", "-o", "name").split()
    return {name for name in names if "-crannog--" in name}


def fails(*words: str) -> str:
    """Run a program that must fail; return what it complains of."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    return done.stderr
